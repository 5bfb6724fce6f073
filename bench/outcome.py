"""What a measurement found: figures, checks, and the file in `bench/results` that keeps both."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from x0tta6bl4.wire.errors import X0Error

RESULTS = Path(__file__).parent / "results"


class Outcome:
    """Figures and checks of one run.

    Args:
        tell: prints a line; None: silent, as in tests.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.figures: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._tell = tell or (lambda text: None)

    def tell(self, text: str) -> None:
        """One line of progress."""
        self._tell(f"[{time.monotonic() - self._began:6.1f} s] {text}")

    def figure(self, name: str, value: Any) -> None:
        """Keep a figure."""
        self.figures[name] = value
        self.tell(f"{name}: {value}")

    def check(self, what: str, good: bool, found: object = "") -> None:
        """Something that has to hold."""
        self.checks = [c for c in self.checks if c["what"] != what]
        self.checks.append({"what": what, "good": bool(good), "found": str(found)})
        self.tell(f"{'good' if good else 'BAD '}  {what}" + (f": {found}" if found != "" else ""))

    @property
    def bad(self) -> list[str]:
        """Checks that did not hold."""
        return [f"{c['what']}: {c['found']}" for c in self.checks if not c["good"]]

    def write(self, name: str) -> Path:
        """Keep it as `bench/results/<name>.json`."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}.json"
        path.write_text(
            json.dumps(
                {
                    "command": f"python -m bench.{Path(sys.argv[0]).stem}" + _arguments(),
                    "commit": _commit(),
                    "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
                    "machine": machine(),
                    "seconds": round(time.monotonic() - self._began, 1),
                    "good": not self.bad,
                    "figures": self.figures,
                    "checks": self.checks,
                },
                indent=1,
            )
            + "\n"
        )
        return path


def _arguments() -> str:
    return "".join(" " + argument for argument in sys.argv[1:])


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=RESULTS.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def run(
    name: str,
    measure: Callable[[Outcome, Path, argparse.Namespace], None],
    parser: argparse.ArgumentParser,
) -> int:
    """Command line of a measurement: run it, keep the result, 0 if every check held.

    Args:
        name: of the result file.
        measure: fills the outcome; its second argument is a directory of its own.
        parser: with the options of this measurement; `--keep` and `--no-result` are added.
    """
    parser.add_argument("--keep", action="store_true", help="leave the processes' files behind")
    parser.add_argument("--no-result", action="store_true", help="write no result file")
    options = parser.parse_args()
    outcome = Outcome(lambda text: print(text, flush=True))
    root = Path("/tmp") / f"x0-{name}-{os.getpid()}"
    try:
        measure(outcome, root, options)
    except X0Error as error:
        outcome.check("run to its end", False, error)
    except KeyboardInterrupt:
        outcome.check("run to its end", False, "interrupted")
    finally:
        if options.keep:
            outcome.tell(f"files are in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    if not options.no_result:
        outcome.tell(f"kept in {outcome.write(name)}")
    for bad in outcome.bad:
        outcome.tell(f"BAD: {bad}")
    return 1 if outcome.bad or not outcome.checks else 0
