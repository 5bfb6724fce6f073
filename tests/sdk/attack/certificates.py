"""Certificates at the doors of the SDK: what must be refused, and what is valid but unusual.

Most of the first are `edge.tls.impostors`; here are those that take more than one CA, a CRL or
another trust domain.

Source: X509-SVID.md (SP-020 to SP-042), SPIFFE Workload API (SP-111, SP-128), RFC 5280.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from tests.sdk.attack.world import Key, World
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor
from x0tta6bl4.edge.tls.recipes import BOTH_ENDS, Presented

Make = Callable[[World], Presented]


class Case(msgspec.Struct, frozen=True):
    """One thing that is wrong, and its twin, where it is right."""

    name: str
    reason: str
    wrong: Make
    right: Make
    presentable: bool = True
    """See `Impostor`."""
    plain: bool = True
    """Whether the standard library's OpenSSL, too, can present and judge both."""


class Unusual(msgspec.Struct, frozen=True):
    """A certificate that is valid, however odd it looks."""

    name: str
    make: Make
    plain: bool = True
    """See `Case`."""


def _of(case: Impostor) -> Case:
    return Case(
        case.name,
        case.reason,
        lambda world: case.make(world.issuer, world.now),
        lambda world: case.twin(world.issuer, world.now),
        case.presentable,
        case.name != "Brainpool key",
    )


def _leaf(*changes: dict[str, Any], root: str = "") -> Make:
    return lambda world: world.make(*changes, by=world.roots[root] if root else None)


def _by(signer: Callable[[World], Key], domain: Callable[[World], str], *chain: bytes) -> Make:
    return lambda world: world.make({}, by=signer(world), domain=domain(world))


def _ours(world: World) -> str:
    return world.domain.name


def _below_revoked(world: World) -> Presented:
    made = world.make({}, by=world.middle)
    return Presented((*made.chain, world.middle[1]), made.key)


WORLDLY: Final = (
    Case("revoked by a CRL", "revoked", lambda world: world.revoked, _leaf({})),
    Case("below an intermediate that a CRL revokes", "revoked", _below_revoked, _leaf({}, {})),
    Case("CA of a federated trust domain signs for ours", "untrusted issuer",
         _by(lambda world: world.friend._anchors[0], _ours), _leaf({})),
    Case("our CA signs for a federated trust domain", "untrusted issuer",
         _by(lambda world: world.anchor, lambda world: world.friend.name),
         _by(lambda world: world.friend._anchors[0], lambda world: world.friend.name)),
    Case("federated, but not authorised", "not authorised",
         _by(lambda world: world.other._anchors[0], lambda world: world.other.name),
         _by(lambda world: world.friend._anchors[0], lambda world: world.friend.name)),
    Case("CA that has left the bundle", "untrusted issuer",
         _by(lambda world: world.retired, _ours), _leaf({})),
    Case("CA in the bundle that has expired", "issuer expired",
         _leaf({}, root="expired"), _leaf({}, root="long life")),
    Case("CA in the bundle without keyCertSign", "issuer may not sign",
         _leaf({}, root="no keyCertSign"), _leaf({}, root="no cRLSign")),
    Case("CA in the bundle with a weak key", "weak key",
         _leaf({}, root="RSA-1024"), _leaf({}, root="RSA-2048")),
    Case("certificate in the bundle that is no CA", "issuer is no CA",
         _leaf({}, root="no CA"), _leaf({}, root="with its ID")),
    Case("intermediate below a CA of path length 0", "path length exceeded",
         _leaf({}, {}, root="path length 0"), _leaf({}, {}, root="path length 1")),
)  # fmt: skip

CASES: Final = (
    *(_of(case) for case in IMPOSTORS if case.expect is ANYBODY and not case.ours),
    *WORLDLY,
)


# ------------------------------------------------------------------------------- what is valid
def _sent(how: Callable[[tuple[bytes, ...], World], tuple[bytes, ...]], *changes: Any) -> Make:
    """As made, then sent in another way."""

    def make(world: World) -> Presented:
        made = world.make(*changes, {})
        return Presented(how(made.chain, world), made.key)

    return make


def _crossed(with_new: bool) -> Make:
    def make(world: World) -> Presented:
        made = world.make({}, by=world.roots["bare"])
        return Presented((*made.chain, *((world.crossed[1],) if with_new else ())), made.key)

    return make


_NAMES: Final = (
    x509.RFC822Name("web@example.org"),
    x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
    x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
)
_POLICIES: Final = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)]
)
_CRLS: Final = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.example/")],
                            None, None, None)]
)  # fmt: skip
_ACCESS: Final = x509.AuthorityInformationAccess(
    [x509.AccessDescription(AuthorityInformationAccessOID.OCSP,
                            x509.UniformResourceIdentifier("http://ocsp.example/"))]
)  # fmt: skip
_DAY: Final = 86_400
_LONG_ID: Final = "spiffe://{td}/" + "a" * (2_048 - len("spiffe://example.org/"))


def _one(name: str, changes: dict[str, Any], root: str = "", plain: bool = True) -> Unusual:
    return Unusual(name, _leaf(changes, root=root), plain)


# fmt: off
UNUSUAL: Final[tuple[Unusual, ...]] = (
    # Names.
    _one("ID of 2,048 bytes", {"uris": (_LONG_ID,)}),
    Unusual("trust domain of 255 bytes",
            lambda world: world.make({}, by=world.long._anchors[0], domain=world.long.name)),
    _one("trust domain in upper case", {"uris": ("spiffe://{TD}/web",)}),
    _one("scheme in upper case", {"uris": ("SPIFFE://{td}/web",)}),
    _one("path of one letter", {"uris": ("spiffe://{td}/x",)}),
    _one("path of a hundred segments", {"uris": ("spiffe://{td}" + "/x" * 100,)}),
    _one("every letter that a path may have", {"uris": ("spiffe://{td}/aZ09-._/...",)}),
    _one("reserved path", {"uris": ("spiffe://{td}/spire/agent/x",)}),
    _one("DNS names", {"dns": ("web.example.org", "*.example.org")}),
    _one("mail, addresses, registered ID", {"others": _NAMES}),
    _one("subject", {"subject": "web"}),
    _one("subject, SAN not critical", {"subject": "web", "san_critical": False}),
    _one("subject beyond ASCII", {"subject": "сервис ✓"}),
    _one("subject as PrintableString", {"subject": "web", "printable": True}),
    _one("subject that is another ID", {"subject": "spiffe://other.test/x"}),
    # Extensions.
    _one("no extended usage", {"extended": None}),
    _one("critical extended usage", {"extended_critical": True}),
    _one("further extended usages", {"extended": (*BOTH_ENDS, ExtendedKeyUsageOID.EMAIL_PROTECTION,
                                                  ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)}),
    _one("no basic constraints", {"basic": ""}),
    _one("basic constraints, not critical", {"basic": "plain"}),
    _one("no key identifiers", {"identifiers": False}),
    _one("nothing but name and usage", {"basic": "", "identifiers": False, "extended": None}),
    _one("every usage of a leaf", {"usages": (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement")}),
    _one("unknown extension", {"unknown": "plain"}),
    _one("policies", {"more": ((_POLICIES, False),)}),
    _one("where its CRL is, and who answers OCSP", {"more": ((_CRLS, False), (_ACCESS, False))}),
    _one("serial number 1", {"serial": 1}),
    _one("serial number of 20 bytes", {"serial": 2**158 + 1}),
    # When.
    _one("valid from this second", {"start_s": 0}),
    _one("life of a year", {"start_s": -100 * _DAY, "life_s": 365 * _DAY}),
    _one("life of fifty years", {"life_s": 50 * 365 * _DAY}),
    _one("outlives its CA", {"life_s": 3_000 * _DAY}),
    # Keys and signatures.
    *(_one(f"key: {key}", {"key": key}) for key in (
        "RSA-2048", "RSA-3072", "RSA-4096", "P-384", "P-521")),
    *(_one(f"key: {key}", {"key": key}, plain=False) for key in (
        "ML-DSA-44", "ML-DSA-65", "ML-DSA-87")),
    *(_one(f"signed by {root} with {hash}", {"hash": hash}, root) for root, hash in (
        ("P-384", "sha384"), ("P-521", "sha512"), ("RSA-2048", "sha256"), ("RSA-3072", "sha384"),
        ("RSA-4096", "sha512"))),
    *(_one(f"signed by RSA-2048 with PSS and {hash}", {"hash": hash, "pss": True}, "RSA-2048")
      for hash in ("sha256", "sha384", "sha512")),
    _one("signed by ML-DSA-65", {}, "ML-DSA-65", plain=False),
    # Who signed.
    *(Unusual(f"{count} intermediates", _leaf(*({},) * (count + 1))) for count in (1, 2, 3, 6)),
    Unusual("intermediates the other way round",
            _sent(lambda chain, _: (chain[0], *reversed(chain[1:])), {}, {}, {})),
    Unusual("intermediates in no order",
            _sent(lambda chain, _: (chain[0], chain[2], chain[3], chain[1]), {}, {}, {})),
    Unusual("CA sent along", _sent(lambda chain, world: (*chain, world.anchor[1]), {})),
    Unusual("strange CA sent along",
            _sent(lambda chain, world: (*chain, world.other.anchors[0]), {})),
    Unusual("intermediate twice", _sent(lambda chain, _: (*chain, chain[1]), {})),
    Unusual("intermediate without a name of its own", _leaf({"uris": None}, {})),
    Unusual("intermediate with the ID of another trust domain",
            _leaf({"uris": ("spiffe://other.example",)}, {})),
    Unusual("path lengths just enough",
            _leaf({"path_length": 2}, {"path_length": 1}, {"path_length": 0}, {})),
    Unusual("name constraints that permit",
            _leaf({"permitted": "dns:inside.example"}, {"dns": ("a.inside.example",)})),
    Unusual("name constraints that exclude others",
            _leaf({"excluded": "dns:outside.example"}, {"dns": ("a.inside.example",)})),
    *(_one(f"CA: {root}", {}, root) for root in (
        "bare", "twin", "with its ID", "no cRLSign", "also digitalSignature",
        "key usage not critical", "path length 0", "long life", "serial 1",
        "younger than its leaves", "printable name")),
    # OpenSSL tries one CA of a name and no other, unless key identifiers tell them apart.
    _one("CA of the same name as another one, without key identifiers", {}, "namesake",
         plain=False),
    Unusual("cross-signed CA, old way", _crossed(False)),
    Unusual("cross-signed CA, both ways", _crossed(True)),
    Unusual("friend of another trust domain",
            _by(lambda world: world.friend._anchors[0], lambda world: world.friend.name)),
)
# fmt: on
