"""Application connections of the proxy: a socket on one side, a session's stream on the other.

    app readable --> pipe.receive(recv_into)                  (straight into the session's ring)
    on_data --> send; what the socket refuses is kept, at most the stream's credit

Half-close and reset are carried exactly: FIN only after everything was written, a reset is a reset
(SO_LINGER 0), so truncated data never looks complete.  A socket is not watched for reading while
its session is paused or its stream has no credit; it asks again when there is room.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.core.session.stream import CREDIT_MIN, Stream
from x0tta6bl4.runtime.loop.poll import ERROR, HANGUP, READ, WRITE

if TYPE_CHECKING:
    from x0tta6bl4.core.machine import Instant
    from x0tta6bl4.runtime.loop.sessions import Opening, Session

EARLY_BYTES_MAX: Final = CREDIT_MIN
"""What is kept of a stream until OPENED, so that another replica may be tried."""
_GATHER: Final = 16
_RESET: Final = struct.pack("ii", 1, 0)


class AppStream(Stream):
    """One application connection.

    Args:
        session: that carries it.
        sock: of the application (or of the service), non-blocking; owned from here on.
        now: instant of its beginning.

    Attributes:
        early: the first bytes sent, kept until OPENED; None if they need not be kept any more.
        held: the application is not read and nothing is written to it yet.
        pending_bytes: what the socket has not taken.
        reason: why it ended, a stable phrase; empty while it is alive.
    """

    __slots__ = (
        "_mask", "_own_bytes", "_pending", "_unsent", "_watched", "_wrote_end", "begun_at",
        "early", "fd", "held", "looked_at", "opening", "pending_bytes", "reason", "session", "sock",
        "standing_since",
    )  # fmt: skip

    def __init__(self, session: Session, sock: socket.socket, now: Instant) -> None:
        super().__init__()
        self.session = session
        self.sock = sock
        self.fd = sock.fileno()
        self.begun_at = now
        self.early: bytearray | None = None
        self.opening: Opening | None = None
        self.held = False
        self.reason = ""
        self.pending_bytes = 0
        self.looked_at = 0
        """`taken` at the last look for streams that stand still."""
        self.standing_since = 0
        self._pending: deque[bytes | memoryview] = deque()
        self._own_bytes = 0
        self._unsent = b""
        self._mask = 0
        self._watched = False
        self._wrote_end = False

    # ------------------------------------------------------------------ the application's socket
    def start(self) -> None:
        """Begin: write what waits, and read; the request is often there already."""
        self.held = False
        if self._pending or self.ended:
            self._write()
        if not self.reason:
            self._watch()
            self._read()

    def _on_event(self, mask: int) -> None:
        if mask & READ:
            self._read()
        if mask & WRITE and not self.reason:
            self._write()
        if mask & (ERROR | HANGUP) and not mask & READ and not self.reason:
            if mask & ERROR:
                self.fail(Reset.RESET)
            elif not self._mask:
                # Hung up while nothing is wanted: a level-triggered loop would spin on it.
                self._unwatch()

    def _read(self, mask: int = READ) -> None:
        """Read once; what epoll calls, and passes other things on than just that."""
        if mask != READ:
            self._on_event(mask)
            return
        pipe = self.pipe
        if pipe is None or self.finished or self.held:
            self._watch()
            return
        if self._unsent and not self._send_unsent():
            return
        try:
            count = pipe.receive(
                self, self.sock.recv_into if self.early is None else self._receive_early
            )
        except BlockingIOError:
            return
        except OSError:
            self.fail(Reset.RESET)
            return
        if count > 0:
            return
        if count < 0:
            self.session.wait(self)
            self._watch()
            return
        pipe.finish(self)
        if self._wrote_end:
            self.done("closed")
        else:
            self._watch()

    def send_first(self, data: bytes) -> None:
        """Bytes of the application that were read before this stream began."""
        self._unsent = data
        if data and self.pipe is not None:
            self._send_unsent()

    def _send_unsent(self) -> bool:
        """True when nothing is left; else the session says when there is room."""
        assert self.pipe is not None
        self._unsent = self._unsent[self.pipe.write(self, self._unsent) :]
        if self._unsent:
            self.session.wait(self)
        return not self._unsent

    def _receive_early(self, room: memoryview) -> int:
        """Receive, and keep it for another replica."""
        early = self.early
        assert early is not None
        count = self.sock.recv_into(room)
        early += room[:count]
        assert len(early) <= EARLY_BYTES_MAX, "no credit is granted before OPENED"
        return count

    def _write(self) -> None:
        """Give the socket what waits."""
        pending = self._pending
        sendmsg = self.sock.sendmsg
        try:
            while pending:
                parts = [pending[i] for i in range(min(len(pending), _GATHER))]
                sent = sendmsg(parts)
                self.pending_bytes -= sent
                self._took(sent)
                while sent:
                    first = pending[0]
                    if sent >= len(first):
                        sent -= len(first)
                        pending.popleft()
                    else:
                        pending[0] = memoryview(first)[sent:]
                        sent = 0
        except BlockingIOError:
            pass
        except OSError:
            self.fail(Reset.RESET)
            return
        if not pending:
            self.session.moving(self)
            if self.ended and not self._wrote_end:
                self._end_writing()
        if not self.reason:
            self._watch()

    def _took(self, count: int) -> None:
        """The application has taken bytes; those that were ours give no credit."""
        own = self._own_bytes
        if own:
            used = min(own, count)
            self._own_bytes = own - used
            count -= used
        if count:
            self.take(count)

    def _end_writing(self) -> None:
        """The other end has sent everything and the application has it."""
        self._wrote_end = True
        if self.finished:
            self.done("closed")
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.fail(Reset.RESET)

    # ------------------------------------------------------------------ called by the pipe
    def on_data(self, data: memoryview) -> None:
        """See `core.session.stream.Stream`."""
        sent = 0
        if not self._pending and not self.held:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                pass
            except OSError:
                self.fail(Reset.RESET)
                return
            if sent:
                self.take(sent)
                if sent == len(data):
                    return
        rest = bytes(data[sent:])
        self._pending.append(rest)
        self.pending_bytes += len(rest)
        self.session.standing(self)
        self._watch()

    def on_opened(self) -> None:
        """See `core.session.stream.Stream`."""
        self.early = None
        self.session.opened(self)

    def on_finish(self) -> None:
        """See `core.session.stream.Stream`."""
        if not self._pending and not self.held:
            self._end_writing()

    def on_reset(self, reason: Reset) -> None:
        """See `core.session.stream.Stream`."""
        if not self.reason and not self.session.try_another(self, reason):
            self._end(reason.phrase, abort=True)

    def on_credit(self) -> None:
        """See `core.session.stream.Stream`."""
        self.resume()

    # ------------------------------------------------------------------ ends
    def put_first(self, data: bytes) -> None:
        """Bytes that the application gets before anything else (a proxy's reply, a header)."""
        if data:
            self._pending.appendleft(data)
            self.pending_bytes += len(data)
            self._own_bytes += len(data)
            if not self.held:
                self._write()

    def fail(self, reason: Reset) -> None:
        """Our side of the stream is over, by a reset."""
        if self.reason:
            return
        pipe = self.pipe
        if pipe is not None:
            pipe.reset(self, reason)
        self._end(reason.phrase, abort=True)

    def done(self, reason: str) -> None:
        """Both sides have sent everything."""
        pipe = self.pipe
        if pipe is not None:
            pipe.forget(self)
        self._end(reason, abort=False)

    def leave(self, reason: str) -> socket.socket:
        """Give the socket away: another replica will have it, or an answer be written to it."""
        self.reason = reason
        self._unwatch()
        self.session.ended(self)
        return self.sock

    def _end(self, reason: str, *, abort: bool) -> None:
        self.reason = reason
        self._unwatch()
        if abort:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass  # It is gone already.
        self._pending.clear()
        self.session.ended(self)  # Before the close: it may still watch the descriptor.
        self.sock.close()

    # ------------------------------------------------------------------ epoll
    def resume(self) -> None:
        """There is room again: read what waits."""
        if self._unsent and not self.reason:
            self._read()  # The application may have nothing more to say.
        if not self.reason:
            self._watch()

    def _watch(self) -> None:
        if self.reason:
            return
        mask = 0
        if not (self.finished or self.held or self.session.blocked(self)):
            mask = READ
        if self._pending and not self.held:
            mask |= WRITE
        if mask == self._mask and (self._watched or not mask):
            return
        loop = self.session.loop
        if self._watched:
            loop.set(self.fd, mask)
        else:
            self._watched = True
            loop.add(self.fd, mask, self._read)
        self._mask = mask

    def _unwatch(self) -> None:
        self._mask = 0
        if self._watched:
            self._watched = False
            self.session.loop.drop(self.fd)
