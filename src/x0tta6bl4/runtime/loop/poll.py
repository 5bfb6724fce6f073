"""The proxy's event loop: level-triggered epoll, timers, and one hook at the end of each batch.

A handler is a callable that takes the epoll mask.  Everything that has something to flush asks
for `after_batch`, so that many small writes become one system call (decisions, section 3).
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable

from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.runtime.clocks import clock

_clock_ns = time.clock_gettime_ns
_BOOTTIME = time.CLOCK_BOOTTIME

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR

_EVENTS_MAX = 1024
_BUSY_EVENTS = 8
"""A batch of more may have lasted: the clock is read again before the next wait."""


class Timer:
    """A call at an instant; `cancel()` is free and may come late."""

    __slots__ = ("at", "call")

    def __init__(self, at: Instant, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget the call."""
        self.call = None


class Alarm:
    """A call whose instant may be moved at any time, both ways, for nothing.

    Attributes:
        at: when it is due; the call moves it, or it is called again in every batch.
        call: what to call.
    """

    __slots__ = ("at", "call")

    def __init__(self, call: Callable[[], None]) -> None:
        self.at: Instant = NEVER
        self.call = call


class Loop:
    """Single-threaded epoll loop.

    Attributes:
        now: the instant at which the current batch of events began.
        after_batch: `after_batch(call)` calls once when all events of this batch were handled.
    """

    __slots__ = (
        "_added",
        "_after",
        "_alarms",
        "_epoll",
        "_handlers",
        "_heap",
        "_running",
        "_serial",
        "after_batch",
        "now",
    )

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._heap: list[tuple[int, int, Timer]] = []
        self._after: list[Callable[[], None]] = []
        self.after_batch: Callable[[Callable[[], None]], None] = self._after.append
        self._added: set[int] = set()
        self._alarms: list[Alarm] = []
        self._serial = 0
        self._running = True
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

    def alarm(self, call: Callable[[], None]) -> Alarm:
        """An alarm, one per machine, for as long as the loop lives."""
        alarm = Alarm(call)
        self._alarms.append(alarm)
        return alarm

    def rings(self) -> bool:
        """Whether an alarm will be called in this batch, after what is ready."""
        now = self.now
        return any(alarm.at <= now for alarm in self._alarms)

    def at(self, instant: Instant, call: Callable[[], None]) -> Timer:
        """Call once at `instant` or soon after."""
        timer = Timer(instant, call)
        self._serial += 1
        heapq.heappush(self._heap, (instant, self._serial, timer))
        return timer

    def after(self, delay_us: int, call: Callable[[], None]) -> Timer:
        """Call once, `delay_us` from this very moment (`now` may be as old as its batch)."""
        return self.at(Instant(clock() + delay_us), call)

    def stop(self) -> None:
        """Leave `run` at the end of this batch."""
        self._running = False

    def close(self) -> None:
        """Give the epoll descriptor back; nothing is called any more."""
        self._handlers.clear()
        self._after.clear()
        self._epoll.close()

    def run(self) -> None:
        """Handle events until `stop`."""
        turn = self._turn
        while self._running:
            turn(NEVER)

    def once(self, until: Instant) -> None:
        """Wait for one batch, at most until `until`, and handle it with all timers due."""
        self.now = clock()
        self._turn(until)

    def _turn(self, until: Instant) -> None:
        """One batch; `now` may be as old as the batch before, and a timer as much late."""
        heap, after = self._heap, self._after
        while heap and heap[0][2].call is None:
            heapq.heappop(heap)
        wake: int = until
        if heap and heap[0][0] < wake:
            wake = heap[0][0]
        for alarm in self._alarms:
            if alarm.at < wake:
                wake = alarm.at
        if after:
            timeout = 0.0
        elif wake == NEVER:
            timeout = -1.0
        else:
            left = wake - self.now
            timeout = left / 1e6 if left > 0 else 0.0
        ready = self._epoll.poll(timeout, _EVENTS_MAX)
        now: Instant = _clock_ns(_BOOTTIME) // 1000  # type: ignore[assignment]
        self.now = now  # As `clock`, without a call in Python.
        handlers, added = self._handlers, self._added
        if added:
            added.clear()
        for fd, mask in ready:
            handler = handlers.get(fd)
            # An earlier event of this batch may have closed it, and its number may even be a new
            # descriptor's already: that one is asked for anew, epoll repeats what still holds.
            if handler is not None and fd not in added:
                handler(mask)
        if heap and heap[0][0] <= now:
            self._call_due(now)
        for alarm in self._alarms:
            if alarm.at <= now:
                alarm.call()
        if after:
            for call in after:  # It may grow meanwhile.
                call()
            after.clear()
        if len(ready) > _BUSY_EVENTS:
            self.now = clock()

    def _call_due(self, now: Instant) -> None:
        """Call the timers that are due, and look at the clock again: that may have lasted."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            call, timer.call = timer.call, None
            if call is not None:
                call()
        self.now = clock()
