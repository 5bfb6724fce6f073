"""One protocol on one shape in the harness of `bench.failover`, with requests beside the probes.

The harness is a program with functions to replace: its net also counts what went in circles, its
prober has a stream of requests beside it (or is one, where there is nothing for UDP to go by), its
faults come at a random phase and say when they came, and those that lose packets come to all links
of a host at one moment, and to both directions of a link: a process for each took up to 126 ms
where sixteen nodes share a core, and a host without power does not lose one link after the other.
What it finds and what is found beside it are lines of JSON in one file, so that those of a run
that was cut off are kept.
"""

from __future__ import annotations

import array
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.failover_ours import ECHO, KERNEL, USERSPACE, WAIT_S, Ours, Userspace
from bench.requests import Requests, die_with_parent
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.wire.errors import Unavailable, X0Error

STREAM: Final = Path(__file__).with_name("stream.py")
PEER_SETTLE_S: Final = 4.5
CONVERGE_S: Final = 60.0
"""Probes are to have the shortest path by then, before each fault."""
LOSE: Final = "lose.o"
LOST: Final = {"silent": 1000, "gray": 300, "gray5": 50, "relay": 1000}
"""Per mille of the packets, in faults of the harness."""
LOSES: Final = """#include <linux/bpf.h>
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int (*name)[value]
#define __type(name, value) typeof(value) *name
static void *(*look)(void *, const void *) = (void *) 1;
static unsigned int (*chance)(void) = (void *) 7;

struct { __uint(type, 1); __uint(max_entries, 1024); __type(key, int); __type(value, int); }
loss SEC(".maps");

SEC("xdp") int lose(struct xdp_md *frame)
{
    int card = frame->ingress_ifindex, *share = look(&loss, &card);
    return share && (int) (chance() % 1000) < *share ? XDP_DROP : XDP_PASS;
}
char terms[] SEC("license") = "GPL";
"""
"""Loses so many of a thousand frames that come in on a card as a map says at that moment: to put
another program on a card takes the kernel milliseconds, which none of the links then has in common.
"""
HELPERS: Final = """#define SEC(name) __attribute__((section(name), used))
static unsigned int (*bpf_get_prandom_u32)(void) = (void *) 7;
"""
"""What the harness's programs take from libbpf's headers, for hosts that have none."""
PHASE_S: Final = 0.2
CONTROL_S: Final = 1.0
"""Before a fault: what requests take without one."""
CLANGS: Final = ("clang", "clang-19", "clang-14")


class Cell(msgspec.Struct, frozen=True):
    """A protocol on a shape."""

    shape: str
    proto: str
    faults: tuple[str, ...]
    """Names of the harness, in order."""
    steady_s: float

    @property
    def tag(self) -> str:
        """Of its namespaces: unique on this host."""
        return f"x{os.getpid()}-"


def load(path: Path, root: Path, peers: tuple[str, ...]) -> Any:
    """The harness as a module, with its programs that lose packets built in `root`.

    Raises:
        Unavailable: there is no clang, or it is no Python program.
    """
    spec = importlib.util.spec_from_file_location("failover_harness", path)
    if spec is None or spec.loader is None:
        raise Unavailable("X0-LAB-003", f"{path} is no Python program")
    harness: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    clang = next(filter(None, map(shutil.which, CLANGS)), None)
    if clang is None:
        raise Unavailable("X0-LAB-003", "clang builds the harness's programs and is missing")
    (root / "bpf").mkdir(parents=True)
    (root / "bpf" / "bpf_helpers.h").write_text(HELPERS)
    (root / "lose.c").write_text(LOSES)
    # The harness puts one that loses nothing on every card, before ours.
    for source, name in ((path.parent / "xdp" / "loss.bpf.c", "loss0.o"), (root / "lose.c", LOSE)):
        subprocess.run(
            [clang, "-O2", "-g", "-target", "bpf", "-DLOSS_PM=0", f"-I{root}",
             f"-I/usr/include/{os.uname().machine}-linux-gnu", "-c", source, "-o", root / name],
            check=True, timeout=60,
        )  # fmt: skip
    harness.XDP_DIR = str(root)
    for name in peers:
        calm = {"detect": WAIT_S, "settle": PEER_SETTLE_S}
        harness.PROTOS[name] = type(name, (harness.PROTOS[name],), calm)
    harness.PROTOS[KERNEL], harness.PROTOS[USERSPACE] = Ours, Userspace
    return harness


def expired_in(space: str) -> int:
    """Packets that a namespace has dropped for an error in their head: their TTL was used up."""
    files = ("/proc/net/snmp6", "/proc/net/snmp")
    said = subprocess.run(["ip", "netns", "exec", space, "cat", *files], capture_output=True,
                          text=True, check=False, timeout=20).stdout  # fmt: skip
    words = said.split()
    four = [line.split() for line in said.splitlines() if line.startswith("Ip:")]
    return int(words[words.index("Ip6InHdrErrors") + 1]) + int(
        four[1][four[0].index("InHdrErrors")]
    )


class Fault:
    """What was done to the mesh, and when, in seconds of CLOCK_MONOTONIC."""

    __slots__ = ("came", "name", "undone")

    def __init__(self, name: str, came: float) -> None:
        self.name, self.came, self.undone = name, came, 0.0


class Cable:
    """The namespace in which the harness joins nodes, with a program that loses packets.

    Args:
        net: the harness's, with all links up.
        harness: the module.
    """

    def __init__(self, net: Any, harness: Any) -> None:
        library = Libbpf()
        programs, (self._loss,) = library.load(Path(harness.XDP_DIR, LOSE))
        with harness.InNS(net.ns("w")):
            ends = [(a, b) for a, near in net.nbrs.items() for b in near]
            self._cards = {(to, of): socket.if_nametoindex(f"w{of}-{to}") for to, of in ends}
            for card in self._cards.values():
                library.attach_xdp(card, programs["lose"])
        for program in programs.values():
            os.close(program)

    def close(self) -> None:
        """Let the map go."""
        self._loss.close()

    def lose(self, ends: list[tuple[int, int]], share: int) -> int:
        """Lose so many of a thousand packets that the first of each two nodes gets of the other.

        Returns:
            When the first of them was lost, ns of CLOCK_MONOTONIC.
        """
        words = [(struct.pack("i", self._cards[end]), struct.pack("i", share)) for end in ends]
        came = time.monotonic_ns()
        for card, value in words:
            self._loss.put(card, value)
        return came


class Beside:
    """All that is replaced in the harness for one cell.

    Args:
        harness: the module; only of this process.
        cell: what is measured.
        lines: file of the harness's results, for ours.
    """

    def __init__(self, harness: Any, cell: Cell, lines: Path) -> None:
        self.harness, self.cell, self._lines = harness, cell, lines
        self.fault: Fault | None = None
        self.probers = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._chance = random.Random(f"{cell.shape}/{cell.proto}")
        inject, wait = harness.inject, harness.wait_converged
        kind = harness.PROTOS[cell.proto]
        self.rate = getattr(kind, "rate", 1000)
        self.only_requests = kind is Userspace
        harness.PROTOS[cell.proto] = self._proto(kind)
        harness.Net, harness.Prober = self._net(), self._prober()
        harness.inject = lambda *a: self._inject(inject, *a)
        harness.wait_converged = lambda *a: self._wait(wait, *a)

    def say(self, kind: str, **more: object) -> None:
        """One more line."""
        with self._lines.open("a") as out:
            out.write(json.dumps({"kind": kind, **more}) + "\n")

    def _proto(self, kind: type) -> Callable[[Any, str], Any]:
        def make(net: Any, work: str) -> Any:
            net.proto = kind(net, work)
            return net.proto

        return make

    def _wait(
        self, wait: Callable[..., float | None], net: Any, proto: Any, prober: Any, *_: float
    ) -> float | None:
        waited = wait(net, proto, prober, CONVERGE_S)
        self.say("waited", s=waited)
        return waited

    def _inject(
        self, inject: Callable[..., Any], net: Any, proto: Any, name: str, path: Any
    ) -> Any:
        time.sleep(self._chance.uniform(0, PHASE_S))
        if name in LOST:
            came, undo, what = net.lose(proto, name, path)
        else:
            came, undo, what = inject(net, proto, name, path)
        self.fault = fault = Fault(name, came / 1e9)

        def undone() -> None:
            fault.undone = time.monotonic()
            undo()

        return came, undone, what

    def requests(self, net: Any, address: str) -> Requests:
        """A stream of requests between the two ends; their server, too, if it is the first."""
        here, port = getattr(net.proto, "echo", (address, ECHO))
        if self._server is None:
            self._server = subprocess.Popen(
                ["nice", "-n", "-15", "ip", "netns", "exec", net.ns(net.dst),
                 sys.executable, STREAM, "serve", here, str(port)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        if isinstance(net.proto, Ours):
            return Requests(*net.proto.called_at)
        return Requests(address, ECHO, net.proto.address(net.src))

    def end_server(self) -> None:
        """It is nobody else's child."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(10)

    def _net(self) -> type:
        beside, harness = self, self.harness

        class Net(harness.Net):  # type: ignore[misc, name-defined]
            proto: Any = None
            is_up = False

            def up(self) -> None:
                super().up()
                self.is_up = True
                self.cable = Cable(self, harness)
                for i in range(self.n):  # Requests go where probes go.
                    one_way = "net.ipv4.fib_multipath_hash_policy=0"
                    harness.sh(f"ip netns exec {self.ns(i)} sysctl -qw {one_way}")

            def path(self, window: float = 0.25, rate: int = 0) -> list[int]:
                found: list[int] = super().path(window, rate or beside.rate)
                return found

            def lose(
                self, proto: Any, name: str, path: list[int]
            ) -> tuple[int, Callable[[], None], str]:
                """What `inject` of the harness does, at one moment."""

                def mend(ends: list[tuple[int, int]]) -> None:
                    self.cable.lose(ends, 0)

                middle = (len(path) - 1) // 2
                a, b, relay = path[middle], path[middle + 1], path[len(path) // 2]
                if name != "relay":
                    ends = [(a, b), (b, a)]
                    came = self.cable.lose(ends, LOST[name])
                    return came, lambda: mend(ends), f"link {a}-{b}"
                ends = [end for j in self.nbrs[relay] for end in ((relay, j), (j, relay))]
                came = self.cable.lose(ends, LOST[name])
                proto.kill(relay)

                def undo() -> None:
                    mend(ends)
                    proto.start(relay)

                return came, undo, f"node {relay}"

            def down(self) -> None:
                if self.is_up:
                    self.cable.close()
                    expired = sum(expired_in(self.ns(i)) for i in range(self.n))
                    beside.say("expired", packets=expired)
                self.is_up = False
                beside.end_server()
                if isinstance(self.proto, Ours):
                    self.proto.close()
                super().down()

        return Net

    def _prober(self) -> type:
        beside, harness = self, self.harness

        class Prober(harness.Prober):  # type: ignore[misc, name-defined]
            """Probes and requests; the first is there before anything can be asked for."""

            def __init__(self, net: Any, source: str, target: str) -> None:
                self.requests: Requests | None = None
                if beside.probers or beside.only_requests:
                    self.requests = beside.requests(net, target)
                beside.probers += 1
                self._net = net
                if self.requests is not None and beside.only_requests:
                    self.rate, self.count = self.requests.rate, self.requests.count
                else:
                    super().__init__(net, source, target)

            def start(self) -> Any:
                if self.requests is not None:
                    with harness.InNS(self._net.ns(self._net.src)):
                        self.requests.start()
                return self if beside.only_requests else super().start()

            def finish(self) -> tuple[list[int], set[int]]:
                heard = self.requests.finish() if self.requests is not None else None
                fault, beside.fault = beside.fault, None
                if heard is not None and fault is not None:
                    beside.say(
                        "requests",
                        fault=fault.name,
                        control=heard.within(fault.came - CONTROL_S, fault.came),
                        broke=heard.within(fault.came, fault.undone),
                    )
                if beside.only_requests:
                    times = heard.times if heard is not None else array.array("d")
                    answered = {k for k, at in enumerate(times[1::2]) if at}
                    return [int(at * 1e9) for at in times[::2]], answered
                found: tuple[list[int], set[int]] = super().finish()
                return found

        return Prober


def measure(harness: Any, cell: Cell, core: int | None, lines: Path) -> None:
    """All runs of a cell, in a process of its own, whose working directory it fills.

    Args:
        harness: the module.
        cell: what is measured.
        core: the only one on which it runs; None: all.
        lines: file for what is found.
    """
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    die_with_parent(signal.SIGTERM)
    beside = Beside(harness, cell, lines)
    try:
        harness.run(
            Namespace(
                topo=cell.shape, proto=cell.proto, runs=1, steady=cell.steady_s,
                faults=",".join(cell.faults), wire=True, tag=cell.tag, out=str(lines),
            )
        )  # fmt: skip
    except (X0Error, OSError, RuntimeError, AssertionError, ValueError) as error:
        beside.say("failed", error=f"{type(error).__name__}: {error}"[:400])


def sweep(pid: int) -> None:
    """Remove the namespaces of a cell whose process was killed, and what runs in them."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False,
                            timeout=20).stdout  # fmt: skip
    for space in (line.split()[0] for line in listed.splitlines() if f"x{pid}-" in line):
        pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True,
                              check=False, timeout=20).stdout  # fmt: skip
        for one in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", space], check=False, timeout=20)
