"""Certificates that must be refused, each with one thing wrong, its reason, and a valid twin.

The attack tests and `x0 demo` present them to real listeners and dialers.  A case is two sets of
changes to one recipe for a chain: `wrong` is refused for `reason`, `right` is accepted, so that
it is the one wrong thing which is refused and not something that went along with it.

Source: X509-SVID.md (SP-020 to SP-036), SPIFFE-ID.md section 2, RFC 5280 section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from x0tta6bl4.core.identity.rules import ANYBODY, NODE, WORKLOAD, Expect
from x0tta6bl4.edge.tls.recipes import BOTH_ENDS, Presented, Recipe, bake, bake_chain, key_bytes
from x0tta6bl4.edge.tls.x509 import Issuer, new_anchor
from x0tta6bl4.wire.ids import TrustDomain


@final
class Impostor(msgspec.Struct, frozen=True, gc=False):
    """One case."""

    name: str
    reason: str
    """Of the judge, stable."""
    make: Callable[[Issuer, int], Presented]
    """(the true issuer, unix seconds) -> what is refused."""
    twin: Callable[[Issuer, int], Presented]
    """The same with the one thing right: accepted."""
    expect: Expect = ANYBODY
    """Whom the refusing end waits for."""
    presentable: bool = True
    """False: TLS 1.3 has no way to sign with such a key, so only the judge gets to see it."""
    ours: bool = False
    """Whether it is a rule of the mesh alone: the specification calls the certificate valid."""


SIGNER: Final = Recipe(
    uris=("spiffe://{td}",),
    san_critical=False,
    subject="intermediate",
    ca=True,
    usages=("key_cert_sign", "crl_sign"),
    extended=None,
    life_s=86_400,
)

Changes = dict[str, Any]


# ------------------------------------------------------------------------------- how they are made
def _from_ca(changes: Changes) -> Callable[[Issuer, int], Presented]:
    """A leaf of the true issuer."""
    return lambda issuer, now: _chain(issuer, now, (), msgspec.structs.replace(Recipe(), **changes))


def below_ca(
    *intermediates: Changes,
    leaf: Changes | None = None,
    sent: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] = tuple,
) -> Callable[[Issuer, int], Presented]:
    """A leaf below intermediates, highest first; `sent` picks what of the chain is presented."""
    cas = tuple(
        msgspec.structs.replace(SIGNER, **{"subject": f"intermediate {n}", **changes})
        for n, changes in enumerate(intermediates)
    )
    end = msgspec.structs.replace(Recipe(), **(leaf or {}))

    def make(issuer: Issuer, now: int) -> Presented:
        made = _chain(issuer, now, cas, end)
        return Presented(sent(made.chain), made.key)

    return make


def _foreign(changes: Changes, append: bool = False) -> Callable[[Issuer, int], Presented]:
    """A leaf for our trust domain, signed by somebody else's anchor."""

    def make(issuer: Issuer, now: int) -> Presented:
        other = new_anchor(TrustDomain("other.example"), now, kind="P-256")
        stranger = Issuer(issuer.domain, other.key, other.certificate)
        made = _chain(stranger, now, (), msgspec.structs.replace(Recipe(), **changes))
        return Presented((*made.chain, other.certificate) if append else made.chain, made.key)

    return make


def _namesake(issuer: Issuer, now: int) -> Presented:
    """Signed by a stranger who uses the anchor's name and key identifier."""
    return _chain(
        Issuer(issuer.domain, ec.generate_private_key(ec.SECP256R1()), issuer.certificate),
        now,
        (),
        Recipe(),
    )


def _self_signed(issuer: Issuer, now: int) -> Presented:
    return bake(Recipe(subject="myself", san_critical=False), issuer.domain, now)


def _self_signed_namesake(issuer: Issuer, now: int) -> Presented:
    """A new anchor of the same name, sent along."""
    other = new_anchor(issuer.domain, now, kind="P-256")
    made = _chain(other, now, (), Recipe())
    return Presented((*made.chain, other.certificate), made.key)


def _signing_certificate(issuer: Issuer, now: int) -> Presented:
    """The anchor itself, by whoever holds its key (SP-026)."""
    return Presented((issuer.certificate,), key_bytes(issuer.key))


def _renamed(issuer: Issuer, now: int) -> Presented:
    """The intermediate that is sent along has the key, but not the name."""
    made = below_ca({})(issuer, now)
    other = below_ca({"subject": "nobody"})(issuer, now)
    return Presented((made.chain[0], other.chain[1]), made.key)


def _intermediate(issuer: Issuer, now: int) -> Presented:
    """A signing certificate below the anchor, by whoever holds its key (SP-026)."""
    made = bake(SIGNER, issuer.domain, now, (issuer.key, issuer.certificate))
    return Presented(made.chain, made.key)


def _below_leaf(issuer: Issuer, now: int) -> Presented:
    """A workload signs for another one with its own SVID."""
    holder = Recipe(subject="holder", san_critical=False)
    parent = bake(holder, issuer.domain, now, (issuer.key, issuer.certificate))
    key = serialization.load_der_private_key(parent.key, None)
    made = bake(Recipe(uris=("spiffe://{td}/admin",)), issuer.domain, now, (key, parent.chain[0]))
    return Presented((*made.chain, *parent.chain), made.key)


# ---------------------------------------------------------------------------------------- the list
def _case(
    name: str,
    reason: str,
    wrong: Changes,
    right: Changes | None = None,
    expect: Expect = ANYBODY,
    presentable: bool = True,
    ours: bool = False,
) -> Impostor:
    made = _from_ca(wrong), _from_ca(right or {})
    return Impostor(name, reason, *made, expect, presentable, ours)


def _uri(
    name: str,
    reason: str,
    wrong: str,
    right: str = "spiffe://{td}/web",
    expect: Expect = ANYBODY,
    ours: bool = False,
) -> Impostor:
    return _case(name, reason, {"uris": (wrong,)}, {"uris": (right,)}, expect, ours=ours)


_SIGN: Final = "digital_signature"
_LONG: Final = "a" * 200 + "/"
_USAGE: Final = "leaf may sign certificates or CRLs"

# fmt: off
IMPOSTORS: Final[tuple[Impostor, ...]] = (
    # What a leaf may do.
    _case("leaf with cA=true", "leaf is a CA", {"ca": True}),
    Impostor("signing certificate as leaf", "leaf is a CA", _signing_certificate, _from_ca({})),
    _case("keyCertSign", _USAGE, {"usages": (_SIGN, "key_cert_sign")},
          {"usages": (_SIGN, "key_agreement")}),
    _case("cRLSign", _USAGE, {"usages": (_SIGN, "crl_sign")}),
    _case("no key usage", "no key usage", {"usages": None}),
    _case("key usage not critical", "key usage not critical", {"usage_critical": False}),
    _case("no digitalSignature", "no digital signature usage", {"usages": ("key_agreement",)}),
    _case("serverAuth only", "wrong extended key usage",
          {"extended": (ExtendedKeyUsageOID.SERVER_AUTH,)}, {"extended": None}),
    _case("clientAuth only", "wrong extended key usage",
          {"extended": (ExtendedKeyUsageOID.CLIENT_AUTH,)}),
    _case("code signing", "wrong extended key usage",
          {"extended": (ExtendedKeyUsageOID.CODE_SIGNING,)},
          {"extended": (*BOTH_ENDS, ExtendedKeyUsageOID.CODE_SIGNING)}),
    _case("any extended usage alone", "wrong extended key usage",
          {"extended": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
          {"extended": (*BOTH_ENDS, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)}),
    _case("OCSP signing", "wrong extended key usage",
          {"extended": (ExtendedKeyUsageOID.OCSP_SIGNING,), "extended_critical": True},
          {"extended_critical": True}),
    _case("unknown critical extension", "unknown critical extension",
          {"unknown": "critical"}, {"unknown": "plain"}),
    _case("name constraints in a leaf", "unknown critical extension",
          {"permitted": "dns:web.example"}),
    _case("an extension twice", "malformed certificate", {"doubled": True}),
    _case("an extension that is broken", "malformed certificate",
          {"more": ((x509.UnrecognizedExtension(
              x509.ObjectIdentifier("2.5.29.36"), b"\x01\x01"), False),)}),
    # What a leaf is called.
    _case("two URIs", "more than one URI", {"uris": ("spiffe://{td}/web", "spiffe://{td}/admin")},
          {"dns": ("web.example",)}),
    _case("SPIFFE and https URI", "more than one URI",
          {"uris": ("spiffe://{td}/web", "https://web.example/")}),
    _case("DNS name only", "no URI", {"uris": (), "dns": ("web.example",)},
          {"dns": ("web.example",)}),
    _case("no SAN", "no URI", {"uris": None, "subject": "web"},
          {"subject": "web", "san_critical": False}),
    _case("SAN not critical, subject empty", "SAN not critical", {"san_critical": False},
          {"san_critical": False, "subject": "web"}),
    _uri("https URI", "not a SPIFFE ID", "https://{td}/web"),
    _uri("no path", "ID without a path", "spiffe://{td}"),
    _uri("root path", "not a SPIFFE ID", "spiffe://{td}/"),
    _uri("trailing slash", "not a SPIFFE ID", "spiffe://{td}/web/"),
    _uri("empty segment", "not a SPIFFE ID", "spiffe://{td}//web"),
    _uri("dot segments", "not a SPIFFE ID", "spiffe://{td}/web/../admin"),
    _uri("percent encoding", "not a SPIFFE ID", "spiffe://{td}/w%65b"),
    _uri("query", "not a SPIFFE ID", "spiffe://{td}/web?x=1"),
    _uri("fragment", "not a SPIFFE ID", "spiffe://{td}/web#x"),
    _uri("port", "not a SPIFFE ID", "spiffe://{td}:443/web"),
    _uri("user info", "not a SPIFFE ID", "spiffe://root@{td}/web"),
    _uri("upper-case scheme", "ID not in normal form", "SPIFFE://{td}/web",
         "spiffe://{td}/WEB", ours=True),
    _uri("upper-case trust domain", "ID not in normal form", "spiffe://{TD}/web", ours=True),
    _uri("ID of 2,049 bytes and more", "not a SPIFFE ID", "spiffe://{td}/" + _LONG * 11 + "a",
         "spiffe://{td}/" + _LONG * 9 + "a"),
    _uri("no trust domain", "not a SPIFFE ID", "spiffe:///web"),
    _uri("one slash", "not a SPIFFE ID", "spiffe:/{td}/web"),
    _uri("one dot", "not a SPIFFE ID", "spiffe://{td}/./web"),
    _uri("percent-encoded dots", "not a SPIFFE ID", "spiffe://{td}/web/%2e%2e/admin"),
    _uri("space at the end", "not a SPIFFE ID", "spiffe://{td}/web "),
    _uri("NUL and more", "not a SPIFFE ID", "spiffe://{td}/web\0/admin"),
    _uri("newline", "not a SPIFFE ID", "spiffe://{td}/web\n"),
    _uri("backslash", "not a SPIFFE ID", "spiffe://{td}\\web"),
    _uri("characters beyond the set", "not a SPIFFE ID", "spiffe://{td}/web@host",
         "spiffe://{td}/web-host_1.a"),
    _uri("address as trust domain", "not a SPIFFE ID", "spiffe://[::1]/web"),
    _uri("dot behind the trust domain", "foreign trust domain", "spiffe://{td}./web"),
    _uri("trust domain of 256 bytes", "not a SPIFFE ID", "spiffe://" + "a" * 256 + "/web"),
    _uri("empty URI", "not a SPIFFE ID", ""),
    _case("the same URI twice", "more than one URI", {"uris": ("spiffe://{td}/web",) * 2}),
    _case("ID in the common name", "no URI", {"uris": None, "subject": "spiffe://{td}/web"},
          {"subject": "spiffe://{td}/web"}),
    _case("ID as DNS name", "no URI", {"uris": (), "dns": ("spiffe://web.example/web",)},
          {"dns": ("spiffe://web.example/web",)}),
    _case("ID as mail address", "no URI",
          {"uris": (), "others": (x509.RFC822Name("spiffe://web@example"),)},
          {"others": (x509.RFC822Name("web@example"),)}),
    _uri("foreign trust domain of our CA", "foreign trust domain", "spiffe://other.example/web"),
    _uri("trust domain with ours as prefix", "foreign trust domain", "spiffe://{td}.evil/web"),
    _case("huge SAN", "certificate too large",
          {"dns": tuple(f"name-{n}.example" for n in range(2_000))},
          {"dns": tuple(f"name-{n}.example" for n in range(20))}),
    # Reserved names outside their roles.
    _uri("node on a circuit", "not a workload", "spiffe://{td}/node/a", expect=WORKLOAD),
    _uri("authority on a circuit", "not a workload", "spiffe://{td}/authority/1",
         expect=WORKLOAD),
    _uri("workload on a link", "not a node", "spiffe://{td}/web", "spiffe://{td}/node/a", NODE),
    _uri("authority on a link", "not a node", "spiffe://{td}/authority/1",
         "spiffe://{td}/node/a", NODE),
    _uri("node without a proper name", "not a node", "spiffe://{td}/node/a/b",
         "spiffe://{td}/node/a", NODE),
    _uri("workload as authority", "not an authority", "spiffe://{td}/web",
         "spiffe://{td}/authority/1", Expect(role="authority")),
    # When.
    _case("expired", "expired", {"start_s": -7_200}, {"start_s": -3_500}),
    _case("in its last second", "expired", {"start_s": -3_600}, {"start_s": -3_590},
          ours=True),
    _case("not yet valid", "not yet valid", {"start_s": 60}, {"start_s": -1}),
    _case("lifetime of a day", "lifetime too long", {"life_s": 86_400}, {"life_s": 3_660},
          ours=True),
    # Keys and signatures.
    _case("RSA-1024 key", "weak key", {"key": "RSA-1024"}, {"key": "RSA-2048"}),
    _case("P-224 key", "weak key", {"key": "P-224"}, {"key": "P-384"}, presentable=False),
    _case("secp256k1 key", "weak key", {"key": "secp256k1"}, presentable=False),
    _case("Ed25519 key", "weak key", {"key": "Ed25519"}),
    _case("Ed448 key", "weak key", {"key": "Ed448"}),
    _case("P-192 key", "weak key", {"key": "P-192"}, presentable=False),
    _case("Brainpool key", "weak key", {"key": "brainpoolP256r1"}),
    _case("SHA-1 signature", "weak signature", {"hash": "sha1"}, {"hash": "sha384"}),
    Impostor("MD5 signature", "weak signature",
             below_ca({"key": "RSA-2048"}, leaf={"hash": "md5"}), below_ca({"key": "RSA-2048"})),
    _case("corrupted signature", "bad signature", {"spoilt": True}),
    # Who signed.
    Impostor("foreign CA for our domain", "untrusted issuer", _foreign({}), _from_ca({})),
    Impostor("foreign CA with its anchor sent along", "untrusted issuer",
             _foreign({}, append=True), _from_ca({})),
    Impostor("foreign CA under our CA's name and key id", "bad signature", _namesake,
             _from_ca({})),
    Impostor("new anchor of our name sent along", "untrusted issuer", _self_signed_namesake,
             _from_ca({})),
    Impostor("self-signed leaf", "untrusted issuer", _self_signed, _from_ca({})),
    Impostor("leaf signed by a leaf", "issuer is no CA", _below_leaf, below_ca({})),
    Impostor("intermediate without cA", "issuer is no CA", below_ca({"ca": False}), below_ca({})),
    Impostor("intermediate without keyCertSign", "issuer may not sign",
             below_ca({"usages": ("crl_sign",)}), below_ca({"usages": ("key_cert_sign",)})),
    Impostor("intermediate without key usage", "issuer may not sign",
             below_ca({"usages": None}), below_ca({})),
    Impostor("intermediate of another trust domain", "issuer of a foreign trust domain",
             below_ca({"uris": ("spiffe://other.example",)}), below_ca({"uris": None}), ours=True),
    Impostor("intermediate expired", "issuer expired", below_ca({"start_s": -90_000}),
             below_ca({"start_s": -80_000})),
    Impostor("intermediate not yet valid", "issuer expired", below_ca({"start_s": 60}),
             below_ca({"start_s": -1})),
    Impostor("intermediate signed with SHA-1", "weak signature", below_ca({"hash": "sha1"}),
             below_ca({"hash": "sha384"})),
    Impostor("intermediate with a corrupted signature", "bad signature",
             below_ca({"spoilt": True}), below_ca({})),
    Impostor("intermediate without basic constraints", "issuer is no CA",
             below_ca({"basic": ""}), below_ca({"basic": "plain"})),
    Impostor("intermediate of another name", "untrusted issuer", _renamed, below_ca({})),
    Impostor("intermediate as leaf", "leaf is a CA", _intermediate, below_ca({})),
    Impostor("intermediate with an Ed25519 key", "weak signature", below_ca({"key": "Ed25519"}),
             below_ca({"key": "P-521"})),
    Impostor("intermediate with a weak key", "weak key", below_ca({"key": "RSA-1024"}),
             below_ca({"key": "RSA-2048"})),
    Impostor("intermediate with an unknown critical extension", "unknown critical extension",
             below_ca({"unknown": "critical"}), below_ca({"unknown": "plain"})),
    Impostor("path length exceeded", "path length exceeded", below_ca({"path_length": 0}, {}),
             below_ca({"path_length": 1}, {})),
    Impostor("DNS name against its constraint", "name constraints",
             below_ca({"permitted": "dns:inside.example"}, leaf={"dns": ("web.outside.example",)}),
             below_ca({"permitted": "dns:inside.example"}, leaf={"dns": ("web.inside.example",)})),
    Impostor("DNS name that is excluded", "name constraints",
             below_ca({"excluded": "dns:outside.example"}, leaf={"dns": ("a.outside.example",)}),
             below_ca({"excluded": "dns:outside.example"}, leaf={"dns": ("a.inside.example",)})),
    Impostor("constraint two levels up", "name constraints",
             below_ca({"permitted": "dns:inside.example"}, {}, leaf={"dns": ("a.example",)}),
             below_ca({"permitted": "dns:inside.example"}, {},
                      leaf={"dns": ("a.inside.example",)})),
    Impostor("path length 0 above an intermediate", "path length exceeded",
             below_ca({}, {"path_length": 0}, {}),
             below_ca({"path_length": 1}, {"path_length": 0})),
    Impostor("URI name constraint", "name constraints", below_ca({"permitted": "uri:{td}"}),
             below_ca({})),
    Impostor("intermediate not sent", "untrusted issuer",
             below_ca({}, sent=lambda chain: chain[:1]), below_ca({})),
    Impostor("four intermediates", "chain too long", below_ca({}, {}, {}, {}),
             below_ca({}, {}, {}), ours=True),
    Impostor("eight intermediates", "chain too long", below_ca(*({},) * 8),
             # Order makes no difference: the path is built from whatever was sent.
             below_ca({}, {}, {}, sent=lambda chain: (chain[0], *reversed(chain[1:])))),
)
# fmt: on


# ----------------------------------------------------------------------------------------- details
def _chain(issuer: Issuer, now: int, cas: tuple[Recipe, ...], leaf: Recipe) -> Presented:
    return bake_chain((issuer.key, issuer.certificate), issuer.domain, now, (*cas, leaf))
