#!/usr/bin/env python3
"""What a node takes: memory, idle CPU, start to first request.

    .venv/bin/python -m bench.footprint

A ring of six; a client on n1, `--sessions` services on n3.  PSS (shared pages divided among those
who share them) of agent and proxy of both nodes after `--requests` requests and that many sessions;
the growth of what is theirs alone over `--minutes` of further requests (the share in a library's
pages grows whenever another program on the machine ends, so PSS itself says little about them);
CPU of every node with nothing to do; the time from `x0 node run` to the first answer, of a node
that was enrolled before.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import time
from pathlib import Path

from bench.outcome import Outcome, run
from tests.real.lab import (
    Lab,
    Service,
    Shape,
    cpu_s,
    get_page,
    pss_kb,
    rss_kb,
    through_socks,
)
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import wait_for

CLIENT, SERVER = "n1", "n3"


def idle(outcome: Outcome, lab: Lab, seconds: float) -> None:
    """CPU of nodes that have only their links."""
    before = {node: cpu_s(lab.mesh.pids(node)) for node in lab.shape.nodes}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    spent = {
        node: round(100 * (cpu_s(lab.mesh.pids(node)) - before[node]) / took, 2)
        for node in lab.shape.nodes
    }
    outcome.figure("idle_cpu_percent", spent)
    outcome.check("an idle node takes at most 1 % of a core", max(spent.values()) <= 1, spent)


def requests(lab: Lab, count: int) -> int:
    """That many requests on eight kept connections; how many failed."""
    asked = b"GET /page HTTP/1.1\r\nHost: web.mesh\r\n\r\n"
    page = lab.page.read_bytes()
    kept = [socket.create_connection(lab.plain(CLIENT, "web"), 10) for _ in range(8)]
    failed = 0
    for number in range(count):
        connection = kept[number % len(kept)]
        connection.sendall(asked)
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < len(page):
            data = connection.recv(1 << 16)
            if not data:
                break
            got += data
        failed += got.partition(b"\r\n\r\n")[2] != page
    for connection in kept:
        connection.close()
    return failed


def own_kb(pid: int) -> int:
    """The part of a process's PSS that belongs to no file: what it has allocated."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1])
    return 0


def memory(lab: Lab) -> dict[str, float]:
    """MB of agent and proxy of client and server."""
    pids = lab.processes()
    found = {}
    for node in (CLIENT, SERVER):
        agent, proxy = pids[f"{node}/agent"], pids[f"{node}/proxy"]
        found[f"{node}_agent_pss"] = round(pss_kb(agent) / 1024, 1)
        found[f"{node}_proxy_pss"] = round(pss_kb(proxy) / 1024, 1)
        found[f"{node}_pss"] = round((pss_kb(agent) + pss_kb(proxy)) / 1024, 1)
        found[f"{node}_own"] = round((own_kb(agent) + own_kb(proxy)) / 1024, 2)
        found[f"{node}_rss"] = round((rss_kb(agent) + rss_kb(proxy)) / 1024, 1)
    return found


def used(outcome: Outcome, lab: Lab, count: int, sessions: int, minutes: float) -> None:
    """Memory after work, and its growth under more of it."""
    outcome.figure("memory_fresh_mb", memory(lab))
    held = [through_socks(lab.socks(CLIENT), f"s{i:03d}.mesh") for i in range(sessions)]
    for connection in held:
        connection.sendall(b"echo\nhello")
        connection.recv(16)
    failed = requests(lab, count)
    outcome.check(f"{count} requests and {sessions} sessions", failed == 0, f"{failed} failed")
    time.sleep(2)
    before = memory(lab)
    outcome.figure("memory_used_mb", before)
    most = max(before[f"{node}_pss"] for node in (CLIENT, SERVER))
    outcome.check("PSS of a node at most 120 MB", most <= 120, f"{most} MB")
    if minutes:
        load = lab.load(CLIENT, "web", "--kept", "8", "--rate", "90", "--fresh", "10")
        time.sleep(60 * minutes)
        load.finish(10)
        time.sleep(2)
        after = memory(lab)
        outcome.figure("memory_later_mb", after)
        outcome.figure("requests_in_between", len(load.samples))
        growth, own = (
            {
                node: round(100 * (after[f"{node}_{what}"] / before[f"{node}_{what}"] - 1), 2)
                for node in (CLIENT, SERVER)
            }
            for what in ("pss", "own")
        )
        outcome.figure("growth_percent", growth)
        outcome.figure("growth_own_percent", own)
        outcome.check(
            f"growth over {minutes:.0f} minutes at most 2 %", max(growth.values()) <= 2, growth
        )
    for connection in held:
        connection.close()


def start(outcome: Outcome, lab: Lab, runs: int) -> None:
    """From `x0 node run` to the first answer through the mesh."""
    took = []
    page = lab.page.read_bytes()
    for _ in range(runs):
        lab.mesh.kill(CLIENT)
        time.sleep(1)
        began = time.monotonic()
        lab.mesh.start(CLIENT)
        wait_for(lambda: get_page(lab.plain(CLIENT, "web")) == page, "the first answer", 30)
        took.append(round(time.monotonic() - began, 2))
        lab.wait_ready(CLIENT)
    outcome.figure("start_to_first_request_s", took)
    median = statistics.median(took)
    outcome.check("start to first request at most 2 s (median)", median <= 2, median)


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """All of it."""
    more = tuple(Service(f"s{i:03d}", (SERVER,), ("shop",)) for i in range(options.sessions))
    shape = Shape(
        services=(Service("web", (SERVER,), ("shop",)), *more),
        callers=((CLIENT, "shop"),),
        socks=(CLIENT,),
        plain_max=1,
        hello_ms=cfg.HELLO_MS,
    )
    with Lab(root, shape) as lab:
        lab.start()
        if options.idle:
            time.sleep(5)
            idle(outcome, lab, options.idle)
        used(outcome, lab, options.requests, options.sessions, options.minutes)
        start(outcome, lab, options.starts)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="memory, idle CPU and start of a node")
    words.add_argument("--requests", type=int, default=10_000)
    words.add_argument("--sessions", type=int, default=50)
    words.add_argument("--minutes", type=float, default=30, help="of growth; 0: leave it out")
    words.add_argument("--idle", type=float, default=30, help="seconds; 0: leave it out")
    words.add_argument("--starts", type=int, default=5)
    return words


def main() -> int:
    """Command line."""
    return run("footprint", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
