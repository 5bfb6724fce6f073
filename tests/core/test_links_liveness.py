"""Stories of the links machine: at this instant, this happened, that was asked."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.links.liveness import Links
from x0tta6bl4.core.links.words import (
    NEIGHBOURS_MAX,
    AgentAlive,
    Config,
    Counted,
    LinkDown,
    LinkQuality,
    LinkSuspected,
    LinkUp,
    NeighbourGone,
    NeighbourSet,
)
from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    NOTHING,
    SECOND,
    Effects,
    Event,
    Instant,
    Received,
    Send,
    Tick,
    Value,
)
from x0tta6bl4.wire.hello import ADMIN_DOWN, DOWN, FINAL, INIT, POLL, UP, Hello

H = 100 * MS
DELAY = 2 * MS


def hello(sequence: int, state: int, flags: int = 0, incarnation: int = 7, **more: int) -> Hello:
    """What a neighbour of incarnation 7 says."""
    return Hello(1, incarnation, sequence, state, flags, H, 3, sequence * H, **more)


def links(seed: str = "a") -> Links:
    return Links(incarnation=9, random=Random(seed))


def sent(effects: Effects) -> list[Hello]:
    return [e.message for e in effects if type(e) is Send]


def told(effects: Effects) -> list[Value]:
    return [e for e in effects if type(e) is not Send]


class Pair:
    """Two links machines a and b, 2 ms apart; `drops(source, at, hello)` loses hellos."""

    def __init__(self, seed: str = "pair") -> None:
        self.now = Instant(SECOND)
        self.ends = {
            "a": Links(100, Random(f"{seed}/links/a")),
            "b": Links(200, Random(f"{seed}/links/b")),
        }
        self.told: list[tuple[int, str, Value]] = []
        self.sent: list[tuple[int, str, Hello]] = []
        self.drops: Callable[[str, int, Hello], bool] = lambda *_: False
        self.frozen: set[str] = set()
        self._wire: list[tuple[int, int, str, Hello]] = []
        self.give("a", NeighbourSet("b", 200, 1, H))
        self.give("b", NeighbourSet("a", 100, 1, H))

    def give(self, end: str, event: Event) -> None:
        other = "b" if end == "a" else "a"
        for effect in self.ends[end].handle(self.now, event):
            if type(effect) is Send:
                self.sent.append((self.now, end, effect.message))
                if not self.drops(end, self.now, effect.message):
                    entry = (self.now + DELAY, len(self.sent), other, effect.message)
                    heapq.heappush(self._wire, entry)
            else:
                self.told.append((self.now, end, effect))

    def run(self, duration: int) -> None:
        until = self.now + duration
        while True:
            due = min((m.deadline, end) for end, m in self.ends.items() if end not in self.frozen)
            if self._wire and self._wire[0][0] <= due[0] and self._wire[0][0] <= until:
                at, _, end, message = heapq.heappop(self._wire)
                self.now = Instant(max(self.now, at))
                if end not in self.frozen:
                    self.give(end, Received("a" if end == "b" else "b", message))
            elif due[0] <= until:
                self.now = Instant(max(self.now, due[0]))
                self.give(due[1], Tick())
                assert self.ends[due[1]].deadline > self.now
            else:
                self.now = Instant(until)
                return

    def drop_one(self, end: str) -> None:
        """Lose the next hello that an end sends, and no other."""
        lost: list[int] = []

        def drops(source: str, at: int, _: Hello) -> bool:
            if source == end and not lost:
                lost.append(at)
                return True
            return False

        self.drops = drops

    def kinds(self, end: str) -> list[str]:
        return [type(fact).__name__ for _, who, fact in self.told if who == end]


def test_a_link_comes_up_by_a_three_way_handshake() -> None:
    machine = links()
    machine.handle(Instant(0), NeighbourSet("b", 7, 1, H))
    assert machine.deadline == 0
    first = machine.handle(Instant(0), Tick())
    assert [h.state for h in sent(first)] == [DOWN]
    answer = machine.handle(Instant(5 * MS), Received("b", hello(1, DOWN)))
    assert [h.state for h in sent(answer)] == [INIT]
    assert told(answer) == []
    up = machine.handle(Instant(9 * MS), Received("b", hello(2, UP)))
    assert [h.state for h in sent(up)] == [UP]
    assert told(up) == [LinkUp("b", 0, 0, gray=False, agent_alive=False)]


def test_hearing_is_not_enough_the_other_end_must_hear_us_too() -> None:
    pair = Pair()
    pair.drops = lambda source, *_: source == "b"
    pair.run(5 * SECOND)
    assert pair.told == []


def test_silence_is_first_suspected_then_probed_then_condemned() -> None:
    pair = Pair()
    pair.run(SECOND)
    assert pair.kinds("a") == ["LinkUp"]
    pair.told.clear()
    cut = pair.now
    pair.drops = lambda *_: True
    pair.run(SECOND)
    (suspected, _, first), (down, _, second) = [t for t in pair.told if t[1] == "a"]
    assert first == LinkSuspected("b")
    assert second == LinkDown("b", "silent")
    heard = max(at for at, end, _ in pair.sent if end == "b" and at <= cut) + DELAY
    assert 1.4 * H <= suspected - heard <= 1.5 * H
    assert down - heard == 3 * H
    polls = [h for at, end, h in pair.sent if end == "a" and suspected <= at < down]
    assert len(polls) >= 6
    assert all(h.flags & POLL for h in polls)


def test_a_lost_hello_is_cleared_up_within_a_round_trip_of_the_first_probe() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    pair.drop_one("b")
    pair.run(400 * MS)
    facts = [(at, fact) for at, end, fact in pair.told if end == "a"]
    # The next calm hello may come before 1.4 intervals are over (jitter): then nothing is told.
    if facts:
        assert [type(fact) for _, fact in facts] == [LinkSuspected, LinkUp]
        assert facts[1][0] - facts[0][0] <= 2 * DELAY
    assert any(h.flags & FINAL for _, end, h in pair.sent if end == "b") == bool(facts)


def test_a_one_way_loss_takes_the_link_down_at_both_ends() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.drops = lambda source, *_: source == "b"
    pair.run(SECOND)
    assert pair.told[-1][2] == LinkDown("a", "neighbour down") or (
        LinkDown("a", "neighbour down") in [fact for _, _, fact in pair.told]
    )
    assert LinkDown("b", "silent") in [fact for _, _, fact in pair.told]
    assert not pair.ends["a"].is_up("b")
    assert not pair.ends["b"].is_up("a")


def test_after_a_failure_trust_needs_ten_hellos_in_a_row_and_two_seconds() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.drops = lambda *_: True
    pair.run(SECOND)
    pair.drops = lambda *_: False
    healed = pair.now
    pair.told.clear()
    pair.run(2 * SECOND)
    assert pair.told == []
    assert pair.ends["a"].statistics()[0].state == "held"
    pair.run(400 * MS)
    assert sorted(pair.kinds("a") + pair.kinds("b")) == ["LinkUp", "LinkUp"]
    assert min(at for at, _, _ in pair.told) >= healed + 2 * SECOND


def test_a_neighbour_that_started_anew_is_down_at_once_and_up_without_delay() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    pair.ends["b"] = Links(201, Random("anew"))
    pair.give("b", NeighbourSet("a", 100, 2, H))
    pair.run(50 * MS)
    assert pair.ends["a"].statistics()[0].refused >= 1  # The new start is not known yet.
    pair.give("a", NeighbourSet("b", 201, 2, H))
    assert pair.told[-1] == (pair.now, "a", LinkDown("b", "neighbour restarted"))
    pair.run(300 * MS)
    assert pair.kinds("a") == ["LinkDown", "LinkUp"]
    assert pair.kinds("b") == ["LinkUp"]


def test_new_keys_alone_disturb_nothing() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    pair.give("a", NeighbourSet("b", 200, 5, H))
    pair.run(SECOND)
    pair.give("b", NeighbourSet("a", 100, 5, H))
    pair.run(SECOND)
    assert pair.told == []
    assert pair.sent[-1][2].link == 5


def test_a_tick_that_comes_late_judges_nobody() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    machine = pair.ends["a"]
    silent_since = pair.now
    late = Instant(silent_since + 2 * SECOND)
    assert told(machine.handle(late, Tick())) == []
    # One interval later, on time, and still not a word: now it counts.
    facts: list[Value] = []
    while not facts or type(facts[-1]) is not LinkDown:
        facts += told(machine.handle(machine.deadline, Tick()))
        assert machine.deadline < late + 3 * H
    assert facts == [LinkSuspected("b"), LinkDown("b", "silent")]


def test_a_process_that_stood_still_does_not_accuse_its_neighbour() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    pair.frozen.add("a")
    pair.run(200 * MS)  # Less than the detect time at b.
    pair.frozen.clear()
    pair.run(SECOND)
    assert "LinkDown" not in pair.kinds("a") + pair.kinds("b")


def test_a_repeated_hello_is_not_heard() -> None:
    pair = Pair()
    pair.run(SECOND)
    replayed = [h for at, end, h in pair.sent if end == "b" and at + DELAY <= pair.now]
    pair.drops = lambda *_: True
    machine = pair.ends["a"]
    refused = machine.statistics()[0].refused
    for h in replayed:
        assert machine.handle(pair.now, Received("b", h)) == NOTHING
    assert machine.statistics()[0].refused == refused + len(replayed)
    pair.run(SECOND)
    assert LinkDown("b", "silent") in [fact for _, _, fact in pair.told]


def test_an_overtaken_hello_says_nothing_about_now() -> None:
    pair = Pair()
    pair.run(SECOND)
    old: list[Hello] = []

    def hold(source: str, _: int, h: Hello) -> bool:
        if source == "b" and not old:
            old.append(h)
            return True
        return False

    pair.drops = hold
    pair.run(SECOND)
    machine = pair.ends["a"]
    before = machine.deadline
    stale = Hello(1, 200, old[0].sequence, DOWN, POLL, H, 3, old[0].sent_us)
    assert machine.handle(pair.now, Received("b", stale)) == NOTHING
    assert machine.deadline == before
    assert machine.is_up("b")


def test_a_neighbour_that_shuts_the_link_is_believed_at_once() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.give("b", NeighbourGone("a"))
    pair.run(10 * MS)
    assert pair.told[-1][1:] == ("a", LinkDown("b", "neighbour shut"))
    assert pair.sent[-1][2].state == ADMIN_DOWN or pair.sent[-2][2].state == ADMIN_DOWN
    assert pair.ends["b"].deadline == NEVER
    pair.give("b", NeighbourSet("a", 100, 1, H))
    pair.run(SECOND)


def test_five_percent_loss_is_gray_not_down_and_heals() -> None:
    pair = Pair()
    pair.run(SECOND)
    pair.told.clear()
    random = Random("loss")
    pair.drops = lambda source, *_: source == "b" and random.random() < 0.05
    pair.run(30 * SECOND)
    assert "LinkDown" not in pair.kinds("a") + pair.kinds("b")
    gray = [(at, end) for at, end, f in pair.told if type(f) is LinkQuality and f.gray]
    assert {end for _, end in gray} == {"a", "b"}  # b learns it from a's counters.
    pair.drops = lambda *_: False
    pair.run(60 * SECOND)
    quality = {s.node: s for m in pair.ends.values() for s in m.statistics()}
    assert not quality["a"].gray
    assert not quality["b"].gray


def test_gray_failure_is_found_in_seconds_and_never_at_a_tenth_of_a_percent() -> None:
    found: list[int] = []
    for seed in range(15):
        pair = Pair(f"gray {seed}")
        random = Random(f"loss {seed}")
        pair.run(SECOND)
        start = pair.now
        pair.drops = lambda source, *_, r=random: source == "b" and r.random() < 0.05
        while not pair.ends["a"].statistics()[0].gray:
            pair.run(200 * MS)
            assert pair.now < start + 60 * SECOND
        found.append(pair.now - start)
    found.sort()
    assert found[7] <= 12 * SECOND
    calm = Pair("calm")
    random = Random("calm")
    calm.drops = lambda *_: random.random() < 0.001
    calm.run(120 * SECOND)
    assert not any(type(f) is LinkQuality and f.gray for _, _, f in calm.told)


def test_traffic_counts_find_a_gray_link_without_waiting_for_hellos() -> None:
    pair = Pair()
    pair.run(SECOND)
    for _ in range(10):
        pair.give("a", Counted("b", good=95, lost=5))
    pair.run(200 * MS)
    assert pair.ends["a"].statistics()[0].gray


def test_round_trip_time_leaves_the_dwell_out() -> None:
    pair = Pair()
    pair.run(3 * SECOND)
    assert all(m.statistics()[0].rtt_us == 2 * DELAY for m in pair.ends.values())


def test_a_dead_agent_is_a_flag_not_a_dead_link() -> None:
    pair = Pair()
    pair.give("b", AgentAlive(True))
    pair.run(SECOND)
    assert pair.ends["a"].statistics()[0].agent_alive
    pair.told.clear()
    pair.give("b", AgentAlive(False))
    pair.run(SECOND)
    ((_, end, fact),) = pair.told
    assert end == "a"
    assert type(fact) is LinkQuality
    assert not fact.agent_alive


def test_a_neighbour_long_dead_gets_few_hellos() -> None:
    machine = links()
    machine.handle(Instant(0), NeighbourSet("b", 7, 1, H))
    count = 0
    while machine.deadline < 60 * SECOND:
        count += len(sent(machine.handle(machine.deadline, Tick())))
    assert 100 + 50 <= count <= 135 + 68


def test_the_slower_end_sets_the_pace() -> None:
    machine = links()
    machine.handle(Instant(0), NeighbourSet("b", 7, 1, 10 * MS))
    slow = Hello(1, 7, 1, DOWN, 0, 400 * MS, 5, 1)
    machine.handle(Instant(0), Received("b", slow))
    machine.handle(Instant(1), Received("b", Hello(1, 7, 2, UP, 0, 400 * MS, 5, 1)))
    facts: list[tuple[int, Value]] = []
    while not any(type(f) is LinkDown for _, f in facts):
        at = machine.deadline
        facts += [(at, f) for f in told(machine.handle(at, Tick()))]
    assert facts[-1] == (1 + 5 * 400 * MS, LinkDown("b", "silent"))


def test_neighbours_are_bounded() -> None:
    machine = links()
    for index in range(NEIGHBOURS_MAX):
        assert machine.handle(Instant(0), NeighbourSet(f"n{index}", 7, 1, H)) == NOTHING
    refused = machine.handle(Instant(0), NeighbourSet("more", 7, 1, H))
    assert refused == (LinkDown("more", "too many neighbours"),)


def test_many_neighbours_keep_their_heap_small() -> None:
    machine = Links(9, Random(0), Config())
    for index in range(64):
        machine.handle(Instant(0), NeighbourSet(f"n{index}", 7, 1, H))
    now = Instant(0)
    for step in range(200):
        now = Instant(step * 10 * MS)
        machine.handle(now, Tick())
        for index in range(64):
            machine.handle(now, Received(f"n{index}", hello(step + 1, step % 4, POLL)))
        assert len(machine._heap) <= 4 * 64 + 1


@given(st.data())
def test_laws_hold_for_any_events(data: st.DataObject) -> None:
    """Replay, honest deadline, progress, bounded; and facts alternate as they must."""
    pair = (links("x"), links("x"))
    now = Instant(SECOND)
    told_of: dict[str, str] = {}
    nodes = st.sampled_from(["b", "c", "d"])
    hellos = st.builds(
        Hello,
        link=st.just(1),
        incarnation=st.sampled_from([7, 7, 7, 8]),
        sequence=st.integers(1, 300),
        state=st.integers(ADMIN_DOWN, UP),
        flags=st.integers(0, 15),
        interval_us=st.integers(MS, SECOND),
        multiplier=st.integers(1, 5),
        sent_us=st.integers(0, 10 * SECOND),
        echo_us=st.integers(0, 10 * SECOND),
        dwell_us=st.integers(0, SECOND),
        good=st.integers(0, 2**32 - 1),
        lost=st.integers(0, 2**32 - 1),
    )
    events: st.SearchStrategy[Event | None] = st.one_of(
        st.builds(Received, nodes, hellos),
        st.builds(
            NeighbourSet, nodes, st.sampled_from([7, 8]), st.just(1), st.just(H), st.booleans()
        ),
        st.builds(NeighbourGone, nodes),
        st.builds(AgentAlive, st.booleans()),
        st.builds(Counted, nodes, st.integers(0, 2000), st.integers(0, 2000)),
        st.none(),
    )
    for _ in range(data.draw(st.integers(1, 40))):
        event = data.draw(events)
        if event is None:
            deadline = pair[0].deadline
            if deadline == NEVER:
                continue
            late = data.draw(st.sampled_from([-1, 0, 0, 0, 5 * MS, SECOND]))
            now = Instant(max(now, deadline + late))
            early = now < deadline
            event = Tick()
        else:
            now = Instant(now + data.draw(st.integers(0, 50 * MS)))
            early = False
        before = pair[0].statistics()
        first, second = (machine.handle(now, event) for machine in pair)
        assert first == second
        assert pair[0].deadline == pair[1].deadline
        if type(event) is Tick:
            assert not early or (first == NOTHING and pair[0].statistics() == before)
            assert pair[0].deadline > now
        for fact in told(first):
            match fact:
                case LinkUp(node=node):
                    assert told_of.get(node, "down") in ("down", "suspected")
                    told_of[node] = "up"
                case LinkSuspected(node=node):
                    assert told_of[node] == "up"
                    told_of[node] = "suspected"
                case LinkDown(node=node):
                    assert told_of[node] in ("up", "suspected")
                    told_of[node] = "down"
                case LinkQuality(node=node):
                    assert told_of[node] == "up"


@pytest.mark.parametrize("interval", [0, 11 * SECOND])
def test_an_interval_out_of_range_is_our_bug(interval: int) -> None:
    with pytest.raises(AssertionError):
        links().handle(Instant(0), NeighbourSet("b", 7, 1, interval))


def test_hellos_to_several_neighbours_go_in_one_wakeup() -> None:
    for seed in range(20):
        machine = links(str(seed))
        draw = Random(seed)
        now = Instant(SECOND)
        went: dict[str, list[int]] = {}
        for number in range(5):
            machine.handle(now, NeighbourSet(f"n{number}", 7, number, H))
            now = Instant(now + draw.randrange(H))
        wakeups = set()
        while (now := Instant(max(now, machine.deadline))) < 8 * SECOND:
            for effect in machine.handle(now, Tick()):
                assert type(effect) is Send
                went.setdefault(effect.dst, []).append(now)
                wakeups.add(now)
        for times in went.values():  # Jitter as in RFC 5880 section 6.8.7.
            gaps = {b - a for a, b in itertools.pairwise(times[1:])}
            assert min(gaps) >= H * 3 // 4
            assert max(gaps) <= H
            assert len(gaps) > 20
        late = [at for at in wakeups if at > 5 * SECOND]
        hellos = sum(at > 5 * SECOND for times in went.values() for at in times)
        assert len(late) * 4 < hellos, (seed, len(late), hellos)
