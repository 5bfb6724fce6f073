"""hypercorn against a plain client, with HTTP/1.1, HTTP/2 and WebSockets."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hypercorn.config import Config

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories
from tests.sdk.frameworks.asgi_service import app, websocket
from x0tta6bl4.app.mesh import free_ports
from x0tta6bl4.sdk.frameworks.hypercorn import serve as hypercorn_serve
from x0tta6bl4.sdk.identity import Connection, X509Source, anyone, dial, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadConfig, Refused, Unavailable

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@asynccontextmanager
async def serve(
    source: X509Source, authorize: Authorizer, id: str | None = None, app: Any = app, **more: Any
) -> AsyncIterator[int]:
    config = Config()
    (port,) = free_ports(1)
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = 0.05
    config.errorlog = None
    begun, over = asyncio.Event(), asyncio.Event()

    async def trigger() -> None:
        begun.set()
        await over.wait()

    more |= {"source": source, "authorize": authorize, "id": id, "shutdown_trigger": trigger}
    serving = asyncio.create_task(hypercorn_serve(app, config, **more))
    await stories.until(lambda: begun.is_set() or serving.done())
    try:
        yield port
    finally:
        over.set()
        await serving


def test_load_over_rotations(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.rotations_under_load(served, serve, stories.plain_client))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(served: WorkloadApi, change: str, reason: str) -> None:
    asyncio.run(stories.ends(served, serve, stories.plain_client, change, reason))


def test_connections_end_with_a_certificate(served: WorkloadApi) -> None:
    asyncio.run(stories.expires(served, serve, stories.plain_client))


def test_the_server_refuses_strangers(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(stories.server_refuses(served, other, serve))


def test_a_websocket_knows_its_peer_and_ends_with_it(served: WorkloadApi) -> None:
    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served) as theirs,
            serve(ours, anyone) as port,
            await dial(f"127.0.0.1:{port}", theirs, authorize=exact(WEB)) as connection,
        ):
            assert await websocket(connection) == WEB
            served.revoke(served.svids[0])
            with pytest.raises((Refused, OSError)):
                await asyncio.wait_for(connection.reader.readexactly(1), 1)
            await stories.until(lambda: ours.connections.ended["peer refused: revoked"] == 1)

    asyncio.run(story())


def test_http_2(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone) as port,
            await dial(
                f"127.0.0.1:{port}", source, authorize=exact(WEB), alpn=["h2"]
            ) as connection,
        ):
            assert connection.alpn == "h2"
            assert await two_requests(connection) == {1: WEB.encode(), 3: WEB.encode()}

    run(story)


async def two_requests(connection: Connection) -> dict[int, bytes]:
    """Two streams of one connection, at the same time."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http.initiate_connection()
    for stream in (1, 3):
        asked = {":method": "GET", ":scheme": "https", ":authority": "web", ":path": "/"}
        http.send_headers(stream, list(asked.items()), end_stream=True)
    got, ended = {1: b"", 3: b""}, 0
    while ended < 2:
        connection.writer.write(http.data_to_send())
        for event in http.receive_data(await connection.reader.read(64 * 1024)):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] += event.data
            ended += isinstance(event, h2.events.StreamEnded)
    return got


def test_the_state_of_the_application_is_in_its_requests(served: WorkloadApi) -> None:
    async def stateful(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["word"] = b"remembered"
            return await app(scope, receive, send)
        body = scope["state"]["word"]
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return None

    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone, app=stateful) as port,
            stories.plain_client(source, exact(WEB)) as client,
        ):
            assert await client.get(port) == "remembered"

    asyncio.run(story())


def test_a_signal_ends_it(served: WorkloadApi) -> None:
    async def story() -> None:
        config = Config()
        config.bind = [f"127.0.0.1:{free_ports(1)[0]}"]
        config.errorlog = None
        life: list[str] = []

        async def alive(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(2):
                life.append((await receive())["type"])
                await send({"type": f"{life[-1]}.complete"})

        async with source_of(served) as source:
            serving = asyncio.create_task(
                hypercorn_serve(alive, config, source=source, authorize=anyone)
            )
            async with stories.plain_client(source, exact(WEB)) as client:
                await stories.until(lambda: signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
                assert life == ["lifespan.startup"]
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(serving, 5)
                with pytest.raises(Unavailable):
                    await client.get(int(config.bind[0].rpartition(":")[2]))
            assert life == ["lifespan.startup", "lifespan.shutdown"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "settings",
    [{"certfile": "c.pem", "keyfile": "k.pem"}, {"insecure_bind": "x"}, {"quic_bind": "x"}],
)
def test_certificates_of_its_own_are_refused(settings: dict[str, str], served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            config = Config.from_mapping(settings)
            with pytest.raises(BadConfig) as error:
                await hypercorn_serve(app, config, source=source, authorize=anyone)
            assert error.value.id == "X0-SDK-052"

    asyncio.run(story())
