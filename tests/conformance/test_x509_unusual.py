"""Certificates that are valid and look unlike ours: what other issuers make.

They are built here, extension by extension; `Domain` always writes the same ones.

Source: X509-SVID.md sections 2 to 5; RFC 5280 sections 4.1 and 4.2.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku
from cryptography.x509.oid import NameOID

from tests.conformance.driver import Harness
from x0tta6bl4.sdk.testing.domain import Domain, Svid
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

NAME = "spiffe://example.org/peer"
Extension = tuple[x509.ExtensionType, bool]


def usage(*names: str) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
             "key_agreement", "key_cert_sign", "crl_sign", "encipher_only",
             "decipher_only")  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every})


CA: tuple[Extension, ...] = (
    (x509.BasicConstraints(True, None), True),
    (usage("key_cert_sign", "crl_sign"), True),
)
URI = x509.UniformResourceIdentifier(NAME)
LEAF: tuple[Extension, ...] = (
    (x509.SubjectAlternativeName([URI]), True),
    (usage("digital_signature"), True),
)


def name(*parts: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, part) for part in parts])


def make(
    key: Any,
    by: Any,
    subject: x509.Name,
    issuer: x509.Name,
    extensions: tuple[Extension, ...],
    serial: int | None = None,
    days: float = 1,
    back_days: float = 1,
    digest: Any = None,
    padding: Any = None,
) -> bytes:
    """One certificate, with these extensions and no other."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - timedelta(days=back_days))
        .not_valid_after(now + timedelta(days=days))
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    made = builder.sign(by, digest or hashes.SHA256(), rsa_padding=padding)
    return made.public_bytes(serialization.Encoding.DER)


class Maker:
    """A CA whose certificates have neither key identifiers nor anything else that may be missing.

    Args:
        key: of the CA.
        subject: of the CA.
        extensions: of its certificate.
    """

    def __init__(
        self,
        key: Any = None,
        subject: x509.Name | None = None,
        extensions: tuple[Extension, ...] = CA,
        **more: Any,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.subject = name("root") if subject is None else subject
        self.root = make(self.key, self.key, self.subject, self.subject, extensions, **more)

    def svid(self, extensions: tuple[Extension, ...] = LEAF, **more: Any) -> Svid:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = more.pop("subject", name())
        der = make(key, self.key, subject, self.subject, extensions, **more)
        return Svid(NAME, (der,), pkcs8(key))


def pkcs8(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return data


def root_key_id() -> tuple[Extension, ...]:
    return (*CA, (x509.SubjectKeyIdentifier(b"anything"), False))


CAS: dict[str, Callable[[], Maker]] = {
    "plain": Maker,
    "with its ID": lambda: Maker(
        extensions=(*CA, (x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("spiffe://example.org")]), False))
    ),
    "no cRLSign": lambda: Maker(extensions=(CA[0], (usage("key_cert_sign"), True))),
    "also digitalSignature": lambda: Maker(
        extensions=(CA[0], (usage("key_cert_sign", "digital_signature"), True))
    ),
    "key usage not critical": lambda: Maker(extensions=(CA[0], (CA[1][0], False))),
    "any key identifier": lambda: Maker(extensions=root_key_id()),
    "path length 0": lambda: Maker(extensions=((x509.BasicConstraints(True, 0), True), CA[1])),
    "P-384": lambda: Maker(ec.generate_private_key(ec.SECP384R1()), digest=hashes.SHA384()),
    "P-521": lambda: Maker(ec.generate_private_key(ec.SECP521R1()), digest=hashes.SHA512()),
    "RSA": lambda: Maker(rsa.generate_private_key(65537, 2048)),
    "long life": lambda: Maker(days=20_000),
    "serial 1": lambda: Maker(serial=1),
    "several names": lambda: Maker(subject=name("a", "b", "c")),
    "younger than its leaves": lambda: Maker(back_days=0.01),
}  # fmt: skip

LEAVES: dict[str, tuple[tuple[Extension, ...], dict[str, Any]]] = {
    "nothing but name and usage": (LEAF, {}),
    "basic constraints": ((*LEAF, (x509.BasicConstraints(False, None), True)), {}),
    "basic constraints, not critical": ((*LEAF, (x509.BasicConstraints(False, None), False)), {}),
    "extended usage": (
        (*LEAF, (x509.ExtendedKeyUsage([Eku.SERVER_AUTH, Eku.CLIENT_AUTH]), False)), {}),
    "critical extended usage": (
        (*LEAF, (x509.ExtendedKeyUsage([Eku.CLIENT_AUTH, Eku.SERVER_AUTH]), True)), {}),
    "any extended usage beside": (
        (*LEAF, (x509.ExtendedKeyUsage(
            [Eku.CLIENT_AUTH, Eku.SERVER_AUTH, Eku.ANY_EXTENDED_KEY_USAGE]), False)), {}),
    "all usages of a leaf": (
        (LEAF[0], (usage("digital_signature", "key_encipherment", "key_agreement",
                         "content_commitment", "data_encipherment"), True)), {}),
    "DNS, mail and addresses": (
        ((x509.SubjectAlternativeName([
            x509.DNSName("web.example"), URI, x509.RFC822Name("web@example.org"),
            x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4"))]), True), LEAF[1]), {}),
    "policies": (
        (*LEAF, (x509.CertificatePolicies(
            [x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)]), False)), {}),
    "where its CRL is": (
        (*LEAF, (x509.CRLDistributionPoints([x509.DistributionPoint(
            [x509.UniformResourceIdentifier("http://crl.example/")], None, None, None)]),
            False)), {}),
    "serial 1": (LEAF, {"serial": 1}),
    "serial of 20 bytes": (LEAF, {"serial": 2**158 + 1}),
    "outlives its CA": (LEAF, {"days": 3_000}),
    "a subject": (((LEAF[0][0], False), LEAF[1]), {"subject": name("peer")}),
    "a subject that is another ID": (LEAF, {"subject": name("spiffe://other.test/x"[:60])}),
}  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Harness, dict[str, Maker], Domain]]:
    """A harness whose bundle has all these CAs at once."""
    makers = {kind: make() for kind, make in CAS.items()}
    with WorkloadApi() as api:
        api.issue("/web")
        roots = [*api.domain.anchors, *(maker.root for maker in makers.values())]
        api.write_bundle("example.org", x509=b"".join(roots))
        with Harness(api.endpoint) as harness:
            yield harness, makers, api.domain


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("kind", CAS)
def test_SP_032_029_cas_of_other_issuers(
    world: tuple[Harness, dict[str, Maker], Domain], role: str, kind: str
) -> None:
    harness, makers, _ = world
    assert harness.accepts(role, makers[kind].svid()) == NAME
    wrong = makers[kind].svid((*LEAF, (x509.BasicConstraints(True, None), True)))
    assert harness.accepts(role, wrong) == ""


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("kind", LEAVES)
def test_SP_022_028_032_leaves_of_other_issuers(
    world: tuple[Harness, dict[str, Maker], Domain], role: str, kind: str
) -> None:
    harness, makers, _ = world
    extensions, more = LEAVES[kind]
    assert harness.accepts(role, makers["plain"].svid(extensions, **more)) == NAME


def test_SP_032_cas_of_the_same_name_are_told_apart_by_their_keys(
    world: tuple[Harness, dict[str, Maker], Domain],
) -> None:
    harness, makers, _ = world
    assert makers["plain"].subject == makers["RSA"].subject
    for role in ("server", "client"):
        assert harness.accepts(role, makers["RSA"].svid())
        assert harness.accepts(role, Maker().svid()) == ""
