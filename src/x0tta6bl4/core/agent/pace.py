"""When something that is worth doing or saying is: soon, but at most once in a while."""

from __future__ import annotations

from typing import Final

from x0tta6bl4.core.machine import NEVER, SECOND, Instant

EVERY: Final = 1 * SECOND
SAY_AGAIN_AFTER: Final = 60 * SECOND
SAID_MAX: Final = 256


class Pace:
    """One kind of work; whoever owns it looks at `at` and asks `due`.

    Attributes:
        at: when it is due; NEVER while nothing is wanted.
    """

    __slots__ = ("_done_at", "at")

    def __init__(self) -> None:
        self.at: Instant = NEVER
        self._done_at: int = -EVERY

    def want(self) -> None:
        """It is worth doing; at once, if it has not been done just now."""
        self.at = Instant(self._done_at + EVERY)

    def due(self, now: Instant) -> bool:
        """Whether it is to be done now; who asks does it then."""
        if now < self.at:
            return False
        self.at, self._done_at = NEVER, now
        return True


class Said:
    """What operators have been told, the same at most once a minute; bounded by SAID_MAX."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], int] = {}

    def is_news(self, now: Instant, kind: str, text: str) -> bool:
        """Whether this is to be said; who asks says it then."""
        if now < self._until.get((kind, text), 0):
            return False
        if len(self._until) >= SAID_MAX:
            self._until = {}
        self._until[kind, text] = now + SAY_AGAIN_AFTER
        return True
