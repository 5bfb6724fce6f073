"""Data leaving on a link: where it goes while the link is dead or suspect, and what is counted."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address
from typing import Any

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import Flag

pytestmark = pytest.mark.netns
THERE, ELSEWHERE = IPv6Address("fd00::99"), IPv6Address("fd00::98")
MYSELF = IPv6Address("fd00::1")
DETOURS = {8: bytes.fromhex("020000000008"), 9: bytes.fromhex("020000000009")}
OWN = {8: bytes.fromhex("0200000000a8"), 9: bytes.fromhex("0200000000a9")}
DEAD = {"downs": 1}
SUSPECT = {"suspected_ns": 2, "answered_ns": 1}


def data(target: IPv6Address = THERE, payload: bytes = bytes(100)) -> bytes:
    """A packet for the mesh that routes say goes over link 7."""
    packet = kw.ipv6(kw.udp(payload, port=5000), IPv6Address("fd00::1"), target, hops=64)
    return kw.ethernet(packet, target=kw.PEER, source=kw.MINE)


@pytest.fixture
def node(world: World) -> World:
    """Links 7, 8 and 9; 8 is the alternate of 7 for one destination."""
    world.link()
    for number, mac in DETOURS.items():
        world.link(number, peer_mac=mac, local_mac=OWN[number])
    alternate(world, 8)
    return world


def alternate(
    world: World, link: int, *, of: int = 7, to: IPv6Address = THERE, **more: Any
) -> None:
    """Data of a link for a destination goes over another while the first is dead."""
    route = layout.ROUTE.pack(prefix=160, link=of, target=to.packed)
    value = layout.ALTERNATE.pack(link=link, **more)
    world.programs.maps["x0_alternates"].put(route, value)


def test_a_live_link_carries_its_data(node: World) -> None:
    run = node.run("x0_leave", data())
    assert (run.verdict, run.data) == (kw.OK, data())
    assert node.state()["sent"] == 1


def test_data_of_a_dead_link_leaves_by_the_alternate(node: World) -> None:
    node.state(**DEAD)
    run = node.run("x0_leave", data())
    assert run.verdict == kw.REDIRECT
    assert (run.data[:6], run.data[6:12]) == (DETOURS[8], OWN[8])
    assert run.data[12:] == data()[12:]
    state = node.state()
    assert (state["diverted"], state["sent"]) == (1, 0)


def test_what_user_space_declares_dead_is_dead(node: World) -> None:
    node.link(flags=Flag.ACTIVE | Flag.DECLARED_DEAD)
    assert node.run("x0_leave", data()).data[:6] == DETOURS[8]


def test_a_forgiven_link_carries_data_again(node: World) -> None:
    node.link(forgiven=3)
    node.state(downs=3)
    assert node.run("x0_leave", data()).verdict == kw.OK
    node.state(downs=4)
    assert node.run("x0_leave", data()).verdict == kw.REDIRECT


@pytest.mark.parametrize("broken", [DEAD, SUSPECT])
def test_only_a_live_link_is_an_alternate(node: World, broken: dict[str, int]) -> None:
    node.state(**DEAD)
    node.state(8, **broken)
    run = node.run("x0_leave", data())
    assert (run.verdict, run.data) == (kw.OK, data())
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}
    assert node.state()["lost"] == 1


def test_a_link_that_is_gone_is_no_alternate(node: World) -> None:
    node.state(**DEAD)
    node.put("x0_links", 8, bytes(layout.LINK.size))
    assert node.run("x0_leave", data()).verdict == kw.OK
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}


def test_another_destination_has_no_alternate(node: World) -> None:
    node.state(**DEAD)
    assert node.run("x0_leave", data(ELSEWHERE)).verdict == kw.OK
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}


def test_the_longest_prefix_says_the_alternate(node: World) -> None:
    node.state(**DEAD)
    route = layout.ROUTE.pack(prefix=32 + 48, link=7, target=IPv6Address("fd00::").packed)
    node.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(link=9))
    assert node.run("x0_leave", data(ELSEWHERE)).data[:6] == DETOURS[9]
    assert node.run("x0_leave", data(THERE)).data[:6] == DETOURS[8]


def test_what_is_too_big_for_the_detour_stays(node: World) -> None:
    node.state(**DEAD)
    node.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], mtu=147)
    assert node.run("x0_leave", data()).verdict == kw.OK
    assert node.counted() == {"DIVERT_TOO_BIG": 1}
    node.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], mtu=148)
    assert node.run("x0_leave", data()).verdict == kw.REDIRECT


def test_pieces_that_fit_the_detour_leave_by_it(node: World) -> None:
    node.state(**DEAD)
    for size, verdict in ((1440, kw.REDIRECT), (1441, kw.OK)):
        assert node.run("x0_leave", segment(0, 2 * size), context=gso(size)).verdict == verdict


def test_without_the_agent_diversion_ends_after_its_time(node: World) -> None:
    node.state(**DEAD)
    node.lease(age_s=59)
    assert node.run("x0_leave", data()).verdict == kw.REDIRECT
    node.lease(age_s=61)
    assert node.run("x0_leave", data()).verdict == kw.OK


def test_hellos_and_strangers_are_never_diverted(node: World) -> None:
    node.state(**DEAD)
    asked = kw.ethernet(
        kw.ipv6(kw.udp(kw.hello()), kw.LOCAL, kw.REMOTE), target=kw.PEER, source=kw.MINE
    )
    alternate(node, 8, to=kw.REMOTE)
    assert node.run("x0_leave", asked).verdict == kw.OK
    stranger = bytes.fromhex("020000000077") + data()[6:]
    assert node.run("x0_leave", stranger).data == stranger
    assert node.counted() == {}


def test_data_of_a_suspect_link_goes_both_ways(node: World) -> None:
    node.state(**SUSPECT)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("lo", 3))  # ETH_P_ALL
        wire.settimeout(5)
        run = node.run("x0_leave", data())
        assert wire.recv(2048) == data()
    assert (run.verdict, run.data[:6]) == (kw.REDIRECT, DETOURS[8])
    state = node.state()
    assert (state["duplicated"], state["diverted"]) == (1, 0)


SEGMENTS = tuple(IPv6Address(f"fd00::5:{number}").packed for number in range(1, 4))
ROOM = 48 + 16 * len(SEGMENTS)


@pytest.fixture
def led(node: World) -> World:
    """Its alternate is a source route over link 8."""
    lead(node, SEGMENTS)
    return node


def lead(node: World, segments: tuple[bytes, ...]) -> None:
    listed = b"".join(reversed(segments))
    alternate(node, 8, segments=len(segments), source=MYSELF.packed, segment=listed)


def wrapped(frame: bytes, segments: tuple[bytes, ...] = SEGMENTS) -> bytes:
    """What is within the headers of a source route, after a look at these."""
    outer, routing, inner = frame[14:54], frame[54:62], frame[62 + 16 * len(segments) :]
    word, size, next, hops = struct.unpack("!IHBB", outer[:8])
    assert word == struct.unpack("!I", inner[:4])[0] & 0xFFF00000
    assert (size, next, hops) == (len(frame) - 54, 43, inner[7])
    assert outer[8:] == MYSELF.packed + segments[0]
    last = len(segments) - 1
    assert routing == bytes([41, 2 * len(segments), 4, last, last, 0, 0, 0])
    assert frame[62 : -len(inner)] == b"".join(reversed(segments))
    return inner


@pytest.mark.parametrize("count", [1, 3, layout.SEGMENTS_MAX])
def test_a_source_route_goes_around_what_failed(node: World, count: int) -> None:
    segments = tuple(IPv6Address(f"fd00::5:{number}").packed for number in range(count))
    lead(node, segments)
    assert node.run("x0_leave", data()).data == data()
    node.state(**DEAD)
    run = node.run("x0_leave", data())
    assert (run.verdict, run.data[:14]) == (kw.REDIRECT, DETOURS[8] + OWN[8] + b"\x86\xdd")
    assert wrapped(run.data, segments) == data()[14:]
    state = node.state()
    assert (state["diverted"], state["repaired"], state["sent"]) == (1, 1, 0)


def test_data_of_a_suspect_link_also_goes_along_a_source_route(led: World) -> None:
    led.state(**SUSPECT)
    run = led.run("x0_leave", data())
    assert run.verdict == kw.REDIRECT
    assert wrapped(run.data) == data()[14:]
    state = led.state()
    assert (state["duplicated"], state["repaired"], state["diverted"]) == (1, 1, 0)


def test_what_came_along_a_source_route_is_not_diverted_again(led: World) -> None:
    led.state(**DEAD)
    once = led.run("x0_leave", data()).data
    inner = once[54:]
    again = kw.ipv6(inner, MYSELF, THERE, next=43, hops=64)
    frame = kw.ethernet(again, target=kw.PEER, source=kw.MINE)
    for segments in (SEGMENTS, ()):
        lead(led, segments)
        run = led.run("x0_leave", frame)
        assert (run.verdict, run.data) == (kw.OK, frame)
    assert led.counted() == {"DIVERT_NO_ALTERNATE": 2}


def test_headers_around_a_packet_need_room(led: World) -> None:
    led.state(**DEAD)
    for mtu, verdict in ((148 + ROOM - 1, kw.OK), (148 + ROOM, kw.REDIRECT)):
        led.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], mtu=mtu)
        assert led.run("x0_leave", data()).verdict == verdict
    assert led.counted() == {"DIVERT_TOO_BIG": 1}
    assert led.state()["lost"] == 1


def gso(size: int) -> bytes:
    """Context of a packet that is cut into pieces of so many bytes later (struct __sk_buff)."""
    context = bytearray(192)
    struct.pack_into("=I", context, 164, 2)
    struct.pack_into("=I", context, 176, size)
    return bytes(context)


def test_what_the_kernel_puts_no_headers_around_stays(led: World) -> None:
    led.state(**DEAD)
    big = segment(0, payload=2 * 1440)  # For the kernel no TCP: a frame of a test has no type.
    assert led.run("x0_leave", big, context=gso(1440)).data == big
    assert led.counted() == {"DIVERT_REFUSED": 1}
    assert led.run("x0_leave", big, context=gso(1441)).data == big
    assert led.run("x0_leave", data(payload=bytes(2880)), context=gso(1440)).verdict == kw.OK
    assert led.counted() == {"DIVERT_REFUSED": 1, "DIVERT_TOO_BIG": 2}
    assert led.state()["lost"] == 6  # pieces


def segment(sequence: int, payload: int = 100, port: int = 1) -> bytes:
    """A TCP segment over link 7."""
    tcp = struct.pack("!HHIIBBHHH", port, 80, sequence & 0xFFFFFFFF, 0, 0x50, 0x10, 0, 0, 0)
    packet = kw.ipv6(tcp + bytes(payload), IPv6Address("fd00::1"), THERE, next=6, hops=64)
    return kw.ethernet(packet, target=kw.PEER, source=kw.MINE)


def test_retransmissions_are_counted_by_link(node: World) -> None:
    node.link(flags=Flag.ACTIVE | Flag.MEASURE_TCP)
    for sequence in (-150, -50, 50, -50, 150):  # over the end of sequence space; one twice
        node.run("x0_leave", segment(sequence))
    node.run("x0_leave", segment(0, payload=0))
    node.run("x0_leave", segment(-50, port=2))  # another flow
    state = node.state()
    assert (state["tcp"], state["retransmitted"], state["sent"]) == (6, 1, 7)


def test_data_that_comes_is_counted(node: World) -> None:
    packet = kw.ipv6(kw.udp(bytes(10), port=5000), THERE, IPv6Address("fd00::1"))
    for program in ("x0_arrive", "x0_generic"):
        assert node.run(program, kw.ethernet(packet)).verdict == kw.OK
    assert node.state()["received"] == 2
    assert node.state(8)["received"] == 0


def test_suspect_links_are_not_each_others_detour(node: World) -> None:
    for number, detour in ((7, 8), (8, 7)):
        alternate(node, detour, of=number)
        node.state(number, **SUSPECT)
    assert node.run("x0_leave", data()).verdict == kw.OK
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}
