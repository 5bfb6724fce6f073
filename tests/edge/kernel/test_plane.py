"""The plane: what it is told becomes routes, an earlier table stands until everything is known."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.edge.kernel.ring import DOMAIN, address, link
from tests.edge.kernel.space import Spaces, link_local
from x0tta6bl4.core.routing.alternates import Guard, Way
from x0tta6bl4.edge.kernel.plane import Adjacent, Plane
from x0tta6bl4.edge.kernel.routes import PROTOCOL
from x0tta6bl4.wire.errors import Conflict
from x0tta6bl4.wire.ids import NodeName, TrustDomain

pytestmark = pytest.mark.netns

TABLE = {
    "b": Way("b", "", Guard.NONE, ("c", "b")),
    "c": Way("c", "b", Guard.DOWNSTREAM),
    "d": Way("b", "c", Guard.NODE),
    "z": Way("z"),  # Not on an interface of ours.
}


class World:
    """Host a with cables to b and c."""

    def __init__(self, stack: ExitStack, state: Path) -> None:
        spaces = stack.enter_context(Spaces())
        self.space, self.state = spaces.add(), state
        self.others = {name: spaces.add() for name in "bc"}
        for name, other in self.others.items():
            self.space.wire(f"to-{name}", other, "to-a")
        self.plane = self.new()

    def new(self) -> Plane:
        with self.space:
            return Plane(DOMAIN, NodeName("a"), self.state)

    def adjacent(self) -> list[Adjacent]:
        found = []
        for name, other in self.others.items():
            mac = other.mac("to-a")
            index = self.space.index(f"to-{name}")
            found.append(Adjacent(NodeName(name), index, link_local(mac).packed, mac))
        return found

    def way(self, name: str) -> str:
        """The interface by which packets leave for a node."""
        target = str(IPv6Address(address(name)))
        found = self.space.run("ip", "-6", "route", "get", target, check=False)
        return found.partition(" dev ")[2].partition(" ")[0]

    def look(self) -> list[str]:
        with self.space:
            return [finding.id for finding in self.plane.look()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(stack, tmp_path / "switches")
        with world.space:
            assert not world.plane.start(world.adjacent())
        yield world
        world.plane.close()


def test_what_it_is_told_becomes_routes(world: World) -> None:
    assert world.plane.table(TABLE).routes_put
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    assert world.look() == []
    world.plane.cut("b", True)
    assert [world.way(name) for name in "bcd"] == ["to-c", "to-c", "to-c"]
    world.plane.cut("b", False)
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    assert not world.plane.cut("z", True)
    world.plane.table({"d": None, "b": Way("c")})
    assert world.way("b") == "to-c"
    gone = world.space.run("ip", "-6", "route", "show", str(IPv6Address(address("d"))))
    assert gone == ""


def test_a_neighbour_out_of_reach_stays_so_at_another_address_until_it_is_gone(
    world: World,
) -> None:
    world.plane.table(TABLE)
    at_b, at_c = world.adjacent()
    moved = Adjacent(at_b.node, at_b.index, link_local(b"\2" * 6).packed, at_b.mac)
    world.plane.cut("b", True)
    for now in (moved, at_b):
        with world.space:
            world.plane.neighbours([now, at_c])
        assert [world.way(name) for name in "bcd"] == ["to-c", "to-c", "to-c"]
    with world.space:
        world.plane.neighbours([moved, at_c])
    world.plane.cut("b", False)
    with world.space:
        world.plane.neighbours([at_b, at_c])
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    world.plane.cut("b", True)
    for some in ([at_c], [at_b, at_c]):
        with world.space:
            world.plane.neighbours(some)
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]


def test_the_detector_gets_what_the_routes_have(world: World) -> None:
    e = Way("b", "c", Guard.LINK, ("c", "f", "e"))
    world.plane.table({**TABLE, "e": e, "g": Way("c", "", Guard.NONE, ())})
    by = {one.node: (one.index, one.mac) for one in world.adjacent()}
    b, c, me = by[NodeName("b")], by[NodeName("c")], address("a")
    assert {
        hop: {
            (one.destination.packed, one.ifindex, one.next_hop_mac): (one.segments, one.source)
            for one in alternates
        }
        for hop, alternates in world.plane.alternates().items()
    } == {
        "b": {
            (address("b"), *c): ((link("c", "b"), address("b")), me),
            (address("d"), *c): ((), b""),
            # By its own table c would send this to b, which may be dead.
            (address("e"), *c): ((link("c", "f"), link("f", "e"), address("e")), me),
        },
        "c": {(address("c"), *b): ((), b"")},
    }


def test_an_interface_that_comes_and_goes_is_followed(world: World) -> None:
    world.plane.table(TABLE)
    world.space.run("ip", "link", "set", "to-b", "down")
    assert select.select([world.plane], [], [], 5)[0]
    world.plane.ready()
    assert [world.way(name) for name in "bcd"] == ["to-c", "to-c", "to-c"]
    assert world.look() == ["X0-KRN-131"]
    world.space.run("ip", "link", "set", "to-b", "up")
    world.plane.ready()
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    assert world.look() == []
    assert not world.plane.ready()


def test_what_it_does_itself_is_no_news_and_what_others_take_away_is_put_back(
    world: World,
) -> None:
    world.plane.table(TABLE)
    while select.select([world.plane], [], [], 0)[0]:
        world.plane.ready()  # Of interfaces and addresses, as they came up.
    world.plane.table({"d": None, "b": Way("c")})
    world.plane.cut("b", True)
    world.plane.cut("b", False)
    assert world.plane._routes.tidy() > 0
    world.plane.table(TABLE)
    assert not select.select([world.plane], [], [], 0)[0]
    target = str(IPv6Address(address("d")))
    world.space.run("ip", "-6", "route", "del", target)
    assert world.way("d") == "to-c"  # By the second route.
    assert select.select([world.plane], [], [], 0)[0]
    assert world.plane.ready().routes_put == 1
    assert world.way("d") == "to-b"
    world.space.run("ip", "nexthop", "flush", "proto", str(PROTOCOL))
    assert world.way("d") == ""
    assert world.plane.ready().next_hops_put
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]


def test_a_table_that_stands_stands_until_everything_is_known(world: World) -> None:
    world.plane.table(TABLE)
    world.plane.close()  # As if killed.
    world.plane = world.new()
    with world.space:
        assert world.plane.start(world.adjacent())
    world.plane.table({"b": Way("c")})
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    assert world.look() == []
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]
    world.plane.table({"b": TABLE["b"], "c": TABLE["c"]})
    done = world.plane.settle()
    assert done.routes_put <= 2  # What was never told again goes, the rest is there.
    assert [world.way(name) for name in "bc"] == ["to-b", "to-c"]
    assert world.way("d") == ""


def test_a_second_node_in_the_same_namespace_is_refused(world: World) -> None:
    world.plane.table(TABLE)
    for domain, name in ((DOMAIN, "other"), (TrustDomain("other.org"), "a")):
        with world.space:
            second = Plane(domain, NodeName(name), None)
            with pytest.raises(Conflict, match="X0-KRN-148"):
                second.start(world.adjacent())
        second.close()
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]


def test_another_nodes_address_stops_the_plane_only_where_nodes_have_theirs(world: World) -> None:
    world.plane.table(TABLE)
    there = IPv6Address(address("other"))
    # As made from a router advertisement for the mesh's prefix, by anybody on the cable.
    world.space.run(*f"ip -6 addr add {there}/64 dev to-b noprefixroute".split())
    assert world.look() == []
    with world.space:
        second = Plane(DOMAIN, NodeName("a"), world.state)
        assert second.start(world.adjacent())
        second.close()
    world.space.run(*f"ip -6 addr add {there}/128 dev lo noprefixroute".split())
    world.space.run("ip", "link", "set", "to-b", "down")
    assert world.look() == ["X0-KRN-148", "X0-KRN-131"]
    world.space.run("ip", "link", "set", "to-b", "up")
    world.space.run(*f"ip -6 addr del {there}/128 dev lo".split())
    assert world.look() == []
    assert [world.way(name) for name in "bcd"] == ["to-b", "to-c", "to-b"]


def test_stopping_leaves_nothing(world: World) -> None:
    world.plane.table(TABLE)
    assert world.state.exists()
    with world.space:
        assert world.plane.stop() == []
    left = world.space.run("ip", "nexthop")
    left += world.space.run("ip", "-6", "route", "show", "proto", str(PROTOCOL))
    assert left == ""
    assert not world.state.exists()


def test_a_route_that_the_kernel_refuses_is_a_finding(world: World) -> None:
    world.plane.table(TABLE)
    with world.space:
        one, other = world.adjacent()
        broken = Adjacent(other.node, other.index, b"\xff\2" + bytes(14), other.mac)  # Multicast.
        world.plane.neighbours([one, broken])
    assert "X0-KRN-140" in world.look()
