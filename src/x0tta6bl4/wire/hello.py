"""Hellos between the proxies of a link: one fixed struct with a keyed tag, by UDP or channel.

    "X0" | version u8 | kind u8 | link u32 | incarnation u64 | sequence u64 | state u8 | flags u8
    | multiplier u8 | 0 u8 | interval u32 | sent u64 | echo u64 | dwell u32 | good u32 | lost u32
    | tag 16 bytes                                                        (little-endian, 76 bytes)

Source: RFC 5880 section 4.1 (state, poll, final, detect multiplier), section 6.7 (keyed tag with
a growing sequence).  The tag is keyed BLAKE2b-128 in production; who has the key makes `mac`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hmac import compare_digest
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import BadMessage

Mac = Callable[[bytes], bytes]
"""Tag over the bytes before it, exactly TAG_BYTES long, under the key of one direction."""

VERSION: Final = 1
KIND: Final = 16
"""Apart from the kinds of setup frames, which share the magic and the port number."""

ADMIN_DOWN: Final = 0
DOWN: Final = 1
INIT: Final = 2
UP: Final = 3
"""Session states, RFC 5880 section 4.1."""

AGENT_ALIVE: Final = 1
"""Flag: the sender's agent is connected to the proxy that says this hello."""
POLL: Final = 2
"""Flag: answer at once."""
FINAL: Final = 4
"""Flag: this is such an answer."""
EASY: Final = 8
"""Flag: from now on the sender judges by hellos that come every EASY_US; something faster watches
this link for it.  Without it the sender wants them at the calm interval again."""
EASY_US: Final = 1_000_000
_FLAGS: Final = AGENT_ALIVE | POLL | FINAL | EASY

TAG_BYTES: Final = 16
INTERVAL_US_MIN: Final = 1_000
INTERVAL_US_MAX: Final = 10_000_000
MULTIPLIER_MAX: Final = 20
_STRUCT: Final = struct.Struct("<2sBBIQQBBBBIQQIII")
_LINK: Final = struct.Struct("<4xI")
HELLO_BYTES: Final = _STRUCT.size + TAG_BYTES
_MASK32: Final = 0xFFFFFFFF


@final
class Hello(msgspec.Struct, frozen=True, gc=False):
    """What one proxy says to the other, some ten times a second."""

    link: int
    """Key id of the link, 32 bits: both ends compute it from the link's TLS connection."""
    incarnation: int
    """Of the sender's proxy: 63 random bits, new at each start."""
    sequence: int
    """From 1 within an incarnation and a link's neighbour, never repeated: also the tx counter."""
    state: int
    """ADMIN_DOWN, DOWN, INIT or UP, as the sender sees the link."""
    flags: int
    """AGENT_ALIVE, POLL, FINAL, EASY."""
    interval_us: int
    """The sender's calm hello interval, and the least it wants to receive."""
    multiplier: int
    """Missed intervals after which the receiver is to declare the link down."""
    sent_us: int
    """The sender's clock, to be echoed."""
    echo_us: int = 0
    """`sent_us` of the newest hello received from you; 0: none yet."""
    dwell_us: int = 0
    """Time that has passed here since that hello came."""
    good: int = 0
    """Your hellos judged received, modulo 2**32."""
    lost: int = 0
    """Your hellos judged lost, modulo 2**32."""


def pack(hello: Hello, mac: Mac) -> bytes:
    """Encode and tag a hello.

    Args:
        hello: as the machine made it; its fields are in range.
        mac: tag function of the sending direction.
    Returns:
        HELLO_BYTES bytes.
    """
    body = _STRUCT.pack(
        b"X0",
        VERSION,
        KIND,
        hello.link,
        hello.incarnation,
        hello.sequence,
        hello.state,
        hello.flags,
        hello.multiplier,
        0,
        hello.interval_us,
        hello.sent_us,
        hello.echo_us,
        min(hello.dwell_us, _MASK32),
        hello.good & _MASK32,
        hello.lost & _MASK32,
    )
    return body + mac(body)


def link_of(data: bytes) -> int:
    """Key id of what looks like a hello, to pick the key; nothing is verified.

    Raises:
        BadMessage: not of a hello's length, magic, version or kind.
    """
    if len(data) != HELLO_BYTES or data[:4] != b"X0\x01\x10":
        raise BadMessage("X0-HEL-001", f"{len(data)} bytes that are no hello of version {VERSION}")
    (link,) = _LINK.unpack_from(data)
    return int(link)


def unpack(data: bytes, mac: Mac) -> Hello:
    """Verify the tag, then decode and check every field.

    Args:
        data: one datagram or one message of the channel.
        mac: tag function of the receiving direction, chosen by `link_of(data)`.
    Raises:
        BadMessage: wrong form, wrong tag, or a field out of its range.
    """
    link_of(data)
    body = data[:-TAG_BYTES]
    if not compare_digest(mac(body), data[-TAG_BYTES:]):
        raise BadMessage("X0-HEL-002", "hello with a wrong tag")
    (
        _,
        _,
        _,
        link,
        incarnation,
        sequence,
        state,
        flags,
        multiplier,
        zero,
        interval_us,
        sent_us,
        echo_us,
        dwell_us,
        good,
        lost,
    ) = _STRUCT.unpack(body)
    if (
        state > UP
        or flags & ~_FLAGS
        or zero
        or not sequence
        or not 1 <= multiplier <= MULTIPLIER_MAX
        or not INTERVAL_US_MIN <= interval_us <= INTERVAL_US_MAX
    ):
        raise BadMessage("X0-HEL-003", "hello with a field out of range")
    return Hello(
        link,
        incarnation,
        sequence,
        state,
        flags,
        interval_us,
        multiplier,
        sent_us,
        echo_us,
        dwell_us,
        good,
        lost,
    )
