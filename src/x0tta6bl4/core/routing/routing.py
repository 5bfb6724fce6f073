"""The routing machine: paths to the nodes in use, and what this node says of its links.

    MemberChanged, MemberGone --> map --> tree --> PathsChanged, AuthorityPathsChanged
    LinkUp, LinkMeasured, LinkSuspected, LinkDown --> dead band, damping --> AdjacencyWanted

Paths are computed for nodes in use only, and changes are mended, not computed anew.  A change that
makes links worse reaches the paths over them at the next run; one that makes links better only
those that it could shorten, a second later (5 s where more than 64 nodes are in use).  Each run
computes the paths to at most 8 destinations, the next run follows after 1 ms.

Source: decisions of this project on link costs (RTT/2 times ETX, De Couto 2003, in 1/16 ms) and on
publishing (a change above 35 % and 1 ms, at most every 2 s; up and down at once).  Costs that go on
changing are told ever more seldom, down to every 32 s: where many nodes share a machine that has no
time, its haste shows in all their round trips, and telling them costs it more of it.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Final

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
)
from x0tta6bl4.core.routing import paths as finding
from x0tta6bl4.core.routing.damping import Damping
from x0tta6bl4.core.routing.map import COST_MAX, LEVEL_MAX, Change, Map
from x0tta6bl4.core.routing.paths import INFINITE, Link, Path, Tree, links_of
from x0tta6bl4.core.routing.words import (
    AdjacencyWanted,
    AuthorityPathsChanged,
    LinkDown,
    LinkMeasured,
    LinkSuspected,
    LinkUp,
    MemberChanged,
    MemberGone,
    PathBad,
    PathsChanged,
    Unwanted,
    Wanted,
)
from x0tta6bl4.wire.records import Adjacency, NodeBody

LAST_RESORT: Final = 2**20
"""Cost of a suppressed link: 65 s, so that anything else is better."""

_SUSPECT_LEVEL: Final = 4
_BAD_PATH_LEVELS: Final = 2
_PENALTY_HALF_LIFE: Final = 60 * SECOND
_PENALISED_MAX: Final = 1024
_WANTED_MAX: Final = 4096
_PUBLISH_EVERY: Final = 2 * SECOND
_PUBLISH_SELDOM: Final = 32 * SECOND
_UP_EVERY: Final = 100 * MS
_FIRST_AFTER: Final = 200 * MS
_COALESCE: Final = 1 * MS
_LAZY_AFTER: Final = 1 * SECOND
_LAZY_AFTER_MANY: Final = 5 * SECOND
_MANY: Final = 64
_BUDGET: Final = 8
_AUTHORITY: Final = ""
"""Stands among the destinations for whichever node reaches the authority."""


def link_cost(rtt_us: int, loss_ppm: int, gray: bool) -> int:
    """Cost of a link in 1/16 ms: RTT/2 times ETX, four times that if it loses too much.

    Args:
        rtt_us: smoothed round-trip time.
        loss_ppm: of round trips, so that ETX is 1 / (1 - loss).
        gray: whether the loss is more than noise.
    """
    arrive_ppm = max(1_000_000 - loss_ppm, 10_000)
    cost = rtt_us * 16 * 1_000_000 // (2000 * arrive_ppm) * (4 if gray else 1)
    return min(max(cost, 1), COST_MAX)


class _Link:
    """A link of this node: what was measured, and what was published."""

    __slots__ = (
        "cost", "damping", "dials", "gray", "published", "published_dials", "published_gray",
        "suspect", "up",
    )  # fmt: skip

    def __init__(self) -> None:
        self.up = False
        self.gray = self.published_gray = False
        self.suspect = False
        self.cost = 0
        self.dials = False
        self.published = 0
        self.published_dials = False
        self.damping = Damping()

    def wanted(self) -> int:
        if not self.up:
            return 0
        return LAST_RESORT if self.damping.suppressed else self.cost

    def outside_band(self) -> bool:
        """Whether the change since the last publication is worth telling."""
        change = abs(self.wanted() - self.published)
        return change > 16 and change * 100 > 35 * self.published

    def flipped(self) -> bool:
        """Whether the link went up, down or into suppression, which is told at once."""
        wanted = self.wanted()
        if (wanted == 0) != (self.published == 0):
            return True
        suppressed = (wanted == LAST_RESORT) != (self.published == LAST_RESORT)
        return suppressed or self.dials != self.published_dials

    def tell(self) -> None:
        """What is wanted is published."""
        self.published, self.published_dials = self.wanted(), self.dials
        self.published_gray = self.gray


class _Destination:
    """A node whose paths are wanted."""

    __slots__ = ("costs", "dearest", "links", "named", "paths")

    def __init__(self) -> None:
        self.paths: tuple[Path, ...] = ()
        self.named: tuple[tuple[str, ...], ...] | None = None
        self.links: frozenset[Link] = frozenset()
        self.costs: tuple[int, ...] = ()
        """Of the paths, when they were computed."""
        self.dearest = INFINITE
        """What the dearest costs, if there are as many as there can be and none shares anything
        with another to the same node: what is longer can't take the place of one of them."""

    def limit(self, a: int, b: int) -> int:
        """How long paths over a link can be and still take the place of one of these.

        The second path to a node shares no other with the first, if there is such a path, and the
        third none with either: so what meets one of them can't take the place of a later one.
        """
        if self.dearest < INFINITE:
            for path, cost in zip(self.paths, self.costs, strict=True):
                if a in path[1:-1] or b in path[1:-1]:
                    return cost
        return self.dearest


class Routing:
    """The machine.

    Args:
        me: this node's name.
    """

    __slots__ = (
        "_authorities", "_better", "_changes", "_destinations", "_lazy",
        "_lazy_at", "_levels", "_links", "_map", "_me", "_pause", "_publish_at", "_published_at",
        "_rebuild", "_restarting", "_restarts", "_run_at", "_tree", "_urgent", "_users", "deadline",
    )  # fmt: skip

    def __init__(self, me: str) -> None:
        self._me = me
        self._map = Map(me)
        self._tree = Tree(self._map)
        self._authorities: dict[str, None] = {}
        self._changes: list[Change] = []
        self._better: list[Change] = []
        self._rebuild = False
        self._destinations: dict[str, _Destination] = {_AUTHORITY: _Destination()}
        self._users: dict[Link, dict[str, None]] = {}
        self._urgent: dict[str, None] = {}
        self._lazy: dict[str, None] = {}
        self._lazy_at: Instant = NEVER
        self._run_at: Instant = NEVER
        self._links: dict[str, _Link] = {}
        self._levels: dict[tuple[str, str], tuple[int, Instant]] = {}
        self._restarting: dict[str, NodeBody] = {}
        self._restarts: list[tuple[Instant, str, NodeBody]] = []
        self._publish_at: Instant = NEVER
        self._published_at: int = -_PUBLISH_EVERY
        self._pause: int = _PUBLISH_EVERY
        self.deadline: Instant = NEVER

    # -------------------------------------------------------------------------- doors
    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in (see the top of the module and `core.machine.Machine`)."""
        if type(event) is Tick:
            if now < self.deadline:
                return NOTHING
            return self._settle(now, self._on_tick(now))
        out: list[Effect] = []
        if type(event) is MemberChanged:
            self._on_member(now, event.node, event.body, event.restarting_until)
        elif type(event) is LinkMeasured or type(event) is LinkUp:
            self._on_link(now, event)
        elif type(event) is LinkSuspected:
            self._suspect(now, event.node, True)
        elif type(event) is LinkDown:
            self._on_down(now, event.node)
        elif type(event) is MemberGone:
            self._on_member(now, event.node, None, NEVER)
        elif type(event) is Wanted:
            if event.node not in self._destinations and len(self._destinations) <= _WANTED_MAX:
                self._destinations[event.node] = _Destination()
                self._hurry(now, event.node)
        elif type(event) is Unwanted:
            self._unwant(event.node)
        elif type(event) is PathBad:
            self._on_bad(now, event.path)
        if self._run_at <= now or self._publish_at <= now:
            out = self._on_tick(now)
        return self._settle(now, out)

    def paths(self, node: str) -> tuple[tuple[str, ...], ...]:
        """Paths to a node as last said; computed on the spot where it is not in use."""
        known = self._destinations.get(node)
        if known is not None and known.named is not None:
            return known.named
        number = self._map.index.get(node)
        self._bring_up_to_date()
        found = finding.paths(self._map, self._tree, number) if number is not None else ()
        return tuple(self._named(path) for path in found)

    def cost(self, node: str) -> int:
        """Cost of the best path to a node in 1/16 ms; -1 where there is none."""
        self._bring_up_to_date()
        number = self._map.index.get(node)
        if number is None or self._tree.distance[number] >= INFINITE:
            return -1
        return self._tree.distance[number]

    def paths_from(self, source: str, target: str) -> tuple[tuple[tuple[str, ...], ...], list[int]]:
        """Paths that another node would compute from this map, and their costs."""
        if source == self._me:
            found = self.paths(target)
            return found, [self._sum(self._map, path) for path in found]
        map = Map(source)
        for number, name in enumerate(self._map.names):
            says = self._map.says[number]
            if says is not None and self._map.index.get(name) == number:
                map.say(name, says)
                map.stub[map.index[name]] = self._map.stub[number]
        tree = Tree(map)
        tree.build()
        to = map.index.get(target)
        numbers = finding.paths(map, tree, to) if to is not None else ()
        named = tuple(tuple(map.names[node] for node in path) for path in numbers)
        return named, [map.cost(path) for path in numbers]

    def published(self, node: str) -> int:
        """Cost of the link to a neighbour as published in 1/16 ms; 0: it is not."""
        link = self._links.get(node)
        return link.published if link else 0

    @staticmethod
    def _sum(map: Map, path: tuple[str, ...]) -> int:
        numbers = [map.index.get(node, -1) for node in path]
        return sum(map.links[a].get(b, 0) for a, b in pairwise(numbers))

    # -------------------------------------------------------------------------- the map
    def _on_member(
        self, now: Instant, node: str, body: NodeBody | None, restarting_until: Instant
    ) -> None:
        """Take in what another node says; of this node the map knows better."""
        if node == self._me:
            return
        self._restarting.pop(node, None)
        if body is not None and restarting_until < NEVER:
            self._restarting[node] = body
            heapq.heappush(self._restarts, (restarting_until, node, body))
        changes = self._map.say(node, body.links if body is not None else None)
        number = self._map.index.get(node)
        if number is not None:
            stub = body is not None and body.stub
            if self._map.stub[number] != stub:
                self._map.stub[number] = stub
                self._rebuild = True
                self._hurry_all(now)
        reaches = body is not None and body.authority
        if reaches != (node in self._authorities):
            if reaches:
                self._authorities[node] = None
            else:
                del self._authorities[node]
            self._hurry(now, _AUTHORITY)
        self._note(now, changes, _COALESCE)

    def _note(self, now: Instant, changes: list[Change], delay: int) -> None:
        """Remember changes of the map and whose paths they concern: perhaps nobody's."""
        if not changes:
            return
        self._changes += changes
        matters = False
        for change in changes:
            if not change.worse:
                self._better.append(change)
                matters = True
                continue
            link = (change.a, change.b) if change.a < change.b else (change.b, change.a)
            for name in self._users.get(link, ()):
                self._urgent[name] = None
                matters = True
        if matters:
            self._run_at = Instant(min(self._run_at, now + delay))
        elif self._too_many():
            self._changes, self._rebuild = [], True

    def _hurry(self, now: Instant, name: str) -> None:
        self._urgent[name] = None
        self._run_at = Instant(min(self._run_at, now + _COALESCE))

    def _hurry_all(self, now: Instant) -> None:
        self._urgent = dict.fromkeys(self._destinations)
        self._run_at = Instant(min(self._run_at, now + _COALESCE))

    def _too_many(self) -> bool:
        """Whether computing the tree anew is cheaper than mending it."""
        return len(self._changes) > 64 + len(self._map.links) // 4

    def _bring_up_to_date(self) -> None:
        changes = self._changes
        if self._rebuild or self._too_many():
            self._tree.build()
        elif changes:
            self._tree.mend(changes)
        self._changes = []
        self._rebuild = False
        short = len(self._map.links) - len(self._tree.distance)
        self._tree.distance.extend([INFINITE] * short)

    # -------------------------------------------------------------------------- paths
    def _on_tick(self, now: Instant) -> list[Effect]:
        out: list[Effect] = []
        self._decay(now)
        self._reuse(now)
        while self._restarts and self._restarts[0][0] <= now:
            _, node, body = heapq.heappop(self._restarts)
            if self._restarting.get(node) is body:
                del self._restarting[node]
                self._note(now, self._map.say(node, None), 0)
        if now >= self._publish_at:
            self._publish(now, out)
        if now >= self._run_at:
            self._run(now, out)
        return out

    def _run(self, now: Instant, out: list[Effect]) -> None:
        """Mend the tree, then compute what is urgent, then what may have become shorter."""
        self._bring_up_to_date()
        if self._better:
            self._look_for_shorter(now, self._better)
            self._better = []
        budget = _BUDGET
        for queue in (self._urgent, self._lazy if now >= self._lazy_at else {}):
            while queue and budget:
                name = next(iter(queue))
                del queue[name]
                self._lazy.pop(name, None)
                self._compute(name, out)
                budget -= 1
        if not self._lazy:
            self._lazy_at = NEVER
        if not budget and (self._urgent or now >= self._lazy_at):
            self._run_at = Instant(now + _COALESCE)
        else:
            self._run_at = self._lazy_at

    def _look_for_shorter(self, now: Instant, better: list[Change]) -> None:
        distance, index = self._tree.distance, self._map.index
        lazy = self._lazy
        for name, known in self._destinations.items():
            if not known.paths:
                near = distance_to(distance, index.get(name)) < INFINITE
                if near or (name == _AUTHORITY and self._authorities):
                    self._urgent[name] = None
                continue
            if name in lazy:
                continue
            for a, b, _, cost in better:
                limit = known.dearest if name == _AUTHORITY else known.limit(a, b)
                if self._at_least(name, a, b, cost) <= limit:
                    lazy[name] = None
                    break
        if lazy and self._lazy_at == NEVER:
            many = len(self._destinations) > _MANY
            self._lazy_at = Instant(now + (_LAZY_AFTER_MANY if many else _LAZY_AFTER))

    def _at_least(self, name: str, a: int, b: int, cost: int) -> int:
        """What a path to a destination over this link costs at least.

        One end is reached first; what is left from the other is at least the difference of the
        distances of both from here (one must get from there to here by way of the target, too:
        over a stub one can't).
        """
        distance = self._tree.distance
        to_a, to_b = distance[a], distance[b]
        number = None if name == _AUTHORITY else self._map.index.get(name)
        target = distance_to(distance, number)
        if number is None or target >= INFINITE:
            return min(to_a, to_b) + cost
        if self._map.stub[number]:
            return cost + min(to_a + max(target - to_b, 0), to_b + max(target - to_a, 0))
        return cost + min(to_a + abs(target - to_b), to_b + abs(target - to_a))

    def _compute(self, name: str, out: list[Effect]) -> None:
        known = self._destinations.get(name)
        if known is None:
            return
        if name == _AUTHORITY:
            found = self._authority_paths()
        else:
            number = self._map.index.get(name)
            found = ()
            if number is not None:
                found = finding.paths(self._map, self._tree, number, known.paths)
        links = frozenset(link for path in found for link in links_of(path))
        for link in known.links - links:
            users = self._users[link]
            del users[name]
            if not users:
                del self._users[link]
        for link in sorted(links - known.links):
            self._users.setdefault(link, {})[name] = None
        known.paths, known.links = found, links
        known.costs = tuple(self._map.cost(path) for path in found)
        complete = len(found) == finding.PATHS_MAX and (
            name == _AUTHORITY
            or not any(
                finding.shares(path, list(found[:at])) for at, path in enumerate(found) if at
            )
        )
        known.dearest = max(known.costs) if complete else INFINITE
        named = tuple(self._named(path) for path in found)
        if named != known.named and (named or known.named):
            if name == _AUTHORITY:
                out.append(AuthorityPathsChanged(named))
            else:
                out.append(PathsChanged(name, named))
        known.named = named

    def _authority_paths(self) -> tuple[Path, ...]:
        """Shortest paths to the three nearest nodes that reach the authority."""
        distance, index = self._tree.distance, self._map.index
        near = heapq.nsmallest(
            finding.PATHS_MAX,
            [(distance[index[node]], node) for node in self._authorities if node in index],
        )
        found = [self._tree.path(index[node]) for reached, node in near if reached < INFINITE]
        return tuple(path for path in found if path and len(path) <= finding.HOPS_MAX + 1)

    def _unwant(self, node: str) -> None:
        known = self._destinations.pop(node, None) if node != _AUTHORITY else None
        if known is not None:
            for link in known.links:
                self._users[link].pop(node)
                if not self._users[link]:
                    del self._users[link]
            self._urgent.pop(node, None)
            self._lazy.pop(node, None)

    def _named(self, path: Path) -> tuple[str, ...]:
        names = self._map.names
        return tuple([names[node] for node in path])

    # -------------------------------------------------------------------------- own links
    def _on_link(self, now: Instant, event: LinkUp | LinkMeasured) -> None:
        link = self._links.get(event.node)
        if link is None:
            link = self._links[event.node] = _Link()
        link.cost = link_cost(event.rtt_us, event.loss_ppm, event.gray)
        link.dials, link.gray = event.dials, event.gray
        link.damping.look(now)
        if type(event) is LinkUp:
            link.up = True
            if link.suspect:
                self._suspect(now, event.node, False)
        if not link.up:
            return
        if link.flipped():
            first = self._published_at < 0  # The others are about to be told too.
            self._publish_by(now, now + _FIRST_AFTER if first else self._published_at + _UP_EVERY)
        elif link.outside_band():
            turned = link.gray != link.published_gray
            self._publish_by(now, self._published_at + (_PUBLISH_EVERY if turned else self._pause))

    def _on_down(self, now: Instant, node: str) -> None:
        link = self._links.get(node)
        if link is None or not link.up:
            return
        link.up = False
        link.damping.down(now)
        if link.suspect:
            self._suspect(now, node, False)
        self._publish_by(now, now)

    def _publish_by(self, now: Instant, at: int) -> None:
        self._publish_at = Instant(min(self._publish_at, max(now, at)))

    def _publish(self, now: Instant, out: list[Effect]) -> None:
        """Say which links there are; what stayed within the dead band keeps its figure."""
        said = []
        if not any(link.flipped() for link in self._links.values()):
            calm = now - self._published_at > 2 * self._pause
            self._pause = _PUBLISH_EVERY if calm else min(2 * self._pause, _PUBLISH_SELDOM)
        for node, link in self._links.items():
            if link.flipped() or link.outside_band():
                link.tell()
            if link.published:
                said.append(Adjacency(node, link.published, link.published_dials))
        said.sort(key=lambda link: link.node)
        self._published_at, self._publish_at = now, NEVER
        self._links = {n: x for n, x in self._links.items() if x.up or x.damping.penalty(now) > 1}
        out.append(AdjacencyWanted(tuple(said)))
        self._note(now, self._map.say(self._me, said), 0)

    def _reuse(self, now: Instant) -> None:
        for link in self._links.values():
            if link.damping.look(now) and link.up:
                self._publish_by(now, self._published_at + _UP_EVERY)

    # -------------------------------------------------------------------------- penalties
    def _suspect(self, now: Instant, node: str, suspect: bool) -> None:
        link = self._links.get(node)
        if link is not None and link.suspect != suspect:
            link.suspect = suspect
            self._weigh(now, (min(self._me, node), max(self._me, node)))

    def _on_bad(self, now: Instant, path: tuple[str, ...]) -> None:
        for a, b in pairwise(path[: finding.HOPS_MAX + 1]):
            link = (a, b) if a < b else (b, a)
            before, _ = self._levels.pop(link, (0, NEVER))
            if len(self._levels) >= _PENALISED_MAX:
                return
            level = min(before + _BAD_PATH_LEVELS, LEVEL_MAX)
            self._levels[link] = (level, Instant(now + _PENALTY_HALF_LIFE))
            self._weigh(now, link)

    def _decay(self, now: Instant) -> None:
        due = [link for link, (_, at) in self._levels.items() if at <= now]
        for link in due:
            level, _ = self._levels.pop(link)
            if level > 1:
                self._levels[link] = (level - 1, Instant(now + _PENALTY_HALF_LIFE))
            self._weigh(now, link)

    def _weigh(self, now: Instant, link: tuple[str, str]) -> None:
        level = self._levels.get(link, (0, NEVER))[0]
        if self._me in link:
            mine = self._links.get(link[0] if link[1] == self._me else link[1])
            level += _SUSPECT_LEVEL if mine is not None and mine.suspect else 0
        self._note(now, self._map.set_level(*link, level), 0)

    def _settle(self, now: Instant, out: list[Effect]) -> Effects:
        at = min(self._run_at, self._publish_at)
        if self._levels:
            at = min(at, min(until for _, until in self._levels.values()))
        if self._restarts:
            at = min(at, self._restarts[0][0])
        for link in self._links.values():
            if link.damping.suppressed:
                at = min(at, link.damping.reuse_at())
        self.deadline = at if at > now else Instant(now + 1)
        return tuple(out) if out else NOTHING


def distance_to(distance: list[int], number: int | None) -> int:
    """Distance of a node by its number; INFINITE for one that is not in the map."""
    return INFINITE if number is None else distance[number]
