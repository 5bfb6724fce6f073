#!/usr/bin/env python3
"""How long packets stand still when the network breaks, beside routing daemons, in one harness.

    sudo X0_FAILOVER_BENCH=PATH/failover.py .venv/bin/python -m bench.failover

The harness is not part of this project: a program that joins network namespaces by cables, starts
one routing daemon in each, sends numbered UDP probes every millisecond between two far ones and
breaks what they use.  Ours is a node with `plane = "kernel"` in each of them, an authority in the
first; probes go between mesh addresses by the kernels' routes.  Known daemons route the same
probes over the same cables, those that this host has (`PATH`).

Faults come in the cable, where no program of a node sees them: `silent` drops everything on a link,
`gray30` and `gray5` a share in each direction, `carrier` takes the signal from both ends, `relay`
kills all processes of a host and all that goes in or out, `daemon` kills the processes alone.  An
outage is the longest run of lost probes; of a gray link, the time until a second without loss.
CPU is of processes, all hosts together; what kernels do for the programs is `bench/bpf.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bench.outcome import Outcome, run
from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh
from tests.real.kernel_mesh import OwnMounts
from tests.real.lab import cpu_s, rss_kb
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

OURS: Final = "x0-kernel"
PEERS: Final = {
    "babeld-20ms": "babeld",
    "bird-ospf-bfd10": "bird",
    "frr-ospf-bfd10": "/usr/lib/frr/ospfd",
    "frr-isis-lfa-bfd10": "/usr/lib/frr/isisd",
}
"""Name in the harness -> program that it needs."""
FAULTS: Final = {"silent": "silent", "gray30": "gray", "gray5": "gray5", "carrier": "carrier",
                 "relay": "relay", "daemon": "daemon"}  # fmt: skip
"""Our name -> the harness's."""
GRAY: Final = ("gray30", "gray5")
TARGETS: Final = {"silent": (5, 10), "relay": (5, 15), "carrier": (5, 10), "gray30": (100, 500)}
"""Median and maximum, ms."""
GRAY5_MS, GRAY5_SHARE, CPU_PERCENT = 2000, 0.95, 5.0
LOSSES: Final = (0, 50, 300, 1000)
HELPERS: Final = """#define SEC(name) __attribute__((section(name), used))
static unsigned int (*bpf_get_prandom_u32)(void) = (void *) 7;
"""
"""What the harness's programs take from libbpf's headers, for hosts that have none."""


class Spaces(OwnMounts):
    """The harness's namespaces, as hosts `n0`, `n1` ...; it makes and removes them.

    Args:
        net: of the harness.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self._net = net

    def space(self, name: str) -> str:
        """See `Hosts.space`."""
        return str(self._net.ns(int(name[1:])))

    def start_as(
        self, command: tuple[str, ...], log: Path | None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process, as nice as the harness's daemons are."""
        return super().start_as(("nice", "-n", "-15", *command), log, **more)


class Ours:
    """A node in each namespace: what the harness asks of a protocol.

    Args:
        net: of the harness.
        work: directory for files.
    """

    name, detect, settle, overlay, min_hops = OURS, 15.0, 6.0, False, True

    def __init__(self, net: Any, work: str) -> None:
        self.net = net
        net.ours = self
        self.procs: dict[int, list[Any]] = {i: [] for i in range(net.n)}
        self._hosts = Spaces(net)
        self._mesh = HostMesh(self._hosts, Path(work).resolve() / "m", "bench.mesh")
        self._laid: set[int] = set()

    def configure(self, i: int) -> None:
        """Routes between the addresses of neighbours; the authority beside the first node."""
        for j in self.net.nbrs[i]:
            self._hosts.run(f"n{i}", "ip", "route", "add", f"{self.net.lo(j)}/32",
                            "dev", f"l{j}", "src", self.net.lo(i))  # fmt: skip

    def start(self, i: int) -> None:
        """Start a node, for the first time or again."""
        name = f"n{i}"
        if i in self._laid:
            self._mesh.start(name)
            return
        if not self._laid:
            self._mesh.authority("n0", f"{self.net.lo(0)}:{AUTHORITY}")
        self._laid.add(i)
        self._mesh.node(name, self._settings(i))

    def _settings(self, i: int) -> cfg.NodeSettings:
        net = self.net
        near = i == 0 or 0 in net.nbrs[i]
        return cfg.NodeSettings(
            trust_domain="",
            node=f"n{i}",
            state_dir="",
            authority=cfg.AuthorityAt(
                address=f"{net.lo(0)}:{AUTHORITY}" if near else "",
                through=() if near else tuple(f"{net.lo(j)}:{DATA}" for j in net.nbrs[i]),
            ),
            data=cfg.Data(
                listen=f"0.0.0.0:{DATA}", advertise=(f"{net.lo(i)}:{DATA}",), plane="kernel"
            ),
            control=cfg.Control(listen=f"0.0.0.0:{CONTROL}"),
            link=tuple(
                cfg.Link(node=f"n{j}", address=f"{net.lo(j)}:{CONTROL}" if i < j else "")
                for j in net.nbrs[i]
            ),
        )

    def kill(self, i: int) -> None:
        """SIGKILL agent and proxy."""
        self._mesh.kill(f"n{i}")

    def address(self, i: int) -> str:
        """Mesh address of a node."""
        return str(mesh_address(TrustDomain(self._mesh.domain), NodeName(f"n{i}")))

    def ready(self) -> bool:
        """Whether all links are up and each kernel has a route to each node."""
        for i in range(self.net.n):
            if not self._mesh.is_ready(f"n{i}"):
                return False
            said = self._hosts.run(f"n{i}", "ip", "-6", "-j", "route", check=False).stdout
            have = {route["dst"] for route in json.loads(said or "[]")}
            if any(self.address(k) not in have for k in range(self.net.n) if k != i):
                return False
        return True

    def _pids(self) -> Iterable[int]:
        return (pid for i in range(self.net.n) for pid in self._mesh.pids(f"n{i}"))

    def cpu_ticks(self) -> int:
        """User and system time of all agents and proxies, in clock ticks."""
        return round(cpu_s(self._pids()) * os.sysconf("SC_CLK_TCK"))

    def rss_kb(self) -> int:
        """Memory of all agents and proxies."""
        return sum(map(rss_kb, self._pids()))

    def close(self) -> None:
        """End what is left and unmount pins; for the namespaces are about to go."""
        for i in self._laid:
            self._mesh.kill(f"n{i}")
        self._hosts.__exit__()
        for pins in self._mesh.root.glob("n*/bpf"):
            subprocess.run(["umount", pins], check=False, capture_output=True, timeout=20)


def counting(harness: Any, expired: list[int]) -> type:
    """The harness's net, which looks before it goes how many packets went round too long."""

    class Counting(harness.Net):  # type: ignore[misc]
        ours: Ours | None = None
        is_up = False

        def up(self) -> None:
            super().up()
            self.is_up = True

        def down(self) -> None:
            if self.is_up:
                expired.append(sum(self._errors(i) for i in range(self.n)))
            self.is_up = False
            if self.ours is not None:
                self.ours.close()
            super().down()

        def _errors(self, i: int) -> int:
            with harness.InNS(self.ns(i)):
                six = Path("/proc/thread-self/net/snmp6").read_text().split()
                four = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            heads, values = four[0].split(), four[1].split()
            return int(six[six.index("Ip6InHdrErrors") + 1]) + int(
                values[heads.index("InHdrErrors")]
            )

    return Counting


def load(path: Path, root: Path) -> Any:
    """The harness as a module, with its programs that lose packets built in `root`.

    Raises:
        Unavailable: there is no clang, or it did not build them.
    """
    spec = importlib.util.spec_from_file_location("failover_harness", path)
    if spec is None or spec.loader is None:
        raise Unavailable("X0-LAB-003", f"{path} is no Python program")
    harness: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    clang = next(filter(None, map(shutil.which, ("clang", "clang-19", "clang-14"))), None)
    if clang is None:
        raise Unavailable("X0-LAB-003", "clang builds the harness's programs and is missing")
    (root / "bpf").mkdir(parents=True)
    (root / "bpf" / "bpf_helpers.h").write_text(HELPERS)
    for loss in LOSSES:
        subprocess.run(
            [clang, "-O2", "-g", "-target", "bpf", f"-DLOSS_PM={loss}", f"-I{root}",
             f"-I/usr/include/{os.uname().machine}-linux-gnu",
             "-c", path.parent / "xdp" / "loss.bpf.c", "-o", root / f"loss{loss}.o"],
            check=True, timeout=60,
        )  # fmt: skip
    harness.XDP_DIR = str(root)
    harness.PROTOS[OURS] = Ours
    return harness


def summary(rows: list[dict[str, Any]], expired: int) -> dict[str, Any]:
    """What is kept of one protocol on one shape."""
    theirs = {harness: name for name, harness in FAULTS.items()}
    found: dict[str, Any] = {}
    for fault in FAULTS:
        runs = [r for r in rows if theirs.get(r.get("fault", "")) == fault]
        if not runs:
            continue
        key = "mttr_ms" if fault in GRAY else "outage_ms"
        good = [r[key] for r in runs if r.get("healed") and r[key] is not None]
        found[f"{fault} ms"] = {
            "median": statistics.median(good) if good else "never",
            "max": max(good, default="never"),
            "healed": f"{len(good)} of {len(runs)}",
            "heal gap max": max((r["heal_gap_ms"] for r in runs if "heal_gap_ms" in r), default=-1),
            "all": sorted(good),
        }
    steady = next((r for r in rows if r["kind"] == "steady"), {})
    begun = next((r for r in rows if r["kind"] == "start"), {})
    found["whole"] = {
        "converged s": begun.get("converged_s"),
        "CPU % of a core": steady.get("cpu_pct"),
        "control bytes/s": steady.get("bytes_s"),
        "memory MB": steady.get("rss_mb"),
        "TTL exceeded": expired,
    }
    return found


def judge(outcome: Outcome) -> None:
    """The targets for ours on every shape that was measured."""
    for name, found in outcome.figures.items():
        shape, _, proto = name.partition(" ")
        if proto != OURS:
            continue
        for fault, (median, most) in TARGETS.items():
            if row := found.get(f"{fault} ms"):
                whole = len(row["all"]) == int(row["healed"].split()[-1])
                good = whole and row["median"] <= median and row["max"] <= most
                says = f"{row['median']}/{row['max']}, {row['healed']} healed"
                outcome.check(f"{shape}: {fault} at most {median}/{most} ms", good, says)
        if row := found.get("gray5 ms"):
            fast = sum(ms <= GRAY5_MS for ms in row["all"])
            runs = int(row["healed"].split()[-1])
            good = fast >= GRAY5_SHARE * runs
            outcome.check(f"{shape}: gray5 healed in 2 s in 19 of 20", good, f"{fast} of {runs}")
        gaps = {fault: row["heal gap max"] for fault, row in found.items() if "heal gap max" in row}
        outcome.check(f"{shape}: no gap when it heals", not any(gaps.values()), gaps)
        whole_ = found["whole"]
        expired, spent = whole_["TTL exceeded"], whole_["CPU % of a core"]
        outcome.check(f"{shape}: no packet went in circles", expired == 0, expired)
        if shape == "ring6c" and spent is not None:
            outcome.check("six nodes take at most 5 % of a core", spent <= CPU_PERCENT, spent)


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """Every shape, every protocol, every fault."""
    given = os.environ.get("X0_FAILOVER_BENCH", "")
    if not Path(given).is_file():
        outcome.check("the harness is there (X0_FAILOVER_BENCH names it)", False, given or "unset")
        return
    harness = load(Path(given).resolve(), root)
    have = [name for name, program in PEERS.items() if shutil.which(program)]
    outcome.figure("peers", have)
    outcome.figure("peers missing", [name for name in PEERS if name not in have])
    wanted = options.protos.split(",") if options.protos else [OURS, *have]
    lines = root / "lines.jsonl"
    with contextlib.chdir(root):
        for shape in options.shapes.split(","):
            for proto in wanted:
                expired: list[int] = []
                harness.Net = counting(harness, expired)
                lines.unlink(missing_ok=True)
                try:
                    harness.run(
                        argparse.Namespace(
                            topo=shape, proto=proto, runs=options.runs, steady=options.steady,
                            faults=",".join(FAULTS[f] for f in options.faults.split(",")),
                            wire=True, tag=f"x{os.getpid()}-", out=str(lines),
                        )
                    )  # fmt: skip
                except (X0Error, OSError, RuntimeError, AssertionError) as error:
                    outcome.check(f"{shape} {proto}: run to its end", False, error)
                rows = [json.loads(line) for line in lines.read_text().splitlines()]
                name = f"{shape} {proto}"
                kept = outcome.figures.get(name, {})
                outcome.figure(name, {**kept, **summary(rows, sum(expired))})
                wrong = [r for r in rows if "error" in r or r.get("converged_s", 0) is None]
                outcome.check(f"{shape} {proto}: every run counts", not wrong, wrong[:2])
    judge(outcome)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="outage of UDP probes beside routing daemons")
    words.add_argument("--runs", type=int, default=10)
    words.add_argument("--shapes", default="ring6c,grid4,diamond")
    words.add_argument("--faults", default=",".join(FAULTS))
    words.add_argument("--protos", default="", help="ours and names of the harness; all known")
    words.add_argument("--steady", type=float, default=15.0, help="seconds of CPU and bytes")
    return words


def main() -> int:
    """Command line."""
    if os.geteuid() != 0:
        raise Unavailable("X0-LAB-003", "network namespaces need root", "run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return run("failover", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
