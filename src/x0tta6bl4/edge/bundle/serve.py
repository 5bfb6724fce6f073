"""The bundle endpoint: anybody may GET the bundle of this trust domain over TLS.

TLS as in Mozilla's intermediate profile (1.2 and 1.3), here and nowhere else, for others have to
be able to reach it; no client is asked for a certificate (SP-134).  With `https_web` the
certificate is one of the web's, with `https_spiffe` the authority's own X.509-SVID.

Source: SPIFFE_Federation.md section 5 (SP-130 to SP-137).
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.x509 import load_der_x509_certificate

from x0tta6bl4.edge.http import HttpServer, Request, Response
from x0tta6bl4.wire.errors import BadConfig

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
        self._server = HttpServer(self._answer)
        self._tls = _intermediate()

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
        await self._server.serve(sock, self._tls)

    async def stop(self) -> None:
        """Close it and every connection."""
        await self._server.stop()

    @property
    def counts(self) -> dict[str, int]:
        """Plain sums."""
        return {
            "bundles_served": self._server.served,
            "bundle_requests_refused": self._server.refused,
        }

    def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405)
        if request.path != "/":
            return Response(404)
        return Response(200, "application/json", self._document())


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
