"""Mutual TLS for programs that can't speak ours: plain on a socket of this process, TLS outside.

    library --Unix socket, 0700, this process only--> Outbound --TLS, judged--> a service
    a client --TLS, judged--> Inbound --Unix socket--> server

Libraries in C bring their own TLS, which checks names of hosts, accepts what no SPIFFE verifier
may accept, and keeps the certificates it was started with.  Here they speak plainly to a socket in
a directory that only this user can enter, and only this process is answered; its connections go
out as those of `dial` do.  The other way round, a server listens on a Unix socket only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.sdk.frameworks.moving import CLIENT_SHARE, SERVER_SHARE, Moving
from x0tta6bl4.sdk.identity import blocking
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import HANDSHAKE_S, Connection, Listener, dial, listen
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error

CONNECTIONS_MAX: Final = 1_024
"""Of one relay; further ones are closed at once."""
_CHUNK_BYTES: Final = 64 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Greeting = Callable[[Connection, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Refusal = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter, Refused | Unavailable], Awaitable[None]
]


class Between(Protocol):
    """Knows enough of a protocol to let its client move."""

    def feed(self, data: bytes) -> bytes:
        """What to pass on from the server instead of `data`."""
        ...

    def move(self) -> bytes:
        """What to send to the client now so that it opens another connection."""
        ...


async def splice(client: Streams, server: Streams, between: Between | None = None) -> None:
    """Pass bytes in both directions until either side ends.

    An end of one direction ends both: the protocols above carry their own lengths.

    Raises:
        OSError, Refused: a side was cut, or its identity ended.
    """

    async def up() -> None:
        while data := await client[0].read(_CHUNK_BYTES):
            server[1].write(data)
            await server[1].drain()

    async def down() -> None:
        while data := await server[0].read(_CHUNK_BYTES):
            client[1].write(data if between is None else between.feed(data))
            await client[1].drain()

    tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _say_nothing(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: Refused | Unavailable
) -> None:
    """Close without a word."""


class Outbound:
    """A Unix socket whose connections go out over mutual TLS; use it as a context.

    Args:
        address: of the service, as for `dial`.
        source: our identity.
        authorize: who may answer.
        alpn: application protocols that are offered.
        name: of the socket within its directory.
        refuse: tells the library, in its protocol, why there is no connection.
        between: makes what knows how to move a connection.
        on_move: called instead where `between` is not given.
        options: of `dial`: require_pq, id, hint.
    """

    def __init__(
        self,
        address: str,
        source: X509Source,
        *,
        authorize: Authorizer,
        alpn: tuple[str, ...] = (),
        name: str = "s",
        refuse: Refusal = _say_nothing,
        between: Callable[[], Between] | None = None,
        on_move: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        self._address = address
        self._source = source
        self._refuse = refuse
        self._between = between
        self._on_move = on_move
        self._options = {"authorize": authorize, "alpn": alpn, **options}
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._server: asyncio.Server | None = None
        self._moving: Moving | None = None
        self.folder = ""
        """Where the socket is; nobody else can enter."""
        self.refused: dict[str, int] = {}
        """Reason -> connections that did not come about; bounded by the number of reasons."""

    @property
    def path(self) -> str:
        """The socket."""
        return f"{self.folder}/{self._name}"

    async def start(self) -> Self:
        """Listen.

        Raises:
            OSError: no place for the socket.
        """
        self.folder = tempfile.mkdtemp(prefix="x0-")
        try:
            self._server = await asyncio.start_unix_server(self._accept, self.path)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._moving = Moving(self._source, CLIENT_SHARE)
        return self

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        if not _ours(writer):
            self._count("another process")
            writer.transport.abort()
            return
        if len(self._tasks) >= CONNECTIONS_MAX:
            self._count("too many connections")
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = await dial(self._address, self._source, **self._options)
        except (Refused, Unavailable) as error:
            self._count(error.what)
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(HANDSHAKE_S):
                    await self._refuse(reader, writer, error)
            await _close(writer)
            return
        except BaseException:
            writer.transport.abort()
            raise
        between = self._between() if self._between is not None else None

        def move() -> None:
            if between is None:
                self._on_move()
            else:
                writer.write(between.move())

        assert self._moving is not None, "not started"
        forget = self._moving.add(connection.own, connection.not_after_unix_s, move)
        try:
            async with connection:
                await splice((reader, writer), (connection.reader, connection.writer), between)
        except (OSError, EOFError, Refused):
            writer.transport.abort()  # Cut, or ended: its reader must not take it for the end.
        finally:
            forget()
            await _close(writer)

    def _count(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    async def close(self) -> None:
        """End all connections; the socket is gone then."""
        self._closed = True
        if self._server is not None:
            await stop_listening(self._server)
        if self._moving is not None:
            self._moving.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()


class Peer:
    """Whose a connection to the server is."""

    __slots__ = ("connection", "judged")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.judged = -1
        """Version of the source by which somebody judged it again."""


async def _nothing(
    connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass everything on from the first byte."""


class Inbound:
    """A TLS listener in front of a server that listens on a Unix socket; use it as a context.

    Each connection to the server is made from a name of its own, which tells whose it is.

    Args:
        address: to listen on, as for `listen`.
        source: our identity.
        authorize: who may come.
        server: path of the server's socket.
        alpn: application protocols.
        greeting: talks with the client (through the connection) and the server before the rest is
            passed on; raises Refused to send the client away.
        between: makes what knows how to move a connection.
        options: of `listen`: require_pq, id, hint, backlog.
    """

    def __init__(
        self,
        address: str | socket.socket,
        source: X509Source,
        *,
        authorize: Authorizer,
        server: str,
        alpn: tuple[str, ...] = (),
        greeting: Greeting = _nothing,
        between: Callable[[], Between] | None = None,
        **options: Any,
    ) -> None:
        self._address = address
        self._source = source
        self._server = server
        self._greeting = greeting
        self._between = between
        self._options = {"authorize": authorize, "alpn": alpn, **options}
        self._listener: Listener | None = None
        self._moving: Moving | None = None
        self.peers: dict[str, Peer] = {}
        """Name that a connection to the server is made from -> whose it is."""
        self.sent_away: Counter[str] = Counter()
        """Id of an error -> peers that were sent away after their handshake."""

    @property
    def port(self) -> int:
        """TCP port."""
        assert self._listener is not None, "not started"
        return self._listener.port

    @property
    def refused(self) -> dict[str, int]:
        """Reason -> handshakes that were refused."""
        assert self._listener is not None, "not started"
        return self._listener.refused

    async def start(self) -> Self:
        """Listen.

        Raises:
            BadInput: not an address.
            OSError: it can't be bound.
        """
        self._listener = await listen(self._address, self._source, self._serve, **self._options)
        self._moving = Moving(self._source, SERVER_SHARE, rotation=False)
        return self

    async def _serve(self, connection: Connection) -> None:
        name = f"x0-{secrets.token_hex(16)}"
        async with asyncio.timeout(HANDSHAKE_S):
            reader, writer = await _connect(name, self._server)
        between = self._between() if self._between is not None else None
        self.peers[name] = Peer(connection)

        def move() -> None:
            if between is not None:
                connection.writer.write(between.move())

        assert self._moving is not None, "not started"
        forget = self._moving.add(connection.own, connection.not_after_unix_s, move)
        try:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await self._greeting(connection, reader, writer)
            except Refused as error:
                self.sent_away[error.id] += 1
                return
            await splice((connection.reader, connection.writer), (reader, writer), between)
        finally:
            forget()
            del self.peers[name]
            writer.transport.abort()

    async def close(self) -> None:
        """Stop listening, end the connections."""
        if self._listener is not None:
            await self._listener.close()
        if self._moving is not None:
            self._moving.close()

    async def __aenter__(self) -> Self:
        """Start."""
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()


R = TypeVar("R", Outbound, Inbound)


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of `dial` and `listen` out of the options of a framework."""
    names = ("require_pq", "id", "hint")
    return {name: options.pop(name) for name in names if name in options}


@contextmanager
def in_thread(source: blocking.X509Source, relay: R) -> Iterator[R]:
    """Run a relay, made over `source.real`, in the thread of its source."""
    source._loop.do(relay.start())
    try:
        yield relay
    finally:
        with contextlib.suppress(X0Error):  # The source was closed first: so was all of it.
            source._loop.do(relay.close())


async def _connect(name: str, path: str) -> Streams:
    """Connect to a Unix socket from a name that nobody else can have meanwhile."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.bind(f"\0{name}")
        await asyncio.get_running_loop().sock_connect(made, path)
        return await asyncio.open_unix_connection(sock=made)
    except BaseException:
        made.close()
        raise


def _ours(writer: asyncio.StreamWriter) -> bool:
    """Whether this process is at the other end."""
    sock: socket.socket = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return bool(pid == os.getpid() and uid == os.geteuid())


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            await writer.wait_closed()
    except (OSError, Refused, TimeoutError):
        pass
    finally:
        writer.transport.abort()
