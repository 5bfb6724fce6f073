"""Accepting in batches, and holding back for a moment when no descriptor is left.

Without the pause a level-triggered loop would spin over connections that can't be accepted.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import MS
from x0tta6bl4.runtime.loop.poll import READ, Loop, Timer

BATCH_MAX: Final = 64
PAUSE_US: Final = 100 * MS
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@final
class Acceptor:
    """Accepts on one listening socket.

    Args:
        loop: the proxy's loop.
        listener: bound and listening; owned from here on.
        on_accepted: takes each new socket, non-blocking; it may call `close`.
        on_exhausted: takes the reason when nothing can be accepted for now.
    """

    __slots__ = ("_loop", "_on_accepted", "_on_exhausted", "_timer", "listener")

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        on_accepted: Callable[[socket.socket], None],
        on_exhausted: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self.listener = listener
        self._on_accepted = on_accepted
        self._on_exhausted = on_exhausted
        self._timer: Timer | None = None
        listener.setblocking(False)
        loop.add(listener.fileno(), READ, self._ready)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self.listener.fileno() >= 0:
            self._loop.drop(self.listener.fileno())
            self.listener.close()

    def _ready(self, mask: int) -> None:
        for _ in range(BATCH_MAX):
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._loop.drop(self.listener.fileno())
                    self._timer = self._loop.after(PAUSE_US, self._again)
                    self._on_exhausted(str(error.strerror).lower())
                    return
                continue  # That one was gone before it was accepted.
            sock.setblocking(False)
            self._on_accepted(sock)
            if self.listener.fileno() < 0:
                return

    def _again(self) -> None:
        self._timer = None
        self._loop.add(self.listener.fileno(), READ, self._ready)
