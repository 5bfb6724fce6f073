"""The map: which links exist, by the word of both their ends.

A link counts only if both ends report it, at the higher of the two costs, and if one of them can
dial the other.  So neither a stale record nor a lying node can put a link into the map alone, and
what a liar says of its own links costs itself.

Nodes are numbers inside; number 0 is this node.  A number is used again when nobody names the
node any more.

Source: OSPF's two-way check, RFC 2328 section 16.1 (2b); stub routers, RFC 6987.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from x0tta6bl4.wire.records import Adjacency

NODES_MAX: Final = 65_536
LINKS_MAX: Final = 256
"""Links of one node; further ones in its record are not looked at."""
COST_MAX: Final = 2**24
LEVEL_MAX: Final = 6
NO_LINK: Final = 0


class Report(NamedTuple):
    """What one end says of a link."""

    cost: int
    dials: bool


class Change(NamedTuple):
    """The cost of a link has changed; NO_LINK where there was or is none."""

    a: int
    b: int
    old: int
    new: int

    @property
    def worse(self) -> bool:
        """Whether paths over it got longer; else only shorter ones can have appeared."""
        return self.new == NO_LINK or (self.old != NO_LINK and self.new > self.old)


def two_way(here: Report | None, there: Report | None) -> int:
    """Cost of a link by the reports of both ends; NO_LINK if it does not count."""
    if here is None or there is None or not (here.dials or there.dials):
        return NO_LINK
    return max(here.cost, there.cost)


class Map:
    """The graph of confirmed links; bounded by NODES_MAX and LINKS_MAX.

    Args:
        me: name of this node, which gets number 0.
    """

    __slots__ = ("_free", "_levels", "_mentions", "index", "links", "names", "says", "stub")

    def __init__(self, me: str) -> None:
        self.names: list[str] = [me]
        self.index: dict[str, int] = {me: 0}
        self.says: list[dict[int, Report] | None] = [{}]
        """What each node reports; None: it has no record, or one that does not count."""
        self.links: list[dict[int, int]] = [{}]
        """Neighbours over confirmed links, with cost times local penalty."""
        self.stub: list[bool] = [False]
        self._mentions: list[int] = [1]
        self._free: list[int] = []
        self._levels: dict[tuple[int, int], int] = {}

    def say(self, node: str, links: Iterable[Adjacency] | None) -> list[Change]:
        """A node reports these links now; None: nothing, its record is gone.

        Returns:
            Links whose cost changed by it.
        """
        me = self._number(node)
        if me is None:
            return []
        before = self.says[me]
        now: dict[int, Report] | None = None
        if links is not None:
            now = {}
            for link in links:
                other = self._number(link.node)
                if other is not None and other != me and len(now) < LINKS_MAX:
                    now[other] = Report(min(max(link.cost, 1), COST_MAX), link.dials)
                elif other is not None:
                    self._forget(other)
        self.says[me] = now
        if before is None and now is not None:
            self._mentions[me] += 1
        for other in now or ():
            self._mentions[other] += 1
        changes = []
        for other in {**(before or {}), **(now or {})}:
            change = self._weigh(me, other)
            if change is not None:
                changes.append(change)
        for other in before or ():
            self._mentions[other] -= 1
            self._forget(other)
        if before is not None and now is None:
            self._mentions[me] -= 1
        self._forget(me)
        return changes

    def level(self, a: str, b: str) -> int:
        """Local penalty of a link: its cost counts 2^level times."""
        pair = self._pair(a, b)
        return self._levels.get(pair, 0) if pair else 0

    def set_level(self, a: str, b: str, level: int) -> list[Change]:
        """Set the local penalty of a link that exists; 0 takes it away."""
        pair = self._pair(a, b)
        if pair is None:
            return []
        if level:
            self._levels[pair] = level
        else:
            self._levels.pop(pair, None)
        change = self._weigh(*pair)
        return [change] if change else []

    def cost(self, path: Iterable[int]) -> int:
        """Sum over a path, all of whose links must exist."""
        total, before = 0, -1
        for node in path:
            if before >= 0:
                total += self.links[before][node]
            before = node
        return total

    def _pair(self, a: str, b: str) -> tuple[int, int] | None:
        one, other = self.index.get(a), self.index.get(b)
        if one is None or other is None or one == other:
            return None
        return (one, other) if one < other else (other, one)

    def _weigh(self, a: int, b: int) -> Change | None:
        """Bring one link up to date with the reports of its ends."""
        ours, theirs = self.says[a], self.says[b]
        new = NO_LINK
        if ours is not None and theirs is not None:
            new = two_way(ours.get(b), theirs.get(a))
        if new:
            new <<= self._levels.get((a, b) if a < b else (b, a), 0)
        old = self.links[a].get(b, NO_LINK)
        if new == old:
            return None
        if new:
            self.links[a][b] = self.links[b][a] = new
        else:
            del self.links[a][b], self.links[b][a]
        return Change(a, b, old, new)

    def _number(self, node: str) -> int | None:
        number = self.index.get(node)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self.names[number] = node
        elif len(self.names) < NODES_MAX:
            number = len(self.names)
            self.names.append(node)
            self.says.append(None)
            self.links.append({})
            self.stub.append(False)
            self._mentions.append(0)
        else:
            return None
        self.index[node] = number
        return number

    def _forget(self, number: int) -> None:
        """Free the number of a node that nobody names any more."""
        if self._mentions[number] or self.index.get(self.names[number]) != number:
            return
        del self.index[self.names[number]]
        self.stub[number] = False
        self._levels = {pair: level for pair, level in self._levels.items() if number not in pair}
        self._free.append(number)
