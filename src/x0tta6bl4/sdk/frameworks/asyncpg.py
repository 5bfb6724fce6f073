"""asyncpg over mutual TLS with SVIDs.

    connection = await connect("db:5433", source, authorize=exact(DB), user="web")
    async with pool("db:5433", source, authorize=exact(DB), user="web") as made: ...

asyncpg takes our TLS as it takes an `ssl.SSLContext`; TLS begins with the first byte, as
PostgreSQL 17 calls `sslnegotiation=direct`, unless a server of its own wants to be asked before
(`direct_tls=False`).  What is not said here would come from the environment: only TLS does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from x0tta6bl4.sdk.frameworks.moving import CLIENT_SHARE, Moving
from x0tta6bl4.sdk.frameworks.postgres import ALPN
from x0tta6bl4.sdk.frameworks.relay import take_options
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import register, ssl_context
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadInput


async def connect(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    **options: Any,
) -> asyncpg.Connection:
    """A connection, which ends as those of `dial` do.

    Args:
        address: `host:port` of the server or its front.
        source: our identity.
        authorize: who may answer.
        options: require_pq, id, hint of `dial`; the others are of `asyncpg.connect`.
    Raises:
        BadInput: not such an address.
        SslRefused: the server, or we, were refused; the reason is in it.
        OSError, asyncpg.PostgresError: as of asyncpg.
    """
    context = take_options(options)
    host, port = split_address(address)
    if host.startswith(("/", "@")):
        raise BadInput("X0-SDK-075", "asyncpg speaks no TLS over a Unix socket", "give host:port")
    made = await asyncpg.connect(
        host=host,
        port=port,
        ssl=ssl_context(source, authorize=authorize, alpn=ALPN, **context),
        **{"direct_tls": True, **options},
    )
    try:
        register(made._transport, source, authorize=authorize)
    except BaseException:
        made.terminate()
        raise
    return made


@asynccontextmanager
async def pool(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    **options: Any,
) -> AsyncIterator[asyncpg.Pool]:
    """A pool whose connections move to newer SVIDs.

    Args:
        address: see `connect`.
        source: our identity.
        authorize: see `connect`.
        options: require_pq, id, hint of `dial`; the others are of `asyncpg.create_pool`.
    """
    context = take_options(options)
    due = asyncio.Event()
    moving = Moving(source, CLIENT_SHARE)

    async def open(*_: Any, **more: Any) -> asyncpg.Connection:
        connection = await connect(address, source, authorize=authorize, **context, **more)
        tls = connection._transport.get_extra_info("ssl_object")
        end = min(tls.own.not_after_unix_s, tls.peer_not_after_unix_s)
        connection.add_termination_listener(_forgetting(moving.add(tls.own, end, due.set)))
        return connection

    async def move() -> None:
        while True:
            await due.wait()
            due.clear()
            await made.expire_connections()

    made = asyncpg.create_pool(connect=open, **options)
    task = asyncio.create_task(move())
    try:
        async with made:
            yield made
    finally:
        moving.close()
        task.cancel()
        await asyncio.wait([task])


def _forgetting(forget: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _: forget()
