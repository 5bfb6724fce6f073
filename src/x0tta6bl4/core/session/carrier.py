"""What the client's machine knows of a circuit, of what stands unacknowledged, and of calm.

Source: RFC 6298 section 2 for srtt and rttvar.
"""

from __future__ import annotations

from typing import Final

from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import Limits, Path, PathsChanged, SendFrame, Up
from x0tta6bl4.core.session.pipe import Pipe

MARKS_MAX: Final = 8


class Carrier:
    """One circuit as the client's machine sees it; at most five per session."""

    __slots__ = (
        "alive_at", "answered_at", "circuit", "ends_at", "exporter", "generation",
        "lame_until", "moved", "not_after_unix_us", "number", "off_path", "path", "ping_at",
        "ping_out", "ping_token", "progress", "rttvar", "srtt", "suspect_at",
    )  # fmt: skip

    def __init__(self, number: int, up: Up, now: Instant) -> None:
        self.number = number
        self.circuit: Circuit = up.circuit
        self.path: Path = up.path
        self.exporter = up.exporter
        self.generation = up.generation
        self.not_after_unix_us = up.not_after_unix_us
        self.ends_at: int = NEVER
        self.alive_at: int = now
        """Last sign of life: a PONG, or an ACK on this circuit that confirmed something."""
        self.ping_at = 0
        self.ping_out = False
        self.ping_token = 0
        self.answered_at = -1
        """When the newest answered ping was sent."""
        self.progress = 0
        self.srtt = self.rttvar = 0
        self.suspect_at = 0
        self.lame_until = 0
        self.moved = False
        """The server asked for a new circuit: its SVID has changed."""
        self.off_path = False
        """The path is no longer one of ours."""

    def sample(self, rtt: int) -> None:
        """Take a round trip in (RFC 6298 section 2)."""
        if not self.srtt:
            self.srtt = max(rtt, 1)
            self.rttvar = rtt // 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) // 4
            self.srtt += (rtt - self.srtt) // 8

    def ask(self, now: Instant) -> None:
        """Something that has to be answered leaves: a ping, or JOIN."""
        self.ping_token = (self.ping_token + 1) & 0xFFFFFFFF
        self.ping_out = True
        self.ping_at = now

    def ping(self, now: Instant) -> SendFrame:
        """The next ping."""
        self.ask(now)
        return SendFrame(self.number, frames.frame(self.ping_token, frames.PING))

    def pong(self, now: Instant, token: int) -> None:
        """An answer to a ping; any but the newest one's says nothing."""
        if not self.ping_out or token != self.ping_token:
            return
        self.sample(now - self.ping_at)
        self.ping_out = False
        self.alive_at = now
        self.answered_at = self.ping_at
        self.suspect_at = 0

    def threshold(self, limits: Limits) -> int:
        """How long this circuit may be silent before it is suspect."""
        if not self.srtt:
            return limits.threshold_unknown
        return max(limits.threshold_min, self.srtt + 4 * self.rttvar)

    def patience(self, limits: Limits) -> int:
        """How long a standby's ping may stand unanswered before it is replaced."""
        return max(limits.threshold_unknown, 4 * self.threshold(limits))

    def stale(self, generation: int, limits: Limits) -> bool:
        """Whether another circuit should take its place."""
        return (
            self.generation != generation
            or self.moved
            or self.off_path
            or self.circuit.bytes_out >= limits.roll_bytes
        )

    def due(self, now: Instant, active: bool, every: int, limits: Limits) -> tuple[int, int]:
        """When this circuit ends, and when something about it has to be looked at.

        Args:
            now: the instant.
            active: whether it carries the session.
            every: between pings, microseconds.
            limits: of the session.
        """
        if self.lame_until:
            return self.ends_at, self.lame_until
        if not self.ping_out:
            return self.ends_at, self.ping_at + every
        since = max(self.ping_at, self.alive_at)
        if not active:
            return self.ends_at, since + self.patience(limits)
        if self.suspect_at:
            return self.ends_at, now + self.threshold(limits)
        return self.ends_at, since + self.threshold(limits)


class Marks:
    """Since when something stands unacknowledged, to a quarter of a threshold; at most 8 marks."""

    __slots__ = ("_marks", "_written")

    def __init__(self) -> None:
        self._marks: list[tuple[int, int]] = []
        self._written = 0

    def look(self, now: Instant, written: int, confirmed: int) -> int:
        """Take the offsets of now in.

        Returns:
            For how long the oldest marked byte has stood; 0 if none does, but some have come and
            gone since the last look; else -1.
        """
        marks = [mark for mark in self._marks if mark[0] > confirmed]
        if written > confirmed and (not marks or written > marks[-1][0]):
            marks.append((written, now))
            if len(marks) > MARKS_MAX:
                del marks[1:-1]
        self._marks = marks
        before, self._written = self._written, written
        return now - marks[0][1] if marks else -(before == written)


class Quiet:
    """Since when a session has had no stream and no frame of its own.

    Attributes:
        stream_at: instant at which the last stream was seen.
        frame_at: instant at which something new was seen to have been written.
        calm: whether there was no stream for so long that nobody waits for this session.
    """

    __slots__ = ("_opened", "_written", "calm", "frame_at", "stream_at")

    def __init__(self, now: Instant) -> None:
        self.stream_at: int = now
        self.frame_at: int = now
        self.calm = False
        self._opened = self._written = 0

    def look(self, now: Instant, pipe: Pipe, limits: Limits) -> bool:
        """Compare with the last look: streams now, streams opened so far, bytes written.

        Returns:
            Whether the session was calm, and is no more.
        """
        if pipe.streams or pipe.opened_total != self._opened:
            self._opened = pipe.opened_total
            self.stream_at = now
        if pipe.ring.written != self._written:
            self._written = pipe.ring.written
            self.frame_at = now
        before, self.calm = self.calm, now - self.stream_at >= limits.calm_after
        return before and not self.calm

    def ping_every(self, limits: Limits) -> int:
        """Between pings of its circuits; for a stream that comes they are late, so sent at once."""
        return limits.calm_every if self.calm else limits.ping_every


def crowded(carrier: Carrier, active: Carrier | None, paths: tuple[Path, ...]) -> bool:
    """Whether a standby shares a relay with the active circuit though some path would not."""
    if active is None or carrier is active or not _meet(carrier.path, active.path):
        return False
    return not all(_meet(path, active.path) for path in paths)


def strays(active: Carrier | None, standby: Carrier | None, event: PathsChanged) -> bool:
    """Mark circuits that are on no path of ours any more.

    Returns:
        Whether there is one that was before.
    """
    found = False
    for carrier in (active, standby):
        if carrier is not None:
            left = _leaves(carrier, active, standby, event)
            found = found or (left and not carrier.off_path)
            carrier.off_path = left
    return found


def _leaves(
    carrier: Carrier, active: Carrier | None, standby: Carrier | None, event: PathsChanged
) -> bool:
    """Whether a circuit is to be replaced because of what the paths are now."""
    if carrier.path not in event.paths or crowded(carrier, active, event.paths):
        return True
    if not event.direct or len(carrier.path) == 2:
        return False
    return carrier is active or active is None or 2 not in map(len, _paths_of(active, standby))


def _paths_of(*carriers: Carrier | None) -> list[Path]:
    return [carrier.path for carrier in carriers if carrier is not None]


def spread(active: Carrier | None, now: Instant, limits: Limits, calm: bool = False) -> int:
    """How long a session may take to act on a renewal, or a calm one on new paths.

    All sessions of an SVID hear of it at once, and a third circuit of each, with its handshake,
    would stand in the way of what goes on.
    """
    left = active.ends_at - now if active is not None else 0
    return max(0, min(limits.calm_jitter if calm else limits.renew_spread, left // 4))


def _meet(one: Path, other: Path) -> bool:
    return one == other or not set(one[1:-1]).isdisjoint(other[1:-1])
