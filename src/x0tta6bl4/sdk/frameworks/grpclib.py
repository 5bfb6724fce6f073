"""grpclib over mutual TLS with SVIDs, client and server.

    server = Server([Greeter()], source, authorize=member_of("example.org"))
    await server.start("0.0.0.0", 8443)                                   peer_id(stream)

    async with Channel("127.0.0.1:8443", source, authorize=exact(SHOP)) as channel: ...

grpclib takes our TLS as it takes an `ssl.SSLContext`.  A channel moves in time: calls under way end
on the connection where they began, new ones open another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Final

import grpclib.client
import grpclib.server
from grpclib.protocol import H2Protocol

from x0tta6bl4.sdk.frameworks.moving import CLIENT_SHARE, Moving
from x0tta6bl4.sdk.frameworks.relay import take_options
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import register, ssl_context
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId, spiffe_id

ALPN: Final = ("h2",)


def peer_id(stream: grpclib.server.Stream[Any, Any]) -> SpiffeId:
    """Who calls."""
    certificate: Any = stream.peer.cert()
    return spiffe_id(certificate["subjectAltName"][0][1])


class Channel(grpclib.client.Channel):
    """A channel to a service that is proven.

    Args:
        address: `host:port`.
        source: our identity.
        authorize: who may answer; a call to anybody else raises `SslRefused` with the reason.
        options: require_pq, id, hint of `dial`; the others are of grpclib.
    """

    def __init__(
        self, address: str, source: X509Source, *, authorize: Authorizer, **options: Any
    ) -> None:
        own = take_options(options)
        host, port = split_address(address)
        context = ssl_context(source, authorize=authorize, alpn=ALPN, **own)
        super().__init__(host, port, ssl=context, **options)
        self._source = source
        self._authorize = authorize
        self._moving = Moving(source, CLIENT_SHARE)
        self._leaving: set[asyncio.Task[None]] = set()

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(
            super()._protocol_factory(), self._source, self._authorize, self._connected_over
        )

    def _connected_over(self, protocol: _Protocol, tls: Any) -> None:
        end = min(tls.own.not_after_unix_s, tls.peer_not_after_unix_s)
        forget = self._moving.add(tls.own, end, lambda: self._leave(protocol))
        protocol.on_lost = forget

    def _leave(self, protocol: H2Protocol) -> None:
        """Begin nothing on this connection any more."""
        if protocol.handler.connection_lost:  # type: ignore[attr-defined]
            return
        protocol.handler.close()
        task = asyncio.get_running_loop().create_task(_drained(protocol))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def close(self) -> None:
        """Close it; calls under way fail."""
        self._moving.close()
        for task in tuple(self._leaving):
            task.cancel()
        super().close()


async def _drained(protocol: H2Protocol) -> None:
    """Close a connection after the last call on it."""
    try:
        idle = 0
        while idle < 2:  # A call that has waited for a free stream takes it in the next turn.
            if protocol.processor.streams:
                idle = 0
                protocol.connection.stream_close_waiter.clear()
                await protocol.connection.stream_close_waiter.wait()
            else:
                idle += 1
                await asyncio.sleep(0)
    finally:
        protocol.processor.close()


class Server(grpclib.server.Server):
    """A server that knows who calls.

    Args:
        handlers: services, as of grpclib.
        source: our identity.
        authorize: who may call.
        options: require_pq, id, hint of `listen`; the others are of grpclib.
    """

    def __init__(
        self,
        handlers: Collection[Any],
        source: X509Source,
        *,
        authorize: Authorizer,
        **options: Any,
    ) -> None:
        own = take_options(options)
        super().__init__(handlers, **options)
        self._source = source
        self._authorize = authorize
        self._context = ssl_context(source, authorize=authorize, alpn=ALPN, **own)

    async def start(self, host: str | None = None, port: int | None = None, **options: Any) -> None:
        """As grpclib's; TLS is not optional.

        Raises:
            OSError: it can't be bound.
        """
        await super().start(host, port, **{**options, "ssl": self._context})

    @property
    def port(self) -> int:
        """TCP port, after `start`."""
        server: Any = self._server
        return int(server.sockets[0].getsockname()[1])

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(super()._protocol_factory(), self._source, self._authorize)


class _Protocol(H2Protocol):
    """grpclib's, entered into the registry of the source."""

    def __init__(
        self,
        made: H2Protocol,
        source: X509Source,
        authorize: Authorizer,
        connected: Callable[[_Protocol, Any], None] = lambda protocol, tls: None,
    ) -> None:
        super().__init__(made.handler, made.config, made.h2_config)
        self._source = source
        self._authorize = authorize
        self._connected = connected
        self.on_lost: Callable[[], None] = lambda: None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        try:
            register(transport, self._source, authorize=self._authorize)
        except (Refused, Unavailable) as error:
            self.processor.close(reason=error.what)
            transport.abort()
            return
        self._connected(self, transport.get_extra_info("ssl_object"))

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.on_lost()
