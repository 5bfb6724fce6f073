"""Certificates that must be refused, each with one thing wrong, its reason, and a valid twin.

The attack tests and `x0 demo` present them to real listeners and dialers.  A case is two sets of
changes to one recipe for a chain: `wrong` is refused for `reason`, `right` is accepted, so that
it is the one wrong thing which is refused and not something that went along with it.

Source: X509-SVID.md (SP-020 to SP-036), SPIFFE-ID.md section 2, RFC 5280 section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from x0tta6bl4.core.identity.rules import ANYBODY, NODE, WORKLOAD, Expect
from x0tta6bl4.edge.tls.x509 import BACKDATE_S, Issuer, new_anchor
from x0tta6bl4.wire.ids import TrustDomain

_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


@final
class Presented(msgspec.Struct, frozen=True, gc=False):
    """What an impostor holds."""

    chain: tuple[bytes, ...]
    """DER, as it is sent."""
    key: bytes
    """PKCS#8 DER of the first certificate's key."""


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


class Recipe(msgspec.Struct, frozen=True, gc=False):
    """How one certificate is made; `{td}` in a name stands for the trust domain."""

    uris: tuple[str, ...] | None = ("spiffe://{td}/web",)
    """None: no subject alternative name at all."""
    dns: tuple[str, ...] = ()
    san_critical: bool = True
    subject: str = ""
    ca: bool = False
    path_length: int | None = None
    usages: tuple[str, ...] | None = ("digital_signature",)
    usage_critical: bool = True
    extended: tuple[x509.ObjectIdentifier, ...] | None = _BOTH
    key: str = "P-256"
    hash: str = "sha256"
    start_s: int = -BACKDATE_S
    """notBefore, relative to now."""
    life_s: int = 3_600
    unknown: str = ""
    """`critical` or `plain`: an extension that nobody knows."""
    permitted: str = ""
    """Name constraint: `dns:x` or `uri:x`."""
    spoilt: bool = False
    """Whether a bit of the signature is wrong."""


_CA: Final = Recipe(
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
        msgspec.structs.replace(_CA, subject=f"intermediate {n}", **changes)
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
    return Presented((issuer.certificate,), _key_bytes(issuer.key))


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
) -> Impostor:
    return Impostor(name, reason, _from_ca(wrong), _from_ca(right or {}), expect, presentable)


def _uri(
    name: str, reason: str, wrong: str, right: str = "spiffe://{td}/web", expect: Expect = ANYBODY
) -> Impostor:
    return _case(name, reason, {"uris": (wrong,)}, {"uris": (right,)}, expect)


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
          {"extended": (*_BOTH, ExtendedKeyUsageOID.CODE_SIGNING)}),
    _case("unknown critical extension", "unknown critical extension",
          {"unknown": "critical"}, {"unknown": "plain"}),
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
         "spiffe://{td}/WEB"),
    _uri("upper-case trust domain", "ID not in normal form", "spiffe://{TD}/web"),
    _uri("ID of 2,049 bytes and more", "not a SPIFFE ID", "spiffe://{td}/" + _LONG * 11 + "a",
         "spiffe://{td}/" + _LONG * 9 + "a"),
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
    _case("in its last second", "expired", {"start_s": -3_600}, {"start_s": -3_590}),
    _case("not yet valid", "not yet valid", {"start_s": 60}, {"start_s": -1}),
    _case("lifetime of a day", "lifetime too long", {"life_s": 86_400}, {"life_s": 3_660}),
    # Keys and signatures.
    _case("RSA-1024 key", "weak key", {"key": "RSA-1024"}, {"key": "RSA-2048"}),
    _case("P-224 key", "weak key", {"key": "P-224"}, {"key": "P-384"}, presentable=False),
    _case("secp256k1 key", "weak key", {"key": "secp256k1"}, presentable=False),
    _case("Ed25519 key", "weak key", {"key": "Ed25519"}),
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
             below_ca({"uris": ("spiffe://other.example",)}), below_ca({"uris": None})),
    Impostor("intermediate expired", "issuer expired", below_ca({"start_s": -90_000}),
             below_ca({"start_s": -80_000})),
    Impostor("intermediate with a weak key", "weak key", below_ca({"key": "RSA-1024"}),
             below_ca({"key": "RSA-2048"})),
    Impostor("intermediate with an unknown critical extension", "unknown critical extension",
             below_ca({"unknown": "critical"}), below_ca({"unknown": "plain"})),
    Impostor("path length exceeded", "path length exceeded", below_ca({"path_length": 0}, {}),
             below_ca({"path_length": 1}, {})),
    Impostor("DNS name against its constraint", "name constraints",
             below_ca({"permitted": "dns:inside.example"}, leaf={"dns": ("web.outside.example",)}),
             below_ca({"permitted": "dns:inside.example"}, leaf={"dns": ("web.inside.example",)})),
    Impostor("URI name constraint", "name constraints", below_ca({"permitted": "uri:{td}"}),
             below_ca({})),
    Impostor("intermediate not sent", "untrusted issuer",
             below_ca({}, sent=lambda chain: chain[:1]), below_ca({})),
    Impostor("four intermediates", "chain too long", below_ca({}, {}, {}, {}),
             below_ca({}, {}, {})),
    Impostor("eight intermediates", "chain too long", below_ca(*({},) * 8),
             # Order makes no difference: the path is built from whatever was sent.
             below_ca({}, {}, {}, sent=lambda chain: (chain[0], *reversed(chain[1:])))),
)
# fmt: on


# ----------------------------------------------------------------------------------------- details
def _chain(issuer: Issuer, now: int, cas: tuple[Recipe, ...], leaf: Recipe) -> Presented:
    return bake_chain((issuer.key, issuer.certificate), issuer.domain, now, (*cas, leaf))


def bake_chain(
    above: tuple[Any, bytes], domain: str, now: int, recipes: Iterable[Recipe]
) -> Presented:
    """Make certificates each of which signs the next one; `above` (key, DER) signs the first."""
    chain: tuple[bytes, ...] = ()
    for recipe in recipes:
        made = bake(recipe, domain, now, above)
        chain = (*made.chain, *chain)
        above = (serialization.load_der_private_key(made.key, None), made.chain[0])
    return Presented(chain, made.key)


def bake(
    recipe: Recipe, domain: str, now: int, above: tuple[Any, bytes] | None = None
) -> Presented:
    """Make one certificate, signed by `above` (key, DER), or by itself."""
    key: Any = _new_key(recipe.key)
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, recipe.subject)] if recipe.subject else []
    )
    parent = None if above is None else x509.load_der_x509_certificate(above[1])
    start = now + recipe.start_s
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if parent is None else parent.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(start))
        .not_valid_after(_time(start + recipe.life_s))
        .add_extension(x509.BasicConstraints(recipe.ca, recipe.path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for value, critical in _extensions(recipe, domain, parent):
        builder = builder.add_extension(value, critical=critical)
    by = key if above is None else above[0]
    weak = recipe.hash in ("md5", "sha1")
    digest = (
        None
        if not isinstance(by, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        else _HASHES["sha256" if weak else recipe.hash]
    )
    der = builder.sign(by, digest).public_bytes(serialization.Encoding.DER)
    if weak:
        der = _signed_again(der, by, recipe.hash)
    if recipe.spoilt:
        der = der[:-1] + bytes([der[-1] ^ 1])
    return Presented((der,), _key_bytes(key))


def _extensions(
    recipe: Recipe,
    domain: str,
    parent: x509.Certificate | None,
) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = []
    if recipe.uris is not None:
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(_fill(uri, domain)) for uri in recipe.uris
        ]
        names += [x509.DNSName(name) for name in recipe.dns]
        found.append((x509.SubjectAlternativeName(names), recipe.san_critical))
    if recipe.usages is not None:
        on = {name: name in recipe.usages for name in _USAGES}
        found.append(
            (x509.KeyUsage(**on, encipher_only=False, decipher_only=False), recipe.usage_critical)
        )
    if recipe.extended is not None:
        found.append((x509.ExtendedKeyUsage(recipe.extended), False))
    if recipe.unknown:
        found.append(
            (
                x509.UnrecognizedExtension(
                    x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"
                ),
                recipe.unknown == "critical",
            )
        )
    if recipe.permitted:
        kind, _, name = recipe.permitted.partition(":")
        form: x509.GeneralName = (
            x509.DNSName(name)
            if kind == "dns"
            else x509.UniformResourceIdentifier(_fill(name, domain))
        )
        found.append((x509.NameConstraints([form], None), True))
    if parent is not None:
        found.append(
            (
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                ),
                False,
            )
        )
    return found


def _fill(name: str, domain: str) -> str:
    return name.replace("{td}", domain).replace("{TD}", domain.upper())


_HASHES: Final[dict[str, Any]] = {
    "md5": hashes.MD5(),
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


_MLDSA: Final[dict[str, Any]] = {
    "ML-DSA-44": mldsa.MLDSA44PrivateKey,
    "ML-DSA-65": mldsa.MLDSA65PrivateKey,
    "ML-DSA-87": mldsa.MLDSA87PrivateKey,
}


def _new_key(kind: str) -> Any:
    if kind.startswith("RSA-"):
        if kind == "RSA-1024":  # cryptography makes none so short.
            return _rsa_1024()
        return rsa.generate_private_key(65537, int(kind[4:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in _MLDSA:
        return _MLDSA[kind].generate()
    curves: dict[str, type[ec.EllipticCurve]] = {
        "P-224": ec.SECP224R1,
        "P-256": ec.SECP256R1,
        "P-384": ec.SECP384R1,
        "P-521": ec.SECP521R1,
        "secp256k1": ec.SECP256K1,
    }
    return ec.generate_private_key(curves[kind]())


def _rsa_1024() -> Any:
    """An RSA key of 1,024 bits from two primes found in a fixed sequence of hashes."""
    primes: list[int] = []
    count = 0
    while len(primes) < 2:
        seed = f"x0 weak prime {count}".encode()
        number = int.from_bytes(hashlib.sha512(seed).digest(), "big") | 3 << 510 | 1
        count += 1
        if number % 3 and number % 5 and number % 65537 != 1 and pow(2, number - 1, number) == 1:
            primes.append(number)
    p, q = primes
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), public
    ).private_key()


def _key_bytes(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return data


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


_ALGORITHMS: Final = {
    ("ec", "sha1"): bytes.fromhex("300906072a8648ce3d0401"),
    ("rsa", "sha1"): bytes.fromhex("300d06092a864886f70d0101050500"),
    ("rsa", "md5"): bytes.fromhex("300d06092a864886f70d0101040500"),
}


def _signed_again(der: bytes, key: Any, digest: str) -> bytes:
    """Sign with a hash that builders refuse: swap the algorithm in both places, sign anew."""
    kind = "rsa" if isinstance(key, rsa.RSAPrivateKey) else "ec"
    algorithm = _ALGORITHMS[kind, digest]
    body = _items(der)[0]
    version, serial, _, *rest = _items(body)
    body = _sequence(version + serial + algorithm + b"".join(rest))
    if kind == "rsa":
        signature = key.sign(body, padding.PKCS1v15(), _HASHES[digest])
    else:
        signature = key.sign(body, ec.ECDSA(_HASHES[digest]))
    return _sequence(body + algorithm + _wrap(3, b"\x00" + signature))


def _items(der: bytes) -> list[bytes]:
    """DER elements inside an element, each with its header; the whole itself if there are more."""
    start, end = _header(der, 0)
    found = []
    while start < end:
        _, stop = _header(der, start)
        found.append(der[start:stop])
        start = stop
    return found


def _header(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[start : start + count], "big")
        start += count
    return start, start + length


def _sequence(content: bytes) -> bytes:
    return _wrap(0x30, content)


def _wrap(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
