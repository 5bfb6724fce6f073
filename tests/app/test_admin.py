"""The admin socket: one request, one answer; a stream of statuses; nobody else gets in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.node_admin import FakeNode
from x0tta6bl4.app.admin import SOCKET_NAME, AdminClient, AdminServer
from x0tta6bl4.runtime.local import peer_of
from x0tta6bl4.wire.admin import (
    ADMIN_FRAME_BYTES_MAX,
    CheckAnswer,
    Drain,
    Explain,
    ExplainDenied,
    Explanation,
    Fine,
    GetCheck,
    GetMetrics,
    GetPath,
    GetStatus,
    GetSupport,
    PathAnswer,
    Renew,
    Status,
    Stop,
    Support,
    Text,
)
from x0tta6bl4.wire.errors import Conflict, Refused, Unavailable, X0Error


@contextlib.contextmanager
def served(directory: Path, node: FakeNode | None = None) -> Iterator[FakeNode]:
    """An agent's admin socket in a thread, as the agent would serve it."""
    node = node or FakeNode()
    ready, errors = threading.Event(), list[BaseException]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        server = AdminServer(directory / SOCKET_NAME, node)
        try:
            await server.start()
        except X0Error as error:
            errors.append(error)
            return
        finally:
            ready.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        if errors:
            raise errors[0]
        yield node
    finally:
        if not errors:
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()


def test_each_request_has_its_answer(tmp_path: Path) -> None:
    with served(tmp_path) as node, AdminClient(tmp_path) as client:
        assert client.ask(GetStatus(), Status).sessions == node.status().sessions
        assert client.ask(GetPath("a", "c"), PathAnswer).paths == (("a", "b", "c"),)
        assert client.ask(GetCheck(), CheckAnswer).findings[0].id == "X0-CHK-001"
        assert "x0_" in client.ask(GetMetrics(), Text).text
        assert client.ask(GetSupport(), Support).files.keys() == {"status.json"}
        assert client.ask(Explain("s", "t"), Explanation).allowed
        why = client.ask(ExplainDenied("spiffe://a/b"), CheckAnswer).findings[0]
        assert why.what == "no entry gives spiffe://a/b"
        assert client.ask(Renew(), Fine) == Fine("2 renewed")
        assert client.ask(Drain(100), Fine) == Fine()
        assert client.ask(Stop(), Fine) == Fine()
    assert node.asked == [
        "path",
        "check",
        "metrics",
        "support",
        "explain",
        "explain_denied",
        "renew",
        "drain",
        "stop",
    ]


def test_what_the_node_refuses_is_raised_with_id_and_hint(tmp_path: Path) -> None:
    with (
        served(tmp_path),
        AdminClient(tmp_path) as client,
        pytest.raises(Refused, match=r"X0-PTH-001: no node 'nowhere'. see x0 status"),
    ):
        client.ask(GetPath("a", "nowhere"), PathAnswer)


def test_a_watch_goes_on_until_the_asker_hangs_up(tmp_path: Path) -> None:
    with served(tmp_path), AdminClient(tmp_path) as client:
        statuses = client.watch(100)
        uptimes = [next(statuses).uptime_ms for _ in range(3)]
        assert uptimes == sorted(set(uptimes))


def test_the_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    with served(tmp_path):
        mode = (tmp_path / SOCKET_NAME).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_the_kernel_says_who_is_calling() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours).uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_is_told_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even through a socket and a directory whose modes somebody has widened."""
    with served(tmp_path):
        monkeypatch.chdir(tmp_path)
        Path(SOCKET_NAME).chmod(0o666)
        assert _said_to_nobody() == 1  # The directory already says no.
        tmp_path.chmod(0o711)
        assert _said_to_nobody() == 0


def _said_to_nobody() -> int:
    """0 if the server refuses uid 65534 by name, 1 if it can't even connect, 2 otherwise."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(10)
                connection.connect(SOCKET_NAME)
                code = 0 if b"X0-ADM-002" in connection.recv(4096) else 2
        except PermissionError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_agent_is_a_conflict(tmp_path: Path) -> None:
    with served(tmp_path):
        with pytest.raises(Conflict, match=r"X0-RUN-003"), served(tmp_path):
            pass
        with AdminClient(tmp_path) as client:  # The first goes on.
            assert client.ask(GetStatus(), Status).node == "a"


def test_a_socket_left_by_a_dead_agent_is_taken_over(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / SOCKET_NAME))
    dead.close()
    with served(tmp_path), AdminClient(tmp_path) as client:
        assert client.ask(GetStatus(), Status).node == "a"


def test_garbage_ends_that_connection_alone(tmp_path: Path) -> None:
    with served(tmp_path):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.settimeout(5)
            rude.connect(str(tmp_path / SOCKET_NAME))
            rude.sendall((ADMIN_FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
            assert rude.recv(1) == b""
        with AdminClient(tmp_path) as client:
            assert client.ask(GetStatus(), Status).node == "a"


def test_no_agent_is_one_line_with_what_to_start(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"X0-ADM-001: no agent is running at .*x0 node run"):
        AdminClient(tmp_path)


def test_a_silent_agent_is_not_awaited_for_ever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / SOCKET_NAME))
        mute.listen()
        with (
            AdminClient(tmp_path, timeout_s=0.05) as client,
            pytest.raises(Unavailable, match=r"X0-ADM-003.*does not answer"),
        ):
            client.ask(GetStatus(), Status)
