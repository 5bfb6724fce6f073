"""A relay moves bytes between two sockets, and the way they end too.

Few bytes are copied through one shared buffer: a receive and a send.  Many move inside the kernel,
through a pipe.  Pipes are taken from a pool when bytes arrive and given back when they have left,
so that a thousand quiet circuits hold none.

A half-close travels as a half-close, a reset as a reset; what the sink does not take stops the
reading, which fills the sender's window: nothing is ever dropped, or buffered beyond one pipe or
COPY_BYTES a direction.

Source: splice(2).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Final, final

from x0tta6bl4.runtime.loop.connect import CLOSE_IN_ORDER, RESET_ON_CLOSE
from x0tta6bl4.runtime.loop.poll import ERROR, HANGUP, READ, WRITE, Loop

PIPE_BYTES: Final = 1 << 20
POOL_MAX: Final = 16
COPY_BYTES: Final = 64 * 1024
"""A read that fills this says that many bytes come: the next one is spliced."""
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if hasattr(os, "SPLICE_F_MOVE") else 3
_F_SETPIPE_SZ: Final = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_F_GETPIPE_SZ: Final = getattr(fcntl, "F_GETPIPE_SZ", 1032)


@final
class Pipe:
    """A kernel pipe; `held` bytes are in it."""

    __slots__ = ("held", "reader", "size", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.size = fcntl.fcntl(self.writer, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # Unprivileged and over /proc/sys/fs/pipe-user-pages-soft.
            self.size = fcntl.fcntl(self.writer, _F_GETPIPE_SZ)
        self.held = 0

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self.reader)
        os.close(self.writer)


@final
class Pipes:
    """Pool of empty pipes, at most POOL_MAX wait in it, and the buffer for what is copied."""

    __slots__ = ("_free", "buffer")

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self.buffer = memoryview(bytearray(COPY_BYTES))

    def take(self) -> Pipe:
        """An empty pipe.

        Raises:
            OSError: no more descriptors.
        """
        return self._free.pop() if self._free else Pipe()

    def give(self, pipe: Pipe) -> None:
        """Take back a pipe; one with bytes in it is closed, so that nobody reads them."""
        if pipe.held or len(self._free) >= POOL_MAX:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close all that wait."""
        while self._free:
            self._free.pop().close()


class _Flow:
    """One direction."""

    __slots__ = ("done", "eof", "many", "moved", "pipe", "rest", "sink", "source", "stuck")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | None = None
        self.rest = b""
        """What was copied and the sink has not taken; while there is some, nothing is read."""
        self.many = False
        """The last read was a large one."""
        self.eof = False
        self.done = False
        """The end has been passed on."""
        self.stuck = False
        """The pipe has no slot left although it has bytes left: many small segments."""
        self.moved = 0

    def wants_read(self) -> bool:
        """Whether the source is to be read."""
        pipe = self.pipe
        if self.eof or self.stuck or self.rest:
            return False
        return pipe is None or pipe.held * 2 < pipe.size

    def wants_write(self) -> bool:
        """Whether bytes wait for the sink."""
        return self.rest != b"" or (self.pipe is not None and self.pipe.held > 0)


@final
class Relay:
    """Joins two connected, non-blocking stream sockets until both directions have ended.

    Args:
        loop: the proxy's loop.
        pipes: shared pool.
        one: first socket; owned by the relay from here on.
        two: second socket; likewise.
        on_end: told once, with "" for an orderly end or the reason of a reset.
        bytes_max: reset after that many bytes, both directions together; 0: no bound.
    """

    __slots__ = ("_back", "_bytes_max", "_forth", "_loop", "_masks", "_on_end", "_pipes", "ended")

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        one: socket.socket,
        two: socket.socket,
        on_end: Callable[[Relay, str], None],
        bytes_max: int = 0,
    ) -> None:
        self._loop = loop
        self._pipes = pipes
        self._forth = _Flow(one, two)
        self._back = _Flow(two, one)
        self._on_end = on_end
        self._bytes_max = bytes_max
        self._masks = {one.fileno(): READ, two.fileno(): READ}
        self.ended = False
        for sock in (one, two):
            # Should this process be killed, the kernel's close is a reset and no orderly end.
            _linger(sock, RESET_ON_CLOSE)
        loop.add(one.fileno(), READ, partial(self._event, self._forth, self._back))
        loop.add(two.fileno(), READ, partial(self._event, self._back, self._forth))

    @property
    def bytes_moved(self) -> int:
        """Bytes passed on so far, both directions together."""
        return self._forth.moved + self._back.moved

    def reset(self, reason: str) -> None:
        """End both connections with a reset."""
        self._end(reason)

    def _event(self, out: _Flow, into: _Flow, mask: int) -> None:
        """Handle what epoll says of `out.source`, which is `into.sink`."""
        try:
            if mask == READ and not out.many and out.pipe is None:
                mask = 0
                if self._copy(out):
                    return
            if mask & ERROR:
                code = out.source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
            if mask & WRITE and into.wants_write():
                self._push(into)
            if mask & (READ | HANGUP) and not self.ended and out.wants_read():
                if out.many or out.pipe is not None:
                    self._splice(out)
                else:
                    self._copy(out)
        except OSError as error:
            self._end(f"reset: {os.strerror(error.errno or 0).lower()}")
            return
        if not self.ended:
            self._watch(out, into, bool(mask & HANGUP))
            self._watch(into, out, False)

    def _copy(self, flow: _Flow) -> bool:
        """Move bytes from the source to the sink; True if that was all there is to do."""
        buffer = self._pipes.buffer
        try:
            count = flow.source.recv_into(buffer)
        except BlockingIOError:
            return True
        if not count:
            flow.eof = True
            self._push(flow)
            return False
        flow.many = count == COPY_BYTES
        try:
            sent = flow.sink.send(buffer[:count])
        except BlockingIOError:
            sent = 0
        flow.moved += sent
        if sent < count:
            flow.rest = bytes(buffer[sent:count])
            return False
        return not self._bytes_max or not self._too_much()

    def _too_much(self) -> bool:
        if self._bytes_max and self.bytes_moved > self._bytes_max:
            self._end("more bytes than allowed")
        return self.ended

    def _splice(self, flow: _Flow) -> None:
        """Move bytes from the source into the pipe, and on."""
        pipe = flow.pipe
        if pipe is None:
            pipe = flow.pipe = self._pipes.take()
        try:
            count = os.splice(
                flow.source.fileno(), pipe.writer, pipe.size - pipe.held, flags=_SPLICE
            )
        except BlockingIOError:
            flow.stuck = pipe.held > 0
        else:
            flow.eof = count == 0
            flow.many = count >= COPY_BYTES // 2
            pipe.held += count
        self._push(flow)

    def _push(self, flow: _Flow) -> None:
        """Move what waits to the sink, and then the end if it has come."""
        if flow.rest:
            try:
                count = flow.sink.send(flow.rest)
            except BlockingIOError:
                return
            flow.rest = flow.rest[count:]
            flow.moved += count
            if self._too_much() or flow.rest:
                return
        pipe = flow.pipe
        if pipe is not None and pipe.held:
            try:
                count = os.splice(pipe.reader, flow.sink.fileno(), pipe.held, flags=_SPLICE)
            except BlockingIOError:
                return
            pipe.held -= count
            flow.moved += count
            flow.stuck = False
            if self._too_much():
                return
        if pipe is not None and not pipe.held:
            self._pipes.give(pipe)
            flow.pipe = pipe = None
        if pipe is None and flow.eof and not flow.done:
            flow.done = True
            if self._forth.done and self._back.done:
                self._end("")
            else:
                flow.sink.shutdown(socket.SHUT_WR)

    def _watch(self, out: _Flow, into: _Flow, hung: bool) -> None:
        """Tell epoll what is wanted of `out.source`.

        A socket that hung up and from which nothing is wanted is not watched: epoll would say so
        for ever.
        """
        fd = out.source.fileno()
        mask = (READ if out.wants_read() else 0) | (WRITE if into.wants_write() else 0)
        old = self._masks[fd]
        if not mask and (hung or old < 0):
            if old >= 0:
                self._loop.drop(fd)
                self._masks[fd] = -1
        elif old < 0:
            self._loop.add(fd, mask, partial(self._event, out, into))
            self._masks[fd] = mask
        elif mask != old:
            self._loop.set(fd, mask)
            self._masks[fd] = mask

    def _end(self, reason: str) -> None:
        """Close both; with a reason, as a reset."""
        if self.ended:
            return
        self.ended = True
        for flow in (self._forth, self._back):
            self._loop.drop(flow.source.fileno())
            flow.rest = b""
            if flow.pipe is not None:
                self._pipes.give(flow.pipe)
                flow.pipe = None
        for flow in (self._forth, self._back):
            if not reason:
                _linger(flow.source, CLOSE_IN_ORDER)
            flow.source.close()
        self._on_end(self, reason)


def _linger(sock: socket.socket, how: bytes) -> None:
    if sock.family != socket.AF_UNIX:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
        except OSError:
            pass  # It has ended already; the first read says so.
