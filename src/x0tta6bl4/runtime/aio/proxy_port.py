"""The agent's end of the socket between agent and proxy.

After a connection the proxy says what it holds; the agent answers with one `Full` and sends
`Delta`s from then on.  When the connection breaks, the agent connects again; the proxy meanwhile
lives on what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from x0tta6bl4.runtime.local import is_own, peer_of
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import BadMessage, Refused, Unavailable
from x0tta6bl4.wire.messages import PROXY_VERSION, AgentOrder, Full, ProxyFact, Ready

GREETING_S: Final = 5.0
OUTBOX_BYTES_MAX: Final = 64 * 1024 * 1024


class ProxyPort:
    """Connection to this node's proxy.

    Args:
        path: of the proxy's socket.
        on_fact: hears everything the proxy says, its greeting included.
    """

    def __init__(self, path: str, on_fact: Callable[[ProxyFact], None]) -> None:
        self._path = path
        self._on_fact = on_fact
        self._writer: asyncio.StreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None
        self.pid = 0

    async def run(self) -> None:
        """Connect, hear the proxy out, and return when it hangs up.

        Raises:
            Unavailable: no proxy there, or it does not greet.
            BadMessage: it speaks another version, or nonsense.
            Refused: another user listens there.
        """
        try:
            async with asyncio.timeout(GREETING_S):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
        except (OSError, TimeoutError) as error:
            raise Unavailable("X0-RUN-005", f"no proxy at {self._path}: {error}") from None
        self._transport = writer.transport
        try:
            self.pid = self._peer(writer)
            messages = codec.proxy_reader()
            await self._greeting(reader, writer, messages)
            while data := await reader.read(1 << 20):
                for fact in messages.feed(data):
                    self._on_fact(fact)
        except OSError:
            pass  # A reset is an end like any other.
        finally:
            self.hang_up()

    def _peer(self, writer: asyncio.StreamWriter) -> int:
        """Pid of the proxy, once its user is found to be ours."""
        peer = peer_of(writer.get_extra_info("socket"))
        if not is_own(peer):
            raise Refused(
                "X0-RUN-008",
                f"user {peer.uid} listens at {self._path}",
                "only this user's own proxy may hold its keys",
            )
        return peer.pid

    async def _greeting(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        messages: codec.Reader[ProxyFact],
    ) -> None:
        """Hear Ready and the snapshot, check versions, and open the way for orders."""
        first: list[ProxyFact] = []
        try:
            async with asyncio.timeout(GREETING_S):
                while len(first) < 2:
                    data = await reader.read(1 << 20)
                    if not data:
                        raise Unavailable("X0-RUN-006", "the proxy hung up on its agent")
                    first += messages.feed(data)
        except TimeoutError:
            raise Unavailable("X0-RUN-006", "the proxy does not greet") from None
        ready, held = first[0], first[1]
        if type(ready) is not Ready or type(held) is not Full:
            raise BadMessage("X0-RUN-007", "the proxy greets with something else")
        if ready.wire_version != PROXY_VERSION:
            raise BadMessage(
                "X0-RUN-007",
                f"the proxy speaks version {ready.wire_version}",
                f"this agent speaks {PROXY_VERSION}: restart the node",
            )
        self._writer = writer
        for fact in first:
            self._on_fact(fact)

    def send(self, order: AgentOrder) -> None:
        """Tell the proxy; nothing if it is not there.

        A proxy with OUTBOX_BYTES_MAX unread is hung up on: it gets everything when it is back.
        """
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            return
        if writer.transport.get_write_buffer_size() > OUTBOX_BYTES_MAX:
            self.hang_up()
            return
        writer.write(codec.encode(order))

    def hang_up(self) -> None:
        """Close the connection, if there is one; `run` returns."""
        transport, self._transport, self._writer = self._transport, None, None
        if transport is not None:
            transport.abort()
