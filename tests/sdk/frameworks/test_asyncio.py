"""Protocols and transports on both event loops; the plain pair of the other tests, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import stories
from x0tta6bl4.sdk.frameworks.asyncio_protocols import create_connection, create_server, peer_id
from x0tta6bl4.sdk.identity import X509Source, anyone, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class Service(asyncio.Protocol):
    """As `stories.answer`, of a protocol."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self.transport: Any = transport
        self.body = peer_id(transport).encode()
        self.waiting = b""

    def data_received(self, data: bytes) -> None:
        *requests, self.waiting = (self.waiting + data).split(b"\r\n\r\n")
        for request in requests:
            self.transport.write(b"HTTP/1.1 200 OK\r\n")
            if b" /hold " not in request:
                self.transport.write(b"content-length: %d\r\n" % len(self.body))
            self.transport.write(b"\r\n" + self.body)


class Caller(asyncio.Protocol):
    """One request; `first` is there when something has come, `lost` when the connection ends."""

    def __init__(self) -> None:
        self.got = b""
        self.first = asyncio.Event()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.got.endswith(b"/client") or self.got.endswith(b"/other"):
            self.first.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self.first.set()


class ProtocolClient:
    def __init__(self, **options: Any) -> None:
        self._options = options
        self.transports: list[asyncio.Transport] = []
        self._kept: tuple[asyncio.Transport, Caller] | None = None

    async def get(self, port: int) -> str:
        transport, caller = self._kept = self._kept or await self._new(port)
        caller.got = b""
        caller.first.clear()
        transport.write(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        await caller.first.wait()
        assert not caller.lost.is_set()
        return caller.got.partition(b"\r\n\r\n")[2].decode()

    async def hold(self, port: int) -> Awaitable[Any]:
        transport, caller = await self._new(port)
        transport.write(b"GET /hold HTTP/1.1\r\nhost: web\r\n\r\n")
        await caller.first.wait()
        return caller.lost.wait()

    async def _new(self, port: int) -> tuple[asyncio.Transport, Caller]:
        made = await create_connection(Caller, "127.0.0.1", port, **self._options)
        assert peer_id(made[0]) == WEB
        self.transports.append(made[0])
        return made


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None, **more: Any
) -> AsyncIterator[ProtocolClient]:
    client = ProtocolClient(source=source, authorize=authorize, id=id, **more)
    yield client
    for transport in client.transports:
        transport.abort()


@asynccontextmanager
async def serve(
    source: X509Source, authorize: Authorizer, id: str | None = None, **more: Any
) -> AsyncIterator[int]:
    more |= {"source": source, "authorize": authorize, "id": id}
    server = await create_server(Service, "127.0.0.1", 0, **more)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_load_over_rotations(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.rotations_under_load(served, serve, clients))


def test_load_over_rotations_of_listen_and_dial(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.rotations_under_load(served, stories.plain_server, stories.plain_client))


def test_a_revoked_peer_is_cut_off(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.ends(served, serve, clients, "revoke", "peer refused: revoked"))


def test_a_withdrawn_identity_is_used_no_more(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.ends(served, serve, clients, "redact", "own identity withdrawn"))


def test_a_connection_ends_with_its_certificate(served: WorkloadApi, run: Run) -> None:
    run(lambda: stories.expires(served, serve, clients))


def test_strangers_are_refused(served: WorkloadApi, other: WorkloadApi, run: Run) -> None:
    run(lambda: stories.server_refuses(served, other, serve))


def test_wrong_servers_are_refused(served: WorkloadApi, other: WorkloadApi, run: Run) -> None:
    run(lambda: stories.client_refuses(served, other, clients, Refused))


def test_a_unix_socket_and_application_protocols(
    served: WorkloadApi, run: Run, tmp_path: Path
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            options: dict[str, Any] = {"source": source, "authorize": exact(WEB), "alpn": ["x/1"]}
            path = str(tmp_path / "s")
            server = await create_server(Service, path=path, **options)
            async with server:
                transport, _ = await create_connection(Caller, path=path, **options)
                assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "x/1"
                assert peer_id(transport) == WEB
                transport.abort()

    run(story)


def test_who_is_late_gets_no_protocol(served: WorkloadApi, run: Run) -> None:
    """The identity goes while the handshake is on."""

    async def story() -> None:
        made: list[Service] = []

        def factory() -> Service:
            made.append(Service())
            return made[-1]

        async with source_of(served) as ours, source_of(served) as theirs:
            options: dict[str, Any] = {"authorize": anyone}
            server = await create_server(factory, "127.0.0.1", 0, source=ours, **options)
            async with server:
                where = ("127.0.0.1", server.sockets[0].getsockname()[1])
                transport, _ = await create_connection(Caller, *where, source=theirs, **options)
                await stories.until(lambda: len(made) == 1)
                transport.abort()
                ours.connections.withdraw(())  # And so it is when the next handshake ends.
                _, caller = await create_connection(Caller, *where, source=theirs, **options)
                await asyncio.wait_for(caller.lost.wait(), 5)
                assert ours.connections.refused == {"own identity withdrawn": 1}
                theirs.connections.withdraw(())
                with pytest.raises(Refused, match="own identity withdrawn"):
                    await create_connection(Caller, *where, source=theirs, **options)
                assert len(made) == 1

    run(story)
