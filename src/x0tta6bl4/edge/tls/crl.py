"""Revocation lists: which certificates of a trust domain count no more; made, and believed.

A list is believed only if a CA of that trust domain's own bundle has signed it and may sign such
lists; anybody else's is reported and ignored.  A list that is past its nextUpdate still counts: to
forget a revocation because the news is old would help the thief.

Source: RFC 5280 sections 5 and 6.3; the `crl` field of the SPIFFE Workload API.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from x0tta6bl4.edge.tls.x509 import Issuer, authority_key, hash_for, parse, public_bytes
from x0tta6bl4.wire.errors import BadInput

CRL_BYTES_MAX: Final = 8 * 1024 * 1024
ENTRIES_MAX: Final = 262_144
"""Per trust domain; a list beyond it is refused as a whole, and said so."""

Withdrawn = frozenset[tuple[bytes, int]]
"""(issuer's public key as SubjectPublicKeyInfo, serial number)."""


def make_crl(
    issuer: Issuer, serials: Sequence[int], number: int, this_unix_s: int, next_unix_s: int
) -> bytes:
    """Make a revocation list, DER (RFC 5280 section 5).

    Args:
        issuer: the CA; its own key signs.
        serials: of the revoked certificates.
        number: greater than that of any list before (RFC 5280 section 5.2.3).
        this_unix_s: when it was made.
        next_unix_s: when there will be a newer one at the latest.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.parsed.certificate.subject)
        .last_update(_time(this_unix_s))
        .next_update(_time(next_unix_s))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority_key(issuer), critical=False)
    )
    revoked = x509.RevokedCertificateBuilder().revocation_date(_time(this_unix_s))
    for serial in serials:
        builder = builder.add_revoked_certificate(revoked.serial_number(serial).build())
    return builder.sign(issuer.key, hash_for(issuer.key)).public_bytes(Encoding.DER)


def withdrawn(lists: Sequence[bytes], anchors: Sequence[bytes]) -> tuple[Withdrawn, list[bool]]:
    """What these lists revoke.

    Args:
        lists: CRLs, DER.
        anchors: CA certificates of one trust domain, DER.
    Returns:
        The revoked certificates, and for each list whether one of the anchors has signed it.
    Raises:
        BadInput: something that is no CRL, is too long, or revokes too much.
    """
    signers = [anchor for anchor in map(parse, anchors) if _may_sign(anchor.fields.key_usage)]
    found: set[tuple[bytes, int]] = set()
    believed: list[bool] = []
    for data in lists:
        read = _read(data)
        believed.append(False)
        for signer in signers:
            if read.issuer == signer.subject and _signed(read, signer.certificate):
                believed[-1] = True
                key = public_bytes(signer)
                if len(read) + len(found) > ENTRIES_MAX:
                    raise BadInput("X0-TLS-015", "too many revocations", f"at most {ENTRIES_MAX}")
                found.update((key, entry.serial_number) for entry in read)
                break
    return frozenset(found), believed


def signer_of(data: bytes) -> str:
    """Key identifier of the CA that a list says it is of, hexadecimal; not proven.

    Raises:
        BadInput: not a CRL, or it does not say.
    """
    try:
        named = _read(data).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        raise BadInput("X0-TLS-014", "a CRL that names no key") from None
    return (named.value.key_identifier or b"").hex()


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def _may_sign(usage: tuple[str, ...] | None) -> bool:
    return usage is not None and "crl_sign" in usage


def _read(data: bytes) -> x509.CertificateRevocationList:
    if len(data) > CRL_BYTES_MAX:
        raise BadInput("X0-TLS-014", "CRL too large", "at most 8 MiB")
    try:
        return x509.load_der_x509_crl(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput("X0-TLS-014", "not a CRL in DER") from None


def _signed(read: x509.CertificateRevocationList, by: x509.Certificate) -> bool:
    key = by.public_key()
    try:
        return read.is_signature_valid(key)  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False
