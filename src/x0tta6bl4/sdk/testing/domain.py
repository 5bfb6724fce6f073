"""A throw-away trust domain: SVIDs, tokens, bundles and CRLs of any shape.

Keys live in memory and are of no use to anybody.  Nothing is checked: what a test asks for is
made, right or wrong.

Source: X509-SVID.md, JWT-SVID.md, SPIFFE_Trust_Domain_and_Bundle.md section 4.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, Unpack, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from x0tta6bl4.edge.tls.recipes import Recipe, bake, bake_chain
from x0tta6bl4.sdk.testing.tokens import SigningKey, forge, jwk, new_key, thumbprint

TTL_S: Final = 3_600
TOKEN_TTL_S: Final = 300


class Shape(TypedDict, total=False):
    """What can be asked of a certificate: the fields of `edge.tls.recipes.Recipe`.

    Left out, a field is as X509-SVID.md wants it.
    """

    uris: tuple[str, ...] | None
    """URIs of the subject alternative name; None: no such extension."""
    dns: tuple[str, ...]
    san_critical: bool
    subject: str
    """Common name; empty: no subject."""
    ca: bool
    path_length: int | None
    usages: tuple[str, ...] | None
    """Key usages in snake case, for example `digital_signature`; None: no such extension."""
    usage_critical: bool
    extended: tuple[x509.ObjectIdentifier, ...] | None
    extended_critical: bool
    key: str
    """`P-256`, `P-384`, `P-521`, `RSA-2048`, `ML-DSA-65`, and some that must be refused."""
    hash: str
    start_s: int
    """notBefore, seconds from now."""
    life_s: int
    """notAfter - notBefore, seconds."""
    unknown: str
    """`critical` or `plain`: an extension that nobody knows."""
    permitted: str
    """Name constraint: `dns:x` or `uri:x`."""
    excluded: str
    """As `permitted`, the other way round."""
    others: tuple[x509.GeneralName, ...]
    """Further subject alternative names."""
    more: tuple[tuple[x509.ExtensionType, bool], ...]
    """Further extensions, and whether they are critical."""
    basic: str
    """Basic constraints: `critical`, `plain`; empty: none."""
    identifiers: bool
    """Whether key identifiers are there."""
    serial: int
    """0: a random one."""
    printable: bool
    """Whether the subject is a PrintableString; if not, UTF-8."""
    pss: bool
    """Whether an RSA key above signs with PSS padding."""
    doubled: bool
    """Whether the last extension stands there twice."""
    spoilt: bool
    """Whether a bit of the signature is wrong."""


@final
class Svid(msgspec.Struct, frozen=True, gc=False):
    """An X.509-SVID with its key, or something that claims to be one."""

    id: str
    chain: tuple[bytes, ...]
    """DER, leaf first, no trust anchor."""
    key: bytes
    """PKCS#8 DER, unencrypted."""
    hint: str = ""

    def __repr__(self) -> str:
        return f"Svid({self.id!r}, hint={self.hint!r})"

    @property
    def leaf(self) -> x509.Certificate:
        """The first certificate, parsed."""
        return x509.load_der_x509_certificate(self.chain[0])

    @property
    def chain_pem(self) -> bytes:
        """The chain as PEM, for `ssl` and other libraries."""
        parsed = map(x509.load_der_x509_certificate, self.chain)
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in parsed)

    @property
    def key_pem(self) -> bytes:
        """The key as PEM, unencrypted."""
        return serialization.load_der_private_key(self.key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


class Domain:
    """One trust domain with its own CA and its own token keys.

    Args:
        name: of the trust domain.
        key: kind of the CA's key: `P-256`, `P-384`, `RSA-2048`, `ML-DSA-65` ...
        now_unix_s: wall time in seconds; the machine's if left out.
    """

    __slots__ = ("_anchors", "_now", "_tokens", "key_kind", "name", "sequence")

    def __init__(
        self,
        name: str = "example.org",
        *,
        key: str = "P-256",
        now_unix_s: Callable[[], int] | None = None,
    ) -> None:
        self.name = name
        self.key_kind = key
        self.sequence = 0
        """Of the bundle; grows with every change of it."""
        self._now = now_unix_s or (lambda: int(time.clock_gettime(time.CLOCK_REALTIME)))
        self._anchors: list[tuple[Any, bytes]] = []
        self._tokens: list[tuple[SigningKey, str]] = []
        self.rotate_anchor()
        self.rotate_token_key()

    @property
    def now_unix_s(self) -> int:
        """Wall time as this domain sees it."""
        return self._now()

    def id(self, path: str = "/web") -> str:
        """SPIFFE ID of a path; what is an ID already stays as it is."""
        return path if "://" in path else f"spiffe://{self.name}{path}"

    # ---------------------------------------------------------------------------------- X.509
    @property
    def anchors(self) -> tuple[bytes, ...]:
        """CA certificates of the bundle, DER, the newest first."""
        return tuple(certificate for _, certificate in self._anchors)

    def rotate_anchor(self) -> None:
        """Make a new CA, which signs from now on; the old ones stay in the bundle."""
        made = bake(
            Recipe(
                uris=("spiffe://{td}",),
                san_critical=False,
                subject=f"{self.sequence} {self.name}"[:64],
                ca=True,
                usages=("key_cert_sign", "crl_sign"),
                extended=None,
                key=self.key_kind,
                hash="sha384" if self.key_kind == "P-384" else "sha256",
                life_s=30 * 86_400,
            ),
            self.name,
            self.now_unix_s,
        )
        key = serialization.load_der_private_key(made.key, None)
        self._anchors.insert(0, (key, made.chain[0]))
        self.sequence += 1

    def retire_anchors(self) -> None:
        """Leave only the newest CA in the bundle."""
        del self._anchors[1:]
        self.sequence += 1

    def svid(
        self,
        path: str = "/web",
        *,
        hint: str = "",
        signers: Sequence[Shape] = (),
        anchor: int = 0,
        **shape: Unpack[Shape],
    ) -> Svid:
        """Issue an X.509-SVID, or something like it.

        Args:
            path: of the ID, or a whole ID; `uris` of the shape replaces what the certificate says.
            hint: as the Workload API sends it.
            signers: shapes of signing certificates between the CA and the leaf, highest first.
            anchor: which CA signs, 0 is the newest.
            shape: what is to be different from a proper SVID of an hour.
        """
        id = self.id(path)
        middle = [
            msgspec.structs.replace(_SIGNER, subject=f"signer {count}", **changes)
            for count, changes in enumerate(signers)
        ]
        leaf = msgspec.structs.replace(Recipe(uris=(id,), life_s=TTL_S), **shape)
        made = bake_chain(self._anchors[anchor], self.name, self.now_unix_s, (*middle, leaf))
        return Svid(id, made.chain, made.key, hint)

    def anchor_as_svid(self) -> Svid:
        """The CA's own certificate with its key, as a leaf: never to be accepted (SP-026)."""
        key, certificate = self._anchors[0]
        return Svid(f"spiffe://{self.name}", (certificate,), _pkcs8(key))

    def crl(self, *revoked: Svid, anchor: int = 0, life_s: int = TTL_S) -> bytes:
        """CRL of the CA, DER.  Only for EC and RSA CAs."""
        key, certificate = self._anchors[anchor]
        now = self.now_unix_s
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(x509.load_der_x509_certificate(certificate).subject)
            .last_update(_time(now - 60))
            .next_update(_time(now + life_s))
        )
        for svid in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(svid.leaf.serial_number)
                .revocation_date(_time(now - 60))
                .build()
            )
        signed = builder.sign(key, hashes.SHA256() if _hashed(key) else None)
        return signed.public_bytes(serialization.Encoding.DER)

    # --------------------------------------------------------------------------------- tokens
    @property
    def token_keys(self) -> tuple[tuple[SigningKey, str], ...]:
        """Keys that sign tokens, with their `kid`, the newest first."""
        return tuple(self._tokens)

    def rotate_token_key(self, algorithm: str = "ES256") -> None:
        """Make a new key, which signs from now on; the old ones stay in the bundle."""
        key = new_key(algorithm)
        self._tokens.insert(0, (key, thumbprint(key)))
        self.sequence += 1

    def retire_token_keys(self) -> None:
        """Leave only the newest key in the bundle."""
        del self._tokens[1:]
        self.sequence += 1

    def token(
        self,
        path: str = "/web",
        audience: str | Sequence[str] | None = ("web",),
        *,
        ttl_s: int = TOKEN_TTL_S,
        header: dict[str, Any] | None = None,
        claims: dict[str, Any] | None = None,
        key: SigningKey | None = None,
    ) -> str:
        """Mint a JWT-SVID, or something like it.

        Args:
            path: of the ID in `sub`, or a whole ID.
            audience: `aud`; a string stays one; None leaves it out.
            ttl_s: `exp` lies so far ahead.
            header: members to set; None as a value takes one out.
            claims: as `header`.
            key: signs instead of the newest key.
        """
        own, kid = self._tokens[0]
        key = key or own
        head = {"alg": algorithm_of(key), "kid": kid, "typ": "JWT"} | (header or {})
        now = self.now_unix_s
        said = {"sub": self.id(path), "aud": audience, "iat": now, "exp": now + ttl_s}
        said |= claims or {}
        return forge(
            {name: value for name, value in head.items() if value is not None},
            {name: value for name, value in said.items() if value is not None},
            key,
        )

    # -------------------------------------------------------------------------------- bundles
    def jwt_keys(self) -> list[dict[str, Any]]:
        """The `jwt-svid` keys of the bundle, as JWKs."""
        return [jwk(key, kid=kid, use="jwt-svid") for key, kid in self._tokens]

    def x509_keys(self) -> list[dict[str, Any]]:
        """The `x509-svid` keys of the bundle, as JWKs.  Only for EC and RSA CAs."""
        return [
            jwk(key, use="x509-svid", x5c=[b64encode(certificate).decode()])
            for key, certificate in self._anchors
        ]

    def jwks(self) -> bytes:
        """What FetchJWTBundles says of this domain: `jwt-svid` keys alone (SP-120)."""
        return json.dumps({"keys": self.jwt_keys()}).encode()

    def document(self, *, refresh_hint_s: int = 300) -> bytes:
        """The whole bundle in the SPIFFE format, for federation."""
        return json.dumps(
            {
                "spiffe_sequence": self.sequence,
                "spiffe_refresh_hint": refresh_hint_s,
                "keys": self.x509_keys() + self.jwt_keys(),
            }
        ).encode()


def algorithm_of(key: SigningKey) -> str:
    """The usual `alg` of a key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: "ES256", 384: "ES384", 521: "ES512"}[key.curve.key_size]
    return "RS256" if isinstance(key, rsa.RSAPrivateKey) else "EdDSA"


_SIGNER: Final = Recipe(
    uris=("spiffe://{td}",),
    san_critical=False,
    ca=True,
    usages=("key_cert_sign", "crl_sign"),
    extended=None,
    life_s=86_400,
)


def _hashed(key: Any) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)


def _pkcs8(key: Any) -> bytes:
    data: bytes = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return data


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
