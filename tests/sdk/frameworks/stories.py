"""What every adapter has to stand, told once: load over rotations, ends, refusals.

A service answers `get` with the ID of who asks, and keeps the answer to `hold` open for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import h11
import pytest

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, source_of
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.identity import Connection, X509Source, anyone, dial, exact, listen
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused, Unavailable

CLIENT = "spiffe://example.org/client"
OTHER = "spiffe://example.org/other"
ROTATIONS = 6
REQUESTS = 12
"""Between two rotations, at least."""


class Client(Protocol):
    """A client of the framework, or a plain one."""

    async def get(self, port: int) -> str:
        """Ask who we are."""

    async def hold(self, port: int) -> Awaitable[Any]:
        """Begin an answer that does not end; what is returned waits for its end."""


PLAIN_FAILURES = (OSError, Refused, Unavailable, h11.RemoteProtocolError)

Serve = Callable[..., AbstractAsyncContextManager[int]]
"""`serve(source, authorize, id=...)` -> port."""
Clients = Callable[..., AbstractAsyncContextManager[Client]]
"""`clients(source, authorize, id=...)` -> Client."""


async def rotations_under_load(served: WorkloadApi, serve: Serve, clients: Clients) -> None:
    """Clients that keep their connections and clients that don't: no request fails."""
    served.issue("/client")
    done: asyncio.Queue[str] = asyncio.Queue()

    async def work(port: int, theirs: X509Source, keep: bool) -> None:
        async with contextlib.AsyncExitStack() as kept:
            client = await kept.enter_async_context(clients(theirs, exact(WEB), id=CLIENT))
            while True:
                done.put_nowait(await client.get(port))
                if not keep:
                    await kept.aclose()
                    client = await kept.enter_async_context(clients(theirs, exact(WEB), id=CLIENT))

    async with source_of(served) as ours, source_of(served) as theirs:  # noqa: SIM117
        async with serve(ours, exact(CLIENT), id=WEB) as port:
            workers = [asyncio.create_task(work(port, theirs, at < 2)) for at in range(3)]
            try:
                for turn in range(ROTATIONS):
                    versions = ours.version, theirs.version
                    if turn == ROTATIONS - 2:
                        served.rotate_anchor()
                    else:
                        served.rotate()
                    await ours.changed(versions[0], 5)
                    await theirs.changed(versions[1], 5)
                    for _ in range(REQUESTS):
                        assert await within(done.get(), workers) == CLIENT
                    async with clients(theirs, exact(WEB), id=CLIENT) as fresh:
                        assert await within(fresh.get(port), workers) == CLIENT
                        server, client = served.svids
                        assert client.chain in [live.peer_chain for live in ours.connections]
                        assert server.chain in [live.peer_chain for live in theirs.connections]
                assert set(ours.connections.groups) == {"X25519MLKEM768"}
                assert ours.connections.refused == {}
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)


async def ends(
    served: WorkloadApi, serve: Serve, clients: Clients, change: str, reason: str
) -> None:
    """Both ends feel it within a second; another client, who is not meant, goes on."""
    served.issue("/client")
    served.issue("/other")
    async with source_of(served) as ours, source_of(served) as theirs:  # noqa: SIM117
        async with (
            serve(ours, exact(CLIENT, OTHER), id=WEB) as port,
            clients(theirs, exact(WEB), id=CLIENT) as meant,
            clients(theirs, exact(WEB), id=OTHER) as other,
        ):
            ended = asyncio.ensure_future(await meant.hold(port))  # noqa: TID251
            lasting = asyncio.ensure_future(await other.hold(port))  # noqa: TID251
            assert len(ours.connections) == len(theirs.connections) == 2
            started = time.monotonic()
            if change == "revoke":
                served.revoke(served.svids[1])
            else:
                served.redact("/client")
            await asyncio.wait_for(ended, 5)
            await until(lambda: len(theirs.connections) + len(ours.connections) == 2)
            assert time.monotonic() - started < 1
            assert ours.connections.ended[reason] or theirs.connections.ended[reason]
            async with plain_client(theirs, exact(WEB), id=CLIENT) as late:
                with pytest.raises(PLAIN_FAILURES):
                    await late.get(port)
            assert not lasting.done()
            assert await other.get(port) == OTHER
            lasting.cancel()
            await asyncio.gather(lasting, return_exceptions=True)


async def expires(served: WorkloadApi, serve: Serve, clients: Clients) -> None:
    """A connection ends with the first certificate of its handshake."""
    served.issue("/client", life_s=1800)
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))
    async with source_of(served, clock) as ours, source_of(served) as theirs:  # noqa: SIM117
        async with (
            serve(ours, anyone, id=WEB) as port,
            clients(theirs, exact(WEB), id=CLIENT) as client,
        ):
            ended = asyncio.ensure_future(await client.hold(port))  # noqa: TID251
            (live,) = ours.connections
            assert live.peer_id == CLIENT
            assert not ours.connections.retiring(live)
            clock.unix_us = live.not_after_unix_s * SECOND - 1
            assert ours.connections.retiring(live)
            ours.connections.expire()
            assert not ended.done()
            assert len(ours.connections) == 1
            clock.unix_us += 1
            await asyncio.wait_for(ended, 5)
            assert ours.connections.ended == {"SVID of the peer expired": 1}


async def server_refuses(served: WorkloadApi, other: WorkloadApi, serve: Serve) -> None:
    """Strangers of three kinds get no byte, and the reason is counted; who is meant gets in."""
    served.issue("/client")
    served.federate(other.domain)
    other.federate(served.domain)
    async with (
        source_of(served) as ours,
        source_of(served) as theirs,
        source_of(other) as shop,
        serve(ours, exact(CLIENT), id=WEB) as port,
    ):
        async with plain_client(theirs, exact(WEB), id=CLIENT) as client:
            assert await client.get(port) == CLIENT
        async with plain_client(theirs, exact(WEB), id=WEB) as client:
            with pytest.raises(Refused, match="alert from peer"):
                await client.get(port)
        served.federate()
        while "other.test" in ours.bundles:
            await ours.changed(ours.version, 5)
        async with plain_client(shop, exact(WEB)) as client:
            with pytest.raises(Refused, match="alert from peer"):
                await client.get(port)
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=nobody, server_hostname=""
            )
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert ours.connections.refused == {
            "unexpected peer": 1,
            "foreign trust domain": 1,
            "no certificate": 1,
        }, ours.connections.refused
        async with plain_client(theirs, exact(WEB), id=CLIENT) as client:
            assert await client.get(port) == CLIENT


async def client_refuses(
    served: WorkloadApi, other: WorkloadApi, clients: Clients, failure: type[Exception]
) -> None:
    """A server that is somebody else does not see the request."""
    served.issue("/client")
    other.federate(served.domain)
    seen: list[str] = []

    async def handler(connection: Connection) -> None:
        seen.append(connection.peer_id)
        await answer(connection)

    async with source_of(served) as ours, source_of(other) as shop:
        for source, id, reason in (
            (shop, None, "foreign trust domain"),
            (ours, CLIENT, "unexpected peer"),
            (ours, WEB, ""),
        ):
            listener = await listen("127.0.0.1:0", source, handler, authorize=anyone, id=id)
            async with listener, clients(ours, exact(WEB), id=CLIENT) as client:
                if not reason:
                    assert await client.get(listener.port) == CLIENT
                    continue
                with pytest.raises(failure, match=reason):
                    await client.get(listener.port)
        assert seen == [CLIENT]


# ------------------------------------------------------------------------ HTTP without a framework
async def answer(connection: Connection) -> None:
    """A server of HTTP/1.1: one request after the other."""
    server = h11.Connection(h11.SERVER)
    while True:
        event = await _next(server, connection)
        if isinstance(event, h11.ConnectionClosed):
            return
        if isinstance(event, h11.Request):
            held = event.target == b"/hold"
        if isinstance(event, h11.EndOfMessage):
            await _say(server, connection, held)


async def _say(server: h11.Connection, connection: Connection, held: bool) -> None:
    body = connection.peer_id.encode()
    length = [] if held else [("content-length", str(len(body)))]
    for said in (h11.Response(status_code=200, headers=length), h11.Data(data=body)):
        connection.writer.write(server.send(said) or b"")
    if held:
        await asyncio.Event().wait()
    connection.writer.write(server.send(h11.EndOfMessage()) or b"")
    server.start_next_cycle()


async def _next(http: h11.Connection, connection: Connection) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await connection.reader.read(64 * 1024))
    return event


class PlainClient:
    """HTTP/1.1 over `dial`; keeps one connection."""

    def __init__(self, source: X509Source, authorize: Authorizer, id: str | None) -> None:
        self._source = source
        self._authorize = authorize
        self._id = id
        self._kept: Connection | None = None
        self._all: list[Connection] = []

    async def get(self, port: int) -> str:
        connection = self._kept
        if connection is None or connection.retiring or connection.reader.at_eof():
            connection = self._kept = await self._new(port)
        http = await self._ask(connection, "/")
        body = b""
        while not isinstance(event := await _next(http, connection), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                assert event.status_code == 200, event.status_code
            if isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed before the answer")
            if isinstance(event, h11.Data):
                body += event.data
        return body.decode()

    async def hold(self, port: int) -> Awaitable[Any]:
        connection = await self._new(port)
        http = await self._ask(connection, "/hold")
        while not isinstance(await _next(http, connection), h11.Data):
            pass

        async def end() -> None:
            with contextlib.suppress(*PLAIN_FAILURES):
                while await connection.reader.read(64 * 1024):
                    pass

        return end()

    async def _ask(self, connection: Connection, path: str) -> h11.Connection:
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=path, headers=[("host", "web")])
        connection.writer.write(
            (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b"")
        )
        return http

    async def _new(self, port: int) -> Connection:
        connection = await dial(
            f"127.0.0.1:{port}", self._source, authorize=self._authorize, id=self._id
        )
        self._all.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._all:
            connection.end("test is over")


@asynccontextmanager
async def plain_client(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[PlainClient]:
    """A client without a framework."""
    client = PlainClient(source, authorize, id)
    try:
        yield client
    finally:
        client.close()


@asynccontextmanager
async def plain_server(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[int]:
    """A server without a framework."""
    listener = await listen("127.0.0.1:0", source, answer, authorize=authorize, id=id)
    async with listener:
        yield listener.port


async def within(what: Awaitable[Any], workers: list[asyncio.Task[None]]) -> Any:
    """Wait at most 5 s, and no longer than all workers live: a failed one says why."""
    waiting = asyncio.ensure_future(what)  # noqa: TID251
    async with asyncio.timeout(5):
        await asyncio.wait([waiting, *workers], return_when=asyncio.FIRST_COMPLETED)
    for worker in workers:
        if worker.done():
            waiting.cancel()
            worker.result()
    return await waiting


async def until(true: Callable[[], bool]) -> None:
    """Wait at most 5 s; for what tells nobody."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
