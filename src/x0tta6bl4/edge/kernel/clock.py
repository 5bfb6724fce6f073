"""The clock's track: a veth pair in which one frame circles, held back by a token bucket.

    x0clock0 --tbf, one frame per period--> x0clock1 --x0_turn: hellos, then back--> x0clock0

The frame is put there by PROG_TEST_RUN and belongs to no socket, so that it keeps no network
namespace alive.

Source: tc-tbf(8); linux/pkt_sched.h (`tc_tbf_qopt`); linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Final

from x0tta6bl4.edge.kernel.netlink import CREATE, REPLACE, Netlink, attribute, nested

NEAR: Final = "x0clock0"
FAR: Final = "x0clock1"
FRAME_BYTES: Final = 14 + 40 + 8 + 56
"""A request with all its headers: what circles is as long."""
_NEWLINK, _DELLINK, _NEWQDISC = 16, 17, 36
_ROOT: Final = 0xFFFFFFFF
_UP, _NOARP = 0x1, 0x80
_QUEUE_BYTES: Final = 4096


def exists() -> tuple[int, int] | None:
    """Interface numbers of near and far end, or None."""
    try:
        return socket.if_nametoindex(NEAR), socket.if_nametoindex(FAR)
    except OSError:
        return None


def create(netlink: Netlink) -> tuple[int, int]:
    """Make the pair, without any IPv6 of its own, which would put frames on the track.

    Returns:
        Interface numbers of near and far end; of those that are there, if they are.
    Raises:
        Unavailable: refused (X0-KRN-103).
    """
    found = exists()
    if found is None:
        peer = nested(1, _link(0) + attribute(3, _text(FAR)))
        kind = attribute(1, _text("veth")) + nested(2, peer)
        body = _link(0) + attribute(3, _text(NEAR)) + nested(18, kind)
        netlink.carry_out("the clock's veth pair", [(_NEWLINK, CREATE, body)])
        found = exists()
        assert found is not None
    for name in (NEAR, FAR):
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    up = [(_NEWLINK, 0, _link(index, _UP | _NOARP)) for index in found]
    netlink.carry_out("the clock's veth pair, up", up)
    return found


def pace(netlink: Netlink, near: int, period_us: int) -> None:
    """Let one frame pass per period.

    Args:
        netlink: in the clock's namespace.
        near: interface number of the near end.
        period_us: from 100 µs to 1 s.
    Raises:
        Unavailable: refused (X0-KRN-103), for one where the kernel has no tbf.
    """
    rate = FRAME_BYTES * 1_000_000 // period_us
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, rate)
    options = spec + bytes(12) + struct.pack("=III", _QUEUE_BYTES, 0, 0)
    burst = struct.pack("=I", FRAME_BYTES + 2)
    body = struct.pack("=BxxxiIII", 0, near, 0, _ROOT, 0)
    body += attribute(1, _text("tbf")) + nested(2, attribute(1, options), attribute(6, burst))
    netlink.carry_out("the clock's token bucket (tbf)", [(_NEWQDISC, CREATE | REPLACE, body)])


def remove(netlink: Netlink) -> None:
    """Remove the pair and the frame in it; none there is fine."""
    found = exists()
    if found is not None:
        netlink.ask([(_DELLINK, 0, _link(found[0]))])


def _link(index: int, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
