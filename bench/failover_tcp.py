#!/usr/bin/env python3
"""How long a TCP request stream stands still when the network breaks, beside babeld at 20 ms.

    sudo .venv/bin/python -m bench.failover_tcp

Six hosts (network namespaces) in a ring with chords n2-n5 and n3-n6; requests every 2 ms from n1
to n4.  Faults, each `--runs` times, on the path in use: a link that silently drops everything, a
relay SIGKILLed, a link that loses 30 % in each direction.  Then the same hosts with babeld (hellos
and updates every 20 and 400 ms) route plain TCP and UDP; a relay that dies there takes its packets
along.  An outage is the longest time between two answers.  CPU: all processes of six nodes under
the same requests, with hellos as calm as they are by default and with none to speak of (10 s); the
requests go to either mesh in turns of 5 s, for a machine is faster now than in a minute.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from bench.outcome import Outcome, run
from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh, join
from tests.real.hosts import Hosts
from tests.real.lab import cpu_s
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.records import Name

NODES = tuple(f"n{i}" for i in range(1, 7))
LINKS = (*((NODES[i], NODES[(i + 1) % 6]) for i in range(6)), ("n2", "n5"), ("n3", "n6"))
SOURCE, TARGET = "n1", "n4"
PORT, LOCAL = 9000, 9001
BEFORE_S, AFTER_S = 0.5, 4.0
CPU_TURN_S = 5.0
STREAM = Path(__file__).with_name("stream.py")


def ip(node: str) -> str:
    """Address of a host."""
    return f"10.0.0.{node[1:]}"


class Net(Protocol):
    """Something that carries requests from SOURCE to TARGET over six hosts."""

    hosts: Hosts
    ways: tuple[tuple[str, str, int], ...]

    def path(self) -> tuple[str, ...]:
        """Nodes in use, both ends included."""
        ...

    def kill(self, node: str) -> None:
        """End a relay."""
        ...

    def revive(self, node: str) -> None:
        """Bring it back."""
        ...

    def wait(self) -> None:
        """Until everything is well."""
        ...


class OurNet:
    """Six x0 nodes.

    Args:
        hosts: the six.
        root: for files.
        hello_ms: of every link.
    """

    ways: tuple[tuple[str, str, int], ...] = (("tcp", "127.0.0.1", LOCAL),)

    def __init__(self, hosts: Hosts, root: Path, hello_ms: int) -> None:
        self.hosts = hosts
        self.mesh = HostMesh(hosts, root)
        self._hello_ms = hello_ms
        for left, right in LINKS:
            join(hosts, left, ip(left), right, ip(right))
        hosts.start(TARGET, sys.executable, str(STREAM), "serve", "127.0.0.1", str(PORT))
        self.mesh.authority(SOURCE, f"{ip(SOURCE)}:{AUTHORITY}")
        uid = (f"unix:uid:{os.getuid()}",)
        target, caller = "spiffe://hosts.mesh/target", "spiffe://hosts.mesh/caller"
        self.mesh.operator.create_entries(
            [
                Entry(id=target, node=TARGET, selectors=uid, address=f"127.0.0.1:{PORT}"),
                Entry(id=caller, node=SOURCE, selectors=uid),
            ]
        )
        self.mesh.operator.create_name(Name("target", target, (caller,)))
        near = {SOURCE} | {n for pair in LINKS if SOURCE in pair for n in pair}
        for node in sorted(NODES, key=lambda node: node not in near):
            neighbours = sorted(n for pair in LINKS if node in pair for n in pair if n != node)
            self.mesh.node(node, self._settings(node, neighbours, node in near, hello_ms))

    def _settings(
        self, node: str, neighbours: list[str], near: bool, hello_ms: int
    ) -> cfg.NodeSettings:
        listen = (cfg.Listen(address=f"127.0.0.1:{LOCAL}", kind="plain", name="target"),)
        return cfg.NodeSettings(
            trust_domain="",
            node=node,
            state_dir="",
            authority=cfg.AuthorityAt(
                address=f"{ip(SOURCE)}:{AUTHORITY}" if near else "",
                through=() if near else tuple(f"{ip(n)}:{DATA}" for n in neighbours),
            ),
            data=cfg.Data(listen=f"0.0.0.0:{DATA}", advertise=(f"{ip(node)}:{DATA}",)),
            link=tuple(
                cfg.Link(
                    node=n,
                    address=f"{ip(n)}:{CONTROL}" if (node, n) in LINKS else "",
                    hello_ms=hello_ms,
                )
                for n in neighbours
            ),
            listen=listen if node == SOURCE else (),
        )

    def path(self) -> tuple[str, ...]:
        """Path of the busiest session of the source."""
        sessions = self.mesh.status(SOURCE).sessions
        best = max(sessions, key=lambda s: (s.streams, s.bytes_in), default=None)
        return best.path if best else ()

    def kill(self, node: str) -> None:
        """SIGKILL agent and proxy."""
        self.mesh.kill(node)

    def revive(self, node: str) -> None:
        """Start them again."""
        self.mesh.start(node)

    def wait(self) -> None:
        """All links up; a moment for standbys."""
        self.mesh.wait_ready(*NODES, seconds=30 + self._hello_ms / 100)
        wait_answer(self)
        time.sleep(2.5)

    def cpu_s(self) -> float:
        """User and system time of all agents and proxies so far."""
        return cpu_s(pid for node in NODES for pid in self.mesh.pids(node))


class BabelNet:
    """The same hosts with babeld.

    Args:
        hosts: the six.
        root: for files.
    """

    ways: tuple[tuple[str, str, int], ...] = (("tcp", ip(TARGET), PORT), ("udp", ip(TARGET), PORT))

    def __init__(self, hosts: Hosts, root: Path) -> None:
        self.hosts = hosts
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        for left, right in LINKS:
            hosts.wire(left, f"{ip(left)}/32", right, f"{ip(right)}/32")
        hosts.start(TARGET, sys.executable, str(STREAM), "serve", "0.0.0.0", str(PORT))
        for node in NODES:
            hosts.forwards(node)
            hosts.run(node, "ip", "addr", "add", f"{ip(node)}/32", "dev", "lo")
            self.revive(node)

    def path(self) -> tuple[str, ...]:
        """As the kernels' routes say it, from host to host."""
        path = [SOURCE]
        while path[-1] != TARGET and len(path) <= len(NODES):
            said = self.hosts.run(path[-1], "ip", "route", "get", ip(TARGET), check=False).stdout
            if " dev to-" not in said:
                return ()
            path.append(said.partition(" dev to-")[2].split()[0])
        return tuple(path)

    def kill(self, node: str) -> None:
        """The daemon dies and the host takes its packets along."""
        _end(self._root / f"{node}.pid")
        for neighbour in _neighbours(node):
            _lose(self.hosts, node, neighbour, 100)

    def revive(self, node: str) -> None:
        """Start the daemon; the host forwards again."""
        for neighbour in _neighbours(node):
            _mend(self.hosts, node, neighbour)
        conf = "".join(
            f"interface to-{n} type wired hello-interval 0.02 update-interval 0.4\n"
            for n in _neighbours(node)
        )
        conf += "redistribute local ip 10.0.0.0/24 allow\nredistribute local deny\n"
        (self._root / f"{node}.conf").write_text(conf + "redistribute deny\n")
        for kind in ("pid", "state"):
            (self._root / f"{node}.{kind}").unlink(missing_ok=True)
        self.hosts.start(
            node,
            "babeld",
            "-I",
            str(self._root / f"{node}.pid"),
            "-S",
            str(self._root / f"{node}.state"),
            "-c",
            str(self._root / f"{node}.conf"),
        )

    def wait(self) -> None:
        """Until there is a path of four hosts, and a moment."""
        wait_for(lambda: len(self.path()) == 4, "babeld to converge", 30)
        wait_answer(self)
        time.sleep(2.5)

    def cpu_s(self) -> float:
        """User and system time of all daemons so far."""
        return cpu_s(int(f.read_text()) for f in self._root.glob("*.pid"))


def wait_answer(net: Net) -> None:
    """Until one request by TCP is answered."""
    _, address, port = net.ways[0]
    command = (sys.executable, str(STREAM), "probe", address, str(port))
    wait_for(lambda: net.hosts.run(SOURCE, *command, check=False).returncode == 0, "an answer", 30)


def _neighbours(node: str) -> list[str]:
    return [n for pair in LINKS if node in pair for n in pair if n != node]


def _end(pid_file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def _lose(hosts: Hosts, node: str, neighbour: str, percent: int) -> None:
    """Drop this share of what comes in over the cable from `neighbour`."""
    verdict = "drop" if percent == 100 else f"numgen random mod 100 < {percent} drop"
    hosts.nft(
        node,
        f"table netdev x0-{neighbour} {{ chain lose {{ type filter hook ingress device"
        f' "to-{neighbour}" priority 0; policy accept; {verdict}; }}\n}}',
    )


def _mend(hosts: Hosts, node: str, neighbour: str) -> None:
    hosts.run(node, "nft", "delete", "table", "netdev", f"x0-{neighbour}", check=False)


@contextlib.contextmanager
def silent(net: Net, percent: int = 100) -> Iterator[str]:
    """A link in the middle of the path loses everything, or a share, both ways."""
    path = net.path()
    one, two = path[len(path) // 2 - 1], path[len(path) // 2]
    _lose(net.hosts, one, two, percent)
    _lose(net.hosts, two, one, percent)
    try:
        yield f"{one}-{two}"
    finally:
        _mend(net.hosts, one, two)
        _mend(net.hosts, two, one)


@contextlib.contextmanager
def killed(net: Net) -> Iterator[str]:
    """The first relay on the path dies."""
    relay = net.path()[1]
    net.kill(relay)
    try:
        yield relay
    finally:
        net.revive(relay)


@contextlib.contextmanager
def nothing(net: Net) -> Iterator[str]:
    """The control."""
    yield ""


FAULTS: dict[str, Callable[[Net], contextlib.AbstractContextManager[str]]] = {
    "control": nothing,
    "silent": silent,
    "killed": killed,
    "loss30": lambda net: silent(net, 30),
}


def outage(net: Net, root: Path, fault: str, way: tuple[str, str, int]) -> tuple[float, str]:
    """One fault under one stream of requests.

    Returns:
        (longest time between two answers in ms, why the connection broke if it did).
    """
    kind, address, port = way
    root.mkdir(parents=True, exist_ok=True)
    file = root / "times"
    broken = file.with_name("times.why")
    broken.unlink(missing_ok=True)
    sender = net.hosts.start(
        SOURCE, sys.executable, str(STREAM), "send", kind, address, str(port), str(file),
        log=root / "send.log",
    )  # fmt: skip
    time.sleep(1.0)
    wait_for(lambda: len(net.path()) > 2, "a path with a relay", 10)
    time.sleep(0.5)
    begin = time.monotonic() - BEFORE_S
    with FAULTS[fault](net):
        time.sleep(AFTER_S if fault != "loss30" else 2 * AFTER_S)
        end = time.monotonic()
        sender.send_signal(signal.SIGTERM)
        sender.wait(20)
    times = array.array("d")
    times.frombytes(file.read_bytes())
    answered = sorted(t for t in times[1::2] if begin <= t <= end)
    why = broken.read_text() if broken.exists() else ""
    gaps = [b - a for a, b in itertools.pairwise([begin, *answered, end])]
    return round(max(gaps) * 1e3, 1), why


def outages(
    outcome: Outcome, name: str, net: Net, root: Path, faults: list[str], runs: int
) -> None:
    """Every fault, that often, over every way of a net."""
    found: dict[str, list[float]] = {}
    broken: list[str] = []
    for number in range(runs):
        for fault in faults:
            for way in net.ways:
                net.wait()
                try:
                    gap, why = outage(net, root, fault, way)
                except (X0Error, OSError, IndexError) as error:
                    gap, why = -1.0, str(error)
                key = f"{fault}" if len(net.ways) == 1 else f"{fault}_{way[0]}"
                found.setdefault(key, []).append(gap)
                if why:
                    broken.append(f"{key} run {number}: {why}")
                outcome.tell(f"{name} {key} {number + 1}/{runs}: {gap} ms {why}")
    outcome.figure(
        f"{name}_outage_ms",
        {
            key: {"median": statistics.median(gaps), "max": max(gaps), "all": gaps}
            for key, gaps in found.items()
        },
    )
    if name == "ours":
        outcome.check("no connection of ours broke", not broken, broken[:3])
    else:
        outcome.figure(f"{name}_broken", broken)


def cpu(net: OurNet | BabelNet, root: Path, seconds: float) -> float:
    """Percent of a core that all processes of a net take under the stream, without faults."""
    kind, address, port = net.ways[0]
    sender = net.hosts.start(
        SOURCE, sys.executable, str(STREAM), "send", kind, address, str(port), str(root / "cpu"),
        log=root / "send.log",
    )  # fmt: skip
    time.sleep(1.0)
    before, began = net.cpu_s(), time.monotonic()
    time.sleep(seconds)
    used, took = net.cpu_s() - before, time.monotonic() - began
    sender.send_signal(signal.SIGTERM)
    sender.wait(20)
    return 100 * used / took


def detection(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """What it costs to watch the links: six nodes that do and six that do not, in turns."""
    with Hosts(*NODES) as watching, Hosts(*NODES) as blind:
        nets = {
            "with detection": OurNet(watching, root / "ours", options.hello_ms),
            "without": OurNet(blind, root / "plain", 10_000),
        }
        spent: dict[str, list[float]] = {name: [] for name in nets}
        for net in nets.values():
            net.wait()
        for _ in range(max(1, round(options.cpu_seconds / CPU_TURN_S))):
            for name, net in nets.items():
                spent[name].append(cpu(net, root, CPU_TURN_S))
    means = {name: round(statistics.fmean(turns), 2) for name, turns in spent.items()}
    pairs = zip(spent["with detection"], spent["without"], strict=True)
    each = [round(one - other, 2) for one, other in pairs]
    outcome.figure("cpu_percent", means)
    outcome.figure("cpu_detection_percent_turns", each)
    outcome.figure("cpu_detection_percent", round(statistics.fmean(each), 2))


def judge(outcome: Outcome) -> None:
    """The targets: above control, median and maximum."""
    ours = outcome.figures.get("ours_outage_ms", {})
    control = ours.get("control", {"median": 0.0, "max": 0.0})
    for fault, median, most in (("silent", 50, 120), ("killed", 20, 80)):
        if fault in ours:
            above = {k: round(ours[fault][k] - control[k], 1) for k in ("median", "max")}
            good = (
                min(ours[fault]["all"]) >= 0 and above["median"] <= median and above["max"] <= most
            )
            outcome.check(f"{fault}: at most {median}/{most} ms above control", good, above)
    if "cpu_detection_percent" in outcome.figures:
        spent = outcome.figures["cpu_detection_percent"]
        outcome.check("failure detection of six nodes at most 5 % of a core", spent <= 5, spent)


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Ours, ours without detection, babeld."""
    faults = options.faults.split(",")
    if options.ours and options.runs:
        with Hosts(*NODES) as hosts:
            net = OurNet(hosts, root / "ours", options.hello_ms)
            net.wait()
            outages(outcome, "ours", net, root / "run", faults, options.runs)
    if options.ours and options.cpu_seconds:
        detection(outcome, root / "cpu", options)
    if options.peer and shutil.which("babeld") is None:
        outcome.check("babeld is there (package babeld)", False)
    elif options.peer:
        with Hosts(*NODES) as hosts:
            peer = BabelNet(hosts, root / "babel")
            if options.cpu_seconds:
                peer.wait()
                outcome.figure("babeld_cpu_percent", round(cpu(peer, root, options.cpu_seconds), 2))
            outages(outcome, "babeld_20ms", peer, root / "run", faults, options.runs)
    judge(outcome)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="outage of a TCP request stream, beside babeld")
    words.add_argument("--runs", type=int, default=5)
    words.add_argument("--faults", default="control,silent,killed,loss30")
    words.add_argument("--hello-ms", type=int, default=cfg.HELLO_MS)
    words.add_argument("--cpu-seconds", type=float, default=30, help="0: leave CPU out")
    words.add_argument("--no-ours", dest="ours", action="store_false", help="babeld alone")
    words.add_argument("--no-peer", dest="peer", action="store_false", help="leave babeld out")
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    return run("failover_tcp", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
