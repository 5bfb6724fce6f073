#!/usr/bin/env python3
"""How fast the simulator is: a thousand nodes at production intervals, with and without elision.

    .venv/bin/python -m bench.simulator

Each run is a process of its own: `x0 sim bench`, which boots a mesh for 30 virtual seconds and
then measures with a link cut every 5 s.  Elided are the hellos of links on which nothing happens;
tests/sim/test_elision.py shows that nothing else differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.outcome import Outcome, run


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


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Both, one after the other."""
    for name, elide, times in (("every hello passed", False, 3), ("calm hellos elided", True, 20)):
        found = simulated(root, options, elide=elide)
        outcome.figure(name, found)
        faster = found["times_real_time"]
        outcome.check(f"{name}: at least {times} times real time", faster >= times, faster)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    return run("simulator", measure, parser)


if __name__ == "__main__":
    sys.exit(main())
