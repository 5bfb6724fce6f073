"""The proxy's event loop: level-triggered epoll, timers, and one hook at the end of each batch.

A handler is a callable that takes the epoll mask.  Everything that has something to flush asks
for `after_batch`, so that many small writes become one system call (decisions, section 3).
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable

from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.runtime.clocks import clock

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR

_EVENTS_MAX = 1024


class Timer:
    """A call at an instant; `cancel()` is free and may come late."""

    __slots__ = ("at", "call")

    def __init__(self, at: Instant, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget the call."""
        self.call = None


class Loop:
    """Single-threaded epoll loop.

    Attributes:
        now: the instant at which the current batch of events began.
        late_us: how much later than wanted the last timed wake-up came (0 if woken by I/O).
    """

    __slots__ = (
        "_added",
        "_after",
        "_epoll",
        "_handlers",
        "_heap",
        "_running",
        "_serial",
        "late_us",
        "now",
    )

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._heap: list[tuple[int, int, Timer]] = []
        self._after: list[Callable[[], None]] = []
        self._added: set[int] = set()
        self._serial = 0
        self._running = True
        self.late_us = 0
        self.now = clock()

    def add(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Watch a descriptor."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler
        self._added.add(fd)

    def set(self, fd: int, mask: int) -> None:
        """Change what is watched on a descriptor."""
        self._epoll.modify(fd, mask)

    def drop(self, fd: int) -> None:
        """Stop watching, before the descriptor is closed.  Unknown ones are ignored."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, instant: Instant, call: Callable[[], None]) -> Timer:
        """Call once at `instant` or soon after."""
        timer = Timer(instant, call)
        self._serial += 1
        heapq.heappush(self._heap, (instant, self._serial, timer))
        return timer

    def after(self, delay_us: int, call: Callable[[], None]) -> Timer:
        """Call once, `delay_us` from this very moment (`now` may be as old as its batch)."""
        return self.at(Instant(clock() + delay_us), call)

    def after_batch(self, call: Callable[[], None]) -> None:
        """Call once when all events of this batch have been handled."""
        self._after.append(call)

    def stop(self) -> None:
        """Leave `run` at the end of this batch."""
        self._running = False

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._handlers.clear()
        self._epoll.close()

    def run(self) -> None:
        """Handle events until `stop`."""
        while self._running:
            self.once(NEVER)

    def once(self, until: Instant) -> None:
        """Wait for one batch, at most until `until`, and handle it with all timers due."""
        heap = self._heap
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        wake = min(heap[0][0], until) if heap else until
        if self._after:
            timeout = 0.0
        elif wake == NEVER:
            timeout = -1.0
        else:
            timeout = max(0.0, (wake - clock()) / 1e6)
        ready = self._epoll.poll(timeout, _EVENTS_MAX)
        self.now = now = clock()
        self.late_us = 0 if ready or now < wake else now - wake
        handlers = self._handlers
        added = self._added
        added.clear()
        for fd, mask in ready:
            handler = handlers.get(fd)
            # An earlier event of this batch may have closed it, and its number may even be a new
            # descriptor's already: that one is asked for anew, epoll repeats what still holds.
            if handler is not None and fd not in added:
                handler(mask)
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()
        while self._after:
            calls, self._after = self._after, []
            for call in calls:
                call()
