"""A signed token in compact form: read it without belief, then see which key signed it.

joserfc does the signatures.  What it is given has been read here before, more strictly than RFC
7515 asks: one way to write each value, no member twice, no header that nobody here understands,
and an algorithm from the list before anything else of the token is looked at (SP-045).

Source: RFC 7515 sections 4, 5.2 and 7.1, RFC 8725 section 3.1; JWT-SVID.md sections 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.bundle import jwk
from x0tta6bl4.edge.bundle.document import JwtAuthority
from x0tta6bl4.wire.errors import BadInput

TOKEN_BYTES_MAX: Final = 16 * 1024
KEYS_TRIED_MAX: Final = 32
"""Most keys that one token is tried with; those after it in a bundle are not."""
ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
)  # fmt: skip
_CURVE: Final = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_HEADER_BYTES_MAX: Final = 8 * 1024
_SECONDS_MAX: Final = 2**53


@final
class Compact(Value, frozen=True):
    """A token as read; nothing in it is proven."""

    token: str
    header: dict[str, Any]
    claims: dict[str, Any]

    @property
    def algorithm(self) -> str:
        """`alg`, one of ALGORITHMS."""
        return str(self.header["alg"])

    @property
    def kid(self) -> str | None:
        """`kid`; None where there is none."""
        return self.header.get("kid")


def read(token: str, kinds: Iterable[str | None], ignore_unknown: bool = False) -> Compact | Denied:
    """Read header and claims.

    Args:
        token: compact serialization (SP-043).
        kinds: values of `typ` that are right; None stands for its absence.
        ignore_unknown: whether headers that nobody here knows are ignored; `crit` never is.
    """
    if len(token) > TOKEN_BYTES_MAX:
        return Denied("token too large")
    parts = token.split(".") if token.isascii() else []
    if len(parts) != 3 or not all(parts[:2]):
        return Denied("not a compact token")
    header = _object(parts[0])
    if header is None:
        return Denied("malformed header")
    if header.get("alg") not in ALGORITHMS:
        return Denied("algorithm not allowed")  # SP-045
    if "crit" in header or not (ignore_unknown or header.keys() <= {"alg", "kid", "typ"}):
        return Denied("unknown header")  # SP-044
    if not isinstance(header.get("kid", ""), str):
        return Denied("malformed header")
    if header.get("typ") not in kinds or ("typ" in header and header["typ"] is None):
        return Denied("wrong type of token")  # SP-047
    try:
        signed = bool(jwk.unbase64url(parts[2]))
    except ValueError:
        signed = False
    if not signed:
        return Denied("malformed signature")
    claims = _object(parts[1])
    return Denied("malformed claims") if claims is None else Compact(token, header, claims)


def judge_signature(found: Compact, keys: Iterable[JwtAuthority]) -> Denied | None:
    """Whether one of these keys signed the token.

    With a `kid` only keys of that name count; a token without is tried with every key that fits
    its algorithm (SP-046), at most KEYS_TRIED_MAX.

    Returns:
        None if one did.
    """
    named = [key for key in keys if found.kid is None or key.kid == found.kid]
    if not named:
        return Denied("unknown key")
    fitting = [key for key in map(_key, (k.public for k in named)) if _fits(key, found.algorithm)]
    if not fitting:
        return Denied("key does not fit the algorithm")
    if any(_is_signed(found, key) for key in fitting[:KEYS_TRIED_MAX]):
        return None
    return Denied("bad signature")


def judge_jwk_signature(found: Compact, key: jwk.PublicKey) -> Denied | None:
    """Whether this key signed the token (a proof of possession).

    Returns:
        None if it did.
    """
    own = _key(jwk.public_bytes(key))
    if not _fits(own, found.algorithm):
        return Denied("key does not fit the algorithm")
    return None if _is_signed(found, own) else Denied("bad signature")


@final
class Times(Value, frozen=True):
    """What a token says of its time, unix seconds."""

    issued_unix_s: float
    """`iat`, 0 where it is missing; it never limits the token (RFC 7519 section 4.1.6)."""
    starts_unix_s: float
    """`nbf`, 0 where it is missing."""
    ends_unix_s: float
    """`exp`."""

    def judge(self, now_unix_us: int, leeway_s: int) -> Denied | None:
        """None if the token is good now (SP-052)."""
        now_s = now_unix_us / 1e6
        if now_s >= self.ends_unix_s + leeway_s:
            return Denied("expired")
        return Denied("not yet valid") if now_s < self.starts_unix_s - leeway_s else None


def times_of(claims: dict[str, Any]) -> Times | Denied:
    """`iat`, `nbf` and `exp`, of which the last has to be there (SP-051)."""
    found: dict[str, float] = {}
    for name in ("iat", "nbf", "exp"):
        value = claims.get(name, 0)
        fits = type(value) in (int, float) and abs(value) <= _SECONDS_MAX
        if not fits or not math.isfinite(value):
            return Denied(f"malformed {name}")
        found[name] = float(value)
    if "exp" not in claims:
        return Denied("no expiry")
    return Times(found["iat"], found["nbf"], found["exp"])


def sign(header: dict[str, str], claims: dict[str, Any], key: ECKey) -> str:
    """Write and sign a token with an EC key: ES256, ES384 or ES512."""
    return jws.serialize_compact(
        header, msgspec.json.encode(claims), key, registry=_registry(header["alg"])
    )


@lru_cache(16)
def _registry(algorithm: str) -> jws.JWSRegistry:
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_header_length = _HEADER_BYTES_MAX
    registry.max_payload_length = TOKEN_BYTES_MAX
    registry.max_signature_length = TOKEN_BYTES_MAX
    return registry


@lru_cache(256)
def _key(public: bytes) -> ECKey | RSAKey:
    key = jwk.load_public(public)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return ECKey.import_key(key)
    return RSAKey.import_key(key)


def _fits(key: ECKey | RSAKey, algorithm: str) -> bool:
    if isinstance(key, ECKey):
        return key.public_key.curve.name == _CURVE.get(algorithm)
    return algorithm[:2] in ("RS", "PS")


def _is_signed(found: Compact, key: ECKey | RSAKey) -> bool:
    try:
        jws.deserialize_compact(found.token, key, registry=_registry(found.algorithm))
    except JoseError:
        return False
    return True


def _object(part: str) -> dict[str, Any] | None:
    try:
        found = jwk.load(jwk.unbase64url(part), "a part of the token")
    except (ValueError, BadInput):
        return None
    return found if isinstance(found, dict) and not _has_duplicates(found) else None


def _has_duplicates(found: Any) -> bool:
    if isinstance(found, dict):
        return any(map(_has_duplicates, found.values()))
    if isinstance(found, list):
        return any(map(_has_duplicates, found))
    return isinstance(found, jwk.Duplicated)
