"""Rotation and loss of access: the short forms of `bench/{rotations,revocation}.py`."""

from __future__ import annotations

import pytest

from bench import revocation, rotations
from bench.outcome import Outcome
from tests.real.lab import Lab, scratch


def test_rotations_cost_no_request_and_no_connection_outlives_its_svid() -> None:
    outcome = Outcome()
    with scratch("rotate") as root, Lab(root, rotations.shape(ttl_s=12)) as lab:
        lab.start()
        rotations.rotate(outcome, lab, rotations=3, lifetimes=1, rate=150)
        assert not outcome.bad


def test_access_ends_within_a_second() -> None:
    outcome = Outcome()
    with scratch("revoke") as root, Lab(root, revocation.shape()) as lab:
        lab.start()
        revocation.lost_access(outcome, lab, "policy,workload")
        assert not outcome.bad


@pytest.mark.night
@pytest.mark.timeout(900)
def test_twenty_rotations() -> None:
    outcome = Outcome(print)
    with scratch("rotate20") as root:
        rotations.measure(outcome, root, rotations.parser().parse_args([]))
    assert not outcome.bad


@pytest.mark.night
@pytest.mark.timeout(600)
def test_every_way_to_lose_access_and_who_returns() -> None:
    outcome = Outcome(print)
    with scratch("revoke3") as root:
        revocation.measure(outcome, root, revocation.parser().parse_args([]))
    assert not outcome.bad
