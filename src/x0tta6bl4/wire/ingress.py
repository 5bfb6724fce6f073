"""What a local greeting has come to: SOCKS5 or CONNECT, byte by byte, without I/O."""

from __future__ import annotations

from typing import Final, final

import msgspec

NAME_BYTES_MAX: Final = 253
"""RFC 1035 section 2.3.4, without the root's dot."""
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


@final
class More(msgspec.Struct, frozen=True, gc=False):
    """The greeting goes on; `send` is to be sent now (it may be empty)."""

    send: bytes = b""


@final
class Asked(msgspec.Struct, frozen=True, gc=False):
    """The greeting is complete and asks for a service."""

    name: str
    """As it was asked for, in lower case, without a dot at its end."""
    port: int
    rest: bytes
    """What already came of the application's own bytes."""
    send: bytes = b""


@final
class Rejected(msgspec.Struct, frozen=True, gc=False):
    """The greeting can't be served: send, then close."""

    send: bytes
    reason: str


Step = More | Asked | Rejected


def service_name(text: str) -> str:
    """Bring a host name into the form in which services are looked up.

    Returns:
        The name; empty if it can't be one.
    """
    name = text.lower().removesuffix(".")
    if not name or len(name) > NAME_BYTES_MAX or not _NAME_CHARACTERS.issuperset(name):
        return ""
    return "" if any(not label or len(label) > 63 for label in name.split(".")) else name
