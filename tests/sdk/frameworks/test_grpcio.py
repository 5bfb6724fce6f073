"""grpcio, client and server, asyncio and threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories, strangers
from tests.sdk.frameworks.stories import CLIENT
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.frameworks import grpcio
from x0tta6bl4.sdk.identity import X509Source, anyone, blocking, exact, member_of
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

DEADLINE_S = 5


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers `Get` with who asks, `Hold` never ends, `Echo` gives back what it gets."""

    def __init__(self, front: grpcio.Front) -> None:
        self._front = front

    def service(self, details: Any) -> Any:
        if details.method == "/t/Get":
            return grpc.unary_unary_rpc_method_handler(self._get)
        if details.method == "/t/Hold":
            return grpc.unary_stream_rpc_method_handler(self._hold)
        if details.method == "/t/Echo":
            return grpc.stream_stream_rpc_method_handler(self._echo)
        return None

    async def _get(self, request: bytes, context: Any) -> bytes:
        return self._front.peer_id(context).encode()

    async def _hold(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"!"
        await asyncio.Event().wait()

    async def _echo(self, request: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for one in request:
            yield one


@asynccontextmanager
async def fronted(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[grpcio.Front]:
    front = grpcio.Front("127.0.0.1:0", source, authorize=authorize, id=id)
    server = grpc.aio.server(interceptors=[front.interceptor])
    server.add_generic_rpc_handlers((Service(front),))
    async with front.serving(server):
        yield front


@asynccontextmanager
async def answering(
    served: WorkloadApi, clock: FakeClock | None = None
) -> AsyncIterator[tuple[X509Source, Any]]:
    """A server's source, and a call on a channel to it that has been answered."""
    async with (
        source_of(served, clock) as ours,
        source_of(served) as theirs,
        fronted(ours, exact(CLIENT), id=WEB) as front,
        grpcio.channel(f"127.0.0.1:{front.port}", theirs, authorize=anyone, id=CLIENT) as channel,
    ):
        call = channel.unary_unary("/t/Get")
        assert await call(b"", timeout=DEADLINE_S) == CLIENT.encode()
        yield ours, call


@asynccontextmanager
async def serve(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[int]:
    async with fronted(source, authorize, id) as front:
        yield front.port


class Client:
    def __init__(
        self, stack: AsyncExitStack, source: X509Source, authorize: Authorizer, id: str | None
    ) -> None:
        self._stack = stack
        self._more: Any = {"source": source, "authorize": authorize, "id": id}
        self._channel: Any = None

    async def channel(self, port: int) -> Any:
        if self._channel is None:
            self._channel = await self._stack.enter_async_context(
                grpcio.channel(f"127.0.0.1:{port}", **self._more)
            )
        return self._channel

    async def get(self, port: int) -> str:
        call = (await self.channel(port)).unary_unary("/t/Get")
        answer: bytes = await call(b"", timeout=DEADLINE_S)
        return answer.decode()

    async def hold(self, port: int) -> Awaitable[Any]:
        call = (await self.channel(port)).unary_stream("/t/Hold")(b"")
        assert await call.read() == b"!"

        async def end() -> None:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()

        return end()


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Client(stack, source, authorize, id)


def test_no_call_fails_while_svids_and_the_ca_rotate(served: WorkloadApi) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, clients))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_calls_end_with_an_identity(served: WorkloadApi, change: str, reason: str) -> None:
    asyncio.run(stories.ends(served, serve, clients, change, reason))


def test_calls_end_when_a_certificate_expires(served: WorkloadApi) -> None:
    asyncio.run(stories.expires(served, serve, clients))


def test_a_server_sends_strangers_away(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(
        strangers.server_sends_strangers_away(served, other, serve, clients, grpc.aio.AioRpcError)
    )


def test_a_client_refuses_servers(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(
        strangers.client_refuses_servers(served, other, serve, clients, grpc.aio.AioRpcError)
    )


def test_a_channel_moves_to_the_newest_svid_and_loses_nothing(served: WorkloadApi) -> None:
    """A stream that is open goes on where it began, new calls take the new connection."""

    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served) as theirs,
            fronted(ours, anyone) as front,
            grpcio.channel(f"127.0.0.1:{front.port}", theirs, authorize=exact(WEB)) as channel,
        ):
            echo = channel.stream_stream("/t/Echo")()
            for turn in range(6):
                word = bytes([turn]) * 200_000  # Many frames, in both directions.
                await echo.write(word)
                assert await echo.read() == word
                assert await channel.unary_unary("/t/Get")(b"", timeout=DEADLINE_S) == WEB.encode()
                chains = {live.peer_chain for live in ours.connections}
                assert served.svids[0].chain in chains
                version = theirs.version
                served.rotate()
                await theirs.changed(version, 5)
                await ours.changed(ours.version - 1, 5)
            await echo.done_writing()
            assert await echo.read() is grpc.aio.EOF
            await stories.until(lambda: len(theirs.connections) <= 2)

    asyncio.run(story())


def test_a_foreign_client_is_asked_to_move_before_the_end(served: WorkloadApi) -> None:
    """Who has a connection from us to a server that we stand before: its GOAWAY in time."""

    async def story() -> None:
        async with source_of(served) as ours, fronted(ours, anyone) as front:
            made: Any = front._inbound
            async with grpcio.channel(f"127.0.0.1:{front.port}", ours, authorize=anyone) as channel:
                call = channel.unary_unary("/t/Get")
                assert await call(b"", timeout=DEADLINE_S) == WEB.encode()
                (first,) = made.peers
                (key,) = made._moving._held
                made._moving._tell(key, 1)  # As its timer does.
                await stories.until(lambda: first not in made.peers)
                assert await call(b"", timeout=DEADLINE_S) == WEB.encode()

    asyncio.run(story())


def test_who_comes_to_the_socket_by_itself_is_refused(served: WorkloadApi) -> None:
    """Neither another channel nor metadata makes an identity."""

    async def story() -> None:
        async with source_of(served) as ours, fronted(ours, anyone) as front:
            path = f"{front._folder}/s"
            assert os.stat(front._folder).st_mode & 0o777 == 0o700
            async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                for method in ("Get", "Hold", "Echo", "None"):
                    call = channel.unary_unary(f"/t/{method}")
                    with pytest.raises(grpc.aio.AioRpcError) as error:
                        await call(b"", timeout=DEADLINE_S, metadata=(("x-spiffe-id", WEB),))
                    assert error.value.code() is (
                        grpc.StatusCode.UNIMPLEMENTED
                        if method == "None"
                        else grpc.StatusCode.UNAUTHENTICATED
                    )

    asyncio.run(story())


def test_the_interceptor_judges_again(served: WorkloadApi) -> None:
    """Should a connection live on for any reason, its calls don't."""

    async def story() -> None:
        served.issue("/client")
        async with answering(served) as (ours, call):
            for live in ours.connections:
                ours.connections.remove(live)  # The registry forgets it, so nobody ends it.
            version = ours.version
            served.revoke(served.svids[1])
            await ours.changed(version, 5)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"", timeout=DEADLINE_S)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error.value.details() == "peer refused: revoked"

    asyncio.run(story())


def test_the_interceptor_looks_at_the_clock(served: WorkloadApi) -> None:
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        served.issue("/client", life_s=1800)
        async with answering(served, clock) as (ours, call):
            (live,) = ours.connections
            ours.connections.remove(live)
            clock.unix_us = live.not_after_unix_s * SECOND
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"", timeout=DEADLINE_S)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(story())


def test_no_other_process_uses_our_identity(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as ours, fronted(ours, anyone) as front:
            relay = grpcio._outbound(f"127.0.0.1:{front.port}", ours, anyone, {})
            async with relay:
                with socket.socket(socket.AF_UNIX) as own:
                    own.connect(relay.path)
                    code = (
                        "import socket, sys; s = socket.socket(socket.AF_UNIX);"
                        "s.connect(sys.argv[1]); sys.exit(len(s.recv(1)))"
                    )
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-c", code, relay.path
                    )
                    assert await asyncio.wait_for(process.wait(), 20) == 0
                    assert relay.refused == {"another process": 1}
                    await stories.until(lambda: len(relay._tasks) == 1)

    asyncio.run(story())


# ------------------------------------------------------------------------------------- threads
class Threaded(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, front: grpcio.Front) -> None:
        self._front = front

    def service(self, details: Any) -> Any:
        if details.method == "/t/Hold":
            return grpc.unary_stream_rpc_method_handler(self._hold)
        return grpc.unary_unary_rpc_method_handler(self._get)

    def _get(self, request: bytes, context: Any) -> bytes:
        return self._front.peer_id(context).encode()

    def _hold(self, request: bytes, context: Any) -> Iterator[bytes]:
        ended = threading.Event()
        context.add_callback(ended.set)
        yield b"!"
        ended.wait(DEADLINE_S)


def test_the_same_with_threads(served: WorkloadApi) -> None:
    with blocking.X509Source() as source, ThreadPoolExecutor(4) as threads:
        source.wait(5)
        front = grpcio.Front("127.0.0.1:0", source, authorize=exact(WEB))
        server = grpc.server(threads, interceptors=[front.interceptor])
        server.add_generic_rpc_handlers((Threaded(front),))
        with front.blocking_serving(server):
            address = f"127.0.0.1:{front.port}"
            with grpc.insecure_channel(f"unix:{front._folder}/s") as bare:
                with pytest.raises(grpc.RpcError) as error:
                    bare.unary_unary("/t/Get")(b"", timeout=DEADLINE_S)
                assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with grpcio.blocking_channel(address, source, authorize=member_of("x.test")) as wrong:
                with pytest.raises(grpc.RpcError) as error:
                    wrong.unary_unary("/t/Get")(b"", timeout=DEADLINE_S)
                assert "unexpected trust domain" in error.value.details()
            with grpcio.blocking_channel(address, source, authorize=exact(WEB)) as channel:
                call = channel.unary_unary("/t/Get")
                chains = set()
                for _ in range(6):
                    for _ in range(20):
                        assert call(b"", timeout=DEADLINE_S) == WEB.encode()
                    chains |= {live.peer_chain for live in source.connections}
                    version = source.version
                    served.rotate()
                    source.changed(version, 5)
                assert len(chains) >= 6
                held = channel.unary_stream("/t/Hold")(b"", timeout=DEADLINE_S)
                assert next(held) == b"!"
                started = time.monotonic()
                served.withdraw()
                with pytest.raises(grpc.RpcError):
                    next(held)
                assert time.monotonic() - started < 1


def test_the_sdk_does_not_import_grpcio() -> None:
    code = (
        "import sys, x0tta6bl4.sdk.identity.tls, x0tta6bl4.sdk.frameworks as f; sys.exit("
        "any(name in sys.modules for name in ('grpc', 'psycopg', 'asyncpg', 'redis')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
