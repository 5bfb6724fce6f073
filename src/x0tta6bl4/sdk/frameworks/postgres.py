"""What stands before PostgreSQL, for psycopg, asyncpg and whoever speaks TLS from the first byte.

PostgreSQL's own TLS takes every certificate of its CAs, knows no SPIFFE ID, lets connections
outlive their certificates, and has to be told of each rotation.  So it listens on a Unix socket
only, and the front keeps what `listen` keeps.  A peer may start a session as those database users
that its SPIFFE ID is given, and as nobody else.

Source: PostgreSQL 17, "Frontend/Backend Protocol", sections 53.2.1 (StartupMessage), 53.2.8
(CancelRequest), 53.2.10 and 53.2.11 (encryption requests), 53.8 (error fields).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection
from typing import Any, Final

from x0tta6bl4.sdk.frameworks.relay import Inbound
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.source import X509Source
from x0tta6bl4.sdk.identity.tls import Connection
from x0tta6bl4.wire.errors import Refused
from x0tta6bl4.wire.ids import SpiffeId

ALPN: Final = ("postgresql",)
"""As of PostgreSQL's own direct TLS."""
STARTUP_BYTES_MAX: Final = 10_000
"""As in the server."""
_PROTOCOL: Final = 3
_CANCEL: Final = 80_877_102
_ENCRYPTION: Final = (80_877_103, 80_877_104)
_REQUESTS_MAX: Final = 4
"""Requests for another encryption, each of which is answered with no."""

Users = Callable[[SpiffeId], Collection[str]]


def front(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    server: str,
    users: Users,
    **more: Any,
) -> Inbound:
    """What stands before a PostgreSQL that listens on a Unix socket; use it as a context.

    Args:
        address: to listen on, as for `listen`.
        source: our identity.
        authorize: who may come.
        server: path of the server's socket, e.g. `/run/postgresql/.s.PGSQL.5432`; it has to let
            this process in as each of the users.
        users: the database users that a peer may start a session as.
        more: require_pq, id, hint, backlog of `listen`.
    """

    async def greet(
        connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        code, packet = await _startup(connection)
        if code != _CANCEL:  # That one carries a secret of the session it is for.
            user = _user(packet)
            if user not in users(connection.peer_id):
                reason = f"{connection.peer_id} may not be user {user!r}"
                connection.writer.write(error(reason, "28000"))
                raise Refused("X0-SDK-073", reason)
        writer.write(packet)

    return Inbound(
        address, source, authorize=authorize, server=server, alpn=ALPN, greeting=greet, **more
    )


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first packet of a connection: its code, and all of it.

    Raises:
        Refused: it is none.
        EOFError: the client left.
    """
    head = await reader.readexactly(8)
    size, code = struct.unpack("!II", head)
    if not 8 <= size <= STARTUP_BYTES_MAX:
        raise Refused("X0-SDK-074", "not a startup packet of PostgreSQL")
    return code, head + await reader.readexactly(size - 8)


async def _startup(connection: Connection) -> tuple[int, bytes]:
    for _ in range(_REQUESTS_MAX):
        code, packet = await read_packet(connection.reader)
        if code == _CANCEL or code >> 16 == _PROTOCOL:
            return code, packet
        if code not in _ENCRYPTION:
            break
        connection.writer.write(b"N")
    raise Refused("X0-SDK-074", "not a startup packet of PostgreSQL")


def _user(packet: bytes) -> str:
    """Whom the session is asked for; the last one counts, as in the server."""
    words = packet[8:].split(b"\0")
    found = ""
    for name, value in zip(words[::2], words[1::2], strict=False):
        if not name:
            break
        if name == b"user":
            found = value.decode(errors="replace")
    return found


def error(reason: str, state: str) -> bytes:
    """The server's message of a session that does not begin."""
    fields = {b"S": "FATAL", b"V": "FATAL", b"C": state, b"M": reason.replace("\0", " ")}
    body = b"".join(name + text.encode() + b"\0" for name, text in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body
