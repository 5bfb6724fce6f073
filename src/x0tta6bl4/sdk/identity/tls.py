"""Mutual TLS with SVIDs: `listen`, `dial`, `verify_peer`.

Every handshake takes the newest SVID and bundles, so a listener goes on over rotations.  Both ends
are judged inside the handshake.  TLS 1.3 only, hybrid key exchange first.

In TLS 1.3 a client is done before the server has judged it: that `dial` returned says who the
server is, not that the server takes us.  The first byte from the server does; `first_byte=True`
waits for it, where the server speaks first.

An end without close_notify is an error, never the end of the data: truncation is seen.

Source: X509-SVID.md section 5 (SP-026, SP-032 to SP-036), SPIFFE_Workload_API.md sections 4.6, 5.2
and 8 (SP-111, SP-113, SP-124); RFC 8446.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex

from x0tta6bl4.core.identity.rules import Expect
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.edge.tls.aio import SslContext, SslRefused
from x0tta6bl4.edge.tls.context import GROUP_PQ, GROUPS, GROUPS_PQ, TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsRefused
from x0tta6bl4.edge.tls.stdlib import StdlibContext
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.connections import Live
from x0tta6bl4.sdk.identity.source import BundleSource, X509Source
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadInput, Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

HANDSHAKE_S: Final = 10.0
LINE_BYTES_MAX: Final = 64 * 1024
"""Limit of `reader.readline()` and `readuntil()`."""
LISTENER_CONNECTIONS_MAX: Final = 4_096
"""Connections of one listener; further ones are closed without a byte."""

Handler = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One TLS connection whose peer is proven and authorised; unpacks to `(reader, writer)`.

    Attributes:
        reader: plaintext from the peer.
        writer: plaintext to the peer.
    """

    __slots__ = ("_engine", "_live", "_own", "_reader", "_source", "writer")

    def __init__(
        self, reader: _Reader, writer: asyncio.StreamWriter, source: X509Source, expect: Expect
    ) -> None:
        self._reader = reader
        self.writer = writer
        engine = reader.engine
        assert engine is not None, "handshake is not complete"
        assert type(engine.peer) is Allowed, "handshake is not complete"
        self._engine: Engine = engine
        self._own: Svid | None = engine.context.svid
        self._source = source
        self._live = Live(
            self._own.id if self._own is not None else None,
            self._own.not_after_unix_s if self._own is not None else 0,
            engine.peer.peer,
            engine.peer_chain,
            engine.peer_not_after_unix_s,
            expect,
            engine.group,
            self.end,
            writer.is_closing,
        )
        source.connections.add(self._live, engine.context.judge)

    @property
    def reader(self) -> asyncio.StreamReader:
        """Plaintext from the peer."""
        return self._reader

    @property
    def peer_id(self) -> SpiffeId:
        """Who the peer has proven to be."""
        return self._live.peer_id

    @property
    def own_id(self) -> SpiffeId | None:
        """Whom we presented."""
        return self._live.own_id

    @property
    def own(self) -> Svid | None:
        """What we presented."""
        return self._own

    @property
    def group(self) -> str:
        """Key exchange, e.g. `X25519MLKEM768`."""
        return self._engine.group

    @property
    def post_quantum(self) -> bool:
        """Whether the key exchange withstands a quantum computer."""
        return self._engine.group == GROUP_PQ

    @property
    def signature(self) -> str:
        """How the peer has signed the handshake, e.g. `ecdsa_secp256r1_sha256`, `mldsa65`."""
        return self._engine.signature

    @property
    def stapled(self) -> bytes:
        """OCSP response that the server we dialled has sent with its SVID, DER; empty: none."""
        return self._engine.stapled

    @property
    def alpn(self) -> str:
        """Application protocol that both agreed on; empty: none."""
        return self._engine.alpn

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates, DER, leaf first."""
        return self._engine.peer_chain

    @property
    def not_after_unix_s(self) -> int:
        """When the connection is ended at the latest: the first certificate expires."""
        return self._live.not_after_unix_s

    @property
    def retiring(self) -> bool:
        """Whether nothing new should begin on it, as its end is near: time for another one."""
        return self._source.connections.retiring(self._live)

    def __iter__(self) -> Iterator[Any]:
        """`reader, writer = await dial(...)`."""
        return iter((self._reader, self.writer))

    async def first_byte(self, timeout_s: float = HANDSHAKE_S) -> None:
        """Wait until the peer has sent something, which shows that it takes us; nothing is read.

        Raises:
            Refused: it refuses us, or closed without a byte.
            Unavailable: nothing came within the time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._reader.first.wait()
        except TimeoutError:
            raise Unavailable("X0-SDK-031", "no byte from the peer within the time") from None
        error = self._reader.exception()
        if error is not None:
            raise error
        if self._reader.at_eof():
            raise TlsRefused("closed by the peer before its first byte")

    def end(self, reason: str) -> None:
        """End it at once: whoever reads or writes gets an error with this reason."""
        self._forget()
        self._reader.fail(Refused("X0-SDK-030", f"connection ended: {reason}"))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close properly: waits at most HANDSHAKE_S for the peer, and not once it is cancelled."""
        self._forget()
        self.writer.close()
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await self.writer.wait_closed()
        except (TimeoutError, OSError, Refused):
            pass
        finally:
            self.writer.transport.abort()

    def _forget(self) -> None:
        self._source.connections.remove(self._live)

    async def __aenter__(self) -> Self:
        """Use as a context: closes at its end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close properly, or at once after an error."""
        if error is not None:
            self.end("error")
        else:
            await self.close()


class Listener:
    """A socket that takes connections of authorised peers; as a context it closes at its end."""

    __slots__ = ("_closed", "_expect", "_handler", "_server", "_source", "_tasks", "refused")

    def __init__(self, source: X509Source, handler: Handler, expect: Expect) -> None:
        self._closed = False
        self._source = source
        self._handler = handler
        self._expect = expect
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused: dict[str, int] = {}
        """Reason -> handshakes that were refused; bounded by the number of reasons."""

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(self._server.sockets) if self._server is not None else ()

    @property
    def port(self) -> int:
        """TCP port of the first socket; 0 where it has none."""
        name = self.sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    async def close(self) -> None:
        """Stop listening, cancel the handlers, end their connections.

        Whose handshake goes on meanwhile is sent away at its end.
        """
        self._closed = True
        if self._server is not None:
            await stop_listening(self._server)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        """Use as a context."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def _count_refused(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._source.connections.refuse(reason)

    def _protocol(self) -> asyncio.Protocol:
        reader = _Reader(LINE_BYTES_MAX, asyncio.get_running_loop())
        return _Protocol(reader, lambda _, writer: self._accepted(reader, writer))

    def _accepted(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        try:
            if len(self._tasks) >= LISTENER_CONNECTIONS_MAX:
                raise Unavailable("X0-SDK-032", "too many connections at this listener")
            connection = Connection(reader, writer, self._source, self._expect)
        except Unavailable:
            self._count_refused("too many connections")
            writer.transport.abort()
            return
        except Refused:  # Counted by the registry.
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._handle(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, connection: Connection) -> None:
        try:
            async with connection:
                await self._handler(connection)
        except (OSError, EOFError, Refused):
            pass  # The peer left, or the connection was ended: the handler has seen it.


async def listen(
    address: str | socket.socket,
    source: X509Source,
    handler: Handler,
    *,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
    backlog: int = 256,
) -> Listener:
    """Take mutual-TLS connections.

    Args:
        address: `host:port` (port 0: any), `unix:/path`, or a bound socket.
        source: our identity and the bundles; the newest count at each handshake.
        handler: called with each connection of an authorised peer; the connection is closed when
            it returns.
        authorize: who may come.
        alpn: application protocols, in order of preference; none are demanded.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        backlog: connections that wait for their handshake.
    Raises:
        BadInput: not an address.
        OSError: it can't be bound.
    """
    expect = Expect(accept=authorize)
    listener = Listener(source, handler, expect)
    tls = SslContext(
        contexts(source, expect, alpn, require_pq=require_pq, id=id, hint=hint),
        listener._count_refused,
    )
    loop = asyncio.get_running_loop()
    more: dict[str, Any] = {
        "ssl": tls,
        "ssl_handshake_timeout": HANDSHAKE_S,
        "ssl_shutdown_timeout": 1.0,
        "backlog": backlog,
    }
    if isinstance(address, socket.socket):
        server = await loop.create_server(listener._protocol, sock=address, **more)
    elif address.startswith("unix:"):
        server = await loop.create_unix_server(listener._protocol, address[5:], **more)
    else:
        host, port = split_address(address)
        server = await loop.create_server(listener._protocol, host, port, **more)
    listener._server = server
    return listener


async def dial(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
    timeout_s: float = HANDSHAKE_S,
    first_byte: bool = False,
) -> Connection:
    """Make a mutual-TLS connection.

    Args:
        address: `host:port` or `unix:/path`; it says where, never who.
        source: our identity and the bundles.
        authorize: who may answer.
        alpn: application protocols; none are demanded.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        timeout_s: for all of it.
        first_byte: whether to wait until the server has sent something, which shows that it takes
            us (see the module); only where the server speaks first.
    Raises:
        BadInput: not an address.
        Refused: the server, or we, were refused; the reason is in it.
        Unavailable: nobody there, no SVID of our own, or the time is over.
    """
    expect = Expect(accept=authorize)
    make = contexts(source, expect, alpn, require_pq=require_pq, id=id, hint=hint)
    source.current(id, hint=hint)  # For its own words.
    loop = asyncio.get_running_loop()
    reader = _Reader(LINE_BYTES_MAX, loop)
    more: dict[str, Any] = {
        "ssl": SslContext(make),
        "server_hostname": "",
        "ssl_handshake_timeout": timeout_s,
        "ssl_shutdown_timeout": 1.0,
    }
    protocol = _Protocol(reader)
    try:
        async with asyncio.timeout(timeout_s):
            if address.startswith("unix:"):
                transport, _ = await loop.create_unix_connection(
                    lambda: protocol, address[5:], **more
                )
            else:
                host, port = split_address(address)
                transport, _ = await loop.create_connection(lambda: protocol, host, port, **more)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                connection = Connection(reader, writer, source, expect)
            except (Refused, Unavailable):
                transport.abort()
                raise
            if first_byte:
                try:
                    await connection.first_byte(timeout_s)
                except BaseException:
                    connection.end("not accepted")
                    raise
            return connection
    except TimeoutError:
        raise Unavailable("X0-SDK-033", f"{address} does not answer in time") from None
    except TlsRefused:
        raise
    except OSError as error:
        raise Unavailable("X0-SDK-034", f"no connection to {address}: {error}") from None


def verify_peer(
    chain: Sequence[bytes], source: X509Source | BundleSource, *, authorize: Authorizer
) -> SpiffeId:
    """Judge a certificate chain that came some other way, as a handshake would.

    Args:
        chain: DER, leaf first.
        source: whose bundles count.
        authorize: who it may be.
    Returns:
        The ID that it proves.
    Raises:
        Refused: with the reason.
    """
    verdict = source.judges.judge(chain, Expect(accept=authorize)).verdict
    if type(verdict) is Denied:
        raise Refused("X0-SDK-035", f"peer refused: {verdict.reason}")
    assert type(verdict) is Allowed
    return verdict.peer


def ssl_context(
    source: X509Source,
    *,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
) -> SslContext:
    """What asyncio, uvloop and frameworks above them take as `ssl=`; arguments as of `listen`.

    Who gets hold of such a connection's transport gives it to `register`, so that it ends when an
    identity does.
    """
    expect = Expect(accept=authorize)
    make = contexts(source, expect, alpn, require_pq=require_pq, id=id, hint=hint)
    return SslContext(make, source.connections.refuse)


def register(
    transport: asyncio.BaseTransport, source: X509Source, *, authorize: Authorizer
) -> SpiffeId:
    """Let a connection of a framework end as those of `listen` and `dial` do.

    Args:
        transport: over `ssl_context` or `stdlib_context`, after its handshake.
        source: what its context was made from.
        authorize: asked again at every change.
    Returns:
        The peer's ID.
    Raises:
        Refused: the peer has shown no SVID, or would be refused now.
        Unavailable: there are too many connections.
    """
    return admit(transport, source, authorize=authorize).peer_id


def admit(transport: asyncio.BaseTransport, source: X509Source, *, authorize: Authorizer) -> Live:
    """As `register`; returns all that the registry knows of the connection."""
    tls = transport.get_extra_info("ssl_object")
    own: Svid | None = tls.own
    abort = getattr(transport, "abort", transport.close)
    live = Live(
        own.id if own is not None else None,
        own.not_after_unix_s if own is not None else 0,
        tls.peer_id,
        tls.peer_chain,
        tls.peer_not_after_unix_s,
        Expect(accept=authorize),
        tls.group or "not told",
        lambda reason: abort(),
        transport.is_closing,
    )
    source.connections.add(live, tls.judged_by)
    return live


def stdlib_context(
    source: X509Source,
    *,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    id: str | None = None,
    hint: str | None = None,
) -> StdlibContext:
    """As `ssl_context`, on the TLS of the standard library: blocking sockets, too.

    Never post-quantum (see `edge.tls.stdlib`), so there is no `require_pq`; and it asks nobody for
    OCSP, whatever the source's `ocsp` says: revocation lists count all the same.
    """
    newest = contexts(source, Expect(accept=authorize), alpn, id=id, hint=hint)
    return StdlibContext(
        newest,
        lambda: [der for ders in source.bundles.values() for der in ders],
        source.connections.refuse,
    )


def contexts(
    source: X509Source,
    expect: Expect,
    alpn: Sequence[str] = (),
    *,
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
) -> Callable[[], TlsContext]:
    """What gives the TLS settings of the newest SVID and bundles, for `SslContext`.

    The function that is returned raises SslRefused where there is no valid SVID: never plaintext,
    never an expired one.
    """
    held: list[tuple[int, Svid, TlsContext]] = []
    groups = GROUPS_PQ if require_pq else GROUPS

    def newest() -> TlsContext:
        try:
            svid = source.current(id, hint=hint)
        except Unavailable as error:
            raise SslRefused(error.what) from None
        if not held or held[0][:2] != (source.version, svid):
            try:
                made = TlsContext(
                    svid,
                    source.judges,
                    alpn,
                    expect,
                    groups,
                    demand_alpn=False,
                    staple=lambda: source.staples.of(svid),
                    status=source.status.judge if source.status is not None else None,
                )
            except BadInput as error:
                raise SslRefused(error.what) from None
            held[:] = [(source.version, svid, made)]
        return held[0][2]

    return newest


class _Reader(asyncio.StreamReader):
    """A StreamReader that knows a proper end from a cut, and tells of the first byte."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit, loop)
        self.engine: Engine | None = None
        self.first = asyncio.Event()

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        super().feed_data(data)
        self.first.set()

    def feed_eof(self) -> None:
        if self.engine is not None and not self.engine.closed and self.exception() is None:
            self.fail(TlsRefused("cut off without a close"))
        super().feed_eof()
        self.first.set()

    def set_exception(self, exc: BaseException) -> None:
        if self.exception() is None:  # The first one says why.
            super().set_exception(exc)  # type: ignore[arg-type]
        self.first.set()

    def fail(self, error: Exception) -> None:
        self.set_exception(error)


class _Protocol(asyncio.StreamReaderProtocol):
    """Gives its reader the connection that it reads from."""

    def __init__(
        self,
        reader: _Reader,
        connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None] | None = None,
    ) -> None:
        super().__init__(reader, connected)
        self._of = reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._of.engine = transport.get_extra_info("ssl_object").engine
        super().connection_made(transport)
