"""Tokens at every place that believes some: nothing false is believed, and all that is valid is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sdk.attack.bearers import BEARERS, ODD
from tests.sdk.attack.gates import GATES, Court, carry_tokens


@pytest.fixture(scope="module")
def court() -> Iterator[Court]:
    with Court() as made:
        yield made


def test_the_lists_are_long_and_their_names_are_their_own() -> None:
    assert len({case.name for case in BEARERS}) == len(BEARERS) >= 120
    assert len({one.name for one in ODD}) == len(ODD) >= 40


@pytest.mark.parametrize("gate", GATES)
def test_SP_043_044_045_047_048_049_051_052_055_every_token(court: Court, gate: str) -> None:
    count = carry_tokens(court, gate)
    assert count.wrong == []
    assert (count.refused, count.unusual) == (len(BEARERS), len(ODD))
