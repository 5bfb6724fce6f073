"""Sessions move: requests go on over the ends of connections, for virtual hours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, source_of
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.frameworks.aiohttp import Connector, Site
from x0tta6bl4.sdk.frameworks.httpx import Transport
from x0tta6bl4.sdk.identity import exact
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

STEP_S = 20
"""How long a request lasts; less than the 30 s in which none is begun."""
ROTATE_STEPS = 60
STEPS = 400
"""More than two hours: SVIDs live for one and are renewed every 20 minutes."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(time.clock_gettime(time.CLOCK_REALTIME))


@pytest.fixture
def timed(clock: FakeClock) -> Iterator[WorkloadApi]:
    with WorkloadApi(Domain(now_unix_s=lambda: clock.unix_us // SECOND)) as api:
        api.issue("/web")
        yield api


def test_no_request_is_cut_off_by_the_end_of_its_connection(
    timed: WorkloadApi, clock: FakeClock
) -> None:
    begun: asyncio.Queue[asyncio.Future[None]]

    async def last(request: web.Request) -> web.Response:
        done = asyncio.get_running_loop().create_future()
        begun.put_nowait(done)
        await done
        return web.Response(text="done")

    async def story() -> None:
        nonlocal begun
        begun = asyncio.Queue()
        app = web.Application()
        app.add_routes([web.get("/", last)])
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        async with source_of(timed, clock) as ours, source_of(timed, clock) as theirs:
            site = Site(runner, "127.0.0.1", 0, source=ours, authorize=exact(WEB))
            await site.start()
            url = f"https://127.0.0.1:{site.port}/"
            options: dict[str, Any] = {"authorize": exact(WEB)}
            async with (
                aiohttp.ClientSession(connector=Connector(theirs, **options)) as session,
                httpx.AsyncClient(transport=Transport(theirs, **options)) as client,
            ):

                async def by_aiohttp() -> str:
                    async with session.get(url) as response:
                        return await response.text()

                async def by_httpx() -> str:
                    return (await client.get(url, timeout=60)).text

                for step in range(STEPS):
                    if step % ROTATE_STEPS == ROTATE_STEPS - 1:
                        versions = ours.version, theirs.version
                        timed.rotate()
                        await ours.changed(versions[0], 5)
                        await theirs.changed(versions[1], 5)
                    async with asyncio.TaskGroup() as requests:
                        asked = [requests.create_task(by()) for by in (by_aiohttp, by_httpx)]
                        waiting = [await asyncio.wait_for(begun.get(), 5) for _ in asked]
                        clock.unix_us += STEP_S * SECOND
                        for source in (ours, theirs):
                            source.connections.expire()
                        for done in waiting:
                            done.set_result(None)
                    assert [one.result() for one in asked] == ["done", "done"]
                for source in (ours, theirs):
                    assert 2 * 3 <= sum(source.connections.groups.values()) <= 2 * 4
                    assert all(
                        live.not_after_unix_s * SECOND > clock() for live in source.connections
                    )
            await runner.cleanup()

    asyncio.run(story())
