"""The membership filter: who gets in, who is counted out, and why."""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World
from tests.edge.kernel.space import Spaces
from tests.edge.kernel.triangle import until
from x0tta6bl4.edge.kernel.filter import Filter, Member
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf
from x0tta6bl4.edge.kernel.programs import Mode, Programs

pytestmark = pytest.mark.netns
MESH = IPv6Network("fd12:3456:789a::/48")
ME, ALICE, MALLORY = (IPv6Address(f"fd12:3456:789a::{n}") for n in (1, 2, 3))
OUTSIDE = IPv6Address("2001:db8::1")
STRANGER = bytes.fromhex("020000000099")
ROUTING, FRAGMENT, OPTIONS, HOP_OPTIONS = 43, 44, 60, 0
PRIORITY, SERVICE = b"\x81\x00\xe0\x00", b"\x88\xa8\x00\x00"
"""Tags without a VLAN."""


def packet(source: IPv6Address, target: IPv6Address = ME, mac: bytes = kw.PEER) -> bytes:
    """From a source, by way of a neighbour."""
    return kw.ethernet(kw.ipv6(kw.udp(bytes(20), port=5000), source, target), source=mac)


def routing(next: int, *segments: IPv6Address) -> bytes:
    """A segment routing header at its last but one, as somebody on the cable writes it."""
    head = bytes([next, 2 * len(segments), 4, len(segments) - 1, len(segments) - 1, 0, 0, 0])
    return head + b"".join(one.packed for one in segments)


def options(next: int, bytes_: int = 8) -> bytes:
    """A header with options, all padding (RFC 8200 section 4.2)."""
    body = bytearray(bytes([next, bytes_ // 8 - 1]))
    while len(body) < bytes_:
        room = min(bytes_ - len(body), 255) - 2
        body += bytes([1, room]) + bytes(room)
    return bytes(body)


def fragment(next: int, offset: int = 0) -> bytes:
    """A fragment header; of offset 0 and without more: the whole."""
    return struct.pack("!BBHI", next, 0, offset << 3, 7)


def to_host(next: int, rest: bytes, mac: bytes = STRANGER) -> bytes:
    """Not to a mesh address, but to the host itself."""
    return kw.ethernet(kw.ipv6(rest, kw.REMOTE, kw.LOCAL, next=next), source=mac)


@pytest.fixture
def filter(world: World) -> Filter:
    """In force, with Alice as member and one neighbour."""
    world.link()
    made = Filter(world.programs)
    made.switch(MESH)
    made.set_members({ALICE: Member()})
    return made


def verdict(world: World, frame: bytes) -> tuple[bool, str]:
    """Whether it passed, the same in both modes, and what was counted."""
    before = world.counted()
    passed = world.run("x0_ingress", frame).verdict == kw.PASS
    reasons = [name for name, count in world.counted().items() if count != before.get(name)]
    assert (world.run("x0_generic", frame).verdict == kw.OK) == passed
    return passed, "".join(reasons)


def test_members_get_in_and_others_do_not(world: World, filter: Filter) -> None:
    assert verdict(world, packet(ALICE)) == (True, "FILTER_PASSED")
    assert verdict(world, packet(MALLORY)) == (False, "FILTER_NO_MEMBER")
    filter.set_members({ALICE: Member(denied=True), MALLORY: Member()})
    assert verdict(world, packet(ALICE)) == (False, "FILTER_DENIED")
    assert verdict(world, packet(MALLORY)) == (True, "FILTER_PASSED")
    assert filter.dropped(ALICE) == 2
    filter.set_members({})
    assert verdict(world, packet(MALLORY)) == (False, "FILTER_NO_MEMBER")


def test_mesh_packets_come_from_neighbours(world: World, filter: Filter) -> None:
    assert verdict(world, packet(ALICE, mac=STRANGER)) == (False, "FILTER_STRANGER")
    filter.switch(MESH, neighbours_only=False)
    assert verdict(world, packet(ALICE, mac=STRANGER)) == (True, "FILTER_PASSED")


def test_nobody_outside_sends_to_mesh_addresses(world: World, filter: Filter) -> None:
    assert verdict(world, packet(OUTSIDE)) == (False, "FILTER_FOREIGN")
    assert verdict(world, packet(OUTSIDE, IPv6Address("2001:db8::2"))) == (True, "")


def test_what_is_not_the_mesh_passes(world: World, filter: Filter) -> None:
    for frame in (
        kw.ethernet(kw.ipv6(bytes(32), kw.REMOTE, kw.LOCAL, next=58)),
        kw.MINE + kw.PEER + b"\x08\x06" + bytes(46),
        kw.MINE + kw.PEER + b"\x08\x00" + bytes(46),
    ):
        assert verdict(world, frame) == (True, "")


UDP = kw.udp(bytes(80), port=5000)
LED = routing(17, ME, kw.LOCAL) + UDP
INSIDE = routing(41, kw.LOCAL) + kw.ipv6(UDP, MALLORY, ME)
LATE = 3
"""Headers with options that are looked behind."""


def chain(first: int, last: int, count: int) -> bytes:
    """So many headers with options, then a routing header or a datagram."""
    following = [OPTIONS] * (count - 1) + [last]
    return b"".join(options(one) for one in following) + (LED if last == ROUTING else UDP)


@pytest.mark.parametrize(
    ("next", "rest"),
    [
        (ROUTING, LED),
        (ROUTING, INSIDE),
        (HOP_OPTIONS, options(ROUTING) + LED),
        (OPTIONS, options(ROUTING) + INSIDE),
        (OPTIONS, options(ROUTING, 48) + LED),
        (HOP_OPTIONS, chain(HOP_OPTIONS, ROUTING, LATE)),
        (HOP_OPTIONS, chain(HOP_OPTIONS, ROUTING, LATE + 1)),
        (HOP_OPTIONS, chain(HOP_OPTIONS, 17, LATE + 1)),
        (FRAGMENT, fragment(ROUTING) + LED),
        (FRAGMENT, fragment(OPTIONS) + options(17) + UDP),
        (FRAGMENT, fragment(ROUTING, 9) + LED),
        (FRAGMENT, fragment(OPTIONS) + options(ROUTING) + LED),
        (FRAGMENT, fragment(FRAGMENT) + fragment(ROUTING) + LED),
        (OPTIONS, options(FRAGMENT) + fragment(ROUTING) + LED),
        (OPTIONS, options(ROUTING, 2048)[:64]),
    ],
)
def test_nobody_outside_leads_packets(world: World, filter: Filter, next: int, rest: bytes) -> None:
    assert verdict(world, to_host(next, rest)) == (False, "FILTER_FOREIGN")
    assert verdict(world, to_host(next, rest, kw.PEER)) == (False, "FILTER_FOREIGN")
    filter.switch(MESH, on=False)
    assert verdict(world, to_host(next, rest)) == (True, "")


@pytest.mark.parametrize(
    ("next", "rest"),
    [
        (17, UDP),
        (59, b""),
        (HOP_OPTIONS, options(58) + bytes(24)),
        (OPTIONS, options(17, 48) + UDP),
        (HOP_OPTIONS, chain(HOP_OPTIONS, 17, LATE)),
        (FRAGMENT, fragment(17) + UDP),
        (FRAGMENT, fragment(17, 9) + bytes([ROUTING]) * 64),
    ],
)
def test_other_headers_of_others_pass(world: World, filter: Filter, next: int, rest: bytes) -> None:
    assert verdict(world, to_host(next, rest)) == (True, "")


def test_who_leads_is_a_member_at_its_rate_through_a_neighbour(
    world: World, filter: Filter
) -> None:
    def led(source: IPv6Address, mac: bytes = kw.PEER) -> tuple[bool, str]:
        return verdict(world, kw.ethernet(kw.ipv6(LED, source, ME, next=ROUTING), source=mac))

    assert led(ALICE) == (True, "FILTER_PASSED")
    assert led(ALICE, STRANGER) == (False, "FILTER_STRANGER")
    assert led(MALLORY) == (False, "FILTER_NO_MEMBER")


@pytest.mark.parametrize("tags", [PRIORITY, SERVICE, PRIORITY + PRIORITY, SERVICE + PRIORITY])
def test_what_is_tagged_without_a_vlan_is_looked_at_alike(
    world: World, filter: Filter, tags: bytes
) -> None:
    def tagged(frame: bytes) -> tuple[bool, str]:
        return verdict(world, frame[:12] + tags + frame[12:])

    old = kw.MINE + kw.PEER + b"\x08\x00" + bytes(12) + bytes([192, 0, 2, 7]) + bytes(24)
    filter.set_sources({ip_network("192.0.2.0/24"): True})
    assert tagged(packet(ALICE)) == (True, "FILTER_PASSED")
    assert tagged(packet(MALLORY)) == (False, "FILTER_NO_MEMBER")
    assert tagged(packet(ALICE, mac=STRANGER)) == (False, "FILTER_STRANGER")
    assert tagged(packet(OUTSIDE)) == (False, "FILTER_FOREIGN")
    assert tagged(to_host(ROUTING, LED)) == (False, "FILTER_FOREIGN")
    assert tagged(to_host(17, UDP)) == (True, "")
    assert tagged(old) == (False, "FILTER_SOURCE")
    assert tagged(old.replace(b"\x02\x07", b"\x03\x07")) == (True, "")


def test_too_many_tags_are_dropped_and_vlans_are_others(world: World, filter: Filter) -> None:
    frame = packet(MALLORY)
    for tags, passes in (
        (3 * PRIORITY, False),
        (b"\x81\x00\x00\x05", True),
        (PRIORITY + b"\x81\x00\xe0\x05", True),
        (b"\x88\xa8\x0f\x00" + PRIORITY, True),
    ):
        reason = "" if passes else "FILTER_FOREIGN"
        assert verdict(world, frame[:12] + tags + frame[12:]) == (passes, reason)
    filter.switch(MESH, on=False)
    assert verdict(world, frame[:12] + 3 * PRIORITY + frame[12:]) == (True, "")


def in_pieces(device: str, frame: bytes) -> None:
    """Send a frame of which all but the Ethernet header lies in a page (linux/if_packet.h)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(263, 10, 1)  # SOL_PACKET, PACKET_VERSION: TPACKET_V2
        sock.setsockopt(263, 13, struct.pack("IIII", 4096, 1, 2048, 2))  # PACKET_TX_RING
        sock.bind((device, 0))
        with mmap.mmap(sock.fileno(), 4096) as ring:
            ring[32 : 32 + len(frame)] = frame
            struct.pack_into("III", ring, 0, 1, len(frame), len(frame))  # TP_STATUS_SEND_REQUEST
            sock.send(b"")


def test_what_lies_in_pieces_is_looked_at_in_generic_mode(tmp_path: Path) -> None:
    with Spaces() as spaces:
        here, there = spaces.add(), spaces.add()
        here.wire("to-b", there, "to-a")
        mine, theirs = here.mac("to-b"), there.mac("to-a")
        with here:
            try:
                programs = Programs.open(Libbpf(), tmp_path / "p")
            except KernelRefused as error:
                pytest.skip(f"no programs in this kernel: {error}")
        spaces.callback(programs.remove)
        with here:
            programs.attach(here.index("to-b"), Mode.GENERIC)
        filter = Filter(programs)
        filter.switch(MESH)
        filter.set_sources({ip_network("192.0.2.0/24"): True})
        old = b"\x08\x00" + bytes(12) + bytes([192, 0, 2, 7]) + bytes(104)
        new = packet(MALLORY)[12:] + bytes(80)

        def counted(name: str) -> Callable[[], bool]:
            return lambda: name in {one.name for one, n in programs.counters().items() if n}

        for rest, reason in (
            (old, "FILTER_SOURCE"),
            (new, "FILTER_STRANGER"),
            (PRIORITY + PRIORITY + packet(OUTSIDE)[12:] + bytes(80), "FILTER_FOREIGN"),
        ):
            assert not counted(reason)()
            with there:
                in_pieces("to-a", mine + theirs + rest)
            until(counted(reason))


def test_denied_sources_are_dropped_ipv4_too(world: World, filter: Filter) -> None:
    old = kw.MINE + kw.PEER + b"\x08\x00" + bytes(12) + bytes([192, 0, 2, 7]) + bytes(24)
    near = kw.MINE + kw.PEER + b"\x08\x00" + bytes(12) + bytes([192, 0, 2, 9]) + bytes(24)
    elsewhere = packet(OUTSIDE, IPv6Address("2001:db8::2"))
    filter.set_sources(
        {
            ip_network("192.0.2.0/24"): True,
            ip_network("192.0.2.8/29"): False,
            ip_network("2001:db8::/32"): True,
        }
    )
    assert verdict(world, old) == (False, "FILTER_SOURCE")
    assert verdict(world, near) == (True, "")
    assert verdict(world, elsewhere) == (False, "FILTER_SOURCE")
    filter.set_sources({})
    assert verdict(world, old) == (True, "")
    assert verdict(world, elsewhere) == (True, "")


def test_of_prefixes_that_are_the_same_the_one_that_denies_counts(
    world: World, filter: Filter
) -> None:
    old = kw.MINE + kw.PEER + b"\x08\x00" + bytes(12) + bytes([192, 0, 2, 7]) + bytes(24)
    same = ip_network("192.0.2.0/24"), ip_network("::ffff:192.0.2.0/120")
    for denied, allowed in (same, same[::-1]):
        for order in ({denied: True, allowed: False}, {allowed: False, denied: True}):
            filter.set_sources(order)
            assert verdict(world, old) == (False, "FILTER_SOURCE")
    filter.set_sources({ip_network("::/0"): True})
    assert verdict(world, old) == (False, "FILTER_SOURCE")


def test_a_member_over_its_rate_is_held_to_it(world: World, filter: Filter) -> None:
    filter.set_members({ALICE: Member(rate_pps=1, burst=3), MALLORY: Member()})
    passed = [world.run("x0_ingress", packet(ALICE)).verdict == kw.PASS for _ in range(10)]
    assert passed == [True] * 4 + [False] * 6
    assert world.counted() == {"FILTER_PASSED": 4, "FILTER_RATE": 6}
    assert filter.dropped(ALICE) == 6
    assert verdict(world, packet(MALLORY)) == (True, "FILTER_PASSED")


def test_switched_off_it_lets_everything_through(world: World, filter: Filter) -> None:
    filter.switch(MESH, on=False)
    assert verdict(world, packet(MALLORY)) == (True, "")
    assert verdict(world, packet(OUTSIDE)) == (True, "")


def test_only_differences_are_written(world: World, filter: Filter) -> None:
    members = {IPv6Address(int(ALICE) + n): Member() for n in range(1000)}
    assert filter.set_members(members) == 999
    assert filter.set_members(members) == 0
    assert filter.set_members({ALICE: Member(rate_pps=5)}) == 1000
    again = Filter(world.programs)
    assert again.set_members({}) == 1
    assert verdict(world, packet(ALICE)) == (False, "FILTER_NO_MEMBER")


def test_too_many_are_refused_and_nothing_changes(world: World, filter: Filter) -> None:
    many = {IPv6Address(int(ALICE) + n): Member() for n in range(65_537)}
    with pytest.raises(KernelRefused, match="X0-KRN-012"):
        filter.set_members(many)
    assert verdict(world, packet(IPv6Address(int(ALICE) + 5))) == (False, "FILTER_NO_MEMBER")
