"""The forwarding machine: which table the kernel is to have, and when it changes over.

    MemberChanged, MemberGone, AdjacencyWanted --> map --> ways --[its turn]--> WaysChanged

After the map has changed, nodes that change over in any order can send packets in circles for a
while.  They can't if each waits until those that come after it on its new way have changed over:
then whoever has done so sees packets on new ways to their end, and whoever has not sends them along
the old way, which ends there or meets one who has.  That holds for each destination by itself and
for whatever has changed, one link or a node with all of its links, also while an earlier change is
under way: all that waits is counted anew then, for WAIT_MAX at most.  Turns are counted in links of
the new way and last TURN each, TURNS_MAX at most; who loses a link itself has its alternates in
force meanwhile, and these need no turn.

Source: Francois & Bonaventure, Avoiding transient loops during IGP convergence (INFOCOM 2005), for
the order; RFC 6976 section 4 for turns that take a fixed time; restart of a node as in RFC 4724.
"""

from __future__ import annotations

import heapq
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
    Tick,
    Value,
)
from x0tta6bl4.core.routing.alternates import Alternates, Way
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.records import Adjacency, NodeBody

TURN: Final = 50 * MS
"""What the flood of a record and the table of one node take, with room for a processor that many
share."""
TURNS_MAX: Final = 16
WAIT_MAX: Final = 1 * SECOND
"""Where changes never end, what waits is not put off any more."""
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

    __slots__ = ("due", "since", "way")

    def __init__(self, way: Way | None, since: Instant) -> None:
        self.way = way
        self.since = since
        self.due: Instant = since


class Forwarding:
    """The machine.

    Args:
        me: this node's name.
    """

    __slots__ = (
        "_due", "_me", "_repair_at", "_restarting", "_restarts", "_table", "_update_at",
        "_waiting", "deadline",
    )  # fmt: skip

    def __init__(self, me: str) -> None:
        self._me = me
        self._table = Alternates(me)
        self._waiting: dict[str, _Waits] = {}
        """By destination; as bounded as the map."""
        self._due: Instant = NEVER
        """The first turn of them."""
        self._update_at: Instant = NEVER
        self._repair_at: Instant = NEVER
        self._restarting: dict[str, NodeBody] = {}
        self._restarts: list[tuple[Instant, str, NodeBody]] = []
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
        else:
            return NOTHING
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
        if self._table.due:
            self._update_at = Instant(min(self._update_at, now + _COALESCE))

    def _on_tick(self, now: Instant, out: list[Effect]) -> None:
        while self._restarts and self._restarts[0][0] <= now:
            _, node, body = heapq.heappop(self._restarts)
            if self._restarting.get(node) is body:
                del self._restarting[node]
                self._say(now, node, None)
        if now >= self._update_at:
            self._update(now)
        if now >= self._repair_at:
            self._repair(now, out)
        if now >= self._due:
            turn = sorted(name for name, waits in self._waiting.items() if waits.due <= now)
            out.append(WaysChanged(tuple((name, self._waiting.pop(name).way) for name in turn)))
            self._due = self._first_due()

    def _update(self, now: Instant) -> None:
        self._update_at = NEVER
        found = self._table.update()
        self._repair_at = Instant(now + _REPAIR_AFTER) if self._table.unrepaired else NEVER
        for name, way in found.items():
            self._waiting.setdefault(name, _Waits(way, now)).way = way
        hops = self._table.hops(self._waiting)
        for name, waits in self._waiting.items():
            turns = min(max(hops.get(name, 0) - 1, 0), TURNS_MAX)
            waits.due = Instant(min(now, waits.since + WAIT_MAX) + turns * TURN)
        self._due = self._first_due()

    def _first_due(self) -> Instant:
        return min((waits.due for waits in self._waiting.values()), default=NEVER)

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
            out.append(WaysChanged(tuple(at_once)))
