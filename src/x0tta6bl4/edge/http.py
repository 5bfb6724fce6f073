"""One request, one answer, on h11: for the few things that have to speak HTTP to strangers.

Every connection is bounded in time and bytes, carries one exchange and is closed after it.

Source: RFC 9112; what a request may be is h11's business.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, final
from urllib.parse import urlsplit

import h11

from x0tta6bl4.core.machine import Value
from x0tta6bl4.wire.errors import Unavailable

CONNECTIONS_MAX: Final = 256
REQUEST_S: Final = 10.0
"""From the handshake to the last byte of the answer."""
HEAD_BYTES_MAX: Final = 8 * 1024
ACCEPT_AGAIN_S: Final = 0.1
"""Pause of a listener that got an error instead of a connection."""


@final
class Request(Value, frozen=True):
    """What was asked."""

    method: str
    path: str
    """Without its query."""
    body: bytes


@final
class Response(Value, frozen=True):
    """What is answered; the body of an answer to HEAD is left out by the server."""

    status: int
    kind: str = "text/plain"
    body: bytes = b""


async def post(url: str, kind: str, body: bytes, answer_bytes_max: int) -> bytes:
    """The body of the answer to one POST over plain HTTP.

    Args:
        url: `http://host[:port]/path`.
        kind: content type of the body.
        body: what is sent.
        answer_bytes_max: of the answer; one more is an error.
    Raises:
        Unavailable: no such answer within REQUEST_S.
    """
    try:
        at = urlsplit(url)
        host, port = at.hostname or "", at.port or 80
        if at.scheme != "http" or not host:
            raise Unavailable("X0-NET-020", f"{url} is no http address")
        async with asyncio.timeout(REQUEST_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                head = [
                    ("host", at.netloc.rpartition("@")[2]),
                    ("content-type", kind),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ]
                connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
                asked = h11.Request(method="POST", target=at.path or "/", headers=head)
                out = (connection.send(asked) or b"") + (connection.send(h11.Data(body)) or b"")
                writer.write(out + (connection.send(h11.EndOfMessage()) or b""))
                return await _answer_of(reader, connection, answer_bytes_max)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ValueError, h11.ProtocolError) as error:
        raise Unavailable("X0-NET-021", f"no answer from {url}: {error!r}") from None


async def _answer_of(
    reader: asyncio.StreamReader, connection: h11.Connection, bytes_max: int
) -> bytes:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(HEAD_BYTES_MAX))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise ValueError(f"status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > bytes_max:
                raise ValueError("too large")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif not isinstance(event, h11.Response | h11.InformationalResponse):
            raise ValueError("cut off")


class HttpServer:
    """Serves one thing.

    Args:
        answer: decides at once.
        body_bytes_max: of a request; one more is 413.
    """

    def __init__(self, answer: Callable[[Request], Response], body_bytes_max: int = 0) -> None:
        self._answer = answer
        self._body_max = body_bytes_max
        self._open: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self.served = 0
        """Requests answered with 200."""
        self.refused = 0
        """All others, and connections on which there was none."""

    async def serve(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections on a bound socket, which is closed with this server."""
        sock.setblocking(False)
        sock.listen(CONNECTIONS_MAX)
        self._accepting = asyncio.create_task(self._accept(sock, tls))

    async def stop(self) -> None:
        """Close it and every connection."""
        ending = [*self._open, *([self._accepting] if self._accepting is not None else ())]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _accept(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        # A server of asyncio would tell of a connection only after its handshake: too late to
        # count it.
        loop = asyncio.get_running_loop()
        with sock:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(sock)
                except OSError:  # The caller has left already, or no descriptor is free.
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                if len(self._open) >= CONNECTIONS_MAX:
                    self.refused += 1
                    accepted.close()
                    continue
                task = loop.create_task(self._converse(accepted, tls))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def _converse(self, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(HEAD_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(REQUEST_S):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, accepted, ssl=tls
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._exchange(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            self.refused += 1
        finally:
            if transport is not None:
                transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        asked: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(HEAD_BYTES_MAX))
            elif isinstance(event, h11.Request):
                asked = event
            elif isinstance(event, h11.Data) and len(body) <= self._body_max:
                body += event.data
            elif isinstance(event, h11.EndOfMessage) or len(body) > self._body_max:
                break
            else:
                raise h11.RemoteProtocolError("no request")
        assert asked is not None
        path = asked.target.partition(b"?")[0].decode("ascii", "replace")
        request = Request(asked.method.decode("ascii", "replace"), path, bytes(body))
        answer = Response(413) if len(body) > self._body_max else self._answer(request)
        head = [
            ("content-type", answer.kind),
            ("content-length", str(len(answer.body))),
            ("connection", "close"),
        ]
        out = connection.send(h11.Response(status_code=answer.status, headers=head)) or b""
        if request.method != "HEAD":
            out += connection.send(h11.Data(data=answer.body)) or b""
        writer.write(out + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        if answer.status == 200:
            self.served += 1
        else:
            self.refused += 1
