"""What the client's machine knows of one circuit: its round trips, its pings, its end.

Source: RFC 6298 section 2 for srtt and rttvar.
"""

from __future__ import annotations

from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import Limits, Path, Up


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

    def threshold(self, limits: Limits) -> int:
        """How long this circuit may be silent before it is suspect."""
        if not self.srtt:
            return limits.threshold_unknown
        return max(limits.threshold_min, self.srtt + 4 * self.rttvar)
