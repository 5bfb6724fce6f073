"""Connections outlive relays and SVIDs: the short form of `bench/long_stream.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import long_stream
from bench.outcome import Outcome
from tests.real.lab import Lab, scratch

MB = 1 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A ring of six with a client on n1 and a server on n3."""
    with scratch("streams") as root, Lab(root, long_stream.shape(8)) as lab:
        lab.start()
        yield lab


def test_a_connection_outlives_its_relay_and_every_svid(lab: Lab) -> None:
    outcome = Outcome()
    long_stream.stream(outcome, lab, seconds=10, total=160 * MB, kills=1, rotations=1)
    assert not outcome.bad


def test_half_close_and_reset_pass_both_ways(lab: Lab) -> None:
    outcome = Outcome()
    long_stream.ends(outcome, lab)
    assert not outcome.bad


def test_sessions_side_by_side(lab: Lab) -> None:
    outcome = Outcome()
    long_stream.sessions(outcome, lab, 8)
    assert not outcome.bad


def test_slow_readers_hold_nobody_up(lab: Lab) -> None:
    outcome = Outcome()
    long_stream.slow(outcome, lab, count=50, seconds=4)
    assert not outcome.bad


@pytest.mark.night
@pytest.mark.timeout(600)
def test_the_whole_long_stream() -> None:
    outcome = Outcome(print)
    options = long_stream.parser().parse_args([])
    with scratch("stream") as root:
        long_stream.measure(outcome, root, options)
    assert not outcome.bad
