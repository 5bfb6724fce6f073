"""The membership filter: who gets in, who is counted out, and why."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_network

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.kernel_world import World
from x0tta6bl4.edge.kernel.filter import Filter, Member
from x0tta6bl4.edge.kernel.libbpf import KernelRefused

pytestmark = pytest.mark.netns
MESH = IPv6Network("fd12:3456:789a::/48")
ME, ALICE, MALLORY = (IPv6Address(f"fd12:3456:789a::{n}") for n in (1, 2, 3))
OUTSIDE = IPv6Address("2001:db8::1")


def packet(source: IPv6Address, target: IPv6Address = ME, mac: bytes = kw.PEER) -> bytes:
    """From a source, by way of a neighbour."""
    return kw.ethernet(kw.ipv6(kw.udp(bytes(20), port=5000), source, target), source=mac)


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
    stranger = bytes.fromhex("020000000099")
    assert verdict(world, packet(ALICE, mac=stranger)) == (False, "FILTER_STRANGER")
    filter.switch(MESH, neighbours_only=False)
    assert verdict(world, packet(ALICE, mac=stranger)) == (True, "FILTER_PASSED")


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
