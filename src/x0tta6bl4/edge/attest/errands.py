"""Looks that may take long: made by threads of their own, so that nobody's loop stands still.

Reading a file or a process's memory can hang for as long as whoever owns its file system likes
(FUSE, userfaultfd), and a container engine answers when it wants to.  Who asks waits for a moment;
what is not there by then is PENDING, and the answer is kept for whoever asks the same again soon.
A thread that never comes back costs its place and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, final

from x0tta6bl4.core.machine import Denied

RUNNING_MAX: Final = 16
"""At once; who comes beyond that is told PENDING."""
OF_ONE_MAX: Final = 4
"""At once for one user, so that nobody takes all the places."""
LIMIT_S: Final = 5.0
"""A look that takes longer is answered with LATE."""
KEEP_S: Final = 2.0
"""An answer that nobody fetched."""
KEPT_MAX: Final = 1024
"""Looks under way and answers not fetched; who comes beyond that is told PENDING."""
WAIT_S: Final = 0.01
"""Longest that who asks stands still."""

PENDING: Final = Denied("program is still being looked at")
LATE: Final = Denied("program could not be looked at in time")

Answer = frozenset[str] | Denied


@final
class _Errand:
    __slots__ = ("answer", "asked_s", "done", "done_s", "who")

    def __init__(self, who: int, now_s: float) -> None:
        self.who = who
        self.asked_s = now_s
        self.done_s = 0.0
        self.done = threading.Event()
        self.answer: Answer = LATE


class Errands:
    """Runs looks.

    Args:
        wait_s: longest that `ask` stands still.
        now_s: any clock that does not jump.
    """

    __slots__ = ("_errands", "_now_s", "_wait_s")

    def __init__(self, wait_s: float = WAIT_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._wait_s = wait_s
        self._now_s = now_s
        self._errands: dict[Hashable, _Errand] = {}

    def ask(self, key: Hashable, who: int, look: Callable[[], Answer]) -> Answer:
        """The answer of `look`, made for this question or for the same one just before.

        Args:
            key: names the question; equal ones share one look while it is under way.
            who: whose program is looked at, for OF_ONE_MAX.
            look: runs in a thread; it raises nothing but OSError.
        Returns:
            Its answer; PENDING if it has none yet, LATE if it had its time.
        """
        now_s = self._now_s()
        errand, begun = self._errands.get(key), False
        if errand is None or (errand.done.is_set() and now_s - errand.done_s > KEEP_S):
            self._sweep(now_s)
            of_one = Counter(one.who for one in self._errands.values() if not one.done.is_set())
            if of_one.total() >= RUNNING_MAX or of_one[who] >= OF_ONE_MAX:
                return PENDING
            if len(self._errands) >= KEPT_MAX:
                return PENDING
            errand = self._errands[key] = _Errand(who, now_s)
            begun = True
            threading.Thread(
                target=self._run, args=(errand, look), name="attest", daemon=True
            ).start()
        if not errand.done.wait(self._wait_s if begun else 0):
            return LATE if now_s - errand.asked_s > LIMIT_S else PENDING
        del self._errands[key]
        return errand.answer

    def running(self) -> int:
        """Looks that are under way."""
        return sum(not one.done.is_set() for one in self._errands.values())

    def _run(self, errand: _Errand, look: Callable[[], Answer]) -> None:
        try:
            errand.answer = look()
        except OSError as error:
            reason = (error.strerror or "input or output error").lower()
            errand.answer = Denied(f"program not readable: {reason}")
        finally:
            errand.done_s = self._now_s()
            errand.done.set()

    def _sweep(self, now_s: float) -> None:
        for key, one in list(self._errands.items()):
            if one.done.is_set() and now_s - one.done_s > KEEP_S:
                del self._errands[key]
