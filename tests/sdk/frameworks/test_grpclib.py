"""grpclib, client and server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.client import StreamStreamMethod, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import GRPCError, StreamTerminatedError

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories, strangers
from x0tta6bl4.sdk.frameworks.grpclib import Channel, Server, peer_id
from x0tta6bl4.sdk.identity import X509Source, anyone, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
FAILURES = (OSError, GRPCError, StreamTerminatedError)


class Service:
    """Says who calls, holds, echoes."""

    async def get(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(StringValue(value=peer_id(stream)))

    async def hold(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(StringValue(value="!"))
        await asyncio.Event().wait()

    async def echo(self, stream: Any) -> None:
        async for one in stream:
            await stream.send_message(one)

    def __mapping__(self) -> dict[str, Handler]:
        one, many = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return {
            "/t/Get": Handler(self.get, one, Empty, StringValue),
            "/t/Hold": Handler(self.hold, many, Empty, StringValue),
            "/t/Echo": Handler(self.echo, Cardinality.STREAM_STREAM, StringValue, StringValue),
        }


@asynccontextmanager
async def serve(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[int]:
    server = Server([Service()], source, authorize=authorize, id=id)
    await server.start("127.0.0.1", 0)
    try:
        yield server.port
    finally:
        server.close()
        await server.wait_closed()


class Client:
    def __init__(self, source: X509Source, authorize: Authorizer, id: str | None) -> None:
        self._more: Any = {"source": source, "authorize": authorize, "id": id}
        self.kept: Channel | None = None

    def channel(self, port: int) -> Channel:
        if self.kept is None:
            self.kept = Channel(f"127.0.0.1:{port}", **self._more)
        return self.kept

    async def get(self, port: int) -> str:
        method = UnaryUnaryMethod(self.channel(port), "/t/Get", Empty, StringValue)
        return str((await method(Empty(), timeout=5)).value)

    async def hold(self, port: int) -> Awaitable[Any]:
        method = UnaryStreamMethod(self.channel(port), "/t/Hold", Empty, StringValue)
        began = asyncio.Event()

        async def calling() -> None:
            with contextlib.suppress(*FAILURES):
                async with method.open() as stream:
                    await stream.send_message(Empty(), end=True)
                    await stream.recv_message()
                    began.set()
                    await stream.recv_message()

        task = asyncio.create_task(calling())
        await asyncio.wait_for(began.wait(), 5)
        return task


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    client = Client(source, authorize, id)
    try:
        yield client
    finally:
        if client.kept is not None:
            client.kept.close()


def test_no_call_fails_while_svids_and_the_ca_rotate(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.rotations_under_load(served, serve, clients))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_calls_end_with_an_identity(
    served: WorkloadApi, run: Run, change: str, reason: str
) -> None:
    run(lambda: stories.ends(served, serve, clients, change, reason))


def test_calls_end_when_a_certificate_expires(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.expires(served, serve, clients))


def test_a_server_sends_strangers_away(served: WorkloadApi, other: WorkloadApi, run: Run) -> None:
    run(lambda: strangers.server_sends_strangers_away(served, other, serve, clients, FAILURES))


def test_a_client_refuses_servers(served: WorkloadApi, other: WorkloadApi, run: Run) -> None:
    run(lambda: strangers.client_refuses_servers(served, other, serve, clients, OSError))


def test_a_channel_moves_to_the_newest_svid_and_loses_nothing(
    served: WorkloadApi, run: Run
) -> None:
    """A stream that is open goes on where it began, new calls take the new connection."""

    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served) as theirs,
            serve(ours, anyone) as port,
            clients(theirs, exact(WEB)) as client,
        ):
            method = StreamStreamMethod(client.channel(port), "/t/Echo", StringValue, StringValue)
            async with method.open() as stream:
                for turn in range(3):
                    word = StringValue(value=str(turn) * 200_000)
                    await stream.send_message(word)
                    assert await stream.recv_message() == word
                    # More at once than a connection has streams for.
                    answers = await asyncio.gather(*(client.get(port) for _ in range(130)))
                    assert set(answers) == {WEB}
                    waiting = [asyncio.create_task(client.get(port)) for _ in range(130)]
                    version = theirs.version
                    served.rotate()
                    await theirs.changed(version, 5)
                    assert set(await asyncio.gather(*waiting)) == {WEB}
                    await client.get(port)
                    newest = served.svids[0].chain
                    assert newest in {live.peer_chain for live in ours.connections}
                await stream.end()
                assert await stream.recv_message() is None

            await stories.until(lambda: forgotten(theirs) == 1)

    run(story)


def forgotten(source: X509Source) -> int:
    """How many connections there are besides those that were closed."""
    source.connections.expire()
    return len(source.connections)
