"""httpx: a transport whose servers are proven.

    client = httpx.AsyncClient(transport=Transport(source, authorize=exact("spiffe://...")))
    client = httpx.Client(transport=BlockingTransport(source, authorize=exact("spiffe://...")))

Underneath lies httpcore's network backend, over `dial`: its streams are connections of the SDK.
For threads, the same transport runs in the thread of a blocking source.

Source: HTTPX, "Transports"; HTTP Core, "Network Backends".
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpcore
import httpx

from x0tta6bl4.sdk.identity import blocking
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import Connection, dial
from x0tta6bl4.wire.address import join_address
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId

ALPN = ("http/1.1",)
_SHOWN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""httpcore wants one to pass on to its backend; ours makes no use of it."""


class Transport(httpx.AsyncHTTPTransport):
    """HTTP/1.1 over connections to servers that are proven and authorised; never plaintext.

    Args:
        source: our identity and the bundles; the newest count at each handshake.
        authorize: who may answer; asked again at every change.  A URL says where, never who.
        require_pq: refuse a key exchange that is not post-quantum.
        id: which of our identities; see `X509Source.current`.
        hint: the same, by hint.
        limits: of the pool.
        retries: to connect.
        uds: path of a Unix socket, instead of the host in the URL.
    """

    def __init__(
        self,
        source: X509Source,
        *,
        authorize: Authorizer,
        require_pq: bool = False,
        id: str | None = None,
        hint: str | None = None,
        limits: httpx.Limits = httpx.Limits(),  # noqa: B008  # Immutable.
        retries: int = 0,
        uds: str | None = None,
    ) -> None:
        backend = _Backend(source, authorize=authorize, require_pq=require_pq, id=id, hint=hint)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_SHOWN,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            retries=retries,
            uds=uds,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Called by the client.

        Raises:
            httpx.UnsupportedProtocol: the URL is not one of https.
        """
        if request.url.scheme != "https":
            raise httpx.UnsupportedProtocol("https with identities, or nothing", request=request)
        return await super().handle_async_request(request)


def peer_id(response: httpx.Response) -> SpiffeId:
    """Who answered."""
    id: SpiffeId = response.extensions["network_stream"].get_extra_info("ssl_object").peer_id
    return id


class BlockingTransport(httpx.BaseTransport):
    """The same for `httpx.Client`, in any number of threads.

    Args:
        source: its thread does the work.
        options: as of `Transport`.
    """

    def __init__(self, source: blocking.X509Source, **options: Any) -> None:
        self._loop = source._loop
        self._real = Transport(source.real, **options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Called by the client; raises what `Transport` raises."""
        body = request.stream
        if not isinstance(body, httpx.AsyncByteStream):
            assert isinstance(body, httpx.SyncByteStream)
            body = _Upload(body)
        asked = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=body,
            extensions=request.extensions,
        )
        answer = self._loop.do(self._real.handle_async_request(asked), None)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            stream=_Download(answer.stream, self._loop),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close the connections of the pool."""
        self._loop.do(self._real.aclose())


class _Upload(httpx.AsyncByteStream):
    """A body that is made by a thread, step by step, so that the loop need not wait for it."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self._body)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part


class _Download(httpx.SyncByteStream):
    """A body that comes in the source's thread."""

    def __init__(self, body: httpx.AsyncByteStream, loop: blocking._Loop) -> None:
        self._body = body
        self._loop = loop

    def __iter__(self) -> Iterator[bytes]:
        parts = aiter(self._body)

        async def following() -> bytes | None:
            return await anext(parts, None)

        while (part := self._loop.do(following(), None)) is not None:
            yield part

    def close(self) -> None:
        self._loop.do(self._body.aclose())


class _Backend(httpcore.AsyncNetworkBackend):
    """Makes connections when TLS is asked for, and no others."""

    def __init__(self, source: X509Source, **options: Any) -> None:
        self._source = source
        self._options = options

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Place(self, join_address(host, port))

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Place(self, f"unix:{path}")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def dial(self, address: str, timeout: float | None) -> _Stream:
        """A connection to a server that is proven."""
        try:
            async with asyncio.timeout(timeout):
                made = await dial(address, self._source, alpn=ALPN, **self._options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{address} does not answer in time") from error
        except X0Error as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(made)


class _Place(httpcore.AsyncNetworkStream):
    """Where a server is; nobody has been asked yet."""

    def __init__(self, backend: _Backend, address: str) -> None:
        self._backend = backend
        self._address = address

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return await self._backend.dial(self._address, timeout)

    async def aclose(self) -> None:
        pass


class _Stream(httpcore.AsyncNetworkStream):
    """A connection of the SDK."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tls = connection.writer.get_extra_info("ssl_object")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._connection.reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("nothing came in time") from error
        except (OSError, Refused, Unavailable) as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        writer = self._connection.writer
        try:
            async with asyncio.timeout(timeout):
                writer.write(buffer)
                await writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("nothing was taken in time") from error
        except (OSError, Refused, Unavailable) as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        await self._connection.close()

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` is httpcore's question whether an idle connection is of no more use."""
        if info == "is_readable":
            reader = self._connection.reader
            ended = reader.at_eof() or reader.exception() is not None
            return ended or self._connection.retiring
        if info == "ssl_object":  # Asked for after the end, too.
            return self._tls
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._connection.writer.get_extra_info(names.get(info, info))
