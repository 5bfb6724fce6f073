"""One frame between those of others: a GOAWAY on the way from an HTTP/2 server to its client.

A client that gets a GOAWAY with the highest stream number and no error finishes what it has begun
and opens another connection for the rest.  So who relays a connection can let it move without
taking part in it: all he has to know is where frames end, and that nothing may stand between the
frames of one header block.

Source: RFC 9113 sections 3.4, 4.1, 4.3, 6.8; RFC 7541 section 6.2.2; gRPC over HTTP/2,
"Responses".
"""

from __future__ import annotations

import asyncio
from typing import Final, final

_HEAD_BYTES: Final = 9
_HEADERS: Final = 1
_SETTINGS: Final = 4
_PUSH_PROMISE: Final = 5
_GOAWAY: Final = 7
_CONTINUATION: Final = 9
_END_HEADERS: Final = 4
_LAST_STREAM: Final = 0x7FFFFFFF
_NO_ERROR: Final = 0
_END_STREAM: Final = 1
_ACK: Final = 1
_PREFACE_BYTES: Final = 24
_STATUS_200: Final = b"\x88"
"""RFC 7541 appendix A, index 8."""
_UNAUTHENTICATED: Final = b"16"
_REASON_CHARS_MAX: Final = 120
"""Its length then takes one byte (RFC 7541 section 5.1)."""


def _frame(kind: int, payload: bytes, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def goaway(last_stream: int, code: int, reason: str = "") -> bytes:
    """The frame."""
    text = reason.encode()[:_REASON_CHARS_MAX]
    return _frame(_GOAWAY, last_stream.to_bytes(4) + code.to_bytes(4) + text)


async def refuse_call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reason: str
) -> None:
    """Be a gRPC server that fails the first call as unauthenticated, with this reason.

    Raises:
        OSError, EOFError: the client left.
    """
    writer.write(_frame(_SETTINGS, b""))
    await reader.readexactly(_PREFACE_BYTES)
    while True:
        head = await reader.readexactly(_HEAD_BYTES)
        await reader.readexactly(int.from_bytes(head[:3]))
        if head[3] == _SETTINGS and not head[4] & _ACK:
            writer.write(_frame(_SETTINGS, b"", _ACK))
        if head[3] == _HEADERS:
            stream = int.from_bytes(head[5:])
            writer.write(_frame(_HEADERS, _failure(reason), _END_STREAM | _END_HEADERS, stream))
            writer.write(goaway(stream, _NO_ERROR, reason))
            return


def _failure(reason: str) -> bytes:
    """Header block of a call that failed: literals, so that it depends on nothing before it."""
    text = "".join(one if one.isascii() and one.isprintable() else "?" for one in reason)
    fields = {
        b"content-type": b"application/grpc",
        b"grpc-status": _UNAUTHENTICATED,
        b"grpc-message": text.replace("%", "%25")[:_REASON_CHARS_MAX].encode(),
    }
    return _STATUS_200 + b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )


@final
class Frames:
    """What a server sends, with a GOAWAY put in where it may stand."""

    __slots__ = ("_asked", "_block", "_first", "_head", "_left", "_said")

    def __init__(self) -> None:
        self._head = b""  # Of the frame that begins, up to 9 bytes.
        self._left = 0  # Bytes of the payload that are still to come.
        self._block = False  # Within a header block.
        self._first = True  # Settings come before anything else.
        self._asked = False
        self._said = False

    def feed(self, data: bytes) -> bytes:
        """What to pass on instead of `data`."""
        at, size = 0, len(data)
        while at < size:
            if self._asked and not self._said and self._between():
                self._said = True
                data = data[:at] + _MOVE + data[at:]
                at, size = at + len(_MOVE), size + len(_MOVE)
            if not self._left or self._head:
                at = self._begin(data, at)
            taken = min(self._left, size - at)
            self._left -= taken
            at += taken
        return data

    def _begin(self, data: bytes, at: int) -> int:
        """Read the head of a frame, or a part of it; returns where its payload begins."""
        missing = _HEAD_BYTES - len(self._head)
        self._head += data[at : at + missing]
        if len(self._head) == _HEAD_BYTES:
            self._left = int.from_bytes(self._head[:3])
            if self._head[3] in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
                self._block = not self._head[4] & _END_HEADERS
            self._head = b""
            self._first = False
        return min(at + missing, len(data))

    def _between(self) -> bool:
        return not (self._left or self._head or self._block or self._first)

    def move(self) -> bytes:
        """What to send now so that the client moves; nothing: it goes with the next frames."""
        self._asked = True
        if self._said or not self._between():
            return b""
        self._said = True
        return _MOVE


_MOVE: Final = goaway(_LAST_STREAM, _NO_ERROR)
