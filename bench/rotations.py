#!/usr/bin/env python3
"""Rotation after rotation at a short SVID life, under steady requests.

    .venv/bin/python -m bench.rotations

Six nodes; every SVID lives `--ttl` seconds.  It runs until every SVID of every node was renewed
`--rotations` times and one application connection has lived through 10 lifetimes.  An observer
that asks the kernel alone (`bench/sockets.py`) checks that no TCP connection between agents or
proxies lives past the end of the SVIDs that it was made with.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

from bench.outcome import Outcome, run
from bench.sockets import Observer
from tests.real.lab import Lab, Service, Shape, Ticks
from x0tta6bl4.wire.errors import X0Error


class Svids:
    """What SVIDs the nodes have said they use.

    Args:
        lab: asked every `interval_s` through its admin sockets.
        interval_s: between rounds.
    """

    def __init__(self, lab: Lab, interval_s: float = 0.5) -> None:
        self.ends: dict[str, tuple[int, int]] = {}
        """Node -> latest notAfter of its own SVID, of its workloads' SVIDs."""
        self.told_at = 0.0
        """When the last whole round of questions began, unix seconds."""
        self.serials: dict[str, set[str]] = {}
        """`node id` -> serials seen."""
        self.errors: set[str] = set()
        self._lab, self._interval_s = lab, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.look()
        self._thread.start()

    def look(self) -> None:
        """Ask every node once."""
        began = time.clock_gettime(time.CLOCK_REALTIME)
        for node in self._lab.shape.nodes:
            try:
                svids = self._lab.status(node).svids
            except X0Error:
                continue
            own, others = self.ends.get(node, (0, 0))
            for svid in svids:
                self.serials.setdefault(f"{node} {svid.id}", set()).add(svid.serial)
                if svid.error:
                    self.errors.add(svid.error)
                if "/node/" in svid.id:
                    own = max(own, svid.not_after_unix_s)
                else:
                    others = max(others, svid.not_after_unix_s)
            self.ends[node] = (own, others)
        self.told_at = began

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.look()

    def rotations(self) -> int:
        """How often the SVID with the fewest renewals was renewed."""
        return min((len(serials) for serials in self.serials.values()), default=1) - 1

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(10)


def rotate(outcome: Outcome, lab: Lab, rotations: int, lifetimes: int, rate: int) -> None:
    """Load, and wait for that many renewals of everything."""
    ttl = lab.shape.ttl_s
    svids = Svids(lab)
    observer = Observer(lab.processes, lambda: (svids.told_at, dict(svids.ends)))
    ticks = Ticks(lab.plain("n1", "web"))
    load = lab.load(
        "n1", "web", "--kept", "16", "--rate", str(rate * 0.96), "--fresh", str(rate * 0.04)
    )
    began = time.monotonic()
    end = began + max(rotations, lifetimes) * ttl * 1.5 + 10
    while (
        time.monotonic() < end
        and not ticks.ended
        and (svids.rotations() < rotations or time.monotonic() < began + lifetimes * ttl)
    ):
        time.sleep(0.2)
    lived = time.monotonic() - began
    load.finish(10)
    count, tick_end, gap = ticks.count, ticks.ended, ticks.gap_s
    ticks.stop()
    observer.stop()
    svids.stop()
    outcome.figure("ttl_s", ttl)
    outcome.figure("seconds", round(lived, 1))
    outcome.figure("rotations", svids.rotations())
    outcome.figure("svids", len(svids.serials))
    outcome.figure("requests", len(load.samples))
    outcome.figure("requests_per_s", round(len(load.samples) / lived, 1))
    outcome.figure(
        "longest_request_ms", round(max((s.took for s in load.samples), default=0) * 1e3, 1)
    )
    outcome.figure("connections_seen", observer.seen)
    outcome.figure("looks", observer.looks)
    outcome.figure("oldest_connection_s", round(observer.longest_s, 1))
    outcome.figure("least_life_left_s", round(observer.least_left_s, 1))
    outcome.figure(
        "application_connection",
        {
            "lifetimes": round(lived / ttl, 1),
            "counts": count,
            "longest_gap_ms": round(gap * 1e3, 1),
        },
    )
    failed = load.failed()
    outcome.check(
        "0 requests failed",
        bool(load.samples) and not failed,
        [s.why for s in failed[:3]] or len(load.samples),
    )
    outcome.check(
        f"every SVID renewed {rotations} times", svids.rotations() >= rotations, svids.rotations()
    )
    outcome.check(
        "no connection outlived its SVIDs",
        observer.seen > 0 and not observer.late,
        observer.late[:5],
    )
    outcome.check(
        f"one application connection lived through {lifetimes} lifetimes",
        not tick_end and lived >= lifetimes * ttl,
        tick_end or f"{lived / ttl:.1f}",
    )
    outcome.check("no renewal failed", not svids.errors, sorted(svids.errors)[:3])


def shape(ttl_s: int) -> Shape:
    """The mesh for it."""
    return Shape(
        services=(Service("web", ("n3", "n5"), ("shop",)),),
        callers=(("n1", "shop"),),
        ttl_s=ttl_s,
    )


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """The whole measurement."""
    with Lab(root, shape(options.ttl)) as lab:
        lab.start()
        rotate(outcome, lab, options.rotations, options.lifetimes, options.rate)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="SVID rotations under load")
    words.add_argument("--ttl", type=int, default=20, help="seconds that an SVID lives")
    words.add_argument("--rotations", type=int, default=20)
    words.add_argument("--lifetimes", type=int, default=10)
    words.add_argument("--rate", type=int, default=500, help="requests per second")
    return words


def main() -> int:
    """Command line."""
    return run("rotations", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
