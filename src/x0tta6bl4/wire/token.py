"""The enrolment token: one printable word from the operator to a new node.

It names the trust domain, where its authority is, the bundle by which the authority has to prove
itself before the secret is sent, and the secret.  Who sees only `token_digest` learns nothing.

    x0t1. base64url( msgpack(Token) | first 4 bytes of its SHA-256 )
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import final

import msgspec

from x0tta6bl4.wire.errors import BadInput


@final
class Token(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """What an enrolment token carries; single use, lives at most TOKEN_TTL_S_MAX."""

    trust_domain: str
    authorities: tuple[str, ...]
    """`host:port`, in the order in which to try them; empty: only through a neighbour."""
    bundle_sha256: bytes
    """Digest of the body of a bundle; the authority proves itself from there before `secret`."""
    node: str
    """The only name it enrols; empty: any name that is free."""
    expires_unix_s: int
    id: bytes
    """8 random bytes."""
    secret: bytes
    """32 random bytes; the authority keeps only `token_digest`."""


_TOKEN_PREFIX = "x0t1."
_TOKEN_CHARS_MAX = 4096


def write_token(token: Token) -> str:
    """The token as one printable word."""
    body = msgspec.msgpack.encode(token)
    body += hashlib.sha256(body).digest()[:4]
    return _TOKEN_PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def read_token(text: str) -> Token:
    """Parse what `write_token` made.

    Raises:
        BadInput: not a token, or damaged on its way.
    """
    text = text.strip()
    if not text.startswith(_TOKEN_PREFIX) or len(text) > _TOKEN_CHARS_MAX or not text.isascii():
        raise BadInput(
            "X0-AUT-001",
            "this is no enrolment token",
            "it is one word that starts with x0t1., from `x0 token create`",
        )
    word = text[len(_TOKEN_PREFIX) :]
    try:
        body = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
        if hashlib.sha256(body[:-4]).digest()[:4] != body[-4:]:
            raise BadInput("X0-AUT-001", "the enrolment token is damaged", "copy all of it")
        token = msgspec.msgpack.decode(body[:-4], type=Token)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        raise BadInput("X0-AUT-001", "the enrolment token is damaged", "copy all of it") from None
    if len(token.bundle_sha256) != 32 or len(token.secret) != 32 or len(token.id) != 8:
        raise BadInput("X0-AUT-001", "the enrolment token is damaged", "copy all of it")
    return token


def token_digest(id: bytes, secret: bytes) -> bytes:
    """What the authority keeps of a token's secret (256 random bits: nothing to guess)."""
    return hashlib.sha256(b"x0 token 1\x00" + id + secret).digest()
