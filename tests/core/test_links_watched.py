"""Links that something faster watches: few hellos there, and all of them again when it ends."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from tests.core.test_links_liveness import DELAY, H, Pair
from x0tta6bl4.core.links.words import (
    AgentAlive,
    LinkDown,
    LinkQuality,
    LinkSuspected,
    LinkUp,
    NeighbourSet,
)
from x0tta6bl4.core.machine import MS, SECOND, Instant
from x0tta6bl4.wire.hello import EASY, EASY_US, POLL, Hello

PATIENCE = EASY_US * 7 // 5


def watch(pair: Pair, ends: str, watched: bool = True) -> None:
    for end in ends:
        other, incarnation = ("b", 200) if end == "a" else ("a", 100)
        pair.give(end, NeighbourSet(other, incarnation, 1, H, watched))


def ready(ends: str = "ab", seed: str = "pair") -> Pair:
    """A link that is up, with agents at both ends, and watched by some for a while."""
    pair = Pair(seed)
    for end in "ab":
        pair.give(end, AgentAlive(True))
    pair.run(SECOND)
    watch(pair, ends)
    pair.run(5 * SECOND)
    pair.told.clear()
    pair.sent.clear()
    return pair


def gaps(pair: Pair, end: str) -> list[int]:
    times = [at for at, who, _ in pair.sent if who == end]
    return [later - sooner for sooner, later in pairwise(times)]


def test_where_both_ends_are_watched_a_second_has_one_hello_and_nothing_is_told() -> None:
    pair = ready()
    pair.run(120 * SECOND)
    for end in "ab":
        assert 120 <= len(gaps(pair, end)) <= 165
        assert max(gaps(pair, end)) <= EASY_US
    assert pair.told == []


def test_who_is_not_watched_gets_hellos_as_ever_and_judges_by_them() -> None:
    pair = ready("a")
    pair.run(20 * SECOND)
    assert max(gaps(pair, "a")) <= H  # For b, whose kernel sees nothing.
    assert min(gaps(pair, "b")) >= EASY_US * 3 // 4
    assert pair.told == []
    cut = pair.now
    pair.drops = lambda *_: True
    pair.run(SECOND)
    (down,) = [at for at, end, fact in pair.told if (end, type(fact)) == ("b", LinkDown)]
    assert down - cut <= 3 * H


def test_a_request_for_few_hellos_that_is_lost_hurts_nobody() -> None:
    pair = Pair()
    for end in "ab":
        pair.give(end, AgentAlive(True))
    pair.run(SECOND)
    pair.told.clear()
    lost = {"a": 2, "b": 3}

    def first(source: str, _: int, hello: Hello) -> bool:
        gone = hello.flags & EASY and lost[source]
        lost[source] -= bool(gone)
        return bool(gone)

    pair.drops = first
    watch(pair, "ab")
    pair.run(20 * SECOND)
    assert lost == {"a": 0, "b": 0}
    assert not [fact for _, _, fact in pair.told if type(fact) is LinkDown]
    assert pair.sent[-1][2].flags & EASY


@pytest.mark.parametrize("how", ["stops", "agent"])
@pytest.mark.parametrize("seed", range(8))
def test_when_it_is_watched_no_more_hellos_come_at_once_as_before(how: str, seed: int) -> None:
    pair = ready(seed=str(seed))
    pair.run(EASY_US + seed * 137 * MS)
    last = max(at for at, who, _ in pair.sent if who == "b")
    pair.sent.clear()
    end = pair.now
    if how == "stops":
        watch(pair, "a", watched=False)
    else:
        pair.give("a", AgentAlive(False))
    pair.run(10 * SECOND)
    first = next(at for at, who, _ in pair.sent if who == "b")
    assert first <= max(end + DELAY, last + H)
    assert max(gaps(pair, "b")) <= H
    assert min(gaps(pair, "a")[1:]) >= EASY_US * 3 // 4  # For b nothing has changed.
    assert [fact for _, _, fact in pair.told if type(fact) is not LinkQuality] == []


@pytest.mark.parametrize("seed", range(8))
def test_a_link_that_is_dead_when_it_is_watched_no_more_is_found_as_fast_as_ever(seed: int) -> None:
    pair = ready(seed=str(seed))
    pair.run(seed * 137 * MS)
    pair.drops = lambda *_: True
    end = pair.now
    watch(pair, "ab", watched=False)
    pair.run(3 * H)
    assert [type(fact) for _, who, fact in pair.told if who == "a"] == [LinkSuspected, LinkDown]
    assert [type(fact) for _, who, fact in pair.told if who == "b"] == [LinkSuspected, LinkDown]
    asked = [at for at, who, h in pair.sent if who == "a" and h.flags & POLL and at <= end + 3 * H]
    assert len(asked) >= 4


def test_silence_ends_it_and_is_judged_by_questions() -> None:
    pair = ready()
    cut = pair.now
    pair.drops = lambda *_: True
    pair.run(2 * SECOND)
    for end in "ab":
        (suspected, first), (down, second) = [(at, f) for at, who, f in pair.told if who == end]
        assert type(first) is LinkSuspected
        assert type(second) is LinkDown
        assert suspected - cut <= PATIENCE + DELAY
        assert down - suspected <= 3 * H
        asked = [at for at, who, h in pair.sent if who == end and suspected <= at < down]
        assert len(asked) >= 4


def test_a_hello_lost_among_few_is_cleared_up_at_once() -> None:
    pair = ready()
    pair.drop_one("b")
    pair.run(30 * SECOND)
    told = [(at, fact) for at, end, fact in pair.told if end == "a"]
    assert [type(fact) for _, fact in told][:2] == [LinkSuspected, LinkUp]
    assert told[1][0] - told[0][0] <= 2 * DELAY
    assert not any(type(fact) is LinkDown for _, _, fact in pair.told)
    assert pair.sent[-1][2].flags & EASY


def test_a_link_that_loses_is_sampled_fast_until_it_is_good_again() -> None:
    pair = ready()
    draw = Random(3)
    pair.drops = lambda *_: draw.random() < 0.15
    pair.run(30 * SECOND)
    assert any(type(fact) is LinkQuality and fact.gray for _, _, fact in pair.told)
    pair.sent.clear()
    pair.run(5 * SECOND)
    assert not any(h.flags & EASY for _, _, h in pair.sent)
    assert max(gaps(pair, "a") + gaps(pair, "b")) <= H
    pair.drops = lambda *_: False
    pair.run(60 * SECOND)
    assert pair.sent[-1][2].flags & pair.sent[-2][2].flags & EASY


def test_a_link_that_has_failed_asks_for_few_only_when_it_is_trusted_again() -> None:
    pair = ready()
    pair.drops = lambda *_: True
    pair.run(3 * SECOND)
    pair.drops = lambda *_: False
    pair.sent.clear()
    pair.told.clear()
    pair.run(10 * SECOND)
    up = max(at for at, _, fact in pair.told if type(fact) is LinkUp)
    assert not any(h.flags & EASY for at, _, h in pair.sent if at < up - 2 * H)
    assert pair.sent[-1][2].flags & EASY


@pytest.mark.parametrize("seed", range(40))
def test_laws_hold_whoever_watches_and_stops(seed: int) -> None:
    """Nobody is accused while nothing is lost, and a cut is found in time."""
    draw = Random(seed)
    pair = ready(draw.choice(["", "a", "b", "ab"]), str(seed))
    for _ in range(30):
        end = draw.choice("ab")
        if draw.random() < 0.7:
            watch(pair, end, draw.random() < 0.5)
        else:
            pair.give(end, AgentAlive(draw.random() < 0.6))
        pair.run(draw.choice([0, 1, DELAY, 20 * MS, H, 3 * H, 2 * SECOND]))
    bad = [fact for _, _, fact in pair.told if type(fact) in (LinkDown, LinkSuspected)]
    assert bad == []
    cut = pair.now
    pair.drops = lambda *_: True
    pair.run(PATIENCE + 3 * H)
    assert not pair.ends["a"].is_up("b")
    assert not pair.ends["b"].is_up("a")
    assert pair.now == Instant(cut + PATIENCE + 3 * H)
