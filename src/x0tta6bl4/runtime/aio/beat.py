"""Regular work of one process at common instants, so that one wake-up does all that is due.

Processes of one host have other instants each.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

_PHASE_S: Final = os.getpid() * 0.618 % 1.0


def until_beat(now_s: float, period_s: float) -> float:
    """Seconds to the next instant of a grid, from one of the loop's clock; a tenth at least.

    So who is woken a little before its time does not do its work twice.
    """
    left_s = period_s - (now_s - _PHASE_S) % period_s
    return left_s if left_s >= period_s / 10 else left_s + period_s


async def beat(period_s: float) -> None:
    """Sleep to the next instant of a grid; with a multiple or a part of a second they coincide."""
    await asyncio.sleep(until_beat(asyncio.get_running_loop().time(), period_s))
