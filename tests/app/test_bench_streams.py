"""What measures streams over the kernel's data plane: longest answers, silences, slow cables."""

from __future__ import annotations

import array
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.kernel_streams import Stream, Way
from bench.slow_cable import STALL_EVERY_S, Lane

ASKS = Way("requests", "send", ("::1", 9))
TAKES = Way("bulk", "take", ("::1", 9))


def measured(file: Path, way: Way, *pairs: tuple[float, float]) -> Stream:
    values = array.array("d", [value for pair in pairs for value in pair])
    file.write_bytes(values.tobytes())
    return Stream(way, file)


def test_an_answer_belongs_to_the_window_of_its_request(tmp_path: Path) -> None:
    stream = measured(tmp_path / "x", ASKS, (1.0, 1.001), (1.9, 2.4), (2.1, 2.102))
    assert stream.worst_ms(1, 2) == 500.0
    assert stream.worst_ms(2, 3) == 2.0
    assert stream.worst_ms(3, 4) == math.inf
    assert stream.failed(3) == 0
    assert stream.why == ""


def test_what_was_not_answered_has_failed(tmp_path: Path) -> None:
    (tmp_path / "x.why").write_text("closed")
    stream = measured(tmp_path / "x", ASKS, (1.0, 1.001), (1.5, 0.0), (9.5, 0.0))
    assert stream.worst_ms(1, 2) == math.inf
    assert stream.failed(9) == 1
    assert stream.why == "closed"


def test_silence_at_the_ends_of_a_window_counts(tmp_path: Path) -> None:
    stream = measured(tmp_path / "x", TAKES, (1.1, 1000), (1.2, 1000), (1.5, 1000))
    assert stream.worst_ms(1, 2) == 500.0
    assert stream.worst_ms(1, 1.6) == 300.0
    assert stream.each_s(1, 2) == round(8e-6 * 3000)


@pytest.fixture
def ends() -> Iterator[tuple[int, int, int, int]]:
    made = (*os.pipe2(os.O_NONBLOCK), *os.pipe2(os.O_NONBLOCK))
    yield made
    for fd in made:
        os.close(fd)


def test_a_packet_takes_its_time_and_none_overtakes(ends: tuple[int, int, int, int]) -> None:
    out, into, arrived, sink = ends
    lane = Lane(out, sink, 0.01, 0.02, 0)
    for at in range(5):
        os.write(into, b"%d" % at)
        lane.fill(at / 1000)
    assert lane.drain(0.0099) > 0
    with pytest.raises(BlockingIOError):
        os.read(arrived, 9)
    assert lane.drain(0.035) == 1.0
    assert os.read(arrived, 9) == b"01234"


def test_all_wait_while_the_cable_stands_still(ends: tuple[int, int, int, int]) -> None:
    out, into, arrived, sink = ends
    lane = Lane(out, sink, 0.01, 0, 0.04)
    os.write(into, b"x")
    lane.fill(4 * STALL_EVERY_S)
    assert lane.drain(4 * STALL_EVERY_S + 0.011) == pytest.approx(0.029)
    lane.drain(4 * STALL_EVERY_S + 0.041)
    assert os.read(arrived, 9) == b"x"
