"""psycopg 3, with asyncio and with threads, before a real PostgreSQL with our front."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import databases, stories, strangers
from tests.sdk.frameworks.stories import CLIENT, Serve
from x0tta6bl4.sdk.frameworks import postgres
from x0tta6bl4.sdk.frameworks import psycopg as adapter
from x0tta6bl4.sdk.frameworks.relay import in_thread
from x0tta6bl4.sdk.identity import X509Source, anyone, blocking, dial, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with databases.server() as path:
        yield path


@pytest.fixture
def serve(server: str) -> Serve:
    return databases.serving(server)


def login(source: X509Source, id: str | None) -> dict[str, Any]:
    user = databases.user_of(id or source.current().id)
    return {"user": user, "dbname": "postgres", "autocommit": True}


async def who(connection: psycopg.AsyncConnection[Any]) -> str:
    answer = await connection.execute("SELECT 'spiffe://example.org/' || current_user")
    (row,) = await answer.fetchall()
    return str(row[0])


class Client:
    """A connection for each question."""

    def __init__(
        self, stack: AsyncExitStack, source: X509Source, authorize: Authorizer, id: str | None
    ) -> None:
        self._stack = stack
        self._more: Any = {"source": source, "authorize": authorize, "id": id}
        self._login = login(source, id)

    async def _connect(self, port: int) -> psycopg.AsyncConnection[Any]:
        where = await self._stack.enter_async_context(
            adapter.route(f"127.0.0.1:{port}", **self._more)
        )
        return await psycopg.AsyncConnection.connect(**where, **self._login)

    async def get(self, port: int) -> str:
        async with await self._connect(port) as connection:
            return await who(connection)

    async def hold(self, port: int) -> Awaitable[Any]:
        connection = await self._connect(port)
        self._stack.push_async_callback(connection.close)

        async def end() -> None:
            with contextlib.suppress(psycopg.OperationalError):
                await connection.execute("SELECT pg_sleep(60)")

        return end()


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Client(stack, source, authorize, id)


class Pooled(Client):
    """One connection, kept in a pool."""

    _pool: Any = None

    async def get(self, port: int) -> str:
        if self._pool is None:
            self._pool = await self._stack.enter_async_context(
                adapter.pool(
                    f"127.0.0.1:{port}", kwargs=self._login, min_size=1, max_size=1, **self._more
                )
            )
        async with self._pool.connection(timeout=5) as connection:
            return await who(connection)


@asynccontextmanager
async def pooled(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Pooled(stack, source, authorize, id)


def test_no_query_fails_while_svids_and_the_ca_rotate(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, pooled))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(
    served: WorkloadApi, serve: Serve, change: str, reason: str
) -> None:
    asyncio.run(stories.ends(served, serve, clients, change, reason))


def test_connections_end_when_a_certificate_expires(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.expires(served, serve, clients))


def test_a_server_sends_strangers_away(
    served: WorkloadApi, other: WorkloadApi, serve: Serve
) -> None:
    asyncio.run(
        strangers.server_sends_strangers_away(
            served, other, serve, clients, psycopg.OperationalError
        )
    )


def test_a_client_refuses_servers(served: WorkloadApi, other: WorkloadApi, serve: Serve) -> None:
    asyncio.run(
        strangers.client_refuses_servers(served, other, serve, clients, psycopg.OperationalError)
    )


def test_connections_of_a_pool_move_to_the_newest_svid(served: WorkloadApi, serve: Serve) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(served) as theirs:
            async with serve(ours, anyone) as port, pooled(theirs, exact(WEB)) as client:
                for _ in range(5):
                    assert await client.get(port) == WEB
                    newest = served.svids[0].chain
                    await stories.until(
                        lambda newest=newest: (
                            {newest}  # type: ignore[misc]
                            == {live.peer_chain for live in ours.connections}
                        )
                    )
                    version = theirs.version
                    served.rotate()
                    await theirs.changed(version, 5)
            assert len(theirs.connections) == 0

    asyncio.run(story())


def test_a_peer_is_its_user_and_nobody_else(served: WorkloadApi, serve: Serve) -> None:
    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone) as port,
            adapter.route(f"127.0.0.1:{port}", source, authorize=anyone) as where,
        ):
            for user in ("admin", "client", "web\\", ""):
                with pytest.raises(psycopg.OperationalError) as error:
                    await psycopg.AsyncConnection.connect(
                        **where, user=user or "web ", dbname="postgres"
                    )
                assert "spiffe://example.org/web may not be user" in str(error.value)
            made = await psycopg.AsyncConnection.connect(**where, user="web", dbname="postgres")
            async with made as connection:
                assert await who(connection) == WEB

    asyncio.run(story())


def test_the_environment_leads_nowhere_else(
    served: WorkloadApi, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another address from outside would be a connection without TLS."""
    for name, value in {
        "PGHOSTADDR": "127.0.0.1",
        "PGHOST": "127.0.0.1",
        "PGPORT": "1",
        "PGSSLMODE": "require",
        "PGUSER": "admin",
    }.items():
        monkeypatch.setenv(name, value)

    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone) as port,
            clients(source, exact(WEB)) as client,
        ):
            assert await client.get(port) == WEB

    asyncio.run(story())


def test_a_query_can_be_cancelled(served: WorkloadApi, serve: Serve) -> None:
    """By a connection of its own that says no user."""

    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone) as port,
            adapter.route(f"127.0.0.1:{port}", source, authorize=anyone) as where,
        ):
            made = await psycopg.AsyncConnection.connect(**where, **login(source, None))
            async with made as connection:
                task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
                while not task.done():
                    await connection.cancel_safe(timeout=5)
                    await asyncio.wait([task], timeout=0.05)
                with pytest.raises(psycopg.errors.QueryCanceled):
                    await task

    asyncio.run(story())


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"\0\0\0\x08\x04\xd2\x16\x2f" * 2, b"NN"),  # SSLRequest.
        (b"\0\0\0\x08\x04\xd2\x16\x30" * 5, b"NNNN"),  # GSSENCRequest, too often.
        (b"\0\0\0\x07\0\x03\0\0", b""),
        (b"\xff\xff\xff\xff\0\x03\0\0", b""),
        (b"\0\0\0\x08\0\x02\0\0", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_what_is_no_startup_is_sent_away(
    served: WorkloadApi, serve: Serve, said: bytes, answer: bytes
) -> None:
    async def story() -> None:
        async with (
            source_of(served) as source,
            serve(source, anyone) as port,
            await dial(f"127.0.0.1:{port}", source, authorize=anyone) as made,
        ):
            made.writer.write(said)
            assert await made.reader.readexactly(len(answer)) == answer
            if len(answer) != 2:
                assert await asyncio.wait_for(made.reader.read(), 5) == b""

    asyncio.run(story())


def test_the_same_with_threads(served: WorkloadApi, server: str) -> None:
    with blocking.X509Source() as source:
        source.wait(5)
        front = postgres.front(
            "127.0.0.1:0", source.real, authorize=anyone, server=server, users=databases.users
        )
        options: dict[str, Any] = {"user": "web", "dbname": "postgres", "autocommit": True}
        with in_thread(source, front):
            address = f"127.0.0.1:{front.port}"
            with (
                adapter.blocking_route(address, source, authorize=exact(CLIENT)) as where,
                pytest.raises(psycopg.OperationalError, match="unexpected peer"),
            ):
                psycopg.connect(**where, **options)
            chains = set()
            with adapter.blocking_pool(
                address, source, authorize=exact(WEB), kwargs=options, min_size=2, max_size=2
            ) as pool:
                for _ in range(6):
                    for _ in range(20):
                        with pool.connection(timeout=5) as connection:
                            assert connection.execute("SELECT current_user").fetchone() == ("web",)
                    chains |= {live.peer_chain for live in source.connections}
                    version = source.version
                    served.rotate()
                    source.changed(version, 5)
            assert len(chains) >= 6
            with adapter.blocking_route(address, source, authorize=exact(WEB)) as where:
                with psycopg.connect(**where, **options) as connection:
                    big = connection.execute("SELECT repeat('x', 3000000)").fetchone()
                    assert big is not None
                    assert len(big[0]) == 3_000_000
                held = psycopg.connect(**where, **options)
                ended: list[BaseException] = []

                def wait() -> None:
                    try:
                        held.execute("SELECT pg_sleep(60)")
                    except psycopg.OperationalError as error:
                        ended.append(error)

                thread = threading.Thread(target=wait)
                thread.start()
                started = time.monotonic()
                served.withdraw()
                thread.join(5)
                assert ended
                assert time.monotonic() - started < 1
                held.close()
