"""hypercorn: HTTP/1.1, HTTP/2 and WebSockets whose peers are proven, for any ASGI application.

    await serve(app, config, source=source, authorize=member_of("example.org"))

hypercorn makes its TLS from files, once.  So its worker gets no sockets and does what is left, the
application's life; between start and end of that the sockets of `bind` are served here, with
hypercorn's own server for each connection.

Source: hypercorn, "API Usage"; `hypercorn.asyncio.run.worker_serve` for the order of things.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config, Sockets
from hypercorn.typing import LifespanState

from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.sdk.frameworks.asgi import App, Call, Scope, introduce
from x0tta6bl4.sdk.frameworks.asyncio_protocols import Doorman
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.connections import Live
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import HANDSHAKE_S, ssl_context
from x0tta6bl4.wire.errors import BadConfig

Trigger = Callable[[], Awaitable[Any]]


async def serve(
    app: App,
    config: Config,
    *,
    source: X509Source,
    authorize: Authorizer,
    require_pq: bool = False,
    id: str | None = None,
    hint: str | None = None,
    shutdown_trigger: Trigger | None = None,
) -> None:
    """As `hypercorn.asyncio.serve`, over mutual TLS and nothing else.

    Args:
        app: ASGI application; finds who asks in its scope (`sdk.frameworks.asgi`).
        config: hypercorn's; `bind` and `alpn_protocols` count, certificates have no place in it.
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may come; asked again at every change.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        shutdown_trigger: ends the server when it returns; None: SIGINT or SIGTERM do.
    Raises:
        BadConfig: the configuration asks for plaintext, QUIC or certificates of its own.
        OSError: an address can't be bound.
    """
    if config.ssl_enabled or config.insecure_bind or config.quic_bind:
        raise BadConfig(
            "X0-SDK-052",
            "hypercorn's certfile, insecure_bind and quic_bind have no place beside identities",
            "use bind alone",
        )
    tls = ssl_context(
        source,
        authorize=authorize,
        alpn=config.alpn_protocols,
        require_pq=require_pq,
        id=id,
        hint=hint,
    )
    service = _Service(app, config)

    async def doors() -> None:
        """From the application's start to its end."""
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(
                lambda: Doorman(service.protocol, source, authorize),
                sock=sock,
                ssl=tls,
                backlog=config.backlog,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
            for sock in config.create_sockets().insecure_sockets
        ]
        for where in config.bind:
            await config.log.info(f"Running on https://{where} (CTRL + C to quit)")
        try:
            await (shutdown_trigger or _signalled)()
        finally:
            await stop_listening(*servers)
            await service.end()

    nowhere = Sockets([], [], [])
    whole: Any = ASGIWrapper(service.living)  # type: ignore[arg-type]
    await worker_serve(whole, config, sockets=nowhere, shutdown_trigger=doors)


class _Service:
    """An application and the connections to it."""

    def __init__(self, app: App, config: Config) -> None:
        self._app = app
        self._config = config
        self._context = WorkerContext(None)
        self._state: LifespanState = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def living(self, scope: Scope, receive: Call, send: Call) -> None:
        """The application's life, whose state all requests share."""
        self._state = scope["state"]
        await self._app(scope, receive, send)

    def protocol(self, peer: Live) -> asyncio.Protocol:
        """For a peer that is proven."""
        reader = asyncio.StreamReader()
        return asyncio.StreamReaderProtocol(reader, partial(self._serve, peer))

    def _serve(
        self, peer: Live, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        app: Any = ASGIWrapper(introduce(self._app, peer))  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        server = TCPServer(app, loop, self._config, self._context, self._state, reader, writer)
        task = loop.create_task(_run(server))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Let requests end, for as long as the configuration says."""
        await self._context.terminated.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._config.graceful_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def _run(server: TCPServer) -> None:
    with contextlib.suppress(OSError):  # The peer left, or the connection was ended.
        await server.run()


async def _signalled() -> None:
    """Wait for SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, came.set)
    await came.wait()
