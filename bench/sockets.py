"""An observer of sockets that asks the kernel, not the mesh: who holds which TCP connection.

It reads `/proc/net/tcp` and the open files of some processes.  With the ends of SVIDs written down
by somebody, it says which connections between those processes lived longer than they may have.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

ESTABLISHED = "01"
NEVER = float("inf")


def connections(
    pids: dict[str, int], space: Path = Path("/proc/net")
) -> dict[str, tuple[str, str]]:
    """Established TCP connections whose both ends are held by some of these processes.

    Args:
        pids: name -> process id.
        space: where the `tcp` tables of the network namespace are.
    Returns:
        `local-remote-inode` of one end -> (its holder, the holder of the other end).
    """
    holders: dict[str, str] = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        holders[target[8:-1]] = name
    ends: dict[tuple[str, str], tuple[str, str]] = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (space / table).read_text().splitlines()[1:]:
                column = line.split()
                if column[3] == ESTABLISHED and column[9] in holders:
                    ends[column[1], column[2]] = (column[9], holders[column[9]])
    return {
        f"{local}-{remote}-{inode}": (holder, ends[remote, local][1])
        for (local, remote), (inode, holder) in ends.items()
        if (remote, local) in ends and local < remote
    }


class Observer:
    """Watches connections between processes until `stop`.

    A connection was made with SVIDs that were there when it was first seen, so it must be gone by
    the latest notAfter of those SVIDs, as the nodes have told it in the first round of questions
    that began after that.

    Args:
        pids: asked at every look: name -> process id; `node/part`, or `authority`.
        ends: asked at every look: when the round of questions began (unix seconds), and node ->
            latest notAfter of its SVIDs, first of its own, then of its workloads.
        interval_s: between looks.
        slack_s: what is forgiven: a look takes a moment.
    """

    def __init__(
        self,
        pids: Callable[[], dict[str, int]],
        ends: Callable[[], tuple[float, dict[str, tuple[int, int]]]],
        interval_s: float = 0.25,
        slack_s: float = 0.3,
    ) -> None:
        self.seen = 0
        self.late: list[str] = []
        """Connections that lived too long, with by how much."""
        self.longest_s = 0.0
        self.looks = 0
        self.least_left_s = float("inf")
        """Least time left to the latest notAfter when a connection was last seen."""
        self._pids, self._ends = pids, ends
        self._interval_s, self._slack_s = interval_s, slack_s
        self._known: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        told_at, ends = self._ends()
        anybody = max((max(both) for both in ends.values()), default=0)
        open_now = connections(self._pids())
        now = time.clock_gettime(time.CLOCK_REALTIME)
        self.looks += 1
        for key, (one, two) in open_now.items():
            if key not in self._known:
                self.seen += 1
                self._known[key] = (now, NEVER)
            first, limit = self._known[key]
            self.longest_s = max(self.longest_s, now - first)
            if limit == NEVER and told_at > first:
                limit = _limit(one, two, ends, anybody)
                self._known[key] = (first, limit)
            if limit == NEVER:
                continue
            self.least_left_s = min(self.least_left_s, limit - now)
            if now > limit + self._slack_s:
                self.late.append(
                    f"{one} to {two}, {now - first:.1f} s old, {now - limit:.1f} s too long"
                )
                self._known[key] = (first, float(2**40))  # Told once.
        for key in self._known.keys() - open_now.keys():
            del self._known[key]

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(10)


def _limit(one: str, two: str, ends: dict[str, tuple[int, int]], anybody: int) -> float:
    """Latest end of a connection: of both node SVIDs between agents, else of anybody's SVID."""
    parts = [(name.partition("/")) for name in (one, two)]
    if all(part == "proxy" for _, _, part in parts):
        return float(anybody)  # Whose circuit it is, or who is carried, is not to be seen.
    known = [ends[node][0] for node, _, part in parts if node in ends and part == "agent"]
    return float(min(known, default=2**40))
