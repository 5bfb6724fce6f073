"""Transcripts are answered as written; `X0_REWRITE=1` writes the answers of now: read the diff."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from x0tta6bl4.runtime.sim.scenario import play, time
from x0tta6bl4.wire.errors import BadInput

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path) -> None:
    text = file.read_text()
    played = play(text)
    if os.environ.get("X0_REWRITE"):
        file.write_text(played)
        text = played
    assert played == text, f"X0_REWRITE=1 pytest {file} writes what happens now"


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 4


def test_an_answer_that_differs_is_seen() -> None:
    text = FILES[0].read_text().replace("link b up", "link b lost", 1)
    assert play(text) != text


@pytest.mark.parametrize("line", ["fly", "link a", "run soon", "fault magic a b", "mend cut a b"])
def test_a_command_that_makes_no_sense_is_refused(line: str) -> None:
    with pytest.raises(BadInput) as caught:
        play(f"{line}\n----\n")
    assert caught.value.id in ("X0-SIM-001", "X0-SIM-002")


def test_times() -> None:
    assert [time(text) for text in ("2ms", "1.5s", "300us")] == [2_000, 1_500_000, 300]
