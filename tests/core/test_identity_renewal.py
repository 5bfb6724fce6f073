"""When SVIDs are renewed: stories at instants, and the laws of machines."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.identity import renewal as module
from x0tta6bl4.core.identity.renewal import (
    PAUSE_MAX,
    Renewal,
    RenewWanted,
    SvidDropped,
    SvidExpired,
    SvidHeld,
    SvidRefused,
)
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    ClockSet,
    Done,
    Effect,
    Event,
    Failed,
    Instant,
    Tick,
)
from x0tta6bl4.wire.ids import SpiffeId

WEB = SpiffeId("spiffe://mesh.test/web")
T0 = 1_800_000_000
START = Instant(5 * SECOND)


def renewal(seed: int = 1) -> Renewal:
    machine = Renewal(Random(f"{seed}/identity/node-a"))
    assert machine.handle(START, ClockSet(T0 * SECOND)) == NOTHING
    return machine


def at(seconds: float) -> Instant:
    return Instant(START + int(seconds * SECOND))


def held(seconds: int = 0, life: int = 3_600) -> SvidHeld:
    return SvidHeld(WEB, T0 + seconds, T0 + seconds + life)


def test_an_svid_is_renewed_about_half_way() -> None:
    machine = renewal()
    assert machine.handle(START, held()) == NOTHING
    assert at(1_620) <= machine.deadline <= at(1_980)
    assert machine.handle(Instant(machine.deadline - 1), Tick()) == NOTHING
    assert machine.handle(machine.deadline, Tick()) == (RenewWanted(1, WEB),)
    assert machine.deadline == at(3_599)  # Nothing but its end is left to wait for.


def test_a_fleet_does_not_ask_at_once() -> None:
    deadlines = set()
    for seed in range(50):
        machine = renewal(seed)
        machine.handle(START, held())
        deadlines.add(machine.deadline // SECOND)
    assert len(deadlines) > 40


def test_the_new_svid_starts_again() -> None:
    machine = renewal()
    machine.handle(START, held())
    now = machine.deadline
    machine.handle(now, Tick())
    assert machine.handle(now, Done(1, held(1_800))) == NOTHING
    assert at(1_800 + 1_620) <= machine.deadline <= at(1_800 + 1_980)


def test_failures_pause_longer_and_the_valid_svid_stays_until_its_end() -> None:
    machine = renewal()
    machine.handle(START, held())
    pauses, expired, token = [], [], 0
    now = machine.deadline
    while now < at(3_700):
        for effect in machine.handle(now, Tick()):
            if type(effect) is RenewWanted:
                token = effect.token
                assert machine.handle(now, Failed(token, "authority away")) == NOTHING
                pauses.append(machine.deadline - now)
            else:
                assert effect == SvidExpired(WEB)
                expired.append(now)
        now = machine.deadline
    assert pauses[0] < 1.2 * SECOND
    assert max(pauses) <= 1.1 * PAUSE_MAX
    assert 30 < len(pauses) < 60
    assert expired == [at(3_599)]  # Once, a second before the end.


@pytest.mark.parametrize(
    "value", [None, "svid", SvidHeld(SpiffeId(WEB + "2"), T0, T0 + 1), held(0, -1)]
)
def test_an_answer_without_an_svid_is_a_failure(value: object) -> None:
    machine = renewal()
    machine.handle(START, held())
    now = machine.deadline
    machine.handle(now, Tick())
    assert machine.handle(now, Done(1, value)) == NOTHING
    assert now < machine.deadline <= now + 2 * SECOND
    assert machine.handle(machine.deadline, Tick()) == (RenewWanted(2, WEB),)


def test_getting_the_old_svid_again_is_no_storm() -> None:
    machine = renewal()
    machine.handle(START, held())
    now = machine.deadline
    machine.handle(now, Tick())
    for token in range(2, 6):
        assert machine.handle(now, Done(token - 1, held())) == NOTHING
        assert machine.deadline == now + SECOND
        now = machine.deadline
        assert machine.handle(now, Tick()) == (RenewWanted(token, WEB),)


def test_late_and_foreign_answers_are_ignored() -> None:
    machine = renewal()
    machine.handle(START, held())
    now = machine.deadline
    machine.handle(now, Tick())
    assert machine.handle(now, SvidDropped(WEB)) == NOTHING
    assert machine.deadline == NEVER
    for event in (Done(1, held(1_800)), Failed(1, "x"), Done(77), Failed(77, "x")):
        assert machine.handle(now, event) == NOTHING
        assert machine.deadline == NEVER


def test_nothing_is_planned_before_wall_time_is_known() -> None:
    machine = Renewal(Random("1/identity/node-a"))
    assert machine.handle(START, held()) == NOTHING
    assert machine.deadline == NEVER
    late = ClockSet((T0 + 4_000) * SECOND)
    assert set(machine.handle(at(1), late)) == {SvidExpired(WEB), RenewWanted(1, WEB)}


def test_a_clock_set_back_judges_again_and_does_not_stretch_a_pause() -> None:
    machine = renewal()
    machine.handle(START, held())
    machine.handle(at(1), ClockSet((T0 + 4_000) * SECOND))
    machine.handle(at(2), Failed(1, "away"))
    assert machine.handle(at(2.5), ClockSet((T0 + 1_990) * SECOND)) == NOTHING
    assert machine.deadline <= at(3.2)
    assert machine.handle(machine.deadline, Tick()) == (RenewWanted(2, WEB),)
    assert machine.handle(at(4), ClockSet((T0 + 3_600) * SECOND)) == (SvidExpired(WEB),)


def test_the_number_of_svids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SVIDS_MAX", 1)
    machine = renewal()
    new = SpiffeId("spiffe://mesh.test/new")
    assert machine.handle(START, SvidHeld(new, T0, T0)) == (
        SvidRefused(new, "ends before it begins"),
    )
    machine.handle(START, held())
    assert machine.handle(START, SvidHeld(new, T0, T0 + 9)) == (SvidRefused(new, "too many SVIDs"),)
    assert machine.handle(START, held(10)) == NOTHING  # Its own successor always fits.


EVENTS = st.one_of(
    st.builds(
        SvidHeld,
        st.sampled_from([WEB, SpiffeId(WEB + "2")]),
        st.integers(T0 - 4_000, T0 + 4_000),
        st.integers(T0 - 4_000, T0 + 8_000),
    ),
    st.builds(SvidDropped, st.just(WEB)),
    st.builds(ClockSet, st.integers((T0 - 9_000) * SECOND, (T0 + 9_000) * SECOND)),
    st.builds(
        Done,
        st.integers(0, 9),
        st.one_of(
            st.none(),
            st.builds(
                SvidHeld, st.just(WEB), st.integers(T0, T0 + 4_000), st.integers(T0, T0 + 8_000)
            ),
        ),
    ),
    st.builds(Failed, st.integers(0, 9), st.just("x")),
)
STEPS = st.lists(
    st.tuples(st.integers(0, 2_000 * SECOND), st.one_of(st.just(Tick()), EVENTS)), max_size=60
)


def play(steps: list[tuple[int, Event]]) -> list[tuple[Effect, ...]]:
    machine = Renewal(Random("1/identity/node-a"))
    now, log, out = START, [], set()
    for gap, event in steps:
        early = machine.deadline
        now = Instant(now + gap)
        if type(event) is Tick and now < early:
            assert machine.handle(now, event) == NOTHING  # Honest deadline.
            assert machine.deadline == early
            continue
        effects = machine.handle(now, event)
        if type(event) is Tick:
            assert machine.deadline > now  # Progress.
        for effect in effects:
            if type(effect) is RenewWanted:
                assert effect.token not in out  # Token.
                out.add(effect.token)
        log.append(effects)
    return log


@given(STEPS)
def test_the_laws_of_machines(steps: list[tuple[int, Event]]) -> None:
    assert play(steps) == play(steps)  # Replay.
