"""What an operator is told, at most once a second of each kind: an attack must not fill the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.loop.poll import Loop

KINDS_MAX: Final = 64


@final
class Notices:
    """Passes the first notice of a kind on, and the number of those held back with the next.

    Args:
        loop: for the clock.
        tell: takes kind and text.
    """

    __slots__ = ("_loop", "_silent", "_tell", "_until")

    def __init__(self, loop: Loop, tell: Callable[[str, str], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._until: dict[str, int] = {}
        self._silent: dict[str, int] = {}

    def say(self, kind: str, text: str) -> None:
        """Tell, or count it as held back.

        Args:
            kind: one of at most KINDS_MAX fixed words; more are not told.
            text: one line; no secrets.
        """
        now = self._loop.now
        if now < self._until.get(kind, 0) or (
            kind not in self._until and len(self._until) >= KINDS_MAX
        ):
            self._silent[kind] = self._silent.get(kind, 0) + 1
            return
        self._until[kind] = now + SECOND
        held = self._silent.pop(kind, 0)
        self._tell(kind, f"{text} (and {held} more before)" if held else text)
