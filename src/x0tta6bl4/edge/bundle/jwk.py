"""Public keys as JSON Web Keys, and JSON that nobody can read in two ways.

Source: RFC 7517 sections 4 and 4.7, RFC 7518 section 6; `AKP` for ML-DSA from RFC 9964.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from x0tta6bl4.wire.errors import BadInput

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z")
_CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}
_CRV: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_ML_DSA: Final = (
    (mldsa.MLDSA44PublicKey, "ML-DSA-44"),
    (mldsa.MLDSA65PublicKey, "ML-DSA-65"),
    (mldsa.MLDSA87PublicKey, "ML-DSA-87"),
)


class Duplicated:
    """Stands where a JSON object had two members of one name: it means nothing."""


def load(data: bytes, what: str) -> Any:
    """Parse JSON; an object with two members of one name becomes a Duplicated.

    Args:
        data: UTF-8; the caller has bounded it.
        what: for the error.
    Raises:
        BadInput: X0-BUN-001 not JSON.
    """
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=float
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError.
        raise BadInput("X0-BUN-001", f"{what} is not JSON: {type(error).__name__}") from None


def public_of(jwk: dict[str, Any]) -> PublicKey | None:
    """The RSA or NIST curve key of a JWK.

    Returns:
        None for a key of another kind, an unknown curve, or RSA below 2048 bits: it is ignored.
    Raises:
        BadInput: X0-BUN-002 of a known kind, but broken.
    """
    try:
        if jwk.get("kty") == "EC":
            curve = _CURVES.get(jwk["crv"])
            if curve is None:
                return None
            return ec.EllipticCurvePublicNumbers(
                _number(jwk["x"]), _number(jwk["y"]), curve()
            ).public_key()
        if jwk.get("kty") == "RSA":
            n, e = _number(jwk["n"]), _number(jwk["e"])
            if not RSA_BITS_MIN <= n.bit_length() <= RSA_BITS_MAX:
                return None
            return rsa.RSAPublicNumbers(e, n).public_key()
    except (KeyError, TypeError, ValueError, OverflowError, UnsupportedAlgorithm) as error:
        raise BadInput("X0-BUN-002", f"broken JWK: {type(error).__name__}") from None
    return None


def members(key: object) -> dict[str, str]:
    """`kty` and the parameters of a public key.

    Raises:
        BadInput: X0-BUN-003 there is no JWK for such a key.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CRV:
        size, at = (key.key_size + 7) // 8, key.public_numbers()
        return {
            "kty": "EC",
            "crv": _CRV[key.curve.name],
            "x": base64url(at.x.to_bytes(size, "big")),
            "y": base64url(at.y.to_bytes(size, "big")),
        }
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _digits(numbers.n), "e": _digits(numbers.e)}
    if isinstance(key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_bytes_raw())}
    for kind, algorithm in _ML_DSA:
        if isinstance(key, kind):
            return {"kty": "AKP", "alg": algorithm, "pub": base64url(key.public_bytes_raw())}
    raise BadInput("X0-BUN-003", f"no JWK for a {type(key).__name__}", "use RSA, EC or ML-DSA keys")


def public_bytes(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def load_public(spki: bytes) -> PublicKey:
    """What `public_bytes` wrote.

    Raises:
        BadInput: X0-BUN-004 something else.
    """
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise BadInput("X0-BUN-004", "not an RSA or NIST curve public key")
    return key


def base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    """The bytes of base64url text: one text for one value, no padding, no spaces.

    Raises:
        ValueError: anything else.
    """
    if not _BASE64URL.match(text):
        raise ValueError("not base64url")
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("not base64url") from None
    if base64url(data) != text:  # Bits after the last byte.
        raise ValueError("not base64url")
    return data


def _digits(number: int) -> str:
    return base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _number(text: Any) -> int:
    if not isinstance(text, str) or not text:
        raise TypeError("not a string")
    return int.from_bytes(unbase64url(text), "big")


def _unique(pairs: list[tuple[str, Any]]) -> Any:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Duplicated()


def _no_constant(name: str) -> Any:
    raise ValueError(name)
