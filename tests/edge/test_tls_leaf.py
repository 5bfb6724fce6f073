"""An SVID that is written directly is, byte by byte, what cryptography's builder makes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from x0tta6bl4.edge.tls.leaf import Stamp

NOW = 1_790_000_000
IN_2050 = 2_524_608_000
USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def a_key(kind: str) -> Any:
    from x0tta6bl4.edge.tls.x509 import new_key

    return mldsa.MLDSA65PrivateKey.generate() if kind == "ML-DSA-65" else new_key(kind)


def at(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def a_ca(key: Any, digest: Any) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA of ours, Ü")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(at(NOW - 60))
        .not_valid_after(at(IN_2050 + 86_400))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, digest)
    )


def built(ca: x509.Certificate, ca_key: Any, digest: Any, key: Any, **how: Any) -> x509.Certificate:
    unit = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, how["unit"] or "-")
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([unit] if how["unit"] else []))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(how["serial"])
        .not_valid_before(at(how["start_unix_s"]))
        .not_valid_after(at(how["end_unix_s"]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(how["id"])]),
            critical=not how["unit"],
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(ca_key, digest)
    )


@pytest.mark.parametrize("ca_kind", ["P-256", "P-384", "ML-DSA-65"])
@pytest.mark.parametrize("kind", ["P-256", "P-384", "ML-DSA-65"])
def test_leaf_is_what_the_builder_makes(ca_kind: str, kind: str) -> None:
    digest = {"P-256": hashes.SHA256(), "P-384": hashes.SHA384()}.get(ca_kind)
    ca_key, key = a_key(ca_kind), a_key(kind)
    ca = a_ca(ca_key, digest)
    stamp = Stamp(ca, ca_kind)
    for id in ("spiffe://a.b/x", "spiffe://a.b/" + "long/" * 180 + "x"):
        for unit in ("", "x0 node n1", "x0 node " + "n" * 56):
            for serial in (1, 0x7F, 0x80, (1 << 159) - 1, 1 << 151):
                for start, end in ((NOW, NOW + 3600), (IN_2050 - 1, IN_2050)):
                    how: dict[str, Any] = {
                        "id": id,
                        "unit": unit,
                        "serial": serial,
                        "start_unix_s": start,
                        "end_unix_s": end,
                    }
                    expected = built(ca, ca_key, digest, key, **how)
                    body = stamp.body(key.public_key(), **how)
                    assert body == expected.tbs_certificate_bytes
                    whole = stamp.signed(body, expected.signature)
                    assert x509.load_der_x509_certificate(whole) == expected
