"""What the kernel says and shows of its links, made into the facts that other links have.

    DOWN --revived--> UP --KernelSaid(suspected)--> SUSPECTED --cleared--> UP
    UP, SUSPECTED --KernelSaid(down), or KernelShows(dead)--> DOWN

The kernel only declares dead.  A link is revived at its first ten good answers in a row; after a
failure when it has been good for 2 s, too (RFC 5880 knows no such hold; it is that of `liveness`).
What the kernel says makes things fast, what it shows makes them right: a verdict whose message was
lost is seen at the next look.
"""

from __future__ import annotations

from typing import Final, final

from x0tta6bl4.core.links.quality import Quality
from x0tta6bl4.core.links.words import (
    NEIGHBOURS_MAX,
    Config,
    LinkDown,
    LinkQuality,
    LinkSuspected,
    LinkUp,
)
from x0tta6bl4.core.machine import NEVER, NOTHING, Effect, Effects, Event, Instant, Value


@final
class KernelWatches(Value, frozen=True):
    """The kernel watches the link to this neighbour from now on; it begins dead there."""

    node: str


@final
class KernelLeaves(Value, frozen=True):
    """It watches that link no longer."""

    node: str


@final
class KernelSaid(Value, frozen=True):
    """The kernel said something about a link, of its own accord."""

    node: str
    what: str
    """suspected, cleared or down; anything else is left to `KernelShows`."""


@final
class KernelShows(Value, frozen=True):
    """How a link stands in the kernel; to be shown every 100 ms, and at once when it is good."""

    node: str
    dead: bool
    run: int
    """Answers without a gap, up to now; 0 when the last is too long ago."""
    rtt_us: int
    """Smoothed."""
    agent_alive: bool
    came_in: int
    """Packets and hellos since it was shown last, likewise the next three."""
    lost_in: int
    came_out: int
    lost_out: int


@final
class Revive(Value, frozen=True):
    """Take the kernel's verdict about this link back; asked for again as long as it stands."""

    node: str


class _Link:
    __slots__ = ("failed", "good_since", "look_at", "quality", "run", "suspected", "told", "up")

    def __init__(self) -> None:
        self.quality = Quality()
        self.up = False
        self.suspected = False
        self.failed = False
        self.run = 0
        self.good_since: Instant = NEVER
        self.told: LinkQuality | None = None
        self.look_at = 0


class Verdicts:
    """Links of one node that its kernel watches; at most NEIGHBOURS_MAX, others are left out.

    Events: KernelWatches, KernelLeaves, KernelSaid, KernelShows.
    Effects: LinkUp, LinkQuality, LinkSuspected, LinkDown, Revive.

    Args:
        config: `good_hellos`, `hold_us` and `quality_us` count.

    Attributes:
        deadline: never: what is shown is looked at when it is shown.
    """

    __slots__ = ("_config", "_links", "deadline")

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config()
        self._links: dict[str, _Link] = {}
        self.deadline: Final = NEVER

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in."""
        if type(event) is KernelShows:
            link = self._links.get(event.node)
            return NOTHING if link is None else self._look(now, link, event)
        if type(event) is KernelSaid:
            link = self._links.get(event.node)
            return NOTHING if link is None else self._hear(link, event)
        if type(event) is KernelWatches:
            if event.node not in self._links and len(self._links) < NEIGHBOURS_MAX:
                self._links[event.node] = _Link()
        elif type(event) is KernelLeaves:
            link = self._links.pop(event.node, None)
            if link is not None and link.up:
                return (LinkDown(event.node, "removed"),)
        return NOTHING

    def _hear(self, link: _Link, said: KernelSaid) -> Effects:
        if not link.up:
            return NOTHING
        if said.what == "down":
            return self._down(link, said.node)
        if said.what == "suspected" and not link.suspected:
            link.suspected = True
            return (LinkSuspected(said.node),)
        if said.what == "cleared" and link.suspected and link.told is not None:
            link.suspected = False
            return (self._tell_up(link, link.told),)
        return NOTHING

    def _look(self, now: Instant, link: _Link, shown: KernelShows) -> Effects:
        quality = link.quality
        quality.judged(shown.came_in, shown.lost_in)
        quality.counted(shown.came_out, shown.lost_out)
        if shown.rtt_us:
            quality.sample_rtt(shown.rtt_us)
        good = shown.run >= self._config.good_hellos
        if shown.run < link.run or link.good_since == NEVER:
            link.good_since = now if good else NEVER
        link.run = shown.run
        fact = LinkQuality(
            shown.node, quality.rtt_us, quality.loss_ppm, quality.gray, shown.agent_alive
        )
        if shown.dead:
            if link.up:
                return self._down(link, shown.node)
            held = link.failed and now - link.good_since < self._config.hold_us
            return NOTHING if held or not good else (Revive(shown.node),)
        if not link.up:
            link.up, link.failed = True, False
            return self._tell(now, link, fact, (self._tell_up(link, fact),))
        assert link.told is not None
        if now < link.look_at and _flags(fact) == _flags(link.told):
            return NOTHING
        if not _differs(fact, link.told):
            return NOTHING
        return self._tell(now, link, fact, () if link.suspected else (fact,))

    def _tell(
        self, now: Instant, link: _Link, fact: LinkQuality, effects: tuple[Effect, ...]
    ) -> Effects:
        link.told = fact
        link.look_at = now + self._config.quality_us
        return effects

    def _down(self, link: _Link, node: str) -> Effects:
        link.up = link.suspected = False
        link.failed = True
        link.run = 0
        link.good_since = NEVER
        return (LinkDown(node, "silent"),)

    def _tell_up(self, link: _Link, fact: LinkQuality) -> LinkUp:
        return LinkUp(fact.node, fact.rtt_us, fact.loss_ppm, fact.gray, fact.agent_alive)


def _differs(fact: LinkQuality, last: LinkQuality) -> bool:
    """As `neighbour.Neighbour.differs`: a flag, RTT by a tenth and 100 µs, loss by 0.5 %."""
    change_us = abs(fact.rtt_us - last.rtt_us)
    return (
        (change_us > 100 and change_us * 10 > last.rtt_us)
        or abs(fact.loss_ppm - last.loss_ppm) >= 5_000
        or _flags(fact) != _flags(last)
    )


def _flags(fact: LinkQuality) -> tuple[bool, bool]:
    return fact.gray, fact.agent_alive
