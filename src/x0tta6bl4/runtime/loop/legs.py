"""One leg of a path: a connection to a neighbour's proxy with our setup frame on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.runtime.loop.channel import Channels
from x0tta6bl4.runtime.loop.connect import Connecting, OnConnected, begin
from x0tta6bl4.runtime.loop.neighbours import Neighbour, Neighbours
from x0tta6bl4.runtime.loop.poll import Loop, Timer
from x0tta6bl4.wire.hop import DIAL_BACK, HOP, TOKEN_BYTES, Hop, pack_hop
from x0tta6bl4.wire.ids import NodeName

DIAL_BACK_US: Final = 3 * SECOND
"""Deadline for the neighbour to dial back."""
ASKED_MAX: Final = 1024
ASK_FIRST_US: Final = 10 * SECOND
"""How long a neighbour that couldn't be dialled is asked to dial back at once."""


@final
class Legs:
    """Dials neighbours, or asks them to dial back.

    Args:
        loop: the proxy's loop.
        neighbours: their endpoints and seals.
        channels: over which to ask.
        random: `random(n)` gives n unpredictable bytes.
    """

    __slots__ = ("_ask_first", "_asked", "_channels", "_loop", "_neighbours", "_random", "asks")

    def __init__(
        self,
        loop: Loop,
        neighbours: Neighbours,
        channels: Channels,
        random: Callable[[int], bytes],
    ) -> None:
        self._loop = loop
        self._neighbours = neighbours
        self._channels = channels
        self._random = random
        self._asked: dict[bytes, Leg] = {}
        self._ask_first: dict[NodeName, Instant] = {}
        self.asks = 0

    def open(self, node: NodeName, hop: Hop, on_done: OnConnected) -> Leg:
        """Connect to a neighbour and send it a hop.

        Args:
            node: the neighbour; `hop.path` begins with it.
            hop: what to seal and send once connected.
            on_done: takes the socket, or None and the reason; never called before this returns.
        """
        leg = Leg(self, node, hop, on_done)
        self._loop.after_batch(leg.start)
        return leg

    def answered(self, node: NodeName, token: bytes, sock: socket.socket) -> bool:
        """Take a connection that a neighbour dialled because it was asked to.

        Returns:
            False if nobody asked this neighbour, or not any more; the socket is still the caller's.
        """
        leg = self._asked.get(token)
        if leg is None or leg.node != node:
            return False
        leg.finish(sock)
        return True

    def neighbour_gone(self, node: NodeName) -> None:
        """Fail what is under way to it."""
        self._ask_first.pop(node, None)
        for leg in [leg for leg in self._asked.values() if leg.node == node]:
            leg.fail("link withdrawn")


@final
class Leg:
    """One leg under way."""

    __slots__ = ("_connecting", "_hop", "_legs", "_on_done", "_timer", "_token", "node")

    def __init__(self, legs: Legs, node: NodeName, hop: Hop, on_done: OnConnected) -> None:
        self._legs = legs
        self.node = node
        self._hop = hop
        self._on_done: OnConnected | None = on_done
        self._connecting: Connecting | None = None
        self._timer: Timer | None = None
        self._token = b""

    def cancel(self) -> None:
        """Stop; `on_done` is not called any more."""
        self._on_done = None
        self._stop()

    def start(self) -> None:
        """Dial, or ask where dialling has just failed or can't be done."""
        if self._on_done is None:
            return
        neighbour = self._neighbour()
        if neighbour is None:
            return
        legs = self._legs
        recently = legs._loop.now < legs._ask_first.get(self.node, Instant(0))
        if not neighbour.item.endpoints or (recently and legs._channels.has(self.node)):
            return self._ask(legs._channels.why(self.node) or "not dialled back")
        self._connecting = Connecting(legs._loop, neighbour.item.endpoints, self._connected)
        return None

    def finish(self, sock: socket.socket) -> None:
        """Send the setup frame on a connection to the neighbour's proxy."""
        self._stop()
        neighbour = self._neighbour()
        if neighbour is None:
            sock.close()
            return
        wrong = begin(sock, neighbour.seal.seal(HOP, pack_hop(self._hop)))
        if wrong:
            return self.fail(wrong)
        call, self._on_done = self._on_done, None
        assert call is not None
        call(sock, "")

    def fail(self, reason: str) -> None:
        """End it without a connection."""
        self._stop()
        call, self._on_done = self._on_done, None
        if call is not None:
            call(None, reason)

    def _neighbour(self) -> Neighbour | None:
        neighbour = self._legs._neighbours.get(self.node)
        if neighbour is None:
            self.fail(f"no link to {self.node}")
        return neighbour

    def _connected(self, sock: socket.socket | None, why: str) -> None:
        self._connecting = None
        legs = self._legs
        if sock is not None:
            legs._ask_first.pop(self.node, None)
            return self.finish(sock)
        if legs._channels.has(self.node):
            legs._ask_first[self.node] = Instant(legs._loop.now + ASK_FIRST_US)
            return self._ask(why)
        return self.fail(why)

    def _ask(self, why: str) -> None:
        """Ask the neighbour to dial back; `why` is told if that can't be done either."""
        legs = self._legs
        if len(legs._asked) >= ASKED_MAX:
            return self.fail("too many waiting to be dialled back")
        token = legs._random(TOKEN_BYTES)
        if not legs._channels.send(self.node, DIAL_BACK, token):
            return self.fail(f"no way to {self.node}: {why}")
        legs.asks += 1
        self._token = token
        legs._asked[token] = self
        self._timer = legs._loop.after(DIAL_BACK_US, lambda: self.fail("not dialled back in 3 s"))
        return None

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._legs._asked.pop(self._token, None)
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
