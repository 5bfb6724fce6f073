"""A client of the Workload API that adds nothing of its own: for tests of the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.encoding.base import CodecBase

from x0tta6bl4.edge.workload_api import schema

METADATA = (("workload.spiffe.io", "true"),)


class Codec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
        return data

    def decode(self, data: bytes, message_type: Any) -> Any:
        return message_type.FromString(data)


class WorkloadClient:
    """One connection to a socket.

    Args:
        path: of the socket.
        metadata: sent with every call.
    """

    def __init__(self, path: Path | str, metadata: Any = METADATA) -> None:
        self.channel = Channel(path=str(path), codec=Codec())
        self._metadata = metadata

    async def __aenter__(self) -> WorkloadClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.channel.close()

    async def call(self, method: str, request: Any = None) -> Any:
        """One unary call."""
        kind, response, _ = schema.METHODS[method]
        ask = UnaryUnaryMethod(self.channel, schema.path(method), kind, response)
        request = kind() if request is None else request
        return await ask(request, metadata=self._metadata, timeout=30)

    @contextlib.asynccontextmanager
    async def stream(self, method: str, request: Any = None) -> AsyncIterator[Any]:
        """One open stream; `recv_message` is bounded by the test's own timeout."""
        kind, response, _ = schema.METHODS[method]
        ask = UnaryStreamMethod(self.channel, schema.path(method), kind, response)
        async with ask.open(metadata=self._metadata) as stream:
            await stream.send_message(kind() if request is None else request, end=True)
            try:
                yield stream
            finally:
                with contextlib.suppress(Exception):
                    await stream.cancel()

    async def first(self, method: str, request: Any = None) -> Any:
        """The first message of a stream."""
        async with self.stream(method, request) as stream, asyncio.timeout(30):
            message = await stream.recv_message()
            return await end_of(stream) if message is None else message


async def end_of(stream: Any) -> None:
    """Wait for the end of a stream.

    Raises:
        GRPCError: as it was ended.
        AssertionError: it was not: another message has come.
    """
    assert await stream.recv_message() is None
    await stream.recv_trailing_metadata()
