"""Where circuits go: paths to nodes, and the nodes where a workload can be reached.

Where the kernel's routes lead to a node, the first path goes there without relays.
A path whose first link is suspect or down is taken only when there is no other; a standby goes
apart from the circuits that are there.  One over which the last dial failed comes after those
where it did not, and of several such the one that failed longest ago: a member that attracts paths
and refuses hops, or swallows them, keeps nobody from the other paths.  A path that goes away takes
its failures along.
"""

from __future__ import annotations

from x0tta6bl4.core.proxy.snapshot import Snapshot
from x0tta6bl4.core.session.facts import Path
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import DirectItem, PathsItem, ReplicasItem

_DOUBTFUL_COST = 100
_FAILED_MAX = 1024
"""Failed paths that are remembered; beyond it the one that failed longest ago is forgotten."""


class Routes:
    """Table over a snapshot's paths and replicas.

    Attributes:
        suspects: neighbours whose links are suspected or down; at most 256.
    """

    __slots__ = ("_dialled", "_failed", "_failures", "_snapshot", "suspects")

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._dialled: dict[int, Path] = {}
        self._failed: dict[Path, int] = {}
        self._failures = 0
        self.suspects: set[str] = set()

    def paths(self, me: NodeName, node: NodeName) -> tuple[Path, ...]:
        """Paths to a node, best first; to this node itself, itself."""
        if node == me:
            return ((me,),)
        items = self._snapshot.items
        item = items.get(f"PathsItem/{node}")
        paths = item.paths if type(item) is PathsItem else ()
        if f"DirectItem/{node}" not in items:
            return paths
        direct: Path = (me, node)
        return (direct, *(path for path in paths if path != direct))

    def direct(self, me: NodeName, node: NodeName) -> bool:
        """Whether the kernel's routes lead to a node."""
        return self._direct((me, node))

    def dial(
        self, token: int, me: NodeName, node: NodeName, avoid: tuple[Path, ...]
    ) -> Path | None:
        """As `route`, and remember who goes there until the dial is `answered`."""
        path = self.route(me, node, avoid)
        if path is not None:
            self._dialled[token] = path
        return path

    def answered(self, token: int, came_up: bool) -> None:
        """A dial has succeeded or failed; what is no dial under way is ignored."""
        path = self._dialled.pop(token, None)
        if path is None:
            return
        self._failed.pop(path, None)
        if not came_up:
            if len(self._failed) >= _FAILED_MAX:
                del self._failed[next(iter(self._failed))]
            self._failures += 1
            self._failed[path] = self._failures

    def route(self, me: NodeName, node: NodeName, avoid: tuple[Path, ...]) -> Path | None:
        """The path for a new circuit: not over a suspect, not over `avoid`, else the best."""
        paths = self.paths(me, node)
        if not paths:
            return None
        inner = {name for path in avoid for name in self._inner(path)}

        def rank(index: int) -> tuple[bool, bool, int, int, int]:
            path = paths[index]
            shared = len(inner.intersection(self._inner(path)))
            failed = self._failed.get(path, 0)
            return self._doubtful(path), path in avoid, failed, shared, index

        return paths[min(range(len(paths)), key=rank)]

    def way(self, token: int) -> Path:
        """Where a dial under way goes; nowhere if it is none."""
        return self._dialled.get(token, ())

    def astray(self, me: NodeName, node: NodeName) -> list[int]:
        """Dials under way over what is no path to `node` any more."""
        paths, dialled = self.paths(me, node), self._dialled.items()
        return [token for token, path in dialled if path[-1] == node and path not in paths]

    def through(self, neighbour: str) -> list[int]:
        """Dials under way whose first link leads to this neighbour."""
        return [token for token, path in self._dialled.items() if self._first(path) == neighbour]

    def _inner(self, path: Path) -> Path:
        """Who passes on what goes along it, as far as is known."""
        item = self._snapshot.items.get(f"DirectItem/{path[-1]}") if len(path) == 2 else None
        via = item.via if type(item) is DirectItem else ""
        return (via,) if via and via != path[-1] else path[1:-1]

    def _first(self, path: Path) -> str:
        """The neighbour that a path needs; none where the kernel leads."""
        return path[1] if len(path) > 1 and not self._direct(path) else ""

    def forget(self, me: NodeName, node: NodeName) -> None:
        """The paths to a node have changed: what is gone has no failures, should it return."""
        paths = self.paths(me, node)
        for path in [p for p in self._failed if p[-1] == node and p not in paths]:
            del self._failed[path]

    def replicas(self, me: NodeName, target: SpiffeId) -> tuple[NodeName, ...]:
        """Nodes where a workload can be reached, nearest first, then least loaded."""
        item = self._snapshot.items.get(f"ReplicasItem/{target}")
        found: list[tuple[int, int, str]] = []
        if type(item) is ReplicasItem:
            for node, load in item.nodes:
                paths = self.paths(me, NodeName(node))
                if paths:
                    doubt = _DOUBTFUL_COST if self._doubtful(paths[0]) else 0
                    found.append((len(paths[0]) + doubt, load, node))
        here = f"ServiceItem/{target}" in self._snapshot.items
        if here and all(node != me for _, _, node in found):
            found.append((0, 0, me))
        return tuple(NodeName(node) for _, _, node in sorted(found))

    def _doubtful(self, path: Path) -> bool:
        return len(path) > 1 and path[1] in self.suspects and not self._direct(path)

    def _direct(self, path: Path) -> bool:
        """Whether the kernel's routes lead along it, by whatever links are alive."""
        return len(path) == 2 and f"DirectItem/{path[1]}" in self._snapshot.items
