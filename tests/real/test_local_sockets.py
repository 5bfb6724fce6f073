"""Sockets of this user alone: who may listen where, and what becomes of what is found there."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from x0tta6bl4.runtime.local import LocalPeer, is_own, listen_private, peer_of
from x0tta6bl4.wire.errors import BadConfig, Conflict, Refused


def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == LocalPeer(os.getpid(), os.geteuid(), os.getegid())
        assert is_own(peer_of(ours))
    assert is_own(LocalPeer(1, 0, 0))
    assert not is_own(LocalPeer(1, os.geteuid() + 1, 0))


def test_a_second_one_is_refused_and_a_dead_ones_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    with listen_private(path, "a proxy", 1) as first:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(Conflict, match="X0-RUN-003: a proxy is already running on"):
            listen_private(path, "a proxy")
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for sock in waiting:  # Its backlog is full, and it is alive all the same.
            sock.setblocking(False)
            sock.connect_ex(str(path))
        with pytest.raises(Conflict, match="X0-RUN-003"):
            listen_private(path, "a proxy")
        for sock in waiting:
            sock.close()
        assert not first.getblocking()
    listen_private(path, "a proxy").close()


def test_an_open_directory_a_missing_one_and_a_long_path_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"X0-RUN-004: can't listen at .*: No such file"):
        listen_private(tmp_path / "none" / "x.sock", "a proxy")
    with pytest.raises(BadConfig, match=r"X0-RUN-002: .* too long for a socket.*107 bytes"):
        listen_private(tmp_path / ("x" * 108), "a proxy")
    tmp_path.chmod(0o755)
    with pytest.raises(Refused, match="X0-RUN-001: .* is open to other users"):
        listen_private(tmp_path / "x.sock", "a proxy")


def test_something_else_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("mine")
    with pytest.raises(BadConfig, match="X0-RUN-002: .* is in the way"):
        listen_private(path, "a proxy")
    assert path.read_text() == "mine"
