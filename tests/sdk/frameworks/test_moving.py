"""When connections are told to move."""

from __future__ import annotations

import asyncio
import time

from tests.fakes.ca import FakeClock
from tests.fakes.workload import source_of
from tests.sdk.frameworks import stories
from x0tta6bl4.sdk.frameworks.moving import Moving
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


def test_a_connection_moves_when_its_svid_was_replaced(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            moving, told = Moving(source, 1 / 4), list[str]()
            server = Moving(source, 1 / 8, rotation=False)
            own = source.current()
            moving.add(own, own.not_after_unix_s, lambda: told.append("moved"))
            server.add(own, own.not_after_unix_s, lambda: told.append("server"))
            moving.add(own, own.not_after_unix_s, lambda: told.append("closed"))()
            for _ in range(2):
                version = source.version
                served.rotate()
                await source.changed(version, 5)
                await asyncio.sleep(0.01)
                assert told == ["moved"]
            # A handshake that began before the rotation and ended after it.
            late = asyncio.Event()
            moving.add(own, own.not_after_unix_s, late.set)
            await asyncio.wait_for(late.wait(), 5)
            # Withdrawn is not replaced: the registry ends what was withdrawn.
            own = source.current()
            moving.add(own, own.not_after_unix_s, lambda: told.append("wrong"))
            served.withdraw()
            await source.changed(source.version, 5)
            await asyncio.sleep(0.01)
            assert set(told) == {"moved"}
            await stories.until(lambda: len(told) > 1)  # It is still there: told again.
            moving.close()
            server.close()

    asyncio.run(story())


def test_a_connection_moves_before_its_end(served: WorkloadApi) -> None:
    """The clock stands so that the share at the end has begun."""
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        async with source_of(served, clock) as source:
            moving, early, due = Moving(source, 1 / 4), asyncio.Event(), asyncio.Event()
            own = source.current()
            now = clock.unix_us // 1_000_000
            moving.add(own, now + 3600, early.set)
            moving.add(own, now, due.set)
            await asyncio.wait_for(due.wait(), 5)
            assert not early.is_set()
            moving.close()

    asyncio.run(story())
