"""grpclib's server, whose peers are known from their connection on, and bounded.

    accepted (with TLS: judged) --meet--> a peer, or a reason to send it away --> its calls

Who calls is established once per connection, and every call asks for it by its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from grpclib.config import Configuration
from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.listening import stop_listening

HANDSHAKE_S: Final = 5.0
BACKLOG: Final = 1024
_STOP_S: Final = 2.0

P = TypeVar("P")


class _Protocol(H2Protocol):
    """One accepted connection; registers itself with its listener."""

    def __init__(self, made: H2Protocol, listener: GrpcListener[Any]) -> None:
        super().__init__(made.handler, made.config, made.h2_config)
        self._listener = listener

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._listener._opened(self.connection, transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._listener._closed(getattr(self, "connection", None))
        super().connection_lost(exc)


class GrpcListener(Server, Generic[P]):
    """A listening socket and the peers that are connected to it.

    Args:
        handlers: as grpclib's server takes them.
        codec: of messages.
        window_bytes: of a connection and of each of its streams.
        on_refused: told why a connection was sent away.

    Attributes:
        peers: who is connected, by grpclib's connection; `meet` bounds them.
    """

    def __init__(
        self,
        handlers: Any,
        codec: CodecBase,
        window_bytes: int,
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(
            [handlers],
            codec=codec,
            config=Configuration(
                http2_connection_window_size=window_bytes, http2_stream_window_size=window_bytes
            ),
        )
        self._on_refused = on_refused
        self.peers: dict[Any, P] = {}

    @abstractmethod
    def meet(self, transport: Any) -> P | Denied:
        """Who has connected; Denied also where there are enough of them."""

    @abstractmethod
    def forget(self, peer: P) -> None:
        """It has left."""

    async def listen(self, sock: socket.socket, tls: Any = None) -> None:
        """Serve on a bound socket; with TLS, handshakes have a deadline."""
        loop = asyncio.get_running_loop()
        options = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S} if tls is not None else {}
        make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._server = await make(self._protocol_factory, sock=sock, backlog=BACKLOG, **options)
        self._server_closed_fut = loop.create_future()

    def of(self, stream: Any) -> P | None:
        """Who sent a request; None: its connection has ended meanwhile."""
        return self.peers.get(stream._stream.connection)

    async def stop(self) -> None:
        """Close the listener, then every connection; at most 2 s."""
        if self._server is None:
            return
        await stop_listening(self)
        for connection in list(self.peers):
            connection._transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self.wait_closed()

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(super()._protocol_factory(), self)

    def _opened(self, connection: Any, transport: Any) -> None:
        peer = self.meet(transport)
        if isinstance(peer, Denied):
            self._on_refused(peer.reason)
            transport.abort()
        else:
            self.peers[connection] = peer

    def _closed(self, connection: Any) -> None:
        peer = self.peers.pop(connection, None)
        if peer is not None:
            self.forget(peer)


def abort(stream: Any) -> None:
    """Close the connection of a call at once."""
    stream._stream.connection._transport.abort()
