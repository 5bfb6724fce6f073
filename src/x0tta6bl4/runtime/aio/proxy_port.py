"""The agent's end of the socket between agent and proxy.

After a connection the proxy says what it holds; the agent answers with one `Full` and sends
`Delta`s from then on.  When the connection breaks, the agent connects again; the proxy meanwhile
lives on what it has.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Final

from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import BadMessage, Refused, Unavailable
from x0tta6bl4.wire.messages import (
    PROXY_VERSION,
    Delta,
    Full,
    Item,
    NeedFull,
    ProxyFact,
    Ready,
    item_key,
)

GREETING_S: Final = 5.0
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024


class ProxyPort:
    """Connection to this node's proxy.

    Attributes:
        items: the snapshot as the agent wants it, under each item's key; survives reconnects.
        version: of the snapshot; never goes back, also not over an agent's restart.
    """

    def __init__(self, path: str, on_fact: Callable[[ProxyFact], None]) -> None:
        self._path = path
        self._on_fact = on_fact
        self._writer: asyncio.StreamWriter | None = None
        self.items: dict[str, Item] = {}
        self.version = 0

    async def connect(self) -> tuple[asyncio.StreamReader, codec.Reader[ProxyFact], Ready, Full]:
        """Connect and hear the greeting.

        Returns:
            The stream and its reader (for `serve`), what the proxy is, and what it holds.
        Raises:
            Unavailable: no proxy there, or it does not answer.
            BadMessage: it speaks another version.
            Refused: another user listens there.
        """
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_unix_connection(self._path, limit=1 << 20), GREETING_S
            )
        except (OSError, TimeoutError) as error:
            raise Unavailable("X0-RUN-005", f"no proxy at {self._path}: {error}") from None
        sock = writer.get_extra_info("socket")
        uid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (os.getuid(), 0):
            writer.transport.abort()
            raise Refused("X0-RUN-008", f"user {uid} listens at {self._path}",
                          "only this user's own proxy may hold its keys")
        try:
            messages = codec.proxy_reader()
            first: list[ProxyFact] = []
            async with asyncio.timeout(GREETING_S):
                while len(first) < 2:
                    data = await reader.read(1 << 20)
                    if not data:
                        raise Unavailable("X0-RUN-006", "the proxy hung up on its agent")
                    first += messages.feed(data)
        except (OSError, TimeoutError) as error:
            writer.transport.abort()
            raise Unavailable("X0-RUN-006", f"the proxy does not greet: {error}") from None
        ready, held = first[0], first[1]
        if type(ready) is not Ready or type(held) is not Full:
            writer.transport.abort()
            raise BadMessage("X0-RUN-007", "the proxy greets with something else")
        if ready.wire_version != PROXY_VERSION:
            writer.transport.abort()
            raise BadMessage("X0-RUN-007", f"the proxy speaks version {ready.wire_version}",
                             f"this agent speaks {PROXY_VERSION}: restart the node")
        for fact in first[2:]:
            self._on_fact(fact)
        self._writer = writer
        self.version = max(self.version, ready.holds)
        return reader, messages, ready, held

    def send_full(self) -> None:
        """Send the whole snapshot."""
        self.version += 1
        self._send(Full(self.version, tuple(self.items.values())))

    def order(self, puts: Iterable[Item], drops: Iterable[str]) -> None:
        """Change the snapshot and tell the proxy."""
        puts, drops = tuple(puts), tuple(drops)
        for key in drops:
            self.items.pop(key, None)
        for item in puts:
            self.items[item_key(item)] = item
        self.version += 1
        self._send(Delta(self.version - 1, self.version, puts, drops))

    async def serve(
        self, reader: asyncio.StreamReader, messages: codec.Reader[ProxyFact]
    ) -> None:
        """Hear facts until the proxy hangs up."""
        try:
            while data := await reader.read(1 << 20):
                for fact in messages.feed(data):
                    if type(fact) is NeedFull:
                        self.send_full()
                    else:
                        self._on_fact(fact)
        except OSError:
            pass
        finally:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection, if there is one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()

    def _send(self, order: Full | Delta) -> None:
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            return
        if writer.transport.get_write_buffer_size() > OUTBOX_BYTES_MAX:
            self.hang_up()
            return
        writer.write(codec.encode(order))
