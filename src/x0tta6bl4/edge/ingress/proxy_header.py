"""PROXY protocol version 2 in front of a connection to a service that wants to know who calls.

Source: haproxy's proxy-protocol.txt, section 2.2.  The address family is UNSPEC, since a caller
has an identity and no address; two TLVs of the range for applications (0xE0 to 0xEF) carry it:

    0xE0   SPIFFE ID of the caller, ASCII
    0xE1   service name or SPIFFE ID that it asked for, ASCII

Sent only to services that nobody but the proxy can connect to: elsewhere anybody could forge it.
"""

from __future__ import annotations

import struct
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import BadId, BadMessage
from x0tta6bl4.wire.ids import SpiffeId, spiffe_id

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
SOURCE: Final = 0xE0
TARGET: Final = 0xE1
HEADER_BYTES: Final = 16
BODY_BYTES_MAX: Final = 5000
_HEADER = struct.Struct(">12sBBH")
_TLV = struct.Struct(">BH")
_ADDRESS_BYTES: Final = {0: 0, 1: 12, 2: 36, 3: 216}
"""By address family: UNSPEC, INET, INET6, UNIX."""


@final
class ProxyHeader(msgspec.Struct, frozen=True, gc=False):
    """What the header says of a caller."""

    source: SpiffeId
    target: str


def build(source: SpiffeId, target: str) -> bytes:
    """Make the header.

    Args:
        source: the caller.
        target: what it asked for; ASCII, at most 2048 bytes.
    """
    tlvs = b"".join(
        _TLV.pack(kind, len(value)) + value
        for kind, value in ((SOURCE, source.encode("ascii")), (TARGET, target.encode("ascii")))
    )
    return _HEADER.pack(SIGNATURE, 0x21, 0, len(tlvs)) + tlvs


def parse(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Read the header at the beginning of a connection.

    Args:
        data: everything received so far.
    Returns:
        The header and how many bytes it took; None while it is incomplete.
    Raises:
        BadMessage: no such header, or not one with both of our TLVs, once each.
    """
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise BadMessage("X0-PXY-001", "no PROXY header of version 2")
    if len(data) < HEADER_BYTES:
        return None
    _, command, family, length = _HEADER.unpack_from(data)
    if command != 0x21 or family >> 4 not in _ADDRESS_BYTES or length > BODY_BYTES_MAX:
        raise BadMessage("X0-PXY-002", f"PROXY header of kind {command:#x}, {length} bytes")
    end = HEADER_BYTES + length
    if len(data) < end:
        return None
    found: dict[int, bytes] = {}
    at = HEADER_BYTES + _ADDRESS_BYTES[family >> 4]
    while at + _TLV.size <= end:
        kind, size = _TLV.unpack_from(data, at)
        at += _TLV.size
        if kind in (SOURCE, TARGET) and kind in found:
            raise BadMessage("X0-PXY-003", "PROXY header says something twice")
        found[kind] = data[at : at + size]
        at += size
    if at != end or SOURCE not in found or TARGET not in found:
        raise BadMessage("X0-PXY-004", "PROXY header without a caller")
    try:
        source = spiffe_id(found[SOURCE].decode("ascii"))
        return ProxyHeader(source, found[TARGET].decode("ascii")), end
    except (BadId, UnicodeDecodeError):
        raise BadMessage("X0-PXY-005", "PROXY header with a bad name") from None
