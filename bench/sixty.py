#!/usr/bin/env python3
"""Sixty nodes on one machine, two of three in kernel mode: start, memory, idle CPU, dead relays.

    sudo .venv/bin/python -m bench.sixty

Each node is an agent and a proxy of their own in a network namespace, with one authority for all.
They form a ring with chords, four cables each; every third node has its data in user space, the
others in the kernel.  Up is: every node says `ready`, its links are up, and a page of both services
came to it over a connection of its own.

Then two streams of requests, one between far nodes in user space and one between far nodes in
kernel mode, on persistent and on fresh connections, while relays that one of them uses die one
after the other: SIGKILL to agent and proxy, and of nodes in kernel mode every other time all that
goes in or out of the host is lost, too, for their kernels go on without any process.  They come
back a few seconds later.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, final

import msgspec

from bench.outcome import Outcome, run
from tests.real.kernel_mesh import KernelMesh, OwnMounts, Shape
from tests.real.lab import PAGE_BYTES, cpu_s, pss_kb
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.story import LEAD_S, TAIL_S, Watcher
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

UP_S: Final = 90
CHORD, SMALL = 9, 27
"""Nodes that a chord skips; three in a mesh of fewer than SMALL nodes."""
REST_S, DEAD_S, BACK_S = 10.0, 5.0, 5.0
RATE, FRESH = 60, 15
"""Requests/s of a stream on persistent connections, and on fresh ones."""


def shape_of(count: int) -> Shape:
    """A ring with chords; the kernel's nodes in it are connected, those in user space, too."""
    chord = CHORD if count >= SMALL else 3
    names = [f"n{i}" for i in range(count)]
    cables = {tuple(sorted((i, (i + step) % count))) for i in range(count) for step in (1, chord)}
    ring = tuple((names[i], names[j]) for i, j in sorted(cables))
    user = set(names[::3])
    return Shape(
        ips={name: f"10.0.{i // 250}.{i % 250 + 1}" for i, name in enumerate(names)},
        cables=ring,
        services={
            "far": farthest("n0", [c for c in ring if user.issuperset(c)]),
            "deep": farthest("n1", [c for c in ring if user.isdisjoint(c)]),
        },
        callers=tuple(names),
        authority="n0",
        planes=dict.fromkeys(sorted(user), "userspace"),
    )


def farthest(source: str, cables: Iterable[tuple[str, str]]) -> str:
    """The node that takes most hops, the first of them; over these cables alone."""
    cables, hops, todo = list(cables), {source: 0}, deque([source])
    while todo:
        node = todo.popleft()
        for other in (x for cable in cables if node in cable for x in cable):
            if other not in hops:
                hops[other] = hops[node] + 1
                todo.append(other)
    return max(hops, key=lambda node: hops[node])


@final
class Stream:
    """Requests from a node to a service.

    Args:
        mesh: it is in.
        source: node.
        service: name.
    """

    def __init__(self, mesh: KernelMesh, source: str, service: str) -> None:
        self.name = f"{source} to {service}"
        self.source, self.target = source, mesh.shape.services[service]
        self._mesh = mesh
        host, port = mesh.local(service)
        with mesh.space(source):
            self.watcher = Watcher(
                f"{host}:{port}", mesh.page,
                ["--kept", "6", "--rate", str(RATE), "--fresh", str(FRESH)],
            )  # fmt: skip

    def way(self) -> tuple[str, ...]:
        """Nodes that carry it now, both ends included."""
        sessions = self._mesh.mesh.status(self.source).sessions
        mine = [s for s in sessions if s.path and s.path[-1] == self.target]
        best = max(mine, key=lambda s: (s.streams, s.bytes_in + s.bytes_out), default=None)
        path = best.path if best else ()
        return kernel_way(self._mesh, *path) if len(path) == 2 else path


def kernel_way(mesh: KernelMesh, source: str, target: str) -> tuple[str, ...]:
    """How kernels pass packets on between two nodes; empty: they do not."""
    to = str(mesh_address(TrustDomain(mesh.mesh.domain), NodeName(target)))
    way = [source]
    while way[-1] != target and len(way) < len(mesh.shape.ips):
        said = mesh.hosts.run(way[-1], "ip", "-6", "route", "get", to, check=False).stdout
        if " dev to-" not in said:
            return ()
        way.append(said.partition(" dev to-")[2].split()[0])
    return tuple(way)


# ---------------------------------------------------------------------- start, memory, rest
def start(outcome: Outcome, mesh: KernelMesh, at_once: int) -> None:
    """From the first `x0 node run` to a page of both services at every node."""
    names = list(mesh.shape.ips)
    began = time.monotonic()
    took: dict[str, float] = {}

    def done(what: str) -> None:
        took[what] = round(time.monotonic() - began, 1)
        outcome.tell(f"{what}: {took[what]} s")

    mesh.start(at_once)
    done("every node ready")
    mesh.mesh.wait_ready(*names, seconds=UP_S)
    done("every link up")
    wanted = [(n, s) for n in names for s, at in mesh.shape.services.items() if n != at]

    def get(pair: tuple[str, str]) -> float:
        at = time.monotonic()
        wait_for(lambda: mesh.gets(*pair), f"{pair[1]} at {pair[0]}", UP_S)
        return time.monotonic() - at

    pool = ThreadPoolExecutor(4)
    try:
        answers = list(pool.map(get, wanted))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Who interrupts this does not wait.
    done("both services at every node")
    outcome.figure("seconds to a first answer", spread(answers))
    outcome.figure("seconds from the first start", took)
    outcome.figure(
        "CPU seconds until then", {k: round(cpu_s(v), 1) for k, v in parts(mesh).items()}
    )
    up = took["both services at every node"]
    outcome.check(f"{len(names)} nodes up in less than {UP_S} s", up < UP_S, f"{up} s")
    mesh.wait_kernels(names, UP_S)
    done("the kernel forwards over every link of its nodes")
    outcome.figure("seconds from the first start", took)


def parts(mesh: KernelMesh) -> dict[str, list[int]]:
    """Process ids of all agents, of all proxies, and of the authority."""
    found: dict[str, list[int]] = {"agents": [], "proxies": [], "authority": []}
    for name in mesh.shape.ips:
        for part, kind in (("agent", "agents"), ("proxy", "proxies")):
            with contextlib.suppress(OSError, ValueError):
                found[kind].append(int((mesh.mesh.state(name) / f"{part}.pid").read_text()))
    found["authority"] += mesh.mesh.pids("authority")
    return found


def memory(outcome: Outcome, mesh: KernelMesh) -> None:
    """PSS of processes; what the kernel says that maps of its nodes take."""
    pids = parts(mesh)
    found = {
        kind: spread(pss_kb(pid) / 1024 for pid in pids[kind])
        for kind in ("agents", "proxies", "authority")
    }
    agents, proxies = pids["agents"], pids["proxies"]
    nodes = [(pss_kb(a) + pss_kb(p)) / 1024 for a, p in zip(agents, proxies, strict=True)]
    found["nodes, agent and proxy"] = spread(nodes)
    maps = [maps_kb(pid) / 1024 for pid in agents]
    found["kernel maps of a node in kernel mode"] = spread(mb for mb in maps if mb)
    outcome.figure("PSS, MB", found)
    outcome.figure("all nodes, MB", round(sum(nodes) + sum(maps)))


def maps_kb(pid: int) -> int:
    """Memory of the BPF maps that a process holds, each once, as the kernel accounts for it."""
    found: dict[str, int] = {}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            lines = dict(x.split(":", 1) for x in info.read_text().splitlines() if ":" in x)
            if "map_id" in lines:
                found[lines["map_id"]] = int(lines["memlock"])
    return sum(found.values()) // 1024


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and most."""
    found = sorted(values)
    if not found:
        return {}
    return {"median": round(statistics.median(found), 1), "most": round(found[-1], 1)}


def machine_s() -> float:
    """Seconds that the processors were busy since boot, interrupts and softirqs included."""
    ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def idle(outcome: Outcome, mesh: KernelMesh, seconds: float) -> None:
    """CPU with nothing to do but watch links, and the sessions of every node to both services."""
    time.sleep(REST_S)
    pids = parts(mesh)
    before, busy = {k: cpu_s(v) for k, v in pids.items()}, machine_s()
    softirq = softirq_s()
    began = time.monotonic()
    time.sleep(seconds)
    took = (time.monotonic() - began) / 100
    spent = {k: round((cpu_s(v) - before[k]) / took, 1) for k, v in pids.items()}
    spent["the machine"] = round((machine_s() - busy) / took, 1)
    spent["softirqs of it"] = round((softirq_s() - softirq) / took, 1)
    outcome.figure("idle, % of one core, all nodes together", spent)
    each = (spent["agents"] + spent["proxies"]) / len(mesh.shape.ips)
    outcome.figure("idle, % of one core, processes of one node", round(each, 2))


def softirq_s() -> float:
    """Seconds of softirqs since boot: what kernels do for the nodes outside any process."""
    return int(Path("/proc/stat").read_text().split()[7]) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------- dead relays
@final
class Loss(msgspec.Struct):
    """One relay that died."""

    node: str
    kind: str
    of: str
    at: float
    gap_ms: float = 0.0
    failed: int = 0


class Deaths:
    """Kills relays that streams use, and brings them back.

    Args:
        outcome: told of each.
        mesh: of the streams.
        streams: under load.
    """

    def __init__(self, outcome: Outcome, mesh: KernelMesh, streams: list[Stream]) -> None:
        self.losses: list[Loss] = []
        self._outcome, self._mesh, self._streams = outcome, mesh, streams
        self._ends = {"n0", *(s.source for s in streams), *(s.target for s in streams)}

    def one(self, number: int) -> None:
        """One relay: in user space and in the kernel by turns, as far as ways allow it."""
        wanted = ("userspace", "kernel")[number % 2]
        victim = self._choose(wanted)
        if victim is None:
            self._outcome.tell(f"no relay to kill: {[s.way() for s in self._streams]}")
            return
        stream, node, plane = victim
        host = plane == "kernel" and number % 4 == 3
        kind = plane + (", host" if host else "")
        before = stream.way()
        loss = Loss(node, kind, stream.name, time.monotonic())
        near = self._mesh.shape.near(node) if host else []
        self._mesh.mesh.kill(node)
        for other in near:
            self._mesh.cut(node, other)
        time.sleep(DEAD_S)
        after = stream.way()
        for other in near:
            self._mesh.heal(node, other)
        self._mesh.mesh.start(node)
        time.sleep(BACK_S)
        for each in self._streams:
            _, failed, gap = each.watcher.window(loss.at - LEAD_S, loss.at + TAIL_S)
            loss.gap_ms = max(loss.gap_ms, round(gap, 1))
            loss.failed += len(failed)
        self.losses.append(loss)
        self._outcome.tell(
            f"{node} ({kind}) of {' '.join(before)}: {loss.failed} failed, {loss.gap_ms} ms;"
            f" then {' '.join(after)}"
        )

    def _choose(self, wanted: str) -> tuple[Stream, str, str] | None:
        """A relay in use, of the wanted kind if there is one, not the one of last time."""
        found = []
        last = self.losses[-1].node if self.losses else ""
        for stream in self._streams:
            for node in stream.way()[1:-1]:
                plane = self._mesh.shape.planes.get(node, "kernel")
                if node not in self._ends and node != last and self._mesh.state(node) == "ready":
                    found.append((stream, node, plane))
        return next((x for x in found if x[2] == wanted), found[0] if found else None)


def relays(outcome: Outcome, mesh: KernelMesh, options: argparse.Namespace) -> None:
    """Streams of requests while relays die."""
    streams = [Stream(mesh, "n0", "far"), Stream(mesh, "n1", "deep")]
    try:
        wait_for(lambda: all(len(s.watcher.samples) > 50 for s in streams), "requests", 20)
        wait_for(lambda: len(streams[1].way()) > 2, f"kernels to forward {streams[1].name}", 60)
        control_at = time.monotonic() + LEAD_S
        time.sleep(LEAD_S + TAIL_S + 1)
        control = {
            s.name: round(s.watcher.window(control_at - LEAD_S, control_at + TAIL_S)[2], 1)
            for s in streams
        }
        outcome.figure("control, longest answer in ms", control)
        outcome.figure("ways before", {s.name: " ".join(s.way()) for s in streams})
        began = time.monotonic()
        deaths = Deaths(outcome, mesh, streams)
        for number in range(options.kills):
            deaths.one(number)
        mesh.mesh.wait_ready(*mesh.shape.ips, seconds=UP_S)
        judge(outcome, streams, deaths.losses, began, options.kills)
    finally:
        for stream in streams:
            stream.watcher.finish(10)


def judge(
    outcome: Outcome, streams: list[Stream], losses: list[Loss], began: float, wanted: int
) -> None:
    """What came of it."""
    now = time.monotonic()
    windows = [s.watcher.window(began - LEAD_S, now) for s in streams]
    count, failed = sum(w[0] for w in windows), [s for w in windows for s in w[1]]
    outcome.figure("requests/s while relays died", round(count / (now - began + LEAD_S)))
    by_kind: dict[str, list[float]] = {}
    for loss in losses:
        by_kind.setdefault(loss.kind, []).append(loss.gap_ms)
    outcome.figure("longest answer in ms, by kind of relay", by_kind)
    outcome.figure("longest answer in ms, with restarts", round(max(w[2] for w in windows), 1))
    kinds = {loss.kind.split(",")[0] for loss in losses}
    outcome.check(f"{wanted} relays in use died, of both kinds",
                  len(losses) == wanted and len(kinds) == 2,
                  ", ".join(f"{x.node} ({x.kind})" for x in losses))  # fmt: skip
    outcome.check("at least 100 requests/s", count >= 100 * (now - began), f"{count} in all")
    outcome.check("no request failed", not failed, [s.why for s in failed[:3]] or f"of {count}")


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """All of it."""
    shape = shape_of(options.nodes)
    root.mkdir(mode=0o700)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # An installed program has its bytecode.
    page = root / "page"
    page.write_bytes(secrets.token_bytes(PAGE_BYTES))
    kernels = options.nodes - len(shape.planes)
    outcome.figure("nodes", {"all": options.nodes, "kernel": kernels, "cables": len(shape.cables)})
    with OwnMounts(*shape.ips) as hosts, KernelMesh(hosts, root / "m", page, shape) as mesh:
        mesh.serve()
        steps: list[Callable[[], None]] = [lambda: start(outcome, mesh, options.at_once)]
        if options.idle:
            steps.append(lambda: idle(outcome, mesh, options.idle))
        steps.append(lambda: memory(outcome, mesh))
        if options.kills:
            steps.append(lambda: relays(outcome, mesh, options))
        for step in steps:
            step()


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="sixty nodes on one machine")
    words.add_argument("--nodes", type=int, default=60, help="a multiple of three, at least nine")
    words.add_argument("--at-once", type=int, default=6, help="nodes on their way at any moment")
    words.add_argument("--idle", type=float, default=20, help="seconds of idle CPU; 0: none")
    words.add_argument("--kills", type=int, default=8, help="relays that die; 0: none")
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return run("sixty", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
