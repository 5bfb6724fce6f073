"""Words of the hops: what the first bytes of a connection to a proxy's data port say.

    setup frame = b"X0" | version u8 | kind u8 | link u32 | counter u64 | length u16 | body
    refusal     = b"X0" | version u8 | 0x80    | length u16 | reason

All numbers are little-endian.  Bodies are sealed by `edge/hop/setup.py` (`enrol` has none, that of
`direct` is no secret).  A refusal may stand before the first spliced byte and travels back through
every relay unread, so whoever dialled meets it where the first TLS record should be; a record never
starts with `X`.
"""

from __future__ import annotations

import struct
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import BadId, BadMessage
from x0tta6bl4.wire.ids import NodeName, SpiffeId, node_name, spiffe_id

VERSION: Final = 1
HOP: Final = 1
"""Carry what follows along a path."""
CHANNEL: Final = 2
"""This connection belongs to the two proxies themselves."""
DIALBACK: Final = 3
"""You asked for this connection; use it as if you had dialled it."""
ENROL: Final = 4
"""Carry what follows to the authority; unkeyed, for a node that has no identity yet."""
DIRECT: Final = 5
"""A circuit over mesh addresses; unkeyed, its body is the called workload's SPIFFE ID."""
REFUSAL: Final = 0x80

WELCOME: Final = 0
"""Message of a channel: the accepting end has the keys; sent once, first."""
HELLO: Final = 1
"""Message of a channel: a flag byte (DEAF or 0) and a packed hello."""
DIAL_BACK: Final = 2
"""Message of a channel: a token; dial me and send it in a DIALBACK frame."""
ENDED: Final = 3
"""Message of a channel: why hops between the two were reset."""
DEAF: Final = 1
"""Flag of HELLO: nothing of yours comes by UDP, so answer over the channel too."""
MESSAGE_BYTES_MAX: Final = 1024

AUTHORITY: Final = "authority"
"""Reserved target: the last proxy carries the bytes to its authority."""

HEADER_BYTES: Final = 18
BODY_BYTES_MAX: Final = 4096
PATH_MAX: Final = 16
TOKEN_BYTES: Final = 16
REASON_BYTES_MAX: Final = 200
REFUSAL_HEADER_BYTES: Final = 6

_HEADER: Final = struct.Struct("<2sBBIQH")
_REFUSAL: Final = struct.Struct("<2sBBH")


@final
class Header(msgspec.Struct, frozen=True, gc=False):
    """The 18 bytes in front of every setup frame, checked for form only."""

    kind: int
    link: int
    """Key id of the link whose keys seal the body; 0 for `ENROL` and `DIRECT`."""
    counter: int
    """Nonce of the seal, never used twice under one key."""
    length: int
    """Bytes of the body that follow."""


@final
class Hop(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Body of a `HOP` frame."""

    path: tuple[str, ...]
    """What remains of the path: the receiver first, the target's node last."""
    target: str
    """SPIFFE ID of the called workload, or AUTHORITY."""


def pack_header(header: Header) -> bytes:
    """Encode a header; its fields are in range."""
    return _HEADER.pack(b"X0", VERSION, header.kind, header.link, header.counter, header.length)


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Decode the first 18 bytes of a connection.

    Raises:
        BadMessage: no setup frame of this version, of an unknown kind, or too long.
    """
    if len(data) != HEADER_BYTES:
        raise BadMessage("X0-HOP-001", f"setup header of {len(data)} bytes")
    magic, version, kind, link, counter, length = _HEADER.unpack(data)
    if magic != b"X0":
        raise BadMessage("X0-HOP-001", "no setup frame")
    if version != VERSION:
        raise BadMessage("X0-HOP-002", f"setup frame of version {version}", f"we speak {VERSION}")
    if not HOP <= kind <= DIRECT:
        raise BadMessage("X0-HOP-003", f"setup frame of kind {kind}")
    if length > BODY_BYTES_MAX:
        raise BadMessage("X0-HOP-004", f"setup body of {length} bytes", "at most 4096")
    if kind == ENROL and (link or counter or length):
        raise BadMessage("X0-HOP-005", "enrol frame that is not empty")
    if kind == DIRECT and (link or counter or not length):
        raise BadMessage("X0-HOP-011", "direct frame with keys, or without a target")
    return Header(kind, link, counter, length)


def pack_hop(hop: Hop) -> bytes:
    """Encode a hop for sealing.

    Raises:
        BadMessage: what `unpack_hop` would refuse for its path or target.
    """
    _check(hop)
    return _ENCODER.encode(hop)


def unpack_hop(body: bytes, receiver: NodeName) -> Hop:
    """Decode an opened hop and hold it to the rules of paths.

    Args:
        body: plaintext of a `HOP` frame.
        receiver: this node, which must stand first.
    Raises:
        BadMessage: not a hop, empty or longer than PATH_MAX, a node twice, a name that is none, a
            target that is neither a workload's SPIFFE ID nor AUTHORITY, or not meant for us.
    """
    if len(body) > BODY_BYTES_MAX:
        raise BadMessage("X0-HOP-004", f"hop of {len(body)} bytes", "at most 4096")
    try:
        hop = _HOP.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadMessage("X0-HOP-006", "setup body that is no hop") from None
    _check(hop)
    if hop.path[0] != receiver:
        raise BadMessage("X0-HOP-010", f"hop meant for {hop.path[0]}")
    return hop


def _check(hop: Hop) -> None:
    """Hold a hop to the rules that sender and receiver share."""
    if not 1 <= len(hop.path) <= PATH_MAX:
        raise BadMessage("X0-HOP-007", f"path of {len(hop.path)} nodes", f"1 to {PATH_MAX}")
    if len(set(hop.path)) != len(hop.path):
        raise BadMessage("X0-HOP-008", "path with a node twice")
    try:
        for name in hop.path:
            node_name(name)
        if hop.target != AUTHORITY and spiffe_id(hop.target) != hop.target:
            raise BadMessage("X0-HOP-009", "target that is not in normal form")
    except BadId as error:
        raise BadMessage("X0-HOP-009", f"hop with a bad name: {error.what}") from None


def pack_direct(target: SpiffeId) -> bytes:
    """Encode a whole `DIRECT` frame."""
    body = target.encode()
    return pack_header(Header(DIRECT, 0, 0, len(body))) + body


def unpack_direct(body: bytes) -> SpiffeId:
    """The called workload of a `DIRECT` frame.

    Raises:
        BadMessage: no SPIFFE ID, or not in normal form.
    """
    try:
        text = body.decode("ascii")
        if spiffe_id(text) != text:
            raise BadMessage("X0-HOP-009", "target that is not in normal form")
    except (BadId, UnicodeDecodeError):
        raise BadMessage("X0-HOP-009", "target that is no SPIFFE ID") from None
    return SpiffeId(text)


def target_id(hop: Hop) -> SpiffeId | None:
    """The called workload of a checked hop; None for the authority."""
    return None if hop.target == AUTHORITY else SpiffeId(hop.target)


def pack_refusal(reason: str) -> bytes:
    """Encode a refusal; a reason longer than REASON_BYTES_MAX is cut."""
    text = reason.encode("ascii", "replace")[:REASON_BYTES_MAX]
    return _REFUSAL.pack(b"X0", VERSION, REFUSAL, len(text)) + text


def unpack_refusal(data: bytes | bytearray | memoryview) -> str | None:
    """Read what came back where the first TLS record should be.

    Args:
        data: everything received so far, at least one byte.
    Returns:
        The reason; `""` while the refusal is incomplete; None if this is no refusal, so TLS.
    """
    head = bytes(data[:4])
    if head != b"X0\x01\x80"[: len(head)]:
        return None
    if len(data) < REFUSAL_HEADER_BYTES:
        return ""
    length = min(_REFUSAL.unpack_from(data)[3], REASON_BYTES_MAX)
    if len(data) < REFUSAL_HEADER_BYTES + length:
        return ""
    text = bytes(data[REFUSAL_HEADER_BYTES : REFUSAL_HEADER_BYTES + length])
    printable = "".join(chr(c) if 32 <= c < 127 else "?" for c in text)
    return printable or "refused without a reason"


_ENCODER = msgspec.msgpack.Encoder()
_HOP = msgspec.msgpack.Decoder(Hop)
