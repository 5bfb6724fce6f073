"""What an operator is told, at most once a while of each kind: an attack must not fill the log."""

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
        every: pause between two notices of a kind.
    """

    __slots__ = ("_every", "_loop", "_silent", "_tell", "_until")

    def __init__(
        self, loop: Loop, tell: Callable[[str, str], None], every: int = 1 * SECOND
    ) -> None:
        self._loop = loop
        self._every = every
        self._tell = tell
        self._until: dict[str, int] = {}
        self._silent: dict[str, int] = {}

    def say(self, kind: str, text: str, about: str = "") -> None:
        """Tell, or count it as held back.

        Args:
            kind: a fixed word.
            text: one line; no secrets.
            about: what of this kind is told and counted apart; of at most KINDS_MAX at once, the
                others are not told.
        """
        now = self._loop.now
        key = f"{kind} {about}"
        if key not in self._until and len(self._until) >= KINDS_MAX:
            self._until = {k: until for k, until in self._until.items() if until > now}
            self._silent = {k: n for k, n in self._silent.items() if k in self._until}
        if now < self._until.get(key, 0) or (
            key not in self._until and len(self._until) >= KINDS_MAX
        ):
            if key in self._until:
                self._silent[key] = self._silent.get(key, 0) + 1
            return
        self._until[key] = now + self._every
        held = self._silent.pop(key, 0)
        self._tell(kind, f"{text} (and {held} more before)" if held else text)
