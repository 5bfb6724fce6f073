"""What the kernel says and shows of its links, and what the mesh is to hear of them.

    NEW ---ten answers in a row---> UP --KernelDown, or shown dead--> DOWN
                                     ^--------good for 2 s--------------'

The kernel only declares dead.  A new link is revived at its first ten good answers in a row; after
a failure when it has been good for 2 s, too (RFC 5880 knows no such hold; it is that of
`liveness`).  What the kernel says makes things fast, what it shows makes them right: a verdict
whose message was lost is seen at the next look.

A node that hears nothing over any link may be deaf itself, because its processor stood still, or
all of its network did.  Such a verdict is in doubt: there is no better link, so nothing is told
until another link is heard and this one is not, or until the time for that is over; and whatever
answers ten times meanwhile was never down.  Nor are links held that were lost at one moment with
half of all, once in a while; and with all of them, whenever it is so.  While no link is up, none is
held either: there is no better one to use meanwhile.

While a link is down here, what the proxy says of it is kept back: its hellos are slower and may not
have noticed; the last of it is told at the revival.  While one loses some of what it carries,
either way, the proxy's words say so (CUSUM, see `quality`): it costs four times, and stays up.
"""

from __future__ import annotations

from typing import Final, Literal, final

import msgspec

from x0tta6bl4.core.links.quality import Loss
from x0tta6bl4.core.links.words import NEIGHBOURS_MAX, Config
from x0tta6bl4.core.machine import NEVER, NOTHING, Effect, Effects, Event, Instant, Value
from x0tta6bl4.wire.messages import LinkState

FRESH_US: Final = 50_000
"""Answers count as in a row while the last is no older."""
STALE_US: Final = 1_000_000
"""A link that is up without an answer for so long is watched by nobody."""
OFTEN_US: Final = 3_000_000
"""For so long after something has happened links are looked at often; more than `hold_us`."""
DOUBT_US: Final = 250_000
"""The same for a mere suspicion: on a machine without time most are of answers that come late, and
many looks would make it later still.  What was lost is seen by then."""
DEAF_US: Final = 250_000
"""Links that are lost within it are lost at one moment: verdicts come late on such a machine."""
DEAF_EVERY_US: Final = 5_000_000
"""Where half of all links are lost at one moment more often, they come and go, and are held."""
SURE_US: Final = 100_000
"""A verdict is in doubt no longer, as soon as it is looked at."""
BUSY_PACKETS: Final = 20
"""Sent over a link between two looks: some of such may be lost where hellos are not."""


@final
class KernelWatches(Value, frozen=True):
    """The kernel watches the link to this neighbour from now on, or anew."""

    node: str
    was: Literal["new", "up", "down", "unjudged"] = "new"
    """What an earlier life has left; unjudged: it was up or down, and the kernel forgot which."""


@final
class KernelLeaves(Value, frozen=True):
    """It watches that link no longer: the proxy's word alone counts."""

    node: str


@final
class KernelDown(Value, frozen=True):
    """The kernel has declared a link dead, of its own accord, and diverts its data."""

    node: str
    silent_us: int
    deaf: bool = False
    """Nothing was heard over any other link that is up either."""


@final
class KernelStirs(Value, frozen=True):
    """The kernel suspects links, or does no more: they are worth looking at."""


@final
class KernelShows(Value, frozen=True):
    """How a link stands in the kernel; to be shown at once when it is good, every 100 ms up to
    `often_until`, and every second after it.
    """

    node: str
    dead: bool
    silent_us: int
    """Since the last answer."""
    run: int
    """Answers without a gap, up to the last."""
    heard: int = 0
    """Hellos of ours that the neighbour has heard, in all."""
    came_in: int = 0
    """Packets and hellos since it was shown last."""
    lost_in: int = 0
    """Likewise."""
    came_out: int = 0
    """Packets since it was shown last, as the neighbour counted them."""
    lost_out: int = 0
    """Likewise."""
    deaf: bool = False
    """As in `KernelDown`."""


@final
class ProxySays(Value, frozen=True):
    """The proxy says how a link is."""

    link: LinkState


@final
class ProxyStarts(Value, frozen=True):
    """The proxy has started anew: what the one before it said of links is void."""


@final
class MeshHears(Value, frozen=True):
    """This is what the mesh is to believe of a link, in place of what the proxy says."""

    link: LinkState


@final
class Revive(Value, frozen=True):
    """Take the kernel's verdict back, and send data over this link again."""

    node: str
    first: bool = False
    """The kernel has not forwarded over it before."""
    doubted: bool = False
    """Nobody was told of that verdict."""


@final
class DeclareDead(Value, frozen=True):
    """Give the kernel, which can't judge, the proxy's verdict."""

    node: str


@final
class KernelLost(Value, frozen=True):
    """A link is down by the kernel's verdict: nothing of the node's goes over it any more."""

    node: str
    silent_us: int


@final
class KernelLoses(Value, frozen=True):
    """A link has begun to lose some of what it carries, or does no more."""

    node: str
    gray: bool


@final
class Judged(Value, frozen=True):
    """One link as it stands, for status views."""

    node: str
    proven: bool
    """Hellos were answered over it: the kernel forwards over it, and its verdict counts."""
    up: bool
    gray: bool
    lost: int
    """Packets and hellos, both directions."""
    apart_since: Instant = NEVER
    """From then on the proxy has said that it is up, and the kernel has not."""


class _Link:
    __slots__ = (
        "answers", "apart_since", "doubted", "failed", "failed_at", "good_since", "heard", "into",
        "lost", "out", "proven", "run", "said", "up", "watched",
    )  # fmt: skip

    def __init__(self) -> None:
        self.said: LinkState | None = None
        """By the proxy, last."""
        self.heard = self.lost = 0
        self.watch("new")
        self.watched = False

    def watch(self, was: str) -> None:
        """Begin to be the kernel's."""
        self.watched = True
        self.answers = False
        self.proven = was != "new"
        self.up = was == "up"
        self.failed = was == "down"
        self.failed_at: Instant = NEVER
        self.doubted: Instant = NEVER
        """Since then it is dead in the kernel, and up for the mesh."""
        self.run = 0
        self.good_since: Instant = NEVER
        self.apart_since: Instant = NEVER
        self.into, self.out = Loss(), Loss()

    @property
    def gray(self) -> bool:
        return self.into.gray or self.out.gray


class Verdicts:
    """Links of one node that its kernel watches; at most NEIGHBOURS_MAX, others are left out.

    Events: KernelWatches, KernelLeaves, KernelDown, KernelStirs, KernelShows, ProxySays,
    ProxyStarts.
    Effects: Revive, DeclareDead, KernelLost, KernelLoses, MeshHears.

    Args:
        config: `good_hellos` and `hold_us` count.
        judges: whether this kernel declares links dead; else the proxy does.

    Attributes:
        deadline: never: what is shown is looked at when it is shown.
        often_until: something has happened: up to this instant links are to be shown often.
    """

    __slots__ = ("_config", "_deaf_at", "_judges", "_links", "deadline", "often_until")

    def __init__(self, config: Config | None = None, *, judges: bool = True) -> None:
        self._config = config or Config()
        self._judges = judges
        self._links: dict[str, _Link] = {}
        self._deaf_at = -DEAF_EVERY_US
        """When half of all links were lost at one moment, last."""
        self.deadline: Final = NEVER
        self.often_until: int = 0

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in."""
        if type(event) is KernelShows:
            link = self._watched(event.node)
            return NOTHING if link is None else self._look(now, link, event)
        if type(event) is KernelStirs:
            self._stir(now, DOUBT_US)
            return NOTHING
        if type(event) is KernelDown:
            self._stir(now)
            link = self._watched(event.node)
            if link is None or not link.up:
                return NOTHING
            return self._judge(now, link, event)
        if type(event) is ProxySays:
            return self._hear(event.link)
        if type(event) is KernelWatches:
            self._stir(now)
            link = self._link(event.node)
            if link is not None:
                link.watch(event.was)
        elif type(event) is KernelLeaves:
            return self._leave(event.node)
        elif type(event) is ProxyStarts:
            for link in self._links.values():
                link.said = None
        return NOTHING

    @property
    def forwarding(self) -> frozenset[str]:
        """Neighbours over whose links the kernel forwards."""
        return frozenset(node for node, link in self._links.items() if link.proven)

    @property
    def good(self) -> frozenset[str]:
        """Neighbours whose links the kernel judges and finds good: there few hellos will do."""
        if not self._judges:
            return frozenset()
        return frozenset(
            node
            for node, link in self._links.items()
            if link.watched and link.proven and link.up and link.answers and not link.gray
            if link.doubted == NEVER
        )

    @property
    def doubts(self) -> bool:
        """Whether a verdict is in doubt: anything that the kernel says may decide it."""
        return any(link.doubted != NEVER for link in self._links.values())

    def _stir(self, now: Instant, us: int = OFTEN_US) -> None:
        self.often_until = max(self.often_until, now + us)

    def judged(self, node: str) -> Judged:
        """How a link stands."""
        link = self._watched(node)
        if link is None:
            return Judged(node, False, False, False, 0)
        return Judged(node, link.proven, link.up, link.gray, link.lost, link.apart_since)

    # -------------------------------------------------------------------------- the kernel
    def _look(self, now: Instant, link: _Link, shown: KernelShows) -> Effects:
        lost = shown.lost_in + shown.lost_out
        link.lost += lost
        link.answers = shown.silent_us < STALE_US
        if lost or link.gray or shown.came_out >= BUSY_PACKETS or (not link.up and shown.run):
            self._stir(now)
        if link.up:
            if shown.dead:
                self._stir(now)
                return self._judge(now, link, shown, shown.run)
            link.doubted = NEVER
            return self._grade(link, shown)
        if link.said is None or link.said.state != "up":
            link.apart_since = NEVER
        elif link.apart_since == NEVER:
            link.apart_since = now
        run = shown.run if shown.silent_us < FRESH_US else 0
        good = run >= self._config.good_hellos
        if run < link.run or link.good_since == NEVER:
            link.good_since = now if good else NEVER
        link.run = run
        held = link.failed and any(other.up for other in self._links.values())
        if not good or (held and now - link.good_since < self._config.hold_us):
            return NOTHING
        return self._up(link, shown.node)

    def _up(self, link: _Link, node: str) -> Effects:
        """New before old: the kernel sends over it, then the map has it again."""
        revived = Revive(node, not link.proven)
        link.proven = link.up = True
        link.failed, link.apart_since = False, NEVER
        link.into, link.out = Loss(), Loss()
        return (revived,) if revived.first or link.said is None else (revived, MeshHears(link.said))

    def _judge(
        self, now: Instant, link: _Link, dead: KernelDown | KernelShows, run: int = 0
    ) -> Effects:
        """What a verdict is worth, and whether it is still the kernel's."""
        if dead.deaf and self._judges and link.doubted == NEVER:
            link.doubted = now
        answers = run if dead.silent_us < FRESH_US else 0
        if link.doubted != NEVER and answers >= self._config.good_hellos:
            link.doubted = NEVER
            return (Revive(dead.node, doubted=True),)
        if link.doubted == NEVER or now - link.doubted >= SURE_US or not (dead.deaf or answers):
            return self._down(now, link, dead.node, dead.silent_us)
        return NOTHING

    def _down(self, now: Instant, link: _Link, node: str, silent_us: int) -> Effects:
        link.doubted = NEVER
        link.up, link.failed, link.failed_at = False, True, now
        self._excuse(now)
        link.run, link.good_since = 0, NEVER
        dials = link.said.dials if link.said else True
        reason = f"the kernel heard nothing for {silent_us / 1000:.1f} ms"
        down = LinkState(node, "down", 0, 0, dials, False, reason)
        return KernelLost(node, silent_us), MeshHears(down)

    def _excuse(self, now: Instant) -> None:
        """Of links that are lost at one moment, half of all or more, none has failed."""
        links = [link for link in self._links.values() if link.watched and link.proven]
        lately = [link for link in links if not link.up and 0 <= now - link.failed_at <= DEAF_US]
        if len(lately) < 2 or 2 * len(lately) < len(links):
            return
        if any(link.up for link in links):
            if DEAF_US < now - self._deaf_at < DEAF_EVERY_US:
                return
            if now - self._deaf_at >= DEAF_EVERY_US:
                self._deaf_at = now
        for link in lately:
            link.failed = False

    def _grade(self, link: _Link, shown: KernelShows) -> Effects:
        """Hellos that the neighbour has heard are good ones: a link that is left has no data."""
        was, hellos = link.gray, max(shown.heard - link.heard, 0)
        link.heard = shown.heard
        link.into.count(shown.came_in, shown.lost_in)
        link.out.count(shown.came_out + hellos, shown.lost_out)
        if link.gray == was:
            return NOTHING
        told: tuple[Effect, ...] = (KernelLoses(shown.node, link.gray),)
        return told if link.said is None else (*told, MeshHears(self._graded(link, link.said)))

    def _leave(self, node: str) -> Effects:
        link = self._watched(node)
        if link is None:
            return NOTHING
        kept_back = link.said is not None and link.proven and not link.up
        link.watch("new")
        link.watched = False
        return (MeshHears(link.said),) if kept_back and link.said is not None else NOTHING

    # -------------------------------------------------------------------------- the proxy
    def _hear(self, said: LinkState) -> Effects:
        """What the proxy says comes to nothing where a link is up that is dead here."""
        link = self._link(said.node)
        if link is None:
            return (MeshHears(said),)
        link.said = said
        if said.state == "down":
            if link.watched and not self._judges:
                return DeclareDead(said.node), MeshHears(said)
            return (MeshHears(said),)
        return (MeshHears(self._graded(link, said)),) if link.up or not link.proven else NOTHING

    @staticmethod
    def _graded(link: _Link, said: LinkState) -> LinkState:
        if not link.gray or said.state != "up":
            return said
        loss = max(said.loss_ppm, link.into.ppm, link.out.ppm)
        return msgspec.structs.replace(said, gray=True, loss_ppm=loss)

    def _watched(self, node: str) -> _Link | None:
        link = self._links.get(node)
        return link if link is not None and link.watched else None

    def _link(self, node: str) -> _Link | None:
        link = self._links.get(node)
        if link is None and len(self._links) < NEIGHBOURS_MAX:
            link = self._links[node] = _Link()
        return link
