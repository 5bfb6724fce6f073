"""A workload in a test: its source, a listener, what it says to whoever comes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes.ca import FakeClock
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.sdk.identity import Connection, Listener, X509Source, anyone, listen
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused

WEB = "spiffe://example.org/web"


async def echo(connection: Connection) -> None:
    """Say who came, then repeat lines."""
    connection.writer.write(connection.peer_id.encode() + b"\n")
    async for line in connection.reader:
        connection.writer.write(line)


async def hold(connection: Connection) -> None:
    """Wait until it ends."""
    connection.writer.write(b"!")
    with contextlib.suppress(Refused):
        await connection.reader.read()


@asynccontextmanager
async def source_of(api: WorkloadApi, clock: FakeClock | None = None) -> AsyncIterator[X509Source]:
    client = WorkloadClient(api.endpoint, clock=clock or unix_us)
    async with client, X509Source(client) as source:
        await source.wait(5)
        yield source


@asynccontextmanager
async def listening(
    source: X509Source, handler: Any = echo, authorize: Any = anyone, **options: Any
) -> AsyncIterator[Listener]:
    made = await listen("127.0.0.1:0", source, handler, authorize=authorize, **options)
    async with made as listener:
        yield listener


def to(listener: Listener) -> str:
    return f"127.0.0.1:{listener.port}"
