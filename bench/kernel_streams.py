#!/usr/bin/env python3
"""What TCP does when a link under the kernel's data plane is cut silently.

    sudo .venv/bin/python -m bench.kernel_streams

Six nodes with `plane = "kernel"` in a ring with chords n2-n5 and n3-n6; streams from n1 to n4, as
unmodified programs have them: through the proxies, and *plain*, from mesh address to mesh address
past all of them.  A link in the middle of their path drops everything, `--runs` times.

    requests   every millisecond over one connection, whether or not the last was answered, and
               over another one each after the answer to the last; the longest time to an answer
    bulk       as fast as it goes; the longest time without new bytes at the receiver

Beside each window after a cut, the window of the same length before it is the control.  *Untuned*
is the same in a mesh whose routes lack what `edge/kernel/rtnetlink.py` calls `recovery`: what TCP
does by itself.  `spurious` is what that costs where nothing is lost: segments sent again within
some seconds, in the mesh and over cables that take their time, unevenly too.
"""

from __future__ import annotations

import argparse
import array
import itertools
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.failover_tcp import LINKS, NODES, SOURCE, STREAM, TARGET, ip
from bench.outcome import Outcome, run
from tests.real.hosts import Hosts
from tests.real.kernel_mesh import KernelMesh, OwnMounts, Shape
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel.routes import RTO_MIN_MS
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

PLAIN_PORT = 9000
NEVER = 2**31 - 1
"""One packet in so many is lost: a program that is there already is changed over in an instant."""
WINDOW_S, SETTLE_S = 1.0, 0.5
STEADY_S = 4.0
BULK_GAP_MS, ANSWER_MS = 250.0, 20.0
"""Targets: without bytes at most so long; an answer at most so much later than in the control."""
CABLES = {
    "20 ms": (10, 0, 0),
    "20 to 40 ms": (10, 10, 0),
    "20 ms, stands still for 40 ms four times a second": (10, 0, 40),
}
"""Round trips: delay, jitter and stall of each direction, ms."""
COUNTED = {
    "RetransSegs": "sent again",
    "TCPTimeouts": "timeouts",
    "TCPSpuriousRTOs": "of them found needless",
    "TCPLossProbes": "probes",
    "TCPDSACKRecv": "had arrived",
}


class Way(NamedTuple):
    """One unmodified client."""

    name: str
    kind: str
    """Verb of `bench/stream.py`."""
    address: tuple[str, int]
    options: tuple[str, ...] = ()

    def start(self, hosts: Hosts, host: str, root: Path) -> tuple[subprocess.Popen[bytes], Path]:
        """Start it; what it measured will be in that file."""
        file = root / re.sub(r"\W+", "-", self.name)
        for old in (file, file.with_name(f"{file.name}.why")):
            old.unlink(missing_ok=True)
        verb = ("send", "tcp") if self.kind == "send" else ("take",)
        process = hosts.start(
            host, sys.executable, str(STREAM), *verb, self.address[0], str(self.address[1]),
            str(file), *self.options, log=root / "clients.log",
        )  # fmt: skip
        return process, file


def requests(address: tuple[str, int]) -> list[Way]:
    """A request every millisecond, in two manners."""
    often = ("--say", "echo", "--interval-ms", "1")
    return [
        Way("requests", "send", address, often),
        Way("requests one by one", "send", address, (*often, "--one")),
    ]


def bulk(address: tuple[str, int]) -> list[Way]:
    """As fast as it goes."""
    return [Way("bulk", "take", address, ("--say", f"down {1 << 50}"))]


class Stream:
    """What a client has measured.

    Args:
        way: which.
        file: of the client, at its end.
    """

    def __init__(self, way: Way, file: Path) -> None:
        values = array.array("d")
        values.frombytes(file.read_bytes())
        self._asks = way.kind == "send"
        self._pairs = list(zip(values[::2], values[1::2], strict=True))
        why = file.with_name(f"{file.name}.why")
        self.why = why.read_text() if why.exists() else ""

    def worst_ms(self, begin: float, end: float) -> float:
        """Longest time to an answer, or without bytes, in a window."""
        if self._asks:
            took = [
                (answered or math.inf) - sent
                for sent, answered in self._pairs
                if begin <= sent < end
            ]
            return round(1e3 * max(took, default=math.inf), 1)
        came = [at for at, _ in self._pairs if begin < at < end]
        gaps = (b - a for a, b in itertools.pairwise([begin, *came, end]))
        return round(1e3 * max(gaps), 1)

    def failed(self, end: float) -> int:
        """Requests sent before `end` that were not answered."""
        return sum(not answered and sent < end for sent, answered in self._pairs if self._asks)

    def each_s(self, begin: float, end: float) -> float:
        """Answers, or Mbit, per second in a window."""
        if self._asks:
            return round(sum(begin <= at < end for _, at in self._pairs) / (end - begin))
        size = sum(size for at, size in self._pairs if begin <= at < end)
        return round(8e-6 * size / (end - begin))


class Untuned(OwnMounts):
    """Hosts whose nodes make routes that leave TCP as it is."""

    def start(
        self, name: str, *command: str, log: Path | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """See `Hosts.start`."""
        python, *rest = command
        if rest[:3] == ["-m", "x0tta6bl4", "node"]:
            command = (python, str(STREAM.with_name("untuned_x0tta6bl4.py")), *rest[2:])
        return super().start(name, *command, log=log, **more)


class Ring(KernelMesh):
    """The six nodes, and a server that is reached past the proxies.

    Args:
        hosts: `NODES`.
        root: for files.
    """

    def __init__(self, hosts: Hosts, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True)
        page = root / "page"
        page.write_bytes(os.urandom(64))
        shape = Shape({n: ip(n) for n in NODES}, LINKS, {"stream": TARGET}, (SOURCE,), SOURCE)
        super().__init__(hosts, root / "m", page, shape)
        self.serve()
        self.start(len(NODES))
        serve_plain(hosts, TARGET, page)
        self._addresses = {n: str(mesh_address(_DOMAIN, NodeName(n))) for n in NODES}

    @property
    def plain(self) -> tuple[str, int]:
        """The server, past all proxies."""
        return self._addresses[TARGET], PLAIN_PORT

    def path(self) -> tuple[str, ...]:
        """From host to host, as the kernels' routes say it."""
        path = [SOURCE]
        while path[-1] != TARGET and len(path) <= len(NODES):
            words = ("ip", "-6", "route", "get", self._addresses[TARGET])
            said = self.hosts.run(path[-1], *words, check=False).stdout
            if " dev to-" not in said:
                return ()
            path.append(said.partition(" dev to-")[2].split()[0])
        return tuple(path)

    def middle(self) -> tuple[str, str]:
        """The link in the middle of the path, between two relays."""
        wait_for(lambda: len(self.path()) >= 4, "a path with two relays", 10)
        path = self.path()
        return path[1], path[2]

    def settle(self) -> None:
        """Until all links are the kernel's and the session's circuit is too."""
        self.mesh.wait_ready(*NODES)
        self.wait_kernels(NODES)

    def wait_direct(self) -> None:
        """Until the proxies' connections run from mesh address to mesh address."""

        def is_direct() -> bool:
            return (SOURCE, TARGET) in {x.path for x in self.mesh.status(SOURCE).sessions}

        wait_for(is_direct, "a circuit without relays", 40)


_DOMAIN = TrustDomain("hosts.mesh")


def serve_plain(hosts: Hosts, host: str, page: Path) -> None:
    """A server on all addresses of a host."""
    server = str(STREAM.with_name("server.py"))
    hosts.start(host, sys.executable, server, "--page", str(page), "--address", "::",
                "--port", str(PLAIN_PORT))  # fmt: skip
    wait_for(lambda: f":{PLAIN_PORT}" in hosts.run(host, "ss", "-tln").stdout, "the server", 10)


def counts(hosts: Hosts, *names: str) -> dict[str, int]:
    """What TCP of some hosts has counted so far."""
    found = dict.fromkeys(COUNTED, 0)
    for name in names:
        for file in ("snmp", "netstat"):
            lines = hosts.run(name, "cat", f"/proc/net/{file}").stdout.splitlines()
            for head, values in zip(lines[::2], lines[1::2], strict=True):
                for key, value in zip(head.split(), values.split(), strict=True):
                    if key in found:
                        found[key] += int(value)
    return found


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """What was counted meanwhile, in words."""
    return {COUNTED[key]: now[key] - before[key] for key in COUNTED}


# ------------------------------------------------------------------ cuts
def one_cut(ring: Ring, ways: list[Way], root: Path) -> dict[str, tuple[float, float, int, str]]:
    """One cut under some streams.

    Returns:
        By way: worst before, worst after, requests without an answer, why it broke.
    """
    clients = {way: way.start(ring.hosts, SOURCE, root) for way in ways}
    time.sleep(SETTLE_S)
    if ways[0].address != ring.plain:
        ring.wait_direct()
    middle = armed = ring.middle()
    ring.cut(*armed, one_in=NEVER)
    time.sleep(SETTLE_S + WINDOW_S)
    while (middle := ring.middle()) != armed:  # The map has found a better path meanwhile.
        ring.heal(*armed)
        ring.cut(*middle, one_in=NEVER)
        armed = middle
        time.sleep(SETTLE_S)
    cut = time.monotonic()
    ring.cut(*middle)
    try:
        time.sleep(WINDOW_S + SETTLE_S)
        end = time.monotonic()
        for process, _ in clients.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in clients.values():
            process.wait(20)
    finally:
        ring.heal(*middle)
    found = {}
    for way, (_, file) in clients.items():
        seen = Stream(way, file)
        found[way.name] = (
            seen.worst_ms(cut - WINDOW_S, cut - 0.01),
            seen.worst_ms(cut - 0.01, cut + WINDOW_S),
            seen.failed(end - SETTLE_S),
            seen.why,
        )
    return found


def cuts(outcome: Outcome, ring: Ring, name: str, ways: list[Way], root: Path, runs: int) -> None:
    """Many cuts under the same kind of streams."""
    root.mkdir(exist_ok=True)
    found: dict[str, list[tuple[float, float, int, str]]] = {way.name: [] for way in ways}
    before = counts(ring.hosts, SOURCE, TARGET)
    for number in range(runs):
        ring.settle()
        for way, result in one_cut(ring, ways, root).items():
            found[way].append(result)
            outcome.tell(f"{name} {way} {number + 1}/{runs}: {result}")
    counted = since(before, counts(ring.hosts, SOURCE, TARGET))
    for way, results in found.items():
        calm, cut = [r[0] for r in results], [r[1] for r in results]
        outcome.figure(
            f"{way}, {name}",
            {
                "control ms": _spread(calm),
                "cut ms": _spread(cut),
                "above control ms": _spread(
                    [round(b - a, 1) for a, b in zip(calm, cut, strict=True)]
                ),
                "failed": sum(r[2] for r in results),
                "broken": sum(bool(r[3]) for r in results),
                "both ends": counted,
            },
        )


def _spread(values: list[float]) -> dict[str, object]:
    return {"median": statistics.median(values), "max": max(values), "all": values}


# ------------------------------------------------------------------ where nothing is lost
def steady(hosts: Hosts, ends: tuple[str, str], ways: list[Way], root: Path) -> dict[str, object]:
    """Streams over a path that loses nothing: what came through, and what was sent twice."""
    root.mkdir(exist_ok=True)
    clients = {way: way.start(hosts, ends[0], root) for way in ways}
    time.sleep(2 * SETTLE_S)
    before, begin = counts(hosts, *ends), time.monotonic()
    time.sleep(STEADY_S)
    counted, end = since(before, counts(hosts, *ends)), time.monotonic()
    for process, _ in clients.values():
        process.send_signal(signal.SIGTERM)
    for process, _ in clients.values():
        process.wait(20)
    seen = {way: Stream(way, file) for way, (_, file) in clients.items()}
    rates = {f"{way.name} /s": stream.each_s(begin, end) for way, stream in seen.items()}
    return {**rates, **counted}


def spurious_in_mesh(outcome: Outcome, ring: Ring, root: Path, tuning: str) -> None:
    """Six kernels in a row of namespaces."""
    ring.settle()
    groups = {
        "plain requests": requests(ring.plain), "plain bulk": bulk(ring.plain),
        "bulk through the proxies": bulk(ring.local("stream")),
    }  # fmt: skip
    for name, ways in groups.items():
        found = steady(ring.hosts, (SOURCE, TARGET), ways, root)
        outcome.figure(f"spurious, mesh, {name}{tuning}", found)


def spurious_on_cables(outcome: Outcome, root: Path) -> None:
    """Two hosts and a cable that takes its time."""
    ends = ("a", "b")
    at = {"a": "fd00::a", "b": "fd00::b"}
    for name, times in CABLES.items():
        with OwnMounts(*ends) as hosts:
            lay_cable(hosts, at, times)
            serve_plain(hosts, "b", root / "page")
            for ways in (requests((at["b"], PLAIN_PORT)), bulk((at["b"], PLAIN_PORT))):
                for tuned in (True, False):
                    metrics = ("rto_min", f"{RTO_MIN_MS}ms", "quickack", "1") if tuned else ()
                    for here, there in (("a", "b"), ("b", "a")):
                        hosts.run(here, "ip", "-6", "route", "replace", at[there], "dev", "slow",
                                  *metrics)  # fmt: skip
                    key = f"spurious, {name}, {ways[0].name}{'' if tuned else ', untuned'}"
                    outcome.figure(key, steady(hosts, ends, ways, root / "s"))


def lay_cable(hosts: Hosts, at: dict[str, str], times: tuple[int, int, int]) -> None:
    """Join two hosts by a slow cable and give them addresses."""
    program = str(STREAM.with_name("slow_cable.py"))
    words = itertools.chain(
        *zip(("--delay-ms", "--jitter-ms", "--stall-ms"), map(str, times), strict=True)
    )
    hosts.start_as((sys.executable, program, *map(hosts.space, at), *words), None)
    for host, address in at.items():

        def is_up(host: str = host) -> bool:
            up = hosts.run(host, *"ip link set slow up mtu 9000".split(), check=False)
            return up.returncode == 0

        wait_for(is_up, "a cable", 10)
        hosts.run(host, "ip", "addr", "add", f"{address}/128", "dev", "slow", "nodad")


# ------------------------------------------------------------------ all of it
def judge(outcome: Outcome) -> None:
    """The targets, of what goes through the proxies and of what does not."""
    for name, found in outcome.figures.items():
        if "cut ms" not in found or "untuned" in name:
            continue
        good = not found["failed"] and not found["broken"]
        if name.startswith("bulk"):
            what, worst, most = "without bytes at most 250 ms", found["cut ms"]["max"], BULK_GAP_MS
        else:
            what, worst = (
                "longest answer at most 20 ms above control",
                found["above control ms"]["max"],
            )
            most = ANSWER_MS
            outcome.check(f"{name}: 0 failed", good, f"{found['failed']}, {found['broken']} broken")
        outcome.check(f"{name}: {what}", good and worst <= most, worst)


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """What `--only` names."""
    wanted = options.only.split(",")
    root.mkdir(mode=0o700, parents=True)
    (root / "page").write_bytes(os.urandom(64))
    for kind, tuning in ((OwnMounts, ""), (Untuned, ", untuned")):
        mine = [
            g.removeprefix("untuned-") for g in wanted if g.startswith("untuned-") == (tuning != "")
        ]
        if {*mine} <= {"cables"}:
            continue
        with kind(*NODES) as hosts, Ring(hosts, root / f"ring{tuning[2:]}") as ring:
            ring.settle()
            local = ring.local("stream")
            groups = {
                "requests": requests(local), "bulk": bulk(local),
                "plain-requests": requests(ring.plain), "plain-bulk": bulk(ring.plain),
            }  # fmt: skip
            for group in mine:
                place = "plain" if group.startswith("plain") else "through the proxies"
                if group in groups:
                    name = place + tuning
                    cuts(outcome, ring, name, groups[group], root / "c", options.runs)
            if "mesh" in mine:
                spurious_in_mesh(outcome, ring, root / "s", tuning)
    if "cables" in wanted:
        spurious_on_cables(outcome, root)
    judge(outcome)


ONLY = ("requests", "bulk", "plain-requests", "plain-bulk", "mesh",
        "untuned-requests", "untuned-bulk", "untuned-plain-requests", "untuned-plain-bulk",
        "untuned-mesh", "cables")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="TCP over the kernel's data plane and silent cuts")
    words.add_argument("--runs", type=int, default=10)
    words.add_argument("--only", default=",".join(ONLY))
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return run("kernel_streams", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
