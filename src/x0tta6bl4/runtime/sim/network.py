"""The wires between hosts: latency, jitter, loss, one-way cuts, reordering, queues, corruption.

A `Wire` is one direction between two hosts.  Datagrams are lost; streams (TCP) arrive in order,
late where packets were lost, and stand still while their wire is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.runtime.sim.world import HELLOS, World

_RTO_MIN: Final = 200 * MS
"""Least retransmission time of TCP in Linux."""
_SEGMENT: Final = 1460
_READ_AGAIN: Final = 10 * MS


class Shape(msgspec.Struct, gc=False):
    """How one direction behaves; faults change it in place."""

    latency_us: int = 2 * MS
    jitter_us: int = 0
    """Each packet takes up to this much longer."""
    loss_ppm: int = 0
    reorder_ppm: int = 0
    """Share of packets that take three times the latency and are overtaken."""
    corrupt_ppm: int = 0
    bytes_per_s: int = 0
    """Bandwidth; 0: no limit."""
    queue_us: int = 200 * MS
    """With a limit: a datagram that would wait longer is dropped."""
    cut: bool = False


class Wire:
    """One direction between two hosts.

    Attributes:
        shape: how it behaves now.
        sent, lost: packets, for laws and reports.
        cut_since: virtual time of the last cut, meaningful while `shape.cut`.
        order: where the orders of its datagrams begin (see `World.rank`).
        plain_us: latency, while that is all that happens to a datagram; else -1.
        wake: called before anything of this changes (see `elision`).
        hurt: called when it has been cut.
    """

    __slots__ = (
        "_cuts",
        "_free_at",
        "_random",
        "_taps",
        "_world",
        "cut_since",
        "hurt",
        "lost",
        "order",
        "plain_us",
        "sent",
        "shape",
        "wake",
    )

    def __init__(self, world: World, source: str, target: str, shape: Shape) -> None:
        self.shape = shape
        self.sent = 0
        self.lost = 0
        self.cut_since = 0
        self.wake: Callable[[], None] = _nothing
        self.hurt: Callable[[], None] = _nothing
        self._taps: list[Callable[[Any], None]] = []
        self._world = world
        self._random = world.random(f"net/{source}>{target}").random
        self._free_at = 0
        self._cuts = 0
        self.order = world.rank(HELLOS)
        self._changed()

    def _changed(self) -> None:
        shape = self.shape
        odd = (
            shape.jitter_us, shape.loss_ppm, shape.reorder_ppm, shape.corrupt_ppm,
            shape.bytes_per_s, shape.cut, self._taps,
        )  # fmt: skip
        self.plain_us = -1 if any(odd) else shape.latency_us

    def reshape(self, field: str, value: int) -> int:
        """Change one field of the shape; returns what it was."""
        self.wake()
        before: int = getattr(self.shape, field)
        setattr(self.shape, field, value)
        self._changed()
        return before

    def tap(self, tap: Callable[[Any], None]) -> None:
        """Call `tap` with each datagram from now on; a fault may record and repeat it."""
        self.wake()
        self._taps.append(tap)
        self._changed()

    def untap(self, tap: Callable[[Any], None]) -> None:
        """Undo `tap`."""
        self._taps.remove(tap)
        self._changed()

    def cut(self) -> None:
        """Let nothing pass, until as many `mend` have come."""
        self.wake()
        self._cuts += 1
        if not self.shape.cut:
            self.shape.cut = True
            self.cut_since = self._world.now
        self._changed()
        self.hurt()

    def mend(self) -> None:
        """Undo one `cut`."""
        assert self._cuts
        self._cuts -= 1
        self.shape.cut = self._cuts > 0
        self._changed()

    def datagram(
        self,
        size: int,
        deliver: Callable[[Any], None],
        message: Any,
        corrupted: Callable[[Any], None],
    ) -> None:
        """Send one datagram: `deliver(message)` at its time, or never, or `corrupted(message)`."""
        self.sent += 1
        world = self._world
        if self.plain_us >= 0:
            world.at(world.now + self.plain_us, deliver, message, self.order + self.sent)
            return
        shape = self.shape
        if shape.cut:
            self.lost += 1
            return
        random = self._random
        if shape.loss_ppm and random() * 1_000_000 < shape.loss_ppm:
            self.lost += 1
            return
        delay = shape.latency_us
        if shape.jitter_us:
            delay += int(random() * shape.jitter_us)
        if shape.reorder_ppm and random() * 1_000_000 < shape.reorder_ppm:
            delay += 2 * shape.latency_us
        if shape.bytes_per_s:
            wait = self._queued(size)
            if wait > shape.queue_us:
                self.lost += 1
                return
            delay += wait
        for tap in self._taps:
            tap(message)
        if shape.corrupt_ppm and random() * 1_000_000 < shape.corrupt_ppm:
            deliver = corrupted
        world.at(world.now + delay, deliver, message, self.order + self.sent)

    def elided(self, sent: int, deliver: Callable[[Any], None], coming: list[Any]) -> None:
        """So many datagrams were sent without a word; the last of them have yet to come.

        Args:
            sent: how many.
            deliver: takes those that are coming.
            coming: instant and message of each.
        """
        self.sent += sent
        for number, (at, message) in enumerate(coming, self.sent - len(coming) + 1):
            self._world.at(at, deliver, message, self.order + number)

    def _queued(self, size: int) -> int:
        """Queue a packet; how long until it has left, or more than `queue_us`: it is dropped."""
        now = self._world.now
        shape = self.shape
        free = max(self._free_at, now) + size * SECOND // shape.bytes_per_s
        if free - now <= shape.queue_us:
            self._free_at = free
        return free - now

    def segment_delay(self) -> int:
        """How long a TCP segment of a stream takes now, with retransmissions.

        A lost segment comes one retransmission time later, at most six times in a row.
        """
        shape = self.shape
        random = self._random
        delay = shape.latency_us
        if shape.jitter_us:
            delay += int(random() * shape.jitter_us)
        loss_ppm = shape.loss_ppm + shape.corrupt_ppm
        if loss_ppm:
            timeout = max(_RTO_MIN, 4 * shape.latency_us)
            for _ in range(6):
                if random() * 1_000_000 >= loss_ppm:
                    break
                delay += timeout
                timeout *= 2
        return delay

    def take(self, size: int) -> tuple[int, int]:
        """Queue up to `size` bytes of a stream on a wire with a limit.

        A stream fills half of the queue and then waits, as TCP with a sane window would.

        Returns:
            Bytes taken, and how long until they have left; if none, until there is room.
        """
        now = self._world.now
        shape = self.shape
        waits = max(self._free_at - now, 0)
        room = shape.queue_us // 2 - waits
        if room <= 0:
            return 0, MS - room
        taken = min(size, max(_SEGMENT, room * shape.bytes_per_s // SECOND))
        self._free_at = now + waits + taken * SECOND // shape.bytes_per_s
        return taken, self._free_at - now


class Flow:
    """One direction of a TCP connection: in order, reliable, and it stands still while cut.

    Args:
        world: where it lives.
        wire: what it goes over.
        deliver: takes each message at its time.
        blocked: whether the receiving process stands still, so that nobody reads.
    """

    __slots__ = (
        "_blocked", "_deliver", "_held", "_last", "_queue", "_wire", "_world", "open",
    )  # fmt: skip

    def __init__(
        self,
        world: World,
        wire: Wire,
        deliver: Callable[[Any], None],
        blocked: Callable[[], bool] | None = None,
    ) -> None:
        self._blocked = blocked or _never
        self._world = world
        self._wire = wire
        self._deliver = deliver
        self._held: list[Any] = []
        self._queue: deque[tuple[Any, int]] = deque()
        self._last = 0
        self.open = True

    def send(self, message: Any, size: int) -> None:
        """Send; nothing is lost unless the connection is closed before it arrives."""
        if not self.open:
            return
        if self._queue or self._wire.shape.bytes_per_s:
            self._queue.append((message, size))
            if len(self._queue) == 1:
                self._serve(None)
            return
        self._depart(message, 0)

    def _depart(self, message: Any, after: int) -> None:
        wire, world = self._wire, self._world
        took_us = wire.plain_us if wire.plain_us >= 0 else wire.segment_delay()
        arrival = world.now + after + took_us
        if arrival > self._last:
            self._last = arrival
        world.at(self._last, self._arrive, message)

    def _serve(self, _: Any) -> None:
        """Give a wire with a limit what it takes; all that waits, once the limit is gone."""
        queue = self._queue
        while queue and self.open:
            message, size = queue[0]
            if not self._wire.shape.bytes_per_s:
                queue.popleft()
                self._depart(message, 0)
                continue
            taken, wait = self._wire.take(size)
            if taken < size:
                queue[0] = (message, size - taken)
                self._world.after(max(wait // 2, MS), self._serve)
                return
            queue.popleft()
            self._depart(message, wait)

    def close(self) -> None:
        """Deliver nothing more."""
        self.open = False
        self._held.clear()
        self._queue.clear()

    def _arrive(self, message: Any) -> None:
        if not self.open:
            return
        if self._held or self._wire.shape.cut or self._blocked():
            if not self._held:
                self._world.after(_RTO_MIN, self._again)
            self._held.append(message)
            return
        self._deliver(message)

    def _again(self, _: Any) -> None:
        if not self.open:
            return
        if self._wire.shape.cut:
            # Retransmissions back off: at half of the time already waited.
            waited = self._world.now - self._wire.cut_since
            self._world.after(min(max(_RTO_MIN, waited // 2), 10 * SECOND), self._again)
            return
        if self._blocked():
            self._world.after(_READ_AGAIN, self._again)
            return
        held, self._held = self._held, []
        for message in held:
            if self.open:
                self._deliver(message)


def _nothing() -> None:
    pass


def _never() -> bool:
    return False


class Network:
    """All wires; a pair of hosts without one cannot talk.

    Args:
        world: where it lives.
    """

    __slots__ = ("_wires", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._wires: dict[tuple[str, str], Wire] = {}

    def join(self, a: str, b: str, shape: Shape) -> None:
        """Lay both directions between two hosts, each with its own copy of `shape`."""
        for source, target in ((a, b), (b, a)):
            copy = msgspec.structs.replace(shape)
            self._wires[source, target] = Wire(self._world, source, target, copy)

    def wire(self, source: str, target: str) -> Wire:
        """The wire of one direction.

        Raises:
            KeyError: the two hosts are not joined.
        """
        return self._wires[source, target]

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether two hosts are joined."""
        return pair in self._wires

    def edges(self) -> list[tuple[str, str]]:
        """Joined pairs, each once, the lower name first, sorted."""
        return sorted(pair for pair in self._wires if pair[0] < pair[1])

    def wires_of(self, host: str) -> list[Wire]:
        """All wires from and to a host, in a fixed order."""
        return [wire for pair, wire in sorted(self._wires.items()) if host in pair]
