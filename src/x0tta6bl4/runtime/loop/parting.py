"""Connections that are told a last word before they are closed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.loop.poll import READ, Loop

PARTING_US: Final = 1 * SECOND
PARTING_BYTES_MAX: Final = 1 << 18
PARTINGS_MAX: Final = 64


@final
class Partings:
    """Says a last word on each connection, and closes it without a reset that could overtake it.

    At PARTINGS_MAX the oldest is closed at once.

    Args:
        loop: the proxy's loop.
    """

    __slots__ = ("_loop", "_open")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._open: dict[_Parting, None] = {}

    def __len__(self) -> int:
        """How many are parting."""
        return len(self._open)

    def say(self, sock: socket.socket, word: bytes) -> None:
        """Send what fits of a last word, and close in order.

        Args:
            sock: non-blocking, not watched by the loop; owned from here on.
            word: what to say; may be empty.
        """
        try:
            if word:
                sock.send(word)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # It has gone away meanwhile.
            sock.close()
            return
        if len(self._open) >= PARTINGS_MAX:
            next(iter(self._open)).close()
        self._open[_Parting(self._loop, sock, self._ended)] = None

    def close(self) -> None:
        """Close them all now."""
        for parting in tuple(self._open):
            parting.close()

    def _ended(self, parting: _Parting) -> None:
        del self._open[parting]


@final
class _Parting:
    """Reads and drops what still comes, so that a reset does not overtake the refusal sent.

    Args:
        loop: the proxy's loop.
        sock: shut for writing; owned.
        on_end: takes this, once.
    """

    __slots__ = ("_left", "_loop", "_on_end", "_sock", "_timer")

    def __init__(self, loop: Loop, sock: socket.socket, on_end: Callable[[_Parting], None]) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._on_end = on_end
        self._left = PARTING_BYTES_MAX
        self._timer = loop.after(PARTING_US, self.close)
        loop.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        """Close it now."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._timer.cancel()
            self._loop.drop(sock.fileno())
            sock.close()
            self._on_end(self)

    def _ready(self, mask: int) -> None:
        assert self._sock is not None
        try:
            count = len(self._sock.recv(65536))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._left -= count
        if not count or self._left <= 0:
            self.close()
