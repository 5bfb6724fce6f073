"""Wall time as a machine knows it: told by `ClockSet`, never below what the authority signed."""

from __future__ import annotations

from x0tta6bl4.core.machine import SECOND, Instant


class WallClock:
    """Offset between the driver's clock and wall time, and its floor."""

    __slots__ = ("_ahead", "_floor", "_offset", "floor_unix_us")

    def __init__(self) -> None:
        self._offset: int | None = None
        self._floor = -(2**63)
        self._ahead: int | None = None
        """By how much wall time is ahead of the driver's clock; None before the first `set`."""
        self.floor_unix_us = 0
        """Newest time signed by the authority; 0 before the first."""

    def set(self, now: Instant, unix_us: int) -> None:
        """The local clock says so."""
        self._offset = unix_us - now
        self._ahead = max(self._offset, self._floor)

    def raise_floor(self, now: Instant, unix_us: int) -> None:
        """The authority has signed this time: it is now or later."""
        if unix_us > self.floor_unix_us:
            self.floor_unix_us = unix_us
            self._floor = max(self._floor, unix_us - now)
            if self._offset is not None:
                self._ahead = max(self._offset, self._floor)

    def unix_us(self, now: Instant) -> int | None:
        """Wall time in microseconds; None before the first `set`."""
        return None if self._ahead is None else now + self._ahead

    def unix_s(self, now: Instant) -> int | None:
        """Wall time in whole seconds; None before the first `set`."""
        return None if self._ahead is None else (now + self._ahead) // SECOND

    def instant(self, unix_s: int) -> int:
        """When wall time will be `unix_s`; only after the first `set`."""
        assert self._ahead is not None
        return unix_s * SECOND - self._ahead
