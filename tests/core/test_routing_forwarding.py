"""When tables change over: each node at its turn, so that no packet ever goes in circles."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_routing_alternates import Graph, graphs, settled
from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    SECOND,
    Effects,
    Event,
    Instant,
    Received,
    Send,
    Tick,
)
from x0tta6bl4.core.routing.alternates import Way
from x0tta6bl4.core.routing.forwarding import ALL, KEEP, TURN, WAIT_MAX, Forwarding, WaysChanged
from x0tta6bl4.core.routing.map import LINKS_MAX
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.messages import Completion
from x0tta6bl4.wire.records import Adjacency, NodeBody

T0 = Instant(1_000 * SECOND)


class Node:
    """A machine with the table that it has told so far, and what it tells its neighbours."""

    def __init__(self, name: str, graph: Graph, turn: int = TURN) -> None:
        self.name = name
        self.machine = Forwarding(name, turn)
        self.ways: dict[str, Way] = {}
        self.sent: list[Send] = []
        for node in graph.nodes:
            self.hear(T0, node, graph)
        self.run(Instant(T0 + SECOND))
        assert not self.sent
        self.machine.in_force = True

    def hear(self, now: Instant, node: str, graph: Graph) -> None:
        links = tuple(graph.links(node))
        if node == self.name:
            self.take(self.machine.handle(now, AdjacencyWanted(links)))
        else:
            body = NodeBody(links=links, endpoints=(), stub=node in graph.stubs)
            self.take(self.machine.handle(now, MemberChanged(node, body)))

    def take(self, effects: Effects) -> bool:
        changed = False
        for effect in effects:
            if type(effect) is Send:
                self.sent.append(effect)
                continue
            assert type(effect) is WaysChanged
            changed = True
            for name, way in effect.ways:
                self.ways.pop(name, None)
                if way is not None:
                    self.ways[name] = way
        return changed

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


def changed(
    graph: Graph, costs: dict[tuple[str, str], int], stubs: Iterable[str] | None = None
) -> Graph:
    """The same nodes with other links; a cost of 0 is none now, and may come back."""
    kept = graph.stubs if stubs is None else stubs
    found = Graph({pair: cost for pair, cost in costs.items() if cost}, kept)
    found.near |= {node: {} for node in graph.nodes if node not in found.near}
    found.nodes, found.costs = graph.nodes, costs
    return found


Heard = tuple[int, str, str, Graph]
"""At what time who hears of whom, and the map by then."""


def play(
    nodes: dict[str, Node], heard: Iterable[Heard], late: Callable[[], int] | None = None
) -> Iterator[int]:
    """Everybody hears that and wakes when due.

    Args:
        nodes: by name.
        heard: in any order.
        late: how long what is told is under way, drawn for each pair in turn; None: it is lost.
    Yields:
        After each change of a table: when that was.
    """
    number = count()
    told: list[tuple[int, int, str, str, Graph | Completion]] = []
    for at, name, writer, graph in heard:
        heapq.heappush(told, (at, next(number), name, writer, graph))
    arrived: dict[tuple[str, str], int] = {}
    while True:
        node = min(nodes.values(), key=lambda node: node.machine.deadline)
        now: int = node.machine.deadline
        if told and told[0][0] <= now:
            now, _, name, writer, what = heapq.heappop(told)
            node = nodes[name]
            if type(what) is Graph:
                node.hear(Instant(now), writer, what)
                changed = False
            else:
                event: Event = Received(writer, what)
                changed = node.take(node.machine.handle(Instant(now), event))
        elif now == NEVER:
            return
        else:
            changed = node.tick()
        for send in node.sent:
            if late is not None and send.dst in nodes:
                pair = node.name, send.dst
                arrived[pair] = at = max(arrived.get(pair, 0), now + late())
                heapq.heappush(told, (at, next(number), send.dst, node.name, send.message))
        node.sent.clear()
        if changed:
            yield now


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
    """Any links have changed, or a node has lost or got back all of its, or is (no) stub now."""
    costs = graph.costs
    kind = draw(st.integers(0, 2))
    if kind == 2:
        return changed(graph, costs, graph.stubs ^ {draw(st.sampled_from(graph.nodes))})
    if kind:
        node = draw(st.sampled_from(graph.nodes))
        touched = [pair for pair in costs if node in pair]
        new = [draw(st.sampled_from([0, 1, 12]))] * len(touched)
    else:
        touched = draw(st.lists(st.sampled_from(sorted(costs)), min_size=1, unique=True))
        new = [draw(st.sampled_from([0, 1, 3, 12])) for _ in touched]
    return changed(graph, {**costs, **dict(zip(touched, new, strict=True))})


def changes(data: st.DataObject, graph: Graph, most: int) -> tuple[Graph, list[Heard]]:
    """The map changes up to three times; everybody hears each record up to `most` us after it."""
    heard: list[Heard] = []
    start = T0 + 3 * SECOND
    last = {pair: start for name in graph.nodes for pair in ((name, w) for w in graph.nodes)}
    for _ in range(data.draw(st.integers(1, 3))):
        graph = data.draw(later(graph))
        for writer in graph.nodes:
            said = start + data.draw(st.integers(0, 100)) * MS
            for name in graph.nodes:
                at = said + (0 if name == writer else data.draw(st.integers(0, 20)) * most // 20)
                last[name, writer] = at = max(last[name, writer], at)
                heard.append((at, name, writer, graph))
        start += data.draw(st.integers(1, 10)) * most
    return graph, heard


@settings(max_examples=100)
@given(graphs(), st.data())
def test_whatever_changes_and_changes_again_no_packet_circles(
    graph: Graph, data: st.DataObject
) -> None:
    """Everybody hears every record within a turn, and nothing is told."""
    nodes = {name: Node(name, graph) for name in graph.nodes}
    for _ in play(nodes, changes(data, graph, 20 * MS)[1]):
        for here in graph.nodes:
            for target in graph.nodes:
                deliver(nodes, here, target, set())


@settings(max_examples=100)
@given(graphs(), st.data())
def test_however_late_records_are_no_packet_circles_while_everybody_tells_how_far_it_is(
    graph: Graph, data: st.DataObject
) -> None:
    nodes = {name: Node(name, graph, turn=10_000 * SECOND) for name in graph.nodes}
    graph, heard = changes(data, graph, 20 * SECOND)
    random = Random(data.draw(st.integers(0, 2**32)))
    for _ in play(nodes, heard, lambda: random.randrange(2 * SECOND)):
        for here in graph.nodes:
            for target in graph.nodes:
                deliver(nodes, here, target, set())
    for name, node in nodes.items():
        if name not in graph.stubs:  # Which does not know it, and goes by time alone.
            assert node.ways == settled(graph.tell(name))


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


def test_turns_along_a_ring_take_no_longer_than_everybody_needs() -> None:
    names = "abcdef"
    ring = Graph({**line(*names).costs, ("a", "f"): 1})
    broken = Graph({pair: 1 for pair in ring.costs if pair != ("a", "b")})
    nodes = {name: Node(name, ring) for name in names}
    start = T0 + 2 * SECOND
    heard = [(start, name, end, broken) for name in names for end in "ab"]
    times = list(play(nodes, heard, lambda: MS))
    assert all(node.ways == settled(broken.tell(name)) for name, node in nodes.items())
    assert max(times) < start + 20 * MS


def test_it_is_told_once_how_far_a_node_is_and_only_when_packets_go_by_its_table() -> None:
    ring = Graph({**line("a", "b", "c", "d", "e", "f").costs, ("a", "f"): 1})
    node = Node("a", ring)
    start = Instant(T0 + 2 * SECOND)
    told = []
    node.hear(start, "b", Graph({pair: 1 for pair in ring.costs if pair != ("a", "b")}))
    while node.machine.deadline < NEVER:
        effects = node.machine.handle(node.machine.deadline, Tick())
        kinds = [type(effect) for effect in effects]
        assert WaysChanged not in kinds[1:]  # It is so before it is told.
        told += [(e.dst, e.message.turns) for e in effects if type(e) is Send]
    assert told == [("f", 2), ("f", 3), ("f", 4), ("f", ALL)]
    node.machine.in_force = False
    node.hear(start, "b", ring)
    node.run(Instant(start + MS))
    assert node.machine.idle
    assert not node.sent


def test_of_those_who_tell_only_so_many_are_kept() -> None:
    """Neighbours first."""
    node = Node("a", line("a", "b", "c"))
    message = Completion(1, 1)
    for number in range(LINKS_MAX):
        node.machine.handle(T0, Received(f"x{number}", message))
    assert len(node.machine._heard) == LINKS_MAX
    node.machine.handle(T0, Received("b", message))
    assert node.machine._heard == {"b": message}


def test_a_node_that_restarts_stays_for_its_time() -> None:
    graph = line("a", "b", "c")
    node = Node("a", graph)
    body = NodeBody(links=tuple(graph.links("b")), endpoints=())
    until = Instant(T0 + 10 * SECOND)
    node.take(node.machine.handle(Instant(T0 + 2 * SECOND), MemberChanged("b", body, until)))
    assert node.machine.deadline == until
    assert set(node.ways) == {"b", "c"}
    node.tick()
    node.run(Instant(T0 + 10 * SECOND + MS))
    assert set(node.ways) == {"c"}
    node.run(Instant(T0 + 10 * SECOND + MS + KEEP))
    assert node.ways == {}


def test_a_member_without_a_path_is_sent_packets_for_a_while() -> None:
    """Its neighbours are told of links in an order of their own."""
    graph = line("a", "b", "c")
    node = Node("a", graph)
    was, now = node.ways["c"], Instant(T0 + 2 * SECOND)

    def say(at: int, **links: tuple[Adjacency, ...]) -> None:
        for name, near in links.items():
            body = NodeBody(links=near, endpoints=())
            node.take(node.machine.handle(Instant(now + at), MemberChanged(name, body, NEVER)))

    say(0, c=())
    node.run(Instant(now + KEEP - 1))
    assert node.ways["c"] == Way(was.hop, kept=True), "those who guard each other make circles"
    assert node.sent[-1].message.turns == ALL, "nobody waits for that"
    say(KEEP - 1, c=tuple(graph.links("c")))
    node.run(Instant(now + KEEP - 1 + TURN))
    assert node.ways["c"] == Way(was.hop, kept=True), "it has its turn as any other way"
    node.run(Instant(now + 3 * KEEP))
    assert node.ways["c"] == was
    say(3 * KEEP, c=())
    node.run(Instant(now + 4 * KEEP + 10 * MS))
    assert "c" not in node.ways


def test_the_next_hop_that_is_kept_is_the_one_before_it_all_began() -> None:
    """Those of the maps in between, each node's another, would make circles."""
    body = NodeBody(links=(), endpoints=())
    for pause, kept in ((SECOND, "b"), (KEEP + SECOND, "f")):
        costs = {**line("a", "b", "c", "d", "e", "f").costs, ("a", "f"): 1}
        node = Node("a", Graph(costs))
        assert node.ways["c"].hop == "b"
        del costs["b", "c"]
        for name in "bc":
            node.hear(Instant(T0 + KEEP), name, Graph(costs))
        at = Instant(T0 + KEEP + pause)
        node.run(at)
        assert node.ways["c"].hop == "f"
        node.take(node.machine.handle(at, MemberChanged("d", body)))
        node.run(Instant(at + SECOND))
        assert node.ways["c"] == Way(kept, kept=True)


def test_a_way_that_is_kept_goes_at_once_with_its_member() -> None:
    node = Node("a", line("a", "b", "c"))
    now = Instant(T0 + 2 * SECOND)
    body = NodeBody(links=(), endpoints=())
    node.take(node.machine.handle(now, MemberChanged("b", body)))
    node.run(Instant(now + SECOND))
    assert node.ways["c"].kept
    node.take(node.machine.handle(Instant(now + SECOND), MemberGone("c")))
    node.run(Instant(now + SECOND + 10 * MS))
    assert set(node.ways) == {"b"}


def test_a_node_that_is_gone_is_forgotten_and_other_events_are_not_for_us() -> None:
    node = Node("a", line("a", "b", "c"))
    (told,) = node.machine.handle(T0, MemberGone("a"))
    assert type(told) is Send
    assert node.machine.handle(T0, MemberGone("a")) == ()
    assert node.machine.deadline == NEVER
    node.take(node.machine.handle(Instant(T0 + 2 * SECOND), MemberGone("c")))
    node.run(Instant(T0 + 3 * SECOND))
    assert set(node.ways) == {"b"}
