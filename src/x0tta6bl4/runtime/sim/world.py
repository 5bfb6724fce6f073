"""Virtual time: a heap, hosts with clocks of their own, and processes that each drive one machine.

There is no event loop and no thread.  One root seed gives named random streams, so one more draw
here moves nothing there.  The world is a nervous driver: it ticks machines early on purpose, and
checks at each step what a driver can check (`laws` has the rest):

    honest deadline  an early Tick returns NOTHING and leaves `deadline` alone
    progress         after a Tick at `deadline`, `deadline > now`
    token            answers are given once by the world, and repeated on purpose

Source: style of FoundationDB's simulation (Zhou et al., SIGMOD 2021) and TigerBeetle's VOPR.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable
from hashlib import blake2b
from random import Random
from typing import Any, Final

import msgspec

from x0tta6bl4.core.machine import MS, NEVER, SECOND, Effects, Event, Instant, Machine, Tick

UNIX_START_US: Final = 1_800_000_000 * SECOND
"""Wall time at the beginning of every world."""

INBOX_MAX: Final = 4096
"""Events kept for a process that stands still; what comes then is dropped, as by a socket."""

_TICK: Final = Tick()
_TURN_SHIFT: Final = 10
_RANK_SHIFT: Final = 32
HELLOS: Final = -(1 << 62)
TICKS: Final = -(1 << 61)
"""Kinds of orders (see `World.rank`), each with room for 2**29 wires or processes."""
_Entry = tuple[int, int, Callable[[Any], None], Any]
_EARLY_SHARE: Final = 1 / 16


class LawBroken(AssertionError):
    """A law of the core or of the mesh does not hold; the message says when, where and which."""


class Clock:
    """CLOCK_BOOTTIME and wall clock of one host, both driven by virtual time.

    Args:
        boot_us: what CLOCK_BOOTTIME says at virtual time 0.
        drift_ppm: how much faster than virtual time it goes.
        wall_us: by how much its wall clock is ahead.

    Attributes:
        drifts: whether it goes at another speed than virtual time; else `boot_us` is the offset.
    """

    __slots__ = ("boot_us", "drifts", "wall_us", "_drift_ppm")

    def __init__(self, boot_us: int = SECOND, drift_ppm: int = 0, wall_us: int = 0) -> None:
        self.boot_us = boot_us
        self._drift_ppm = drift_ppm
        self.drifts = drift_ppm != 0
        self.wall_us = wall_us

    def local(self, at: int) -> Instant:
        """CLOCK_BOOTTIME at virtual time `at`."""
        if self._drift_ppm:
            at += at * self._drift_ppm // 1_000_000
        return Instant(at + self.boot_us)

    def virtual(self, local: Instant) -> int:
        """Earliest virtual time at which CLOCK_BOOTTIME says at least `local`."""
        at = local - self.boot_us
        if self._drift_ppm:
            want, at = at, at * 1_000_000 // (1_000_000 + self._drift_ppm)
            while at + at * self._drift_ppm // 1_000_000 < want:
                at += 1
        return at

    def unix_us(self, at: int) -> int:
        """Wall time at virtual time `at`."""
        return UNIX_START_US + at + self.wall_us

    def drift(self, at: int, drift_ppm: int) -> None:
        """Go at another speed from now on; CLOCK_BOOTTIME never jumps."""
        local = self.local(at)
        self._drift_ppm = drift_ppm
        self.drifts = drift_ppm != 0
        self.boot_us += local - self.local(at)


class Process:
    """One process: a machine, driven as the real drivers do.

    Args:
        world: where it lives.
        name: `<node>/proxy` or `<node>/agent`.
        clock: of its host.
        machine: what decides.
        perform: carries the effects of one event out.

    Attributes:
        wake: called before it stands still or its clock changes (see `elision`).
    """

    __slots__ = (
        "_armed",
        "_due",
        "_early",
        "_inbox",
        "_late_us",
        "_order",
        "_random",
        "alive",
        "clock",
        "frozen",
        "handled",
        "machine",
        "name",
        "perform",
        "wake",
        "world",
    )

    def __init__(
        self,
        world: World,
        name: str,
        clock: Clock,
        machine: Machine,
        perform: Callable[[Effects], None],
    ) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.machine = machine
        self.perform = perform
        self.alive = True
        self.frozen = False
        self.handled = 0
        self.wake: Callable[[], None] = _nothing
        self._inbox: list[Event] = []
        self._due: int = NEVER
        self._armed: int = NEVER  # The deadline that `_due` was set for.
        self._order = world.rank(TICKS)
        self._random = world.random(f"ticks/{name}")
        self._early = world.nervous
        self._late_us = world.tick_late_us

    @property
    def now(self) -> Instant:
        """CLOCK_BOOTTIME of its host."""
        return self.clock.local(self.world.now)

    def give(self, event: Event) -> None:
        """Let the machine handle an event, and carry its effects out."""
        if self.frozen:
            if self.alive and len(self._inbox) < INBOX_MAX:
                self._inbox.append(event)
            return
        if not self.alive:
            return
        world = self.world
        clock = self.clock
        self.handled += 1
        now = clock.local(world.now) if clock.drifts else world.now + clock.boot_us
        effects = self.machine.handle(Instant(now), event)
        if world.watched:
            world.record(self, event, effects)
        if effects:
            self.perform(effects)
        if self.machine.deadline != self._armed:
            self.arm()

    def arm(self) -> None:
        """Have the machine woken at its deadline."""
        self._armed = deadline = self.machine.deadline
        clock = self.clock
        due = clock.virtual(deadline) if clock.drifts else deadline - clock.boot_us
        if self._late_us:
            due += int(self._random.random() * self._late_us)
        if due >= self._due or deadline == NEVER or not self.alive:
            return
        world = self.world
        if due < world.now:
            due = world.now
        self._due = due
        self._order += 1
        world.at(due, self._tick, due, self._order)
        if self._early and self._random.random() < _EARLY_SHARE:
            early = world.now + int((due - world.now) * self._random.random())
            world.at(early, self._nervous, due)

    def _tick(self, due: int) -> None:
        if due != self._due:
            return
        self._due = self._armed = NEVER
        machine, clock = self.machine, self.clock
        now = clock.local(due) if clock.drifts else due + clock.boot_us
        if now < machine.deadline:
            if self._early:
                self._nervous(due)
            self.arm()
        elif self.alive and not self.frozen:
            self.handled += 1  # From here on as `give`.
            world = self.world
            effects = machine.handle(now, _TICK)  # type: ignore[arg-type]
            if world.watched:
                world.record(self, _TICK, effects)
            if effects:
                self.perform(effects)
            if machine.deadline != self._armed:
                self.arm()
            if machine.deadline <= now and self.alive:
                raise LawBroken(
                    f"progress: {self.name} at {due}: "
                    f"deadline {machine.deadline} after a tick at {now}"
                )

    def _nervous(self, _: int) -> None:
        if not self.alive or self.frozen:
            return
        now = self.clock.local(self.world.now)
        deadline = self.machine.deadline
        if now < deadline:
            effects = self.machine.handle(now, _TICK)
            if effects or self.machine.deadline != deadline:
                raise LawBroken(
                    f"honest deadline: {self.name} at {self.world.now}: a tick "
                    f"{deadline - now} us early gave {effects!r}"
                )

    def kill(self) -> None:
        """End it at once; what it held is gone."""
        self.alive = False
        self._inbox.clear()

    def freeze(self) -> None:
        """Stop it (SIGSTOP, a stalled host); events pile up in its sockets."""
        self.wake()
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on: first what has piled up, then, late, the tick."""
        if not self.frozen:
            return
        self.frozen = False
        inbox, self._inbox = self._inbox, []
        for event in inbox:
            self.give(event)
        self._due = NEVER
        self.arm()


class World:
    """The heap of what is to happen, the root seed, and the digest of all that has happened.

    Args:
        seed: root of all random streams.
        recording: digest every event and effect (a third of the time); off for measurements.
        nervous: tick machines early on purpose.
        tick_late_us: timers fire up to this much late, as in a busy process.

    Attributes:
        watched: each step is recorded or shown to observers.
        plain: nobody looks, no timer is early or late: what changes nothing needs no step.
        taken: hellos that were taken in without an event.
    """

    __slots__ = (
        "_digest",
        "_encode",
        "_lists",
        "_next",
        "_observers",
        "_open",
        "_open_until",
        "_ranks",
        "_recording",
        "_serial",
        "_turns",
        "now",
        "nervous",
        "plain",
        "seed",
        "steps",
        "taken",
        "tick_late_us",
        "watched",
    )

    def __init__(
        self,
        seed: int | str,
        recording: bool = True,
        nervous: bool = True,
        tick_late_us: int = 0,
    ) -> None:
        self.seed = seed
        self.now = 0
        self.steps = 0
        self.taken = 0
        self.watched = recording
        self.nervous = nervous
        self.tick_late_us = tick_late_us
        self.plain = not (recording or nervous or tick_late_us)
        self._recording = recording
        self._observers: list[Callable[[Process, Event, Effects], None]] = []
        # A calendar queue (Brown, CACM 1988): one list for each 1,024 us, sorted when its turn
        # comes; `_open` is the list being worked through, up to `_next`.
        self._lists: dict[int, list[_Entry]] = {}
        self._turns: list[int] = []
        self._open: list[_Entry] = []
        self._open_until = 0
        self._next = 0
        self._serial = 0
        self._ranks = 0
        self._digest = blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder(enc_hook=_opaque).encode

    def random(self, name: str) -> Random:
        """The stream of this name."""
        return Random(f"{self.seed}/{name}")

    def rank(self, kind: int) -> int:
        """Where the orders of a new wire (HELLOS) or process (TICKS) begin."""
        self._ranks += 1
        return kind + (self._ranks << _RANK_SHIFT)

    def at(self, at: int, call: Callable[[Any], None], argument: Any, order: int = 0) -> None:
        """Have `call(argument)` done at virtual time `at`.

        In the same microsecond hellos come before ticks, by `order`, no two of which are equal;
        and both before everything else, which happens in the order asked.
        """
        if not order:
            self._serial = order = self._serial + 1
        if at < self._open_until:
            insort(self._open, (max(at, self.now), order, call, argument), lo=self._next)
            return
        turn = at >> _TURN_SHIFT
        entries = self._lists.get(turn)
        if entries is None:
            self._lists[turn] = [(at, order, call, argument)]
            heapq.heappush(self._turns, turn)
        else:
            entries.append((at, order, call, argument))

    def after(self, delay: int, call: Callable[[Any], None], argument: Any = None) -> None:
        """Have `call(argument)` done `delay` microseconds from now."""
        self.at(self.now + delay, call, argument)

    def run(self, until: int) -> None:
        """Let everything happen up to and including virtual time `until`."""
        entries = self._open
        del entries[: self._next]
        while True:
            # What is put into the open list in between comes after `_next`.
            for self._next, (at, _, call, argument) in enumerate(entries, 1):
                if at > until:
                    self._next -= 1
                    self.now = until
                    return
                self.now = at
                call(argument)
            self.steps += len(entries)
            if not self._turns or self._turns[0] << _TURN_SHIFT > until:
                break
            turn = heapq.heappop(self._turns)
            entries = self._open = self._lists.pop(turn)
            entries.sort()
            self._next = 0
            self._open_until = (turn + 1) << _TURN_SHIFT
        self._open = []
        self._next = 0
        self.now = until

    def record(self, process: Process, event: Event, effects: Effects) -> None:
        """Digest one step of a machine and show it to the observers."""
        if self._recording:
            self._digest.update(
                self._encode(
                    (
                        self.now,
                        process.name,
                        type(event).__name__,
                        event,
                        [(type(effect).__name__, effect) for effect in effects],
                    )
                )
            )
        for observe in self._observers:
            observe(process, event, effects)

    def observe(self, observer: Callable[[Process, Event, Effects], None]) -> None:
        """Have every step of every machine shown to `observer` from now on."""
        self._observers.append(observer)
        self.watched = True
        self.plain = False

    def digest(self) -> str:
        """What has happened, as 32 hex digits: equal for equal seeds, under any hash seed."""
        return self._digest.hexdigest()


def _nothing() -> None:
    pass


def _opaque(value: Any) -> str:
    """What is no struct (a fake's handle) goes into the digest by its type alone."""
    return type(value).__name__


def seconds(text: float) -> int:
    """Microseconds of a number of seconds."""
    return int(text * SECOND)


def shown(at: int) -> str:
    """Virtual time for people: `12.345`, in seconds."""
    return f"{at // SECOND}.{at % SECOND // MS:03d}"
