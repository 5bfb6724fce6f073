"""The instruments themselves, pointed at a plain server: what they miss here they always miss."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.long_stream import Both
from bench.sockets import Observer, connections
from tests.real.lab import PAGE_BYTES, ServerProcess, Ticks, get_page
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import Watcher


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the server answers with."""
    path = tmp_path_factory.mktemp("lab") / "page"
    path.write_bytes(os.urandom(PAGE_BYTES))
    return path


@pytest.fixture(scope="module")
def server(page: Path) -> Iterator[ServerProcess]:
    """A server without a mesh."""
    server = ServerProcess(page)
    yield server
    server.stop()


def test_both_directions_are_hashed(server: ServerProcess) -> None:
    both = Both(("127.0.0.1", server.ports[0]), 3_000_000, 20_000_000)
    both.join(20)
    assert not both.error
    assert both.equal


def test_a_connection_that_ends_early_is_no_success(page: Path) -> None:
    server = ServerProcess(page)
    both = Both(("127.0.0.1", server.ports[0]), 50_000_000, 5_000_000)
    wait_for(lambda: both.received > 0, "bytes", 10)
    server.stop()
    both.join(20)
    assert both.error
    assert not both.equal


def test_ticks_come_in_order_and_say_how_they_ended(page: Path) -> None:
    server = ServerProcess(page)
    ticks = Ticks(("127.0.0.1", server.ports[0]), 5)
    wait_for(lambda: ticks.count >= 10, "ticks", 10)
    assert not ticks.ended
    server.stop()
    wait_for(lambda: bool(ticks.ended), "the end", 10)
    assert ticks.ended in ("closed", "ConnectionResetError")


def test_a_watcher_sees_answers_and_failures(page: Path) -> None:
    server = ServerProcess(page)
    address = ("127.0.0.1", server.ports[0])
    assert get_page(address) == page.read_bytes()
    watcher = Watcher(f"127.0.0.1:{address[1]}", page, ["--kept", "2", "--rate", "50"])
    wait_for(lambda: sum(s.ok for s in watcher.samples) > 10, "answers", 10)
    assert not watcher.failed()
    server.stop()
    wait_for(lambda: bool(watcher.failed()), "failures", 10)
    watcher.finish(5)
    assert get_page(address) == b""


def test_the_observer_finds_a_connection_that_lives_too_long() -> None:
    """Two processes that are no proxies hold a connection; the observer is told they are."""
    code = (
        "import socket,sys\n"
        "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\nprint(1,flush=True)\ns.recv(1)"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.getsockname()[1])],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        child.stdout.readline()
        accepted, _ = listener.accept()
        pids = {"n1/proxy": child.pid, "n2/proxy": os.getpid()}
        assert set(connections(pids).values()) & {
            ("n1/proxy", "n2/proxy"),
            ("n2/proxy", "n1/proxy"),
        }
        end = int(time.clock_gettime(time.CLOCK_REALTIME)) + 1
        told = (end + 2.0, {"n1": (0, end), "n2": (0, end)})
        observer = Observer(lambda: pids, lambda: told, 0.1, 0.1)
        wait_for(lambda: bool(observer.late), "the finding", 10)
        observer.stop()
        accepted.close()
        child.wait(10)
        child.stdout.close()
    assert len(observer.late) == 1
    assert connections(pids) == {}
