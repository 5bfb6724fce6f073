"""The pipe of one circuit: parser state and control frames; it dies with the circuit.

See `core.session.pipe` for how the two are driven and for the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.frames import (
    ACK,
    DATA,
    GONE,
    HEADER,
    HEADER_BYTES,
    LAST_NUMBERED,
    OPEN,
    OPEN_BYTES_MAX,
    PING,
    PONG,
    SEEK,
    VALUE_MAX,
    ProtocolError,
)
from x0tta6bl4.core.session.pipe import UNREAD_MAX, Pipe, SessionBroken
from x0tta6bl4.core.session.stream import Stream

ACK_EVERY: Final = 256 * 1024
"""Received bytes after which an ACK goes out by itself."""
CONTROL_BYTES_MAX: Final = 64 * 1024
"""Control frames that may wait at one circuit (PONGs for a peer that pings and never reads)."""

_unpack = HEADER.unpack_from
_pack_into = HEADER.pack_into


class Circuit:
    """What a session keeps for one circuit.

    Args:
        number: the driver's and the machine's name of this circuit.
        heard: called with (circuit, kind, value, body) for NEW, JOIN, JOINED, PONG, MOVE, GONE.

    Attributes:
        pipe: the session, None until NEW or JOIN.
        offset: offset of the next numbered byte from the other end; -1 until joined.
        position: offset behind the last chunk that was taken by this circuit.
        told: how far we have acknowledged on this circuit.
        progress: times that an ACK on this circuit confirmed something new.
        bytes_in: decrypted bytes that came in; not growing means silence.
        bytes_out: plaintext bytes that went out.
        control: frames that are not numbered and wait to leave.
        closed: what still comes is not looked at.
        more: `pending` may have something behind what it gave last.
    """

    __slots__ = (
        "_heard", "_looked", "_partial", "_remaining", "_stream", "bytes_in", "bytes_out", "closed",
        "control", "more", "number", "offset", "pipe", "position", "progress", "told",
    )  # fmt: skip

    def __init__(self, number: int, heard: Callable[[Circuit, int, int, bytes], None]) -> None:
        self.number = number
        self.pipe: Pipe | None = None
        self.offset = -1
        self._looked = self.position = self.told = self.progress = self.bytes_in = (
            self.bytes_out
        ) = 0
        self.control = b""
        self.closed = self.more = False
        self._heard = heard
        self._partial = b""
        self._remaining = 0
        self._stream: Stream | None = None

    # ------------------------------------------------------------------ outwards
    def say(self, frame: bytes) -> None:
        """Queue a frame that is not numbered; it leaves before the next chunk.

        Raises:
            ProtocolError: the other end makes us talk and does not listen.
        """
        self.control += frame
        if len(self.control) > CONTROL_BYTES_MAX:
            raise ProtocolError("too many control frames wait")

    def owes(self) -> bool:
        """Whether something was received over this circuit and not acknowledged."""
        return self.offset > self.told

    def told_since(self) -> bool:
        """Whether a chunk has taken an ACK along since the last look or `acknowledgement`."""
        looked, self._looked = self._looked, self.told
        return looked != self.told

    def acknowledgement(self) -> bytes:
        """An ACK for everything received, from now on counted as sent."""
        assert self.pipe is not None
        self.told = self._looked = self.pipe.received
        return frames.offset_frame(ACK, self.told)

    def pending(self) -> memoryview | None:
        """What is to be encrypted next, in one write; None if nothing waits.

        The view is valid until the next call on the pipe, and is taken: it must be written whole.
        """
        self.more = False
        pipe = self.pipe
        if pipe is None or pipe.active is not self:
            return self.take_control()
        if pipe.paused:
            # Only now, when what was given before has been written: whoever resumes may flush.
            pipe.press()
        ring = pipe.ring
        queue = ring.queue
        if queue and queue[0][0] != self.position:
            self.control += frames.offset_frame(SEEK, queue[0][0])
            self.position = queue[0][0]
        if self.control:
            self.more = True
            return self.take_control()
        if not queue:
            return None
        offset, index, length = queue.popleft()
        self.more = pipe.paused or len(queue) > 0
        end = self.position = offset + length
        high = pipe.sent_high
        if offset < high:
            pipe.resent += min(end, high) - offset
        if end > high:
            pipe.sent_high = end
        self.bytes_out += length
        start = index
        received = pipe.received
        if received > self.told:
            self.told = received
            start -= HEADER_BYTES
            _pack_into(ring.view, start, received & 0xFFFFFFFF, ACK << 28 | received >> 32)
        return ring.view[start : index + length]

    def take_control(self) -> memoryview | None:
        """The frames that are not numbered and wait; they are taken, as by `pending`."""
        control = self.control
        if not control:
            return None
        self.control = b""
        self.bytes_out += len(control)
        return memoryview(control)

    # ------------------------------------------------------------------ inwards
    def feed(self, data: memoryview) -> None:
        """Take decrypted bytes in; executes frames and calls the hooks.

        Raises:
            ProtocolError: close this circuit; what was executed before stays counted.
            SessionBroken: end the session.
        """
        self.bytes_in += len(data)
        if self._partial:
            data = memoryview(self._partial + data)
            self._partial = b""
        at, size = 0, len(data)
        while at < size and not self.closed:
            if self.offset >= 0:
                at = self._numbered(data, at)
                if at == size:
                    break
            before = at
            at = self._control(data, at)
            if at == before:
                self._partial = bytes(data[at:])
                break
        pipe = self.pipe
        if pipe is not None:
            if pipe.unread - pipe.told_taken > UNREAD_MAX:
                pipe.broken = pipe.broken or "credit"
            if pipe.broken:
                raise SessionBroken(pipe.broken)
            # While a batch is open the ACK goes in front of it.
            waits = pipe.active is not self or not pipe.ring.limit
            if waits and pipe.received - self.told >= ACK_EVERY and self.offset > self.told:
                self.say(self.acknowledgement())

    def _numbered(self, data: memoryview, at: int) -> int:
        """Execute numbered frames from `at`; stops at another kind or an incomplete frame."""
        pipe = self.pipe
        assert pipe is not None
        size, offset, came = len(data), self.offset, 0
        skip = pipe.received - offset
        streams = pipe.streams
        try:
            while at < size:
                rest = self._remaining
                if rest:
                    count = rest if rest < size - at else size - at
                    self._remaining = rest - count
                    offset += count
                    end = at + count
                    if skip:
                        seen = skip if skip < count else count
                        skip -= seen
                        at += seen
                        count -= seen
                    if count:
                        came += count
                        stream = self._stream
                        if stream is None or stream.pipe is None:
                            pipe.drop_bytes(count)
                        elif stream.received + count > stream.promised:
                            stream.overrun(count)
                        else:
                            stream.received += count
                            stream.on_data(data[at:end])
                    at = end
                    continue
                if size - at < HEADER_BYTES:
                    return at
                number, word = _unpack(data, at)
                kind = word >> 28
                if kind == DATA:
                    at += HEADER_BYTES
                    offset += HEADER_BYTES
                    self._remaining, self._stream = word, streams.get(number)
                    if skip:
                        skip -= HEADER_BYTES
                        if skip < 0:
                            raise ProtocolError("frames don't lie where they lay before")
                    continue
                if kind == ACK:
                    self.progress += pipe.acknowledge(number | (word & VALUE_MAX) << 32)
                    at += HEADER_BYTES
                    continue
                if kind > LAST_NUMBERED:
                    return at
                length = HEADER_BYTES if kind != OPEN else _open_length(word)
                if size - at < length:
                    return at
                if skip:
                    skip -= length
                    if skip < 0:
                        raise ProtocolError("frames don't lie where they lay before")
                elif kind == OPEN:
                    pipe.incoming(number, bytes(data[at + HEADER_BYTES : at + length]))
                else:
                    pipe.signal(number, kind, word & VALUE_MAX)
                at += length  # A frame that can't be executed is not counted either.
                offset += length
            return at
        finally:
            pipe.unread += came
            if skip >= 0:
                self.offset = offset
                if offset > pipe.received:
                    pipe.received = offset

    def _control(self, data: memoryview, at: int) -> int:
        """Execute one frame that is not numbered; returns `at` unchanged if it is incomplete."""
        size = len(data)
        if size - at < HEADER_BYTES:
            return at
        number, word = _unpack(data, at)
        kind, value = word >> 28, word & VALUE_MAX
        if kind <= LAST_NUMBERED:
            if self.offset < 0:
                raise ProtocolError("numbered frame before JOIN")
            return at  # An incomplete OPEN.
        if kind == ACK:
            self._on_ack(number | value << 32)
        elif kind == PING:
            self.say(frames.frame(number, PONG))
        elif kind == SEEK:
            self._on_seek(number | value << 32)
        elif kind in frames.BODY_BYTES:
            length = frames.BODY_BYTES[kind]
            if value != length:
                raise ProtocolError("JOIN with a wrong length")
            if size - at < HEADER_BYTES + length:
                return at
            start = at + HEADER_BYTES
            at = start + length
            self._heard(self, kind, number, bytes(data[start:at]))
            return at
        elif kind in (PONG, frames.MOVE, GONE):
            self._heard(self, kind, number, b"")
        else:
            raise ProtocolError(f"unknown kind {kind}")
        return at + HEADER_BYTES

    def _on_ack(self, offset: int) -> None:
        pipe = self.pipe
        if pipe is None:
            raise ProtocolError("ACK before JOIN")
        if pipe.acknowledge(offset):
            self.progress += 1

    def _on_seek(self, offset: int) -> None:
        pipe = self.pipe
        if pipe is None or self._remaining or not self.offset <= offset <= pipe.received:
            raise ProtocolError("SEEK out of range")
        self.offset = offset


def _open_length(word: int) -> int:
    """Bytes of a whole OPEN, by the second word of its header."""
    length = HEADER_BYTES + (word & VALUE_MAX)
    if length > HEADER_BYTES + OPEN_BYTES_MAX:
        raise ProtocolError("OPEN is too long")
    return length
