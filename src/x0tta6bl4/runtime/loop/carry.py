"""Carries a local or enrolling connection to the authority, by the first way that answers.

The ways are tried in turn.  What the client has said is kept (at most HELD_BYTES_MAX) until one of
them answers with something else than a refusal; from then on a relay joins the two.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol, final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.loop.connect import OnConnected, reset
from x0tta6bl4.runtime.loop.poll import READ, WRITE, Loop, Timer
from x0tta6bl4.wire.hop import unpack_refusal

HELD_BYTES_MAX: Final = 64 * 1024
ANSWER_US: Final = 5 * SECOND
"""Deadline for the first answer of one way."""


class Cancellable(Protocol):
    """Something under way that can be stopped."""

    def cancel(self) -> None:
        """Stop it; its callback is not called any more."""
        ...


Way = Callable[[OnConnected], Cancellable]


@final
class Carry:
    """One connection on its way to the authority.

    Args:
        loop: the proxy's loop.
        sock: the client's; owned until `on_joined` or `on_failed`.
        ways: how to get there, best first.
        on_joined: takes the client's and the authority's socket, to be relayed.
        on_failed: takes the reason of the last way's failure; the client's socket is closed.
    """

    __slots__ = (
        "_answer",
        "_dialling",
        "_held",
        "_loop",
        "_on_failed",
        "_on_joined",
        "_sent",
        "_sock",
        "_timer",
        "_up",
        "_watched",
        "_ways",
        "_why",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        ways: Sequence[Way],
        on_joined: Callable[[socket.socket, socket.socket], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._ways = list(ways)
        self._on_joined = on_joined
        self._on_failed = on_failed
        self._held = bytearray()
        self._sent = 0
        self._answer = bytearray()
        self._up: socket.socket | None = None
        self._dialling: Cancellable | None = None
        self._timer: Timer | None = None
        self._why = "no way to the authority"
        self._watched = True
        loop.add(sock.fileno(), READ, self._from_client)
        loop.after_batch(self._next)

    def cancel(self, reason: str) -> None:
        """Give up and close the client's connection; `on_failed` hears `reason`."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._drop_way()
        self._loop.drop(sock.fileno())
        reset(sock)
        self._on_failed(reason)

    def _next(self) -> None:
        """Try the next way."""
        self._drop_way()
        if self._sock is None:
            return
        if not self._ways:
            return self.cancel(self._why)
        self._sent = 0
        self._answer.clear()
        self._timer = self._loop.after(ANSWER_US, lambda: self._failed("no answer in 5 s"))
        self._dialling = self._ways.pop(0)(self._reached)
        return None

    def _reached(self, up: socket.socket | None, why: str) -> None:
        self._dialling = None
        if up is None:
            return self._failed(why)
        self._up = up
        self._loop.add(up.fileno(), READ | WRITE, self._from_way)
        return None

    def _failed(self, why: str) -> None:
        self._why = why
        self._next()

    def _from_client(self, mask: int) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(HELD_BYTES_MAX - len(self._held))
        except BlockingIOError:
            return
        except OSError as error:
            return self.cancel(str(error.strerror).lower())
        if not data:
            return self.cancel("closed by the client")
        self._held += data
        if len(self._held) >= HELD_BYTES_MAX:
            self._loop.drop(self._sock.fileno())
            self._watched = False
        if self._up is not None:
            self._loop.set(self._up.fileno(), READ | WRITE)
        return None

    def _from_way(self, mask: int) -> None:
        up = self._up
        assert up is not None
        try:
            if mask & WRITE:
                self._sent += up.send(memoryview(self._held)[self._sent :])
                if self._sent == len(self._held):
                    self._loop.set(up.fileno(), READ)
            data = up.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            return self._failed(str(error.strerror).lower())
        if not data:
            return self._failed("closed before an answer")
        self._answer += data
        refused = unpack_refusal(self._answer)
        if refused:
            self._failed(refused)
        elif refused is None:
            self._join(up)
        return None

    def _join(self, up: socket.socket) -> None:
        """The authority's own voice: pass it on and let a relay do the rest."""
        sock, self._sock, self._up = self._sock, None, None
        assert sock is not None
        self._drop_way()
        self._loop.drop(sock.fileno())
        self._loop.drop(up.fileno())
        try:
            up.sendall(memoryview(self._held)[self._sent :])
            sock.sendall(self._answer)
        except OSError:  # Also: neither buffer takes a few KiB, so nobody reads.
            reset(sock)
            reset(up)
            self._on_failed("ended at its first bytes")
            return
        self._on_joined(sock, up)

    def _drop_way(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        dialling, self._dialling = self._dialling, None
        if dialling is not None:
            dialling.cancel()
        up, self._up = self._up, None
        if up is not None:
            self._loop.drop(up.fileno())
            up.close()
