"""Circuits of the simulator: bytes in order with latency, a send buffer, close; corruption closes.

`Wire` joins two `End`s, each with its `core.session.circuit.Circuit`.  An end gives its circuit's
frames to the wire while the wire's buffer has room (as the proxy encrypts only while its socket
takes), and feeds what arrives in pieces of random size (as TLS records arrive).  What a relay can
do to a circuit, and no more, can be done to a wire: `kill`, `silence` one or both directions,
`corrupt` (TLS refuses, so the receiver loses the circuit), `slow` it down.

It shares a contract test with the circuits of `runtime.loop`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise
from random import Random
from typing import Any, Final, Protocol

from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.frames import ProtocolError
from x0tta6bl4.core.session.pipe import SessionBroken

WINDOW_BYTES: Final = 256 * 1024
"""What the two sockets of a wire hold together."""

Lost = Callable[["End", str], None]
Fed = Callable[["End"], None]


class Schedule(Protocol):
    """Virtual time."""

    now: int
    """Virtual microseconds."""

    def at(self, at: int, call: Callable[[Any], None], argument: Any) -> None:
        """Call once at `at`, with `argument`."""
        ...


class End:
    """One end of a wire.

    Args:
        wire: the wire.
        side: 0 for the end that dialled, 1 for the other.
        lost: called once when this end notices that the circuit is gone, with the reason.
        fed: called after each piece that was fed.
    """

    __slots__ = ("_bytes", "_lost", "circuit", "fed", "flight", "open", "other", "silent", "side",
                 "wire")  # fmt: skip

    def __init__(self, wire: Wire, side: int) -> None:
        self.wire = wire
        self.side = side
        self.open = True
        self.silent = False
        self.circuit: Circuit | None = None
        self.other: End
        self.flight = 0
        """Bytes on their way from here."""
        self._bytes: deque[bytes] = deque()
        self._lost: Lost | None = None
        self.fed: Fed | None = None

    def start(self, circuit: Circuit, lost: Lost, fed: Fed) -> None:
        """The driver takes this end into use; pieces that came before are fed now."""
        self.circuit, self._lost, self.fed = circuit, lost, fed
        self._drain()

    def pump(self) -> None:
        """Give the wire what the circuit wants to send, while there is room."""
        circuit = self.circuit
        while self.open and circuit is not None and self.flight < WINDOW_BYTES:
            view = circuit.pending()
            if view is None:
                return
            self.wire.carry(self, bytes(view))

    def close(self) -> None:
        """Close on purpose: nobody is told here, the other end sees it later."""
        if self.open:
            self._shut()
            self.wire.hang_up(self)

    def lose(self, reason: str) -> None:
        """Notice that the circuit is gone."""
        if self.open:
            self._shut()
            if self._lost is not None:
                self._lost(self, reason)

    def arrive(self, data: bytes) -> None:
        """Bytes have come over the wire."""
        if self.open:
            self._bytes.append(data)
            self._drain()

    def _shut(self) -> None:
        self.open = False
        if self.circuit is not None:
            self.circuit.closed = True

    def _drain(self) -> None:
        circuit = self.circuit
        while self._bytes and circuit is not None and self.open:
            data = self._bytes.popleft()
            try:
                for piece in self.wire.pieces(data):
                    circuit.feed(memoryview(piece))
            except ProtocolError:
                self._shut()
                self.wire.hang_up(self)
                if self._lost is not None:
                    self._lost(self, "protocol")
                return
            except SessionBroken:
                pass  # The driver looks at `pipe.broken` when it is told.
            if self.fed is not None:
                self.fed(self)
            self.pump()


class Wire:
    """What lies between two ends: every relay of one path.

    Args:
        schedule: virtual time.
        latency_us: one way.
        random: for the sizes of pieces.
        name: makes the exported values of this wire its own.
    """

    __slots__ = ("_arrives", "_corrupt", "_random", "_schedule", "carried_bytes", "dialled",
                 "accepted", "exporter", "latency_us", "name", "secret")  # fmt: skip

    def __init__(self, schedule: Schedule, latency_us: int, random: Random, name: str) -> None:
        self._schedule = schedule
        self._random = random
        self.name = name
        self.latency_us = latency_us
        self.exporter = blake2b(name.encode(), digest_size=32, person=b"x0 circuit").digest()
        self.secret = blake2b(name.encode(), digest_size=32, person=b"x0 session").digest()
        self.dialled, self.accepted = End(self, 0), End(self, 1)
        self.dialled.other, self.accepted.other = self.accepted, self.dialled
        self._arrives = [0, 0]
        self._corrupt = [False, False]
        self.carried_bytes = 0

    # ------------------------------------------------------------------ faults
    def kill(self) -> None:
        """A relay dies: both ends see a reset."""
        for end in (self.dialled, self.accepted):
            self._later(end, end.lose, "reset")

    def silence(self, *sides: int) -> None:
        """From now on nothing arrives that these sides send; nobody is told."""
        for end in (self.dialled, self.accepted):
            if end.side in sides:
                end.silent = True

    def corrupt(self, side: int) -> None:
        """The next bytes that this side sends are changed on the way."""
        self._corrupt[side] = True

    def slow(self, latency_us: int) -> None:
        """Another latency for what is sent from now on; order is kept."""
        self.latency_us = latency_us

    # ------------------------------------------------------------------ called by ends
    def carry(self, end: End, data: bytes) -> None:
        """Take bytes from an end to the other."""
        end.flight += len(data)
        self.carried_bytes += len(data)
        if end.silent:
            return  # They stay in the send buffer, unacknowledged by TCP.
        broken, self._corrupt[end.side] = self._corrupt[end.side], False
        self._later(end.other, self._deliver, (end, data, broken))

    def _deliver(self, carried: tuple[End, bytes, bool]) -> None:
        end, data, broken = carried
        other = end.other
        if end.silent:
            return
        end.flight -= len(data)
        if broken:
            if other.open:
                self.hang_up(other)
            other.lose("tls")
            return
        other.arrive(data)
        end.pump()

    def hang_up(self, end: End) -> None:
        """An end has closed: the other sees it one latency later, behind the bytes under way."""
        if not end.silent:
            self._later(end.other, end.other.lose, "reset")

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut bytes as TLS and sockets may cut them."""
        if self._random.random() < 0.5:
            return [data]
        cut = sorted(self._random.randrange(len(data) + 1) for _ in range(3))
        bounds = [0, *cut, len(data)]
        return [data[a:b] for a, b in pairwise(bounds) if a < b]

    def _later(self, to: End, call: Callable[[Any], None], argument: Any) -> None:
        """In order, after the latency."""
        when = max(self._schedule.now + self.latency_us, self._arrives[to.side])
        self._arrives[to.side] = when
        self._schedule.at(when, call, argument)
