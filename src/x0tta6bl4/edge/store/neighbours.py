"""Authorities that share one store on one machine: who is there, who leads, and a bell.

    lock          held shared by everybody, alone by who makes or migrates the store
    lock-<name>   held by the one authority of that name
    leader        held by the one that leads; the kernel takes it back when its process ends
    bell-<name>   a datagram socket: who has changed rows rings at all others

Files and sockets lie beside the database, in a directory of their user alone.

Source: flock(2), unix(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Final

from x0tta6bl4.wire.errors import Conflict

_BELL: Final = "bell-"
_READ_BYTES: Final = 16
SHARE_S: Final = 1.0
"""Waits so long for who makes or migrates the store just now."""
_LOOK_S: Final = 0.01


class Neighbours:
    """This authority among those of its store.

    Args:
        directory: of the store.
        name: of this authority.

    Raises:
        Conflict: X0-STO-003 an authority of this name runs, or one of an older release.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._leading = False
        with contextlib.ExitStack() as undo:
            self._all = _opened(directory / "lock")
            undo.callback(os.close, self._all)
            self._own = _opened(directory / f"lock-{name}")
            undo.callback(os.close, self._own)
            if not (_shared(self._all) and _lock(self._own, fcntl.LOCK_EX)):
                raise Conflict(
                    "X0-STO-003",
                    f"another authority called {name!r} runs on {directory}",
                    "stop it first; several on one store have different names",
                )
            self._leader = _opened(directory / "leader")
            undo.callback(os.close, self._leader)
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, self._directory)
            self._bell = self._hang()
            undo.pop_all()

    def _hang(self) -> socket.socket:
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(bell.fileno(), 0o600)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_BELL + self.name, dir_fd=self._directory)
            bell.bind(self._path(self.name))
        except BaseException:
            bell.close()
            raise
        return bell

    def _path(self, name: str) -> str:
        return f"/proc/self/fd/{self._directory}/{_BELL}{name}"  # Paths of sockets are short.

    def leads(self) -> bool:
        """Whether this one leads; it does from when nobody else does, until its end."""
        self._leading = self._leading or _lock(self._leader, fcntl.LOCK_EX)
        return self._leading

    def alone(self) -> bool:
        """Whether no other runs; true keeps all others out until `share`."""
        return _lock(self._all, fcntl.LOCK_EX)

    def share(self) -> None:
        """Let others in again."""
        fcntl.flock(self._all, fcntl.LOCK_SH)

    def ring(self) -> tuple[str, ...]:
        """Have all others look at the store.

        Returns:
            Names of those that are there.
        """
        heard = []
        for file in os.listdir(self._directory):
            name = file.removeprefix(_BELL)
            if name in (file, self.name):
                continue
            try:
                self._bell.sendto(b"!", self._path(name))
            except BlockingIOError:
                pass  # It has been rung for often enough.
            except OSError:
                continue  # Nobody is behind it any more.
            heard.append(name)
        return tuple(sorted(heard))

    def fileno(self) -> int:
        """Readable when others have changed something."""
        return self._bell.fileno()

    def silence(self) -> None:
        """Take all rings in."""
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(_READ_BYTES):
                pass

    def close(self) -> None:
        """Be gone: another may lead, and have this name."""
        self._bell.close()
        with contextlib.suppress(OSError):
            os.unlink(_BELL + self.name, dir_fd=self._directory)
        for lock in (self._leader, self._own, self._all, self._directory):
            os.close(lock)


def _opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _shared(file: int) -> bool:
    until = time.monotonic() + SHARE_S
    while not _lock(file, fcntl.LOCK_SH):
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK_S)
    return True


def _lock(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
