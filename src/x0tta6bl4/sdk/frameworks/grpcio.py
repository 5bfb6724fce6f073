"""grpcio over mutual TLS with SVIDs, for clients and servers, with asyncio and with threads.

    async with channel("127.0.0.1:8443", source, authorize=exact(SHOP)) as made: ...

    front = Front("0.0.0.0:8443", source, authorize=member_of("example.org"))
    server = grpc.aio.server(interceptors=[front.interceptor])
    async with front.serving(server): ...

grpcio's own TLS can't be told to leave host names alone, nor to ask anybody about a chain, and its
channels keep the certificate that they were made with.  So it speaks HTTP/2 over a socket of this
process, and `relay` the rest.  Channels move to the newest SVID by a GOAWAY, calls in flight end
where they began.

The server learns who calls from the name of the local connection, which the kernel tells: nothing
that a client sends has a part in it, and a connection that is not of the relay is refused.  The
interceptor judges the chain again whenever bundles, revocations or the time may have changed the
verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import grpc
import grpc.aio

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.frameworks.http2 import Frames, refuse_call
from x0tta6bl4.sdk.frameworks.relay import Inbound, Outbound, in_thread
from x0tta6bl4.sdk.identity import blocking
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import verify_peer
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

ALPN: Final = ("h2",)
_ABSTRACT: Final = "unix-abstract:"
_KINDS: Final = (
    ("unary_unary", grpc.unary_unary_rpc_method_handler),
    ("unary_stream", grpc.unary_stream_rpc_method_handler),
    ("stream_unary", grpc.stream_unary_rpc_method_handler),
    ("stream_stream", grpc.stream_stream_rpc_method_handler),
)


def _outbound(address: str, source: X509Source, authorize: Authorizer, more: Any) -> Outbound:
    return Outbound(
        address, source, authorize=authorize, alpn=ALPN, refuse=_refuse, between=Frames, **more
    )


async def _refuse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: Refused | Unavailable
) -> None:
    """A peer that is refused fails the call; one that can't be reached is tried again."""
    if isinstance(error, Refused):
        await refuse_call(reader, writer, error.what)


def _options(given: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [("grpc.use_local_subchannel_pool", 1), *given]


@asynccontextmanager
async def channel(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    options: Sequence[tuple[str, Any]] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    **more: Any,
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel for asyncio.

    Args:
        address: `host:port` or `unix:/path`.
        source: our identity.
        authorize: who may answer; a call to anybody else fails with the reason.
        options: of grpcio.
        interceptors: of grpcio.
        more: require_pq, id, hint; see `dial`.
    """
    async with (
        _outbound(address, source, authorize, more) as relay,
        grpc.aio.insecure_channel(
            f"unix:{relay.path}", _options(options), interceptors=interceptors
        ) as made,
    ):
        yield made


@contextmanager
def blocking_channel(
    address: str,
    source: blocking.X509Source,
    *,
    authorize: Authorizer,
    options: Sequence[tuple[str, Any]] = (),
    **more: Any,
) -> Iterator[grpc.Channel]:
    """A channel for threads; see `channel`."""
    with (
        in_thread(source, _outbound(address, source.real, authorize, more)) as relay,
        grpc.insecure_channel(f"unix:{relay.path}", _options(options)) as made,
    ):
        yield made


class Front:
    """What stands before a gRPC server.

    Args:
        address: to listen on, as for `listen`.
        source: our identity; the blocking one for a server with threads.
        authorize: who may call.
        more: require_pq, id, hint; see `listen`.
    """

    def __init__(
        self,
        address: str,
        source: X509Source | blocking.X509Source,
        *,
        authorize: Authorizer,
        **more: Any,
    ) -> None:
        self._threads = source if isinstance(source, blocking.X509Source) else None
        self._source = source.real if isinstance(source, blocking.X509Source) else source
        self._authorize = authorize
        self._folder = tempfile.mkdtemp(prefix="x0-")
        self._inbound = Inbound(
            address,
            self._source,
            authorize=authorize,
            server=f"{self._folder}/s",
            alpn=ALPN,
            between=Frames,
            **more,
        )

    @property
    def port(self) -> int:
        """TCP port, while serving."""
        return self._inbound.port

    @property
    def refused(self) -> dict[str, int]:
        """Reason -> handshakes that were refused."""
        return self._inbound.refused

    @property
    def interceptor(self) -> Any:
        """Refuses calls that did not come through here, or whose caller would be refused now."""
        if self._threads is None:
            return _AioInterceptor(self._check)
        return _Interceptor(self._check)

    def peer_id(self, context: grpc.ServicerContext | grpc.aio.ServicerContext) -> SpiffeId:
        """Who calls.

        Raises:
            Refused: nobody who came through here, or one who would be refused now.
        """
        name = context.peer()
        peer = self._inbound.peers.get(name.removeprefix(_ABSTRACT))
        if peer is None or not name.startswith(_ABSTRACT):
            raise Refused("X0-SDK-070", "not a connection of the relay")
        connection, version = peer.connection, self._source.version
        if peer.judged != version:
            verify_peer(connection.peer_chain, self._source, authorize=self._authorize)
            peer.judged = version
        if connection.not_after_unix_s * SECOND <= self._source.clock():
            raise Refused("X0-SDK-071", "the connection has outlived its certificates")
        return connection.peer_id

    def _check(self, context: Any) -> str:
        """Why the caller is refused; empty: it is not."""
        try:
            self.peer_id(context)
        except Refused as error:
            return error.what
        return ""

    def _ready(self, server: Any) -> None:
        server.add_insecure_port(f"unix:{self._folder}/s")

    @asynccontextmanager
    async def serving(self, server: grpc.aio.Server) -> AsyncIterator[Front]:
        """Start the server and stop it at the end."""
        try:
            self._ready(server)
            await server.start()
            async with self._inbound:
                yield self
        finally:
            await server.stop(0)
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def blocking_serving(self, server: grpc.Server) -> Iterator[Front]:
        """The same for a server with threads."""
        assert self._threads is not None, "give Front a blocking source"
        try:
            self._ready(server)
            server.start()
            with in_thread(self._threads, self._inbound):
                yield self
        finally:
            server.stop(0).wait()
            shutil.rmtree(self._folder, ignore_errors=True)


Check = Callable[[Any], str]


class _Interceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For servers with threads."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        return _guarded(continuation(details), self._check)


class _AioInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """For servers with asyncio."""

    def __init__(self, check: Check) -> None:
        self._check = check

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        return _guarded(await continuation(details), self._check)


def _guarded(handler: Any, check: Check) -> Any:
    """The same handler, which asks before it does anything."""
    if handler is None:
        return None
    for kind, make in _KINDS:
        behaviour = getattr(handler, kind)
        if behaviour is not None:
            return make(
                _asking(behaviour, check, kind),
                handler.request_deserializer,
                handler.response_serializer,
            )
    raise AssertionError("a handler of no kind")


def _asking(behaviour: Any, check: Check, kind: str) -> Any:
    """Wrap it in a function of its own sort: grpcio looks at that."""
    if inspect.isasyncgenfunction(behaviour):

        async def stream(request: Any, context: Any) -> Any:
            if reason := check(context):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            async for answer in behaviour(request, context):
                yield answer

        return stream
    if inspect.iscoroutinefunction(behaviour):

        async def call(request: Any, context: Any) -> Any:
            if reason := check(context):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            return await behaviour(request, context)

        return call

    def plain(request: Any, context: Any) -> Any:
        if reason := check(context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
        return behaviour(request, context)

    return plain
