"""The asyncio driver: effects in order, no recursion, deadlines kept, clock steps told."""

from __future__ import annotations

import asyncio

import pytest

from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    NOTHING,
    ClockSet,
    Done,
    Effect,
    Effects,
    Event,
    Instant,
    Send,
    Tick,
)
from x0tta6bl4.runtime.aio import driver
from x0tta6bl4.runtime.aio.beat import until_beat
from x0tta6bl4.runtime.aio.driver import Driver
from x0tta6bl4.runtime.clocks import clock


class Echo:
    """Sends what it is told, twice; a tick moves its deadline on."""

    def __init__(self) -> None:
        self.deadline = NEVER
        self.depth = 0
        self.heard: list[Event] = []
        self.ticked = asyncio.Event()

    def handle(self, now: Instant, event: Event) -> Effects:
        assert self.depth == 0, "handle was called from within handle"
        self.heard.append(event)
        if type(event) is Done:
            return (Send("a", event.value), Send("b", event.value))
        if type(event) is Tick and now >= self.deadline:
            self.deadline = NEVER
            self.ticked.set()
        return NOTHING


def test_effects_go_out_in_order_and_what_they_cause_comes_after() -> None:
    echo = Echo()
    out: list[Effect] = []

    def carry_out(effect: Effect) -> None:
        out.append(effect)
        if type(effect) is Send and effect.dst == "a" and effect.message < 3:
            machine.post(Done(0, effect.message + 1))

    async def story() -> None:
        machine.post(Done(0, 1))

    machine = Driver(echo, carry_out)
    asyncio.run(story())
    assert out == [Send(d, n) for n in (1, 2, 3) for d in ("a", "b")]


def test_a_deadline_brings_a_tick_not_before_it() -> None:
    async def story() -> None:
        echo = Echo()
        machine = Driver(echo, lambda _effect: None)
        before = clock()
        echo.deadline = Instant(before + 30 * MS)
        machine.post(Done(0, None))
        await echo.ticked.wait()
        assert clock() >= before + 30 * MS
        assert sum(type(e) is Tick for e in echo.heard) == 1
        machine.close()

    asyncio.run(asyncio.wait_for(story(), 5))


def test_a_closed_driver_ticks_no_more() -> None:
    async def story() -> None:
        echo = Echo()
        machine = Driver(echo, lambda _effect: None)
        echo.deadline = Instant(clock() + 10 * MS)
        machine.post(Done(0, None))
        machine.close()
        await asyncio.sleep(0.03)
        assert not any(type(e) is Tick for e in echo.heard)

    asyncio.run(story())


def test_every_step_of_the_clock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "CLOCK_LOOK_S", 0.005)
    wall = [1_000_000_000]
    monkeypatch.setattr(driver, "unix_us", lambda: wall[0] + clock())

    async def story() -> list[int]:
        echo = Echo()
        machine = Driver(echo, lambda _effect: None)
        watching = asyncio.create_task(machine.watch_clock())
        await asyncio.sleep(0.05)
        wall[0] += 3600 * 1_000_000
        await asyncio.sleep(0.05)
        wall[0] += 1_000  # A millisecond is drift, not a step.
        await asyncio.sleep(0.05)
        watching.cancel()
        machine.close()
        return [e.unix_us for e in echo.heard if type(e) is ClockSet]

    told = asyncio.run(story())
    assert len(told) == 2
    assert told[1] - told[0] > 3600 * 1_000_000


def test_regular_work_of_a_process_falls_together() -> None:
    for period in (0.5, 1.0, 2.0):
        for now in (1000.0, 1000.3, 1000.99, 1001.5):
            left = until_beat(now, period)
            assert period / 10 <= left < period * 1.1
            again = until_beat(now + left - 0.001, period)  # Woken a millisecond too early.
            assert abs(again - period) <= 0.0011
    half, whole = 5.0 + until_beat(5.0, 0.5), 5.0 + until_beat(5.0, 1.0)
    assert min(abs(whole - half), abs(whole - half - 0.5), abs(whole - half - 1)) < 1e-6
