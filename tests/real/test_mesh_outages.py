"""Agents and authority die, nobody notices: the short forms of `bench/outages.py` and others."""

from __future__ import annotations

import pytest

from bench import footprint, outages
from bench.outcome import Outcome
from tests.real.lab import Lab, scratch


def test_agents_and_authority_die_with_renewals_due() -> None:
    outcome = Outcome()
    with scratch("outage") as root, Lab(root, outages.shape(ttl_s=60)) as lab:
        lab.start()
        outages.dark(outcome, lab, short_s=3, dark_s=10)
        assert not outcome.bad


@pytest.mark.night
@pytest.mark.timeout(900)
def test_a_hundred_seconds_in_the_dark() -> None:
    outcome = Outcome(print)
    with scratch("outage100") as root:
        outages.measure(outcome, root, outages.parser().parse_args([]))
    assert not outcome.bad


@pytest.mark.night
@pytest.mark.timeout(3600)
def test_what_a_node_takes() -> None:
    outcome = Outcome(print)
    with scratch("footprint") as root:
        footprint.measure(outcome, root, footprint.parser().parse_args([]))
    assert not outcome.bad
