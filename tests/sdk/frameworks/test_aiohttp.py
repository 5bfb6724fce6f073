"""aiohttp's server against a plain client, its client against a plain server, and one another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.frameworks.aiohttp import Connector, Site, peer_id
from x0tta6bl4.sdk.identity import X509Source, anyone, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


async def who(request: web.Request) -> web.Response:
    assert request.scheme == "https"
    return web.Response(text=peer_id(request))


async def hold(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"x")
    await asyncio.Event().wait()
    return response


async def talk(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    await response.send_str(peer_id(request))
    async for _ in response:
        pass
    return response


@asynccontextmanager
async def serve(
    source: X509Source, authorize: Authorizer, id: str | None = None, **more: Any
) -> AsyncIterator[int]:
    app = web.Application()
    app.add_routes([web.get("/", who), web.get("/hold", hold), web.get("/ws", talk)])
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    site = Site(runner, "127.0.0.1", 0, source=source, authorize=authorize, id=id, **more)
    await site.start()
    assert site.name == f"https://127.0.0.1:{site.port}"
    try:
        yield site.port
    finally:
        await runner.cleanup()


class Client:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.held: list[aiohttp.ClientResponse] = []

    async def get(self, port: int) -> str:
        async with self.session.get(f"https://127.0.0.1:{port}/") as response:
            response.raise_for_status()
            return await response.text()

    async def hold(self, port: int) -> Awaitable[Any]:
        response = await self.session.get(f"https://127.0.0.1:{port}/hold")
        self.held.append(response)
        assert await response.content.readany()

        async def end() -> None:
            with contextlib.suppress(aiohttp.ClientError):
                await response.content.read()

        return end()


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None, **more: Any
) -> AsyncIterator[Client]:
    connector = Connector(source, authorize=authorize, id=id, **more)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session)
        yield client
        for response in client.held:
            response.close()


def test_load_over_rotations(served: WorkloadApi) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, clients))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(served: WorkloadApi, change: str, reason: str) -> None:
    asyncio.run(stories.ends(served, serve, clients, change, reason))


def test_connections_end_with_a_certificate(served: WorkloadApi) -> None:
    asyncio.run(stories.expires(served, serve, clients))


def test_the_server_refuses_strangers(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(stories.server_refuses(served, other, serve))


def test_the_client_refuses_wrong_servers(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(stories.client_refuses(served, other, clients, aiohttp.ClientConnectorError))


def test_a_connection_is_left_before_its_end(served: WorkloadApi) -> None:
    """Near its end it is not taken again; a new one is."""
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        async with source_of(served) as ours, source_of(served, clock) as theirs:  # noqa: SIM117
            async with serve(ours, anyone) as port, clients(theirs, exact(WEB)) as client:
                await client.get(port)
                await client.get(port)
                (first,) = theirs.connections
                clock.unix_us = first.not_after_unix_s * SECOND - 10 * SECOND
                await client.get(port)
                assert sum(theirs.connections.groups.values()) == 2
                theirs.connections.expire()
                assert first not in theirs.connections

    asyncio.run(story())


def test_a_websocket_knows_its_peer_and_ends_with_it(served: WorkloadApi) -> None:
    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served) as theirs,
            serve(ours, anyone) as port,
            clients(theirs, exact(WEB)) as client,
            client.session.ws_connect(f"https://127.0.0.1:{port}/ws") as socket,
        ):
            assert await socket.receive_str() == WEB
            served.revoke(served.svids[0])
            last = await socket.receive(timeout=1)
            assert last.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
            await stories.until(lambda: ours.connections.ended["peer refused: revoked"] == 1)

    asyncio.run(story())


def test_plaintext_and_other_settings_are_refused(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:  # noqa: SIM117
            async with serve(source, anyone) as port, clients(source, exact(WEB)) as client:
                for url, ssl in (("http", True), ("https", False)):
                    with pytest.raises(aiohttp.ClientConnectionError, match="or nothing"):
                        await client.session.get(f"{url}://127.0.0.1:{port}/", ssl=ssl)
                assert await client.get(port) == WEB

    asyncio.run(story())


def test_a_withdrawal_within_the_handshake(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(served) as theirs:  # noqa: SIM117
            async with serve(ours, anyone) as port, clients(theirs, exact(WEB)) as client:
                theirs.connections.withdraw(())
                with pytest.raises(aiohttp.ClientConnectionError, match="identity withdrawn"):
                    await client.get(port)

    asyncio.run(story())
