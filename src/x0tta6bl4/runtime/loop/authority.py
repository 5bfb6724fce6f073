"""How connections get to the authority: this node's own, and those of nodes that want to enrol."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.local import is_own, listen_private, peer_of
from x0tta6bl4.runtime.loop.accept import Acceptor
from x0tta6bl4.runtime.loop.carry import Cancellable, Carry, Way
from x0tta6bl4.runtime.loop.connect import Connecting, OnConnected
from x0tta6bl4.runtime.loop.notices import Notices
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.relay import Relay
from x0tta6bl4.wire.ids import NodeName

LOCAL_MAX: Final = 16
"""Connections of this node's own at once."""


@final
class HopLimits(msgspec.Struct, frozen=True):
    """Bounds of a data port."""

    pending_max: int = 256
    """Connections whose setup frame is not complete, and dial-backs under way."""
    setup_us: int = 5 * SECOND
    """Deadline of a setup frame."""
    per_neighbour_max: int = 1024
    """Hops to or from one neighbour, relayed or ending here."""
    enrol_max: int = 4
    enrol_bytes_max: int = 256 * 1024
    enrol_us: int = 10 * SECOND


Dial = Callable[[tuple[NodeName, ...], OnConnected], Cancellable]
Join = Callable[[socket.socket, socket.socket, Callable[[], None], int], Relay]


@final
class AuthorityWays:
    """Carries connections to the authority: directly, else along a path.

    Args:
        loop: the proxy's loop.
        limits: bounds of enrolment.
        notices: where failures are told.
        dial: dials the authority along a path.
        join: relays two sockets; takes what to call at the end, and a bound of bytes.

    Attributes:
        where: address of the authority as this node dials it; empty: only through others.
        paths: to nodes that can reach it, best first, each from this node.
        enrols: enrolments taken so far.
    """

    __slots__ = (
        "_acceptor",
        "_carries",
        "_dial",
        "_enrolling",
        "_join",
        "_limits",
        "_local",
        "_loop",
        "_notices",
        "_path",
        "enrols",
        "paths",
        "where",
    )

    def __init__(
        self, loop: Loop, limits: HopLimits, notices: Notices, dial: Dial, join: Join
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._notices = notices
        self._dial = dial
        self._join = join
        self._carries: set[Carry] = set()
        self._acceptor: Acceptor | None = None
        self._path = ""
        self._local = self._enrolling = 0
        self.where = ""
        self.paths: tuple[tuple[str, ...], ...] = ()
        self.enrols = 0

    def listen(self, path: str) -> None:
        """Carry whatever of this user connects to a socket of this name to the authority.

        Args:
            path: made anew with mode 0600, in a directory of mode 0700.
        Raises:
            Refused, Conflict, BadConfig: see `runtime.local.listen_private`.
        """
        listener = listen_private(path, "a proxy", LOCAL_MAX)
        self._path = path
        self._acceptor = Acceptor(
            self._loop, listener, self._accept, lambda why: self._notices.say("accept", why)
        )

    def direct(self, on_done: OnConnected) -> Cancellable:
        """Connect to the authority's address."""
        return Connecting(self._loop, (self.where,) if self.where else (), on_done)

    def enrol(self, sock: socket.socket) -> bool:
        """Carry a node without identity: few at once, small and short.

        Returns:
            False if there are `enrol_max` already; the socket is still the caller's.
        """
        if self._enrolling >= self._limits.enrol_max:
            return False
        self._enrolling += 1
        self.enrols += 1

        def over() -> None:
            self._enrolling -= 1
            timer.cancel()

        cancel = self._carry(sock, self._limits.enrol_bytes_max, over)
        timer = self._loop.after(self._limits.enrol_us, lambda: cancel("enrolment took too long"))
        return True

    def close(self) -> None:
        """Stop listening, and give up what is not joined yet."""
        if self._acceptor is not None:
            if os.path.exists(self._path):
                os.unlink(self._path)  # First: the next one's is not ours to remove.
            self._acceptor.close()
            self._acceptor = None
        for carry in tuple(self._carries):
            carry.cancel("proxy stops")

    def _accept(self, sock: socket.socket) -> None:
        peer = peer_of(sock)
        if not is_own(peer) or self._local >= LOCAL_MAX:
            self._notices.say("authority", f"refused uid {peer.uid} at the authority's socket")
            sock.close()
            return
        self._local += 1

        def over() -> None:
            self._local -= 1

        self._carry(sock, 0, over)

    def _ways(self) -> list[Way]:
        """By itself, then along paths."""
        ways: list[Way] = [self.direct] if self.where else []
        for names in self.paths:
            path = tuple(NodeName(name) for name in names)
            if len(path) > 1:
                ways.append(self._along(path))
        return ways

    def _along(self, path: tuple[NodeName, ...]) -> Way:
        return lambda on_done: self._dial(path, on_done)

    def _carry(
        self, sock: socket.socket, bytes_max: int, over: Callable[[], None]
    ) -> Callable[[str], None]:
        """Carry one connection.

        Args:
            sock: the client's; owned from here on.
            bytes_max: of both directions together; 0: no bound.
            over: called once, when it has ended.
        Returns:
            What ends it, with a reason.
        """
        relays: list[Relay] = []

        def joined(one: socket.socket, two: socket.socket) -> None:
            self._carries.discard(carry)
            relays.append(self._join(one, two, over, bytes_max))

        def failed(why: str) -> None:
            self._carries.discard(carry)
            self._notices.say("authority", f"not reached: {why}")
            over()

        def cancel(reason: str) -> None:
            carry.cancel(reason)
            for relay in relays:
                relay.reset(reason)

        carry = Carry(self._loop, sock, self._ways(), joined, failed)
        self._carries.add(carry)
        return cancel
