"""The OCSP responder of an authority: plain HTTP, for its answers are signed.

Source: RFC 6960 appendix A.1.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from x0tta6bl4.app.settings import OcspAt
from x0tta6bl4.edge.authority_api.server import bind_tcp
from x0tta6bl4.edge.http import HttpServer, Request, Response
from x0tta6bl4.edge.tls.ocsp import REQUEST_BYTES_MAX, Responder
from x0tta6bl4.edge.tls.x509 import Issuer
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import Unavailable

KIND: Final = "application/ocsp-response"


class OcspEndpoint:
    """The responder as the settings want it; closed where they want none.

    Args:
        at: settings.
        issuers: CAs of now.
        issued: whether a certificate with this serial number is out.
        unix_us: wall time.

    Attributes:
        withdrawn: serial numbers of what is revoked; whoever knows better replaces it.
        port: TCP port, once it serves.
    """

    def __init__(
        self,
        at: OcspAt,
        issuers: Callable[[], Sequence[Issuer]],
        issued: Callable[[int], bool],
        unix_us: Callable[[], int],
    ) -> None:
        self._at = at
        self.withdrawn: frozenset[int] = frozenset()
        self.port = 0
        self._responder = Responder(issuers, lambda: self.withdrawn, issued, unix_us)
        self._server = HttpServer(self._answer, REQUEST_BYTES_MAX)

    async def start(self) -> None:
        """Serve.

        Raises:
            BadConfig, Conflict: the address can't be used.
        """
        if not self._at.listen:
            return
        sock = bind_tcp(*split_address(self._at.listen))
        self.port = sock.getsockname()[1]
        await self._server.serve(sock, None)

    async def stop(self) -> None:
        """Close it."""
        await self._server.stop()

    def statistics(self) -> dict[str, int]:
        """Plain sums."""
        return {"ocsp_answered": self._server.served}

    def _answer(self, request: Request) -> Response:
        if request.method == "POST":
            asked = request.body
        elif request.method == "GET":
            try:
                asked = b64decode(unquote_to_bytes(request.path[1:]), validate=True)
            except (ValueError, binascii.Error):
                return Response(400)
        else:
            return Response(405)
        try:
            return Response(200, KIND, self._responder.answer(asked))
        except Unavailable:  # The CA has expired.
            return Response(503)
