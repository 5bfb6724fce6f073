"""uvicorn, with both of its parsers, on both loops, against a plain client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories
from tests.sdk.frameworks.asgi_service import app, websocket
from x0tta6bl4.sdk.frameworks.asgi import peer_id
from x0tta6bl4.sdk.frameworks.uvicorn import Config
from x0tta6bl4.sdk.identity import X509Source, anyone, dial, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
Serve = stories.Serve


@asynccontextmanager
async def uvicorn_serving(
    source: X509Source, authorize: Authorizer, app: Any = app, **more: Any
) -> AsyncIterator[int]:
    """A server in a task, for as long as it is wanted."""
    config = Config(
        app,
        port=0,
        source=source,
        authorize=authorize,
        ws="wsproto",
        log_config=None,
        **more,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await stories.until(lambda: server.started or serving.done())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:  # Left to itself after a failed story, uvloop waits for it without end.
        server.should_exit = True
        await serving


@pytest.fixture(params=["h11", "httptools"])
def serve(request: pytest.FixtureRequest) -> Serve:
    def made(source: X509Source, authorize: Authorizer, id: str | None = None) -> Any:
        return uvicorn_serving(source, authorize, id=id, http=request.param)

    return made


def test_load_over_rotations(served: WorkloadApi, serve: Serve, run: Run) -> None:
    run(lambda: stories.rotations_under_load(served, serve, stories.plain_client))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(
    served: WorkloadApi, serve: Serve, change: str, reason: str
) -> None:
    asyncio.run(stories.ends(served, serve, stories.plain_client, change, reason))


def test_connections_end_with_a_certificate(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.expires(served, serve, stories.plain_client))


def test_the_server_refuses_strangers(
    served: WorkloadApi, other: WorkloadApi, serve: Serve
) -> None:
    asyncio.run(stories.server_refuses(served, other, serve))


def test_a_websocket_knows_its_peer_and_ends_with_it(served: WorkloadApi, serve: Serve) -> None:
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


def test_an_application_elsewhere_has_no_peer() -> None:
    with pytest.raises(Refused) as error:
        peer_id({"type": "http", "headers": [(b"peer_id", b"spiffe://example.org/web")]})
    assert error.value.id == "X0-SDK-051"
