"""Alternates and repairs, against brute force: nothing circles, and who can be reached is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.core.routing.alternates import Alternates, Guard, Way
from x0tta6bl4.wire.records import Adjacency

INF: Final = 10**9
ZOO: Final = Path(__file__).parents[3] / "shared" / "data" / "topologyzoo" / "graphml"

Link = tuple[str, str]


class Graph:
    """Links with costs, and the plainest way to compute anything over them."""

    def __init__(self, costs: dict[Link, int], stubs: Iterable[str] = ()) -> None:
        self.costs = costs
        self.stubs = frozenset(stubs)
        self.near: dict[str, dict[str, int]] = {}
        for (a, b), cost in costs.items():
            self.near.setdefault(a, {})[b] = cost
            self.near.setdefault(b, {})[a] = cost
        self.nodes = sorted(self.near)
        self._distances: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"Graph({self.costs}, {sorted(self.stubs)})"

    def distances(self, root: str, without: Iterable[object] = ()) -> dict[str, int]:
        """From `root`, by Bellman and Ford, without these nodes and links."""
        if not without and root in self._distances:
            return self._distances[root]
        gone = set(without)
        found = {root: 0}
        changed = True
        while changed:
            changed = False
            for here in [n for n in found if n == root or n not in self.stubs]:
                for other, cost in self.near[here].items():
                    if {other, (here, other), (other, here)} & gone:
                        continue
                    if found[here] + cost < found.get(other, INF):
                        found[other] = found[here] + cost
                        changed = True
        if not gone:
            self._distances[root] = found
        return found

    def hop(self, here: str, target: str) -> str:
        """Where the table of a node sends packets for another; empty: nowhere."""
        found = [
            (cost + self.distances(near)[target], near)
            for near, cost in self.near[here].items()
            if (near == target or near not in self.stubs) and target in self.distances(near)
        ]
        return min(found)[1] if found else ""

    def tell(self, me: str) -> Alternates:
        """A table that was told everything."""
        table = Alternates(me)
        for node in self.nodes:
            table.say(node, self.links(node), stub=node in self.stubs)
        return table

    def links(self, node: str) -> list[Adjacency]:
        return [Adjacency(other, cost, True) for other, cost in self.near.get(node, {}).items()]


def settled(table: Alternates) -> dict[str, Way]:
    table.update()
    while table.unrepaired:
        table.repair()
    return dict(table.ways)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    names = "abcdefgh"[: draw(st.integers(3, 8))]
    pairs = [(a, b) for a in names for b in names if a < b]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=2, unique=True))
    top = draw(st.sampled_from([1, 3, 12]))
    costs = {pair: draw(st.integers(1, top)) for pair in chosen}
    used = sorted({name for pair in chosen for name in pair})
    stubs = draw(st.lists(st.sampled_from(used), max_size=1)) if draw(st.booleans()) else []
    return Graph(costs, stubs)


def walk(graph: Graph, here: str, target: str) -> list[str]:
    """The nodes behind `here` by everybody's table; it must come to an end."""
    passed: list[str] = []
    while here != target:
        here = graph.hop(here, target)
        assert here, "a table has no way"
        passed.append(here)
        assert len(passed) <= len(graph.nodes), "packets circle"
    return passed


@settings(max_examples=150)
@given(graphs())
def test_tables_alternates_and_repairs_against_brute_force(graph: Graph) -> None:
    for me in graph.nodes:
        ways = settled(graph.tell(me))
        home = graph.distances(me)
        assert ways.keys() == home.keys() - {me}
        for target, way in ways.items():
            assert way.hop == graph.hop(me, target)
            check_alternate(graph, me, target, way)
            check_detour(graph, me, target, way)


def check_alternate(graph: Graph, me: str, target: str, way: Way) -> None:
    """It exists where RFC 5286 has one, and guards as much as any does."""
    home, beyond = graph.distances(me), graph.distances(way.hop)
    guards = {}
    for near in graph.near[me]:
        there = graph.distances(near)
        if near == way.hop or target not in there or (near in graph.stubs and near != target):
            continue
        if there[target] < home[near] + home[target]:
            guards[near] = Guard.LINK
            if there[target] < home[target]:
                guards[near] = Guard.DOWNSTREAM
            if target != way.hop and there[target] < there[way.hop] + beyond[target]:
                guards[near] = Guard.NODE
    assert way.guard == max(guards.values(), default=Guard.NONE)
    assert way.alternate == "" if not guards else guards[way.alternate] == way.guard


def check_detour(graph: Graph, me: str, target: str, way: Way) -> None:
    """After the link failed it leads on while all others forward by the old table."""
    detour = way.detour(source_routes=True)
    link = (me, way.hop)
    assert bool(detour) == (target in graph.distances(me, [link])), "coverage"
    assert way.detour(source_routes=False) == ((way.alternate,) if way.alternate else ())
    for nodes in {detour, way.detour(source_routes=False)} - {()}:
        passed = [me, *nodes, *walk(graph, nodes[-1], target)]
        steps = list(pairwise(passed))
        assert all(b in graph.near[a] for a, b in steps)
        assert link not in steps
        assert link[::-1] not in steps
        guarded = len(nodes) > 1 or way.guard == Guard.NODE
        if guarded and target != way.hop and target in graph.distances(me, [way.hop]):
            assert way.hop not in passed


@settings(max_examples=100)
@given(graphs(), st.data())
def test_nothing_circles_when_a_node_has_died(graph: Graph, data: st.DataObject) -> None:
    """All its neighbours have noticed, nobody has a new table."""
    dead = data.draw(st.sampled_from(graph.nodes))
    tables = {node: settled(graph.tell(node)) for node in graph.nodes}
    for start in graph.nodes:
        for target in tables[start]:
            here, steps = start, 0
            while here not in (target, dead):
                way = tables[here][target]
                nodes = (way.hop,) if way.hop != dead else way.detour(source_routes=True)
                if not nodes:
                    break
                here = dead if dead in nodes else nodes[-1]
                steps += 1
                assert steps <= 2 * len(graph.nodes), "packets circle"
            if here == dead and start != dead != target:
                assert target not in graph.distances(start, [dead])


@settings(max_examples=80)
@given(st.lists(graphs(), min_size=2, max_size=5))
def test_what_is_mended_is_as_if_computed_anew(graphs: list[Graph]) -> None:
    table = Alternates("a")
    kept: dict[str, Way] = {}
    said: set[str] = set()
    for graph in graphs:
        for node in sorted(said.union(graph.nodes)):
            if node in graph.near or node == "a":
                table.say(node, graph.links(node), stub=node in graph.stubs)
            else:
                table.say(node, None)
        said = set(graph.nodes)
        changes = [table.update()]
        while table.unrepaired:
            changes.append(table.repair())
        for change in changes:
            for name, way in change.items():
                assert kept.get(name) != way
                kept = {k: v for k, v in kept.items() if k != name}
                if way is not None:
                    kept[name] = way
        assert kept == table.ways
        anew = graph.tell("a")
        assert kept == settled(anew)
        assert table.hops("abcdefgh") == anew.hops("abcdefgh")
        assert table.update() == {}


def test_a_ring_has_no_alternate_across_but_a_repair() -> None:
    ring = Graph({("a", "b"): 1, ("b", "c"): 1, ("c", "d"): 1, ("a", "d"): 1})
    ways = settled(ring.tell("a"))
    assert ways["b"] == Way("b", "", Guard.NONE, ("d", "c", "b"))
    assert ways["c"] == Way("b", "d", Guard.NODE)
    assert ways["d"] == Way("d", "", Guard.NONE, ("b", "c", "d"))


def test_a_repair_to_what_hangs_behind_the_neighbour_ends_at_it() -> None:
    ring = {("a", "b"): 1, ("b", "c"): 1, ("c", "d"): 1, ("a", "d"): 1}
    ways = settled(Graph({**ring, ("b", "x"): 1, ("x", "y"): 1}).tell("a"))
    assert ways["y"] == Way("b", "", Guard.NONE, ("d", "c", "b"))


def test_a_link_that_only_the_failed_one_makes_good_is_taken_by_name() -> None:
    """c's own shortest way to d leads over a and b: it has to be told to use its link."""
    graph = Graph({("a", "b"): 1, ("a", "c"): 1, ("b", "d"): 1, ("c", "d"): 10})
    assert graph.hop("c", "d") == "a"
    assert settled(graph.tell("a"))["d"] == Way("b", "", Guard.NONE, ("c", "d"))
    drained = Graph(graph.costs, "a")
    assert drained.hop("c", "d") == "d"
    assert settled(drained.tell("a"))["d"] == Way("b", "", Guard.NONE, ("c",))


def test_a_repair_ends_where_tables_lead_on() -> None:
    """From d on tables know nothing of b: the chain behind it is not in the list."""
    ring = {("a", "b"): 1, ("b", "e"): 1, ("a", "c"): 1, ("c", "d"): 3, ("d", "e"): 1}
    chain = {("e", "f"): 1, ("f", "g"): 1}
    ways = settled(Graph(ring | chain).tell("a"))
    assert ways["g"] == Way("b", "", Guard.NONE, ("c", "d"))
    assert ways["b"] == Way("b", "", Guard.NONE, ("c", "d", "e", "b"))


def test_a_drained_node_is_reached_but_not_passed() -> None:
    square = {("a", "b"): 1, ("b", "d"): 1, ("a", "c"): 5, ("c", "d"): 5}
    table = Graph(square).tell("a")
    assert settled(table)["d"].hop == "b"
    table.say("b", Graph(square).links("b"), stub=True)
    ways = settled(table)
    assert ways["d"] == Way("c")
    assert ways["b"] == Way("b", "", Guard.NONE, ("c", "d", "b"))


def test_who_is_out_of_reach_has_no_hops_though_it_was_forgotten_and_is_named_again() -> None:
    pair = Graph({("a", "b"): 1})
    table = pair.tell("a")
    settled(table)
    table.say("a", [])
    table.say("b", None)
    settled(table)
    assert table.hops("b") == {}
    table.say("a", pair.links("a"))  # b has the number that it had, and says nothing.
    settled(table)
    assert table.hops("b") == {}


def test_repair_waits_for_the_update() -> None:
    graph = Graph({("a", "b"): 1, ("b", "c"): 1, ("c", "d"): 1, ("a", "d"): 1})
    table = graph.tell("a")
    assert not table.unrepaired
    assert table.repair() == {}
    assert set(table.update()) == {"b", "c", "d"}
    assert table.unrepaired
    table.say("c", None)
    assert table.repair() == {}
    assert table.update()["c"] is None


def big(nodes: int) -> Graph:
    random = Random("alternates/big")
    names = [f"n{at}" for at in range(nodes)]
    costs = {}
    for at, name in enumerate(names):
        for other in random.sample(names[: max(at, 1)], min(at, 3)):
            costs[other, name] = random.randint(8, 200)
    return Graph(costs)


def test_a_thousand_nodes_within_the_budget() -> None:
    """After one link change: all trees, next hops, alternates. 10 ms is for kernel routes too."""
    graph = big(1000)
    table = graph.tell("n500")
    settled(table)
    spent = []
    for near, cost in graph.near["n500"].items():
        for worse in (cost * 4, cost):
            links = graph.near["n500"] | {near: worse}
            table.say("n500", [Adjacency(n, c, True) for n, c in links.items()])
            start = time.process_time()
            assert table.update()
            spent.append(time.process_time() - start)
            settled(table)
    assert sorted(spent)[len(spent) // 2] < 0.05  # Some 4 ms; machines are busy.


def topology(path: Path) -> Graph:
    pairs = re.findall(r'<edge source="(\w+)" target="(\w+)"', path.read_text(encoding="utf-8"))
    return Graph({(min(a, b), max(a, b)): 1 for a, b in pairs if a != b})


def covered(graph: Graph) -> tuple[int, int, int]:
    """(link, destination) pairs that can be repaired; by alternates; by anything."""
    can = alternates = any_ = 0
    for me in graph.nodes:
        ways = settled(graph.tell(me))
        for hop in graph.near[me]:
            left = graph.distances(me, [(me, hop)])
            for target, way in ways.items():
                if way.hop == hop and target in left:
                    can += 1
                    alternates += way.guard > Guard.NONE
                    any_ += bool(way.detour(source_routes=True))
    return can, alternates, any_


@pytest.mark.skipif(not ZOO.is_dir(), reason="needs the Topology Zoo in ../shared/data")
@pytest.mark.parametrize("name", ["Abilene", "Geant2012", "Nsfnet", "Bics"])
def test_real_topologies_are_covered(name: str) -> None:
    can, alternates, any_ = covered(topology(ZOO / f"{name}.graphml"))
    print(f"{name}: {can} pairs, alternates {alternates / can:.1%}, with repairs {any_ / can:.1%}")
    assert can == any_
    assert alternates < can


@pytest.mark.night
@pytest.mark.skipif(not ZOO.is_dir(), reason="needs the Topology Zoo in ../shared/data")
def test_all_real_topologies_are_covered() -> None:
    total = [0, 0, 0]
    for path in sorted(ZOO.glob("*.graphml")):
        graph = topology(path)
        if len(graph.nodes) <= 120:
            total = [a + b for a, b in zip(total, covered(graph), strict=True)]
    can, alternates, any_ = total
    print(f"{can} pairs: alternates {alternates / can:.1%}, with repairs {any_ / can:.2%}")
    assert any_ / can > 0.99  # The rest would be lists of more than 16 nodes, around large rings.
