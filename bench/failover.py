#!/usr/bin/env python3
"""How long packets stand still when the network breaks, beside routing daemons, in one harness.

    sudo apt-get install --no-install-recommends babeld bird2 frr clang-19
    sudo X0_FAILOVER_BENCH=PATH/failover.py .venv/bin/python -m bench.failover

The harness is not part of this project: a program that joins network namespaces by cables, starts
one routing daemon in each, sends numbered UDP probes every millisecond between two far ones and
breaks what they use.  Ours is a node with `plane = "kernel"` in each of them, an authority in the
first; probes go between mesh addresses by the kernels' routes.  Known daemons route the same
probes over the same cables; their services need not run, only their programs be there.

Beside the probes an ordinary client sends 250 requests a second over one TCP connection to an
ordinary server: through the proxies and sessions of our nodes, plainly by the routes of the others.
Of nodes with `plane = "userspace"` there are requests only.

Faults come in the cable, where no program of a node sees them: `silent` drops everything on a link,
`gray30` and `gray5` a share in each direction, `carrier` takes the signal from both ends, `relay`
kills all processes of a host and all that goes in or out, `daemon` kills the processes alone.  An
outage is the longest run of lost probes; of a gray link, the time until a second without loss.
CPU is of processes, all hosts together; what kernels do for the programs is `bench/bpf.py`.

Two cells (protocol and shape) run at once, each on a core of its own (`--lanes 1`: one after the
other, on all cores); one that does not get ready there is tried again at the end, alone.  Kernel
mode breaks `--runs` times in each way on each shape.  The others do so on the ring when all of a
link or of a host is lost, and are sampled else: see `times`; `--whole` has them break as often,
which takes hours.  The result is written after each cell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

from bench.failover_cell import Cell, load, sweep
from bench.failover_cell import measure as measure_cell
from bench.failover_ours import KERNEL, USERSPACE, WAIT_S
from bench.outcome import Outcome, run
from x0tta6bl4.wire.errors import Unavailable

PEERS: Final = {
    "babeld-20ms": ("babeld", "babeld"),
    "bird-ospf-bfd10": ("bird", "bird2"),
    "frr-ospf-bfd10": ("/usr/lib/frr/ospfd", "frr"),
    "frr-isis-lfa-bfd10": ("/usr/lib/frr/isisd", "frr"),
}
"""Name in the harness -> program that it needs, and Debian's package."""
SHAPES: Final = ("ring6c", "grid4", "diamond")
RING: Final = SHAPES[0]
FAULTS: Final = {"silent": "silent", "gray30": "gray", "gray5": "gray5", "carrier": "carrier",
                 "relay": "relay", "daemon": "daemon"}  # fmt: skip
"""Our name -> the harness's."""
GRAY: Final = ("gray30", "gray5")
RARE: Final = (*GRAY, "daemon")
SAMPLE, SAMPLE_ELSEWHERE = 2, 1
TARGETS: Final = {"silent": (5, 10), "relay": (5, 15), "carrier": (5, 10), "gray30": (100, 500)}
"""Median and maximum, ms."""
GRAY5_MS, GRAY5_SHARE, CPU_PERCENT = 2000, 0.95, 5.0
FAULT_S, CELL_S = 60.0, 300.0
"""A cell may take so long for each fault, and for the rest."""
END_S: Final = 60.0

_FORK: Final = multiprocessing.get_context("fork")
Row = dict[str, Any]


def times(shape: str, proto: str, fault: str, runs: int, whole: bool) -> int:
    """How often a fault comes."""
    if whole or proto == KERNEL:
        return runs
    if shape == RING:
        return min(runs, SAMPLE) if fault in RARE else runs
    return min(runs, SAMPLE_ELSEWHERE)


def plan(options: argparse.Namespace, have: list[str]) -> list[Cell]:
    """The cells, longest first; faults take turns in each."""
    wanted = options.protos.split(",") if options.protos else [KERNEL, USERSPACE, *have]
    shapes, faults = options.shapes.split(","), options.faults.split(",")
    cells = []
    for shape in shapes:
        for proto in wanted:
            if proto == USERSPACE and shape != RING:
                continue
            often = {f: times(shape, proto, f, options.runs, options.whole) for f in faults}
            turns = [FAULTS[f] for r in range(options.runs) for f in faults if r < often[f]]
            cells.append(Cell(shape, proto, tuple(turns), options.steady))
    return sorted(cells, key=lambda cell: -len(cell.faults))


def _work(harness: Any, cell: Cell, core: int | None, place: Path, lines: Path) -> None:
    place.mkdir()
    os.chdir(place)
    measure_cell(harness, cell, core, lines)


def run_cells(
    harness: Any,
    cells: list[Cell],
    lanes: int,
    root: Path,
    last_begin: float,
    keep: Callable[[Cell, list[Row]], None],
) -> None:
    """Run the cells, so many at once, each in a process that may fail alone.

    Args:
        harness: the module.
        cells: in order.
        lanes: how many at once; each has a core of its own if there are several.
        root: directory, is made.
        last_begin: no cell begins later, CLOCK_MONOTONIC.
        keep: is given what there is of each cell at its end.
    """
    root.mkdir()
    left = deque(enumerate(cells))
    cores: list[int | None] = [None]
    if lanes > 1:
        cores = [*sorted(os.sched_getaffinity(0))[:lanes]]
    running: dict[int, tuple[Any, Cell, int | None, Path, float]] = {}
    try:
        while (left and time.monotonic() < last_begin) or running:
            while left and cores and time.monotonic() < last_begin:
                number, cell = left.popleft()
                lines, core = root / f"{number}.jsonl", cores.pop()
                lines.touch()
                child = _FORK.Process(
                    target=_work, args=(harness, cell, core, root / f"c{number}", lines)
                )
                child.start()
                end = time.monotonic() + CELL_S + FAULT_S * len(cell.faults)
                running[child.sentinel] = child, cell, core, lines, end
            wait(list(running), 1.0)
            for sentinel, (child, cell, core, lines, end) in list(running.items()):
                if child.is_alive() and time.monotonic() < end:
                    continue
                _end(child)
                del running[sentinel]
                cores.append(core)
                rows = [json.loads(line) for line in lines.read_text().splitlines()]
                if child.exitcode != 0:
                    rows.append({"kind": "failed", "error": f"exit code {child.exitcode}"})
                keep(cell, rows)
    finally:
        for child, *_ in running.values():
            _end(child)


def _end(child: Any) -> None:
    """SIGTERM, for the harness cleans up then; SIGKILL and a broom if that takes too long."""
    if child.is_alive():
        child.terminate()
    child.join(END_S)
    if child.exitcode != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # Its probers, too.
        child.join(END_S)
        sweep(child.pid)


def _of(rows: list[Row], kind: str) -> Row:
    return next((row for row in rows if row["kind"] == kind), {})


def probes(rows: list[Row], fault: str) -> Row | None:
    """What became of the probes at one kind of fault."""
    found = [r for r in rows if r["kind"] == "fault" and r["fault"] == FAULTS[fault]]
    if not found:
        return None
    runs = [r for r in found if "error" not in r]
    key = "mttr_ms" if fault in GRAY else "outage_ms"
    good = sorted(r[key] for r in runs if r["healed"] and r[key] is not None)
    return {
        "ms": good,
        "runs": len(found),
        "lost": sorted(r["lost"] for r in runs),
        "heal gap ms": sorted(r["heal_gap_ms"] for r in runs if r["healed"]),
        "errors": [r["error"] for r in found if "error" in r],
    }


def requests(rows: list[Row], fault: str) -> Row | None:
    """What became of the requests."""
    found = [r for r in rows if r["kind"] == "requests" and r["fault"] == FAULTS[fault]]
    if not found:
        return None
    return {
        "longest ms": sorted(r["broke"]["longest_ms"] for r in found),
        "control ms": sorted(r["control"]["longest_ms"] for r in found),
        "requests": sum(r["broke"]["requests"] for r in found),
        "failed": sum(r["broke"]["failed"] for r in found),
        "connections broken": sum(r["broke"]["broken"] for r in found),
        "failed before": sum(r["control"]["failed"] for r in found),
    }


def summary(rows: list[Row], faults: list[str], proto: str) -> Row:
    """What is kept of one cell."""
    steady = _of(rows, "steady")
    waited = [r["s"] for r in rows if r["kind"] == "waited" and r["s"] is not None]
    return {
        "probes": {}
        if proto == USERSPACE
        else {f: found for f in faults if (found := probes(rows, f)) is not None},
        "requests": {f: found for f in faults if (found := requests(rows, f)) is not None},
        "converged s": _of(rows, "start").get("converged_s"),
        "CPU %": steady.get("cpu_pct"),
        "bytes/s": steady.get("bytes_s"),
        "memory MB": steady.get("rss_mb"),
        "TTL exceeded": _of(rows, "expired").get("packets"),
        "longest wait before a fault s": round(max(waited[1:], default=0.0), 1),
        "failed": _of(rows, "failed").get("error", ""),
    }


def _name(cell: Cell) -> str:
    return f"{cell.shape} {cell.proto}"


def _two(values: list[float]) -> str:
    return f"{statistics.median(values):.0f}/{max(values):.0f}" if values else ""


def _healed(found: Row | None) -> str:
    if found is None:
        return ""
    ms, runs = found["ms"], found["runs"]
    if not ms:
        return f"never ({runs})"
    return f"{_two(ms)} ({runs})" if len(ms) == runs else f"{_two(ms)} ({len(ms)} of {runs})"


def _answered(found: Row | None) -> str:
    if found is None:
        return ""
    return f"{_two(found['longest ms'])} ({found['failed']})"


def tables(outcome: Outcome, cells: dict[str, Row]) -> None:
    """Ours beside the others, for the page."""
    lost, asked, cost = [], [], []
    for name, cell in sorted(cells.items(), key=lambda item: SHAPES.index(item[0].split()[0])):
        shape, _, proto = name.partition(" ")
        if cell["probes"]:
            gaps = [gap for f in cell["probes"].values() for gap in f["heal gap ms"]]
            lost.append([shape, proto, *(_healed(cell["probes"].get(f)) for f in FAULTS),
                         _two(gaps), cell["TTL exceeded"]])  # fmt: skip
        if cell["requests"]:
            control = [ms for f in cell["requests"].values() for ms in f["control ms"]]
            asked.append([shape, proto, _two(control),
                          *(_answered(cell["requests"].get(f)) for f in FAULTS)])  # fmt: skip
        cost.append([shape, proto, *(cell[key] for key in COST)])
    outcome.figures["UDP probes: outage in ms, median/max (times)"] = {
        "columns": ["shape", "protocol", *FAULTS, "when it heals", "TTL exceeded"], "rows": lost,
    }  # fmt: skip
    outcome.figures["requests by TCP: longest answer in ms, median/max (requests failed)"] = {
        "columns": ["shape", "protocol", "none", *FAULTS], "rows": asked,
    }  # fmt: skip
    outcome.figures["all nodes together, without faults, probes and requests"] = {
        "columns": ["shape", "protocol", *COST], "rows": cost,
    }  # fmt: skip


COST: Final = ("converged s", "CPU %", "bytes/s", "memory MB")


def judge(outcome: Outcome, cells: dict[str, Row]) -> None:
    """The targets for ours on every shape that was measured."""
    for name, cell in cells.items():
        shape, _, proto = name.partition(" ")
        errors = [e for f in cell["probes"].values() for e in f["errors"]]
        if cell["failed"] or cell["converged s"] is None:
            errors.append(cell["failed"] or "never converged")
        outcome.check(f"{name}: every run counts", not errors, errors[:2])
        if proto not in (KERNEL, USERSPACE):
            continue
        asked = cell["requests"].values()
        failed = {k: sum(f[k] for f in asked) for k in ("failed", "connections broken", "requests")}
        good = not failed["failed"] and not failed["connections broken"]
        outcome.check(f"{name}: no request failed", good and failed["requests"] > 0, failed)
        if proto == KERNEL:
            _judge_probes(outcome, shape, cell)


def _judge_probes(outcome: Outcome, shape: str, cell: Row) -> None:
    found = cell["probes"]
    for fault, (median, most) in TARGETS.items():
        if row := found.get(fault):
            ms, whole = row["ms"], len(row["ms"]) == row["runs"]
            good = whole and statistics.median(ms) <= median and max(ms) <= most
            outcome.check(f"{shape}: {fault} at most {median}/{most} ms", good, _healed(row))
    if row := found.get("gray5"):
        fast = sum(ms <= GRAY5_MS for ms in row["ms"])
        good = fast >= GRAY5_SHARE * row["runs"]
        outcome.check(f"{shape}: gray5 healed in 2 s in 19 of 20", good, f"{fast} of {row['runs']}")
    if row := found.get("daemon"):
        outcome.check(f"{shape}: dead processes lose nothing", not any(row["lost"]), row["lost"])
    gaps = {fault: max(row["heal gap ms"], default=0.0) for fault, row in found.items()}
    outcome.check(f"{shape}: no gap when it heals", not any(gaps.values()), gaps)
    expired, spent = cell["TTL exceeded"], cell["CPU %"]
    outcome.check(f"{shape}: no packet went in circles", expired == 0, expired)
    if shape == RING and spent is not None:
        outcome.check("six nodes take at most 5 % of a core", spent <= CPU_PERCENT, spent)


def versions(have: list[str]) -> dict[str, str]:
    """Of the packages that the peers are from."""
    packages = sorted({PEERS[name][1] for name in have})
    said = subprocess.run(["dpkg-query", "-W", *packages], capture_output=True, text=True,
                          check=False, timeout=20).stdout if packages else ""  # fmt: skip
    return dict(line.split("\t") for line in said.splitlines())


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Every shape, every protocol, every fault."""
    given = os.environ.get("X0_FAILOVER_BENCH", "")
    if not Path(given).is_file():
        outcome.check("the harness is there (X0_FAILOVER_BENCH names it)", False, given or "unset")
        return
    have = [name for name, (program, _) in PEERS.items() if shutil.which(program)]
    missing = {package for name, (_, package) in PEERS.items() if name not in have}
    outcome.check("all peers are installed", not missing, " ".join(sorted(missing)))
    harness = load(Path(given).resolve(), root, tuple(PEERS))
    planned = plan(options, have)
    outcome.figure("versions", versions(have))
    outcome.figure("at once", f"{options.lanes}, each on a core of its own"
                   if options.lanes > 1 else "one, on all cores")  # fmt: skip
    outcome.figure("never", f"not in {WAIT_S:.0f} s")
    cells: dict[str, Row] = {}

    def keep(cell: Cell, rows: list[Row]) -> None:
        name = _name(cell)
        cells[name] = summary(rows, options.faults.split(","), cell.proto)
        outcome.tell(f"{name}: {cells[name]}")
        outcome.figures["raw"] = cells
        tables(outcome, cells)
        whole = len(cells) == len(planned)
        outcome.check("every cell was run", whole, f"{len(cells)} of {len(planned)}")
        if not options.no_result:
            outcome.write(options.result)

    last_begin = time.monotonic() + 60 * options.minutes
    run_cells(harness, planned, options.lanes, root / "lanes", last_begin, keep)
    again = [c for c in planned if (done := cells.get(_name(c))) and done["converged s"] is None]
    if again and options.lanes > 1:
        outcome.figure("alone, on all cores", [_name(cell) for cell in again])
        run_cells(harness, again, 1, root / "alone", last_begin, keep)
    judge(outcome, cells)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="outages beside routing daemons")
    words.add_argument("--runs", type=int, default=10)
    words.add_argument("--shapes", default=",".join(SHAPES))
    words.add_argument("--faults", default=",".join(FAULTS))
    words.add_argument("--protos", default="", help="ours and names of the harness; all known")
    words.add_argument("--steady", type=float, default=10.0, help="seconds of CPU and bytes")
    words.add_argument("--minutes", type=float, default=300, help="no cell begins later")
    words.add_argument("--result", default="failover", help="name of the file under bench/results")
    words.add_argument("--lanes", type=int, default=min(2, len(os.sched_getaffinity(0))))
    words.add_argument("--whole", action="store_true", help="the others as often as ours: hours")
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return run(parser().parse_known_args()[0].result, measure, parser())


if __name__ == "__main__":
    sys.exit(main())
