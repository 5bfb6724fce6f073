"""The bundle endpoint: anybody may GET the bundle of this trust domain over TLS.

TLS as in Mozilla's intermediate profile (1.2 and 1.3), here and nowhere else, for others have to
be able to reach it; no client is asked for a certificate (SP-134).  With `https_web` the
certificate is one of the web's, with `https_spiffe` the authority's own X.509-SVID.

Source: SPIFFE_Federation.md section 5 (SP-130 to SP-137).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import h11
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_der_x509_certificate

from x0tta6bl4.wire.errors import BadConfig

CONNECTIONS_MAX: Final = 256
REQUEST_S: Final = 10.0
"""From the handshake to the last byte of the answer."""
HEAD_BYTES_MAX: Final = 8 * 1024
_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)


class BundleEndpoint:
    """Serves one document.

    Args:
        document: the newest bundle, JSON; asked for each request (SP-135).
    """

    def __init__(self, document: Callable[[], bytes]) -> None:
        self._document = document
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._tls = _intermediate()
        self.counts = {"bundles_served": 0, "bundle_requests_refused": 0}

    def present_svid(self, chain: Sequence[bytes], key: bytes) -> None:
        """Serve as the holder of this X.509-SVID from the next connection on (`https_spiffe`).

        The key goes to OpenSSL through memory that has no name in any file system.

        Args:
            chain: DER, leaf first.
            key: PKCS#8 DER.
        """
        private = serialization.load_der_private_key(key, None)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for der in chain:
            pem += load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
        with _unnamed(pem) as path:
            self._tls.load_cert_chain(path)

    def present_files(self, certificate: str, key: str) -> None:
        """Serve with a certificate of the web, from the next connection on (`https_web`).

        Raises:
            BadConfig: X0-FED-020 they can't be read, or don't fit.
        """
        try:
            self._tls.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise BadConfig(
                "X0-FED-020",
                f"the certificate of the bundle endpoint can't be used: {error}",
                "bundle_endpoint.certificate is a PEM chain, leaf first; .key its key",
            ) from None

    async def serve(self, sock: socket.socket) -> None:
        """Take connections on a bound socket; a certificate is presented already."""
        self._server = await asyncio.start_server(
            self._accept,
            sock=sock,
            ssl=self._tls,
            ssl_handshake_timeout=REQUEST_S,
            limit=HEAD_BYTES_MAX,
        )

    async def stop(self) -> None:
        """Close it and every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            self.counts["bundle_requests_refused"] += 1
            writer.transport.abort()
            return
        task = asyncio.create_task(self._answer(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                await self._exchange(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            self.counts["bundle_requests_refused"] += 1
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(HEAD_BYTES_MAX))
        if not isinstance(event, h11.Request):
            return
        wrong = 0
        if event.method not in (b"GET", b"HEAD"):
            wrong = 405
        elif event.target.partition(b"?")[0] != b"/":
            wrong = 404
        body = b"" if wrong else self._document()
        head = [
            ("content-type", "application/json" if not wrong else "text/plain"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        out = connection.send(h11.Response(status_code=wrong or 200, headers=head)) or b""
        if event.method != b"HEAD":
            out += connection.send(h11.Data(data=body)) or b""
        writer.write(out + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        self.counts["bundle_requests_refused" if wrong else "bundles_served"] += 1


def _intermediate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


@contextlib.contextmanager
def _unnamed(data: bytes) -> Iterator[str]:
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
