#!/usr/bin/env python3
"""Writes docs/benchmarks.md from bench/results/*.json.

.venv/bin/python -m bench.report
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.outcome import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Measurements

<!-- Generated from bench/results by bench/report.py: change it there. -->

Each part says what was run, on which commit and machine, what it found and whether that was good
enough. Anyone can run the command again; it writes the same file. Figures of a shared machine with
few cores are good for ratios and for pass or fail, not for the third digit.
"""
TITLES = {
    "long_stream": "One connection while relays die and SVIDs rotate",
    "rotations": "Rotations at a short SVID life",
    "revocation": "How long access lasts after it was taken away",
    "outages": "Agents and authority gone",
    "failover_tcp": "A TCP request stream when the network breaks",
    "failover": "Packets when the network breaks, beside routing daemons",
    "failover_kernel": "Ours alone, after the run beside them",
    "kernel_streams": "TCP over the kernel's data plane when a link is cut",
    "footprint": "What a node takes",
    "proxies": "Beside other pairs of mutual-TLS proxies",
    "identity": "How soon an identity is there, and gone",
    "identity_scale": "A thousand nodes on one authority",
    "identity_handshake": "What mutual TLS with SVIDs costs",
    "routes": "Programming the kernel's routes",
    "bpf": "The programs in the kernel",
    "sixty": "Sixty nodes on one machine",
    "hogs": "Verdicts on a machine without time",
    "simulator": "The simulator: a thousand nodes in virtual time",
}

RAW = "raw"
"""A figure that is kept, and not for the page."""


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    parts = [HEAD]
    known = {file.stem: file for file in sorted(results.glob("*.json"))}
    for name in [*TITLES, *sorted(known.keys() - TITLES.keys())]:
        if name in known:
            parts.append(_part(name, json.loads(known[name].read_text())))
    return "\n".join(parts)


def _part(name: str, result: dict[str, Any]) -> str:
    machine = {
        k: result.get("machine", {}).get(k, "?") for k in ("cores", "cpu", "kernel", "python")
    }
    lines = [
        f"## {TITLES.get(name, name)}",
        "",
        f"`{result.get('command', '')}`",
        "",
        f"Commit {result.get('commit', '?')}, {result.get('date', '?')}; {machine['cores']} cores"
        f" of {machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']};"
        f" {result.get('seconds', '?')} s.",
        "",
    ]
    checks = result.get("checks", [])
    if checks:
        lines += ["| must hold | found | |", "|---|---|---|"]
        for check in checks:
            verdict = "good" if check["good"] else "**not met**"
            lines.append(f"| {_cell(check['what'])} | {_cell(check['found'])} | {verdict} |")
        lines.append("")
    figures = result.get("figures", {})
    for name, value in figures.items():
        if _is_table(value):
            lines += _table(name, value)
    rows = list(_flat({k: v for k, v in figures.items() if k != RAW and not _is_table(v)}))
    if rows:
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
        lines.append("")
    return "\n".join(lines)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"columns", "rows"}


def _table(name: str, table: dict[str, Any]) -> list[str]:
    columns = table["columns"]
    lines = [f"{name[0].upper()}{name[1:]}:", "", "| " + " | ".join(map(_cell, columns)) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in table["rows"]]
    return [*lines, ""]


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in figures.items():
        if isinstance(value, dict) and value and any(isinstance(v, dict) for v in value.values()):
            yield from _flat(value, f"{prefix}{key}: ")
        elif isinstance(value, dict):
            yield f"{prefix}{key}", ", ".join(f"{k} {v}" for k, v in value.items())
        else:
            yield f"{prefix}{key}", value


def _cell(value: object) -> str:
    return str("" if value is None else value).replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Command line."""
    PAGE.write_text(page())
    print(PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
