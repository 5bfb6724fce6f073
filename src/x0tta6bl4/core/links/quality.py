"""How good a link is: replay window, loss per direction, round-trip time, gray failure.

Source: replay window RFC 4302 section 3.4.3; a hello counts as lost when three later ones have
come (RFC 9002 section 6.1.1); RTT smoothing 1/16; loss for ETX, De Couto 2003; gray failure by
CUSUM (Page 1954) on the log-likelihood ratio of loss 4 % against 0.5 %, threshold 9.

Everything is an integer, so that every machine computes the same.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 64
"""Sequences below the newest by this much or more are refused."""

_ALL: Final = (1 << WINDOW) - 1
_REORDER: Final = 3
_GOOD_MILLI: Final = -36
"""1000 · ln((1 − 0.04) / (1 − 0.005))."""
_LOST_MILLI: Final = 2079
"""1000 · ln(0.04 / 0.005)."""
GRAY_MILLI: Final = 9000
_WATCH_MILLI: Final = 4000
"""Two losses close together: from here on the link is worth faster hellos ..."""
_CALM_MILLI: Final = 1000
"""... until here."""

_MILLION: Final = 1_000_000
_LOSS_SHIFT: Final = 6
_MASK32: Final = 0xFFFFFFFF
_COUNTED_MAX: Final = 1000
"""Most hellos or packets taken from one report: bounds the work and what a liar can do."""


class Window:
    """Sequence numbers received: refuses repeats, finds out what was lost.

    Attributes:
        top: newest sequence accepted, 0 before the first.
        whole: nothing below `top` is missing: one that follows it changes nothing but `top`, and
            one more is judged received.
    """

    __slots__ = ("_bits", "_open", "top", "whole")

    def __init__(self) -> None:
        self.top = 0
        self.whole = False
        self._bits = 0
        self._open = -1  # How many up to `top` are not judged yet; -1: nothing has come yet.

    def fresh(self, sequence: int) -> bool:
        """Whether `sequence` has not been accepted before and is not too old to tell."""
        behind = self.top - sequence
        return behind < 0 or (behind < WINDOW and not self._bits >> behind & 1)

    def accept(self, sequence: int) -> tuple[int, int]:
        """Take a fresh sequence in.

        Returns:
            How many sequences are now judged received, and how many lost: those that three
            later ones have overtaken.  After a jump of a whole window nothing is judged.
        """
        ahead = sequence - self.top
        if ahead <= 0:
            self._bits |= 1 << -ahead
            self.whole = self._bits == _ALL and self._open == _REORDER
            return 0, 0
        self.top = sequence
        if ahead >= WINDOW or self._open < 0:
            self._bits = 1
            self._open = 1
            self.whole = False
            return 0, 0
        bits = self._bits = (self._bits << ahead | 1) & _ALL
        self._open += ahead
        count = self._open - _REORDER
        if count <= 0:
            return 0, 0
        self._open = _REORDER
        self.whole = bits == _ALL
        good = (bits >> _REORDER & ((1 << count) - 1)).bit_count()
        return good, count - good

    def forgive(self) -> None:
        """Judge nothing that was sent before the newest: the link was down."""
        self._open = 0
        self.whole = False


class Loss:
    """Share of one direction that gets lost, and whether it is a gray failure.

    Attributes:
        ppm: smoothed loss, parts per million (EWMA, 1/64 per sample).
        gray: the CUSUM has alarmed and not come back to 0 since.
        watched: there is enough suspicion of loss to want more samples.
        clean: no loss is remembered: counting good samples would change nothing.
    """

    __slots__ = ("_sum_milli", "clean", "gray", "ppm", "watched")

    def __init__(self) -> None:
        self._sum_milli = 0
        self.ppm = 0
        self.gray = False
        self.watched = False
        self.clean = True

    def count(self, good: int, lost: int) -> None:
        """Take samples in, the lost ones first; more than 1,000 of a kind count as 1,000."""
        for _ in range(min(lost, _COUNTED_MAX)):
            self.ppm += (_MILLION - self.ppm) >> _LOSS_SHIFT
            self._sum_milli += _LOST_MILLI
        if self._sum_milli >= GRAY_MILLI:
            self._sum_milli = GRAY_MILLI
            self.gray = True
            self.watched = False
        elif self._sum_milli >= _WATCH_MILLI:
            self.watched = not self.gray
        if not good:
            self.clean = self.clean and not lost
            return
        for _ in range(min(good, _COUNTED_MAX) if self.ppm else 0):
            self.ppm -= (self.ppm + (1 << _LOSS_SHIFT) - 1) >> _LOSS_SHIFT
        self._sum_milli = max(0, self._sum_milli + min(good, _COUNTED_MAX) * _GOOD_MILLI)
        if self._sum_milli < _CALM_MILLI:
            self.watched = False
            self.gray = self.gray and self._sum_milli > 0
        self.clean = not self._sum_milli and not self.ppm


class Quality:
    """Round-trip time and loss of one link, both directions.

    Args:
        rtt_us, deviation_us: as they were before the link went down, still the best guess.

    Attributes:
        rtt_us: smoothed round-trip time, 0 before the first sample.
        deviation_us: smoothed mean deviation of the samples.
        settled_us: a sample that would leave both as they are, -1 if none is known.
        good, lost: hellos of the other end judged here, modulo 2**32: the reports we send.
        seen_good, seen_lost: the newest report of the other end; `seen_lost` -1 before the first.
        gray: either direction loses too much.
        watched: either direction is under suspicion of loss.
        clean: no loss is remembered of either direction.
    """

    __slots__ = (
        "clean",
        "deviation_us",
        "good",
        "gray",
        "lost",
        "rtt_us",
        "rx",
        "seen_good",
        "seen_lost",
        "settled_us",
        "tx",
        "watched",
    )

    def __init__(self, rtt_us: int = 0, deviation_us: int = 0) -> None:
        self.rtt_us = rtt_us
        self.deviation_us = deviation_us
        self.settled_us = -1
        self.rx = Loss()
        self.tx = Loss()
        self.clean = True
        self.good = 0
        self.lost = 0
        self.gray = False
        self.watched = False
        self.seen_good = 0
        self.seen_lost = -1

    @property
    def loss_ppm(self) -> int:
        """Loss of a round trip: 1 − (1 − rx)(1 − tx), so that ETX is 1 / (1 − this)."""
        rx, tx = self.rx.ppm, self.tx.ppm
        return rx + tx - rx * tx // _MILLION

    def sample_rtt(self, sample_us: int) -> None:
        """Take one round trip in, without the time spent at the other end."""
        if sample_us < 0:
            return  # The other end claims to have had it for longer than it was away.
        sample_us = max(sample_us, 1)
        if not self.rtt_us:
            self.rtt_us = sample_us
            self.deviation_us = sample_us // 2
            return
        step = sample_us - self.rtt_us
        more = (abs(step) - self.deviation_us) >> 2
        nearer = (step >> 4) if step >= 0 else -(-step >> 4)
        self.deviation_us += more
        self.rtt_us += nearer
        self.settled_us = -1 if more or nearer else sample_us

    def judged(self, good: int, lost: int) -> None:
        """Take in what the window says of hellos received here."""
        self.good = self.good + good & _MASK32
        self.lost = self.lost + lost & _MASK32
        if lost or not self.rx.clean:
            self._count(self.rx, good, lost)

    def reported(self, good: int, lost: int) -> None:
        """Take in the other end's sums of hellos it judged; both are modulo 2**32."""
        if self.seen_lost >= 0:
            more_good = good - self.seen_good & _MASK32
            more_lost = lost - self.seen_lost & _MASK32
            if more_good > _MASK32 >> 1 or more_lost > _MASK32 >> 1:
                return  # An older report that was overtaken.
            if more_lost or not self.tx.clean:
                self._count(self.tx, more_good, more_lost)
        self.seen_good, self.seen_lost = good, lost

    def counted(self, good: int, lost: int) -> None:
        """Take in packets of the link's own traffic, counted where they were sent."""
        self._count(self.tx, good, lost)

    def _count(self, direction: Loss, good: int, lost: int) -> None:
        direction.count(good, lost)
        self.gray = self.rx.gray or self.tx.gray
        self.watched = self.rx.watched or self.tx.watched
        self.clean = self.rx.clean and self.tx.clean
