"""When to ask for a new SVID.

At half of its life, ten percent sooner or later (drawn once per SVID, so that a fleet does not ask
at once); after a failure again with growing pauses.  A valid SVID stays in use while renewal
fails; shortly before its end it is announced as expired, and renewal is tried on.

    HELD --half-life--> ASKED --Done--> HELD          (a new SVID: everything starts again)
                          ^  '--Failed--> PAUSED
                          '------pause------'         SvidExpired: once, in whichever state

Source: SPIRE's rotation at half-life ± 10 %; notBefore and notAfter are wall time, so nothing is
planned before the first ClockSet and everything again at each later one.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import Final, final

from x0tta6bl4.core.identity.rules import LEFT_US_MIN
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    ClockSet,
    Done,
    Effect,
    Effects,
    Event,
    Failed,
    Instant,
    Tick,
    Value,
)
from x0tta6bl4.wire.ids import SpiffeId

SVIDS_MAX: Final = 4096
"""SVIDs of one node; further ones are refused (`SvidRefused`)."""
SPREAD: Final = 0.1
"""Renewal at (1 ± SPREAD) / 2 of the life."""
PAUSE_MIN: Final = 1 * SECOND
PAUSE_MAX: Final = 60 * SECOND


@final
class SvidHeld(Value, frozen=True):
    """Fact: this SVID is in use from now on; it replaces an earlier one of its ID.

    Also the value of `Done` for a RenewWanted.
    """

    id: SpiffeId
    not_before_unix_s: int
    not_after_unix_s: int


@final
class SvidDropped(Value, frozen=True):
    """Fact: the ID is not ours any more; nothing is renewed."""

    id: SpiffeId


@final
class RenewWanted(Value, frozen=True):
    """Request: get a new SVID; answered by Done(token, SvidHeld) or Failed(token, reason)."""

    token: int
    id: SpiffeId


@final
class SvidExpired(Value, frozen=True):
    """Fact: the SVID is at its end; connections under it have to close now."""

    id: SpiffeId


@final
class SvidRefused(Value, frozen=True):
    """Fact: an SVID can't be looked after: too many, or one that ends before it begins."""

    id: SpiffeId
    reason: str


class _Held:
    """One SVID: wall times in microseconds, and what is under way."""

    __slots__ = ("expires_us", "failures", "pause_until", "renew_us", "start_us", "told", "token")

    def __init__(self, start_us: int, renew_us: int, expires_us: int) -> None:
        self.start_us = start_us
        self.renew_us = renew_us
        self.expires_us = expires_us
        self.token = 0
        """Of the request that is out; 0: none."""
        self.failures = 0
        self.pause_until = Instant(0)
        """Not wall time: a clock that is set back must not stretch it."""
        self.told = False


class Renewal:
    """Machine: says when to renew which SVID.

    Args:
        random: stream of this room of this node, for the spread.
    """

    __slots__ = (
        "_due",
        "_held",
        "_number",
        "_offset_us",
        "_random",
        "_token",
        "_waiting",
        "deadline",
    )

    def __init__(self, random: Random) -> None:
        self.deadline: Instant = NEVER
        self._random = random
        self._held: dict[SpiffeId, _Held] = {}
        self._due: list[tuple[Instant, int, SpiffeId, _Held]] = []
        """Heap of what may be due when; what no longer is falls out when its time has come."""
        self._number = 0
        self._waiting: dict[int, SpiffeId] = {}
        self._token = 0
        self._offset_us: int | None = None
        """Wall time minus Instant; None until the first ClockSet."""

    def handle(self, now: Instant, event: Event) -> Effects:
        """See `Machine.handle`: SvidHeld, SvidDropped, Done, Failed, ClockSet, Tick."""
        if type(event) is Tick:
            return self._advance(now) if now >= self.deadline else NOTHING
        if type(event) is SvidHeld:
            return self._hold(event) or self._advance(now)
        if type(event) is SvidDropped:
            held = self._held.pop(event.id, None)
            if held is not None:
                self._waiting.pop(held.token, None)
            return self._advance(now)
        if type(event) is Done:
            return self._answered(now, event)
        if type(event) is Failed:
            return self._failed(now, event.token)
        if type(event) is ClockSet:
            self._offset_us = event.unix_us - now
            for held in self._held.values():  # A clock set back makes an SVID good again.
                held.told = held.told and event.unix_us >= held.expires_us
            self._plan_all()
            return self._advance(now)
        return NOTHING

    def asks_for(self, id: SpiffeId) -> bool:
        """Whether an SVID is looked after, whatever has become of it."""
        return id in self._held

    def _hold(self, event: SvidHeld) -> Effects:
        before = self._held.get(event.id)
        life_us = (event.not_after_unix_s - event.not_before_unix_s) * SECOND
        if before is None and len(self._held) >= SVIDS_MAX:
            return (SvidRefused(event.id, "too many SVIDs"),)
        if life_us <= 0:
            return (SvidRefused(event.id, "ends before it begins"),)
        start_us = event.not_before_unix_s * SECOND
        expires_us = event.not_after_unix_s * SECOND - LEFT_US_MIN
        if before is not None and (before.start_us, before.expires_us) == (start_us, expires_us):
            return NOTHING  # The same one again: drawn once.
        part = (1 + self._random.uniform(-SPREAD, SPREAD)) / 2
        self._held[event.id] = held = _Held(start_us, start_us + int(life_us * part), expires_us)
        if before is not None and before.token:  # Its answer may still come, and is as good.
            held.token = before.token
        self._plan(event.id, held)
        return NOTHING

    def _answered(self, now: Instant, event: Done) -> Effects:
        id = self._waiting.get(event.token)
        if id is None:
            return NOTHING
        value = event.value
        if (
            type(value) is not SvidHeld
            or value.id != id
            or value.not_after_unix_s <= value.not_before_unix_s
        ):
            return self._failed(now, event.token)
        del self._waiting[event.token]
        self._held[id].token = 0
        self._hold(value)
        held = self._held[id]
        held.pause_until = Instant(now + PAUSE_MIN)  # An old one is no reason to storm.
        self._plan(id, held)
        return self._advance(now)

    def _failed(self, now: Instant, token: int) -> Effects:
        id = self._waiting.pop(token, None)
        if id is None:
            return NOTHING
        held = self._held[id]
        held.token = 0
        held.failures += 1
        pause = min(PAUSE_MIN << min(held.failures - 1, 6), PAUSE_MAX)
        pause += int(pause * self._random.uniform(-SPREAD, SPREAD))
        held.pause_until = Instant(now + pause)
        self._plan(id, held)
        return self._advance(now)

    def _plan(self, id: SpiffeId, held: _Held) -> None:
        """Look at an SVID again when something may be due."""
        if self._offset_us is None:
            return
        if len(self._due) > 4 * len(self._held) + 64:
            self._plan_all()
            return
        for at in (self._renew_at(held), self._end_at(held)):
            self._number += 1
            heapq.heappush(self._due, (at, self._number, id, held))

    def _plan_all(self) -> None:
        self._due = []
        for id, held in self._held.items():
            self._plan(id, held)

    def _renew_at(self, held: _Held) -> Instant:
        assert self._offset_us is not None
        return max(Instant(held.renew_us - self._offset_us), held.pause_until)

    def _end_at(self, held: _Held) -> Instant:
        assert self._offset_us is not None
        return Instant(held.expires_us - self._offset_us)

    def _advance(self, now: Instant) -> Effects:
        """Ask for what is due, announce what has ended, and set the deadline anew."""
        if self._offset_us is None:
            return NOTHING
        effects: list[Effect] = []
        due = self._due
        while due:
            at, _, id, held = due[0]
            renew = not held.token and self._renew_at(held) == at
            end = not held.told and self._end_at(held) == at
            if self._held.get(id) is not held or not (renew or end):
                heapq.heappop(due)
                continue
            if at > now:
                break
            heapq.heappop(due)
            if end:
                held.told = True
                effects.append(SvidExpired(id))
            if renew:
                self._token += 1
                held.token = self._token
                self._waiting[self._token] = id
                effects.append(RenewWanted(self._token, id))
        self.deadline = due[0][0] if due else NEVER
        return tuple(effects) if effects else NOTHING
