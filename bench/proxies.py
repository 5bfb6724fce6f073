#!/usr/bin/env python3
"""Ours beside known pairs of mutual-TLS proxies, in one run of one harness.

    sudo X0_PROXY_BENCH=PATH/proxy.py .venv/bin/python -m bench.proxies

The harness is not part of this project: a program that starts each pair, loads it with the same
generator and prints one JSON line per measurement (`peer`, `work`, figures).  Ours is a whole mesh
(`bench/pair.py`): authority, agents, attestation and policy, direct and through one relay.  The
figures of ours count all its processes, the authority and the agents too.

Known pairs make a handshake for each connection, ours carries all in one session: `conn` says what
that gives.  `conn, own sessions` is the comparison like with like: a mutual handshake for each, and
a circuit of its own, through the relay too.  Ours has a post-quantum key exchange even there,
which costs it 0.2 ms of CPU more than the X25519 of the others.

Ours is Python, so the interpreter's build counts: Debian's own needs a tenth to a fifth less CPU
per request than one that was built by a plain `./configure && make`.  `--python` names another
than this program's, in whose environment x0tta6bl4 is installed; the results say which it was.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.outcome import Outcome, run

PEERS = {
    "haproxy": "haproxy",
    "haproxy-tuned": "haproxy",
    "stunnel": "stunnel",
    "nginx": "nginx",
    "ghostunnel": "ghostunnel",
}
BASE = "haproxy"
OWN = "conn, own sessions"
Rows = dict[str, dict[str, list[dict[str, Any]]]]


def medians(rows: Rows) -> dict[str, dict[str, dict[str, Any]]]:
    """Work -> peer -> figure -> median of its good runs (text: the last), and how many were bad."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for work, peers in rows.items():
        for peer, runs in peers.items():
            good = [r for r in runs if not r.get("bad") and not r.get("error")]
            figures: dict[str, Any] = {"runs": len(runs), "bad": len(runs) - len(good)}
            for column in {k for r in good for k in r} - {"peer", "work", "run", "load1"}:
                values = [r[column] for r in good if column in r]
                numbers = [v for v in values if isinstance(v, int | float)]
                whole = len(numbers) == len(values) and not isinstance(values[0], bool)
                figures[column] = statistics.median(numbers) if whole else values[-1]
            found.setdefault(work, {})[peer] = dict(sorted(figures.items()))
    return found


def judge(outcome: Outcome, found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Ratios of ours to the base, direct and through a relay, and the targets of both."""
    targets = (
        ("rr32", "rate", 1.3, True),
        ("bulk1", "gbit", 1.0, True),
        ("bulk8", "gbit", 1.0, True),
        ("conn", "rate", 5.0, True),
        (OWN, "rate", 0.8, True),
        ("rr1", "p50_us", 1.3, False),
    )
    ratios: dict[str, float] = {}
    for work, column, target, more in targets:
        base = found.get(work, {}).get(BASE, {}).get(column)
        for peer in ("ours", "ours-relay"):
            value = found.get(work, {}).get(peer, {}).get(column)
            if not base or value is None:
                continue
            ratio = ratios[f"{peer} {work} {column}"] = round(value / base, 2)
            outcome.check(
                f"{peer}: {work} {column} {'>=' if more else '<='} {target} x {BASE}",
                ratio >= target if more else ratio <= target,
                ratio,
            )
    outcome.figure(f"ratio_to_{BASE}", ratios)
    bad = {f"{w} {p}": f["bad"] for w, peers in found.items() for p, f in peers.items()
           if f["bad"] and p.startswith("ours")}  # fmt: skip
    outcome.check("no broken connection and no wrong byte of ours", not bad, bad)


def interpreter(python: str) -> str:
    """What an interpreter says of its version and build."""
    ask = "import sys; print(' '.join(sys.version.split()))"
    return subprocess.run(
        [python, "-c", ask], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Run the harness and keep its medians."""
    harness = os.environ.get("X0_PROXY_BENCH", "")
    if not Path(harness).is_file():
        outcome.check("the harness is there (X0_PROXY_BENCH names it)", False, harness or "unset")
        return
    given = dict(each.split("=", 1) for each in options.bin)
    peers = [p for p, binary in PEERS.items() if p in given or shutil.which(binary)]
    outcome.figure("peers", peers)
    outcome.figure("peers_missing", [p for p in PEERS if p not in peers])
    root.mkdir(parents=True, exist_ok=True)
    lines = root / "lines.jsonl"
    outcome.figure("interpreter", interpreter(options.python))
    pair = f"{options.python} {Path(__file__).with_name('pair.py')}"
    pair += " --listen {listen} --target {target} --dir {dir}"

    def load(peers: list[str], ours: str, *more: str) -> None:
        command = [
            sys.executable, harness, "--peers", ",".join(peers), "--runs", str(options.runs),
            "--secs", str(options.secs), "--out", str(lines), *more,
            "--ours", f"ours={ours}", "--ours", f"ours-relay={ours} --relays 1",
            *(word for name, path in given.items() for word in ("--bin", f"{name}={path}")),
        ]  # fmt: skip
        subprocess.run(command, check=False, timeout=options.limit)

    rows: Rows = collections.defaultdict(lambda: collections.defaultdict(list))

    def take(work: str = "") -> None:
        for line in lines.read_text().splitlines() if lines.exists() else ():
            row = json.loads(line)
            rows[work or row["work"]][row["peer"]].append(row)
        lines.unlink(missing_ok=True)

    load(["direct", *peers], pair, "--work", options.work, "--rr1")
    take()
    if "conn" in options.work.split(","):
        load([BASE], f"{pair} --sessions own", "--work", "conn")
        take(OWN)
    found = medians(rows)
    outcome.figures["medians"] = found
    judge(outcome, found)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="ours beside other pairs of mTLS proxies")
    words.add_argument("--runs", type=int, default=3)
    words.add_argument("--secs", type=float, default=3.0)
    words.add_argument("--work", default="rr32,bulk1,bulk8,conn,idle,life")
    words.add_argument("--bin", action="append", default=[], metavar="NAME=PATH")
    words.add_argument("--python", default=sys.executable, help="interpreter that runs ours")
    words.add_argument("--limit", type=float, default=1800, help="seconds for all of it")
    return words


def main() -> int:
    """Command line."""
    return run("proxies", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
