"""What an ASGI application is told of its peer, by the servers of this package.

    scope["extensions"]["spiffe"]   peer_id, own_id, group, not_after_unix_s
    scope["extensions"]["tls"]      as the ASGI specification has it

Neither comes from a header, so no client can forge them.

Source: ASGI, "Extensions" and "TLS Extension" 0.2.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from cryptography import x509

from x0tta6bl4.sdk.identity.connections import Live
from x0tta6bl4.wire.errors import Refused
from x0tta6bl4.wire.ids import SpiffeId

EXTENSION: Final = "spiffe"
_TLS_1_3: Final = 0x0304

Scope = MutableMapping[str, Any]
Call = Callable[..., Awaitable[Any]]
App = Callable[[Scope, Call, Call], Awaitable[None]]


def peer_id(scope: Mapping[str, Any]) -> SpiffeId:
    """Who asks.

    Args:
        scope: of a request or WebSocket.
    Raises:
        Refused: nobody who has proven an identity: the server is none of this package.
    """
    try:
        id: SpiffeId = scope["extensions"][EXTENSION]["peer_id"]
    except KeyError:
        raise Refused(
            "X0-SDK-051", "the request has no proven peer", "serve it by sdk.frameworks"
        ) from None
    return id


def introduce(app: App, peer: Live) -> App:
    """The application as one connection sees it: told who is at its other end."""
    extensions = {EXTENSION: about(peer), "tls": _tls(peer)}

    async def told(scope: Scope, receive: Call, send: Call) -> None:
        scope["extensions"] = {**(scope.get("extensions") or {}), **extensions}
        await app(scope, receive, send)

    return told


def about(peer: Live) -> dict[str, Any]:
    """Content of `scope["extensions"]["spiffe"]`."""
    return {
        "peer_id": peer.peer_id,
        "own_id": peer.own_id,
        "group": peer.group,
        "not_after_unix_s": peer.not_after_unix_s,
    }


def _tls(peer: Live) -> dict[str, Any]:
    leaf = x509.load_der_x509_certificate(peer.peer_chain[0])
    return {
        "server_cert": None,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der) for der in peer.peer_chain],
        "client_cert_name": leaf.subject.rfc4514_string() or None,
        "client_cert_error": None,
        "tls_version": _TLS_1_3,
        "cipher_suite": None,
    }
