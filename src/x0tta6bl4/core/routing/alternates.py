"""Next hops to every node, and what to do at once when the link to one of them fails.

Packets that the kernel forwards carry no path: every node sends them on by its own table, and all
tables must fit together.  So this map knows published costs only; a penalty that one node alone
puts on a link could send packets in circles.

For every destination D, with S this node, E the next hop and N another neighbour:

    alternate   N with dist(N, D) < dist(N, S) + dist(S, D): it does not send D's packets back,
                and guards more where also dist(N, D) < dist(N, E) + dist(E, D) (E itself may be
                dead) or dist(N, D) < dist(S, D) (no set of failures makes a circle)
    repair      where no alternate guards so much: the nodes from a neighbour along the shortest
                path without E up to the first one whose own shortest path to D avoids E (where
                only E leads to D: along the shortest path without the link, up to E); a source
                route, which can't circle whatever tables others have, and is not repaired again

`update` costs a few microseconds for each tree and changed destination; `repair` two searches for
one neighbour, and comes after the table is in force.  Distances of both directions are the same,
because a link has one cost.

The trees are those of the neighbours, around this node: dist(N, D) is what they say or, if that is
less, dist(N, S) + dist(S, D), by which N is no alternate.  So they stand whatever happens to links
of this node, and dist(S, D) is the least sum of a link and what lies behind it.

Source: RFC 5286 sections 3.1 to 3.3 (inequalities 1 to 3) and 3.5 (stubs); the repair is that of
draft TI-LFA (RFC 9855) written out node by node.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from enum import IntEnum
from typing import final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.core.routing.map import NO_LINK, Change, Map
from x0tta6bl4.core.routing.paths import HOPS_MAX, INFINITE, Tree
from x0tta6bl4.wire.messages import hash64
from x0tta6bl4.wire.records import Adjacency


class Guard(IntEnum):
    """What an alternate is good for; each is good for more than the one before."""

    NONE = 0
    """There is no alternate."""
    LINK = 1
    """The link failed (inequality 1)."""
    DOWNSTREAM = 2
    """Also several links at once: it is nearer to the destination (inequality 2)."""
    NODE = 3
    """The next hop itself failed (inequality 3)."""


@final
class Way(Value, frozen=True):
    """How packets for one node leave this one."""

    hop: str
    """The neighbour that gets them."""
    alternate: str = ""
    """The neighbour that gets them when the link to `hop` fails; empty: none may."""
    guard: Guard = Guard.NONE
    repair: tuple[str, ...] = ()
    """A source route instead: a neighbour first, last the node from which tables lead on."""
    kept: bool = False
    """There is no path any more: packets that are on their way go where they went."""

    def detour(self, *, source_routes: bool) -> tuple[str, ...]:
        """Through which nodes to send when the link to `hop` has failed; empty: nowhere.

        Args:
            source_routes: whether packets can be sent along a list of nodes.
        """
        if self.repair and source_routes and self.guard < Guard.DOWNSTREAM:
            return self.repair
        return (self.alternate,) if self.alternate else ()


_LINK, _DOWNSTREAM, _NODE = Guard.LINK, Guard.DOWNSTREAM, Guard.NODE
_LOST_MAX = 4
"""Trees of former neighbours, which may return."""
_Near = tuple[int, int, list[int]]
"""A neighbour, the cost of the link to it, distances from it."""
_Search = tuple[list[int], list[int]]
"""Distance of each node, and the node before it."""


class Alternates:
    """Ways to all nodes of a map; bounded by it, with one tree for each neighbour and four more.

    Args:
        me: this node's name.
    """

    __slots__ = (
        "_changes", "_home", "_links", "_map", "_named", "_near", "_rebuild", "_trees",
        "_unrepaired", "ways",
    )  # fmt: skip

    def __init__(self, me: str) -> None:
        self._map = Map(me)
        self._home: list[int] = [0]
        """Distance of each node from this one."""
        self._trees: dict[int, Tree] = {}
        """Of neighbours, and of the last ones that were, longest known first."""
        self._near: list[_Near] = []
        self._changes: list[Change] = []
        self._links = 0
        """Of all links and their costs, in any order."""
        self._rebuild = False
        self._named: list[str] = [me]
        """Names of the numbers at the last update: a number may be given again."""
        self._unrepaired: dict[str, None] = {}
        self.ways: dict[str, Way] = {}
        """By destination, as of the last `update` and `repair`."""

    def say(self, node: str, links: Iterable[Adjacency] | None, *, stub: bool = False) -> None:
        """A node reports these links in its record, this one too; None: its record is gone.

        Args:
            node: name.
            links: with their published costs.
            stub: nothing may pass through it (RFC 6987).
        """
        changes = self._map.say(node, links)
        for change in changes:
            self._links ^= self._hash(change, change.old) ^ self._hash(change, change.new)
        self._changes += changes
        number = self._map.index.get(node)
        if number is not None and self._map.stub[number] != stub:
            self._map.stub[number] = stub
            self._rebuild = True

    @property
    def due(self) -> bool:
        """Whether `update` has something to do."""
        return self._rebuild or bool(self._changes)

    def update(self) -> dict[str, Way | None]:
        """Bring the ways up to date with what was said.

        Returns:
            Ways that changed by destination; None: there is none any more.
        """
        if not self.due:
            return {}
        stale = self._mend()
        self._home += [INFINITE] * (len(self._map.links) - len(self._home))
        found: dict[str, Way | None] = {}
        names, index = self._map.names, self._map.index
        for old, new in zip(self._named, names, strict=False):
            if old != new and old not in index:
                self._forget(old, found)
        live = []
        for number in stale:
            if index.get(names[number]) == number:
                live.append(number)
                continue
            self._home[number] = INFINITE
            if names[number] not in index:
                self._forget(names[number], found)
        self._set_ways(live, found)
        self._named = names[:]
        self._unrepaired = {
            names[near]: None for near, _, _ in sorted(self._near, key=lambda n: names[n[0]])
        }
        return found

    def knows(self, node: str) -> bool:
        """Whether it says itself which links it has."""
        number = self._map.index.get(node)
        return number is not None and self._map.says[number] is not None

    @property
    def unrepaired(self) -> bool:
        """Whether `repair` has something to do."""
        return bool(self._unrepaired) and not self.due

    def repair(self) -> dict[str, Way | None]:
        """Find the source routes around one neighbour: two searches of the map.

        Returns:
            Ways that changed; none while an `update` is due.
        """
        found: dict[str, Way | None] = {}
        if not self.unrepaired:
            return found
        hop = next(iter(self._unrepaired))
        del self._unrepaired[hop]
        around = self._map.index[hop]
        needed = [
            (self._map.index[name], name, way)
            for name, way in self.ways.items()
            if way.hop == hop and way.guard < Guard.DOWNSTREAM
        ]
        if not needed:
            return found
        off_node = _search(self._map, self._named, around, node=True)
        off_link: _Search | None = None
        for number, name, way in needed:
            search = off_node
            if number == around or off_node[0][number] >= INFINITE:
                if off_link is None:
                    off_link = _search(self._map, self._named, around, node=False)
                search = off_link
            list_ = self._around(search, number, around)
            if list_ != way.repair:
                found[name] = self.ways[name] = Way(way.hop, way.alternate, way.guard, list_)
        return found

    @property
    def neighbours(self) -> list[str]:
        """Those over whose links packets leave this node, by name."""
        names = self._map.names
        return sorted(names[number] for number in self._map.links[0])

    def digest(self) -> int:
        """64 bits over what ways are made from: nodes whose bits are equal have the same map."""
        names, stub = self._map.names, self._map.stub
        stubs = [names[n] for n, is_stub in enumerate(stub) if is_stub]
        return self._links ^ hash64(" ".join(sorted(stubs)).encode()) if stubs else self._links

    def _hash(self, change: Change, cost: int) -> int:
        if cost == NO_LINK:
            return 0
        one, other = sorted((self._map.names[change.a], self._map.names[change.b]))
        return hash64(f"{one} {other} {cost}".encode())

    def hops(self, targets: Iterable[str]) -> dict[str, int]:
        """Links on the longest of the shortest paths to each of these nodes that can be reached.

        Whoever comes next on a shortest path finds fewer, by its own map.
        """
        distance, links, stub = self._home, self._map.links, self._map.stub
        most = {0: 0}
        found: dict[str, int] = {}
        for name in targets:
            target = self._map.index.get(name)
            if target is None or distance[target] >= INFINITE:
                continue
            stack = [target]
            while stack:
                node = stack[-1]
                before = [
                    other
                    for other, cost in links[node].items()
                    if distance[other] + cost == distance[node] and not (other and stub[other])
                ]
                ahead = [other for other in before if other not in most]
                if not ahead:
                    most[stack.pop()] = 1 + max(map(most.__getitem__, before), default=-1)
                stack += ahead
            found[name] = most[target]
        return found

    # -------------------------------------------------------------------------- trees
    def _mend(self) -> Iterable[int]:
        """Bring all trees up to date; the nodes whose way may have changed."""
        map, changes = self._map, self._changes
        size = len(map.links)
        anew = self._rebuild or len(changes) > 64 + size // 4
        self._changes, self._rebuild = [], False
        stale: set[int] = {n for n, name in enumerate(self._named) if map.names[n] != name}
        stale.update(range(len(self._named), size))
        near = map.links[0]
        before = {number: cost for number, cost, _ in self._near}
        trees = self._trees
        lost = [number for number in trees if number not in near]
        for number in lost[:-_LOST_MAX]:
            del trees[number]
        for number in near:
            if number not in trees:
                trees[number] = Tree(map, number, around=0)
        for root, tree in trees.items():
            old = tree.distance
            if anew or len(old) <= root:
                tree.build()
            else:
                old = old[:]
                tree.mend(changes)
            new = tree.distance
            if old != new and root in near:
                old += [INFINITE] * (len(new) - len(old))
                stale.update([n for n, (a, b) in enumerate(zip(old, new, strict=True)) if a != b])
        self._near = [
            (number, near[number], trees[number].distance)
            for number in sorted(near, key=map.names.__getitem__)
        ]
        if anew or near != before or not stale.isdisjoint(near):
            return range(size)
        return sorted(stale)

    # -------------------------------------------------------------------------- ways
    def _set_ways(self, targets: list[int], found: dict[str, Way | None]) -> None:
        """Next hops and alternates; of equally good ones that of the lowest name.

        One row for each target, one column for each neighbour: rows are many, so what can be
        computed for a column at once is.
        """
        near, names, ways = self._near, self._map.names, self.ways
        rows = list(zip(*[self._totals(at, targets) for at in range(len(near))], strict=True))
        bests = [min(row) for row in rows] or [INFINITE] * len(targets)
        back, far = self._set_home(targets, bests)
        known: dict[tuple[int, int, Guard], Way] = {}
        for target, row, best in zip(targets, rows, bests, strict=bool(near)):
            name = names[target]
            if best >= INFINITE or not target:
                self._forget(name, found)
                continue
            hop = row.index(best)
            number, cost, _ = near[hop]
            onward = best - cost if number != target else -INFINITE
            # Most often the next best neighbour guards the node: nobody can be better.
            others = [*row]
            others[hop] = INFINITE
            second = min(others)
            at, guard = others.index(second), _NODE
            if second >= far[hop][at] + onward or second >= best + back[at]:
                at, guard = self._alternate(others, best, back, far[hop], onward)
            way = known.get((hop, at, guard))
            if way is None:
                other = names[near[at][0]] if at >= 0 else ""
                way = known[hop, at, guard] = Way(names[number], other, guard)
            old = ways.get(name)
            if old == way:
                continue
            if old is not None and old.repair and old.hop == way.hop and way.guard < _DOWNSTREAM:
                way = Way(way.hop, way.alternate, way.guard, old.repair)  # Until looked at again.
                if way == old:
                    continue
            found[name] = ways[name] = way
        if not near:
            for target in targets:
                self._forget(names[target], found)

    def _set_home(self, targets: list[int], bests: list[int]) -> tuple[list[int], list[list[int]]]:
        """Note how far these targets are.

        Returns:
            Of each neighbour: cost of the link to it and distance back from there; and of each next
            hop and each other neighbour: cost and distance from that to the hop.
        """
        near = self._near
        if len(targets) == len(self._map.links):
            self._home = bests[:]
        else:
            for target, best in zip(targets, bests, strict=True):
                self._home[target] = best
        home = self._home
        home[0] = 0
        return [cost + home[number] for number, cost, _ in near], [
            [cost + there[hop] for _, cost, there in near] for hop, _, _ in near
        ]

    def _totals(self, at: int, targets: list[int]) -> list[int]:
        """Cost of the way over one neighbour to each target."""
        number, cost, distance = self._near[at]
        if self._map.stub[number]:
            return [cost if target == number else INFINITE for target in targets]
        if len(targets) == len(distance):
            return [cost + there for there in distance]
        return [cost + distance[target] for target in targets]

    def _alternate(
        self, others: list[int], best: int, back: list[int], far: list[int], onward: int
    ) -> tuple[int, Guard]:
        """The best of those that don't send packets back, and what it is good for.

        Args:
            others: cost over each neighbour; the next hop's is infinite.
            best: cost over the next hop.
            back: as `_set_home` has it.
            far: as `_set_home` has it, to the next hop.
            onward: distance from there to the target; less than none where it is the target.
        """
        near = self._near
        chosen, guard, least = -1, Guard.NONE, INFINITE
        for at, total in enumerate(others):
            if total < best + back[at]:
                if total < far[at] + onward:
                    good = _NODE
                else:
                    good = _DOWNSTREAM if total - near[at][1] < best else _LINK
                if good > guard or (good == guard and total < least):
                    chosen, guard, least = at, good, total
        return chosen, guard

    def _forget(self, name: str, found: dict[str, Way | None]) -> None:
        if self.ways.pop(name, None) is not None:
            found[name] = None

    def _around(self, search: _Search, target: int, around: int) -> tuple[str, ...]:
        """Nodes of a found path up to the first one that need not be told how to go on.

        That is the neighbour that was left, where only it leads to the target: if it is dead, the
        packet ends there, and nobody who has lost the same neighbour sends it on.
        """
        reached, parent = search
        if reached[target] >= INFINITE:
            return ()
        back = [target]
        while back[-1]:
            back.append(parent[back[-1]])
        beyond, home, names = self._trees[around].distance, self._home, self._map.names
        drained = self._map.stub[0]
        list_: list[str] = []
        for node in back[-2::-1]:
            list_.append(names[node])
            if node in (target, around):
                break
            left = reached[target] - reached[node]
            if (
                around not in back
                and left < beyond[node] + beyond[target]
                and (drained or left < home[node] + home[target])
            ):
                break
        return tuple(list_) if len(list_) <= HOPS_MAX else ()


def _search(map: Map, names: list[str], around: int, *, node: bool) -> _Search:
    """Shortest paths from this node without a neighbour, or only without the link to it.

    Of equally long ones that over the lowest names, so that the same map gives the same paths.
    """
    links, stub = map.links, map.stub
    reached = [INFINITE] * len(links)
    parent = [0] * len(links)
    reached[0] = 0
    heap = [(0, names[0], 0)]
    while heap:
        cost, name, here = heapq.heappop(heap)
        if cost > reached[here] or (here and stub[here]):
            continue
        for other, step in links[here].items():
            if other == around and (node or here == 0):
                continue
            there = cost + step
            if there < reached[other] or (
                there == reached[other] and other and name < names[parent[other]]
            ):
                if there < reached[other]:
                    heapq.heappush(heap, (there, names[other], other))
                reached[other] = there
                parent[other] = here
    return reached, parent
