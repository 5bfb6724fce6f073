#!/usr/bin/env python3
"""False verdicts of the kernel's detector on a machine that has no time: none of its links is cut.

    sudo .venv/bin/python -m bench.hogs

Six nodes in kernel mode (network namespaces; a ring with chords n2-n5 and n3-n6) with the
detector's own pace.  Beside them, all at the same priority: busy loops, UDP between the mesh
addresses of n1 and n4 over three links, and a search of the shortest paths of 10,000 nodes every
second.  Requests go from n1 to a service at n4 the while, on persistent and on fresh connections.
Every verdict is false, and so is every link that a proxy gives up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, final

from bench.failover_tcp import LINKS, NODES, ip
from bench.outcome import Outcome, run
from tests.real.kernel_mesh import KernelMesh, OwnMounts, Shape
from tests.real.lab import PAGE_BYTES, cpu_s
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import Watcher
from x0tta6bl4.edge.kernel.detector import Pace
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

SOURCE, TARGET = "n1", "n4"
PORT: Final = 9100
KEPT, RATE, FRESH = 8, 100, 10
TELL_S: Final = 30.0
FALSE_MAX: Final = 1
CONTROL_S: Final = 10.0
BURDEN = Path(__file__).with_name("burden.py")
VERDICTS: Final = ("suspect", "down", "late")


@final
class Burden:
    """One `bench/burden.py`, and the last that it said.

    Args:
        mesh: whose hosts it may run on.
        host: where; empty: beside them.
        words: its command line.
    """

    def __init__(self, mesh: KernelMesh, host: str, *words: str) -> None:
        self.last: dict[str, float] = {}
        self.most = 0.0
        """Of `ms`."""
        command = [sys.executable, str(BURDEN), *words]
        with mesh.space(host) if host else contextlib.nullcontext():
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last = json.loads(line)
            self.most = max(self.most, self.last.get("ms", 0.0))

    @property
    def bytes(self) -> float:
        """So far."""
        return self.last.get("bytes", 0.0)

    def cpu_s(self) -> float:
        """So far."""
        return cpu_s([self._process.pid])

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._thread.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()


def shape() -> Shape:
    """Six nodes, all in kernel mode."""
    return Shape(
        ips={node: ip(node) for node in NODES},
        cables=LINKS,
        services={"web": TARGET},
        callers=(SOURCE,),
        authority=SOURCE,
    )


@final
class Verdicts:
    """What the kernels and the proxies have said of links since it began.

    Args:
        mesh: whose.
    """

    def __init__(self, mesh: KernelMesh) -> None:
        self._mesh = mesh
        self._before = self._all()

    def _all(self) -> dict[str, int]:
        found = {}
        for node in NODES:
            for key, count in self._mesh.mesh.status(node).counters.items():
                if key.startswith(("kernel_verdicts_", "link_downs_", "kernel_packets_",
                                   "kernel_hellos_", "kernel_dropped_")):  # fmt: skip
                    found[f"{node} {key}"] = count
        return found

    def since(self) -> dict[str, int]:
        """Sums over all links, and `proxies` for links that proxies have lost."""
        moved = {key: count - self._before.get(key, 0) for key, count in self._all().items()}

        def sum_of(head: str, tail: str = "") -> int:
            return sum(n for k, n in moved.items() if f" {head}" in k and k.endswith(tail))

        found = {kind: sum_of("kernel_verdicts_total", f"|{kind}") for kind in VERDICTS}
        found["proxies"] = sum_of("link_downs_total")
        for kind in ("asked", "answered"):
            found[kind] = sum_of("kernel_hellos_total", f"|{kind}")
        for kind in ("sent", "lost", "duplicated", "diverted"):
            found[kind] = sum_of("kernel_packets_total", f"|{kind}")
        return found

    def where(self) -> list[str]:
        """Links with a verdict of death."""
        now = self._all()
        return [
            f"{key} {count - self._before.get(key, 0)}"
            for key, count in now.items()
            if key.endswith("|down") and count > self._before.get(key, 0)
        ]


def burdens(mesh: KernelMesh, options: argparse.Namespace) -> dict[str, Burden]:
    """All of them, running."""
    domain = TrustDomain(mesh.mesh.domain)
    here, there = (str(mesh_address(domain, NodeName(node))) for node in (SOURCE, TARGET))
    found = {f"hog {at}": Burden(mesh, "", "hog") for at in range(options.hogs)}
    if options.spf:
        found["spf"] = Burden(mesh, "", "spf", str(options.spf))
    if options.mbit:
        found["sink"] = Burden(mesh, TARGET, "sink", there, str(PORT))
        words = ("send", there, str(PORT), here, str(options.mbit))
        found["send"] = Burden(mesh, SOURCE, *words)
    return found


def under_load(
    outcome: Outcome, mesh: KernelMesh, watcher: Watcher, options: argparse.Namespace
) -> None:
    """That many minutes of it."""
    busy = burdens(mesh, options)
    try:
        if options.mbit:
            wait_for(lambda: busy["sink"].bytes > 0, "traffic to arrive", 20)
        verdicts, began = Verdicts(mesh), time.monotonic()
        then, came = began, busy["sink"].bytes if options.mbit else 0.0
        first, sent = came, busy["send"].bytes if options.mbit else 0.0
        slowest = float("inf")
        end = began + 60 * options.minutes
        while (now := time.monotonic()) < end:
            time.sleep(min(TELL_S, max(end - now, 0.1)))
            at, arrived = time.monotonic(), busy["sink"].bytes if options.mbit else 0.0
            mbit = (arrived - came) * 8 / 1e6 / (at - then)
            slowest = min(slowest, mbit)
            count, failed, longest = watcher.window(then, at)
            said = verdicts.since()
            outcome.tell(
                f"{(at - began) / 60:.1f} min: {mbit:.0f} Mbit/s, {count / (at - then):.0f}"
                f" requests/s, {len(failed)} failed, longest {longest:.0f} ms; {said}"
            )
            then, came = at, arrived
        took = time.monotonic() - began
        said, where = verdicts.since(), verdicts.where()
        outcome.figure("minutes", round(took / 60, 1))
        outcome.figure("sixteen ends of links", said)
        if options.mbit:
            rate = (busy["sink"].bytes - first) * 8 / 1e6 / took
            offered = (busy["send"].bytes - sent) * 8 / 1e6 / took
            outcome.figure(
                "UDP over three links, Mbit/s",
                {
                    "offered": round(offered),
                    "came": round(rate),
                    "slowest half minute": round(slowest),
                },
            )
        if options.spf:
            outcome.figure(
                "search of the shortest paths, ms",
                {"last": busy["spf"].last.get("ms"), "most": busy["spf"].most},
            )
        shares = {name: round(100 * b.cpu_s() / took) for name, b in busy.items()}
        outcome.figure("% of a core, of each burden", shares)
        judge(outcome, watcher, began, said, where)
    finally:
        for burden in busy.values():
            burden.stop()


def judge(
    outcome: Outcome, watcher: Watcher, began: float, said: dict[str, int], where: list[str]
) -> None:
    """What must hold."""
    took = time.monotonic() - began
    count, failed, longest = watcher.window(began, time.monotonic())
    outcome.figure("requests/s", round(count / took, 1))
    outcome.figure("longest answer, ms", round(longest, 1))
    false = said["down"] + said["proxies"]
    outcome.check(
        f"at most {FALSE_MAX} false verdict", false <= FALSE_MAX, f"{false} {', '.join(where)}"
    )
    outcome.check("no request failed", not failed, [s.why for s in failed[:3]] or f"of {count}")
    outcome.check("at least 100 requests/s", count >= 100 * took, f"{count} in {took:.0f} s")


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """All of it."""
    root.mkdir(mode=0o700)
    page = root / "page"
    page.write_bytes(secrets.token_bytes(PAGE_BYTES))
    pace = Pace()
    outcome.figure("hellos", f"every {pace.hello_us / 1000:g} ms, dead after {pace.multiplier}")
    with OwnMounts(*NODES) as hosts, KernelMesh(hosts, root / "m", page, shape()) as mesh:
        mesh.serve()
        mesh.start()
        mesh.mesh.wait_ready(*NODES)
        mesh.wait_kernels(NODES)
        host, port = mesh.local("web")
        wait_for(lambda: mesh.gets(SOURCE, "web"), "the service", 20)
        with mesh.space(SOURCE):
            watcher = Watcher(
                f"{host}:{port}", page,
                ["--kept", str(KEPT), "--rate", str(RATE), "--fresh", str(FRESH)],
            )  # fmt: skip
        try:
            wait_for(lambda: direct(mesh), "a circuit between the kernels", 60)
            at = time.monotonic()
            time.sleep(CONTROL_S)
            _, _, longest = watcher.window(at, at + CONTROL_S)
            outcome.figure("longest answer without burdens, ms", round(longest, 1))
            under_load(outcome, mesh, watcher, options)
        finally:
            watcher.finish(10)


def direct(mesh: KernelMesh) -> bool:
    """Whether requests go by the kernels alone."""
    return any(s.path == (SOURCE, TARGET) for s in mesh.mesh.status(SOURCE).sessions)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="false verdicts on a machine without time")
    words.add_argument("--minutes", type=float, default=30)
    words.add_argument("--hogs", type=int, default=4, help="busy loops")
    words.add_argument("--mbit", type=int, default=1000, help="of UDP; 0: none")
    words.add_argument("--spf", type=int, default=10_000, help="nodes of the search; 0: none")
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return run("hogs", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
