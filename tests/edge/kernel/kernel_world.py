"""One node's programs for tests: frames as the wire has them, maps as user space writes them."""

from __future__ import annotations

import struct
import time
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import Flag, Kind, Reason
from x0tta6bl4.edge.kernel.libbpf import Libbpf, Run
from x0tta6bl4.edge.kernel.programs import Programs

LO = 1
"""PROG_TEST_RUN says that frames come in on the loopback interface."""
SECOND = 1_000_000_000
MINE, PEER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
LOCAL, REMOTE = IPv6Address("fe80::1"), IPv6Address("fe80::2")
SEND, RECEIVE = (0x0123456789ABCDEF, 0xFEDCBA9876543210), (0x1111111111111111, 0x2222222222222222)
DROP, PASS, TX = 1, 2, 3
OK, SHOT, REDIRECT = 0, 2, 7


def siphash(key: tuple[int, int], data: bytes) -> int:
    """SipHash-2-4, written from the paper, apart from the one in C."""
    mask = (1 << 64) - 1
    v = [
        key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D,
        key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573,
    ]  # fmt: skip

    def turned(x: int, n: int) -> int:
        return (x << n | x >> (64 - n)) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = v[0] + v[1] & mask
            v[1] = turned(v[1], 13) ^ v[0]
            v[0] = turned(v[0], 32)
            v[2] = v[2] + v[3] & mask
            v[3] = turned(v[3], 16) ^ v[2]
            v[0] = v[0] + v[3] & mask
            v[3] = turned(v[3], 21) ^ v[0]
            v[2] = v[2] + v[1] & mask
            v[1] = turned(v[1], 17) ^ v[2]
            v[2] = turned(v[2], 32)

    whole = len(data) // 8 * 8
    words = list(struct.unpack(f"<{whole // 8}Q", data[:whole]))
    words.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for word in words:
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def hello(key: tuple[int, int] = RECEIVE, tag: int | None = None, **fields: int) -> bytes:
    """A hello, tagged unless a tag is given."""
    values = {
        "version": layout.VERSION, "kind": Kind.REQUEST, "session": 7, "incarnation": 1,
        "sequence": 1, "sent_ns": 0,
    } | fields  # fmt: skip
    bare = layout.HELLO.pack(**values)[:-8]
    return bare + struct.pack("<Q", siphash(key, bare) if tag is None else tag)


def ipv6(
    payload: bytes, source: IPv6Address, target: IPv6Address, *, next: int = 17, hops: int = 255
) -> bytes:
    """An IPv6 packet."""
    head = struct.pack("!IHBB", 6 << 28, len(payload), next, hops)
    return head + source.packed + target.packed + payload


def ethernet(packet: bytes, *, target: bytes = MINE, source: bytes = PEER) -> bytes:
    """A frame with an IPv6 packet."""
    return target + source + b"\x86\xdd" + packet


def udp(payload: bytes, port: int = layout.PORT) -> bytes:
    """A datagram from a port to the same."""
    return struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload


def hello_frame(
    said: bytes, *, source: IPv6Address = REMOTE, target: IPv6Address = LOCAL, hops: int = 255
) -> bytes:
    """A hello on the wire, as the peer sends it."""
    return ethernet(ipv6(udp(said), source, target, hops=hops))


class World:
    """Programs in the namespace that the test is in, without clock and timers."""

    def __init__(self, pins: Path) -> None:
        self.pins = pins
        self.programs = Programs.open(Libbpf(), pins)

    def put(self, name: str, key: int, data: bytes) -> None:
        """Write an entry of an array."""
        self.programs.maps[name].put(struct.pack("I", key), data)

    def get(self, name: str, key: int) -> bytes:
        """Read one."""
        return self.programs.maps[name].get(struct.pack("I", key)) or b""

    def lease(self, age_s: float = 0) -> None:
        """Settings as the detector writes them, with a lease of this age."""
        values = layout.SETTINGS.unpack(self.get("x0_settings", 0)) | {
            "renewed_ns": time.monotonic_ns() - int(age_s * SECOND),
            "agent_ns": 3 * SECOND,
            "stand_down_ns": 60 * SECOND,
            "period_ns": 2_500_000,
            "clock_ifindex": LO,
            "generation": 77,
        }
        self.put("x0_settings", 0, layout.SETTINGS.pack(**values))

    def link(self, number: int = 7, **fields: Any) -> None:
        """A link on the loopback interface."""
        values = {
            "receive_key": (*RECEIVE, 0, 0), "send_key": (*SEND, 0, 0), "incarnation": 5,
            "dead_ns": 7_500_000, "suspect_ns": 3_500_000, "late_ns": 2_500_000, "ifindex": LO,
            "peer_session": 9, "flags": Flag.ACTIVE, "mtu": 1500, "local_mac": MINE,
            "peer_mac": PEER, "local": LOCAL.packed, "peer": REMOTE.packed,
        } | fields  # fmt: skip
        self.put("x0_links", number, layout.LINK.pack(**values))
        port = layout.PORT_KEY.pack(ifindex=values["ifindex"], mac=values["peer_mac"])
        self.programs.maps["x0_ports"].put(port, struct.pack("I", number))

    def state(self, number: int = 7, **fields: Any) -> dict[str, Any]:
        """State of a link; with fields: set to these, all else zero."""
        if fields:
            self.put("x0_states", number, layout.STATE.pack(**fields))
        return layout.STATE.unpack(self.get("x0_states", number))

    def clear(self) -> None:
        """As after loading: nothing set, nothing counted."""
        maps = self.programs.maps
        for number in range(16):
            self.put("x0_links", number, bytes(layout.LINK.size))
            self.put("x0_states", number, bytes(layout.STATE.size))
        for name in ("x0_ports", "x0_alternates", "x0_members", "x0_sources", "x0_flows"):
            for key in maps[name].keys():  # noqa: SIM118
                maps[name].delete(key)
        self.put("x0_filters", 0, bytes(layout.FILTER.size))
        self.put("x0_turns", 0, bytes(layout.TURNS.size))
        counters = maps["x0_counters"]
        for reason in Reason:
            key = struct.pack("I", reason)
            room = len(counters.get(key) or b"")
            counters._call.bpf_map_update_elem(counters.fd, key, bytes(room), 0)
        self.lease()

    def run(self, program: str, frame: bytes, **more: Any) -> Run:
        """Run a program on a frame."""
        return self.programs.run(program, frame, **more)

    def counted(self) -> dict[str, int]:
        """Reasons met since `clear`."""
        return {one.name: count for one, count in self.programs.counters().items() if count}
