"""The two clocks of a host.  Core never reads them: it is told instants and `ClockSet`."""

from __future__ import annotations

import time

from x0tta6bl4.core.machine import Instant


def clock() -> Instant:
    """Now, in microseconds of CLOCK_BOOTTIME: it goes on while the machine is suspended."""
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)


def unix_us() -> int:
    """Wall time in microseconds since 1970; it may step."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000
