"""The attacker over sockets: shows what it has to whoever it meets, and tells what it heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.edge.attack.attacker import Attacker
from x0tta6bl4.edge.listening import stop_listening

PATIENCE_S = 5.0
GREETINGS = {
    b"h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    b"": b"GET / HTTP/1.1\r\nhost: web\r\n\r\n",
}


async def _pump(
    attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greet: bool
) -> bytes:
    """Go on until the first byte of an application, or the end."""
    buffer, heard, greeted, data = bytearray(1 << 17), b"", not greet, b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                attacker.feed(data)
                if attacker.shake():
                    if not greeted:
                        greeted = True
                        chosen = attacker.connection.get_alpn_proto_negotiated()
                        attacker.write(GREETINGS.get(chosen, GREETINGS[b""]))
                    heard += attacker.read()
                while n := attacker.take(buffer):
                    writer.write(buffer[:n])
                if attacker.dead or heard:
                    break
                await writer.drain()
                data = await reader.read(1 << 16)
                if not data:
                    break
    except OSError:
        pass
    return heard


async def as_client(port: int, attacker: Attacker) -> bytes:
    """Attack a server; what of the application was heard.

    Raises:
        TimeoutError: it neither answered nor refused.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await _pump(attacker, reader, writer, True)
    finally:
        writer.transport.abort()


class Trap:
    """A server that waits for victims.

    Attributes:
        port: where.
        heard: what victims have said.
        sprung: set at their first byte.
    """

    def __init__(self, make: Callable[[], Attacker]) -> None:
        self._make = make
        self._closed = False
        self._tasks: set[asyncio.Task[bytes]] = set()
        self.port = 0
        self.heard = b""
        self.sprung = asyncio.Event()

    def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a victim; whoever comes after the end is left at once."""
        if self._closed:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(_pump(self._make(), reader, writer, False))
        self._tasks.add(task)

        def over(task: asyncio.Task[bytes]) -> None:
            self._tasks.discard(task)
            writer.transport.abort()
            if not task.cancelled() and task.exception() is None and task.result():
                self.heard += task.result()
                self.sprung.set()

        task.add_done_callback(over)

    async def close(self) -> None:
        """Leave whoever is still there."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def trap(make: Callable[[], Attacker]) -> AsyncIterator[Trap]:
    """One that is there for as long as the context."""
    made = Trap(make)
    server = await asyncio.start_server(made.meet, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        await stop_listening(server)
        await made.close()
