"""Taking key material out of what is written down: by type, by field name and by its look.

It is the last line, not the first: secrets are not given to logs at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

GONE: Final = "[redacted]"
DEPTH_MAX: Final = 12
SECRET_FIELDS: Final = frozenset(
    {
        "key",
        "private",
        "record_private",
        "secret",
        "token",
        "password",
        "passphrase",
        "pin",
        "tx_hello",
        "rx_hello",
        "tx_setup",
        "rx_setup",
        "session_secret",
        "private_key",
        "cookie",
        "authorization",
    }
)
"""Names of fields whose values never are written, wherever they stand."""

_PATTERNS: Final = (
    # A PEM block of any private key, also cut off at its end.
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    # An enrolment token.
    re.compile(r"x0t\d+\.[A-Za-z0-9_=-]{8,}"),
    # A JWT.
    re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    # DER of a PKCS#8 EC or RSA key in hex or base64: their first bytes are always the same.
    re.compile(r"3081[0-9a-f]{2}0201003013[0-9a-f]{32,}", re.I),
    re.compile(r"30820[0-9a-f]{3}02010030[0-9a-f]{32,}", re.I),
    re.compile(r"MI(?:GH|GE|IE|IB|IC|G2)Ag(?:EA|EB)M[A-Za-z0-9+/=_-]{32,}"),
    # name = "value" or "name": "value" for names that say what they hold.
    re.compile(
        r'(?i)(?<=["\s{,;&?])((?:[a-z0-9_]*_)?(?:secret|password|passphrase|token))'
        r'("?\s*[=:]\s*)("[^"]*"|[^\s",;}&]+)'
    ),
)


def redact(text: str) -> str:
    """A text without what looks like key material."""
    for pattern in _PATTERNS[:-1]:
        text = pattern.sub(GONE, text)
    return _PATTERNS[-1].sub(_assignment, f" {text}")[1:]


def redact_value(value: Any, depth: int = 0) -> Any:
    """A value as plain data, without secrets: what logs and support bundles may have.

    Bytes never appear, whatever they are: their length does.
    """
    if depth > DEPTH_MAX:
        return "..."
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, msgspec.Struct):
        return {name: _field(name, getattr(value, name), depth) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(name): _field(str(name), item, depth) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, BaseException):
        return redact(str(value) or type(value).__name__)
    return f"<{type(value).__name__}>"  # Never its repr: who knows what that shows.


def _field(name: str, value: Any, depth: int) -> Any:
    return GONE if name.lower() in SECRET_FIELDS and value else redact_value(value, depth + 1)


def _assignment(found: re.Match[str]) -> str:
    value = found[3]
    if value.strip('"').startswith("/") or value == '""' or value == GONE:
        return found[0]  # Path of a file, or nothing there.
    return (
        f'{found[1]}{found[2]}"{GONE}"'
        if value.startswith('"')
        else (f"{found[1]}{found[2]}{GONE}")
    )
