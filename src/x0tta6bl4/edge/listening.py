"""The end of a listening socket, for those too who have come at the last moment.

asyncio accepts in one turn of its loop and makes the transport in the next.  A server that is
closed in between loses the connection: its socket stays open, nobody reads it, nobody ends it
(`Server._attach` fails; mended in CPython 3.12.8, never in 3.11).
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

_TURN_S: Final = 1e-6
"""More than none: what waits for a timer goes on after all that was accepted before."""


class Server(Protocol):
    """One of asyncio, or of grpclib."""

    def close(self) -> object:
        """Take no more connections."""
        ...


async def stop_listening(*servers: Server) -> None:
    """Close servers; whoever was accepted has a transport then, and is its protocol's matter.

    Tasks that were made before have begun then, so that to cancel them is enough: one that is
    cancelled earlier never runs, nor does what it would have closed at its end.  Who is cancelled
    while waiting here closes them all the same.
    """
    try:
        await asyncio.sleep(_TURN_S)
    finally:
        for server in servers:
            server.close()
