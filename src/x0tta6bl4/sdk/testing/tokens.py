"""JWTs and JWKs of any shape: the valid ones, and all those that must be refused.

Nothing here checks anything: header, claims and keys are written as they are given, so that a test
can say exactly what is wrong with a token.

Source: RFC 7515, RFC 7517, RFC 7518; JWT-SVID.md sections 2 and 6.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
"""What can sign a token with a public key."""

_CURVES: Final[dict[str, tuple[type[ec.EllipticCurve], str]]] = {
    "ES256": (ec.SECP256R1, "P-256"),
    "ES384": (ec.SECP384R1, "P-384"),
    "ES512": (ec.SECP521R1, "P-521"),
}
_HASHES: Final[dict[str, Any]] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
_NAMES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def new_key(algorithm: str = "ES256") -> SigningKey:
    """Make a key for an algorithm of RFC 7518, or for `EdDSA`.

    Raises:
        KeyError: no such algorithm.
    """
    if algorithm[:2] in ("RS", "PS"):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[algorithm][0]())


def forge(
    header: Mapping[str, Any] | bytes,
    claims: Mapping[str, Any] | bytes,
    key: SigningKey | bytes | None,
    *,
    algorithm: str | None = None,
) -> str:
    """Write a token and sign it, whatever it says.

    Args:
        header: members in their order, or the exact bytes.
        claims: as `header`.
        key: bytes for `HS256` and its like; None for no signature at all.
        algorithm: with which it is signed; `alg` of the header if left out.
    """
    first = header if isinstance(header, bytes) else json.dumps(header).encode()
    second = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    said = b64(first) + "." + b64(second)
    if key is None:
        return said + "."
    chosen = algorithm or str(json.loads(first)["alg"])
    return said + "." + b64(signature(chosen, key, said.encode()))


def signature(algorithm: str, key: SigningKey | bytes, data: bytes) -> bytes:
    """Signature of RFC 7518 section 3 over `data`."""
    if isinstance(key, bytes):
        return hmac.digest(key, data, "sha" + algorithm[2:])
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    digest = _HASHES[algorithm[2:]]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        size = (key.curve.key_size + 7) // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if algorithm.startswith("PS"):
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(data, padding.PKCS1v15(), digest)


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """JWK of a key's public half, with further members; None takes a member out.

    Args:
        key: a private or a public key: EC, RSA or Ed25519.
        members: for example `kid="1", use="jwt-svid"`.
    """
    public = key.public_key() if hasattr(key, "public_key") else key
    made: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        made = {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
    elif isinstance(public, ed25519.Ed25519PublicKey):
        made = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
    else:
        point = public.public_numbers()
        size = (public.curve.key_size + 7) // 8
        made = {
            "kty": "EC",
            "crv": _NAMES[public.curve.name],
            "x": _number(point.x, size),
            "y": _number(point.y, size),
        }
    return {name: value for name, value in (made | members).items() if value is not None}


def thumbprint(key: Any) -> str:
    """First 16 letters of the RFC 7638 thumbprint: a `kid` that tells nothing."""
    members = json.dumps(jwk(key), sort_keys=True, separators=(",", ":"))
    return b64(hashlib.sha256(members.encode()).digest())[:16]


def b64(data: bytes) -> str:
    """Base64url without padding, RFC 7515 section 2."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, size: int = 0) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))
