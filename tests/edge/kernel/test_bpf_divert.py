"""Data leaving on a link: where it goes while the link is dead or suspect, and what is counted."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import NONE, Flag

pytestmark = pytest.mark.netns
THERE, ELSEWHERE = IPv6Address("fd00::99"), IPv6Address("fd00::98")
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
    """Link 7 with link 8 as first and link 9 as second alternate for one destination."""
    world.link()
    for number, mac in DETOURS.items():
        world.link(number, peer_mac=mac, local_mac=OWN[number])
    route = layout.ROUTE.pack(prefix=160, link=7, target=THERE.packed)
    world.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(link=(8, 9)))
    return world


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
    assert node.run("x0_leave", data()).data[:6] == DETOURS[9]
    node.state(9, **broken)
    run = node.run("x0_leave", data())
    assert (run.verdict, run.data) == (kw.OK, data())
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}
    assert node.state()["lost"] == 1


def test_a_link_that_is_gone_is_no_alternate(node: World) -> None:
    node.state(**DEAD)
    node.put("x0_links", 8, bytes(layout.LINK.size))
    assert node.run("x0_leave", data()).data[:6] == DETOURS[9]


def test_another_destination_has_no_alternate(node: World) -> None:
    node.state(**DEAD)
    assert node.run("x0_leave", data(ELSEWHERE)).verdict == kw.OK
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}


def test_the_longest_prefix_says_the_alternate(node: World) -> None:
    node.state(**DEAD)
    route = layout.ROUTE.pack(prefix=32 + 48, link=7, target=IPv6Address("fd00::").packed)
    node.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(link=(9, NONE)))
    assert node.run("x0_leave", data(ELSEWHERE)).data[:6] == DETOURS[9]
    assert node.run("x0_leave", data(THERE)).data[:6] == DETOURS[8]


def test_what_is_too_big_for_the_detour_stays(node: World) -> None:
    node.state(**DEAD)
    node.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], mtu=147)
    assert node.run("x0_leave", data()).verdict == kw.OK
    assert node.counted() == {"DIVERT_TOO_BIG": 1}
    node.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], mtu=148)
    assert node.run("x0_leave", data()).verdict == kw.REDIRECT


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
    route = layout.ROUTE.pack(prefix=160, link=7, target=kw.REMOTE.packed)
    node.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(link=(8, 9)))
    assert node.run("x0_leave", asked).verdict == kw.OK
    stranger = bytes.fromhex("020000000077") + data()[6:]
    assert node.run("x0_leave", stranger).data == stranger
    assert node.counted() == {}


def test_data_of_a_suspect_link_goes_both_ways(node: World) -> None:
    node.link(8, peer_mac=DETOURS[8], local_mac=OWN[8], ifindex=kw.LO)
    node.state(**SUSPECT)
    run = node.run("x0_leave", data())
    assert (run.verdict, run.data) == (kw.OK, data())
    state = node.state()
    assert (state["duplicated"], state["sent"], state["diverted"]) == (1, 1, 0)


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
        route = layout.ROUTE.pack(prefix=160, link=number, target=THERE.packed)
        node.programs.maps["x0_alternates"].put(route, layout.ALTERNATE.pack(link=(detour, NONE)))
        node.state(number, **SUSPECT)
    assert node.run("x0_leave", data()).verdict == kw.OK
    assert node.counted() == {"DIVERT_NO_ALTERNATE": 1}
