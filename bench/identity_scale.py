#!/usr/bin/env python3
"""A thousand nodes on one authority: how long until all are served, how fast it issues.

    .venv/bin/python -m bench.identity_scale

The authority is a process as it comes, SQLite on a disk included.  The nodes are `bench/fleet.py`:
a few processes that speak the real protocol for hundreds of nodes each, on the same cores.  CPU is
the authority's own, as the kernel counts it, and takes in TLS, gRPC, SQLite and all else it does.

Two authorities on one store are measured by the same CPU, against one that has all the work, and
against two that share nothing: on two cores, with the nodes on them, time by the clock would say
how many processes share a core, and even CPU is worth less where more of them do.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import contextlib
import json
import math
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

import x0tta6bl4
from bench.outcome import Outcome, run
from tests.real.lab import cpu_s, rss_kb
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import Mesh, Plan
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.edge.authority_api.client import AdminClient
from x0tta6bl4.wire import authority as words

DOMAIN = "bench.mesh"
FLEET = Path(__file__).parent / "fleet.py"
AT_ONCE = 64
NODES = 8
"""Nodes of an authority whose rate is measured."""
RUNS = 3


class Authority:
    """One authority, from its start to its end.

    Args:
        root: directory of its own.
        beside: another one, whose store it shares.
    """

    def __init__(self, root: Path, beside: Authority | None = None) -> None:
        self.mesh = Mesh(root, Plan(trust_domain=DOMAIN, nodes=(), links=()))
        self.state = self.mesh.state("authority")
        self.address = ""
        self.pid = 0
        self._beside = beside

    def __enter__(self) -> Authority:
        self.mesh.lay_out()
        config = self.mesh.config("authority")
        settings = cfg.read_authority(config)
        if self._beside is not None:
            store = str(self._beside.state)
            settings = msgspec.structs.replace(settings, name="b", store=store)
            config.write_text(cfg.dump(settings))
        self.address = settings.listen
        self.mesh.start("authority")
        self.mesh.wait("authority", Operator(self.state).is_serving, "the authority")
        self.pid = self.mesh.pids("authority")[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.mesh.stop()

    def admin(self) -> AdminClient:
        """A connection of an operator."""
        return AdminClient(str(self.state / "admin.sock"), 60)

    def cpu_s(self) -> float:
        """Its CPU so far."""
        return cpu_s([self.pid])


async def prepare(
    admin: AdminClient, nodes: int, workloads: int, drivers: int, root: Path
) -> list[Path]:
    """Entries of all nodes, and a file of tokens for each driver."""
    names = [f"n{number:04d}" for number in range(nodes)]
    await register(admin, names, workloads)
    return await enrolments(admin, names, drivers, root)


async def register(admin: AdminClient, names: list[str], workloads: int) -> None:
    """Entries of these nodes."""
    work = [
        words.Entry(id=f"spiffe://{DOMAIN}/{name}/w{w}", node=name, selectors=("unix:uid:1",))
        for name in names
        for w in range(workloads)
    ]
    await at_once([lambda e=e: admin.entry_create(e) for e in work])


async def enrolments(admin: AdminClient, names: list[str], drivers: int, root: Path) -> list[Path]:
    """Files of tokens, one for each driver; a node may be enrolled again."""
    tokens: dict[str, str] = {}

    async def token(name: str) -> None:
        tokens[name] = (await admin.token_create(words.TokenCreate(node=name))).token

    await at_once([lambda n=n: token(n) for n in names])
    files = []
    for driver in range(drivers):
        file = root / f"tokens{driver}.json"
        file.write_text(json.dumps({n: tokens[n] for n in names[driver::drivers]}))
        files.append(file)
    return files


async def at_once(calls: list[Any]) -> None:
    """Make all these calls, AT_ONCE at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


class Drivers:
    """The processes with the nodes."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def served(self) -> float:
        """Wait until all nodes of all of them have their SVIDs; when that was."""
        return max(float(line["at"]) for line in await self._lines(120))

    async def came(self) -> dict[str, float]:
        """When the SVIDs of entries came that were made since."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"say\n")
        found: dict[str, float] = {}
        for line in await self._lines(20):
            found |= line["came"]
        return found

    async def _lines(self, seconds: float) -> list[dict[str, Any]]:
        lines = []
        async with asyncio.timeout(seconds):
            for process in self._processes:
                assert process.stdout is not None
                line = json.loads(await process.stdout.readline() or b'{"failed": "it ended"}')
                if "failed" in line:
                    raise RuntimeError(f"a driver: {line['failed']}")
                lines.append(line)
        return lines

    def cpu_s(self) -> float:
        """Their CPU so far."""
        return cpu_s([process.pid for process in self._processes])


@contextlib.asynccontextmanager
async def driven(address: str, files: list[Path], workloads: int) -> AsyncIterator[Drivers]:
    """Drivers that run while the context is open."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(FLEET),
            *("--authority", address, "--tokens", str(file), "--workloads", str(workloads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 24,
        )
        for file in files
    ]
    try:
        yield Drivers(processes)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def thousand(
    outcome: Outcome, authority: Authority, root: Path, options: argparse.Namespace
) -> None:
    """All nodes from nothing, then entries one by one."""
    nodes, each = options.nodes, options.workloads
    async with authority.admin() as admin:
        files = await prepare(admin, nodes, each, options.drivers, root)
        outcome.tell(f"{nodes * each} entries are there")
        before, began = authority.cpu_s(), time.monotonic()
        async with driven(authority.address, files, each) as drivers:
            took = await drivers.served() - began
            outcome.figure(
                "all_served",
                {
                    "nodes": nodes,
                    "workloads": nodes * each,
                    "seconds": round(took, 1),
                    "authority_cpu_s": round(authority.cpu_s() - before, 1),
                    "drivers_cpu_s": round(drivers.cpu_s(), 1),
                    "authority_rss_mb": round(rss_kb(authority.pid) / 1024, 1),
                },
            )
            outcome.check(
                f"{nodes} nodes with {each} workloads each, enrolled and all served: < 60 s",
                took < 60,
                f"{took:.1f} s",
            )
            await one_by_one(outcome, admin, drivers, options)


async def one_by_one(
    outcome: Outcome, admin: AdminClient, drivers: Drivers, options: argparse.Namespace
) -> None:
    """Entries made at a steady rate, each on a node of chance: how long until its SVID."""
    await asyncio.sleep(2)
    draw = random.Random("bench")
    created: dict[str, float] = {}
    loop = asyncio.get_running_loop()
    begin = loop.time()
    tasks = []
    for number in range(options.entries):
        await asyncio.sleep(max(0.0, begin + number / options.rate - loop.time()))
        made = words.Entry(
            id=f"spiffe://{DOMAIN}/later/{number}",
            node=f"n{draw.randrange(options.nodes):04d}",
            selectors=("unix:uid:1",),
        )
        created[made.id] = time.monotonic()
        tasks.append(asyncio.create_task(admin.entry_create(made)))
    await asyncio.gather(*tasks)
    await asyncio.sleep(2)
    came = await drivers.came()
    missing = created.keys() - came.keys()
    taken = sorted(came[id] - at for id, at in created.items() if id in came)
    p99 = taken[math.ceil(0.99 * len(taken)) - 1] if taken else math.inf
    outcome.figure(
        "entry_to_svid_ms",
        {
            "entries": len(created),
            "per_s": options.rate,
            "median": round(1e3 * statistics.median(taken), 1),
            "p99": round(1e3 * p99, 1),
            "most": round(1e3 * taken[-1], 1),
        },
    )
    outcome.check(
        f"entry -> SVID with {options.nodes} nodes, p99: < 1 s",
        not missing and p99 < 1,
        f"{p99:.3f} s" if not missing else f"{len(missing)} have not come",
    )


async def issue(
    outcome: Outcome, authority: Authority, root: Path, options: argparse.Namespace
) -> None:
    """Nodes that are there already get many entries: SVIDs by CPU of the authority."""
    nodes, each = NODES, options.svids // NODES
    async with authority.admin() as admin:
        files = await prepare(admin, nodes, each, 1, root)
        await asyncio.sleep(1)
        before, began = authority.cpu_s(), time.monotonic()
        async with driven(authority.address, files, each) as drivers:
            took = await drivers.served() - began
            spent = authority.cpu_s() - before
    rate = nodes * each / spent
    outcome.figure(
        "issue",
        {
            "svids": nodes * each,
            "nodes": nodes,
            "authority_cpu_s": round(spent, 2),
            "seconds": round(took, 1),
            "per_authority_cpu_s": round(rate),
            "per_s": round(nodes * each / took),
        },
    )
    outcome.check(
        "SVIDs by second of the authority's CPU, end to end: >= 4,000", rate >= 4000, f"{rate:.0f}"
    )


async def two(outcome: Outcome, one: Authority, root: Path, options: argparse.Namespace) -> None:
    """In turns: one authority has work, two on one store have, two with a store each have."""
    each = options.svids // 2 // NODES
    names = [[f"{who}{number}" for number in range(NODES)] for who in "ab"]
    ways: dict[str, list[tuple[float, float]]] = {"one": [], "two": [], "apart": []}
    with contextlib.ExitStack() as stack:
        places = (Authority(root / "beside", one), Authority(root / "apart"))
        beside, apart = [await asyncio.to_thread(stack.enter_context, a) for a in places]
        for authority in (one, apart):
            async with authority.admin() as admin:
                for some in names:
                    await register(admin, some, each)
        for _ in range(RUNS):
            for way, busy in (("one", [one]), ("two", [one, beside]), ("apart", [one, apart])):
                ways[way].append(await issued(busy, names, each, root))
    rate = {way: statistics.median(x[0] for x in runs) for way, runs in ways.items()}
    outcome.figure(
        "two_authorities",
        {
            "svids_each": NODES * each,
            "runs": RUNS,
            **{f"{way}_per_cpu_s": round(x) for way, x in rate.items()},
            **{f"{w}_s": round(statistics.median(x[1] for x in r), 1) for w, r in ways.items()},
        },
    )
    for what, way in (
        ("two authority processes issue >= 0.9 x of one each", "one"),
        ("two on one store issue >= 0.9 x of two with a store each, at the same load", "apart"),
    ):
        over = [b[0] / a[0] for a, b in zip(ways[way], ways["two"], strict=True)]
        ratio = statistics.median(over)
        outcome.check(what, ratio >= 0.9, f"{ratio:.2f} by second of their own CPU")


async def issued(
    authorities: list[Authority], names: list[list[str]], each: int, root: Path
) -> tuple[float, float]:
    """Each authority has one driver with its own nodes, all in the same moment.

    Returns:
        SVIDs by second of all their CPU, and seconds until the last was there.
    """
    at = list(zip(authorities, names, strict=False))
    for authority, some in at:
        async with authority.admin() as admin:
            (file,) = await enrolments(admin, some, 1, root)
        file.rename(root / f"{some[0]}.json")
    await asyncio.sleep(1)
    before, began = sum(a.cpu_s() for a in authorities), time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        drivers = [
            await stack.enter_async_context(
                driven(authority.address, [root / f"{some[0]}.json"], each)
            )
            for authority, some in at
        ]
        took = max(await asyncio.gather(*(one.served() for one in drivers))) - began
        spent = sum(a.cpu_s() for a in authorities) - before
    return NODES * each * len(authorities) / spent, took


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """The whole measurement."""
    compileall.compile_dir(Path(x0tta6bl4.__file__).parent, quiet=2)  # As an installer does.
    root.mkdir(mode=0o700)
    for part in (issue, two, thousand):
        if options.part in ("", part.__name__):
            with Authority(root / part.__name__) as authority:
                asyncio.run(part(outcome, authority, root, options))


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="a thousand nodes on one authority")
    words.add_argument("--nodes", type=int, default=1000)
    words.add_argument("--workloads", type=int, default=10, help="of each")
    words.add_argument("--drivers", type=int, default=2, help="processes with nodes")
    words.add_argument("--svids", type=int, default=20_000, help="to find the rate")
    words.add_argument("--entries", type=int, default=500, help="made one by one")
    words.add_argument("--rate", type=float, default=50, help="of these, per second")
    words.add_argument("--part", default="", choices=("", "issue", "two", "thousand"))
    return words


def main() -> int:
    """Command line."""
    return run("identity_scale", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
