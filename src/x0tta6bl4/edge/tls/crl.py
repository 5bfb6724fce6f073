"""Revocation lists: which certificates of a trust domain count no more.

A list is believed only if a CA of that trust domain's own bundle has signed it and may sign such
lists; anybody else's is reported and ignored.  A list that is past its nextUpdate still counts: to
forget a revocation because the news is old would help the thief.

Source: RFC 5280 sections 5 and 6.3; the `crl` field of the SPIFFE Workload API.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from x0tta6bl4.edge.tls.x509 import parse, public_bytes
from x0tta6bl4.wire.errors import BadInput

CRL_BYTES_MAX: Final = 8 * 1024 * 1024
ENTRIES_MAX: Final = 262_144
"""Per trust domain; a list beyond it is refused as a whole, and said so."""

Withdrawn = frozenset[tuple[bytes, int]]
"""(issuer's public key as SubjectPublicKeyInfo, serial number)."""


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
