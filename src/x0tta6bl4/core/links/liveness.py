"""Neighbour liveness in the manner of BFD, for all links of one proxy.

Source: RFC 5880 section 6.2 (states), 6.8.2 (timers), 6.8.4 (detect time), 6.8.6 (reception),
6.8.7 (jitter), asynchronous mode.  Differences: hellos stay fast while a link comes up; POLL asks
for an answer at once, not for new timers; a suspect is probed before it is declared down.  Who
wants slow hellos says EASY and judges by that at once; the other may then send them (as with
Required Min RX Interval, each direction by itself).  Who wants fast ones again says so by a hello
without it, and judges by those from then on.

    DOWN --hello(down)--> INIT --hello(init|up)--> UP --detect time in silence--> DOWN
    DOWN --hello(init)--> UP        UP --hello(down) or ADMIN_DOWN--> DOWN

Above these states stands what the others are told: `LinkUp` comes with the first UP; after a
failure it is held back until 10 hellos in a row and 2 s have passed.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import Final

from x0tta6bl4.core.links.calm import End
from x0tta6bl4.core.links.neighbour import TOLD_DOWN, TOLD_SUSPECTED, TOLD_UP, Neighbour
from x0tta6bl4.core.links.quality import Quality
from x0tta6bl4.core.links.slots import Slots
from x0tta6bl4.core.links.words import (
    NEIGHBOURS_MAX,
    AgentAlive,
    Config,
    Counted,
    LinkDown,
    LinkQuality,
    LinkStatistics,
    LinkSuspected,
    LinkUp,
    NeighbourGone,
    NeighbourSet,
    Parked,
)
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    Effect,
    Effects,
    Event,
    Instant,
    Received,
    Send,
    Tick,
)
from x0tta6bl4.wire.hello import (
    ADMIN_DOWN,
    AGENT_ALIVE,
    DOWN,
    EASY,
    EASY_US,
    FINAL,
    INIT,
    INTERVAL_US_MAX,
    INTERVAL_US_MIN,
    POLL,
    UP,
    Hello,
)

# ----------------------------------------------------------------------------------- the machine
_NAMES: Final = ("shut", "down", "init", "up")


class Links:
    """Liveness and quality of all links of one proxy.

    Events: NeighbourSet, NeighbourGone, Received(node, Hello), Tick, AgentAlive, Counted,
    Parked.
    Effects: Send(node, Hello), LinkUp, LinkQuality, LinkSuspected, LinkDown.

    A hello must have been verified by the caller, under keys of this pair of proxy starts; what
    is in the socket must be handed over before a Tick, and a Tick that comes more than a quarter
    of an interval late judges nobody: it was this process that stood still.

    Args:
        incarnation: of this proxy, 63 random bits.
        random: named stream, e.g. `Random(f"{seed}/links/{me}")`; only seeds the jitter.
        config: how calmly links are judged.
    """

    __slots__ = (
        "_agent_alive",
        "_config",
        "_heap",
        "_incarnation",
        "_neighbours",
        "_serial",
        "_slots",
        "deadline",
    )

    def __init__(self, incarnation: int, random: Random, config: Config | None = None) -> None:
        self.deadline: Instant = NEVER
        self._incarnation = incarnation
        self._slots = Slots(random.getrandbits(32))
        self._config = config or Config()
        self._agent_alive = False
        self._neighbours: dict[str, Neighbour] = {}
        # (instant, serial, neighbour); an entry is stale unless it is its neighbour's
        # `scheduled`.  Rebuilt when it holds more than four entries a neighbour.
        self._heap: list[tuple[int, int, Neighbour]] = []
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
                neighbour.calm = ()
        elif type(event) is AgentAlive:
            return self._on_agent(now, event.alive)
        elif type(event) is Parked:
            n = self._neighbours[event.node]
            if event.parked:
                n.scheduled = -1
                self._settle()
            else:
                self._schedule(n)
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
                n.window.top - n.skipped,
                n.refused,
                n.downs,
            )
            for node, n in sorted(self._neighbours.items())
        )

    def is_up(self, node: str) -> bool:
        """Whether the last thing told of this neighbour is LinkUp, suspected or not."""
        neighbour = self._neighbours.get(node)
        return neighbour is not None and neighbour.told != TOLD_DOWN

    def end(self, node: str) -> End | None:
        """This end of a link, for one who moves both ends on at once (`calm`)."""
        n = self._neighbours.get(node)
        alive = AGENT_ALIVE if self._agent_alive else 0
        return End(n, self._slots, self._incarnation, alive, self._config) if n else None

    # ------------------------------------------------------------------------------- configuration
    def _on_set(self, now: Instant, event: NeighbourSet) -> Effects:
        assert INTERVAL_US_MIN <= event.hello_us <= INTERVAL_US_MAX, event.hello_us
        out: list[Effect] = []
        n = self._neighbours.get(event.node)
        if n is None:
            if len(self._neighbours) >= NEIGHBOURS_MAX:
                return (LinkDown(event.node, "too many neighbours"),)
            self._serial += 1
            n = self._neighbours[event.node] = Neighbour(
                event, self._serial, now, self._config.quality_us
            )
        else:
            restarted = n.config.incarnation != event.incarnation
            n.config = event
            if restarted:
                self._tell_down(n, "neighbour restarted", out)
                n.start(now)
            else:
                n.agree(n.interval_us, n.multiplier)
                if n.ease(self._agent_alive, now):
                    out.append(self._say(n, now, 0))
        self._schedule(n)
        return tuple(out)

    def _on_agent(self, now: Instant, alive: bool) -> Effects:
        """Without an agent nobody hears what else watches a link."""
        self._agent_alive = alive
        out: list[Effect] = []
        for n in self._neighbours.values():
            if n.ease(alive, now):
                out.append(self._say(n, now, 0))
                self._schedule(n)
        return tuple(out)

    def _on_gone(self, now: Instant, event: NeighbourGone) -> Effects:
        n = self._neighbours.pop(event.node, None)
        if n is None:
            return NOTHING
        n.scheduled = -1
        n.state = ADMIN_DOWN
        out: list[Effect] = []
        out.append(self._say(n, now, 0))
        self._tell_down(n, "removed", out)
        self._settle()
        return tuple(out)

    # ----------------------------------------------------------------------------------- reception
    def _on_hello(self, now: Instant, node: str, hello: Hello) -> Effects:
        n = self._neighbours.get(node)
        if n is None:
            return NOTHING
        if n.take(now, hello):
            if n.scheduled < n.next_send:
                self._schedule(n)
            return NOTHING
        window = n.window
        sequence = hello.sequence
        if hello.incarnation != n.config.incarnation or not window.fresh(sequence):
            n.refused += 1
            return NOTHING
        step = sequence - window.top
        n.skipped += step - 1 if step > 0 else -1
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
        eased = hello.flags & EASY != 0
        if eased != n.eased:
            n.eased = eased
            n.next_send = min(n.next_send, n.sent_at + n.base_us)
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
                n.told != TOLD_UP
                or now >= n.look_at
                or quality.gray != last.gray
                or n.agent_alive != last.agent_alive
            ):
                self._tell_up(n, now, out)
        turned = n.ease(self._agent_alive, now)
        n.settle()
        n.judge_at = now + n.patience_us if n.state != DOWN else NEVER
        # A change of state is news, and a poll wants an answer, but not more than 16 an interval.
        polled = hello.flags & POLL and now - n.sent_at >= max(n.base_us >> 4, 1)
        if n.state != before or turned or polled:
            out.append(self._say(n, now, FINAL if hello.flags & POLL else 0))
        elif quality.watched:
            n.next_send = min(n.next_send, n.sent_at + (n.base_us >> 2))
            if n.next_send <= now:
                out.append(self._say(n, now, 0))
        self._schedule(n)
        return tuple(out) if out else NOTHING

    def _step(self, n: Neighbour, theirs: int, out: list[Effect]) -> None:
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

    def _fail(self, n: Neighbour, reason: str, out: list[Effect]) -> None:
        n.failed = n.failed or n.state == UP
        n.state = DOWN
        n.suspect = False
        n.ease(False, n.heard_at)
        n.judge_at = NEVER
        n.quality = Quality(n.quality.rtt_us, n.quality.deviation_us)
        n.calm = ()
        self._tell_down(n, reason, out)

    # ---------------------------------------------------------------------------------------- time
    def _on_tick(self, now: Instant) -> Effects:
        if now < self.deadline:
            return NOTHING
        out: list[Effect] = []
        heap = self._heap
        while heap:
            due, serial, n = heap[0]
            if due != n.scheduled:
                heapq.heappop(heap)
                continue
            if due <= now:
                if n.judge_at <= now:
                    self._judge(n, now, out)
                if n.next_send <= now:
                    out.append(self._say(n, now, 0))
            due = n.next_send if n.next_send < n.judge_at else n.judge_at
            if due == n.scheduled:
                break
            n.scheduled = due  # `Neighbour.take` may have moved it away.
            heapq.heapreplace(heap, (due, serial, n))
        self.deadline = heap[0][0] if heap else NEVER  # type: ignore[assignment]
        return tuple(out) if out else NOTHING

    def _judge(self, n: Neighbour, now: Instant, out: list[Effect]) -> None:
        """Suspect or condemn a neighbour that has been silent, unless this tick is late.

        One that is to say little and does not say even that is asked now, and judged by the answer.
        """
        late = now - n.judge_at > n.base_us >> 2
        if n.ease(False, now):
            n.next_send = now
            if not late:
                n.heard_at = now - n.patience_us
        if late:
            n.heard_at = max(n.heard_at, now - n.base_us)
        silence = now - n.heard_at
        if silence >= n.detect_us:
            self._fail(n, "silent", out)
            n.next_send = now
        elif silence < n.patience_us:
            n.judge_at = n.heard_at + n.patience_us
        else:
            n.judge_at = n.heard_at + n.detect_us
            n.suspect = True
            n.calm = ()
            n.next_send = now
            if n.told == TOLD_UP:
                n.told = TOLD_SUSPECTED
                out.append(LinkSuspected(n.config.node))

    def _say(self, n: Neighbour, now: Instant, flags: int) -> Send:
        """Make a hello, and choose the time of the next one."""
        config = self._config
        interval = n.base_us
        quality = n.quality
        if n.easy:
            flags |= EASY
        if n.suspect or quality.watched:
            flags |= POLL
            interval >>= 2
        elif n.eased and n.state == UP:
            interval = max(interval, EASY_US)
        elif n.state == DOWN and now - n.heard_at > config.idle_after_us:
            interval = max(interval, config.idle_us)
        if self._agent_alive:
            flags |= AGENT_ALIVE
        n.sequence += 1
        n.sent_at = now
        slots = self._slots
        n.next_send = (
            slots.at
            if slots.after <= now < slots.at and slots.interval_us == interval
            else slots.next(interval, now)
        )
        mine = n.config
        echo_us = n.echo_us
        return Send(
            mine.node,
            Hello(
                mine.link,
                self._incarnation,
                n.sequence,
                n.state,
                flags,
                mine.hello_us,
                config.multiplier,
                now,
                echo_us,
                now - n.echo_at if echo_us else 0,
                quality.good,
                quality.lost,
            ),
        )

    def _schedule(self, n: Neighbour) -> None:
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
        # (A call of Instant would be a tenth of a hello.)
        self.deadline = heap[0][0] if heap else NEVER  # type: ignore[assignment]

    def _rebuild(self) -> None:
        self._heap = [
            (n.scheduled, n.serial, n) for n in self._neighbours.values() if n.scheduled != NEVER
        ]
        heapq.heapify(self._heap)

    # ------------------------------------------------------------------------------- what is told
    def _tell_up(self, n: Neighbour, now: Instant, out: list[Effect]) -> None:
        quality = n.quality
        if n.told == TOLD_UP:
            if not n.differs():
                n.looked(now)
                return
            kind: type[LinkQuality] | type[LinkUp] = LinkQuality
        else:
            config = self._config
            if n.told == TOLD_DOWN and n.failed:
                if n.run < config.good_hellos or now - n.up_at < config.hold_us:
                    return
                n.failed = False
            kind = LinkUp
        n.told = TOLD_UP
        n.look_at = now + n.look_us
        fields = (n.config.node, quality.rtt_us, quality.loss_ppm, quality.gray, n.agent_alive)
        n.told_quality = LinkQuality(*fields)
        out.append(kind(*fields))

    def _tell_down(self, n: Neighbour, reason: str, out: list[Effect]) -> None:
        if n.told != TOLD_DOWN:
            n.told = TOLD_DOWN
            n.downs += 1
            out.append(LinkDown(n.config.node, reason))


def _shown(n: Neighbour) -> str:
    if n.state != UP:
        return _NAMES[n.state]
    return ("held", "up", "suspected")[n.told]
