"""Our nodes as a protocol of the harness of `bench.failover`: one in each of its namespaces.

The authority is in the first namespace, where a program calls the service `echo` of the last one.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bench.requests import RATE
from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh
from tests.real.kernel_ring import OwnMounts
from tests.real.lab import cpu_s, rss_kb
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address
from x0tta6bl4.wire.records import Name

KERNEL: Final = "x0-kernel"
USERSPACE: Final = "x0-userspace"
DOMAIN: Final = "bench.mesh"
ECHO, LOCAL = 9000, 9001
"""Ports: of the service, and of the listener that leads to it."""
WAIT_S: Final = 6.0
"""A fault that has not been mended by then never is; of all protocols."""
LINK_SETTLE_S, NODE_SETTLE_S = 3.5, 7.0
"""A link is held for 2 s before it is used again; a node has to start first."""


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
    """What the harness asks of a protocol.

    Args:
        net: of the harness.
        work: directory for files.
    """

    name, plane = KERNEL, "kernel"
    detect, overlay, min_hops = WAIT_S, False, True
    rate = 1000
    """Probes a second."""
    echo = ("127.0.0.1", ECHO)
    """Where the service listens."""
    called_at = ("127.0.0.1", LOCAL)
    """Where programs call it."""

    def __init__(self, net: Any, work: str) -> None:
        self.net = net
        self.procs: dict[int, list[Any]] = {i: [] for i in range(net.n)}
        self._hosts = Spaces(net)
        self._mesh = HostMesh(self._hosts, Path(work).resolve() / "m", DOMAIN)
        self._laid: set[int] = set()
        self._started = 0.0

    @property
    def settle(self) -> float:
        """Seconds until what was undone is in use again."""
        return NODE_SETTLE_S if time.monotonic() < self._started + 1 else LINK_SETTLE_S

    def configure(self, i: int) -> None:
        """Routes between the addresses of neighbours."""
        for j in self.net.nbrs[i]:
            self._hosts.run(f"n{i}", "ip", "route", "add", f"{self.net.lo(j)}/32",
                            "dev", f"l{j}", "src", self.net.lo(i))  # fmt: skip

    def start(self, i: int) -> None:
        """Start a node, for the first time or again; the authority before the first."""
        name = f"n{i}"
        if not self._laid:
            self._begin()
        if i in self._laid:
            self._mesh.start(name)
        else:
            self._laid.add(i)
            self._mesh.node(name, self._settings(i))
        self._started = time.monotonic()

    def _begin(self) -> None:
        self._mesh.authority("n0", f"{self.net.lo(0)}:{AUTHORITY}")
        uid = (f"unix:uid:{os.getuid()}",)
        echo, caller = f"spiffe://{DOMAIN}/echo", f"spiffe://{DOMAIN}/caller"
        address = f"{self.echo[0]}:{self.echo[1]}"
        self._mesh.operator.create_entries(
            [
                Entry(id=echo, node=f"n{self.net.dst}", selectors=uid, address=address),
                Entry(id=caller, node=f"n{self.net.src}", selectors=uid),
            ]
        )
        self._mesh.operator.create_name(Name("echo", echo, (caller,)))

    def _settings(self, i: int) -> cfg.NodeSettings:
        net = self.net
        near = i == 0 or 0 in net.nbrs[i]
        listen = cfg.Listen(
            address=f"{self.called_at[0]}:{self.called_at[1]}", kind="plain", name="echo"
        )
        return cfg.NodeSettings(
            trust_domain="",
            node=f"n{i}",
            state_dir="",
            authority=cfg.AuthorityAt(
                address=f"{net.lo(0)}:{AUTHORITY}" if near else "",
                through=() if near else tuple(f"{net.lo(j)}:{DATA}" for j in net.nbrs[i]),
            ),
            data=cfg.Data(
                listen=f"0.0.0.0:{DATA}",
                advertise=(f"{net.lo(i)}:{DATA}",),
                plane="kernel" if self.plane == "kernel" else "userspace",
            ),
            control=cfg.Control(listen=f"0.0.0.0:{CONTROL}"),
            link=tuple(
                cfg.Link(node=f"n{j}", address=f"{net.lo(j)}:{CONTROL}" if i < j else "")
                for j in net.nbrs[i]
            ),
            listen=(listen,) if i == net.src else (),
        )

    def kill(self, i: int) -> None:
        """SIGKILL agent and proxy."""
        self._mesh.kill(f"n{i}")

    def address(self, i: int) -> str:
        """Mesh address of a node."""
        return str(mesh_address(TrustDomain(DOMAIN), NodeName(f"n{i}")))

    def ready(self) -> bool:
        """Whether all links are up, and each kernel has a route to each node if they are to."""
        return all(self._mesh.is_ready(f"n{i}") and self._leads(i) for i in range(self.net.n))

    def _leads(self, i: int) -> bool:
        said = self._hosts.run(f"n{i}", "ip", "-6", "-j", "route", check=False).stdout
        have = {route["dst"] for route in json.loads(said or "[]")}
        return all(self.address(k) in have for k in range(self.net.n) if k != i)

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


class Userspace(Ours):
    """Nodes whose proxies pass data on: there is nothing for a UDP probe to go by."""

    name, plane = USERSPACE, "userspace"
    min_hops = False
    """Sessions stay on the path that they moved to."""
    rate = RATE

    def _leads(self, i: int) -> bool:
        return True
