"""Drives one machine of the core on an asyncio loop.

Events come in by `post`, effects go out to one callable, the deadline is kept by one timer.  A
handler of effects may post further events: they are taken in order, never recursively.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from x0tta6bl4.core.machine import (
    NEVER,
    ClockSet,
    Effect,
    Event,
    Machine,
    Tick,
)
from x0tta6bl4.runtime.aio.beat import beat
from x0tta6bl4.runtime.clocks import clock, unix_us
from x0tta6bl4.runtime.memory import TIDY_S, tidy

CLOCK_LOOK_S: Final = 1.0
CLOCK_STEP_US: Final = 200_000
EVENTS_MAX: Final = 100_000
_TICK: Final = Tick()


class Driver:
    """One machine and the world around it.

    Args:
        machine: what decides.
        carry_out: takes each effect, in order, synchronously; slow work it starts as a task and
            posts Done or Failed when that ends.
    """

    def __init__(self, machine: Machine, carry_out: Callable[[Effect], None]) -> None:
        self.machine = machine
        self._carry_out = carry_out
        self._events: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def post(self, event: Event) -> None:
        """Give the machine an event, and the world the effects.

        Raises:
            AssertionError: more than EVENTS_MAX events wait; a machine feeds itself in a circle.
        """
        self._events.append(event)
        if self._busy:
            assert len(self._events) < EVENTS_MAX
            return
        self._busy = True
        try:
            while self._events:
                for effect in self.machine.handle(clock(), self._events.popleft()):
                    self._carry_out(effect)
        finally:
            self._busy = False
        self._arm()

    def _arm(self) -> None:
        deadline = self.machine.deadline
        if deadline == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline != NEVER:
            delay = max(0.0, (deadline - clock()) / 1e6)
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if clock() >= self.machine.deadline:
            self.post(_TICK)
        else:
            self._arm()

    async def watch_clock(self) -> None:
        """Tell the machine wall time now, and again about CLOCK_LOOK_S after every step."""
        offset: int | None = None
        while True:
            wall = unix_us()
            now_offset = wall - clock()
            if offset is None or abs(now_offset - offset) > CLOCK_STEP_US:
                self.post(ClockSet(wall))
                offset = now_offset
            await beat(CLOCK_LOOK_S)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def tidy_for_ever() -> None:
    """Now and then `runtime.memory.tidy`."""
    while True:
        await asyncio.sleep(TIDY_S)
        tidy()
