"""psycopg 3 over mutual TLS with SVIDs, with asyncio and with threads.

    async with route("db:5433", source, authorize=exact(DB)) as to:
        async with await AsyncConnection.connect(**to, user="web", dbname="shop") as connection: ...

    async with pool("db:5433", source, authorize=exact(DB), kwargs={"user": "web"}) as made: ...

libpq brings its own TLS, which knows host names and no judge, and keys in files.  So it speaks to a
socket of this process, and `relay` the rest: TLS from the first byte, as PostgreSQL 17 calls
`sslnegotiation=direct`, to a server or to `postgres.front`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from x0tta6bl4.sdk.frameworks.postgres import ALPN, error, read_packet
from x0tta6bl4.sdk.frameworks.relay import Outbound, in_thread, take_options
from x0tta6bl4.sdk.identity import blocking
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.wire.errors import Refused, Unavailable

if TYPE_CHECKING:
    import psycopg_pool

_PORT: Final = 5432


def _relay(
    address: str,
    source: X509Source,
    authorize: Authorizer,
    options: dict[str, Any],
    on_move: Callable[[], None] = lambda: None,
) -> Outbound:
    return Outbound(
        address,
        source,
        authorize=authorize,
        alpn=ALPN,
        name=f".s.PGSQL.{_PORT}",
        refuse=_refuse,
        on_move=on_move,
        **options,
    )


def _where(relay: Outbound) -> dict[str, Any]:
    """Parameters of libpq; what would lead elsewhere (from the environment) is put out."""
    return {"host": relay.folder, "port": _PORT, "hostaddr": "", "sslmode": "disable"}


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, why: Refused | Unavailable
) -> None:
    await read_packet(reader)
    writer.write(error(why.what, "08001"))


@asynccontextmanager
async def route(
    address: str, source: X509Source, *, authorize: Authorizer, **options: Any
) -> AsyncIterator[dict[str, Any]]:
    """Parameters for `psycopg.AsyncConnection.connect`, as long as the context lasts.

    Args:
        address: `host:port` or `unix:/path` of the server or its front.
        source: our identity.
        authorize: who may answer; an `OperationalError` says why somebody else was refused.
        options: require_pq, id, hint of `dial`.
    """
    async with _relay(address, source, authorize, options) as relay:
        yield _where(relay)


@contextmanager
def blocking_route(
    address: str, source: blocking.X509Source, *, authorize: Authorizer, **options: Any
) -> Iterator[dict[str, Any]]:
    """The same for `psycopg.connect`."""
    with in_thread(source, _relay(address, source.real, authorize, options)) as relay:
        yield _where(relay)


@asynccontextmanager
async def pool(
    address: str, source: X509Source, *, authorize: Authorizer, **options: Any
) -> AsyncIterator[psycopg_pool.AsyncConnectionPool]:
    """A pool whose connections move to newer SVIDs; see `route`.

    Args:
        address: see `route`.
        source: our identity.
        authorize: see `route`.
        options: those of `route`; the others are of `psycopg_pool.AsyncConnectionPool`, with
            `kwargs` for the connections.
    """
    import psycopg_pool

    due = asyncio.Event()

    async def move() -> None:
        while True:
            await due.wait()
            due.clear()
            await made.drain()

    own = take_options(options)
    async with _relay(address, source, authorize, own, due.set) as relay:
        kwargs = {**options.pop("kwargs", {}), **_where(relay)}
        check = psycopg_pool.AsyncConnectionPool.check_connection
        made = psycopg_pool.AsyncConnectionPool(
            kwargs=kwargs, open=False, **{"check": check, **options}
        )
        async with made:
            moving = asyncio.create_task(move())
            try:
                yield made
            finally:
                moving.cancel()
                await asyncio.wait([moving])


@contextmanager
def blocking_pool(
    address: str, source: blocking.X509Source, *, authorize: Authorizer, **options: Any
) -> Iterator[psycopg_pool.ConnectionPool]:
    """The same with threads: a `psycopg_pool.ConnectionPool`."""
    import psycopg_pool

    def move() -> None:
        made.drain()  # Gives its work to the pool's own threads.

    own = take_options(options)
    with in_thread(source, _relay(address, source.real, authorize, own, move)) as relay:
        kwargs = {**options.pop("kwargs", {}), **_where(relay)}
        check = psycopg_pool.ConnectionPool.check_connection
        made = psycopg_pool.ConnectionPool(kwargs=kwargs, open=False, **{"check": check, **options})
        with made:
            yield made
