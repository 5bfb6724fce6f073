"""redis-py over mutual TLS with SVIDs, with asyncio and with threads, and what stands before Redis.

    async with pool("db:6380", source, authorize=exact(DB)) as made: Redis(connection_pool=made)
    async with front("0.0.0.0:6380", source, authorize=..., server="/run/redis/redis.sock"): ...

With asyncio a connection of the pool is one of `dial`; blocking sockets go through a relay of this
process.  Connections that have to move are closed when they come back to the pool, idle ones at
their next use or at once.

Redis itself checks a chain and asks nobody whose it is, lets connections outlive their
certificates, and needs keys in files.  So it listens on a Unix socket only, and the front keeps
what `listen` keeps.  It logs each peer in as the ACL user that is named like its SPIFFE ID.

Source: Redis serialization protocol; Redis ACL, `AUTH`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import redis
import redis.asyncio

from x0tta6bl4.sdk.frameworks.moving import CLIENT_SHARE, Moving
from x0tta6bl4.sdk.frameworks.relay import Inbound, Outbound, in_thread, take_options
from x0tta6bl4.sdk.identity import blocking
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import Connection, dial
from x0tta6bl4.wire.errors import Refused, Unavailable


@asynccontextmanager
async def pool(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    **options: Any,
) -> AsyncIterator[redis.asyncio.ConnectionPool]:
    """Connections for `redis.asyncio.Redis(connection_pool=...)`; closed at the end.

    Args:
        address: `host:port` or `unix:/path`.
        source: our identity.
        authorize: who may answer; a `ConnectionError` says why somebody else was refused.
        options: require_pq, id, hint of `dial`; the others are of the pool, e.g. `db`.
    """
    route = {"authorize": authorize, **take_options(options)}
    moving = Moving(source, CLIENT_SHARE)
    made: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool(
        connection_class=_Connection,
        open=lambda: dial(address, source, **route),
        moving=moving,
        address=address,
        **options,
    )
    try:
        yield made
    finally:
        moving.close()
        await made.aclose()


class _Connection(redis.asyncio.Connection):
    """A connection of redis-py whose streams are those of `dial`."""

    def __init__(self, *, open: Any, moving: Moving, address: str, **options: Any) -> None:
        super().__init__(**options)
        self._open = open
        self._moving = moving
        self._address = address
        self._tls: Connection | None = None
        self._forget: Any = None

    async def _connect(self) -> None:
        self._leave()
        tls = self._tls = await self._open()
        self._reader, self._writer = tls.reader, tls.writer
        self._forget = self._moving.add(tls.own, tls.not_after_unix_s, self.mark_for_reconnect)

    async def disconnect(self, *args: Any, **options: Any) -> None:
        """Close, and take it out of the registry."""
        try:
            await super().disconnect(*args, **options)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._tls is not None:
            self._forget()
            self._tls.end("closed")
            self._tls = None

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As redis-py's, whose kind of error is raised when the connection was ended."""
        try:
            return await super().read_response(*args, **options)
        except Refused as error:
            raise redis.ConnectionError(error.what) from error

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Likewise; and without `asyncio.wait_for`, which loses cancellations in Python 3.11."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command(
                    [command] if isinstance(command, bytes) else command
                )
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise redis.TimeoutError("Timeout writing to socket") from None
        except (OSError, Refused) as error:
            await self.disconnect(nowait=True)
            raise redis.ConnectionError(f"not written: {error}") from error
        except BaseException:  # Half a command may be written.
            await self.disconnect(nowait=True)
            raise

    def _host_error(self) -> str:
        return self._address


@contextmanager
def blocking_pool(
    address: str,
    source: blocking.X509Source,
    *,
    authorize: Authorizer,
    **options: Any,
) -> Iterator[redis.ConnectionPool]:
    """Connections for `redis.Redis(connection_pool=...)`; see `pool`.

    A server that is refused makes itself felt as a `NoPermissionError` with the reason.
    """
    route = take_options(options)

    def move() -> None:
        made.update_active_connections_for_reconnect()
        made.disconnect(inuse_connections=False)

    relay = Outbound(
        address, source.real, authorize=authorize, refuse=_refuse, on_move=move, **route
    )
    with in_thread(source, relay):
        made = redis.ConnectionPool(
            connection_class=redis.UnixDomainSocketConnection, path=relay.path, **options
        )
        try:
            yield made
        finally:
            made.close()


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: Refused | Unavailable
) -> None:
    """Answer the first command with the reason."""
    if isinstance(error, Refused):
        await reader.readline()
        writer.write(_error(error.what))


def _error(reason: str) -> bytes:
    text = reason.replace("\r", " ").replace("\n", " ")
    return f"-NOPERM {text}\r\n".encode()


def front(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    server: str,
    password: str = "",
    **more: Any,
) -> Inbound:
    """What stands before a Redis that listens on a Unix socket; use it as a context.

    Args:
        address: to listen on, as for `listen`.
        source: our identity.
        authorize: who may come.
        server: path of Redis' socket, for which this process needs the right to connect.
        password: of all ACL users, known to the front alone; each peer is logged in as the user
            that is named like its SPIFFE ID.  Empty: peers are whoever Redis takes them for.
        more: require_pq, id, hint, backlog of `listen`.
    """

    async def greet(
        connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        words = [b"AUTH", connection.peer_id.encode(), password.encode()]
        writer.write(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        answer = await reader.readline()
        if answer != b"+OK\r\n":
            connection.writer.write(_error(f"no user {connection.peer_id}"))
            raise Refused("X0-SDK-072", "the server has no user for this peer")

    if password:
        more["greeting"] = greet
    return Inbound(address, source, authorize=authorize, server=server, **more)
