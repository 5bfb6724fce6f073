"""asyncio and uvloop, for protocols and transports; for streams there are `listen` and `dial`.

    server = await create_server(Echo, "127.0.0.1", 8443, source=source, authorize=anyone)
    transport, protocol = await create_connection(Echo, "127.0.0.1", 8443, source=source, ...)

Both take what the loop's methods of the same name take, but for TLS.  A doorman stands in the
protocol's place until the handshake is complete, enters the connection into the registry of the
source, and leaves: from then on the transport talks to the protocol alone.

Source: asyncio, "Transports and Protocols": `set_protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.connections import Live
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import HANDSHAKE_S, admit, ssl_context
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def create_server(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    source: X509Source,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
    **more: Any,
) -> asyncio.Server:
    """As `loop.create_server`, or `loop.create_unix_server` where there is a `path`.

    Args:
        factory: makes a protocol for each peer that is let in, and for no other.
        host: where to listen.
        port: where to listen; 0: any.
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may come; asked again at every change.
        alpn: application protocols, in order of preference; none are demanded.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        more: for the loop's method.
    Raises:
        OSError: it can't be bound.
    """
    tls = ssl_context(
        source, authorize=authorize, alpn=alpn, require_pq=require_pq, id=id, hint=hint
    )
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S, **more}

    def doorman() -> asyncio.Protocol:
        return Doorman(lambda _: factory(), source, authorize)

    if "path" in options:
        return await loop.create_unix_server(doorman, **options)
    return await loop.create_server(doorman, host, port, **options)


async def create_connection(
    factory: Callable[[], P],
    host: str | None = None,
    port: int | None = None,
    *,
    source: X509Source,
    authorize: Authorizer,
    alpn: Sequence[str] = (),
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
    **more: Any,
) -> tuple[asyncio.Transport, P]:
    """As `loop.create_connection`, or `loop.create_unix_connection` where there is a `path`.

    Args:
        factory: makes the protocol when the server is proven and authorised.
        host: where the server is, never who it is.
        port: likewise.
        source: our identity and the bundles.
        authorize: who may answer; asked again at every change.
        alpn: application protocols; none are demanded.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        more: for the loop's method.
    Raises:
        Refused: the server, or we, were refused; the reason is in it.
        OSError: nobody there, or not in time.
    """
    tls = ssl_context(
        source, authorize=authorize, alpn=alpn, require_pq=require_pq, id=id, hint=hint
    )
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {
        "ssl": tls,
        "server_hostname": "",
        "ssl_handshake_timeout": HANDSHAKE_S,
        **more,
    }
    doorman = Doorman(lambda _: factory(), source, authorize)
    if "path" in options:
        transport, _ = await loop.create_unix_connection(lambda: doorman, **options)
    else:
        options |= {"host": host, "port": port}
        transport, _ = await loop.create_connection(lambda: doorman, **options)
    if doorman.behind is None:
        assert doorman.error is not None, "no connection"
        raise doorman.error
    return transport, doorman.behind


def peer_id(transport: asyncio.BaseTransport | asyncio.StreamWriter) -> SpiffeId:
    """Who is at the other end.

    Args:
        transport: what `connection_made` was given, or a stream's writer; over our TLS.
    """
    id: SpiffeId = transport.get_extra_info("ssl_object").peer_id
    return id


class Doorman(asyncio.Protocol, Generic[P]):
    """Protocol of a connection until it is registered.

    Args:
        factory: makes the protocol that the connection gets then, for that peer.
        source: what the TLS of the connection was made from.
        authorize: asked again at every change.

    Attributes:
        behind: what was made; None: nobody was let in.
        error: why.
    """

    def __init__(
        self, factory: Callable[[Live], P], source: X509Source, authorize: Authorizer
    ) -> None:
        self._factory = factory
        self._source = source
        self._authorize = authorize
        self.behind: P | None = None
        self.error: Refused | Unavailable | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is complete, and both ends are judged."""
        try:
            live = admit(transport, self._source, authorize=self._authorize)
        except (Refused, Unavailable) as error:
            self.error = error
            transport.abort()  # type: ignore[attr-defined]
            return
        self.behind = self._factory(live)
        transport.set_protocol(self.behind)
        self.behind.connection_made(transport)
