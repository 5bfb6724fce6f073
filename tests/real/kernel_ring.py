"""Four hosts in a ring whose kernels pass data on, as real processes: for tests.

   b          authority and reader at a, the service at d; every cable is a veth pair, every
 /   \\        host a network namespace
a     d
 \\   /
   c
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import ClassVar

from tests.real.kernel_mesh import LOCAL, KernelMesh, OwnMounts, Plane, Shape
from tests.real.lab import get_page
from x0tta6bl4.app.kernel_modes import Xdp
from x0tta6bl4.app.mesh import wait_for

__all__ = ["CABLES", "IPS", "LOCAL", "KernelRing", "OwnMounts", "Plane", "Requests"]
IPS = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "d": "10.0.0.4"}
CABLES = (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))


class KernelRing(KernelMesh):
    """The picture above, running.

    Args:
        hosts: namespaces `a` to `d`.
        root: for files, 0700.
        planes: of nodes that are not in kernel mode.
    """

    ips: ClassVar[dict[str, str]] = IPS
    cables: ClassVar[tuple[tuple[str, str], ...]] = CABLES
    server_at: ClassVar[str] = "d"
    xdp: ClassVar[Xdp] = "auto"

    def __init__(self, hosts: OwnMounts, root: Path, page: Path, **planes: Plane) -> None:
        services = {"web": self.server_at}
        shape = Shape(self.ips, self.cables, services, ("a",), "a", planes, self.xdp)
        super().__init__(hosts, root, page, shape)
        self.prepare()
        self.untouched = self.switches("c")
        self.serve()
        self.server = self.servers["web"]
        self.start()
        self.mesh.wait_ready(*self.ips)
        wait_for(self.serves, "the service", 10)

    def prepare(self) -> None:
        """What is done to the cables before anything is started."""

    def serves(self) -> bool:
        """Whether a request at `a` is answered."""
        return self.gets("a", "web")

    def left(self, name: str) -> list[str]:
        """What the kernel of a host has of ours."""
        found = []
        for command in (
            "ip -6 route show proto 120", "ip nexthop show proto 120", "ip -br link show type veth",
            "ip -6 neigh show proto 120", "ip -6 addr show dev lo scope global",
        ):  # fmt: skip
            lines = self.hosts.run(name, *command.split()).stdout.splitlines()
            found += [line for line in lines if "to-" not in line or "proto" in command]
        for other in self.ips:
            shown = self.hosts.run(name, "tc", "filter", "show", "dev", f"to-{other}", "ingress",
                                   check=False).stdout  # fmt: skip
            found += shown.splitlines()
        return found

    def switches(self, name: str) -> list[str]:
        """What the kernel of a host says of the switches that forwarding takes."""
        names = ["net.ipv6.conf.all.forwarding", "net.ipv6.conf.all.seg6_enabled",
                 "net.ipv4.nexthop_compat_mode"]  # fmt: skip
        return self.hosts.run(name, "sysctl", *names).stdout.splitlines()


class Requests:
    """One request after the other at `a`, each on a connection of its own, while the block runs."""

    def __init__(self, ring: KernelRing) -> None:
        self._ring = ring
        self.done = self.failed = 0
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        page = self._ring.page.read_bytes()
        with self._ring.space("a"):
            while not self._stop.is_set():
                began = time.monotonic()
                same = get_page(("127.0.0.1", LOCAL)) == page
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.done += 1
                self.failed += not same

    def wait(self, more: int, seconds: float = 10.0) -> None:
        """Until so many more have been answered."""
        until, end = self.done + more, time.monotonic() + seconds
        while self.done < until:
            assert time.monotonic() < end, f"{self.done} of {until} answered"
            self._stop.wait(0.01)
