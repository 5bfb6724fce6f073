"""The proxy's end of the socket between agent and proxy.

The proxy listens on a Unix socket (0600 in a 0700 directory) and serves one agent at a time; a
newer connection replaces the older one, because an agent that was killed leaves a half-dead one
behind.  First it says `Ready` and reads its snapshot back, then it takes orders and tells facts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

from x0tta6bl4.runtime.local import is_own, listen_private, peer_of
from x0tta6bl4.runtime.loop.poll import ERROR, HANGUP, READ, WRITE, Loop
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.messages import AgentOrder, Counters, ProxyFact, SessionState

OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
OUTBOX_CALM_BYTES: Final = 256 * 1024
"""Above this, facts that are repeated anyway (counters, session states) are left out."""


class AgentPort:
    """Listens for the agent, one at a time.

    Args:
        loop: the proxy's event loop.
        path: of the socket; an old one that nobody listens on is replaced.
        on_order: takes each Full and Delta.
        greeting: what to say first: Ready, then the snapshot held.
        on_change: called with True when an agent has come, False when it is gone.

    Raises:
        Refused, Conflict, BadConfig: see `runtime.local.listen_private`.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        on_order: Callable[[AgentOrder], None],
        greeting: Callable[[], tuple[ProxyFact, ...]],
        on_change: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._on_order = on_order
        self._greeting = greeting
        self._on_change = on_change
        self._agent: socket.socket | None = None
        self._reader = codec.agent_reader()
        self._out = bytearray()
        self.refused = 0
        self._listener = listen_private(path, "a proxy")
        loop.add(self._listener.fileno(), READ, self._accept)

    @property
    def connected(self) -> bool:
        """Whether an agent is there."""
        return self._agent is not None

    def tell(self, fact: ProxyFact) -> None:
        """Send a fact to the agent, if there is one.

        At OUTBOX_BYTES_MAX of unread facts the agent is disconnected; it reads back on return.
        """
        if self._agent is None:
            return
        if len(self._out) > OUTBOX_CALM_BYTES and isinstance(fact, Counters | SessionState):
            return
        if len(self._out) > OUTBOX_BYTES_MAX:
            self._close()
            return
        idle = not self._out
        self._out += codec.encode(fact)
        if idle:
            self._flush()

    def close(self) -> None:
        """Remove the socket, then stop listening: whoever comes next never loses its own."""
        self._close()
        os.unlink(self._path)
        self._loop.drop(self._listener.fileno())
        self._listener.close()

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if not is_own(peer_of(sock)):
            self.refused += 1
            sock.close()
            return
        self._close()
        sock.setblocking(False)
        self._agent = sock
        self._reader = codec.agent_reader()
        self._loop.add(sock.fileno(), READ, self._ready)
        self._on_change(True)
        for fact in self._greeting():
            self.tell(fact)

    def _ready(self, mask: int) -> None:
        sock = self._agent
        if sock is None:
            return
        if mask & WRITE:
            self._flush()
        if mask & (READ | HANGUP | ERROR) and self._agent is sock:
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close()
                return
            try:
                for order in self._reader.feed(data):
                    self._on_order(order)
            except BadMessage:
                self.refused += 1
                self._close()

    def _flush(self) -> None:
        sock = self._agent
        if sock is None:
            return
        try:
            sent = sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close()
            return
        del self._out[:sent]
        self._loop.set(sock.fileno(), READ | WRITE if self._out else READ)

    def _close(self) -> None:
        sock, self._agent = self._agent, None
        self._out.clear()
        if sock is not None:
            self._loop.drop(sock.fileno())
            sock.close()
            self._on_change(False)
