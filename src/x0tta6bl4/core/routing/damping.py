"""Damping of links that go up and down, and how long a bad path is avoided.

Each down adds 1,000 to a link's penalty, which halves every 15 s.  From 3,000 on the link is
suppressed, which only delays *up*: it stays in the map as a last resort.  Below 1,000 it is used
again; the penalty is capped so that this takes at most 60 s.

Source: RFC 2439 section 4, with the figures measured for this mesh.
"""

from __future__ import annotations

import math
from typing import Final

from x0tta6bl4.core.machine import NEVER, SECOND, Instant

DOWN_PENALTY: Final = 1000.0
HALF_LIFE: Final = 15 * SECOND
SUPPRESS_FROM: Final = 3000.0
REUSE_BELOW: Final = 1000.0
SUPPRESSED_MAX: Final = 60 * SECOND
PENALTY_MAX: Final = REUSE_BELOW * 2.0 ** (SUPPRESSED_MAX / HALF_LIFE)


class Damping:
    """Penalty of one link."""

    __slots__ = ("_at", "_penalty", "suppressed")

    def __init__(self) -> None:
        self._at = 0
        self._penalty = 0.0
        self.suppressed = False

    def down(self, now: Instant) -> None:
        """The link went down."""
        self._penalty = min(self.penalty(now) + DOWN_PENALTY, PENALTY_MAX)
        self._at = now
        if self._penalty >= SUPPRESS_FROM:
            self.suppressed = True

    def look(self, now: Instant) -> bool:
        """Whether a suppressed link may be used again since the last look."""
        if self.suppressed and now >= self.reuse_at():
            self.suppressed = False
            return True
        return False

    def reuse_at(self) -> Instant:
        """When a suppressed link may be used again; NEVER for one that is not suppressed."""
        if not self.suppressed:
            return NEVER
        half_lives = math.log2(self._penalty / REUSE_BELOW)
        return Instant(self._at + math.ceil(half_lives * HALF_LIFE) + 1)

    def penalty(self, now: Instant) -> float:
        """The penalty as it has decayed until now."""
        return float(self._penalty * 0.5 ** ((now - self._at) / HALF_LIFE))
