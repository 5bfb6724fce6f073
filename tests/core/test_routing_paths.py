"""Laws of the map, the tree and the paths, each against a plain and slow way to say the same."""

from __future__ import annotations

import heapq
import itertools
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.core.routing import map as map_module
from x0tta6bl4.core.routing import paths as paths_module
from x0tta6bl4.core.routing.map import Map, two_way
from x0tta6bl4.core.routing.paths import INFINITE, Tree, links_of, paths, shares
from x0tta6bl4.wire.records import Adjacency

Costs = dict[tuple[int, int], int]


def name(number: int) -> str:
    return f"n{number:04}"


def mapped(size: int, costs: Costs, order: list[int] | None = None) -> Map:
    """A map in which all nodes report their links; `order` of hearing them must not matter."""
    map = Map(name(0))
    for node in order or range(size):
        map.say(name(node), reports(node, costs))
    return map


def reports(node: int, costs: Costs) -> list[Adjacency]:
    found = []
    for (a, b), cost in costs.items():
        if node in (a, b):
            found.append(Adjacency(name(a if node == b else b), cost, True))
    return found


def random_costs(random: Random, size: int, links: int) -> Costs:
    costs: Costs = {}
    for node in range(1, size):
        costs[(random.randrange(node), node)] = random.randrange(1, 9)
    for _ in range(links):
        a, b = sorted(random.sample(range(size), 2))
        costs[(a, b)] = random.randrange(1, 9)
    return costs


def named(map: Map, found: tuple[tuple[int, ...], ...]) -> list[tuple[str, ...]]:
    return [tuple(map.names[node] for node in path) for path in found]


@given(st.integers(0, 2**32))
def test_mending_gives_the_same_distances_as_computing_anew(seed: int) -> None:
    random = Random(seed)
    size = random.randrange(2, 14)
    costs = random_costs(random, size, random.randrange(12))
    map = mapped(size, costs)
    tree, aside = Tree(map), Tree(map, 1, around=0)
    tree.build()
    aside.build()
    for _ in range(12):
        changes = []
        for _ in range(random.randrange(1, 4)):
            node = random.randrange(size)
            for pair in [pair for pair in costs if node in pair]:
                luck = random.random()
                if luck < 0.3:
                    del costs[pair]
                elif luck < 0.6:
                    costs[pair] = random.randrange(1, 9)
            if size > 2 and random.random() < 0.5:
                a, b = sorted(random.sample(range(size), 2))
                costs[(a, b)] = random.randrange(1, 9)
                node = a
                changes += map.say(name(b), reports(b, costs))
            gone = node and random.random() < 0.1
            changes += map.say(name(node), None if gone else reports(node, costs))
        tree.mend(changes)
        aside.mend(changes)
        fresh, drained = Tree(map), Tree(map, 1)
        fresh.build()
        map.stub[0] = True
        drained.build()
        map.stub[0] = False
        assert tree.distance == fresh.distance
        assert aside.distance == drained.distance


@given(st.integers(0, 2**32))
def test_paths_do_not_depend_on_the_order_in_which_the_map_was_learnt(seed: int) -> None:
    random = Random(seed)
    size = random.randrange(3, 12)
    costs = random_costs(random, size, random.randrange(14))
    order = list(range(size))
    random.shuffle(order)
    found = []
    for one in (mapped(size, costs), mapped(size, costs, order)):
        tree = Tree(one)
        tree.build()
        target = one.index[name(size - 1)]
        found.append(named(one, paths(one, tree, target)))
    assert found[0] == found[1]


def all_simple(map: Map, target: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []

    def go(path: tuple[int, ...]) -> None:
        if path[-1] == target:
            found.append(path)
        elif path[-1] == 0 or not map.stub[path[-1]]:
            for other in map.links[path[-1]]:
                if other not in path:
                    go((*path, other))

    go((0,))
    return found


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_the_first_is_the_shortest_and_the_second_is_disjoint_if_any_pair_is(seed: int) -> None:
    random = Random(seed)
    size = random.randrange(2, 8)
    map = mapped(size, random_costs(random, size, random.randrange(9)))
    if random.random() < 0.3:
        map.stub[random.randrange(1, size)] = True
    tree = Tree(map)
    tree.build()
    target = map.index[name(size - 1)]
    found = paths(map, tree, target)
    simple = all_simple(map, target)
    assert bool(found) == bool(simple)
    if not found:
        return
    assert len(set(found)) == len(found) <= 3
    for path in found:
        assert path in simple
    assert min(map.cost(path) for path in found) == min(map.cost(path) for path in simple)
    pairs = list(itertools.combinations(simple, 2))
    by_node = [pair for pair in pairs if not shares(pair[0], [pair[1]])]
    by_link = [pair for pair in pairs if not {*links_of(pair[0])} & {*links_of(pair[1])}]
    if by_node:
        assert not shares(found[0], [found[1]])
    elif by_link:
        assert not {*links_of(found[0])} & {*links_of(found[1])}
    elif pairs:
        assert len(found) > 1
    if by_node and tree.path(target) not in found[:2]:
        # The trap: then the pair is the cheapest there is.
        total = sum(map.cost(path) for path in found[:2])
        assert total == min(map.cost(a) + map.cost(b) for a, b in by_node)


@pytest.mark.parametrize("near", [1, 3])
def test_what_must_be_shared_may_be_found_out_early_late_or_never(
    near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(f"near/{near}")
    for _ in range(60):
        size = random.randrange(4, 40)
        map = mapped(size, random_costs(random, size, random.randrange(size // 2)))
        map.stub[random.randrange(1, size)] = random.random() < 0.3
        tree = Tree(map)
        tree.build()
        found = []
        for looked in (near, 10_000):
            monkeypatch.setattr(paths_module, "_NEAR", looked)
            found.append([paths(map, tree, target) for target in range(size)])
        assert found[0] == found[1]


def test_a_node_on_one_link_does_not_search_the_whole_map_for_a_second_path() -> None:
    """Every path shares its link, which is found out at once (1.5 ms or more without that)."""
    random = Random(3)
    costs = {(a + 1, b + 1): c for (a, b), c in random_costs(random, 999, 1200).items()}
    map = mapped(1000, costs | {(0, 1): 1})
    looked = []

    class Counting(list[dict[int, int]]):
        def __getitem__(self, node: int) -> dict[int, int]:  # type: ignore[override]
            looked.append(node)
            return super().__getitem__(node)

    tree = Tree(map)
    tree.build()
    near = sorted(range(1000), key=tree.distance.__getitem__)[5:15]
    map.links = Counting(map.links)
    for target in near:
        paths(map, tree, target)
    assert len(looked) < 10 * 500


def test_the_trap_in_which_the_shortest_path_blocks_every_second_one() -> None:
    # 0-1-2-5 is shortest; the disjoint pair is 0-1-4-5 and 0-3-2-5.
    costs = {(0, 1): 1, (1, 2): 1, (2, 5): 1, (0, 3): 2, (2, 3): 2, (1, 4): 2, (4, 5): 2}
    map = mapped(6, costs)
    tree = Tree(map)
    tree.build()
    found = named(map, paths(map, tree, map.index[name(5)]))
    assert found == [
        ("n0000", "n0001", "n0004", "n0005"),
        ("n0000", "n0003", "n0002", "n0005"),
        ("n0000", "n0001", "n0002", "n0005"),
    ]


def test_only_what_leads_nowhere_else_shares_a_link() -> None:
    # A bridge 2-3 in the middle, two ways on each side of it.
    costs = {(0, 1): 1, (1, 2): 1, (0, 2): 3, (2, 3): 1, (3, 4): 1, (4, 5): 1, (3, 5): 3}
    map = mapped(6, costs)
    tree = Tree(map)
    tree.build()
    first, second, *_ = paths(map, tree, map.index[name(5)])
    both = {*links_of(first)} & {*links_of(second)}
    assert [(map.names[a], map.names[b]) for a, b in both] in (
        [("n0002", "n0003")],
        [("n0003", "n0002")],
    )


def test_a_stub_carries_nothing_for_others_and_can_be_reached() -> None:
    map = mapped(4, {(0, 1): 1, (1, 2): 1, (0, 3): 5, (2, 3): 5})
    map.stub[map.index[name(1)]] = True
    tree = Tree(map)
    tree.build()
    assert named(map, paths(map, tree, map.index[name(2)])) == [("n0000", "n0003", "n0002")]
    assert named(map, paths(map, tree, map.index[name(1)])) == [
        ("n0000", "n0001"),
        ("n0000", "n0003", "n0002", "n0001"),
    ]


def test_a_link_counts_only_by_the_word_of_both_ends_at_the_higher_cost() -> None:
    map = Map("a")
    assert map.say("a", [Adjacency("b", 4, True)]) == []
    assert [change.new for change in map.say("b", [Adjacency("a", 9, False)])] == [9]
    assert [change.new for change in map.say("b", [])] == [0]
    assert map.links == [{}, {}]
    map.say("b", [Adjacency("a", 9, False)])
    assert [change.new for change in map.say("a", [Adjacency("b", 4, False)])] == [0]


def test_a_record_may_name_a_link_twice_itself_or_too_many_and_does_no_harm() -> None:
    map = Map("a")
    map.say("b", [Adjacency("a", 7, True)])
    own = [Adjacency("b", 1, False), Adjacency("a", 2, True), Adjacency("b", 3, True)]
    assert [change.new for change in map.say("a", own)] == [7]
    assert [change.new for change in map.say("b", [Adjacency("a", 2, True)])] == [3]
    map.say("a", [])
    map.say("b", None)
    assert map.index == {"a": 0}
    many = [Adjacency(f"n{number}", 1, True) for number in range(300)]
    map.say("a", many)
    assert len(map.index) == 1 + 256
    map.say("a", many[250:])
    assert sorted(map.index) == sorted(["a", *(link.node for link in many[250:])])


def test_mutation_without_the_two_way_check_a_liar_draws_traffic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def liar() -> list[tuple[str, ...]]:
        """Node 2 says it had a link to 3, of which 3 knows nothing."""
        costs = {(0, 1): 5, (1, 3): 5, (0, 2): 1}
        map = mapped(4, costs)
        map.say(name(2), [*reports(2, costs), Adjacency(name(3), 1, True)])
        tree = Tree(map)
        tree.build()
        return named(map, paths(map, tree, map.index[name(3)]))

    assert liar() == [("n0000", "n0001", "n0003")]

    def one_way(here: Adjacency | None, there: Adjacency | None) -> int:
        end = here or there
        return two_way(end, end)

    monkeypatch.setattr(map_module, "two_way", one_way)
    assert liar()[0] == ("n0000", "n0002", "n0003")


def test_numbers_of_forgotten_nodes_are_used_again() -> None:
    map = Map("a")
    for round in range(50):
        map.say("a", [Adjacency(f"x{round}", 1, True)])
        map.say(f"x{round}", [Adjacency("a", 1, True), Adjacency(f"y{round}", 1, True)])
        map.say(f"x{round}", None)
    map.say("a", [])
    assert len(map.names) <= 5
    assert list(map.index) == ["a"]


def big_map(size: int, seed: int) -> tuple[Map, Costs]:
    """Nodes of degree 4 on average, as in the topologies measured for this design."""
    random = Random(seed)
    costs: Costs = {}
    for node in range(1, size):
        costs[(random.randrange(max(0, node - 50), node), node)] = random.randrange(16, 400)
    while len(costs) < 2 * size:
        a, b = sorted(random.sample(range(size), 2))
        costs[(a, b)] = random.randrange(16, 400)
    map = Map(name(0))
    by_node: dict[int, list[Adjacency]] = {node: [] for node in range(size)}
    for (a, b), cost in costs.items():
        by_node[a].append(Adjacency(name(b), cost, True))
        by_node[b].append(Adjacency(name(a), cost, True))
    for node, links in by_node.items():
        map.say(name(node), links)
    return map, costs


def test_a_change_in_a_map_of_a_thousand_nodes_takes_less_than_5_ms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    map, costs = big_map(1000, 1)
    tree = Tree(map)
    start = time.process_time()
    tree.build()
    full_ms = (time.process_time() - start) * 1e3
    random = Random(2)
    mends, finds = [], []
    for _ in range(300):
        a, b = random.choice(list(costs))
        start = time.process_time()
        changes = map.set_level(name(a), name(b), 2)
        tree.mend(changes)
        mends.append((time.process_time() - start) * 1e3)
        tree.mend(map.set_level(name(a), name(b), 0))
        start = time.process_time()
        found = paths(map, tree, map.index[name(random.randrange(1, 1000))])
        finds.append((time.process_time() - start) * 1e3)
        assert found
    fresh = Tree(map)
    fresh.build()
    assert fresh.distance == tree.distance
    mends.sort()
    finds.sort()
    with capsys.disabled():
        print(
            f"\n1,000 nodes: full {full_ms:.2f} ms; one change median {mends[150] * 1e3:.0f} us,"
            f" p99 {mends[296] * 1e3:.0f}, max {mends[-1] * 1e3:.0f};"
            f" three paths median {finds[150] * 1e3:.0f} us, p99 {finds[296] * 1e3:.0f}"
        )
    assert mends[296] < 5


def test_a_plain_dijkstra_agrees() -> None:
    map, costs = big_map(200, 3)
    tree = Tree(map)
    tree.build()
    distance = {name(0): 0}
    heap = [(0, name(0))]
    while heap:
        reached, node = heapq.heappop(heap)
        for (a, b), cost in costs.items():
            for here, there in ((name(a), name(b)), (name(b), name(a))):
                if here == node and reached + cost < distance.get(there, INFINITE):
                    distance[there] = reached + cost
                    heapq.heappush(heap, (reached + cost, there))
    assert {map.names[at]: found for at, found in enumerate(tree.distance)} == distance
