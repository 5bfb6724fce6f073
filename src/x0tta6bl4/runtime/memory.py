"""What a burst has left behind goes back to the system.

When many circuits are replaced at once, as at a renewal, what they leave lies between what lives
on, and glibc keeps it.  `malloc_trim` gives every whole free page back, in less than a millisecond
for 50 sessions.  Measured against it: a low M_TRIM_THRESHOLD, M_MMAP_THRESHOLD or M_TOP_PAD and no
per-thread cache; each keeps as much as the defaults do, or more.

Source: malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

TRIM_S: Final = 60
TIDY_S: Final = 300

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""musl has none, and keeps little."""


def trim() -> None:
    """Give free pages of the heap back."""
    if _trim is not None:
        _trim(0)


def tidy() -> None:
    """Collect what refers to itself, then `trim`; some 15 ms in an agent.

    A closed gRPC connection does, and few things are made in an agent: the collector, which counts
    objects and knows nothing of OpenSSL's memory behind them, would come after hours.
    """
    gc.collect()
    trim()
