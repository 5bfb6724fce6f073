"""uvicorn: a configuration whose connections are proven, for any ASGI application.

    await uvicorn.Server(Config(app, port=8443, source=source, authorize=anyone)).serve()

The application finds who asks in its scope (`sdk.frameworks.asgi`).  A doorman waits for the end of
each handshake, then makes uvicorn's own protocol, with a configuration whose application is told of
this one peer; a WebSocket inherits it.

Source: uvicorn, "Settings" (`http`, `ssl_context_factory`).
"""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Any

import uvicorn

from x0tta6bl4.sdk.frameworks.asgi import introduce
from x0tta6bl4.sdk.frameworks.asyncio_protocols import Doorman
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.connections import Live
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import ssl_context

ALPN = ("http/1.1",)


class Config(uvicorn.Config):
    """As `uvicorn.Config`, over mutual TLS and nothing else.

    One process: `workers` and `reload` start others, which a source can't follow.

    Args:
        app: ASGI application, or where to import it from.
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may come; asked again at every change.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        more: as for `uvicorn.Config`.
    """

    def __init__(
        self,
        app: Any,
        *,
        source: X509Source,
        authorize: Authorizer,
        require_pq: bool = False,
        id: str | None = None,
        hint: str | None = None,
        **more: Any,
    ) -> None:
        tls = ssl_context(
            source, authorize=authorize, alpn=ALPN, require_pq=require_pq, id=id, hint=hint
        )
        super().__init__(app, ssl_context_factory=lambda config, default: tls, **more)
        self._source = source
        self._authorize = authorize

    def load(self) -> None:
        """Called by the server."""
        super().load()
        made: Any = self.http_protocol_class
        self.http_protocol_class: Any = _Doorway(made, self._source, self._authorize)


class _Doorway:
    """Stands where uvicorn expects the class of its protocol."""

    def __init__(self, made: Any, source: X509Source, authorize: Authorizer) -> None:
        self._made = made
        self._source = source
        self._authorize = authorize

    def __call__(self, *, config: Config, **more: Any) -> asyncio.Protocol:
        def protocol(peer: Live) -> asyncio.Protocol:
            own = copy(config)
            own.loaded_app = introduce(config.loaded_app, peer)
            made: asyncio.Protocol = self._made(config=own, **more)
            return made

        return Doorman(protocol, self._source, self._authorize)
