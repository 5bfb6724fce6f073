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


def two_way(here: Adjacency | None, there: Adjacency | None) -> int:
    """Cost of a link by the reports of both ends; NO_LINK if it does not count."""
    if here is None or there is None or not (here.dials or there.dials):
        return NO_LINK
    return min(max(here.cost, there.cost, 1), COST_MAX)


class Map:
    """The graph of confirmed links; bounded by NODES_MAX and LINKS_MAX.

    Args:
        me: name of this node, which gets number 0.
    """

    __slots__ = ("_free", "_levels", "_mentions", "index", "links", "names", "says", "stub")

    def __init__(self, me: str) -> None:
        self.names: list[str] = [me]
        self.index: dict[str, int] = {me: 0}
        self.says: list[tuple[Adjacency, ...] | None] = [()]
        """What each node reports, of each link once; None: it has no record, or one that does not
        count.  These are the tuples of the records: there is no second copy of them."""
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
        said, says = self.says[me], None
        if links is not None:
            says = self._numbered(_once(node, links))
        self.says[me] = says
        if says == said:
            return []
        self._mentions[me] += (says is not None) - (said is not None)
        before = {link.node: link for link in said or ()}
        changes: list[Change] = []
        for link in says or ():
            other = self.index[link.node]
            old = before.pop(link.node, None)
            if old is None:
                self._mentions[other] += 1
            if old != link:
                self._weigh(me, other, changes)
        for gone in before:
            other = self.index[gone]
            self._weigh(me, other, changes)
            self._mentions[other] -= 1
            self._forget(other)
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
        changes: list[Change] = []
        self._weigh(*pair, changes)
        return changes

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

    def _weigh(self, a: int, b: int, changes: list[Change]) -> None:
        """Bring one link up to date with the reports of its ends."""
        new = NO_LINK
        ours, theirs = self.says[a], self.says[b]
        if ours is not None and theirs is not None:
            new = two_way(_of(ours, self.names[b]), _of(theirs, self.names[a]))
        if new and self._levels:
            new <<= self._levels.get((a, b) if a < b else (b, a), 0)
        old = self.links[a].get(b, NO_LINK)
        if new == old:
            return
        if new:
            self.links[a][b] = self.links[b][a] = new
        else:
            del self.links[a][b], self.links[b][a]
        changes.append(Change(a, b, old, new))

    def _numbered(self, links: tuple[Adjacency, ...]) -> tuple[Adjacency, ...]:
        """Those of a node's links whose other ends have a number: all, unless the map is full."""
        index = self.index
        for link in links:
            if link.node not in index and self._number(link.node) is None:
                return tuple(link for link in links if link.node in index)
        return links

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


def _once(node: str, links: Iterable[Adjacency]) -> tuple[Adjacency, ...]:
    """Links to different other nodes, LINKS_MAX at most; of two to the same the later one."""
    found = tuple(links)
    others = {link.node: link for link in found}
    if len(others) == len(found) <= LINKS_MAX and node not in others:
        return found
    others.pop(node, None)
    return tuple(others.values())[:LINKS_MAX]


def _of(links: tuple[Adjacency, ...], node: str) -> Adjacency | None:
    for link in links:
        if link.node == node:
            return link
    return None
