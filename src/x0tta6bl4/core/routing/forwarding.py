"""The forwarding machine: which table the kernel is to have, and when it changes over.

    MemberChanged, MemberGone, AdjacencyWanted --> map --> ways --[its turn]--> WaysChanged

After one link has changed, nodes that change over in any order can send packets in circles for a
while.  They can't if each waits for its turn: when a link got worse, the farthest from it comes
first, so that nobody sends packets back to one who still uses it; when it got better, the nearest.
Turns are counted in hops over the link and last TURN each, TURNS_MAX at most; who loses a link
itself has its alternates in force meanwhile.  Alternates and source routes need no turn.

Source: RFC 6976 sections 4 and 5 (ordered FIB), with turns instead of messages; restart of a node
as in RFC 4724.
"""

from __future__ import annotations

import heapq
from typing import Final, final

from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    NOTHING,
    Effect,
    Effects,
    Event,
    Instant,
    Tick,
    Value,
)
from x0tta6bl4.core.routing.alternates import Alternates, Way
from x0tta6bl4.core.routing.map import Change
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.records import NodeBody

TURN: Final = 25 * MS
"""What the flood of a record and the table of one node take, with room."""
TURNS_MAX: Final = 8
LINKS_MAX: Final = 4
"""Nobody waits where more links have changed at once."""
_COALESCE: Final = 1 * MS
_REPAIR_AFTER: Final = 5 * MS
_REPAIR_EVERY: Final = 1 * MS
_RESTARTS_MAX: Final = 65_536


@final
class WaysChanged(Value, frozen=True):
    """How packets for these nodes are to leave this one from now on."""

    ways: tuple[tuple[str, Way | None], ...]
    """By destination; None: not at all."""


class Forwarding:
    """The machine.

    Args:
        me: this node's name.
    """

    __slots__ = (
        "_changes", "_due", "_me", "_repair_at", "_restarting", "_restarts", "_table", "_update_at",
        "_waiting", "deadline",
    )  # fmt: skip

    def __init__(self, me: str) -> None:
        self._me = me
        self._table = Alternates(me)
        self._changes: list[Change] = []
        self._waiting: dict[str, Way | None] = {}
        """Ways whose turn has not come; as bounded as the map."""
        self._due: Instant = NEVER
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
                self._note(now, self._table.say(event.node, None))
        elif type(event) is AdjacencyWanted:
            self._note(now, self._table.say(self._me, event.links))
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
        self._note(now, self._table.say(event.node, body.links, stub=body.stub))

    def _note(self, now: Instant, changes: list[Change]) -> None:
        """Remember which links have changed."""
        self._changes += changes[: LINKS_MAX + 1 - len(self._changes)]
        if not self._table.due:
            return
        self._update_at = Instant(min(self._update_at, now + _COALESCE))

    def _on_tick(self, now: Instant, out: list[Effect]) -> None:
        while self._restarts and self._restarts[0][0] <= now:
            _, node, body = heapq.heappop(self._restarts)
            if self._restarting.get(node) is body:
                del self._restarting[node]
                self._note(now, self._table.say(node, None))
        if now >= self._update_at:
            self._update(now)
        if now >= self._repair_at:
            self._repair(now, out)
        if now >= self._due:
            self._due = NEVER
            out.append(WaysChanged(tuple(sorted(self._waiting.items()))))
            self._waiting = {}

    def _update(self, now: Instant) -> None:
        self._update_at = NEVER
        changes, self._changes = self._changes, []
        found = self._table.update()
        self._repair_at = Instant(now + _REPAIR_AFTER) if self._table.unrepaired else NEVER
        if not found:
            return
        turns = 0
        if len(changes) <= LINKS_MAX:
            turns = max((self._table.turn(change) for change in changes), default=0)
        self._waiting |= found
        self._due = Instant(min(self._due, now + min(turns, TURNS_MAX) * TURN))

    def _repair(self, now: Instant, out: list[Effect]) -> None:
        found = self._table.repair()
        self._repair_at = Instant(now + _REPAIR_EVERY) if self._table.unrepaired else NEVER
        at_once = []
        for name, way in sorted(found.items()):
            if name in self._waiting:
                self._waiting[name] = way
            else:
                at_once.append((name, way))
        if at_once:
            out.append(WaysChanged(tuple(at_once)))
