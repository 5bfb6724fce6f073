"""Fetching the bundle of a foreign trust domain from its endpoint.

One poll is one GET, with redirects followed and not remembered (SP-138): each target is again an
https URL without userinfo, under the same TLS checks.  With `https_web` those are the web's, names
as in RFC 6125 (SP-136); with `https_spiffe` the server shows the X.509-SVID of the one ID that was
configured, judged by the newest bundle of that ID's trust domain (SP-137).

Source: SPIFFE_Federation.md sections 5.2.1 and 5.2.2.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import urljoin

import h11

from x0tta6bl4 import __version__
from x0tta6bl4.core.authority.federating import endpoint_of
from x0tta6bl4.core.identity.rules import SPIFFE, Expect
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import TlsRefused
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.wire.authority import DOCUMENT_BYTES_MAX
from x0tta6bl4.wire.errors import BadInput, Unavailable
from x0tta6bl4.wire.ids import SpiffeId, domain_of

DEADLINE_S: Final = 20.0
"""For one poll, redirects included."""
REDIRECTS_MAX: Final = 5
_CHUNK: Final = 64 * 1024
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def web_tls(roots: str = "") -> ssl.SSLContext:
    """TLS for `https_web`: the server's name against its certificate, no certificate of our own.

    Args:
        roots: PEM file of CA certificates to trust instead of the system's; empty: those.
    Raises:
        BadInput: X0-FED-021 the file can't be read.
    """
    try:
        context = ssl.create_default_context(cafile=roots or None)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(
            "X0-FED-021", f"{roots} can't be used: {error}", "federation.roots is a PEM file"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def spiffe_tls(
    endpoint: SpiffeId, anchors: tuple[bytes, ...], unix_us: Callable[[], int]
) -> ssl.SSLContext:
    """TLS for `https_spiffe`: exactly this peer, and no certificate of our own.

    Args:
        endpoint: as configured.
        anchors: CA certificates of its trust domain, DER, of the newest bundle.
        unix_us: wall time.
    """
    judge = Judge(domain_of(endpoint), anchors, allow_all, unix_us, SPIFFE)
    expect = Expect(id=endpoint)
    return SslContext(TlsContext(None, judge, ("http/1.1",), expect, demand_alpn=False))


async def fetch(url: str, tls: ssl.SSLContext) -> bytes:
    """The bundle at an endpoint; nothing in it is judged here.

    Raises:
        Unavailable: X0-FED-010 no answer in time, X0-FED-011 TLS refused, X0-FED-012 another
            answer than a document.
        BadInput: X0-FED-001 a redirect to what is no endpoint.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(REDIRECTS_MAX + 1):
                status, location, body = await _get(url, tls)
                if status == 200:
                    return body
                if status not in _REDIRECTS or not location:
                    raise Unavailable("X0-FED-012", f"{url} answers {status}", "ask its operator")
                url = urljoin(url, location)
    except TimeoutError:
        raise Unavailable("X0-FED-010", f"{url} does not answer", "is it reachable?") from None
    except (TlsRefused, ssl.SSLError) as error:
        reason = error.reason if isinstance(error, TlsRefused) else str(error.reason or error)
        raise Unavailable("X0-FED-011", f"TLS with {url} refused: {reason}") from None
    except (OSError, EOFError) as error:
        raise Unavailable("X0-FED-010", f"no connection to {url}: {error}") from None
    except ValueError as error:  # A host name or a redirect that is none.
        raise Unavailable("X0-FED-012", f"{url} leads nowhere: {error}", "correct it") from None
    except h11.RemoteProtocolError as error:
        raise Unavailable("X0-FED-012", f"{url} does not speak HTTP: {error}") from None
    raise Unavailable("X0-FED-012", f"more than {REDIRECTS_MAX} redirects, the last to {url}")


async def _get(url: str, tls: ssl.SSLContext) -> tuple[int, str, bytes]:
    host, port, target = endpoint_of(url)
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=host)
    try:
        connection = h11.Connection(h11.CLIENT)
        named = f"[{host}]" if ":" in host else host
        request = h11.Request(
            method="GET",
            target=target,
            headers=[
                ("host", named if port == 443 else f"{named}:{port}"),
                ("accept", "application/json"),
                ("user-agent", f"x0tta6bl4/{__version__}"),
                ("connection", "close"),
            ],
        )
        writer.write(connection.send(request) or b"")
        await writer.drain()
        return await _response(reader, connection)
    finally:
        writer.transport.abort()  # A farewell would have to be waited for.


async def _response(
    reader: asyncio.StreamReader, connection: h11.Connection
) -> tuple[int, str, bytes]:
    status, location, body = 0, "", bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            found = [value for name, value in event.headers if name == b"location"]
            location = found[0].decode("latin-1") if found else ""
            if status != 200:
                return status, location, b""
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > DOCUMENT_BYTES_MAX:
                raise Unavailable("X0-FED-012", "the bundle is too large", "at most 512 KiB")
        elif isinstance(event, h11.EndOfMessage):
            return status, location, bytes(body)
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise EOFError("closed before the end")
