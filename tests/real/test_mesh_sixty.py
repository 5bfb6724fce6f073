"""The measurement of sixty nodes, small: both kinds start, and relays of both kinds die."""

from __future__ import annotations

import pytest

from bench.outcome import Outcome
from bench.sixty import measure, parser
from tests.real.lab import scratch

pytestmark = [pytest.mark.netns, pytest.mark.night, pytest.mark.timeout(300)]


def test_twelve_nodes_of_both_kinds_lose_relays_and_no_request() -> None:
    outcome = Outcome()
    with scratch("sx") as root:
        measure(outcome, root, parser().parse_args(["--nodes=12", "--idle=1", "--kills=4"]))
    assert outcome.checks
    assert not outcome.bad
    assert outcome.figures["PSS, MB"]["kernel maps of a node in kernel mode"]["most"] > 0
