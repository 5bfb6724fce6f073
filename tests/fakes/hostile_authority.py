"""A false authority behind a false neighbour: it has a CA of its own and answers Trust as told."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from tests.fakes.hostile import Background
from x0tta6bl4.app.admission import Unjudged
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.authority_api.codec import Codec
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.hop import HEADER_BYTES
from x0tta6bl4.wire.ids import TrustDomain
from x0tta6bl4.wire.records import Bundle, encode_body


class FalseAuthority:
    """Takes `enrol` frames and speaks x0-authority/1 behind them.

    Args:
        domain: that it claims.
        background: where it runs.
        recorded: what the true one has answered to Trust; left out: a bundle of its own.

    Attributes:
        address: of the neighbour's data port.
        asked: methods that were called.
    """

    def __init__(
        self, domain: TrustDomain, background: Background, recorded: words.TrustReply | None = None
    ) -> None:
        now = unix_us() // 1_000_000
        issuer = x509.new_anchor(domain, now)
        key = x509.new_key()
        id = words.authority_id(domain, "a")
        chain = x509.issue_leaf(issuer, x509.new_csr(key), id, now)
        self._svid = Svid(id, chain, x509.key_bytes(key), now + 3600)
        bundle = Bundle(domain, 1, (issuer.certificate,), ())
        self._reply = recorded or words.TrustReply(
            first=encode_body(bundle), steps=(), unix_us=unix_us()
        )
        self._background = background
        self._servers: list[Any] = []
        self.address = ""
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        self._background.call(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        async def stop() -> None:
            for server in self._servers:
                server.close()

        self._background.call(stop())

    async def _start(self) -> None:
        context = TlsContext(self._svid, Unjudged(), (ALPN_AUTHORITY,), ANYBODY, demand=False)
        server = Server([self], codec=Codec(words.REQUEST_BYTES_MAX))
        await server.start("127.0.0.1", 0, ssl=SslContext(context))
        assert server._server is not None
        listening: Any = server._server
        inner = listening.sockets[0].getsockname()[1]

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(HEADER_BYTES)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", inner)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

        door = await asyncio.start_server(take, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{door.sockets[0].getsockname()[1]}"
        self._servers = [server, door]

    def __mapping__(self) -> dict[str, Handler]:
        """See grpclib."""
        return {
            f"/{words.SERVICE}/{method}": Handler(
                self._call(method), Cardinality.UNARY_UNARY, request, reply
            )
            for method, (request, reply) in words.METHODS.items()
        }

    def _call(self, method: str) -> Any:
        async def call(stream: Stream[Any, Any]) -> None:
            await stream.recv_message()
            self.asked.append(method)
            if method != "Trust":
                raise GRPCError(Status.PERMISSION_DENIED, "thank you")
            await stream.send_message(self._reply)

        return call


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
