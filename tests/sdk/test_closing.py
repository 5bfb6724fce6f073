"""What is closed is closed at once, whoever is cancelled meanwhile: no socket is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from tests.fakes.workload import hold, listening, source_of, to
from x0tta6bl4.core.machine import Allowed, Verdict
from x0tta6bl4.sdk.frameworks.relay import Outbound
from x0tta6bl4.sdk.identity import Connection, Listener, anyone, dial, ssl_context
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused
from x0tta6bl4.wire.ids import SpiffeId

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
SOON_S = 0.5
"""Less than an event loop waits for the end of a TLS connection that was closed."""


async def _deaf(connection: Connection) -> None:
    """Say that the client is taken, then answer nothing, a close neither."""
    connection.writer.write(b"!")
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def _never(connection: Connection) -> None:
    raise AssertionError("the listener is closed")


async def _ended(reader: asyncio.StreamReader) -> None:
    """Wait for the end, which has to come soon."""
    async with asyncio.timeout(SOON_S):
        with contextlib.suppress(OSError, Refused):
            await reader.read()


def test_a_close_that_is_cancelled_does_not_wait_for_the_peer(
    served: WorkloadApi, run: Run
) -> None:
    async def story() -> None:
        async with source_of(served) as source, listening(source, _deaf) as listener:
            connection = await dial(to(listener), source, authorize=anyone, first_byte=True)
            closing = asyncio.create_task(connection.close())
            await asyncio.sleep(0.05)
            assert not closing.done()  # It waits for the other's word.
            closing.cancel()
            await asyncio.wait({closing})
            await _ended(connection.reader)

    run(story)


def test_a_listener_that_closes_ends_whom_it_has_not_begun_to_serve(
    served: WorkloadApi, run: Run
) -> None:
    listeners: list[Listener] = []
    closing: list[asyncio.Task[None]] = []

    def authorize(id: SpiffeId) -> Verdict:
        """Close: after the handshake, before the task of the handler has begun."""
        if not closing:
            closing.append(asyncio.get_running_loop().create_task(listeners[0].close()))
        return Allowed(id)

    async def story() -> None:
        closing.clear()
        async with source_of(served) as source, listening(source, hold, authorize) as listener:
            listeners[:] = [listener]
            connection = await dial(to(listener), source, authorize=anyone)
            await _ended(connection.reader)
            connection.end("the test is over")
            assert closing
            assert len(source.connections) == 0

    run(story)


def test_whose_handshake_ends_after_the_listener_did_is_sent_away(
    served: WorkloadApi, run: Run
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source, _never) as listener:
                sock = socket.create_connection(("127.0.0.1", listener.port))
                await asyncio.sleep(0.05)  # It is taken, and has said nothing yet.
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=ssl_context(source, authorize=anyone), server_hostname=""
            )
            await _ended(reader)
            writer.transport.abort()

    run(story)


def test_a_relay_that_closes_ends_whom_it_has_just_taken(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        async with source_of(served) as source, listening(source, hold) as listener:
            for turns in range(12):
                async with Outbound(to(listener), source, authorize=anyone) as relay:
                    reader, writer = await asyncio.open_unix_connection(relay.path)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                try:
                    await _ended(reader)
                finally:
                    writer.transport.abort()

    run(story)
