"""Neighbour liveness in the manner of BFD, for all links of one proxy.

Source: RFC 5880 section 6.2 (states), 6.8.2 (timers), 6.8.4 (detect time), 6.8.6 (reception),
6.8.7 (jitter), asynchronous mode.  Differences: hellos stay fast while a link comes up; POLL asks
for an answer at once, not for new timers; a suspect is probed before it is declared down.

    DOWN --hello(down)--> INIT --hello(init|up)--> UP --detect time in silence--> DOWN
    DOWN --hello(init)--> UP        UP --hello(down) or ADMIN_DOWN--> DOWN

Above these states stands what the others are told: `LinkUp` comes with the first UP; after a
failure it is held back until 10 hellos in a row and 2 s have passed.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import Final, final

from x0tta6bl4.core.links.quality import Quality, Window
from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    NOTHING,
    SECOND,
    Effect,
    Effects,
    Event,
    Instant,
    Received,
    Send,
    Tick,
    Value,
)
from x0tta6bl4.wire.hello import (
    ADMIN_DOWN,
    AGENT_ALIVE,
    DOWN,
    FINAL,
    INIT,
    INTERVAL_US_MAX,
    INTERVAL_US_MIN,
    POLL,
    UP,
    Hello,
)

NEIGHBOURS_MAX: Final = 256
"""Further ones are refused with `LinkDown(node, "too many neighbours")`."""


# ------------------------------------------------------------------------------- events, effects
@final
class NeighbourSet(Value, frozen=True):
    """Watch this neighbour, or go on watching it with new keys or a new start of its proxy."""

    node: str
    incarnation: int
    """Of the neighbour's proxy; hellos of any other are ignored.  A new one starts anew."""
    link: int
    """Key id for our hellos from now on; new keys alone disturb nothing."""
    hello_us: int = 100 * MS
    """Calm interval, both what we send and the least we want; the greater of both ends counts."""


@final
class NeighbourGone(Value, frozen=True):
    """Watch this neighbour no longer; it is told so once."""

    node: str


@final
class AgentAlive(Value, frozen=True):
    """Whether the agent of this node is connected to the proxy; every hello says so."""

    alive: bool


@final
class Counted(Value, frozen=True):
    """Traffic to a neighbour has been counted: packets sent and resent, e.g. from TCP_INFO."""

    node: str
    good: int
    lost: int


@final
class LinkUp(Value, frozen=True):
    """The link can be used; also said when a suspicion turned out to be wrong."""

    node: str
    rtt_us: int
    loss_ppm: int
    """Of a round trip: ETX is 1 / (1 − loss)."""
    gray: bool
    """Loses too much to be trusted: its cost is to be multiplied by 4; it is not down."""
    agent_alive: bool


@final
class LinkQuality(Value, frozen=True):
    """A link that is up has changed; at most once a second, at once for the two flags."""

    node: str
    rtt_us: int
    loss_ppm: int
    gray: bool
    agent_alive: bool


@final
class LinkSuspected(Value, frozen=True):
    """Nothing heard for 1.4 intervals: nothing new over this link; LinkUp or LinkDown follows."""

    node: str


@final
class LinkDown(Value, frozen=True):
    """The link cannot be used.

    `reason` is one of: silent, neighbour down, neighbour shut, neighbour restarted, removed,
    too many neighbours.
    """

    node: str
    reason: str


@final
class Config(Value, frozen=True):
    """How calmly links are judged."""

    multiplier: int = 3
    """Intervals in silence after which the *other* end declares this one down (RFC 5880)."""
    good_hellos: int = 10
    """Hellos in a row before a link that has failed is used again."""
    hold_us: int = 2 * SECOND
    """Time before a link that has failed is used again; both must hold."""
    idle_after_us: int = 10 * SECOND
    """A neighbour that is down and unheard for this long gets a hello every `idle_us`."""
    idle_us: int = 1 * SECOND
    quality_us: int = 1 * SECOND
    """Least time between two LinkQuality of one link."""


@final
class LinkStatistics(Value, frozen=True):
    """One link as it stands, for status views."""

    node: str
    state: str
    """down, init, up, held (up, but not yet trusted again) or suspected."""
    rtt_us: int
    loss_ppm: int
    gray: bool
    agent_alive: bool
    sent: int
    received: int
    refused: int
    """Hellos of another start, repeated or too old."""
    downs: int


# ----------------------------------------------------------------------------------- the machine
_NAMES: Final = ("shut", "down", "init", "up")
_TOLD_DOWN: Final = 0
_TOLD_UP: Final = 1
_TOLD_SUSPECTED: Final = 2


class _Neighbour:
    __slots__ = (
        "agent_alive",
        "base_us",
        "config",
        "detect_us",
        "downs",
        "echo_at",
        "echo_seen",
        "echo_us",
        "failed",
        "heard_at",
        "interval_us",
        "judge_at",
        "multiplier",
        "next_send",
        "quality",
        "received",
        "refused",
        "run",
        "scheduled",
        "sent_at",
        "sequence",
        "serial",
        "state",
        "suspect",
        "suspect_us",
        "told",
        "told_at",
        "told_quality",
        "up_at",
        "window",
    )

    def __init__(self, config: NeighbourSet, serial: int, now: Instant) -> None:
        self.config = config
        self.serial = serial
        self.sequence = 0
        self.downs = 0
        self.received = 0
        self.refused = 0
        self.scheduled: int = NEVER
        self.sent_at = 0
        self.told = _TOLD_DOWN
        self.told_at = 0
        self.told_quality = LinkQuality(config.node, 0, 0, False, False)
        self.start(now)

    def start(self, now: Instant) -> None:
        """Forget all that belongs to one start of the neighbour's proxy."""
        self.state = DOWN
        self.suspect = False
        self.failed = False
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

    def agree(self, interval_us: int, multiplier: int) -> None:
        """Timers from both ends' intervals (RFC 5880 section 6.8.4)."""
        self.interval_us = interval_us
        self.multiplier = multiplier
        self.base_us = base = max(self.config.hello_us, interval_us)
        self.detect_us = multiplier * base
        self.suspect_us = base * 7 // 5

    def patience_us(self) -> int:
        """Silence that is no reason for suspicion: 1.4 intervals, and up to one for jitter."""
        slack = self.quality.deviation_us << 2
        return self.suspect_us + (slack if slack < self.base_us else self.base_us)


class Links:
    """Liveness and quality of all links of one proxy.

    Events: NeighbourSet, NeighbourGone, Received(node, Hello), Tick, AgentAlive, Counted.
    Effects: Send(node, Hello), LinkUp, LinkQuality, LinkSuspected, LinkDown.

    A hello must have been verified by the caller, under keys of this pair of proxy starts; what
    is in the socket must be handed over before a Tick, and a Tick that comes more than a quarter
    of an interval late judges nobody: it was this process that stood still.

    Args:
        incarnation: of this proxy, 63 random bits.
        random: named stream, e.g. `Random(f"{seed}/links/{me}")`; only for jitter.
        config: how calmly links are judged.
    """

    __slots__ = (
        "_agent_alive",
        "_config",
        "_heap",
        "_incarnation",
        "_neighbours",
        "_random",
        "_serial",
        "deadline",
    )

    def __init__(self, incarnation: int, random: Random, config: Config | None = None) -> None:
        self.deadline: Instant = NEVER
        self._incarnation = incarnation
        self._random = random.random
        self._config = config or Config()
        self._agent_alive = False
        self._neighbours: dict[str, _Neighbour] = {}
        # (instant, serial, neighbour); an entry is stale unless it is its neighbour's
        # `scheduled`.  Rebuilt when it holds more than four entries a neighbour.
        self._heap: list[tuple[int, int, _Neighbour]] = []
        self._serial = 0

    def handle(self, now: Instant, event: Event) -> Effects:
        if type(event) is Received:
            return self._on_hello(now, event.src, event.message)
        if type(event) is Tick:
            return self._on_tick(now)
        if type(event) is NeighbourSet:
            return self._on_set(now, event)
        if type(event) is NeighbourGone:
            return self._on_gone(now, event)
        if type(event) is Counted:
            neighbour = self._neighbours.get(event.node)
            if neighbour is not None:
                neighbour.quality.counted(event.good, event.lost)
        elif type(event) is AgentAlive:
            self._agent_alive = event.alive
        return NOTHING

    def statistics(self) -> tuple[LinkStatistics, ...]:
        """All neighbours as they stand, by name."""
        return tuple(
            LinkStatistics(
                node,
                _shown(n),
                n.quality.rtt_us,
                n.quality.loss_ppm,
                n.quality.gray,
                n.agent_alive,
                n.sequence,
                n.received,
                n.refused,
                n.downs,
            )
            for node, n in sorted(self._neighbours.items())
        )

    def is_up(self, node: str) -> bool:
        """Whether the last thing told of this neighbour is LinkUp, suspected or not."""
        neighbour = self._neighbours.get(node)
        return neighbour is not None and neighbour.told != _TOLD_DOWN

    # ------------------------------------------------------------------------------- configuration
    def _on_set(self, now: Instant, event: NeighbourSet) -> Effects:
        assert INTERVAL_US_MIN <= event.hello_us <= INTERVAL_US_MAX, event.hello_us
        out: list[Effect] = []
        n = self._neighbours.get(event.node)
        if n is None:
            if len(self._neighbours) >= NEIGHBOURS_MAX:
                return (LinkDown(event.node, "too many neighbours"),)
            self._serial += 1
            n = self._neighbours[event.node] = _Neighbour(event, self._serial, now)
        else:
            restarted = n.config.incarnation != event.incarnation
            n.config = event
            if restarted:
                self._tell_down(n, "neighbour restarted", out)
                n.start(now)
            else:
                n.agree(n.interval_us, n.multiplier)
        self._schedule(n)
        return tuple(out)

    def _on_gone(self, now: Instant, event: NeighbourGone) -> Effects:
        n = self._neighbours.pop(event.node, None)
        if n is None:
            return NOTHING
        n.scheduled = -1
        n.state = ADMIN_DOWN
        out: list[Effect] = []
        self._say(n, now, 0, out)
        self._tell_down(n, "removed", out)
        self._settle()
        return tuple(out)

    # ----------------------------------------------------------------------------------- reception
    def _on_hello(self, now: Instant, node: str, hello: Hello) -> Effects:
        n = self._neighbours.get(node)
        if n is None:
            return NOTHING
        window = n.window
        sequence = hello.sequence
        if hello.incarnation != n.config.incarnation or not window.fresh(sequence):
            n.refused += 1
            return NOTHING
        n.received += 1
        step = sequence - window.top
        good, lost = window.accept(sequence)
        if step < 0:
            return NOTHING  # Overtaken: what it says is older than what we know.
        quality = n.quality
        if n.state == UP:
            quality.judged(good, lost)
            quality.reported(hello.good, hello.lost)
        if hello.echo_us > n.echo_seen:
            n.echo_seen = hello.echo_us
            quality.sample_rtt(now - hello.echo_us - hello.dwell_us)
        n.echo_us = hello.sent_us
        n.echo_at = now
        n.heard_at = now
        n.suspect = False
        n.agent_alive = hello.flags & AGENT_ALIVE != 0
        if hello.interval_us != n.interval_us or hello.multiplier != n.multiplier:
            n.agree(hello.interval_us, hello.multiplier)
        out: list[Effect] = []
        before = n.state
        if before != UP or hello.state != UP:
            self._step(n, hello.state, out)
        n.run = n.run + 1 if step == 1 and before == UP else 0
        if n.state == UP:
            if before != UP:
                n.up_at = now
                window.forgive()
            last = n.told_quality
            if (
                n.told != _TOLD_UP
                or now - n.told_at >= self._config.quality_us
                or quality.gray != last.gray
                or n.agent_alive != last.agent_alive
            ):
                self._tell_up(n, now, out)
        n.judge_at = now + n.patience_us() if n.state != DOWN else NEVER
        # A change of state is news, and a poll wants an answer, but not more than 16 an interval.
        if n.state != before or (hello.flags & POLL and now - n.sent_at >= max(n.base_us >> 4, 1)):
            self._say(n, now, FINAL if hello.flags & POLL else 0, out)
        elif quality.watched:
            n.next_send = min(n.next_send, n.sent_at + (n.base_us >> 2))
            if n.next_send <= now:
                self._say(n, now, 0, out)
        self._schedule(n)
        return tuple(out) if out else NOTHING

    def _step(self, n: _Neighbour, theirs: int, out: list[Effect]) -> None:
        """Session state, RFC 5880 section 6.8.6."""
        if theirs == ADMIN_DOWN:
            if n.state != DOWN:
                self._fail(n, "neighbour shut", out)
                n.failed = False
        elif n.state == DOWN:
            if theirs != UP:
                n.state = INIT if theirs == DOWN else UP
        elif n.state == INIT:
            if theirs != DOWN:
                n.state = UP
        elif theirs == DOWN:
            self._fail(n, "neighbour down", out)

    def _fail(self, n: _Neighbour, reason: str, out: list[Effect]) -> None:
        n.failed = n.failed or n.state == UP
        n.state = DOWN
        n.suspect = False
        n.judge_at = NEVER
        n.quality = Quality(n.quality.rtt_us, n.quality.deviation_us)
        self._tell_down(n, reason, out)

    # ---------------------------------------------------------------------------------------- time
    def _on_tick(self, now: Instant) -> Effects:
        if now < self.deadline:
            return NOTHING
        out: list[Effect] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, n = heapq.heappop(heap)
            if due != n.scheduled:
                continue
            n.scheduled = NEVER
            if n.judge_at <= now:
                self._judge(n, now, out)
            if n.next_send <= now:
                self._say(n, now, 0, out)
            self._schedule(n)
        self._settle()
        return tuple(out) if out else NOTHING

    def _judge(self, n: _Neighbour, now: Instant, out: list[Effect]) -> None:
        """Suspect or condemn a neighbour that has been silent, unless this tick is late."""
        if now - n.judge_at > n.base_us >> 2:
            n.heard_at = max(n.heard_at, now - n.base_us)
        silence = now - n.heard_at
        if silence >= n.detect_us:
            self._fail(n, "silent", out)
            n.next_send = now
        elif silence < (patience := n.patience_us()):
            n.judge_at = n.heard_at + patience
        else:
            n.judge_at = n.heard_at + n.detect_us
            n.suspect = True
            n.next_send = now
            if n.told == _TOLD_UP:
                n.told = _TOLD_SUSPECTED
                out.append(LinkSuspected(n.config.node))

    def _say(self, n: _Neighbour, now: Instant, flags: int, out: list[Effect]) -> None:
        """Send a hello and choose the time of the next one (jitter: RFC 5880 section 6.8.7)."""
        config = self._config
        interval = n.base_us
        if n.suspect or n.quality.watched:
            flags |= POLL
            interval >>= 2
        elif n.state == DOWN and now - n.heard_at > config.idle_after_us:
            interval = max(interval, config.idle_us)
        if self._agent_alive:
            flags |= AGENT_ALIVE
        n.sequence += 1
        n.sent_at = now
        n.next_send = now + max(1, interval - int(self._random() * (interval >> 2)))
        quality = n.quality
        out.append(
            Send(
                n.config.node,
                Hello(
                    n.config.link,
                    self._incarnation,
                    n.sequence,
                    n.state,
                    flags,
                    n.config.hello_us,
                    config.multiplier,
                    now,
                    n.echo_us,
                    now - n.echo_at if n.echo_us else 0,
                    quality.good,
                    quality.lost,
                ),
            )
        )

    def _schedule(self, n: _Neighbour) -> None:
        due = n.next_send if n.next_send < n.judge_at else n.judge_at
        if due != n.scheduled:
            n.scheduled = due
            heapq.heappush(self._heap, (due, n.serial, n))
            if len(self._heap) > 4 * len(self._neighbours):
                self._rebuild()
        self._settle()

    def _settle(self) -> None:
        heap = self._heap
        while heap and heap[0][0] != heap[0][2].scheduled:
            heapq.heappop(heap)
        self.deadline = Instant(heap[0][0]) if heap else NEVER

    def _rebuild(self) -> None:
        self._heap = [
            (n.scheduled, n.serial, n) for n in self._neighbours.values() if n.scheduled != NEVER
        ]
        heapq.heapify(self._heap)

    # ------------------------------------------------------------------------------- what is told
    def _tell_up(self, n: _Neighbour, now: Instant, out: list[Effect]) -> None:
        quality = n.quality
        if n.told == _TOLD_UP:
            if not _differs(quality, n):
                n.told_at = now
                return
            kind: type[LinkQuality] | type[LinkUp] = LinkQuality
        else:
            config = self._config
            if n.told == _TOLD_DOWN and n.failed:
                if n.run < config.good_hellos or now - n.up_at < config.hold_us:
                    return
                n.failed = False
            kind = LinkUp
        n.told = _TOLD_UP
        n.told_at = now
        fields = (n.config.node, quality.rtt_us, quality.loss_ppm, quality.gray, n.agent_alive)
        n.told_quality = LinkQuality(*fields)
        out.append(kind(*fields))

    def _tell_down(self, n: _Neighbour, reason: str, out: list[Effect]) -> None:
        if n.told != _TOLD_DOWN:
            n.told = _TOLD_DOWN
            n.downs += 1
            out.append(LinkDown(n.config.node, reason))


def _differs(quality: Quality, n: _Neighbour) -> bool:
    """A flag, or RTT by more than a tenth and 100 µs, or loss by half a percent."""
    last = n.told_quality
    change_us = abs(quality.rtt_us - last.rtt_us)
    return (
        (change_us > 100 and change_us * 10 > last.rtt_us)
        or abs(quality.loss_ppm - last.loss_ppm) >= 5_000
        or quality.gray != last.gray
        or n.agent_alive != last.agent_alive
    )


def _shown(n: _Neighbour) -> str:
    if n.state != UP:
        return _NAMES[n.state]
    return ("held", "up", "suspected")[n.told]
