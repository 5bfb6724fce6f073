"""The contract that every machine of the core keeps.

A machine is a state with one entrance: `handle(now, event) -> effects`, and one plain attribute,
`deadline`, which says when it wants to be woken although nothing happened.  It never touches the
world: time, randomness and identity are arguments, what it wants done is returned.

Laws (tested in every simulated world):

    replay           same seed and events give the same effects, under any hash seed
    honest deadline  a Tick before `deadline` changes nothing and returns NOTHING
    progress         after a Tick at or after `deadline`, `deadline > now`
    bounded          every dict, queue and buffer has a stated maximum
    token            every effect with a token is answered exactly once; late answers are ignored
"""

from __future__ import annotations

from typing import Any, Final, NewType, Protocol, final

import msgspec

from x0tta6bl4.wire.ids import SpiffeId

Instant = NewType("Instant", int)
"""Microseconds of CLOCK_BOOTTIME (of virtual time in the simulator)."""

NEVER: Final = Instant(2**63 - 1)
MS: Final = 1_000
SECOND: Final = 1_000_000


class Value(msgspec.Struct, frozen=True, gc=False):
    """Root of all events and effects: frozen, compared by value, not tracked by the collector."""


@final
class Tick(Value, frozen=True):
    """Time has passed; sent at `deadline` or, by a nervous driver, before it."""


@final
class Received(Value, frozen=True):
    """A message has come from `src` (a neighbour's name, a circuit number: the room says which)."""

    src: Any
    message: Any


@final
class Done(Value, frozen=True):
    """The request with this token was carried out; `value` is its answer."""

    token: int
    value: Any = None


@final
class Failed(Value, frozen=True):
    """The request with this token could not be carried out."""

    token: int
    reason: str


@final
class ClockSet(Value, frozen=True):
    """Wall time is now `unix_us`; repeated at every step of the clock, noticed within a second."""

    unix_us: int


@final
class Send(Value, frozen=True):
    """Pass `message` to `dst`; it may be lost."""

    dst: Any
    message: Any


@final
class Allowed(Value, frozen=True):
    """A check said yes, to this peer."""

    peer: SpiffeId


@final
class Denied(Value, frozen=True):
    """A check said no; `reason` is a stable lower-case phrase that metrics and logs carry."""

    reason: str


Verdict = Allowed | Denied

Event = Value
Effect = Value
Effects = tuple[Effect, ...]
NOTHING: Final[Effects] = ()


class Machine(Protocol):
    """What drivers (asyncio, the proxy's epoll loop, the simulator) and composites rely on."""

    deadline: Instant

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in and return what is to be done, in order.

        Args:
            now: the driver's clock; never less than at the call before.
            event: a Tick, a Received, a Done or Failed, or a fact.
        Returns:
            Effects in the order in which they are to be carried out.
        """
        ...
