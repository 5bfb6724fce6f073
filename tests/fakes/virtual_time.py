"""The clocks of a host that stand until a test lets them go on."""

from __future__ import annotations

import asyncio
import heapq

from x0tta6bl4.core.machine import SECOND, Instant

START_UNIX_S = 1_800_000_000
_TURNS = 12
"""Turns of the loop that everything which needs no time gets."""


class VirtualTime:
    """Passes for `sdk.identity.auto_renew.Time`."""

    def __init__(self) -> None:
        self._now = 0
        self._offset_us = START_UNIX_S * SECOND
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    @property
    def unix_s(self) -> int:
        return self.unix_us() // SECOND

    def instant(self) -> Instant:
        return Instant(self._now)

    def unix_us(self) -> int:
        return self._now + self._offset_us

    async def sleep(self, until: Instant) -> None:
        self._count += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (until, self._count, future))
        await future

    async def pause(self, seconds: float) -> None:
        await self.sleep(Instant(self._now + int(seconds * SECOND)))

    async def settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def run(self, seconds: float) -> None:
        """Let time go on, from one sleeper to the next."""
        target = self._now + int(seconds * SECOND)
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            until, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                self._now = max(self._now, until)
                future.set_result(None)
                await self.settle()
        self._now = target

    async def step(self, seconds: float) -> None:
        """Set the wall clock; a host's sleepers notice within a second."""
        self._offset_us += int(seconds * SECOND)
        sleepers, self._sleepers = self._sleepers, []
        for _, _, future in sleepers:
            if not future.done():
                future.set_result(None)
        await self.settle()
