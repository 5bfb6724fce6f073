"""When tables change over: each node at its turn, so that no packet ever goes in circles."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_routing_alternates import Graph, graphs, settled
from x0tta6bl4.core.machine import MS, NEVER, SECOND, Effects, Instant, Tick
from x0tta6bl4.core.routing.alternates import Way
from x0tta6bl4.core.routing.forwarding import TURN, WAIT_MAX, Forwarding, WaysChanged
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.records import NodeBody

T0 = Instant(1_000 * SECOND)


class Node:
    """A machine with the table that it has told so far."""

    def __init__(self, name: str, graph: Graph) -> None:
        self.name = name
        self.machine = Forwarding(name)
        self.ways: dict[str, Way] = {}
        for node in graph.nodes:
            self.hear(T0, node, graph)
        self.run(Instant(T0 + SECOND))

    def hear(self, now: Instant, node: str, graph: Graph) -> None:
        links = tuple(graph.links(node))
        if node == self.name:
            self.take(self.machine.handle(now, AdjacencyWanted(links)))
        else:
            body = NodeBody(links=links, endpoints=(), stub=node in graph.stubs)
            self.take(self.machine.handle(now, MemberChanged(node, body)))

    def take(self, effects: Effects) -> bool:
        for effect in effects:
            assert type(effect) is WaysChanged
            for name, way in effect.ways:
                self.ways.pop(name, None)
                if way is not None:
                    self.ways[name] = way
        return bool(effects)

    def tick(self) -> bool:
        """Wake it at its deadline; whether it said something."""
        now = self.machine.deadline
        assert self.machine.handle(Instant(now - 1), Tick()) == ()
        said = self.take(self.machine.handle(now, Tick()))
        assert self.machine.deadline > now
        return said

    def run(self, end: Instant) -> None:
        while self.machine.deadline <= end:
            self.tick()


def deliver(nodes: dict[str, Node], start: str, target: str, dead: set[str]) -> str:
    """Where a packet ends by the tables as they are; `dead` are the ends of a link that is gone."""
    here, steps = start, 0
    while here != target:
        way = nodes[here].ways.get(target)
        if way is None:
            return here
        if {here, way.hop} == dead:
            detour = way.detour(source_routes=True)
            if not detour:
                return here
            here = detour[-1]
        else:
            here = way.hop
        steps += 1
        assert steps <= 3 * len(nodes), f"packets from {start} to {target} circle"
    return here


def changed(graph: Graph, costs: dict[tuple[str, str], int]) -> Graph:
    """The same nodes with other links; a cost of 0 is none now, and may come back."""
    found = Graph({pair: cost for pair, cost in costs.items() if cost}, graph.stubs)
    found.near |= {node: {} for node in graph.nodes if node not in found.near}
    found.nodes, found.costs = graph.nodes, costs
    return found


def play(nodes: dict[str, Node], heard: Iterable[tuple[int, str, str, Graph]]) -> Iterator[None]:
    """Everybody hears (at, who, of whom, the map by then) and wakes when due.

    Yields:
        After each change of a table.
    """
    told = deque(sorted(heard, key=lambda one: one[0]))
    while True:
        node = min(nodes.values(), key=lambda node: node.machine.deadline)
        if told and told[0][0] <= node.machine.deadline:
            at, name, writer, graph = told.popleft()
            nodes[name].hear(Instant(at), writer, graph)
        elif node.machine.deadline == NEVER:
            return
        elif node.tick():
            yield


@settings(max_examples=120)
@given(graphs(), st.data())
def test_while_tables_change_over_no_packet_circles_or_is_lost(
    graph: Graph, data: st.DataObject
) -> None:
    link = data.draw(st.sampled_from(sorted(graph.costs)))
    worse = data.draw(st.sampled_from(["gone", "dearer"]))
    cost = graph.costs[link] * 4 if worse == "dearer" else 0
    after = changed(graph, {**graph.costs, link: cost})
    back = data.draw(st.booleans())  # The change, or its end.
    first, second = (after, graph) if back else (graph, after)
    nodes = {name: Node(name, first) for name in graph.nodes}
    dead = set(link) if worse == "gone" and not back else set()
    for name, node in nodes.items():
        node.run(Instant(T0 + 2 * SECOND))
        late = data.draw(st.integers(0, 20)) * MS
        for end in link:
            node.hear(Instant(T0 + 3 * SECOND + late), end, second)
        assert name in nodes
    for _ in play(nodes, ()):
        for start in graph.nodes:
            for target in graph.nodes:
                end = deliver(nodes, start, target, dead)
                both = target in first.distances(start) and target in second.distances(start)
                assert end == target or not both, f"{start} to {target} ends at {end}"
    for name, node in nodes.items():
        assert node.ways == settled(second.tell(name))


@st.composite
def later(draw: st.DrawFn, graph: Graph) -> Graph:
    """Any links have changed, or a node has lost or got back all of its."""
    costs = graph.costs
    if draw(st.booleans()):
        node = draw(st.sampled_from(graph.nodes))
        touched = [pair for pair in costs if node in pair]
        new = [draw(st.sampled_from([0, 1, 12]))] * len(touched)
    else:
        touched = draw(st.lists(st.sampled_from(sorted(costs)), min_size=1, unique=True))
        new = [draw(st.sampled_from([0, 1, 3, 12])) for _ in touched]
    return changed(graph, {**costs, **dict(zip(touched, new, strict=True))})


@settings(max_examples=100)
@given(graphs(), st.data())
def test_whatever_changes_and_changes_again_no_packet_circles(
    graph: Graph, data: st.DataObject
) -> None:
    """Everybody hears every record within a turn, in an order of its own."""
    nodes = {name: Node(name, graph) for name in graph.nodes}
    heard: list[tuple[int, str, str, Graph]] = []
    start = T0 + 3 * SECOND
    last = dict.fromkeys(graph.nodes, start)
    for _ in range(data.draw(st.integers(1, 3))):
        graph = data.draw(later(graph))
        for writer in graph.nodes:
            said = max(start, last[writer] + 20 * MS) + data.draw(st.integers(0, 100)) * MS
            last[writer] = said
            for name in graph.nodes:
                at = said + (0 if name == writer else data.draw(st.integers(0, 20)) * MS)
                heard.append((at, name, writer, graph))
        start += data.draw(st.integers(1, 10)) * 20 * MS
    for _ in play(nodes, heard):
        for here in graph.nodes:
            for target in graph.nodes:
                deliver(nodes, here, target, set())


@pytest.mark.parametrize("seed", [66, 237, *range(6)])
def test_while_a_node_of_a_grid_is_missed_by_one_neighbour_after_the_other_none_circles(
    seed: int,
) -> None:
    """Its processes are gone; its kernel goes on with the table of before."""
    random = Random(seed)
    names = [[f"n{row}{column}" for column in range(4)] for row in range(4)]
    pairs = [pair for line in (*names, *zip(*names, strict=True)) for pair in pairwise(line)]
    costs = {pair: random.randint(1, 2) for pair in pairs}
    grid = Graph(costs)
    nodes = {name: Node(name, grid) for name in grid.nodes}
    gone = random.choice(["n11", "n12", "n21", "n22"])
    left = Graph({pair: cost for pair, cost in costs.items() if gone not in pair})
    heard: list[tuple[int, str, str, Graph]] = []
    for writer in grid.near[gone]:
        said = T0 + 3 * SECOND + random.randint(0, 150) * MS
        heard += [(said + random.randint(0, 20) * MS, n, writer, left) for n in left.nodes]
    for _ in play(nodes, heard):
        for here in grid.nodes:
            for target in left.nodes:
                deliver(nodes, here, target, set())
    assert all(nodes[name].ways == settled(left.tell(name)) for name in left.nodes)


def test_changes_without_end_put_a_turn_off_for_no_more_than_a_second() -> None:
    ring = line("a", "b", "c", "d", "e", "f")
    costs = {**ring.costs, ("a", "f"): 1}
    node = Node("a", Graph(costs))
    start = Instant(T0 + 2 * SECOND)
    node.hear(start, "b", Graph({pair: 1 for pair in costs if pair != ("a", "b")}))
    for step in range(1, 30):
        node.run(Instant(start + step * 50 * MS))
        if node.ways["b"].hop == "f":
            break
        node.hear(Instant(start + step * 50 * MS), "d", Graph({**costs, ("c", "d"): 1 + step % 2}))
    assert WAIT_MAX < step * 50 * MS <= WAIT_MAX + 5 * TURN


def line(*names: str) -> Graph:
    return Graph(dict.fromkeys(pairwise(names), 1))


def test_turns_along_a_ring() -> None:
    """a-b goes: each comes when all on its new way have come, d one turn before c, before b."""
    ring = line("a", "b", "c", "d", "e", "f")
    ring = Graph({**ring.costs, ("a", "f"): 1})
    broken = Graph({pair: 1 for pair in ring.costs if pair != ("a", "b")})
    at = {}
    for name in ring.nodes:
        node = Node(name, ring)
        start = Instant(T0 + 2 * SECOND)
        for end in "ab":
            node.hear(start, end, broken)
        while node.machine.deadline < NEVER:
            now, before = node.machine.deadline, dict(node.ways)
            node.tick()
            if any(before[target].hop != way.hop for target, way in node.ways.items()):
                assert (now - start - MS) % TURN == 0
                at[name] = (now - start) // TURN
    assert at == {"a": 4, "b": 4, "c": 3, "d": 2, "f": 3}


def test_a_node_that_restarts_stays_for_its_time() -> None:
    graph = line("a", "b", "c")
    node = Node("a", graph)
    body = NodeBody(links=tuple(graph.links("b")), endpoints=())
    until = Instant(T0 + 10 * SECOND)
    node.take(node.machine.handle(Instant(T0 + 2 * SECOND), MemberChanged("b", body, until)))
    assert node.machine.deadline == until
    assert set(node.ways) == {"b", "c"}
    node.tick()
    node.run(Instant(T0 + 11 * SECOND))
    assert node.ways == {}


def test_a_node_that_is_gone_is_forgotten_and_other_events_are_not_for_us() -> None:
    node = Node("a", line("a", "b", "c"))
    assert node.machine.handle(T0, MemberGone("a")) == ()
    assert node.machine.deadline == NEVER
    node.take(node.machine.handle(Instant(T0 + 2 * SECOND), MemberGone("c")))
    node.run(Instant(T0 + 3 * SECOND))
    assert set(node.ways) == {"b"}
