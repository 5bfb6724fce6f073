"""Length-prefixed msgpack frames for link connections and the agent-proxy socket.

    frame = length u32 little-endian | msgpack

Nothing is decoded before it is complete, and nothing longer than the stated maximum is awaited.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any, Final, Generic, TypeVar

import msgspec

from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.messages import AgentOrder, LinkMessage, ProxyFact

LINK_FRAME_BYTES_MAX: Final = 2 * 1024 * 1024
LOCAL_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")

M = TypeVar("M")


def encode(message: Any) -> bytes:
    """One frame, ready to be written."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


class Reader(Generic[M]):
    """Turns bytes from a stream into messages of one union.

    Args:
        kind: the union to decode; anything else raises.
        bytes_max: longest frame accepted; also bounds what is buffered.
    """

    __slots__ = ("_buffer", "_decoder", "_max")

    def __init__(self, kind: Any, bytes_max: int) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()
        self._max = bytes_max

    def feed(self, data: bytes | bytearray | memoryview) -> Generator[M, None, None]:
        """Take bytes in and yield the messages they complete.

        Raises:
            BadMessage: too long, or not a message; the connection is to be closed.
        """
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= 4:
                (length,) = _LENGTH.unpack_from(buffer, at)
                if length > self._max:
                    raise BadMessage(
                        "X0-MSG-001", f"frame of {length} bytes", f"at most {self._max}"
                    )
                if len(buffer) - at - 4 < length:
                    return
                body = bytes(memoryview(buffer)[at + 4 : at + 4 + length])
                at += 4 + length
                try:
                    yield self._decoder.decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise BadMessage("X0-MSG-002", f"not a message: {error}") from None
        finally:
            del buffer[:at]


def link_reader() -> Reader[LinkMessage]:
    """Reader of what a neighbour's agent sends."""
    return Reader(LinkMessage, LINK_FRAME_BYTES_MAX)


def proxy_reader() -> Reader[ProxyFact]:
    """Reader, in the agent, of what the proxy sends."""
    return Reader(ProxyFact, LOCAL_FRAME_BYTES_MAX)


def agent_reader() -> Reader[AgentOrder]:
    """Reader, in the proxy, of what the agent sends."""
    return Reader(AgentOrder, LOCAL_FRAME_BYTES_MAX)


_ENCODER = msgspec.msgpack.Encoder()
