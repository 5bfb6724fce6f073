"""Four hosts in a ring whose kernels pass data on, as real processes: for tests.

   b          authority and reader at a, the service at d; every cable is a veth pair, every
 /   \\        host a network namespace
a     d
 \\   /
   c
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Literal

from tests.edge.kernel.space import Named
from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh, join
from tests.real.hosts import Hosts
from tests.real.lab import ServerProcess, get_page
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.records import Name

IPS = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "d": "10.0.0.4"}
CABLES = (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))
SERVICE, LOCAL, METRICS = 8000, 8080, 9100
Plane = Literal["userspace", "kernel", "auto"]


class OwnMounts(Hosts):
    """Hosts whose processes keep the mounts of this one, as those of a real host do."""

    def start(
        self, name: str, *command: str, log: Path | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """See `Hosts.start`."""
        net = f"--net=/run/netns/{self.space(name)}"
        return self.start_as(("nsenter", net, *command), log, **more)


class KernelRing:
    """The picture above, running.

    Args:
        hosts: namespaces `a` to `d`.
        root: for files, 0700.
        planes: of nodes that are not in kernel mode.
    """

    ips, cables, server_at = IPS, CABLES, "d"

    def __init__(self, hosts: Hosts, root: Path, page: Path, **planes: Plane) -> None:
        self.hosts, self.page = hosts, page
        for one, other in self.cables:
            join(hosts, one, self.ips[one], other, self.ips[other])
        self.untouched = self.switches("c")
        self.mesh = HostMesh(hosts, root)
        self.server = ServerProcess(
            page, 1, ("ip", "netns", "exec", hosts.space(self.server_at)), ("--port", str(SERVICE))
        )
        self.mesh.authority("a", f"{IPS['a']}:{AUTHORITY}")
        uid = (f"unix:uid:{os.getuid()}",)
        web, reader = "spiffe://hosts.mesh/web", "spiffe://hosts.mesh/reader"
        self.mesh.operator.create_entries(
            [
                Entry(id=web, node=self.server_at, selectors=uid, address=f"127.0.0.1:{SERVICE}"),
                Entry(id=reader, node="a", selectors=uid),
            ]
        )
        self.mesh.operator.create_name(Name("web", web, (reader,)))
        for name in self.ips:
            self.mesh.node(name, self.settings(name, planes.get(name, "kernel")))
        self.mesh.wait_ready(*self.ips)
        wait_for(self.serves, "the service", 10)

    def settings(self, name: str, plane: Plane) -> cfg.NodeSettings:
        """The file of a node."""
        near = [other for cable in self.cables for other in cable if name in cable and other != name]
        direct = name == "a" or "a" in near
        through = () if direct else tuple(f"{self.ips[other]}:{DATA}" for other in near)
        return cfg.NodeSettings(
            trust_domain="",
            node=name,
            state_dir="",
            authority=cfg.AuthorityAt(
                address=f"{self.ips['a']}:{AUTHORITY}" if direct else "", through=through
            ),
            data=cfg.Data(
                listen=f"0.0.0.0:{DATA}", advertise=(f"{self.ips[name]}:{DATA}",), plane=plane
            ),
            control=cfg.Control(listen=f"0.0.0.0:{CONTROL}"),
            link=tuple(
                cfg.Link(node=other, address=f"{self.ips[other]}:{CONTROL}" if other > name else "")
                for other in near
            ),
            listen=(cfg.Listen(address=f"127.0.0.1:{LOCAL}", kind="plain", name="web"),)
            if name == "a"
            else (),
            metrics=cfg.Metrics(listen=f"127.0.0.1:{METRICS}"),
        )

    def serves(self) -> bool:
        """Whether a request at `a` is answered."""
        with self.space("a"):
            return get_page(("127.0.0.1", LOCAL)) == self.page.read_bytes()

    def space(self, name: str) -> Named:
        """To move this thread into a host."""
        return Named(self.hosts.space(name))

    def cut(self, one: str, other: str, *, one_in: int = 1) -> None:
        """Drop silently what comes over a cable, or some of it, both ways."""
        drop = lossy_program(one_in)
        for here, there in ((one, other), (other, one)):
            with self.space(here):
                Libbpf().attach_xdp(socket.if_nametoindex(f"to-{there}"), drop)
        os.close(drop)

    def heal(self, one: str, other: str) -> None:
        """Drop nothing any more."""
        for here, there in ((one, other), (other, one)):
            with self.space(here):
                Libbpf().detach_xdp(socket.if_nametoindex(f"to-{there}"))

    def counter(self, name: str, key: str) -> int:
        """A counter of a node."""
        return self.mesh.status(name).counters.get(key, 0)

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


def lossy_program(one_in: int) -> int:
    """An XDP program that drops one packet in so many, at random: r0 = prandom % one_in; ..."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lines = (
        (0x85, 0, 0, 7), (0x97, 0, 0, one_in), (0x55, 0, 2, 0), (0xB7, 0, 0, 1), (0x95, 0, 0, 0),
        (0xB7, 0, 0, 2), (0x95, 0, 0, 0),
    )  # fmt: skip
    code = b"".join(struct.pack("<BBhi", *line) for line in lines)
    program: int = library.bpf_prog_load(
        6, b"lossy", b"GPL", code, ctypes.c_size_t(len(lines)), None
    )
    assert program >= 0, ctypes.get_errno()
    return program


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
