"""redis-py, with asyncio and with threads, before a real Redis with our front."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.exceptions

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import servers, stories, strangers
from tests.sdk.frameworks.stories import CLIENT, OTHER
from x0tta6bl4.sdk.frameworks import redis as adapter
from x0tta6bl4.sdk.frameworks.relay import in_thread
from x0tta6bl4.sdk.identity import X509Source, anyone, blocking, exact
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

PASSWORD = "known to the front alone"
Serve = Callable[..., AbstractAsyncContextManager[int]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Redis whose users are named like SPIFFE IDs."""
    with servers.redis_server() as path:
        admin: Any
        with redis.Redis(unix_socket_path=path) as admin:
            for id in (WEB, CLIENT, OTHER):
                admin.acl_setuser(
                    id, enabled=True, passwords=["+" + PASSWORD], keys=["*"], commands=["+@all"]
                )
            admin.acl_setuser("default", enabled=False)
        yield path


@pytest.fixture
def serve(server: str) -> Serve:
    @asynccontextmanager
    async def serve(
        source: X509Source, authorize: Authorizer, id: str | None = None
    ) -> AsyncIterator[int]:
        async with adapter.front(
            "127.0.0.1:0", source, authorize=authorize, server=server, password=PASSWORD, id=id
        ) as front:
            yield front.port

    return serve


class Client:
    def __init__(
        self, stack: AsyncExitStack, source: X509Source, authorize: Authorizer, id: str | None
    ) -> None:
        self._stack = stack
        self._more: Any = {"source": source, "authorize": authorize, "id": id}
        self._client: Any = None

    async def client(self, port: int) -> Any:
        if self._client is None:
            pool = await self._stack.enter_async_context(
                adapter.pool(f"127.0.0.1:{port}", decode_responses=True, **self._more)
            )
            self._client = redis.asyncio.Redis(connection_pool=pool)
        return self._client

    async def get(self, port: int) -> str:
        answer: str = await (await self.client(port)).acl_whoami()
        return answer

    async def hold(self, port: int) -> Awaitable[Any]:
        client = await self.client(port)
        await client.ping()

        async def end() -> None:
            with contextlib.suppress(redis.RedisError):
                await client.blpop("nothing", 0)

        return end()


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None
) -> AsyncIterator[Client]:
    async with AsyncExitStack() as stack:
        yield Client(stack, source, authorize, id)


def test_no_command_fails_while_svids_and_the_ca_rotate(served: WorkloadApi, serve: Serve) -> None:
    asyncio.run(stories.rotations_under_load(served, serve, clients))


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
        strangers.server_sends_strangers_away(served, other, serve, clients, redis.ConnectionError)
    )


def test_a_client_refuses_servers(served: WorkloadApi, other: WorkloadApi, serve: Serve) -> None:
    asyncio.run(
        strangers.client_refuses_servers(served, other, serve, clients, redis.ConnectionError)
    )


def test_connections_of_a_pool_move_to_the_newest_svid(served: WorkloadApi, serve: Serve) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(served) as theirs:  # noqa: SIM117
            async with serve(ours, anyone) as port:
                address = f"127.0.0.1:{port}"
                async with adapter.pool(address, theirs, authorize=exact(WEB)) as pool:
                    client = redis.asyncio.Redis(connection_pool=pool)
                    chains = set()
                    for _ in range(5):
                        await client.ping()  # The last one of an older connection.
                        await client.ping()
                        (live,) = ours.connections
                        assert live.peer_chain == served.svids[0].chain
                        chains.add(live.peer_chain)
                        version = theirs.version
                        served.rotate()
                        await theirs.changed(version, 5)
                    assert len(chains) == 5
                assert len(theirs.connections) == 0

    asyncio.run(story())


def test_a_peer_is_the_user_of_its_id_and_nobody_else(served: WorkloadApi, serve: Serve) -> None:
    served.issue("/unknown")

    async def story() -> None:
        async with source_of(served) as source, serve(source, anyone, id=WEB) as port:
            address = f"127.0.0.1:{port}"
            async with adapter.pool(address, source, authorize=anyone) as pool:
                assert await redis.asyncio.Redis(connection_pool=pool).acl_whoami() == WEB
                client: Any = redis.asyncio.Redis(connection_pool=pool)
                assert await client.execute_command("RESET")
                with pytest.raises(redis.AuthenticationError):
                    await client.acl_whoami()  # Nobody, until it is a connection of its own again.
            more = {"id": "spiffe://example.org/unknown"}
            async with adapter.pool(address, source, authorize=anyone, **more) as pool:
                with pytest.raises(redis.RedisError, match="no user spiffe://example.org/unknown"):
                    await redis.asyncio.Redis(connection_pool=pool).acl_whoami()

    asyncio.run(story())


def test_a_task_that_is_cancelled_ends(served: WorkloadApi, serve: Serve) -> None:
    """Also in the turn of the loop in which a command was written."""

    async def story() -> None:
        async with source_of(served) as source, serve(source, anyone) as port:
            address = f"127.0.0.1:{port}"

            async def work(pool: Any) -> None:
                while True:
                    await redis.asyncio.Redis(connection_pool=pool).ping()

            async with adapter.pool(address, source, authorize=anyone) as pool:
                for turns in range(80):
                    task = asyncio.create_task(work(pool))
                    for _ in range(turns % 40):
                        await asyncio.sleep(0)
                    task.cancel()
                    done, _ = await asyncio.wait([task], timeout=5)
                    assert done

    asyncio.run(story())


def test_the_same_with_threads(served: WorkloadApi, server: str) -> None:
    with blocking.X509Source() as source:
        source.wait(5)
        front = adapter.front(
            "127.0.0.1:0", source.real, authorize=anyone, server=server, password=PASSWORD
        )
        with in_thread(source, front):
            address = f"127.0.0.1:{front.port}"
            with (
                adapter.blocking_pool(address, source, authorize=exact(CLIENT)) as pool,
                pytest.raises(redis.exceptions.NoPermissionError, match="unexpected peer"),
            ):
                redis.Redis(connection_pool=pool).ping()
            with adapter.blocking_pool(address, source, authorize=exact(WEB)) as pool:
                client = redis.Redis(connection_pool=pool)
                chains = set()
                for _ in range(6):
                    for _ in range(20):
                        assert client.acl_whoami() == WEB
                    chains |= {live.peer_chain for live in source.connections}
                    version = source.version
                    served.rotate()
                    source.changed(version, 5)
                assert len(chains) == 6
                assert client.set("big", b"x" * 3_000_000)
                assert len(client.get("big") or b"") == 3_000_000
                ended: list[BaseException] = []

                def wait() -> None:
                    try:
                        client.blpop(["nothing"], 0)
                    except redis.ConnectionError as error:
                        ended.append(error)

                thread = threading.Thread(target=wait)
                thread.start()
                started = time.monotonic()
                served.withdraw()
                thread.join(5)
                assert ended
                assert time.monotonic() - started < 1
