"""When hellos are sent: at instants that all links of a proxy share, so that one wake-up sends all.

Source: RFC 5880 section 6.8.7: each interval is shorter by a random 0 to 25 %.  Here slot k lies
at `phase + k · 7/8 interval`, later by up to 1/8: the gaps between slots are 75 to 100 %.  Where a
slot lies is a function of its number, so nobody has to remember those before, and what one link
does moves no other's hellos.
"""

from __future__ import annotations

from typing import Final, final

_MASK32: Final = 0xFFFFFFFF


@final
class Slots:
    """The sending times of one proxy.

    Args:
        seed: 32 random bits; two proxies with other seeds have other slots.

    Attributes:
        interval_us, after, at: for this interval, `at` is the next slot after any instant from
            `after` on and before `at`: what was asked last, for a caller in a hurry.
    """

    __slots__ = ("_seed", "after", "at", "interval_us")

    def __init__(self, seed: int) -> None:
        self._seed = seed & _MASK32
        self.interval_us = self.after = self.at = 0

    def next(self, interval_us: int, now: int) -> int:
        """The first slot after `now`, at most an interval away."""
        number = self.number(interval_us, now)
        self.interval_us = interval_us
        self.after = self.slot(interval_us, number)
        self.at = at = self.slot(interval_us, number + 1)
        return at

    def number(self, interval_us: int, now: int) -> int:
        """Number of the newest slot that is not after `now`."""
        number = (now - self._seed) // (interval_us - (interval_us >> 3))
        return number if self.slot(interval_us, number) <= now else number - 1

    def slot(self, interval_us: int, number: int) -> int:
        """Instant of a slot.

        The spread is a multiplicative hash of its number (Knuth, TAOCP 6.4; finish as in
        MurmurHash3): nothing is asked of it but to be spread.
        """
        spread_us = interval_us >> 3
        mixed = (number * 2_654_435_761 ^ self._seed) & _MASK32
        mixed = (mixed ^ mixed >> 15) * 2_246_822_519 & _MASK32
        return self._seed + number * (interval_us - spread_us) + (mixed * spread_us >> 32)
