"""asyncpg before a real PostgreSQL with our front."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
import uvloop

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import databases, stories, strangers
from tests.sdk.frameworks.stories import Serve
from x0tta6bl4.sdk.frameworks import asyncpg as adapter
from x0tta6bl4.sdk.identity import X509Source, anyone, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with databases.server() as path:
        yield path


@pytest.fixture
def serve(server: str) -> Serve:
    return databases.serving(server)


async def who(connection: Any) -> str:
    return str(await connection.fetchval("SELECT 'spiffe://example.org/' || current_user"))


class Client:
    """A connection for each question."""

    def __init__(
        self, stack: AsyncExitStack, source: X509Source, authorize: Authorizer, id: str | None
    ) -> None:
        self._stack = stack
        user = databases.user_of(id or source.current().id)
        self._more: Any = {"source": source, "authorize": authorize, "id": id}
        self._more |= {"user": user, "database": "postgres"}

    async def get(self, port: int) -> str:
        connection = await adapter.connect(f"127.0.0.1:{port}", **self._more)
        try:
            return await who(connection)
        finally:
            await connection.close()

    async def hold(self, port: int) -> Awaitable[Any]:
        connection = await adapter.connect(f"127.0.0.1:{port}", **self._more)
        self._stack.callback(connection.terminate)

        async def end() -> None:
            with contextlib.suppress(*FAILURES):
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
                adapter.pool(f"127.0.0.1:{port}", min_size=1, max_size=1, **self._more)
            )
        async with self._pool.acquire(timeout=5) as connection:
            return await who(connection)


@asynccontextmanager
async def pooled(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Pooled(stack, source, authorize, id)


def test_no_query_fails_while_svids_and_the_ca_rotate(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, pooled))


def test_no_query_fails_on_uvloop_either(served: WorkloadApi, serve: Serve) -> None:
    uvloop.run(stories.rotations_under_load(served, serve, pooled))


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
    asyncio.run(strangers.server_sends_strangers_away(served, other, serve, clients, FAILURES))


def test_a_client_refuses_servers(served: WorkloadApi, other: WorkloadApi, serve: Serve) -> None:
    asyncio.run(strangers.client_refuses_servers(served, other, serve, clients, OSError))


def test_connections_of_a_pool_move_to_the_newest_svid(served: WorkloadApi, serve: Serve) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(served) as theirs:  # noqa: SIM117
            async with serve(ours, anyone) as port, pooled(theirs, exact(WEB)) as client:
                for _ in range(5):
                    newest = served.svids[0].chain
                    async with asyncio.timeout(5):
                        while {newest} != {live.peer_chain for live in ours.connections}:
                            assert await client.get(port) == WEB
                    version = theirs.version
                    served.rotate()
                    await theirs.changed(version, 5)

    asyncio.run(story())


def test_a_peer_is_its_user_and_nobody_else(served: WorkloadApi, serve: Serve) -> None:
    async def story() -> None:
        async with source_of(served) as source, serve(source, anyone) as port:
            more: Any = {"source": source, "authorize": anyone, "database": "postgres"}
            with pytest.raises(
                asyncpg.InvalidAuthorizationSpecificationError, match="may not be user 'admin'"
            ):
                await adapter.connect(f"127.0.0.1:{port}", user="admin", **more)
            connection = await adapter.connect(f"127.0.0.1:{port}", user="web", **more)
            assert await who(connection) == WEB
            await connection.close()

    asyncio.run(story())


def test_nothing_leads_to_a_connection_without_tls(
    served: WorkloadApi, serve: Serve, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": server.rpartition("/")[0],
        "PGSSLMODE": "disable",
        "PGSSLNEGOTIATION": "postgres",
        "PGUSER": "web",
        "PGDATABASE": "postgres",
    }.items():
        monkeypatch.setenv(name, value)

    async def story() -> None:
        async with source_of(served) as source, serve(source, anyone) as port:
            more: Any = {"source": source, "authorize": anyone}
            connection = await adapter.connect(f"127.0.0.1:{port}", **more)
            assert len(source.connections) == 2
            await connection.close()
            for path in (server.rpartition("/")[0], "@name"):
                with pytest.raises(BadInput):
                    await adapter.connect(f"{path}:5432", **more)

            async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                said.append(await reader.read(100))
                writer.write(b"N")
                said.append(await reader.read(100))
                writer.close()

            said: list[bytes] = []
            liar = await asyncio.start_server(plain, "127.0.0.1", 0)
            where = f"127.0.0.1:{liar.sockets[0].getsockname()[1]}"
            for direct in (True, False):
                with pytest.raises(OSError):
                    await adapter.connect(where, direct_tls=direct, timeout=5, **more)
            assert not any(b"web" in one for one in said)
            liar.close()

    asyncio.run(story())
