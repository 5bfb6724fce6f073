"""Connections until their setup frame is complete."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import final

from x0tta6bl4.runtime.loop.poll import READ, Loop
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import HEADER_BYTES, Header, unpack_header
from x0tta6bl4.wire.ids import NodeName


@final
class Setup:
    """Reads exactly one setup frame, and not a byte more: what follows is to be spliced.

    Args:
        loop: the proxy's loop.
        sock: non-blocking; owned until `on_complete`.
        node: the neighbour that must have sealed it; None: any.
        deadline_us: for the whole frame.
        on_complete: takes this, the socket and the header.
        on_broken: takes this and the reason; "" if it just ended, so nobody is to blame.

    Attributes:
        header: the 18 bytes.
        body: the sealed bytes, once complete.
    """

    __slots__ = (
        "_buffer", "_fields", "_loop", "_on_broken", "_on_complete", "_sock", "_timer", "body",
        "header", "node",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        node: NodeName | None,
        deadline_us: int,
        on_complete: Callable[[Setup, socket.socket, Header], None],
        on_broken: Callable[[Setup, str], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self.node = node
        self._on_complete = on_complete
        self._on_broken = on_broken
        self._buffer = b""
        self._fields: Header | None = None
        self.header = b""
        self.body = b""
        self._timer = loop.after(deadline_us, lambda: self.close("no setup frame in time"))
        loop.add(sock.fileno(), READ, self.read)

    def close(self, reason: str) -> None:
        """Close the connection; `on_broken` is told."""
        sock = self._leave()
        if sock is not None:
            sock.close()
            self._on_broken(self, reason)

    def _leave(self) -> socket.socket | None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._timer.cancel()
            self._loop.drop(sock.fileno())
        return sock

    def read(self, mask: int = READ) -> None:
        """Read what is there."""
        assert self._sock is not None
        wanted = HEADER_BYTES if self._fields is None else self._fields.length
        try:
            data = self._sock.recv(wanted - len(self._buffer))
        except BlockingIOError:
            return
        except OSError:
            return self.close("")
        if not data:
            return self.close("setup frame cut short" if self._buffer or self.header else "")
        self._buffer += data
        if len(self._buffer) < wanted:
            return None
        if self._fields is None:
            try:
                self._fields = unpack_header(self._buffer)
            except BadMessage as error:
                return self.close(error.what)
            self.header, self._buffer = self._buffer, b""
            if self._fields.length:
                return self.read()
        self.body = self._buffer
        sock = self._leave()
        assert sock is not None
        return self._on_complete(self, sock, self._fields)


@final
class Setups:
    """Those of one port; at the bound the oldest makes room for the newest.

    Args:
        loop: the proxy's loop.
        pending_max: how many at once.
        deadline_us: for each whole frame.
        on_complete: takes a setup that is done, its socket and the header.
        on_broken: takes the reason why one came to nothing, if anybody is to blame.

    Attributes:
        evicted: how many had to make room.
        broken: how many came to nothing by somebody's fault.
    """

    __slots__ = (
        "_deadline_us", "_loop", "_on_broken", "_on_complete", "_pending", "_pending_max",
        "broken", "evicted",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        pending_max: int,
        deadline_us: int,
        on_complete: Callable[[Setup, socket.socket, Header], None],
        on_broken: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._pending_max, self._deadline_us = pending_max, deadline_us
        self._on_complete, self._on_broken = on_complete, on_broken
        self._pending: dict[Setup, None] = {}
        self.evicted = self.broken = 0

    def __len__(self) -> int:
        return len(self._pending)

    def expect(self, sock: socket.socket, node: NodeName | None) -> None:
        """Wait for a setup frame on a connection, which is owned until it is there.

        Args:
            sock: non-blocking.
            node: see `Setup`.
        """
        if len(self._pending) >= self._pending_max:
            self.evicted += 1
            next(iter(self._pending)).close("")
        setup = Setup(self._loop, sock, node, self._deadline_us, self._complete, self._broken)
        self._pending[setup] = None
        setup.read()  # Accepting is deferred until there is something.

    def _complete(self, setup: Setup, sock: socket.socket, header: Header) -> None:
        del self._pending[setup]
        self._on_complete(setup, sock, header)

    def _broken(self, setup: Setup, reason: str) -> None:
        del self._pending[setup]
        if reason:
            self.broken += 1
            self._on_broken(reason)

    def close(self) -> None:
        """Close them all."""
        for setup in tuple(self._pending):
            setup.close("")
