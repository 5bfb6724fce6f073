"""Starlette on both servers: the peer as user, scopes by authorisers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories, test_hypercorn, test_uvicorn
from tests.sdk.frameworks.asgi_service import websocket
from x0tta6bl4.sdk.frameworks.httpx import Transport
from x0tta6bl4.sdk.frameworks.starlette import Peers
from x0tta6bl4.sdk.identity import X509Source, anyone, dial, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused

Serve = stories.Serve


@requires("authenticated")
async def who(request: Request) -> PlainTextResponse:
    assert request.user.is_authenticated
    return PlainTextResponse(request.user.identity)


@requires("admin")
async def restart(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"as you wish, {request.user.display_name}")


async def hold(request: Request) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    return StreamingResponse(body())


@requires("admin")
async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.identity)
    await websocket.receive()


app = Starlette(
    routes=[
        Route("/", who),
        Route("/restart", restart, methods=["POST"]),
        Route("/hold", hold),
        WebSocketRoute("/", talk),
    ],
    middleware=[Middleware(AuthenticationMiddleware, backend=Peers(admin=exact(stories.CLIENT)))],
)


@pytest.fixture(params=["uvicorn", "hypercorn"])
def serve(request: pytest.FixtureRequest) -> Serve:
    def made(source: X509Source, authorize: Authorizer, id: str | None = None) -> Any:
        if request.param == "uvicorn":
            return test_uvicorn.uvicorn_serving(source, authorize, app, id=id)
        return test_hypercorn.serve(source, authorize, id, app)

    return made


def test_load_over_rotations(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, stories.plain_client))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(
    served: WorkloadApi, serve: Serve, change: str, reason: str
) -> None:
    asyncio.run(stories.ends(served, serve, stories.plain_client, change, reason))


def test_the_server_refuses_strangers(
    served: WorkloadApi, other: WorkloadApi, serve: Serve
) -> None:
    asyncio.run(stories.server_refuses(served, other, serve))


def test_a_scope_is_for_those_whom_its_authoriser_allows(served: WorkloadApi, serve: Serve) -> None:
    served.issue("/client")
    served.issue("/other")

    async def story() -> None:
        async with source_of(served) as source, serve(source, anyone, id=WEB) as port:
            for id, status, text in (
                (stories.CLIENT, 200, f"as you wish, {stories.CLIENT}"),
                (stories.OTHER, 403, "Forbidden"),
            ):
                transport = Transport(source, authorize=exact(WEB), id=id)
                async with httpx.AsyncClient(transport=transport) as client:
                    answer = await client.post(f"https://127.0.0.1:{port}/restart")
                    assert (answer.status_code, answer.text) == (status, text)
                    assert (await client.get(f"https://127.0.0.1:{port}/")).text == id

    asyncio.run(story())


def test_a_websocket_has_a_user_too(served: WorkloadApi, serve: Serve) -> None:
    served.issue("/client")

    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone, id=WEB) as port,
            await dial(
                f"127.0.0.1:{port}", source, authorize=exact(WEB), id=stories.CLIENT
            ) as connection,
        ):
            assert await websocket(connection) == stories.CLIENT
            served.redact("/client")
            with pytest.raises((Refused, OSError)):
                await asyncio.wait_for(connection.reader.readexactly(1), 1)

    asyncio.run(story())


def test_served_by_another_server_everything_is_refused() -> None:
    async def story() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            answer = await client.get("/")
            assert answer.status_code == 400
            assert answer.text.startswith("X0-SDK-051")

    asyncio.run(story())
