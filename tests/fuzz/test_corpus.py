"""What searches have found is replayed: each input does what it must, at once.

A search itself takes atheris and time: `make fuzz`.
"""

from __future__ import annotations

import time

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import corpus
from tests.fuzz.targets import SEEDS, TARGETS
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.jwt.svid import read_unverified
from x0tta6bl4.wire.ids import SpiffeId

SECONDS_MAX = 2.0
"""For one input, on a machine that is busy with other things."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_replayed(name: str) -> None:
    found = corpus(name)
    assert len(found) >= 10
    for data in found:
        start = time.process_time()
        TARGETS[name](data)
        assert time.process_time() - start < SECONDS_MAX, data.hex()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_believed_and_parts_of_them_are_not(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for at in range(0, len(seed), 1 + len(seed) // 100):
            TARGETS[name](seed[:at])
            TARGETS[name](seed[:at] + bytes([seed[at] ^ 0x10]) + seed[at + 1 :])


class Gullible:
    """A judge that allows everybody."""

    def judge(self, *_: object) -> object:
        return type("Said", (), {"verdict": Allowed(SpiffeId(targets.WEB))})()


def test_a_judge_that_believes_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "Judge", lambda *_: Gullible())
    TARGETS["certificate"](targets.LEAF)
    with pytest.raises(AssertionError):
        TARGETS["certificate"](targets.ANCHOR)


def test_a_token_that_is_believed_without_a_signature_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets, "judge_token", lambda text, *_: read_unverified(text))
    for seed in SEEDS["token"][:2]:
        TARGETS["token"](seed)
    with pytest.raises(AssertionError):
        TARGETS["token"](SEEDS["token"][2])
    assert read_unverified("") == Denied("not a compact token")
