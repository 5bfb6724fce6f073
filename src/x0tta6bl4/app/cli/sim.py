"""`x0 sim`: the real machines in a world of virtual time, for tests, study and profiling."""

from __future__ import annotations

import concurrent.futures
import functools
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from x0tta6bl4.runtime.sim import bench, scenario, swarm
from x0tta6bl4.runtime.sim.faults import KINDS

ELIDE = "Pass no hellos over links on which nothing happens; the rest is the same."


@click.group()
def sim() -> None:
    """Run the mesh's own machines in virtual time, with faults drawn from seeds."""


@sim.command()
@click.option("--seed", default=1, show_default=True, help="Chooses everything below.")
@click.option("--nodes", type=click.IntRange(2, 2000), help="Instead of the seed's choice.")
@click.option("--seconds", type=click.IntRange(6), help="Virtual seconds with faults.")
@click.option("--elide", is_flag=True, help=ELIDE)
@click.option("--trace", is_flag=True, help="Print the plan of faults, and every fact.")
def run(seed: int, nodes: int | None, seconds: int | None, elide: bool, trace: bool) -> None:
    """Run one seed and judge it by all laws; exit 1 if one is broken."""
    began = time.monotonic()
    report = swarm.judged(seed, click.echo if trace else None, nodes, seconds, elide)
    took = time.monotonic() - began
    click.echo(
        f"seed {seed}: {report.nodes} nodes, {report.links} links, {report.virtual_s:.0f} virtual"
        f" s in {took:.1f} s, {report.handled} events, {sum(report.faults.values())} faults"
        f" ({_counted(report.faults)})\nstreams: {_counted(report.streams)}\n"
        f"digest {report.digest}"
    )
    if report.broken:
        click.echo(f"BROKEN {report.broken}", err=True)
        raise SystemExit(1)
    click.echo("all laws hold")


@sim.command("swarm")
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1))
@click.option("--from", "first", default=0, show_default=True, help="First seed.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--elide", is_flag=True, help=ELIDE)
def swarm_command(seeds: int, first: int, jobs: int, elide: bool) -> None:
    """Run many seeds and judge each; exit 1 if one is red."""
    began = time.monotonic()
    reports: list[swarm.Report] = []
    for report in _reports(range(first, first + seeds), jobs, elide):
        reports.append(report)
        if report.broken:
            click.echo(
                f"RED seed {report.seed}: {report.broken}\n"
                f"    x0 sim run --seed {report.seed} --trace{' --elide' if elide else ''}",
                err=True,
            )
        if len(reports) % 100 == 0:
            click.echo(f"{len(reports)} seeds, {time.monotonic() - began:.0f} s")
    begun: Counter[str] = Counter()
    for report in reports:
        begun.update(report.faults)
    red = sum(1 for report in reports if report.broken)
    click.echo(
        f"{len(reports)} seeds, {red} red, {time.monotonic() - began:.0f} s; median of"
        f" {statistics.median(r.nodes for r in reports):.0f} nodes,"
        f" {statistics.median(r.virtual_s for r in reports):.0f} virtual s,"
        f" {statistics.median(sum(r.faults.values()) for r in reports):.0f} faults;"
        f" {sum(r.handled for r in reports)} events"
    )
    click.echo("faults: " + _counted({kind: begun.get(kind, 0) for kind in KINDS}))
    ends: Counter[str] = Counter()
    for report in reports:
        ends.update(report.streams)
    click.echo("streams: " + _counted(ends))
    if red:
        raise SystemExit(1)


@sim.command("bench")
@click.option("--nodes", default=1000, show_default=True, type=click.IntRange(2, 5000))
@click.option("--seconds", default=60, show_default=True, type=click.IntRange(1))
@click.option("--elide", is_flag=True, help=ELIDE)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures there.")
def bench_command(nodes: int, seconds: int, elide: bool, file: Path | None) -> None:
    """Measure a large mesh at production intervals: faster than real time, and by how much."""
    measured = bench.measure(nodes, seconds, elide=elide)
    text = msgspec.json.format(msgspec.json.encode(measured), indent=2).decode()
    click.echo(text)
    if file is not None:
        file.write_text(text + "\n")


@sim.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rewrite", is_flag=True, help="Write what happened into the files.")
def play(files: tuple[Path, ...], rewrite: bool) -> None:
    """Play scenario files: commands and expected answers."""
    differing = 0
    for file in files:
        text = file.read_text()
        played = scenario.play(text)
        if played != text:
            differing += 1
            if rewrite:
                file.write_text(played)
        click.echo(f"{file}: {'as written' if played == text else 'differs'}")
    if differing and not rewrite:
        raise SystemExit(1)


def _reports(seeds: range, jobs: int, elide: bool) -> Iterator[swarm.Report]:
    judged = functools.partial(swarm.judged, elide=elide)
    if jobs == 1:
        yield from map(judged, seeds)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(judged, seeds, chunksize=4)


def _counted(begun: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(begun.items())) or "none"
