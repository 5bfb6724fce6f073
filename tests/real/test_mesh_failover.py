"""A silent link and a dead relay on six hosts: the short form of `bench/failover_tcp.py`."""

from __future__ import annotations

import pytest

from bench import failover_tcp
from bench.outcome import Outcome
from tests.real.hosts import Hosts
from tests.real.lab import scratch

pytestmark = pytest.mark.netns


def test_requests_go_on_around_a_silent_link_and_a_dead_relay() -> None:
    outcome = Outcome()
    with scratch("failover") as root, Hosts(*failover_tcp.NODES) as hosts:
        net = failover_tcp.OurNet(hosts, root / "ours", 100)
        failover_tcp.outages(outcome, "ours", net, root, ["silent", "killed"], 1)
    assert not outcome.bad
    for fault, found in outcome.figures["ours_outage_ms"].items():
        assert 0 <= found["max"] < 1500, (fault, found)  # The figures are the measurement's.


@pytest.mark.night
@pytest.mark.timeout(1800)
def test_outages_beside_babeld() -> None:
    outcome = Outcome(print)
    with scratch("failover5") as root:
        failover_tcp.measure(outcome, root, failover_tcp.parser().parse_args([]))
    assert not outcome.bad
