#!/usr/bin/env python3
"""What mutual TLS with SVIDs costs: a handshake, and bytes after it.

    .venv/bin/python -m bench.identity_handshake

Client and server are two processes with the SDK, whose SVIDs come from a real agent.  Plain TCP
takes turns with TLS over the same loopback; a handshake ends with the first byte of the server, so
that both ends have judged each other.  Go's crypto/tls does the same work in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import x0tta6bl4
from bench.identity import Site, entry, spiffe
from bench.outcome import Outcome, run
from x0tta6bl4.sdk.identity import X509Source, dial, exact, ssl_context, stdlib_context

HERE = Path(__file__).parent
WARM = 20


def p95(taken: list[float]) -> float:
    """The value that 95 % don't exceed."""
    return sorted(taken)[int(len(taken) * 0.95)]


class Server:
    """`bench/tls_server.py`."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self._process = process
        self.ports = ports

    @classmethod
    async def started(cls, endpoint: str) -> Server:
        """Start it, and wait until it serves."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "tls_server.py"),
            *("--endpoint", endpoint, "--id", spiffe("server"), "--peer", spiffe("client")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        return cls(process, json.loads(await asyncio.wait_for(process.stdout.readline(), 20)))

    async def cpu_s(self) -> float:
        """Its CPU so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return float(await asyncio.wait_for(self._process.stdout.readline(), 5))

    async def close(self) -> None:
        """End it."""
        self._process.terminate()
        await self._process.wait()


async def handshakes(outcome: Outcome, source: X509Source, server: Server, count: int) -> None:
    """In turns with plain TCP."""
    server_id = exact(spiffe("server"))
    ours: list[float] = []
    plain: list[float] = []
    spent: dict[str, float] = {}
    groups = set()
    for number in range(count + WARM):
        if number == WARM:
            ours.clear()
            plain.clear()
        began = time.perf_counter()
        connection = await dial(
            f"127.0.0.1:{server.ports['ours']}",
            source,
            authorize=server_id,
            id=spiffe("client"),
            first_byte=True,
        )
        ours.append(1e3 * (time.perf_counter() - began))
        groups.add(connection.group)
        connection.end("enough")
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["plain"])
        await reader.readexactly(1)
        plain.append(1e3 * (time.perf_counter() - began))
        writer.close()
    for name in ("ours", "plain"):
        before = time.process_time() + await server.cpu_s()
        for _ in range(count):
            if name == "ours":
                connection = await dial(
                    f"127.0.0.1:{server.ports['ours']}",
                    source,
                    authorize=server_id,
                    id=spiffe("client"),
                    first_byte=True,
                )
                connection.end("enough")
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.ports["plain"])
                await reader.readexactly(1)
                writer.close()
        spent[name] = 1e3 * (time.process_time() + await server.cpu_s() - before) / count
    over = statistics.median(ours) - statistics.median(plain)
    outcome.figure(
        "handshake_ms",
        {
            "median": round(statistics.median(ours), 2),
            "p95": round(p95(ours), 2),
            "plain_median": round(statistics.median(plain), 2),
            "plain_p95": round(p95(plain), 2),
            "cpu_both_ends": round(spent["ours"], 2),
            "plain_cpu_both_ends": round(spent["plain"], 2),
            "group": ", ".join(sorted(groups)),
            "count": count,
        },
    )
    outcome.check(
        "mutual handshake, hybrid, to the server's first byte, P95: < 10 ms",
        p95(ours) < 10 and groups == {"X25519MLKEM768"},
        f"{p95(ours):.2f} ms",
    )
    outcome.check("more than plain TCP on loopback: < 5 ms", over < 5, f"{over:.2f} ms")


def go(outcome: Outcome, root: Path, count: int) -> None:
    """The same with Go, where there is one."""
    if shutil.which("go") is None:
        outcome.figure("go", "not installed")
        return
    program = root / "handshake"
    subprocess.run(
        ["go", "build", "-o", str(program), str(HERE / "handshake.go")], check=True, timeout=120
    )
    told = subprocess.run(
        [str(program), str(count)], check=True, timeout=60, capture_output=True, text=True
    )
    found = json.loads(told.stdout)
    ours = outcome.figures.get("handshake_ms", {}).get("cpu_both_ends", 0)
    outcome.figure(
        "go_handshake_ms",
        {key: round(value, 2) if key != "group" else value for key, value in found.items()},
    )
    outcome.figure("cpu_of_go", round(ours / found["cpu_ms"], 2))


async def bulk(outcome: Outcome, source: X509Source, server: Server, mib: int) -> None:
    """From server to client, one connection, by both backends and by plain TCP."""
    size = mib << 20
    authorize = exact(spiffe("server"))
    contexts: dict[str, Any] = {
        "plain": None,
        "ours": ssl_context(source, authorize=authorize, id=spiffe("client")),
        "stdlib": stdlib_context(source, authorize=authorize, id=spiffe("client")),
    }
    found = {}
    for name, context in contexts.items():
        rates, costs = [], []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                server.ports[name],
                ssl=context,
                server_hostname="" if context is not None else None,
                limit=1 << 20,
            )
            await reader.readexactly(1)
            before, began = time.process_time() + await server.cpu_s(), time.perf_counter()
            writer.write(b"%d\n" % size)
            left = size
            while left:
                left -= len(await reader.read(1 << 20))
            took = time.perf_counter() - began
            costs.append((time.process_time() + await server.cpu_s() - before) / (size / (1 << 30)))
            rates.append(8 * size / took / 1e9)
            writer.close()
        found[name] = {
            "gbit_per_s": round(statistics.median(rates), 2),
            "cpu_s_per_gib": round(statistics.median(costs), 2),
        }
    outcome.figure("bulk", found)


async def work(outcome: Outcome, site: Site, options: argparse.Namespace) -> None:
    """All of it that needs identities."""
    async with site.admin() as admin:
        for name in ("server", "client"):
            await admin.entry_create(entry(name))
        async with X509Source(site.endpoint) as source:
            await source.wait()
            while len(source.svids) < 2:
                await source.changed(source.version)
            await asyncio.sleep(1)
            server = await Server.started(site.endpoint)
            try:
                await handshakes(outcome, source, server, options.count)
                await bulk(outcome, source, server, options.mib)
            finally:
                await server.close()


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """The whole measurement."""
    compileall.compile_dir(Path(x0tta6bl4.__file__).parent, quiet=2)  # As an installer does.
    with Site(root) as site:
        time.sleep(1)
        asyncio.run(work(outcome, site, options))
    go(outcome, root, options.count)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="what mutual TLS with SVIDs costs")
    words.add_argument("--count", type=int, default=500, help="handshakes")
    words.add_argument("--mib", type=int, default=256, help="bytes of one transfer")
    return words


def main() -> int:
    """Command line."""
    return run("identity_handshake", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
