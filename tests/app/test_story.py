"""The load of the demo against a real HTTP server, and what its windows say."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from x0tta6bl4.app.mesh import free_ports, wait_for
from x0tta6bl4.app.story import Report, Sample, Watcher, write_report

PAGE = os.urandom(1024)
BULK = os.urandom(3_000_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    (tmp_path / "page").write_bytes(PAGE)
    (tmp_path / "bulk").write_bytes(BULK)
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--protocol", "HTTP/1.1", "--bind", "127.0.0.1",
         "--directory", str(tmp_path), str(port)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield f"127.0.0.1:{port}", process
    process.kill()
    process.wait()


def _started(watcher: Watcher, at_least: int) -> None:
    wait_for(lambda: sum(s.ok for s in watcher.samples) >= at_least, "answers", 20)


def test_requests_on_kept_and_fresh_connections_and_a_download_are_counted(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    wait_for(lambda: _listens(server[0]), "the server", 10)
    begin = time.monotonic()
    load = Watcher(server[0], tmp_path / "page", ["--bulk", "/bulk", "--pace", "100000000"])
    _started(load, 60)
    load.finish(20)
    count, failed, gap = load.window(begin, time.monotonic())
    assert count >= 60
    assert failed == []
    assert 0 < gap < 20_000
    assert load.bulk["sha256"] == hashlib.sha256(BULK).hexdigest()
    assert load.window(begin - 10, begin) == (0, [], 0.0)


def test_a_server_that_dies_is_a_failure_with_a_reason(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    wait_for(lambda: _listens(server[0]), "the server", 10)
    load = Watcher(server[0], tmp_path / "page", [])
    _started(load, 10)
    server[1].kill()
    server[1].wait()
    wait_for(lambda: bool(load.failed()), "a failure", 20)
    load.finish(20)
    assert "Error" in load.failed()[0].why


def test_a_wrong_byte_is_a_failure(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    wait_for(lambda: _listens(server[0]), "the server", 10)
    (tmp_path / "other").write_bytes(PAGE[:-1] + bytes([PAGE[-1] ^ 1]))
    load = Watcher(server[0], tmp_path / "other", [])
    wait_for(lambda: bool(load.failed()), "a failure", 20)
    load.finish(20)
    assert not any(s.ok for s in load.samples)
    assert load.failed()[0].why == "LoadError: wrong bytes"


def test_the_longest_gap_of_a_window_is_of_requests_sent_in_it() -> None:
    load = object.__new__(Watcher)
    load.samples = [
        Sample(1.0, 9.0, True, ""),
        Sample(2.0, 0.2, True, ""),
        Sample(3.0, 0.5, False, "reset"),
        Sample(9.0, 7.0, True, ""),
    ]
    count, failed, gap = load.window(1.5, 8.0)
    assert (count, len(failed), gap) == (2, 1, 500.0)


def test_the_report_is_json_with_the_promised_names(tmp_path: Path) -> None:
    write_report(Report(requests=3), tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text()
    for name in (
        "requests", "failed", "control_gap_ms_max", "acts", "bulk", "sha256_ok", "rotations",
        "impostors", "tried", "accepted", "setup_s", "story_s",
    ):  # fmt: skip
        assert f'"{name}"' in text


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
