"""Slots: the gaps RFC 5880 section 6.8.7 asks for, found from any instant."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.links.slots import Slots

seeds = st.integers(0, 2**32 - 1)
intervals = st.integers(250, 10_000_000)


@given(seeds, intervals, st.integers(0, 10**13))
def test_gaps_are_75_to_100_percent_of_the_interval(seed: int, interval: int, now: int) -> None:
    slots = Slots(seed)
    times = [now := slots.next(interval, now) for _ in range(20)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) * 4 >= interval * 3
    assert max(gaps) <= interval


@given(seeds, intervals, st.integers(0, 10**13))
def test_the_next_slot_is_the_first_after_now(seed: int, interval: int, now: int) -> None:
    slots = Slots(seed)
    at = slots.next(interval, now)
    number = slots.number(interval, now)
    assert slots.slot(interval, number) <= now < at == slots.slot(interval, number + 1)
    assert (slots.interval_us, slots.at) == (interval, at)
    assert slots.after <= now


def test_gaps_are_spread_over_the_whole_quarter() -> None:
    slots = Slots(7)
    times = [slots.slot(100_000, number) for number in range(2_000)]
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    assert gaps[100] < 83_000
    assert 86_500 < gaps[1000] < 88_500
    assert gaps[-100] > 92_000
    assert len(set(gaps)) > 1_500
