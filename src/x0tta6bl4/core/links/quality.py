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
    """

    __slots__ = ("_bits", "_judged", "top")

    def __init__(self) -> None:
        self.top = 0
        self._bits = 0
        self._judged = -1  # Nothing has come yet.

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
            return 0, 0
        self.top = sequence
        if ahead >= WINDOW or self._judged < 0:
            self._bits = 1
            self._judged = sequence - 1
            return 0, 0
        self._bits = (self._bits << ahead | 1) & ((1 << WINDOW) - 1)
        count = sequence - _REORDER - self._judged
        if count <= 0:
            return 0, 0
        self._judged += count
        good = (self._bits >> _REORDER & ((1 << count) - 1)).bit_count()
        return good, count - good

    def forgive(self) -> None:
        """Judge nothing that was sent before the newest: the link was down."""
        self._judged = self.top


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
        good, lost: hellos of the other end judged here, modulo 2**32: the reports we send.
        gray: either direction loses too much.
        watched: either direction is under suspicion of loss.
    """

    __slots__ = (
        "_seen_good",
        "_seen_lost",
        "_started",
        "deviation_us",
        "good",
        "gray",
        "lost",
        "rtt_us",
        "rx",
        "tx",
        "watched",
    )

    def __init__(self, rtt_us: int = 0, deviation_us: int = 0) -> None:
        self.rtt_us = rtt_us
        self.deviation_us = deviation_us
        self.rx = Loss()
        self.tx = Loss()
        self.good = 0
        self.lost = 0
        self.gray = False
        self.watched = False
        self._seen_good = 0
        self._seen_lost = 0
        self._started = False

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
        self.deviation_us += (abs(sample_us - self.rtt_us) - self.deviation_us) >> 2
        step = sample_us - self.rtt_us
        self.rtt_us += (step >> 4) if step >= 0 else -(-step >> 4)

    def judged(self, good: int, lost: int) -> None:
        """Take in what the window says of hellos received here."""
        self.good = self.good + good & _MASK32
        self.lost = self.lost + lost & _MASK32
        if lost or not self.rx.clean:
            self._count(self.rx, good, lost)

    def reported(self, good: int, lost: int) -> None:
        """Take in the other end's sums of hellos it judged; both are modulo 2**32."""
        if self._started:
            more_good = good - self._seen_good & _MASK32
            more_lost = lost - self._seen_lost & _MASK32
            if more_good > _MASK32 >> 1 or more_lost > _MASK32 >> 1:
                return  # An older report that was overtaken.
            if more_lost or not self.tx.clean:
                self._count(self.tx, more_good, more_lost)
        self._started = True
        self._seen_good, self._seen_lost = good, lost

    def counted(self, good: int, lost: int) -> None:
        """Take in packets of the link's own traffic, counted where they were sent."""
        self._count(self.tx, good, lost)

    def _count(self, direction: Loss, good: int, lost: int) -> None:
        direction.count(good, lost)
        self.gray = self.rx.gray or self.tx.gray
        self.watched = self.rx.watched or self.tx.watched
