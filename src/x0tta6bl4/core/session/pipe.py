"""The pipe of a session: streams in, numbered frames out, over whichever circuit is active.

Two objects.  `Pipe` belongs to the session and outlives circuits: the ring of what is not yet
acknowledged, the offset up to which the other end's frames were taken, streams and credit.
`Circuit` belongs to one circuit and dies with it: parser state, control frames that wait, how far
it was acknowledged.  Neither knows time, sockets or TLS; both are driven the same way by the
proxy's epoll loop and by the simulator:

    pipe.open / receive / write / finish / reset             the application's side
    pipe.flush()                                             at the end of each batch of events
    while (view := circuit.pending()): tls.write(view)       while the send buffer is empty
    circuit.feed(view)                                       what TLS has decrypted

Rules (house rules of the session; each has a test in tests/core/test_session_pipe.py):

- a header counts as received only when complete, a body byte only when taken; OPEN as a whole;
- a circuit that was joined starts at `start <= received`; what lies below `received` is parsed but
  not executed, a DATA body that straddles is delivered from the exact byte;
- a chunk is taken by a circuit only when it can be encrypted at once; what the other end already
  has is skipped and the gap announced with SEEK;
- acknowledgements leave on the circuit that the data came on, in front of a chunk where one goes;
- the pause condition is computed from the queue, never from an offset of the circuit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.frames import (
    FIN,
    HEADER,
    HEADER_BYTES,
    OPEN_BYTES_MAX,
    OPENED,
    RST,
    VALUE_MAX,
    WINDOW,
    Open,
    ProtocolError,
    Reset,
)
from x0tta6bl4.core.session.ring import CHUNK_COST, Allocate, Ring, RingFull
from x0tta6bl4.core.session.stream import TELL_TAKEN, Stream

if TYPE_CHECKING:
    from x0tta6bl4.core.session.circuit import Circuit

SESSION_CREDIT: Final = 8 * 1024 * 1024
HELD_MAX: Final = 4 * 1024 * 1024
"""Unacknowledged bytes at which a session stops reading its applications."""
HELD_SLACK: Final = 512 * 1024
"""Beyond HELD_MAX: for FIN, RST and what is already under way; WINDOW and OPEN wait."""
QUEUE_MAX: Final = 256 * 1024
CALM_BYTES: Final = 8 * 1024
"""So few unacknowledged bytes meet no bound, even in the smallest chunks."""
STREAMS_MAX: Final = 4096
STREAM_NUMBER_MAX: Final = 0xFFFFFFF0
READ_BYTES_MIN: Final = 16 * 1024
READ_BYTES_MAX: Final = 256 * 1024
UNREAD_MAX: Final = SESSION_CREDIT + READ_BYTES_MAX
"""Bytes that came in and for which no credit was given back, beyond which a session ends."""

_pack_into = HEADER.pack_into


class SessionBroken(Exception):
    """The session can't go on (a bound that only a hostile peer meets); `args[0]` is the reason."""


class Hooks:
    """What a pipe asks of its driver; the default does nothing, as tests often want.

    All are called from within the pipe and must not raise.
    """

    __slots__ = ()

    def wake(self, pipe: Pipe) -> None:
        """Something was written to a fresh batch: call `flush` at the end of this round."""

    def ready(self, pipe: Pipe) -> None:
        """There is a chunk for the active circuit: pump it, if its send buffer is empty."""

    def resume(self, pipe: Pipe) -> None:
        """The session reads its applications again after it had stopped."""

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        """The other end opens a stream: give its object, or the reason why not."""
        return Reset.NO_SERVICE


class Pipe:
    """Numbered frames of one session at one end.

    Args:
        allocate: gives the ring's memory.
        hooks: the driver.
        client: whether this end opens streams (the other accepts).

    Attributes:
        ring: what is not yet acknowledged.
        received: offset up to which the other end's frames were taken.
        streams: by number; at most STREAMS_MAX.
        active: the circuit that carries our numbered frames, None while there is none.
        paused: a bound is met, applications are not read.
        held_max: unacknowledged bytes at which applications are no longer read; a proxy that is
            short of memory lowers it.
        sent_high: highest offset ever given to a circuit: below it, sending is resending.
        resent: bytes resent so far.
        unread: DATA bytes that came in; with the next two, the session's credit as we count it.
        taken: of these, what applications have taken.
        told_taken: of these, what the other end was told.
    """

    __slots__ = (
        "_dirty", "_grants", "_read_bytes",
        "active", "broken", "client", "credit", "held_max", "hooks", "next_number",
        "opened_total", "paused", "received", "resent", "ring", "sent_high", "streams", "taken",
        "told_taken", "unread",
    )  # fmt: skip

    def __init__(self, allocate: Allocate, hooks: Hooks, client: bool) -> None:
        self.ring = Ring(allocate)
        self.hooks = hooks
        self.client = client
        self.streams: dict[int, Stream] = {}
        self.active: Circuit | None = None
        self.received = 0
        self.credit = SESSION_CREDIT
        self.paused = False
        self.broken = ""
        self.next_number = 1
        self.sent_high = self.resent = self.opened_total = 0
        self.held_max = HELD_MAX
        self.unread = self.taken = self.told_taken = 0
        self._read_bytes = READ_BYTES_MIN
        self._dirty = False
        self._grants: dict[int, Stream] = {}
        """Streams whose WINDOW waits for room in the ring."""

    # ------------------------------------------------------------------ streams, outwards
    def open(self, stream: Stream, ask: Open) -> Reset | None:
        """Open a stream to the other end's service; bytes may follow at once.

        Returns:
            None, or why the session takes no more streams.
        """
        if len(self.streams) >= STREAMS_MAX or self.next_number > STREAM_NUMBER_MAX:
            return Reset.BUSY
        if self.ring.held > HELD_MAX + HELD_SLACK // 2:
            return Reset.BUSY
        number = stream.number = self.next_number
        stream.ask = ask
        self.next_number = number + 1
        self.opened_total += 1
        stream.pipe = self
        self.streams[number] = stream
        self._put(frames.open_frame(number, ask))
        return None

    def opened(self, stream: Stream) -> None:
        """Tell the client that the service has taken the connection."""
        stream.opened = True
        self._put(frames.frame(stream.number, OPENED))

    def receive(self, stream: Stream, fill: Callable[[memoryview], int]) -> int:
        """Let the next bytes of a stream be put straight into the session.

        Args:
            stream: of this session.
            fill: gets a view of 1 byte to 256 KiB, for the time of the call; returns how many
                bytes it has put there.  What it raises passes, and nothing was put.
        Returns:
            What `fill` returned; -1 where it was not called, as the session is paused or the
            stream has no credit.
        """
        credit = stream.credit
        if self.paused or credit <= 0 or self.credit <= 0:
            return -1
        ring = self.ring
        at = ring.at + HEADER_BYTES
        size = ring.limit - at
        if size < self._read_bytes:
            if not self._begin(self._read_bytes + HEADER_BYTES) or self.paused:
                return -1
            at = ring.at + HEADER_BYTES
            size = ring.limit - at
        if size > READ_BYTES_MAX:
            size = READ_BYTES_MAX
        view = ring.view
        count = fill(view[at : at + (size if size < credit else credit)])
        if count > 0:
            _pack_into(view, at - HEADER_BYTES, stream.number, count)
            ring.at = at + count
            stream.credit = credit - count
            stream.sent += count
            self.credit -= count
            if count == size and self._read_bytes < READ_BYTES_MAX:
                self._read_bytes *= 2
        return count

    def write(self, stream: Stream, data: memoryview | bytes) -> int:
        """Copy bytes into the session; returns how many there was room for."""
        rest = memoryview(data)

        def fill(room: memoryview) -> int:
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            return count

        while rest:
            count = self.receive(stream, fill)
            if count < 0:
                break
            rest = rest[count:]
        return len(data) - len(rest)

    def finish(self, stream: Stream) -> None:
        """The application has sent everything."""
        stream.finished = True
        self._put(frames.frame(stream.number, FIN))

    def reset(self, stream: Stream, reason: Reset) -> None:
        """Cut a stream off and forget it; the other end is told why."""
        if stream.pipe is self and self.streams.get(stream.number) is stream:
            self._put(frames.frame(stream.number, RST, reason))
            self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """The stream is done; what it had not taken is given back to the session's credit."""
        if stream.pipe is self:
            stream.pipe = None
            self.streams.pop(stream.number, None)
            self._grants.pop(stream.number, None)
            standing = stream.received - stream.taken - stream.lent
            if standing > 0:
                self.took(standing)

    # ------------------------------------------------------------------ credit
    def took(self, count: int) -> None:
        """Applications have taken `count` bytes: tell the other end now and then."""
        self.taken += count
        if self.taken - self.told_taken >= TELL_TAKEN:
            self.tell_taken()

    def tell_taken(self) -> None:
        """Give the session's credit for what was taken back to the other end."""
        if not self.broken:
            value = self.taken - self.told_taken
            self.told_taken = self.taken
            self._put(frames.frame(0, WINDOW, value))

    def grant(self, stream: Stream) -> None:
        """Promise more to the other end of a stream, or later if the ring has no room."""
        if stream.ended:
            return
        if self.ring.held > HELD_MAX + HELD_SLACK // 2:
            self._grants[stream.number] = stream
            return
        self._put(frames.frame(stream.number, WINDOW, stream.next_grant()))

    def drop_bytes(self, count: int) -> None:
        """Bytes for a stream that is gone: nobody will take them, the session's credit returns."""
        self.took(count)

    # ------------------------------------------------------------------ batches and circuits
    def flush(self) -> None:
        """End the open batch: its frames become a chunk, and may leave."""
        self._dirty = False
        ring = self.ring
        if ring.limit and ring.close() is not None:
            if self.paused or ring.written - ring.acknowledged > CALM_BYTES:
                self.press()
            if self.active is not None:
                self.hooks.ready(self)

    def attach(self, circuit: Circuit) -> int:
        """Make a circuit the active one: everything unacknowledged goes over it, from the start.

        Returns:
            Bytes that are sent again.
        """
        ring = self.ring
        if ring.limit:
            ring.close()
        circuit.pipe = self
        circuit.position = ring.acknowledged
        circuit.told = self.received
        self.active = circuit
        ring.rewind()
        self.press()
        return self.again

    @property
    def again(self) -> int:
        """Bytes that would be sent again if a circuit were attached now."""
        return max(0, self.sent_high - self.ring.acknowledged)

    def detach(self, circuit: Circuit) -> None:
        """A circuit is gone; the session keeps everything."""
        if self.active is circuit:
            self.active = None
            self.ring.queue.clear()
            self.press()

    def acknowledge(self, offset: int) -> bool:
        """The other end has taken our frames up to `offset`.

        Returns:
            Whether that is progress.
        Raises:
            ProtocolError: it acknowledges what was never sent.
        """
        ring = self.ring
        if offset > self.sent_high:
            raise ProtocolError("acknowledges what was never sent")
        progress = ring.acknowledge(offset)
        if progress:
            if self.paused:
                self.press()
            if self._grants and ring.held <= HELD_MAX:
                waiting, self._grants = self._grants, {}
                for stream in waiting.values():
                    self.grant(stream)
        return progress

    def close(self, reason: Reset) -> None:
        """The session is over: every stream is reset."""
        self.broken = self.broken or reason.phrase
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            if stream.pipe is self:
                stream.pipe = None
                stream.on_reset(reason)
        self._grants.clear()

    def leave(self) -> bool:
        """The other end is gone and wants nothing more: cut off what can't end without it.

        Returns:
            Whether streams are left that both ends have finished; their applications only have to
            take what has come in.
        """
        for stream in tuple(self.streams.values()):
            if not (stream.ended and stream.finished):
                self.forget(stream)
                stream.on_reset(Reset.SESSION_ENDED)
        return bool(self.streams)

    def withdraw(self, stream: Stream) -> None:
        """Cut a stream off because it is no longer allowed; both ends hear why."""
        self.reset(stream, Reset.WITHDRAWN)
        stream.on_reset(Reset.WITHDRAWN)

    def rest(self) -> None:
        """Nothing has moved for a while: give grown memory back."""
        if not self.ring.limit:
            self.ring.rest()
            self._read_bytes = READ_BYTES_MIN

    # ------------------------------------------------------------------ called by circuits
    def incoming(self, number: int, body: bytes) -> None:
        """OPEN came in."""
        ask = frames.open_body(body)
        if self.client or number in self.streams or not number:
            raise ProtocolError("OPEN of a stream that can't be opened")
        if len(self.streams) >= STREAMS_MAX:
            self._put(frames.frame(number, RST, Reset.BUSY))
            return
        answer = self.hooks.accept(self, number, ask)
        if isinstance(answer, Stream):
            answer.number = number
            answer.ask = ask
            answer.pipe = self
            self.streams[number] = answer
            self.opened_total += 1
        else:
            self._put(frames.frame(number, RST, answer))

    def signal(self, number: int, kind: int, value: int) -> None:
        """OPENED, FIN, RST or WINDOW came in."""
        if kind == WINDOW and not number:
            before = self.credit
            self.credit = before + value
            if before <= 0 < self.credit and not self.paused:
                self.hooks.resume(self)
            return
        stream = self.streams.get(number)
        if stream is None:
            return
        if kind == WINDOW:
            before = stream.credit
            stream.credit = min(before + value, VALUE_MAX)
            if before <= 0 < stream.credit:
                stream.on_credit()
        elif kind == FIN:
            if not stream.ended:
                stream.ended = True
                stream.on_finish()
        elif kind == OPENED:
            if not stream.opened:
                stream.opened = True
                stream.on_opened()
        else:
            self.forget(stream)
            stream.on_reset(frames.reset_of(value))

    # ------------------------------------------------------------------ details
    def _put(self, frame: bytes) -> None:
        """Write a frame other than DATA into the open batch."""
        if self.broken:
            return
        ring = self.ring
        size = len(frame)
        if ring.limit - ring.at < size and not self._begin(max(size, self._read_bytes + 8)):
            return
        at = ring.at
        ring.view[at : at + size] = frame
        ring.at = at + size

    def _begin(self, need: int) -> bool:
        """Close the open batch, if there is one, and open the next."""
        ring = self.ring
        if ring.limit:
            self.flush()
        try:
            ring.reserve(need)
        except RingFull:
            try:
                ring.reserve(HEADER_BYTES + OPEN_BYTES_MAX)
            except RingFull:
                # Only frames that answer a peer which never acknowledges can get here.
                self.broken = self.broken or "ring full"
                return False
        if not self._dirty:
            self._dirty = True
            self.hooks.wake(self)
        return True

    def press(self) -> None:
        """Stop or resume reading the applications."""
        ring = self.ring
        written, queue = ring.written, ring.queue
        queued = written - queue[0][0] if queue else 0  # As `ring.queued` and `ring.held`.
        held = written - ring.acknowledged + CHUNK_COST * len(ring.chunks)
        if not self.paused:
            if queued > QUEUE_MAX or held > self.held_max:
                self.paused = True
        elif queued <= QUEUE_MAX // 2 and held <= self.held_max // 2:
            self.paused = False
            self.hooks.resume(self)
