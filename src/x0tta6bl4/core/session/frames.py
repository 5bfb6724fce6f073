"""The frames of a session: what two proxies say to each other inside a circuit's TLS.

Every frame starts with 8 bytes, little-endian: `stream u32 | kind 4 bits, value 28 bits`.

    numbered (header and body count in the session's sequence, and are resent until acknowledged):
        DATA(value = length, body)  OPEN(value = length, body)  OPENED  FIN
        RST(value = Reset)  WINDOW(value = bytes; stream 0: credit of the whole session)
    not numbered (they belong to one circuit and die with it):
        NEW, JOIN, JOINED(value = length, body)  ACK, SEEK(60-bit offset in the header itself)
        PING, PONG(token in the stream field)  MOVE  GONE

NEW and JOIN go from the client to the server, JOINED back.  Each carries the session's number,
an epoch that grows with every one of them, both offsets, and a MAC under the session's secret over
all that, a direction label and a value exported from this very circuit: a copy of it is worth
nothing on another circuit.  NEW is a JOIN that may create the session; it carries the secret, which
the client exported from the first circuit of the session.

Source: numbering above TLS as in TCPLS (CoNEXT 2021); JOIN as MP_JOIN, RFC 8684 section 3.2.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.wire.errors import BadMessage

HEADER: Final = struct.Struct("<II")
HEADER_BYTES: Final = 8
VALUE_MAX: Final = 0xFFFFFFF
"""Longest body, largest credit of one frame."""
OFFSET_MAX: Final = (1 << 60) - 1

DATA: Final = 0
OPEN: Final = 1
FIN: Final = 2
RST: Final = 3
WINDOW: Final = 4
OPENED: Final = 5
LAST_NUMBERED: Final = 5
GONE: Final = 7
NEW: Final = 8
JOIN: Final = 9
JOINED: Final = 10
ACK: Final = 11
SEEK: Final = 12
PING: Final = 13
PONG: Final = 14
MOVE: Final = 15

SESSION_ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAC_BYTES: Final = 32
OPEN_BYTES_MAX: Final = 2 + 253

LABEL_CLIENT: Final = b"x0 join, client to server\x00"
LABEL_SERVER: Final = b"x0 joined, server to client\x00"

_JOIN: Final = struct.Struct("<16sIQQ")
JOIN_BYTES: Final = _JOIN.size + MAC_BYTES
NEW_BYTES: Final = JOIN_BYTES + SECRET_BYTES

Mac = Callable[[bytes, bytes], bytes]
"""(key, data) -> 32 bytes; HMAC-SHA256 in the product, given from outside."""


class Reset(enum.IntEnum):
    """Why a stream was reset; before OPENED it answers OPEN, and another replica may do."""

    RESET = 0
    """The application at the other end reset its connection."""
    CONNECT_REFUSED = 1
    CONNECT_TIMEOUT = 2
    DENIED = 3
    NO_SERVICE = 4
    LISTENER = 5
    """Whatever listens there is not the service that was registered."""
    BUSY = 6
    """A bound was met."""
    DRAINING = 7
    CREDIT = 8
    """More bytes than credit."""
    STALLED = 9
    """The application stood still while the proxy's byte budget was used up."""
    WITHDRAWN = 10
    """Policy, entry or revocation has changed."""
    SESSION_ENDED = 11
    UNREACHABLE = 12

    @property
    def phrase(self) -> str:
        """Stable lower-case phrase for logs and metrics."""
        return self.name.lower().replace("_", "-")


def reset_of(value: int) -> Reset:
    """The reason in an RST frame; what a newer peer may send and we don't know is RESET."""
    return Reset(value) if value in _RESETS else Reset.RESET


class ProtocolError(BadMessage):
    """The peer broke the rules of the session; its circuit is closed, the session lives on."""

    def __init__(self, what: str) -> None:
        super().__init__("X0-SES-001", what, "the circuit is closed")


@final
class Open(Value, frozen=True):
    """What a client asks for."""

    name: str = ""
    """Service name without suffix; empty: by SPIFFE ID."""
    port: int = 0
    """Port that the application named (SOCKS5, CONNECT); 0: none."""


@final
class Join(Value, frozen=True):
    """Body of NEW, JOIN and JOINED."""

    session: bytes
    epoch: int
    received: int
    """Offset up to which the sender has taken the other's frames."""
    start: int
    """Offset at which the sender's frames begin on this circuit."""
    mac: bytes = b""
    secret: bytes = b""
    """Only in NEW."""


def frame(stream: int, kind: int, value: int = 0) -> bytes:
    """A frame without body."""
    return HEADER.pack(stream, kind << 28 | value)


def offset_frame(kind: int, offset: int) -> bytes:
    """ACK or SEEK."""
    return HEADER.pack(offset & 0xFFFFFFFF, kind << 28 | offset >> 32)


def open_frame(stream: int, ask: Open) -> bytes:
    """OPEN.

    Raises:
        ProtocolError: the name is longer than 253 bytes.
    """
    body = ask.port.to_bytes(2, "little") + ask.name.encode()
    if len(body) > OPEN_BYTES_MAX:
        raise ProtocolError(f"service name of {len(body) - 2} bytes")
    return HEADER.pack(stream, OPEN << 28 | len(body)) + body


def open_body(body: bytes) -> Open:
    """Read the body of OPEN.

    Raises:
        ProtocolError: too short or no UTF-8.
    """
    try:
        return Open(name=str(body[2:], "utf-8"), port=body[0] | body[1] << 8)
    except (IndexError, UnicodeDecodeError):
        raise ProtocolError("OPEN with a bad body") from None


def join_mac(mac: Mac, secret: bytes, label: bytes, exporter: bytes, join: Join) -> bytes:
    """MAC of a NEW, JOIN (label client) or JOINED (label server) on one circuit."""
    fields = _JOIN.pack(join.session, join.epoch, join.received, join.start)
    return mac(secret, label + fields + exporter)


def join_holds(join: Join, mac: Mac, secret: bytes, label: bytes, exporter: bytes) -> bool:
    """Whether the MAC of a received NEW, JOIN or JOINED is that of this circuit."""
    return same_bytes(join_mac(mac, secret, label, exporter, join), join.mac)


def signed_join(
    kind: int, join: Join, mac: Mac, secret: bytes, label: bytes, exporter: bytes
) -> bytes:
    """NEW (with the join's secret), JOIN or JOINED, with the MAC for one circuit."""
    tag = join_mac(mac, secret, label, exporter, join)
    return join_frame(
        kind, Join(join.session, join.epoch, join.received, join.start, tag, join.secret)
    )


def join_frame(kind: int, join: Join) -> bytes:
    """NEW (with the secret), JOIN or JOINED, with the MAC as it stands in `join`."""
    body = _JOIN.pack(join.session, join.epoch, join.received, join.start) + join.mac
    if kind == NEW:
        body += join.secret
    return HEADER.pack(0, kind << 28 | len(body)) + body


def join_body(kind: int, body: bytes) -> Join:
    """Read the body of NEW, JOIN or JOINED; its length was checked by the parser."""
    session, epoch, received, start = _JOIN.unpack_from(body)
    mac = body[_JOIN.size : _JOIN.size + MAC_BYTES]
    return Join(session, epoch, received, start, mac, body[JOIN_BYTES:] if kind == NEW else b"")


def same_bytes(one: bytes, other: bytes) -> bool:
    """Compare in a time that does not depend on where they differ."""
    if len(one) != len(other):
        return False
    difference = 0
    for a, b in zip(one, other, strict=True):
        difference |= a ^ b
    return not difference


BODY_BYTES: Final = {NEW: NEW_BYTES, JOIN: JOIN_BYTES, JOINED: JOIN_BYTES}
"""Exact body length of the frames that are not numbered and have a body."""

_RESETS: Final = frozenset(Reset)
