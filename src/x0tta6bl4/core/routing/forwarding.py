"""The forwarding machine: which table the kernel is to have, and when it changes over.

    MemberChanged, MemberGone, AdjacencyWanted --> map --> ways --[its turn]--> WaysChanged
                                      neighbours' Completion --^                Completion

After the map has changed, nodes that change over in any order can send packets in circles for a
while.  They can't if each waits until those that come after it on its new way have changed over:
then whoever has done so sees packets on new ways to their end, and whoever has not sends them along
the old way, which ends there or meets one who has.  That holds for each destination by itself and
for whatever has changed, one link or a node with all of its links, also while an earlier change is
under way: all that waits is counted anew then.

Turns are counted in links of the new way.  Each node tells its neighbours by which map it sends
packets, and up to which turn; so a change goes from the destinations to those farthest off as fast
as they compute it, and waits for whoever is slow.  Where the next hop says nothing, because its
agent is dead, a turn lasts TURN, TURNS_MAX of them at most.  Who loses a link itself has its
alternates in force meanwhile, and these need no turn.

A member that the map has no path to for a moment is most often there: its neighbours were told of
links in an order of their own.  For KEEP its packets go to the next hop that they had before all
that, without alternates: next hops of one map make no circles, those of the maps in between do.

Source: Francois & Bonaventure, Avoiding transient loops during IGP convergence (INFOCOM 2005), for
the order; RFC 6976 for turns that take a fixed time, and for completion messages; restart of a node
as in RFC 4724.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, final

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
from x0tta6bl4.core.routing.alternates import Alternates, Way
from x0tta6bl4.core.routing.map import LINKS_MAX, NODES_MAX
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.messages import Completion
from x0tta6bl4.wire.records import Adjacency, NodeBody

TURN: Final = 200 * MS
"""What the flood of a record and the table of one node take at most, with room for a processor that
many share."""
TURNS_MAX: Final = 16
WAIT_MAX: Final = 1 * SECOND
"""Where changes never end, what waits is not put off any more."""
KEEP: Final = 5 * SECOND
"""How long packets for a member without a path go where they went; see `Way.kept`."""
ALL: Final = NODES_MAX
"""More turns than any way has."""
_COALESCE: Final = 1 * MS
_REPAIR_AFTER: Final = 5 * MS
_REPAIR_EVERY: Final = 1 * MS
_RESTARTS_MAX: Final = 65_536


@final
class WaysChanged(Value, frozen=True):
    """How packets for these nodes are to leave this one from now on."""

    ways: tuple[tuple[str, Way | None], ...]
    """By destination; None: not at all."""


class _Waits:
    """A way whose turn has not come."""

    __slots__ = ("due", "since", "turn", "way")

    def __init__(self, way: Way | None, since: Instant) -> None:
        self.way = way
        self.since = since
        self.turn = 0
        self.due: Instant = since
        """It is put off no longer."""


class _Hop:
    """Where packets for a destination go."""

    __slots__ = ("_before", "_since", "node")

    def __init__(self, node: str, now: Instant) -> None:
        self.node = self._before = node
        self._since = now

    def turn(self, now: Instant, node: str) -> None:
        """To another neighbour from now on."""
        if node != self.node:
            self._before = self.settled(now)
            self.node, self._since = node, now

    def settled(self, now: Instant) -> str:
        """Where they went for KEEP, before what changes now began to change."""
        return self.node if now - self._since >= KEEP else self._before


class Forwarding:
    """The machine.

    Args:
        me: this node's name.
        turn: how long a turn lasts where nobody says that it is over, microseconds.

    Attributes:
        in_force: whether packets go by what it says.  Before, nobody sends any through this node:
            no way waits, and nothing is told.
    """

    __slots__ = (
        "_due", "_heard", "_hops", "_map", "_me", "_repair_at", "_restarting", "_restarts",
        "_table", "_told", "_turn", "_update_at", "_waiting", "deadline", "in_force",
    )  # fmt: skip

    def __init__(self, me: str, turn: int = TURN) -> None:
        self._me = me
        self._turn = turn
        self._table = Alternates(me)
        self._waiting: dict[str, _Waits] = {}
        """By destination; as bounded as the map."""
        self._hops: dict[str, _Hop] = {}
        """By destination."""
        self._due: Instant = NEVER
        """When the first of them is put off no longer."""
        self._map = 0
        """Digest of the map that the ways are made from."""
        self._heard: dict[str, Completion] = {}
        """The last one of each neighbour; LINKS_MAX at most."""
        self._told: Completion | None = None
        self._update_at: Instant = NEVER
        self._repair_at: Instant = NEVER
        self._restarting: dict[str, NodeBody] = {}
        self._restarts: list[tuple[Instant, str, NodeBody]] = []
        self.in_force = False
        self.deadline: Instant = NEVER

    @property
    def idle(self) -> bool:
        """Whether all that follows from the map has been said."""
        return self._update_at == self._due == NEVER

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in (see the top of the module and `core.machine.Machine`)."""
        out: list[Effect] = []
        if type(event) is Tick:
            if now < self.deadline:
                return NOTHING
            self._on_tick(now, out)
        elif type(event) is MemberChanged:
            if event.node != self._me:
                self._on_member(now, event)
        elif type(event) is MemberGone:
            if event.node != self._me:
                self._restarting.pop(event.node, None)
                self._say(now, event.node, None)
        elif type(event) is AdjacencyWanted:
            self._say(now, self._me, event.links)
        elif type(event) is Received and type(event.message) is Completion:
            self._hear(now, event.src, event.message, out)
        else:
            return NOTHING
        self._tell(out)
        at = min(self._update_at, self._repair_at, self._due)
        if self._restarts:
            at = min(at, self._restarts[0][0])
        self.deadline = at if at > now else Instant(now + 1)
        return tuple(out) if out else NOTHING

    def _on_member(self, now: Instant, event: MemberChanged) -> None:
        body = event.body
        self._restarting.pop(event.node, None)
        if event.restarting_until < NEVER and len(self._restarts) < _RESTARTS_MAX:
            self._restarting[event.node] = body
            heapq.heappush(self._restarts, (event.restarting_until, event.node, body))
        self._say(now, event.node, body.links, stub=body.stub)

    def _say(
        self, now: Instant, node: str, links: tuple[Adjacency, ...] | None, *, stub: bool = False
    ) -> None:
        self._table.say(node, links, stub=stub)
        if self._table.due or node in self._waiting:
            self._update_at = Instant(min(self._update_at, now + _COALESCE))

    def _on_tick(self, now: Instant, out: list[Effect]) -> None:
        while self._restarts and self._restarts[0][0] <= now:
            _, node, body = heapq.heappop(self._restarts)
            if self._restarting.get(node) is body:
                del self._restarting[node]
                self._say(now, node, None)
        if now >= self._update_at:
            self._update(now, out)
        if now >= self._repair_at:
            self._repair(now, out)
        if now >= self._due:
            self._change_over(now, out)

    def _update(self, now: Instant, out: list[Effect]) -> None:
        self._update_at = NEVER
        found = self._table.update()
        self._map = self._table.digest()
        self._repair_at = Instant(now + _REPAIR_AFTER) if self._table.unrepaired else NEVER
        for name, way in found.items():
            waits = self._waiting.setdefault(name, _Waits(way, now))
            if waits.way is None:
                waits.since = now
            waits.way = way
        kept = []
        hops = self._table.hops(self._waiting) if self.in_force else {}
        for name, waits in self._waiting.items():
            if self._keeps(name, waits):
                waits.turn, waits.due = ALL, Instant(waits.since + KEEP)
                if name in found:
                    kept.append((name, Way(self._hops[name].settled(now), kept=True)))
                continue
            waits.turn = max(hops.get(name, 0) - 1, 0)
            turns = min(waits.turn, TURNS_MAX)
            waits.due = Instant(min(now, waits.since + WAIT_MAX) + turns * self._turn)
        if kept:
            out.append(WaysChanged(tuple(kept)))
        self._change_over(now, out)

    def _keeps(self, name: str, waits: _Waits) -> bool:
        """Whether a member without a path was one with a path."""
        member = self.in_force and name in self._hops and self._table.knows(name)
        return member and waits.way is None

    def _hear(self, now: Instant, node: str, message: Completion, out: list[Effect]) -> None:
        if node not in self._heard and len(self._heard) >= LINKS_MAX:
            near = set(self._table.neighbours)
            self._heard = {name: heard for name, heard in self._heard.items() if name in near}
            if len(self._heard) >= LINKS_MAX:
                return
        self._heard[node] = message
        if self._waiting and message.map == self._map:
            self._change_over(now, out)

    def _change_over(self, now: Instant, out: list[Effect]) -> None:
        """Say the ways whose turn it is."""
        turns = {node: heard.turns for node, heard in self._heard.items() if heard.map == self._map}
        turn = sorted(
            name
            for name, waits in self._waiting.items()
            if waits.due <= now or (waits.way and turns.get(waits.way.hop, 0) >= waits.turn)
        )
        if turn:
            out.append(self._changed(now, [(name, self._waiting.pop(name).way) for name in turn]))
        self._due = min((waits.due for waits in self._waiting.values()), default=NEVER)

    def _tell(self, out: list[Effect]) -> None:
        """Tell neighbours how far this node has come, if that is not what they know."""
        if not self.in_force or self._update_at != NEVER:
            return
        turns = min((waits.turn for waits in self._waiting.values()), default=ALL)
        told = Completion(self._map, turns)
        if told != self._told:
            self._told = told
            out += [Send(node, told) for node in self._table.neighbours]

    def _repair(self, now: Instant, out: list[Effect]) -> None:
        found = self._table.repair()
        self._repair_at = Instant(now + _REPAIR_EVERY) if self._table.unrepaired else NEVER
        at_once = []
        for name, way in sorted(found.items()):
            if name in self._waiting:
                self._waiting[name].way = way
            else:
                at_once.append((name, way))
        if at_once:
            out.append(self._changed(now, at_once))

    def _changed(self, now: Instant, ways: Sequence[tuple[str, Way | None]]) -> WaysChanged:
        for name, way in ways:
            if way is None:
                self._hops.pop(name, None)
            elif name in self._hops:
                self._hops[name].turn(now, way.hop)
            else:
                self._hops[name] = _Hop(way.hop, now)
        return WaysChanged(tuple(ways))
