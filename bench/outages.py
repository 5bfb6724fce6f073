#!/usr/bin/env python3
"""Agents and the authority die under load, with renewals due; nobody may notice.

    .venv/bin/python -m bench.outages

Requests on kept and on fresh connections all the while.  Acts: the agents of client, relay and
server killed; the authority killed; every agent and the authority killed together for `--dark`
seconds, begun so that every SVID comes due for renewal while nobody can renew it.  Afterwards all
is started again and every SVID must be renewed before it ends.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.outcome import Outcome, run
from tests.real.lab import Lab, Service, Shape, Ticks
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import Watcher
from x0tta6bl4.wire.admin import SvidView
from x0tta6bl4.wire.errors import X0Error

TAIL_S = 2.0


def agents(outcome: Outcome, lab: Lab, load: Watcher, seconds: float) -> None:
    """The agents of everybody on the path."""
    path = lab.path("n1") or ("n1",)
    _act(outcome, lab, load, "agents killed", list(path), False, seconds)


def authority(outcome: Outcome, lab: Lab, load: Watcher, seconds: float) -> None:
    """The authority alone."""
    _act(outcome, lab, load, "authority killed", [], True, seconds)


def both(outcome: Outcome, lab: Lab, load: Watcher, seconds: float) -> None:
    """Every agent and the authority, while every SVID comes due for renewal."""
    lab.renew()
    svids = _svids(lab)
    life = min(s.not_after_unix_s - s.not_before_unix_s for s in svids.values())
    now = time.clock_gettime(time.CLOCK_REALTIME)
    left = min(s.not_after_unix_s for s in svids.values()) - now
    # Due at half of life +- 10 %: dark from before the first to after the last of them.
    begin = left - life * 0.6
    if begin + seconds > left - 12:
        raise SystemExit(f"{seconds:.0f} s of dark do not fit into a life of {left:.0f} s")
    outcome.figure("dark_begins_after_s", round(max(0.0, begin), 1))
    time.sleep(max(0.0, begin))
    due = sum(_due_within(s, seconds) for s in svids.values())
    outcome.figure("renewals_due_in_the_dark", f"{due} of {len(svids)}")
    _act(
        outcome, lab, load, "all agents and authority killed", list(lab.shape.nodes), True, seconds
    )
    after = _svids(lab)

    def renewed() -> bool:
        return all(_svids(lab)[key].serial != s.serial for key, s in svids.items())

    try:
        wait_for(renewed, "all SVIDs to be renewed", max(10.0, left))
        found = "all"
    except X0Error as error:
        after = _svids(lab)
        found = f"{error}: not {[k for k, s in svids.items() if after[k].serial == s.serial]}"
    outcome.check("every SVID was renewed after the dark", found == "all", found)
    outcome.check("renewals were due in the dark", due > 0, f"{due} of {len(svids)}")


def _due_within(svid: SvidView, seconds: float) -> bool:
    now = time.clock_gettime(time.CLOCK_REALTIME)
    half = (svid.not_before_unix_s + svid.not_after_unix_s) / 2
    return now < half < now + seconds


def _svids(lab: Lab) -> dict[str, SvidView]:
    return {f"{n} {s.id}": s for n in lab.shape.nodes for s in lab.status(n).svids}


def _act(
    outcome: Outcome,
    lab: Lab,
    load: Watcher,
    name: str,
    nodes: list[str],
    authority: bool,
    seconds: float,
) -> None:
    """Kill, wait, revive, and count what was lost from before the kill to after the revival."""
    time.sleep(0.5)
    began = time.monotonic()
    if authority:
        lab.mesh.kill("authority")
    for node in nodes:
        lab.mesh.kill(node, "agent")
    ticks = Ticks(lab.plain("n1", "web"))  # A new application connection in the dark.
    time.sleep(seconds)
    dark = ticks.count
    lab.revive(*nodes)
    time.sleep(TAIL_S)
    requests, failed, gap = load.window(began - 0.5, time.monotonic() - 0.5)
    outcome.figure(
        name,
        {
            "seconds": seconds,
            "requests": requests,
            "failed": len(failed),
            "longest_ms": round(gap, 1),
        },
    )
    outcome.check(
        f"{name}: 0 failed", requests > 0 and not failed, [s.why for s in failed[:3]] or requests
    )
    outcome.check(
        f"{name}: a connection made meanwhile lives on",
        not ticks.ended and ticks.count > dark,
        ticks.ended or ticks.count,
    )
    ticks.stop()


def dark(outcome: Outcome, lab: Lab, short_s: float, dark_s: float) -> None:
    """All three acts under one load."""
    load = lab.load("n1", "web", "--kept", "8", "--rate", "80", "--fresh", "20")
    agents(outcome, lab, load, short_s)
    authority(outcome, lab, load, short_s)
    both(outcome, lab, load, dark_s)
    load.finish(10)
    failed = load.failed()
    outcome.figure("requests", len(load.samples))
    outcome.check(
        "0 requests failed in all",
        bool(load.samples) and not failed,
        [s.why for s in failed[:3]] or len(load.samples),
    )


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
        dark(outcome, lab, options.short, options.dark)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="agents and authority die under load")
    words.add_argument("--ttl", type=int, default=240, help="seconds that an SVID lives")
    words.add_argument("--dark", type=float, default=100, help="seconds without any of them")
    words.add_argument("--short", type=float, default=10, help="seconds of the other acts")
    return words


def main() -> int:
    """Command line."""
    return run("outages", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
