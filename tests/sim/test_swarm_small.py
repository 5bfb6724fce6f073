"""Committed seeds of the swarm: each is a world with faults, and all laws hold in it."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest
from click.testing import CliRunner

from x0tta6bl4.app.cli.sim import sim
from x0tta6bl4.runtime.sim import swarm
from x0tta6bl4.runtime.sim.faults import KINDS

SEEDS = (0, 1, 3, 5, 6, 8, 10, 12, 13, 148)


def test_laws_hold_in_the_committed_seeds() -> None:
    reports = [swarm.judged(seed) for seed in SEEDS]
    red = {report.seed: report.broken for report in reports if report.broken}
    assert not red, "x0 sim run --seed N --trace"
    assert statistics.median(report.nodes for report in reports) >= 12
    assert min(report.virtual_s for report in reports) >= 60
    assert statistics.median(sum(report.faults.values()) for report in reports) >= 3
    assert sum(report.streams.get("done", 0) for report in reports) >= 500


def test_every_kind_of_fault_is_drawn() -> None:
    drawn = Counter(fault.kind for seed in range(60) for fault in swarm.prepared(seed)[1])
    assert not set(KINDS) - set(drawn)


@pytest.mark.night
@pytest.mark.timeout(3600)
def test_laws_hold_in_many_seeds() -> None:
    done = CliRunner().invoke(sim, ["swarm", "--seeds", "2000", "--from", "1000", "--jobs", "2"])
    assert done.exit_code == 0, done.output


def test_the_command_runs_a_seed() -> None:
    done = CliRunner().invoke(sim, ["run", "--seed", "3", "--nodes", "3", "--seconds", "6"])
    assert done.exit_code == 0, done.output
    assert "all laws hold" in done.output
