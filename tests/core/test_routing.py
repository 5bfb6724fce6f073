"""Stories about the routing machine: what it publishes, which paths it gives, how fast it heals."""

from __future__ import annotations

import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.core.machine import (
    MS,
    SECOND,
    ClockSet,
    Effects,
    Event,
    Instant,
    Tick,
)
from x0tta6bl4.core.routing.damping import Damping
from x0tta6bl4.core.routing.routing import LAST_RESORT, Routing, link_cost
from x0tta6bl4.core.routing.words import (
    AdjacencyWanted,
    AuthorityPathsChanged,
    LinkDown,
    LinkMeasured,
    LinkSuspected,
    LinkUp,
    MemberChanged,
    MemberGone,
    PathBad,
    PathsChanged,
    Unwanted,
    Wanted,
)
from x0tta6bl4.wire.records import Adjacency, NodeBody

RTT = 2000
"""Of a link of cost 16."""


def at(seconds: float) -> Instant:
    return Instant(round(seconds * SECOND))


def body(*links: str, cost: int = 16, stub: bool = False, authority: bool = False) -> NodeBody:
    said = tuple(Adjacency(node, cost, True) for node in links)
    return NodeBody(said, (), stub=stub, authority=authority)


class Node:
    """A routing machine and a clock; collects what it says."""

    def __init__(self, me: str = "me") -> None:
        self.machine = Routing(me)
        self.now = at(0)
        self.said: list[tuple[Instant, object]] = []

    def give(self, *events: Event) -> Effects:
        found: Effects = ()
        for event in events:
            found += self.machine.handle(self.now, event)
        self.said += [(self.now, fact) for fact in found]
        return found

    def until(self, seconds: float) -> Effects:
        found: Effects = ()
        while self.machine.deadline <= at(seconds):
            self.now = max(self.now, self.machine.deadline)
            found += self.give(Tick())
            assert self.machine.deadline > self.now
        self.now = at(seconds)
        return found

    def up(self, *nodes: str, rtt_us: int = RTT) -> Effects:
        found: Effects = ()
        for node in nodes:
            found += self.give(LinkUp(node, rtt_us, 0, False, True))
        return found


def paths(effects: Effects) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {fact.node: fact.paths for fact in effects if type(fact) is PathsChanged}


def published(effects: Effects) -> list[dict[str, int]]:
    return [
        {link.node: link.cost for link in fact.links}
        for fact in effects
        if type(fact) is AdjacencyWanted
    ]


def diamond() -> Node:
    """me - a - t and me - b - t, the way over `a` being shorter."""
    node = Node()
    node.up("a")
    node.now = at(1)
    node.up("b", rtt_us=2 * RTT)
    node.give(
        MemberChanged("a", body("me", "t")),
        MemberChanged("b", body("me", "t")),
        MemberChanged("t", body("a", "b")),
    )
    node.until(2)
    return node


OVER_A, OVER_B = ("me", "a", "t"), ("me", "b", "t")


def test_a_wanted_node_gets_its_paths_and_hears_of_changes_only() -> None:
    node = diamond()
    node.give(Wanted("t"))
    assert paths(node.until(3)) == {"t": (OVER_A, OVER_B)}
    node.give(MemberChanged("t", body("a", "b")), MemberChanged("x", body("y")))
    assert node.until(10) == ()


def test_a_node_heard_of_later_gets_its_paths_as_soon_as_there_are_any() -> None:
    node = diamond()
    assert node.give(Wanted("u")) + node.until(3) == ()
    node.give(MemberChanged("u", body("t")), MemberChanged("t", body("a", "b", "u")))
    found = paths(node.until(3.1))
    assert found["u"][0] == ("me", "a", "t", "u")
    node.give(MemberGone("u"))
    assert paths(node.until(3.2)) == {"u": ()}


def test_a_dead_link_is_left_at_once_and_published_at_once() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    effects = node.give(LinkDown("a"))
    assert paths(effects) == {"t": (OVER_B,)}
    assert published(effects) == [{"b": 32}]


def test_a_link_that_comes_back_is_used_again_within_seconds() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    node.give(LinkDown("a"))
    node.until(9)
    node.up("a")
    assert paths(node.until(11)) == {"t": (OVER_A, OVER_B)}


def test_a_suspect_is_avoided_until_the_suspicion_is_over() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    assert paths(node.give(LinkSuspected("a"))) == {"t": (OVER_B, OVER_A)}
    assert published(node.until(6)) == []
    node.up("a")
    assert paths(node.until(8)) == {"t": (OVER_A, OVER_B)}


def test_a_bad_path_costs_four_times_as_much_and_is_forgiven_by_half_lives() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    assert paths(node.give(PathBad(OVER_A))) == {"t": (OVER_B, OVER_A)}
    assert published(node.until(64)) == []
    # 4 x 32 against 48, then 2 x 32 against 48, then 32 against 48.
    assert paths(node.until(124)) == {}
    assert paths(node.until(130)) == {"t": (OVER_A, OVER_B)}


def test_noise_is_not_published_and_a_real_change_at_most_every_two_seconds() -> None:
    node = diamond()
    node.until(10)
    for step in range(100):
        found = node.until(10 + step / 50)
        found += node.give(LinkMeasured("a", RTT + step * 6, 0, False, True))
        assert published(found) == []
    node.until(20)
    first = node.give(LinkMeasured("a", 3 * RTT, 0, False, True)) + node.until(20.1)
    assert published(first) == [{"a": 48, "b": 32}]
    second = node.give(LinkMeasured("a", 6 * RTT, 0, False, True)) + node.until(21.9)
    assert published(second) == []
    assert published(node.until(22.2)) == [{"a": 96, "b": 32}]


def test_costs_that_go_on_changing_are_told_ever_more_seldom_but_not_gray_and_not_down() -> None:
    node = diamond()
    node.until(100)
    said = []
    for step in range(150):
        node.give(LinkMeasured("a", (3 if step % 2 else 1) * RTT, 0, False, True))
        at = 100.001 + step
        said += [at for _ in published(node.until(at))]
    assert len(said) <= 8, said
    gray = node.give(LinkMeasured("a", RTT, 0, True, True)) + node.until(252.5)
    assert {"a": 64, "b": 32} in published(gray)
    assert published(node.give(LinkDown("a"))) == [{"b": 32}]


def test_costs_that_were_calm_are_told_soon_again() -> None:
    node = diamond()
    for times in (2, 4, 8, 16):
        node.until(10 + times)
        node.give(LinkMeasured("a", times * RTT, 0, False, True))
    node.until(100)
    soon = []
    for rtt in (3 * RTT, 6 * RTT):
        soon += published(node.give(LinkMeasured("a", rtt, 0, False, True)))
        soon += published(node.until(102.2))
    assert [links["a"] for links in soon] == [48, 96]


def test_a_change_above_35_per_cent_but_below_a_millisecond_is_noise() -> None:
    node = Node()
    node.up("a", rtt_us=100)
    node.until(5)
    node.give(LinkMeasured("a", 900, 0, False, True))
    assert published(node.until(9)) == []


@pytest.mark.parametrize(
    ("rtt_us", "loss_ppm", "gray", "cost"),
    [
        (2000, 0, False, 16),
        (0, 0, False, 1),
        (2000, 500_000, False, 32),
        (2000, 50_000, True, 64),
        (10**9, 990_000, True, 2**24),
    ],
)
def test_the_cost_is_half_the_rtt_times_etx(
    rtt_us: int, loss_ppm: int, gray: bool, cost: int
) -> None:
    assert link_cost(rtt_us, loss_ppm, gray) == cost


def test_a_link_that_flaps_becomes_a_last_resort_and_is_used_again_when_it_is_calm() -> None:
    node = diamond()
    node.give(Wanted("t"))
    said = []
    for step in range(4):
        node.until(10 + step)
        node.give(LinkDown("a"))
        node.until(10.5 + step)
        said += published(node.up("a"))
    # Three downs in a row have decayed to less than 3,000; the fourth suppresses.
    assert [links["a"] for links in said] == [16, 16, 16, LAST_RESORT]
    node.until(16)
    assert node.machine.paths("t") == (OVER_B, OVER_A)
    calm = node.until(60)
    assert published(calm) == [{"a": 16, "b": 32}]
    assert node.machine.paths("t") == (OVER_A, OVER_B)


def test_no_suppression_lasts_longer_than_a_minute() -> None:
    damping = Damping()
    for second in range(1000):
        damping.down(at(second))
    assert damping.suppressed
    assert 59 * SECOND < damping.reuse_at() - at(999) <= 60 * SECOND + 1
    assert not damping.look(Instant(damping.reuse_at() - 1))
    assert damping.look(damping.reuse_at())


def test_a_node_that_went_down_on_purpose_is_used_until_its_restart_time_is_over() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    node.give(MemberChanged("a", body("me", "t"), restarting_until=at(125)))
    assert paths(node.until(124)) == {}
    assert paths(node.until(126)) == {"t": (OVER_B,)}
    node.give(MemberChanged("a", body("me", "t")))
    assert paths(node.until(130)) == {"t": (OVER_A, OVER_B)}


def test_a_draining_node_is_left_by_others_traffic() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.give(Wanted("a"))
    node.until(5)
    node.give(MemberChanged("a", body("me", "t", stub=True)))
    found = paths(node.until(6))
    assert found["t"] == (OVER_B,)
    assert node.machine.paths("a")[0] == ("me", "a")


def test_paths_to_the_authority_lead_to_the_nearest_that_reach_it() -> None:
    node = diamond()
    node.give(
        MemberChanged("t", body("a", "b", authority=True)),
        MemberChanged("b", body("me", "t", authority=True)),
    )
    (said,) = [fact for fact in node.until(5) if type(fact) is AuthorityPathsChanged]
    assert said.paths == (("me", "b"), OVER_A)
    node.give(MemberChanged("b", body("me", "t")))
    (said,) = [fact for fact in node.until(9) if type(fact) is AuthorityPathsChanged]
    assert said.paths == (OVER_A,)
    effects = node.give(LinkDown("a"))
    assert [fact for fact in effects if type(fact) is AuthorityPathsChanged] == [
        AuthorityPathsChanged((OVER_B,))
    ]


def test_a_link_that_gets_better_brings_another_authority_near() -> None:
    node = Node()
    node.up("a", "b")
    node.up("c", rtt_us=5 * RTT)
    node.up("d", rtt_us=10 * RTT)
    node.give(*(MemberChanged(x, body("me", authority=True)) for x in "abcd"))
    said = [fact for fact in node.until(5) if type(fact) is AuthorityPathsChanged]
    assert said[-1].paths == (("me", "a"), ("me", "b"), ("me", "c"))
    node.give(LinkMeasured("d", 2 * RTT, 0, False, True))
    (last,) = [fact for fact in node.until(10) if type(fact) is AuthorityPathsChanged]
    assert last.paths == (("me", "a"), ("me", "b"), ("me", "d"))


def test_a_link_of_the_third_path_that_gets_better_makes_it_the_first() -> None:
    node = Node()
    node.up("a", "b", "c")

    def member(name: str, cost: int) -> MemberChanged:
        links = (Adjacency("me", 16, True), Adjacency("t", cost, True))
        return MemberChanged(name, NodeBody(links, ()))

    node.give(member("a", 40), member("b", 16), member("c", 24))
    node.give(MemberChanged("t", body("a", "b", "c")), Wanted("t"))
    assert paths(node.until(5))["t"] == (OVER_B, ("me", "c", "t"), OVER_A)
    node.give(member("a", 16))
    assert paths(node.until(10))["t"] == (OVER_A, OVER_B, ("me", "c", "t"))


def test_what_is_no_longer_wanted_is_no_longer_said() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    node.give(Unwanted("t"))
    assert paths(node.give(LinkDown("a"))) == {}


def test_the_path_to_oneself_is_oneself() -> None:
    node = Node()
    node.give(Wanted("me"))
    assert paths(node.until(1)) == {"me": (("me",),)}


def test_looking_at_a_path_does_not_swallow_a_change() -> None:
    node = diamond()
    node.give(Wanted("t"))
    node.until(5)
    node.give(MemberChanged("t", body("a", "b", "me")))
    node.up("t", rtt_us=10)
    assert node.machine.cost("t") == 16
    assert paths(node.until(7))["t"][0] == ("me", "t")


def a_mesh(random: Random, size: int) -> dict[str, dict[str, int]]:
    names = ["me", *(f"n{number}" for number in range(1, size))]
    links: dict[str, dict[str, int]] = {name: {} for name in names}
    for _ in range(size * 2):
        a, b = random.sample(names, 2)
        links[a][b] = links[b][a] = random.randrange(16, 200)
    return links


def told(
    name: str, links: dict[str, dict[str, int]], stub: bool = False, authority: bool = False
) -> MemberChanged:
    said = tuple(Adjacency(node, cost, True) for node, cost in links[name].items())
    return MemberChanged(name, NodeBody(said, (), stub=stub, authority=authority))


@settings(max_examples=80)
@given(st.integers(0, 2**32))
def test_after_any_history_the_paths_are_those_of_a_node_that_just_learnt_the_map(
    seed: int,
) -> None:
    random = Random(seed)
    size = random.choice((random.randrange(3, 9), 16))
    links = a_mesh(random, size)
    others = [name for name in links if name != "me"]
    flags: dict[str, dict[str, bool]] = {name: {} for name in others}
    node = Node()
    wanted = random.sample(others, random.randrange(1, size))
    node.give(*(Wanted(name) for name in wanted))
    up: dict[str, int] = {}
    for _ in range(30):
        name = random.choice(others)
        luck = random.random()
        if luck < 0.4:
            a, b = random.sample(list(links), 2)
            if b in links[a] and random.random() < 0.5:
                del links[a][b], links[b][a]
            else:
                links[a][b] = links[b][a] = random.randrange(16, 200)
            node.give(*(told(x, links, **flags[x]) for x in (a, b) if x != "me"))
        elif luck < 0.5:
            flags[name] = {"stub": random.random() < 0.5, "authority": random.random() < 0.5}
            node.give(told(name, links, **flags[name]))
        elif luck < 0.6:
            node.give(MemberGone(name))
            node.give(told(name, links, **flags[name]))
        elif luck < 0.8:
            neighbour = random.choice(others)
            up[neighbour] = random.choice([RTT, 5 * RTT, 30 * RTT])
            node.up(neighbour, rtt_us=up[neighbour])
        elif up:
            neighbour = random.choice(list(up))
            del up[neighbour]
            node.give(LinkDown(neighbour))
        early = node.machine.deadline
        if node.now < early:
            assert node.machine.handle(node.now, Tick()) == ()
            assert node.machine.deadline == early
        if random.random() < 0.5:
            node.until(node.now / SECOND + random.choice([0.001, 0.3, 5]))
    for name in others:
        node.give(told(name, links, **flags[name]))
    node.until(node.now / SECOND + 300)
    fresh = Node()
    fresh.give(*(Wanted(name) for name in wanted))
    for name in others:
        fresh.give(told(name, links, **flags[name]))
    for neighbour in sorted(up):
        fresh.up(neighbour, rtt_us=up[neighbour])
    fresh.until(300)
    for name in wanted:
        assert node.machine.paths(name) == fresh.machine.paths(name)
        for path in node.machine.paths(name):
            assert len(set(path)) == len(path)
    changes: dict[str, object] = {}
    for _, fact in node.said:
        if type(fact) is PathsChanged:
            assert changes.get(fact.node, ()) != fact.paths
            changes[fact.node] = fact.paths


def test_a_thousand_members_with_all_in_use_heal_within_the_budget_of_many_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    random = Random(4)
    links = a_mesh(random, 1000)
    node = Node()
    for neighbour in list(links["me"]):
        node.up(neighbour)
    start = time.process_time()
    node.give(*(told(name, links) for name in links if name != "me"))
    node.until(1)
    learnt = time.process_time() - start
    node.give(*(Wanted(name) for name in links if name != "me"))
    start = time.process_time()
    node.until(20)
    computed = time.process_time() - start
    before = len(node.said)
    start = time.process_time()
    node.give(LinkDown(next(iter(links["me"]))))
    longest, since = 0.0, time.process_time()
    while node.machine.deadline < at(21):
        node.now = max(node.now, node.machine.deadline)
        node.give(Tick())
        longest, since = max(longest, time.process_time() - since), time.process_time()
    healed = time.process_time() - start
    changed = len(node.said) - before
    with capsys.disabled():
        print(
            f"\n1,000 members: learnt in {learnt * 1e3:.0f} ms, paths to all {computed * 1e3:.0f}"
            f" ms; a link down: {changed} said in {healed * 1e3:.0f} ms, longest run"
            f" {longest * 1e3:.1f} ms"
        )
    assert changed > 100
    assert longest < 0.05


def test_wall_time_does_not_concern_it() -> None:
    node = Node()
    assert node.give(ClockSet(1)) == ()
    assert node.machine.handle(Instant(5 * MS), Tick()) == ()


def test_a_link_that_no_path_uses_may_break_without_any_work() -> None:
    node = diamond()
    node.give(MemberChanged("far", body("t")), MemberChanged("t", body("a", "b", "far")))
    node.give(Wanted("a"))
    node.until(10)
    idle = node.machine.deadline
    for _ in range(400):
        node.give(MemberChanged("far", body()))
        assert node.machine.deadline == idle
        assert node.machine.cost("far") == -1
        node.give(MemberChanged("far", body("t")))
        node.until(node.now / SECOND + 5)
    for _ in range(200):  # Nobody asks in between, and the changes are not kept for ever.
        node.give(MemberChanged("far", body("t", cost=17)), MemberChanged("far", body()))
    assert len(node.machine._changes) < 200
    node.give(MemberChanged("far", body("t")))
    assert node.machine.cost("far") > 0
