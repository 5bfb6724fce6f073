"""Unix sockets of this user alone: listening on one, and asking the kernel who is at the other end.

Source: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.wire.errors import BadConfig, Conflict, Refused

PATH_BYTES_MAX: Final = 107
_CREDENTIALS: Final = struct.Struct("3i")


@final
class LocalPeer(msgspec.Struct, frozen=True, gc=False):
    """The process at the other end of a Unix socket, as the kernel noted it at connect."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: socket.socket) -> LocalPeer:
    """Who is at the other end (SO_PEERCRED)."""
    size = _CREDENTIALS.size
    return LocalPeer(
        *_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    )


def is_own(peer: LocalPeer) -> bool:
    """Whether it is a process of this user, or of root."""
    return peer.uid in (0, os.geteuid())


def listen_private(path: str | Path, what: str, backlog: int = 8) -> socket.socket:
    """Listen on a Unix socket that only this user can reach, 0600 from its first moment.

    A socket that a dead process left is taken over; anything else is left alone.

    Args:
        path: of the socket; its directory must be 0700 and ours.
        what: who listens, for the error.
        backlog: connections that may wait to be accepted.
    Returns:
        The listening socket, non-blocking.
    Raises:
        Refused: the directory is open to others.
        Conflict: a living process listens there.
        BadConfig: something else is in the way, or the path can't be used.
    """
    text = os.fspath(path)
    if len(os.fsencode(text)) > PATH_BYTES_MAX:
        raise BadConfig(
            "X0-RUN-002",
            f"the path {text} is too long for a socket",
            "at most 107 bytes: choose a shorter state_dir",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _make_way(text, what)
        before = os.umask(0o177)
        try:
            listener.bind(text)
        finally:
            os.umask(before)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise BadConfig(
            "X0-RUN-004",
            f"can't listen at {text}: {error.strerror}",
            "state_dir is a directory of this user, mode 0700",
        ) from None
    except BaseException:
        listener.close()
        raise
    return listener


def _make_way(path: str, what: str) -> None:
    where = os.path.dirname(path) or "."
    folder = os.stat(where)
    if folder.st_uid != os.geteuid() or folder.st_mode & 0o077:
        raise Refused(
            "X0-RUN-001",
            f"{where} is open to other users",
            "chmod 700 it, and let its owner run this process",
        )
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise BadConfig("X0-RUN-002", f"{path} is in the way", "remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        # EAGAIN: its backlog is full, so somebody listens.
        if probe.connect_ex(path) in (0, errno.EAGAIN):
            raise Conflict(
                "X0-RUN-003",
                f"{what} is already running on {path}",
                "stop it first, or give this one another state_dir",
            )
    os.unlink(path)
