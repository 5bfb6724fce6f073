"""Laws of the replay window and of the judgement of loss."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.links.quality import WINDOW, Loss, Quality, Window


@given(st.lists(st.integers(1, 200), max_size=300))
def test_no_sequence_is_accepted_twice(sequences: list[int]) -> None:
    window = Window()
    accepted: list[int] = []
    for sequence in sequences:
        if window.fresh(sequence):
            assert sequence > window.top - WINDOW
            window.accept(sequence)
            accepted.append(sequence)
            assert not window.fresh(sequence)
    assert len(accepted) == len(set(accepted))
    assert window.top == max(sequences, default=0)


@given(st.sets(st.integers(2, 400)))
def test_in_order_every_sequence_is_judged_once(lost: set[int]) -> None:
    window = Window()
    good_sum = lost_sum = 0
    for sequence in range(1, 500):
        if sequence not in lost:
            good, gone = window.accept(sequence)
            good_sum += good
            lost_sum += gone
    runs = _longest_run(lost)
    if runs < WINDOW - 1:
        assert lost_sum == len(lost)
        assert good_sum == 499 - 3 - len(lost)


def _longest_run(lost: set[int]) -> int:
    longest = 0
    for sequence in lost:
        if sequence - 1 not in lost:
            end = sequence
            while end in lost:
                end += 1
            longest = max(longest, end - sequence)
    return longest


def test_a_swap_of_neighbours_is_no_loss() -> None:
    window = Window()
    order = [1, 2, 4, 3, 5, 7, 8, 6, 9, 10, 11, 12]
    judged = [window.accept(sequence) for sequence in order]
    assert sum(lost for _, lost in judged) == 0
    assert sum(good for good, _ in judged) == 12 - 3


def test_an_outage_longer_than_the_window_is_not_counted_as_loss() -> None:
    window = Window()
    window.accept(1)
    assert window.accept(1000) == (0, 0)
    assert window.accept(1004) == (1, 0) or window.accept(1005)[1] <= 3


def test_gray_needs_five_losses_close_together() -> None:
    loss = Loss()
    for _ in range(4):
        loss.count(good=1, lost=1)
    assert loss.watched
    assert not loss.gray
    loss.count(good=0, lost=1)
    assert loss.gray
    loss.count(good=249, lost=0)
    assert loss.gray
    loss.count(good=1, lost=0)
    assert not loss.gray


def test_loss_at_the_accepted_rate_raises_no_alarm() -> None:
    loss = Loss()
    random = Random("half a percent")
    alarms = 0
    for _ in range(20_000):
        before = loss.gray
        lost = random.random() < 0.002
        loss.count(good=not lost, lost=lost)
        alarms += loss.gray and not before
    assert alarms == 0


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=50))
def test_loss_stays_a_share(samples: list[tuple[int, int]]) -> None:
    loss = Loss()
    for good, lost in samples:
        loss.count(good, lost)
        assert 0 <= loss.ppm <= 1_000_000
        assert not (loss.gray and loss.watched)


def test_loss_forgets() -> None:
    loss = Loss()
    loss.count(good=0, lost=10)
    for _ in range(5):
        loss.count(good=1000, lost=0)
    assert loss.ppm == 0


@given(st.lists(st.integers(-1000, 10**9), min_size=1, max_size=60))
def test_round_trip_time_stays_within_its_samples(samples: list[int]) -> None:
    quality = Quality()
    for sample in samples:
        quality.sample_rtt(sample)
    taken = [max(sample, 1) for sample in samples if sample >= 0]
    if taken:
        assert min(taken) <= quality.rtt_us <= max(taken)
    else:
        assert quality.rtt_us == 0


def test_reports_survive_their_overflow_and_their_overtaking() -> None:
    quality = Quality()
    quality.reported(good=2**32 - 10, lost=2**32 - 1)
    quality.reported(good=5, lost=4)
    assert quality.tx.gray
    quality.reported(good=0, lost=3)  # Sent before the one above.
    assert quality.tx.gray
    quality.reported(good=260, lost=4)
    assert not quality.tx.gray
