"""Starlette and what is built on it: the peer as `request.user`, authorisers as scopes.

    Middleware(AuthenticationMiddleware, backend=Peers(admin=exact("spiffe://...")))

    @requires("admin")
    async def restart(request): ...        # request.user.identity is a proven SPIFFE ID

For applications that are served by `sdk.frameworks.uvicorn` or `.hypercorn`; served by another one
they refuse every request.

Source: Starlette, "Authentication".
"""

from __future__ import annotations

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.requests import HTTPConnection

from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.sdk.frameworks.asgi import peer_id
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.wire.errors import Refused

AUTHENTICATED = "authenticated"
"""A scope that every peer has."""


class Peers(AuthenticationBackend):
    """Backend of Starlette's `AuthenticationMiddleware`.

    Args:
        scopes: name of a scope -> who has it.
    """

    def __init__(self, **scopes: Authorizer) -> None:
        self._scopes = scopes

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser]:
        """Called for each request and WebSocket.

        Raises:
            AuthenticationError: the server has proven nobody; the answer is 400.
        """
        try:
            id = peer_id(conn.scope)
        except Refused as error:
            raise AuthenticationError(str(error)) from None
        held = [name for name, authorize in self._scopes.items() if type(authorize(id)) is Allowed]
        return AuthCredentials([AUTHENTICATED, *held]), SimpleUser(id)
