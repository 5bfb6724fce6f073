#!/usr/bin/env python3
"""How fast the simulator is: a thousand nodes at production intervals, with and without elision.

    .venv/bin/python -m bench.simulator

Each run is a process of its own: `x0 sim bench`, which boots a mesh for 30 virtual seconds and
then measures with a link cut every 5 s.  Elided are the hellos of links on which nothing happens;
tests/sim/test_elision.py shows that nothing else differs.  After booting, all memory is moved onto
huge pages, where the kernel can (`MADV_COLLAPSE`, Linux 6.1).

What costs what is a profile of a smaller mesh: percent of the CPU time by room, to be applied to
the microseconds per message of a run without a profiler.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.outcome import Outcome, run
from x0tta6bl4.runtime.sim import bench


def simulated(root: Path, options: argparse.Namespace, *, elide: bool) -> dict[str, Any]:
    """One run of `x0 sim bench`."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "simulated.json"
    command = [sys.executable, "-m", "x0tta6bl4", "sim", "bench"]
    command += [f"--nodes={options.nodes}", f"--seconds={options.seconds}", f"--json={file}"]
    subprocess.run(
        [*command, *(["--elide"] if elide else [])],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=3600,
    )
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def profiled(nodes: int, seconds: int, *, elide: bool) -> dict[str, float]:
    """Own time of each room in percent, dearest first."""
    profiler = cProfile.Profile(time.process_time)
    bench.measure(nodes, seconds, elide=elide, profiler=profiler)
    rooms: dict[str, float] = {}
    stats: Any = pstats.Stats(profiler)
    for (file, _, _), (_, _, own_s, _, _) in stats.stats.items():
        room = "built in"
        if "x0tta6bl4" in file:
            floor, *below = file.rpartition("x0tta6bl4/")[2].removesuffix(".py").split("/")
            room = "/".join([floor, *(below if below[0] == "sim" else below[:1])])
        rooms[room] = rooms.get(room, 0.0) + own_s
    dearest = sorted(rooms.items(), key=lambda item: -item[1])
    return {room: round(100 * own_s / sum(rooms.values()), 1) for room, own_s in dearest[:12]}


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Both, one after the other."""
    for name, elide, times in (("every hello passed", False, 3), ("calm hellos elided", True, 20)):
        if options.only and options.only not in name:
            continue
        shares = profiled(options.profile, 10, elide=elide)
        outcome.figure(f"{name}: percent by room, {options.profile} nodes", shares)
        if options.profile_only:
            continue
        found = simulated(root, options, elide=elide)
        outcome.figure(name, found)
        faster = found["times_real_time"]
        outcome.check(f"{name}: at least {times} times real time", faster >= times, faster)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--profile", type=int, default=200, help="nodes of the profiled mesh")
    parser.add_argument("--only", choices=("passed", "elided"), help="one of the two")
    parser.add_argument("--profile-only", action="store_true", help="no runs of all nodes")
    return run("simulator", measure, parser)


if __name__ == "__main__":
    sys.exit(main())
