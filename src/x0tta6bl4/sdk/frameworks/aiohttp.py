"""aiohttp, both sides: a site that proves its clients, a connector that proves its servers.

    site = Site(runner, "127.0.0.1", 8443, source=source, authorize=member_of("example.org"))
    session = ClientSession(connector=Connector(source, authorize=exact("spiffe://...")))

Source: aiohttp, "Server Deployment" (`BaseSite`) and "Client Reference" (connectors).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from x0tta6bl4.sdk.frameworks.asyncio_protocols import create_server
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import admit, ssl_context
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

if TYPE_CHECKING:
    from aiohttp.client import ClientTimeout
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

ALPN = ("http/1.1",)


class Site(web.BaseSite):
    """Where an application is served, over mutual TLS and nothing else.

    Args:
        runner: of the application, after its `setup`.
        host: where to listen.
        port: where to listen; 0: any.
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may come; asked again at every change.
        more: `require_pq`, `id`, `hint`, and what `loop.create_server` takes.
    """

    __slots__ = ("_host", "_more", "_port")

    def __init__(
        self,
        runner: web.BaseRunner,
        host: str,
        port: int,
        *,
        source: X509Source,
        authorize: Authorizer,
        **more: Any,
    ) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port
        self._more = {"alpn": ALPN, "source": source, "authorize": authorize, **more}

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def name(self) -> str:
        """Its address as a URL."""
        return str(URL.build(scheme="https", host=self._host, port=self._port))

    async def start(self) -> None:
        """Listen."""
        await super().start()
        factory = self._runner.server
        assert factory is not None
        self._server = server = await create_server(factory, self._host, self._port, **self._more)
        self._port = server.sockets[0].getsockname()[1]


def peer_id(request: web.BaseRequest) -> SpiffeId:
    """Who asks."""
    id: SpiffeId = request.get_extra_info("ssl_object").peer_id
    return id


class Connector(aiohttp.TCPConnector):
    """Connections of a session, to servers that are proven and authorised.

    Plaintext and other TLS settings are refused, whatever a request asks for.  A connection is
    left in time before its end, so that no request is cut off.

    Args:
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may answer; asked again at every change.  A URL says where, never who.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        more: as for `aiohttp.TCPConnector`.
    """

    def __init__(
        self,
        source: X509Source,
        *,
        authorize: Authorizer,
        require_pq: bool = False,
        id: str | None = None,
        hint: str | None = None,
        **more: Any,
    ) -> None:
        tls = ssl_context(
            source, authorize=authorize, alpn=ALPN, require_pq=require_pq, id=id, hint=hint
        )
        super().__init__(ssl=tls, **more)
        self._source = source
        self._authorize = authorize
        self._factory: Any = partial(_Handler, loop=self._loop)

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        if not req.is_ssl() or req.ssl is not True:
            raise aiohttp.ClientConnectionError(f"{req.url}: https with identities, or nothing")
        made = await super()._create_connection(req, traces, timeout)
        assert isinstance(made, _Handler)
        assert made.transport is not None
        try:
            live = admit(made.transport, self._source, authorize=self._authorize)
        except (Refused, Unavailable) as error:
            made.abort()
            raise aiohttp.ClientConnectionError(str(error)) from error
        made.retiring = partial(self._source.connections.retiring, live)
        return made


class _Handler(ResponseHandler):
    """Protocol of a connection that is not taken from the pool any more when its end is near."""

    retiring: Callable[[], bool]

    def is_connected(self) -> bool:
        return super().is_connected() and not self.retiring()
