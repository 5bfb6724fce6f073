"""Tokens that must be refused, each with a twin that is right, and tokens that are valid but odd.

Source: JWT-SVID.md (SP-043 to SP-055), SPIFFE Workload API (SP-122), RFC 7515, RFC 7519, RFC 8725.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.tokens import SigningKey, b64, forge, jwk, new_key

ALGORITHMS: Final = (
    "ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
)  # fmt: skip
AUDIENCE: Final = "web"


class Mint:
    """Trust domains and their keys.

    Attributes:
        domain: ours; its bundle has a key for every algorithm, one for EdDSA, one of its
            `x509-svid` keys, and nothing else.
        other: federated.
        now: unix seconds at which tokens are made.
    """

    def __init__(self) -> None:
        self.domain, self.other = Domain(), Domain("other.test")
        self.now = self.domain.now_unix_s
        rsa = new_key("RS256")
        self.keys: dict[str, SigningKey] = {
            name: rsa if name[0] in "RP" else new_key(name) for name in (*ALGORITHMS, "EdDSA")
        }
        self.x509_only = new_key()
        self.wit_only = new_key()
        self.mallory = new_key()

    @property
    def own(self) -> tuple[SigningKey, str]:
        """The key that signs, and its name."""
        return self.domain.token_keys[0]

    def jwks(self) -> bytes:
        """Our bundle."""
        keys = [jwk(key, kid=name, use="jwt-svid") for name, key in self.keys.items()]
        keys += [*self.domain.jwt_keys(), jwk(self.x509_only, kid="x509", use="x509-svid")]
        keys += [jwk(self.wit_only, kid="wit", use="wit-svid")]
        return json.dumps({"keys": keys}).encode()

    def token(
        self,
        header: dict[str, Any] | None = None,
        claims: dict[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """As `Domain.token`, of ours, about `/peer`, for `web`."""
        path, audience = more.pop("path", "/peer"), more.pop("audience", [AUDIENCE])
        return self.domain.token(path, audience, header=header, claims=claims, **more)

    def raw(self, header: str | bytes, claims: str | bytes, key: Any = None) -> str:
        """Signed with ES256 by our key, whatever the two say; %-marks stand for values."""
        first, second = (
            (part.encode() if isinstance(part, str) else part)
            .replace(b"%kid", self.own[1].encode())
            .replace(b"%exp", str(self.now + 300).encode())
            for part in (header, claims)
        )
        return forge(first, second, key or self.own[0], algorithm="ES256")


Make = Callable[[Mint], str]


class Bearer(msgspec.Struct, frozen=True):
    """One token that is wrong, and its twin."""

    name: str
    reason: str
    wrong: Make
    right: Make


class Odd(msgspec.Struct, frozen=True):
    """A token that is valid."""

    name: str
    make: Make


_RIGHT: Final[Make] = lambda mint: mint.token()  # noqa: E731
_ONES: Final = bytes([255] * 64)
_HEADER: Final = '{"alg":"ES256","kid":"%kid"}'
_CLAIMS: Final = '{"sub":"spiffe://example.org/peer","aud":"web","exp":%exp}'
_NO_COMPACT: Final = "not a compact token"


def _header(name: str, reason: str, right: Make = _RIGHT, **header: Any) -> Bearer:
    return Bearer(name, reason, lambda mint: mint.token(header), right)


def _claims(name: str, reason: str, right: Make = _RIGHT, **claims: Any) -> Bearer:
    return Bearer(name, reason, lambda mint: mint.token(claims=claims), right)


def _at(name: str, reason: str, claim: str, wrong: float, right: float) -> Bearer:
    def make(seconds: float) -> Make:
        return lambda mint: mint.token(claims={claim: mint.now + seconds})

    return Bearer(name, reason, make(wrong), make(right))


def _raw(name: str, reason: str, header: str | bytes, claims: str | bytes) -> Bearer:
    return Bearer(
        name, reason, lambda mint: mint.raw(header, claims), lambda mint: mint.raw(_HEADER, _CLAIMS)
    )


def _bent(name: str, reason: str, bend: Callable[[str, str, str], str]) -> Bearer:
    """Another way to write a proper token."""
    return Bearer(name, reason, lambda mint: bend(*mint.token().split(".")), _RIGHT)


def _unsigned(alg: str) -> Bearer:
    def make(mint: Mint) -> str:
        claims = {"sub": mint.domain.id("/peer"), "aud": [AUDIENCE], "exp": mint.now + 300}
        return forge({"alg": alg, "kid": mint.own[1], "typ": "JWT"}, claims, None)

    return Bearer(f"alg {alg!r}", "algorithm not allowed", make, _RIGHT)


def _shared(alg: str, form: str) -> Bearer:
    def make(mint: Mint) -> str:
        key, kid = mint.own
        secret = key.public_key().public_bytes(
            getattr(serialization.Encoding, form), serialization.PublicFormat.SubjectPublicKeyInfo
        )
        claims = {"sub": mint.domain.id("/peer"), "aud": [AUDIENCE], "exp": mint.now + 300}
        return forge({"alg": alg, "kid": kid, "typ": "JWT"}, claims, secret)

    return Bearer(f"{alg} with the public key, {form}", "algorithm not allowed", make, _RIGHT)


def _signed(name: str, reason: str, key: str, said: str, signed: str, right: Make) -> Bearer:
    def make(mint: Mint) -> str:
        claims = {"sub": mint.domain.id("/peer"), "aud": [AUDIENCE], "exp": mint.now + 300}
        return forge({"alg": said, "kid": key}, claims, mint.keys[key], algorithm=signed)

    return Bearer(name, reason, make, right)


def _algorithm(name: str, kid: bool = True) -> Make:
    return lambda mint: mint.token({"alg": name, "kid": name if kid else None}, key=mint.keys[name])


def _der(mint: Mint) -> str:
    key = mint.own[0]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    said = mint.token().rpartition(".")[0]
    return f"{said}.{b64(key.sign(said.encode(), ec.ECDSA(hashes.SHA256())))}"


def _transplanted(mint: Mint) -> str:
    header, _, end = mint.token().split(".")
    return ".".join((header, mint.token(path="/admin").split(".")[1], end))


def _json(general: bool) -> Callable[[str, str, str], str]:
    def bend(header: str, claims: str, end: str) -> str:
        one = {"protected": header, "signature": end}
        whole = {"payload": claims, "signatures": [one]} if general else {"payload": claims, **one}
        return json.dumps(whole)

    return bend


def _key_along(name: str) -> Bearer:
    def make(mint: Mint) -> str:
        value: Any = {"jwk": jwk(mint.mallory), "x5c": ["AA=="]}.get(name, "https://evil.test/k")
        return mint.token({name: value}, key=mint.mallory)

    return Bearer(f"header {name} with a key of its own", "unknown header", make, _RIGHT)


def _by(key: Callable[[Mint], SigningKey], **header: Any) -> Make:
    return lambda mint: mint.token(header, key=key(mint))


# fmt: off
_NO_TIMES: Final[tuple[Any, ...]] = ("1999999999", "soon", True, [1999999999], {}, 1e300)

BEARERS: Final[tuple[Bearer, ...]] = (
    # Algorithm and key.
    *map(_unsigned, ("none", "None", "NONE", "")),
    _shared("HS256", "PEM"), _shared("HS256", "DER"),
    _shared("HS384", "PEM"), _shared("HS512", "PEM"),
    Bearer("EdDSA", "algorithm not allowed", _algorithm("EdDSA"), _algorithm("ES256")),
    _raw("no alg", "algorithm not allowed", '{"kid":"%kid"}', _CLAIMS),
    _raw("alg as list", "algorithm not allowed", '{"alg":["ES256"],"kid":"%kid"}', _CLAIMS),
    _raw("alg in lower case", "algorithm not allowed", '{"alg":"es256","kid":"%kid"}', _CLAIMS),
    _signed("RS256 named, EC key", "key does not fit the algorithm", "ES256", "RS256", "ES256",
            _algorithm("RS256")),
    _signed("ES256 named, P-384 key", "key does not fit the algorithm", "ES384", "ES256", "ES384",
            _algorithm("ES384")),
    _signed("PS256 named, signed with RS256", "bad signature", "RS256", "PS256", "RS256",
            _algorithm("PS256")),
    _signed("RS256 named, signed with RS384", "bad signature", "RS256", "RS256", "RS384",
            _algorithm("RS384")),
    Bearer("stranger's key under our kid", "bad signature", _by(lambda mint: mint.mallory), _RIGHT),
    Bearer("stranger's key under its own kid", "unknown key",
           _by(lambda mint: mint.mallory, kid="mallory"), _RIGHT),
    Bearer("stranger's key without kid", "bad signature",
           _by(lambda mint: mint.mallory, kid=None), lambda mint: mint.token({"kid": None})),
    Bearer("x509-svid key", "unknown key", _by(lambda mint: mint.x509_only, kid="x509"), _RIGHT),
    Bearer("x509-svid key without kid", "bad signature",
           _by(lambda mint: mint.x509_only, kid=None), lambda mint: mint.token({"kid": None})),
    Bearer("wit-svid key", "unknown key", _by(lambda mint: mint.wit_only, kid="wit"), _RIGHT),
    _header("kid that leads elsewhere", "unknown key", kid="../../../../dev/null"),
    _header("kid as SQL", "unknown key", kid="x' OR '1'='1"),
    _header("kid as URL", "unknown key", kid="https://evil.test/jwks.json"),
    _header("empty kid", "unknown key", kid=""),
    _header("kid as number", "malformed header", kid=1),
    _header("kid as list", "malformed header", kid=["x"]),
    *map(_key_along, ("jku", "jwk", "x5u", "x5c", "x5t")),
    # Header.
    _header("crit", "unknown header", crit=["exp"], exp=1),
    _header("crit, empty", "unknown header", crit=[]),
    _header("b64 false", "unknown header", crit=["b64"], b64=False),
    _header("own header", "unknown header", own=1),
    _header("zip", "unknown header", zip="DEF"),
    _header("cty", "unknown header", cty="JWT"),
    *(_header(f"typ {typ!r}", "wrong type of token", typ=typ)
      for typ in ("at+jwt", "jwt ", "wit+jwt", "", 1)),
    _raw("alg twice", "malformed header", '{"alg":"none","alg":"ES256","kid":"%kid"}', _CLAIMS),
    _raw("typ null", "wrong type of token", '{"alg":"ES256","kid":"%kid","typ":null}', _CLAIMS),
    _raw("header is a list", "malformed header", "[]", _CLAIMS),
    _raw("header with a byte order mark", "malformed header", b"\xef\xbb\xbf" + _HEADER.encode(),
         _CLAIMS),
    # Subject.
    _claims("no sub", "no subject", sub=None),
    _claims("sub as list", "no subject", sub=["spiffe://example.org/peer"]),
    _claims("empty sub", "subject is no SPIFFE ID", sub=""),
    _claims("sub is no URI", "subject is no SPIFFE ID", sub="peer"),
    _claims("sub with https", "subject is no SPIFFE ID", sub="https://example.org/peer"),
    _claims("sub without path", "subject without a path", sub="spiffe://example.org"),
    _claims("sub with a slash at its end", "subject is no SPIFFE ID",
            sub="spiffe://example.org/peer/"),
    _claims("sub with dots", "subject is no SPIFFE ID", sub="spiffe://example.org/a/../peer"),
    _claims("sub with a port", "subject is no SPIFFE ID", sub="spiffe://example.org:1/peer"),
    _claims("sub with a query", "subject is no SPIFFE ID", sub="spiffe://example.org/peer?a"),
    _claims("sub of 2,049 bytes and more", "subject is no SPIFFE ID",
            sub="spiffe://example.org/" + "a" * 2_040),
    _claims("sub of another trust domain", "unknown key",
            lambda mint: mint.other.token("/peer", [AUDIENCE]), sub="spiffe://other.test/peer"),
    _claims("sub of an unknown trust domain", "no bundle of the trust domain",
            sub="spiffe://unknown.test/peer"),
    Bearer("key of another trust domain", "unknown key",
           lambda mint: mint.other.token("spiffe://example.org/peer", [AUDIENCE]),
           lambda mint: mint.other.token("/peer", [AUDIENCE])),
    Bearer("key of another trust domain without kid", "bad signature",
           lambda mint: mint.other.token("spiffe://example.org/peer", [AUDIENCE],
                                         header={"kid": None}),
           lambda mint: mint.other.token("/peer", [AUDIENCE], header={"kid": None})),
    _raw("sub twice", "malformed claims", _HEADER,
         '{"sub":"spiffe://example.org/admin",' + _CLAIMS[1:]),
    # Audience.
    *(_claims(f"aud {aud!r}", "no audience", aud=aud)
      for aud in (None, [], "", {"web": 1}, 1, [["web"]], [None], ["web", 1])),
    *(_claims(f"aud {aud!r}", "meant for another audience", aud=aud)
      for aud in (["other"], "we", "web ", ["Web"], "webweb", ["*"], "web,other")),
    _claims("65 audiences", "no audience", aud=["web"] * 65),
    _raw("aud twice", "malformed claims", _HEADER, '{"aud":"db",' + _CLAIMS[1:]),
    # Time.
    _at("expired", "expired", "exp", -1, 60),
    _at("ends now", "expired", "exp", 0, 60),
    _claims("no exp", "no expiry", exp=None),
    *(_claims(f"exp {exp!r}", "malformed exp", exp=exp)
      for exp in _NO_TIMES),
    _claims("exp negative", "expired", exp=-1),
    *(_raw(f"exp {text}", reason, _HEADER, _CLAIMS.replace("%exp", text))
      for text, reason in (("NaN", "malformed claims"), ("Infinity", "malformed claims"),
                           ("1e999", "malformed exp"), ("0x7fffffff", "malformed claims"),
                           ("null", "malformed exp"))),
    _raw("exp twice", "malformed claims", _HEADER, '{"exp":1,' + _CLAIMS[1:]),
    _at("not yet valid", "not yet valid", "nbf", 60, 0),
    _claims("nbf as text", "malformed nbf", nbf="now"),
    _claims("iat as text", "malformed iat", iat="now"),
    # Claims and form.
    *(_raw(f"claims are {text!r}", "malformed claims", _HEADER, text)
      for text in (b"[]", b'"x"', b"null", b"{", b"\xff\xfe")),
    _raw("a member twice, deep inside", "malformed claims", _HEADER,
         _CLAIMS[:-1] + ',"own":[{"a":1,"a":2}]}'),
    _raw("nested 5,000 deep", "malformed claims", _HEADER, "[" * 5_000 + "]" * 5_000),
    Bearer("17 KiB", "token too large", lambda mint: mint.token(claims={"own": "x" * 17_000}),
           lambda mint: mint.token(claims={"own": "x" * 9_000})),
    _bent("JSON, flattened", _NO_COMPACT, _json(False)),
    _bent("JSON, general", _NO_COMPACT, _json(True)),
    _bent("two parts", _NO_COMPACT, lambda h, c, s: f"{h}.{c}"),
    _bent("four parts", _NO_COMPACT, lambda h, c, s: f"{h}.{c}.{s}.{s}"),
    _bent("encrypted, five parts", _NO_COMPACT, lambda h, c, s: f"{h}..{c}.{s}.{s}"),
    _bent("no signature", "malformed signature", lambda h, c, s: f"{h}.{c}."),
    _bent("no claims", _NO_COMPACT, lambda h, c, s: f"{h}..{s}"),
    _bent("Bearer before it", "malformed header", lambda h, c, s: f"Bearer {h}.{c}.{s}"),
    _bent("space before it", "malformed header", lambda h, c, s: f" {h}.{c}.{s}"),
    _bent("newline behind it", "malformed signature", lambda h, c, s: f"{h}.{c}.{s}\n"),
    _bent("padding in the header", "malformed header", lambda h, c, s: f"{h}=.{c}.{s}"),
    _bent("padding in the claims", "malformed claims", lambda h, c, s: f"{h}.{c}==.{s}"),
    _bent("padding in the signature", "malformed signature", lambda h, c, s: f"{h}.{c}.{s}=="),
    _bent("newline within", "malformed header", lambda h, c, s: f"{h}\n.{c}.{s}"),
    _bent("beyond ASCII", _NO_COMPACT, lambda h, c, s: f"{h}.{c}.{s}é"),
    _bent("signature cut", "bad signature", lambda h, c, s: f"{h}.{c}.{s[:-6]}"),
    _bent("signature and more", "bad signature", lambda h, c, s: f"{h}.{c}.{s}AAAA"),
    _bent("signature of zeros", "bad signature", lambda h, c, s: f"{h}.{c}.{b64(bytes(64))}"),
    _bent("signature of ones", "bad signature", lambda h, c, s: f"{h}.{c}.{b64(_ONES)}"),
    Bearer("signature in DER", "bad signature", _der, _RIGHT),
    Bearer("claims of another token", "bad signature", _transplanted, _RIGHT),
)

ODD: Final[tuple[Odd, ...]] = (
    *(Odd(name, _algorithm(name)) for name in ALGORITHMS),
    *(Odd(f"{name} without kid", _algorithm(name, False)) for name in ALGORITHMS),
    Odd("no typ", lambda mint: mint.token({"typ": None})),
    Odd("typ JOSE", lambda mint: mint.token({"typ": "JOSE"})),
    Odd("neither typ nor kid", lambda mint: mint.token({"typ": None, "kid": None})),
    Odd("aud as text", lambda mint: mint.token(audience="web")),
    Odd("several audiences", lambda mint: mint.token(audience=["db", "web", "https://x/"])),
    Odd("an audience twice", lambda mint: mint.token(audience=["web", "web"])),
    Odd("64 audiences", lambda mint: mint.token(audience=[*(f"a{n}" for n in range(63)), "web"])),
    Odd("valid from now", lambda mint: mint.token(claims={"nbf": mint.now})),
    Odd("valid since long ago", lambda mint: mint.token(claims={"nbf": 0, "iat": 0})),
    Odd("no iat", lambda mint: mint.token(claims={"iat": None})),
    Odd("iat ahead", lambda mint: mint.token(claims={"iat": mint.now + 600})),
    Odd("exp with a fraction", lambda mint: mint.token(claims={"exp": mint.now + 300.5})),
    Odd("exp in years", lambda mint: mint.token(claims={"exp": mint.now + 10**9})),
    Odd("exp as 4.0e9", lambda mint: mint.raw(_HEADER, _CLAIMS.replace("%exp", "4.0e9"))),
    Odd("claims of every kind", lambda mint: mint.token(
        claims={"own": {"deep": [1, None, 1.5, True, {"x": {}}]}, "jti": "1", "iss": "x"})),
    Odd("claims beyond ASCII", lambda mint: mint.token(claims={"имя": "ключ ✓ \U0001f511"})),
    Odd("an escaped subject", lambda mint: mint.raw(
        _HEADER, _CLAIMS.replace("/peer", "\\/p\\u0065er"))),
    Odd("spaces and newlines in JSON", lambda mint: mint.raw(
        _HEADER.replace(",", " ,\n "), _CLAIMS.replace(",", " ,\r\n\t"))),
    Odd("trust domain in upper case", lambda mint: mint.token(
        claims={"sub": "spiffe://EXAMPLE.org/peer"})),
    Odd("subject of 2,048 bytes", lambda mint: mint.token(
        claims={"sub": "spiffe://example.org/" + "a" * (2_048 - 21)})),
    Odd("9 KiB", lambda mint: mint.token(claims={"own": "x" * 9_000})),
    Odd("of a federated trust domain", lambda mint: mint.other.token("/peer", [AUDIENCE])),
)
# fmt: on
