"""Shortest distances, kept up to date link by link, and paths that share as little as possible.

`Tree` holds the distance of every node from this one and mends it after changes: first the nodes
that lost their last support are found, in order of distance, then they and whatever got nearer
are relaxed.  Parents are not stored: a path is walked back along tight links, and of several the
one over the lowest name is taken, so the same map gives the same paths whatever its history.

Backups are found by A* from the destination towards this node with the tree's distances as
heuristic, counting shared links and nodes before cost.  Where the shortest path leaves no disjoint
second although a disjoint pair exists (a trap), Suurballe's algorithm finds the pair.

Source: Ramalingam & Reps, J. Algorithms 21 (1996); Suurballe & Tarjan, Networks 14 (1984);
Bhandari, Survivable Networks (1999) for the split of nodes.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Final

from x0tta6bl4.core.routing.map import NO_LINK, Change, Map

INFINITE: Final = 2**60
HOPS_MAX: Final = 16
PATHS_MAX: Final = 3
_SHARED_LINK: Final = 2**52
_SHARED_NODE: Final = 2**44
_NEAR: Final = 64
"""Nodes looked at from the far end before it is found out what must be shared at the near end, and
then at the near end."""

Path = tuple[int, ...]
Link = tuple[int, int]


class Tree:
    """Distance of every node of a map from one of them; bounded by the map.

    Args:
        map: links and stubs; changed by its owner, who then calls `mend` or `build`.
        root: number of the node; for another than 0 `build` has to be called first.
        around: number of a node that is reached but not passed; -1: none.
    """

    __slots__ = ("_around", "_map", "_root", "distance")

    def __init__(self, map: Map, root: int = 0, *, around: int = -1) -> None:
        self._map = map
        self._root = root
        self._around = around
        self.distance: list[int] = [0]

    def build(self) -> None:
        """Compute everything anew (Dijkstra)."""
        links, stub, root, around = self._map.links, self._map.stub, self._root, self._around
        distance = self.distance = [INFINITE] * len(links)
        distance[root] = 0
        heap = [(0, root)]
        while heap:
            reached, node = heapq.heappop(heap)
            if reached > distance[node] or (node != root and (stub[node] or node == around)):
                continue
            for other, cost in links[node].items():
                if reached + cost < distance[other]:
                    distance[other] = reached + cost
                    heapq.heappush(heap, (reached + cost, other))

    def mend(self, changes: list[Change]) -> None:
        """Bring the distances up to date after these changes of the map."""
        distance = self.distance
        distance.extend([INFINITE] * (len(self._map.links) - len(distance)))
        heap: list[tuple[int, int]] = []
        for node in self._cut_off(changes):
            distance[node] = INFINITE
            heap.append((0, node))
        heap = [(self._nearest(node), node) for _, node in heap]
        for reached, node in heap:
            distance[node] = reached
        for a, b, _, _ in changes:
            for here, there in ((a, b), (b, a)):
                cost = self._map.links[here].get(there, NO_LINK)
                reached = distance[here] + cost
                if cost and reached < distance[there] and self._transit(here):
                    distance[there] = reached
                    heap.append((reached, there))
        heapq.heapify(heap)
        self._relax(heap)

    def path(self, target: int) -> Path:
        """The shortest path to a node, from the root to it inclusive; empty if there is none."""
        distance, names = self.distance, self._map.names
        if target >= len(distance) or distance[target] >= INFINITE:
            return ()
        back = [target]
        node = target
        while node != self._root:
            here = distance[node]
            node = min(
                (
                    other
                    for other, cost in self._map.links[node].items()
                    if distance[other] + cost == here and self._transit(other)
                ),
                key=names.__getitem__,
            )
            back.append(node)
        back.reverse()
        return tuple(back)

    def _transit(self, node: int) -> bool:
        return node == self._root or not (self._map.stub[node] or node == self._around)

    def _cut_off(self, changes: list[Change]) -> dict[int, None]:
        """Nodes whose distance has lost its last support, nearest first."""
        distance, links = self.distance, self._map.links
        suspects: list[tuple[int, int]] = []
        for a, b, old, _ in changes:
            if old != NO_LINK:
                if distance[b] == distance[a] + old:
                    suspects.append((distance[b], b))
                if distance[a] == distance[b] + old:
                    suspects.append((distance[a], a))
        heapq.heapify(suspects)
        cut: dict[int, None] = {}
        while suspects:
            reached, node = heapq.heappop(suspects)
            if node in cut or node == self._root or reached >= INFINITE:
                continue
            for other, cost in links[node].items():
                if distance[other] + cost <= reached and other not in cut and self._transit(other):
                    break
            else:
                cut[node] = None
                for other, cost in links[node].items():
                    if distance[other] == reached + cost:
                        heapq.heappush(suspects, (distance[other], other))
        return cut

    def _nearest(self, node: int) -> int:
        distance = self.distance
        near = INFINITE
        for other, cost in self._map.links[node].items():
            if distance[other] + cost < near and self._transit(other):
                near = distance[other] + cost
        return near

    def _relax(self, heap: list[tuple[int, int]]) -> None:
        distance, links, stub = self.distance, self._map.links, self._map.stub
        root, around = self._root, self._around
        while heap:
            reached, node = heapq.heappop(heap)
            if reached > distance[node] or reached >= INFINITE:
                continue
            if node != root and (stub[node] or node == around):
                continue
            for other, cost in links[node].items():
                if reached + cost < distance[other]:
                    distance[other] = reached + cost
                    heapq.heappush(heap, (reached + cost, other))


def paths(map: Map, tree: Tree, target: int, before: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """Up to three paths, best first: the second shares as little with the first as can be.

    Args:
        map: where.
        tree: distances from node 0.
        target: number of the node.
        before: paths there by an earlier map: what is worse than them is not looked at.
    Returns:
        Simple paths from node 0 to `target` of at most 16 hops; none if it is out of reach, one
        if everything leads over the same links.
    """
    if target == 0:
        return ((0,),)
    first = tree.path(target)
    if not first:
        return ()
    found = [first]
    second, shared = _detour(map, tree, target, found, before)
    if shared and len(map.links[0]) > 1 and len(map.links[target]) > 1:
        pair = _disjoint_pair(map, tree, first, split=True)
        if pair is None and shared >= _SHARED_LINK:
            pair = _disjoint_pair(map, tree, first, split=False)
        if pair is not None:
            found = sorted(pair, key=lambda path: (map.cost(path), _named(map, path)))
            if first not in found:
                found.append(first)
            return tuple(path for path in found if len(path) <= HOPS_MAX + 1)
    if second and second != first:
        found.append(second)
        third, _ = _detour(map, tree, target, found, before)
        if third and third not in found:
            found.append(third)
    return tuple(path for path in found if len(path) <= HOPS_MAX + 1)


def links_of(path: Path) -> list[Link]:
    """Links of a path, each with the lower number first."""
    return [(a, b) if a < b else (b, a) for a, b in pairwise(path)]


def shares(path: Path, others: list[Path]) -> bool:
    """Whether a path has a link or an inner node in common with one of the others."""
    nodes = {node for other in others for node in other[1:-1]}
    if any(node in nodes for node in path[1:-1]):
        return True
    links = {link for other in others for link in links_of(other)}
    return any(link in links for link in links_of(path))


def _named(map: Map, path: Path) -> tuple[str, ...]:
    return tuple(map.names[node] for node in path)


def _detour(
    map: Map, tree: Tree, target: int, avoid: list[Path], before: tuple[Path, ...]
) -> tuple[Path, int]:
    """The path that shares the fewest links with others, then the fewest nodes, then the cheapest.

    A* from the target.  What is left of the way costs at least its distance in the tree, which
    knows no penalties; if that does not lead to this node soon, it is found out which penalty
    every way must pay.

    Returns:
        The path, and its penalty: 0 if it shares nothing, from _SHARED_LINK if it shares a link.
    """
    links, names, stub, distance = map.links, map.names, map.stub, tree.distance
    links_used = {link for path in avoid for link in links_of(path)}
    nodes_used = {node for path in avoid for node in path[1:-1]}
    owed: dict[int, int] = {}
    beyond = looked = 0
    cost_to = {target: 0}
    towards: dict[int, int] = {}
    heap = [(distance[target], names[target], target, 0)]
    best = INFINITE
    bound = min(
        (_penalised(map, p, links_used, nodes_used) for p in before if p[-1] == target),
        default=best,
    )
    while heap:
        guess, _, node, cost = heapq.heappop(heap)
        if guess > best:
            break
        if cost > cost_to[node]:
            continue
        if node == 0:
            best = cost
            continue
        looked += 1
        if looked == _NEAR:
            owed, beyond = _unavoidable(map, links_used, nodes_used)
            heap = [(g + owed.get(n, beyond), name, n, c) for g, name, n, c in heap]
            heapq.heapify(heap)
        for other, step in links[node].items():
            if other and (stub[other] or other == target or distance[other] >= INFINITE):
                continue
            there = cost + step
            if ((node, other) if node < other else (other, node)) in links_used:
                there += _SHARED_LINK
            if other in nodes_used:
                there += _SHARED_NODE
            guess = there + distance[other]
            if guess > bound:
                continue
            known = cost_to.get(other)
            if known is None or there < known:
                cost_to[other] = there
                towards[other] = node
                guess += owed.get(other, beyond)
                heapq.heappush(heap, (guess, names[other], other, there))
            elif there == known and names[node] < names[towards[other]]:
                towards[other] = node
    if 0 not in cost_to:
        return (), 0
    path = [0]
    while path[-1] != target:
        path.append(towards[path[-1]])
    return tuple(path), cost_to[0] // _SHARED_NODE * _SHARED_NODE


def _penalised(map: Map, path: Path, links_used: set[Link], nodes_used: set[int]) -> int:
    """Cost of a path with the penalties of what it shares; INFINITE if it is none any more."""
    total = 0
    for a, b in pairwise(path):
        cost = map.links[a].get(b, NO_LINK)
        if not cost or (a and (map.stub[a] or b == 0)):
            return INFINITE
        total += cost
        if ((a, b) if a < b else (b, a)) in links_used:
            total += _SHARED_LINK
        if a and a in nodes_used:
            total += _SHARED_NODE
    return total


def _unavoidable(
    map: Map, links_used: set[Link], nodes_used: set[int]
) -> tuple[dict[int, int], int]:
    """What one must share on the way to this node, wherever one comes from.

    It is a search from this node that counts penalties only and ends after _NEAR nodes: where all
    links of this node are in use, or it hangs on others by one link, it need not go far to know.

    Returns:
        Least penalty from each node that was reached, and the least from all others.
    """
    links, stub = map.links, map.stub
    owed: dict[int, int] = {}
    heap = [(0, 0)]
    while heap:
        penalty, node = heapq.heappop(heap)
        if node in owed:
            continue
        if len(owed) >= _NEAR:
            return owed, penalty
        owed[node] = penalty
        if node and stub[node]:
            continue
        if node in nodes_used:
            penalty += _SHARED_NODE
        for other in links[node]:
            if other not in owed:
                used = ((node, other) if node < other else (other, node)) in links_used
                heapq.heappush(heap, (penalty + _SHARED_LINK if used else penalty, other))
    return owed, INFINITE


def _disjoint_pair(map: Map, tree: Tree, first: Path, *, split: bool) -> list[Path] | None:
    """Two disjoint paths of least total cost, found from the shortest one by an augmenting path.

    With `split` nodes are disjoint too: a node of `first` that is entered from aside can only be
    left backwards along `first`, and only one that was entered backwards can be left aside.
    States are (node, 0) for what was entered from aside and (node, 1) for the rest.
    """
    links, names, stub, distance = map.links, map.names, map.stub, tree.distance
    target = first[-1]
    previous = dict(zip(first[1:], first, strict=False))
    following = dict(pairwise(first))
    inner = set(first[1:-1]) if split else set()
    reached: dict[tuple[int, int], int] = {(0, 1): 0}
    origin: dict[tuple[int, int], tuple[int, int]] = {}
    heap = [(0, names[0], 0, 1)]
    while heap:
        cost, _, node, side = heapq.heappop(heap)
        if cost > reached[(node, side)]:
            continue
        if node == target:
            break
        steps: list[tuple[int, int, int]] = []
        if node in previous and node != 0:
            back = previous[node]
            if back != 0:
                steps.append((back, 1, 0))
        if not (node in inner and side == 0) and (node == 0 or not stub[node]):
            for other, step in links[node].items():
                if other == 0 or following.get(node) == other or previous.get(node) == other:
                    continue
                side_there = 0 if other in inner else 1
                steps.append((other, side_there, step + distance[node] - distance[other]))
        for other, side_there, step in steps:
            state = (other, side_there)
            if cost + step < reached.get(state, INFINITE):
                reached[state] = cost + step
                origin[state] = (node, side)
                heapq.heappush(heap, (cost + step, names[other], other, side_there))
    else:
        return None
    return _untangle(first, origin, target)


def _untangle(
    first: Path, origin: dict[tuple[int, int], tuple[int, int]], target: int
) -> list[Path] | None:
    """Take out the links that the two paths use in opposite directions; read off what is left."""
    arcs = dict.fromkeys(pairwise(first))
    state = (target, 1)
    while state != (0, 1):
        before = origin[state]
        arc = (before[0], state[0])
        if arc[::-1] in arcs:
            del arcs[arc[::-1]]
        else:
            arcs[arc] = None
        state = before
    onward: dict[int, list[int]] = {}
    for a, b in arcs:
        onward.setdefault(a, []).append(b)
    found = []
    for _ in range(2):
        path = [0]
        while path[-1] != target:
            path.append(onward[path[-1]].pop())
        found.append(_without_loops(path))
    return found


def _without_loops(path: list[int]) -> Path:
    seen: dict[int, int] = {}
    out: list[int] = []
    for node in path:
        if node in seen:
            del out[seen[node] + 1 :]
            seen = {node: at for at, node in enumerate(out)}
        else:
            seen[node] = len(out)
            out.append(node)
    return tuple(out)
