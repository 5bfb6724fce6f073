"""What the links machine knows of one neighbour."""

from __future__ import annotations

from typing import Final

from x0tta6bl4.core.links.quality import Quality, Window
from x0tta6bl4.core.links.words import LinkQuality, NeighbourSet
from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.wire.hello import AGENT_ALIVE, DOWN, EASY, EASY_US, UP, Hello

TOLD_DOWN: Final = 0
TOLD_UP: Final = 1
TOLD_SUSPECTED: Final = 2


class Neighbour:
    """State of one link, at this end; only `Links` and `calm` change it.

    Attributes:
        easy: we judge it by hellos that come every EASY_US, and say so in ours.
        eased: it says the same, so ours go out every EASY_US.
        sequence: of our newest hello; `window.top` is the neighbour's.
        skipped: sequences up to `window.top` that never came, so `top - skipped` did.
        scheduled: when a tick was last asked for; -1: none is wanted.
        look_at: the first hello from here on asks whether figures are worth telling.
        look_us: how long after `look_at` it is asked again.
    """

    __slots__ = (
        "agent_alive",
        "base_us",
        "calm",
        "config",
        "detect_us",
        "downs",
        "eased",
        "easy",
        "echo_at",
        "echo_seen",
        "echo_us",
        "failed",
        "heard_at",
        "interval_us",
        "judge_at",
        "look_at",
        "look_us",
        "multiplier",
        "next_send",
        "patience_us",
        "quality",
        "refused",
        "run",
        "scheduled",
        "sent_at",
        "sequence",
        "serial",
        "skipped",
        "state",
        "suspect",
        "suspect_us",
        "told",
        "told_quality",
        "up_at",
        "window",
    )

    def __init__(self, config: NeighbourSet, serial: int, now: Instant, look_us: int) -> None:
        self.config = config
        self.look_us = look_us
        self.serial = serial
        self.sequence = 0
        self.downs = 0
        self.refused = 0
        self.skipped = 0
        self.scheduled: int = NEVER
        self.sent_at = 0
        self.told = TOLD_DOWN
        self.look_at = 0
        self.told_quality = LinkQuality(config.node, 0, 0, False, False)
        self.window = Window()
        self.start(now)

    def start(self, now: Instant) -> None:
        """Forget all that belongs to one start of the neighbour's proxy."""
        self.state = DOWN
        self.suspect = False
        self.failed = False
        self.easy = self.eased = False
        self.skipped -= self.window.top
        self.window = Window()
        self.quality = Quality()
        self.agent_alive = False
        self.echo_at = self.echo_us = self.echo_seen = 0
        self.heard_at: int = now
        self.judge_at: int = NEVER
        self.next_send: int = now
        self.run = 0
        self.up_at = 0
        self.agree(self.config.hello_us, 3)

    def settle(self) -> None:
        """Find out whether the next hello can be taken by `take`.

        `calm` is what it must be like: from a link that is up in all respects, with nothing lost
        that is remembered.  Whoever changes something of that sets `calm` to ().
        """
        quality = self.quality
        # Silence that is no reason for suspicion: 1.4 intervals, and up to one for jitter.
        slack = quality.deviation_us << 2
        self.patience_us = self.suspect_us + (slack if slack < self.base_us else self.base_us)
        self.calm = (
            (
                self.config.incarnation,
                UP,
                (AGENT_ALIVE if self.agent_alive else 0) | (EASY if self.eased else 0),
                self.interval_us,
                self.multiplier,
                quality.seen_lost,
            )
            if self.state == UP
            and self.told == TOLD_UP
            and quality.clean
            and self.window.whole
            and quality.seen_lost >= 0
            else ()
        )

    def take(self, now: int, hello: Hello) -> bool:
        """Take in what nearly every hello of nearly every link is: the next one of a calm link.

        It follows the one before, says nothing new, nothing lost is remembered, and there is
        nothing to say; what is to be done at which time may move away, never nearer.  Callers
        may ask before they make an event of it.

        Returns:
            Whether that was all; if not, nothing was changed, and it is to be handled.
        """
        window = self.window
        sequence = hello.sequence
        if sequence != window.top + 1 or self.calm != (
            hello.incarnation,
            hello.state,
            hello.flags,
            hello.interval_us,
            hello.multiplier,
            hello.lost,
        ):
            return False
        quality = self.quality
        echo_us = hello.echo_us
        if now >= self.look_at:
            if now - echo_us - hello.dwell_us != quality.settled_us or self.differs():
                return False  # Perhaps it is worth telling.
            self.looked(now)
        window.top = sequence
        quality.good = quality.good + 1 & 0xFFFFFFFF
        quality.seen_good = hello.good
        if echo_us > self.echo_seen:
            self.echo_seen = echo_us
            sample_us = now - echo_us - hello.dwell_us
            if sample_us != quality.settled_us:
                quality.sample_rtt(sample_us)
                self.settle()
        self.echo_us = hello.sent_us
        self.heard_at = self.echo_at = now
        self.judge_at = now + self.patience_us
        return True

    def looked(self, now: int) -> None:
        """Nothing was worth telling: ask again at the next instant of a fixed grid.

        So where that is doesn't depend on when hellos have come in between.
        """
        every_us = self.look_us
        self.look_at += ((now - self.look_at) // every_us + 1) * every_us

    def agree(self, interval_us: int, multiplier: int) -> None:
        """Timers from both ends' intervals (RFC 5880 section 6.8.4)."""
        self.interval_us = interval_us
        self.multiplier = multiplier
        self.base_us = base = max(self.config.hello_us, interval_us)
        if self.easy and base < EASY_US:
            base = EASY_US
        self.detect_us = multiplier * base
        self.suspect_us = base * 7 // 5
        self.settle()

    def ease(self, wanted: bool, now: int) -> bool:
        """Judge it by slow hellos from now on, or by fast ones, the first of which is due at once.

        Args:
            wanted: whether something faster watches this link and tells us.
            now: instant.
        Returns:
            Whether that is another than before, which the neighbour is to hear at once.
        """
        quality = self.quality
        easy = (
            wanted
            and self.config.watched
            and self.state == UP
            and self.told == TOLD_UP
            and not self.suspect
            and not quality.watched
            and not quality.gray
        )
        if easy == self.easy:
            return False
        self.easy = easy
        self.agree(self.interval_us, self.multiplier)
        if self.state != DOWN:
            if not easy:
                self.heard_at = now  # As agreed it may have been silent; it is being asked now.
            self.judge_at = self.heard_at + self.patience_us
        return True

    def differs(self) -> bool:
        """A flag, or RTT by more than a tenth and 100 µs, or loss by half a percent."""
        quality, last = self.quality, self.told_quality
        change_us = abs(quality.rtt_us - last.rtt_us)
        return (
            (change_us > 100 and change_us * 10 > last.rtt_us)
            or abs(quality.loss_ppm - last.loss_ppm) >= 5_000
            or quality.gray != last.gray
            or self.agent_alive != last.agent_alive
        )
