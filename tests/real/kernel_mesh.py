"""Hosts joined by cables, a node on each, their data in user space or in the kernel: for tests.

Every host is a network namespace, every cable a veth pair, every node a real agent and proxy with a
file of its own, as an operator would write it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Self, final

import msgspec

from tests.edge.kernel.space import named
from tests.real.host_mesh import AUTHORITY, CONTROL, DATA, HostMesh, join
from tests.real.hosts import Hosts
from tests.real.lab import ServerProcess, get_page
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.kernel_modes import Xdp
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.records import Name

SERVICE, LOCAL, METRICS = 8000, 8080, 9100
START_S, LOOK_S = 60.0, 0.2
Plane = Literal["userspace", "kernel", "auto"]


class OwnMounts(Hosts):
    """Hosts whose processes keep the mounts of this one, as those of a real host do."""

    def start(
        self, name: str, *command: str, log: Path | None = None, **more: object
    ) -> subprocess.Popen[bytes]:
        """See `Hosts.start`."""
        net = f"--net=/run/netns/{self.space(name)}"
        return self.start_as(("nsenter", net, *command), log, **more)


@final
class Shape(msgspec.Struct, frozen=True):
    """What a mesh of hosts consists of."""

    ips: dict[str, str]
    """One address of each host, on all its cables."""
    cables: tuple[tuple[str, str], ...]
    services: dict[str, str]
    """Name of a service -> its host; each host has at most one."""
    callers: tuple[str, ...]
    """Where programs call them, as `reader`, or as the service that is there."""
    authority: str
    planes: dict[str, Plane] = {}
    """Of nodes that are not in kernel mode."""
    xdp: Xdp = "auto"
    """Of all nodes."""

    def near(self, host: str) -> list[str]:
        """Hosts with a cable to this one."""
        return [x for cable in self.cables for x in cable if host in cable and x != host]

    def waves(self) -> list[str]:
        """All hosts, those near the authority first: the others enrol through them."""
        found, todo = {self.authority: None}, deque([self.authority])
        while todo:
            fresh = [host for host in self.near(todo.popleft()) if host not in found]
            found |= dict.fromkeys(fresh)
            todo.extend(fresh)
        return list(found)


class KernelMesh:
    """Hosts, cables, authority, services and nodes.

    A context: at its end nothing of the nodes is left; the hosts are their owner's.

    Args:
        hosts: those of the shape.
        root: for files, 0700.
        page: what every service answers.
        shape: what to build.
    """

    def __init__(self, hosts: Hosts, root: Path, page: Path, shape: Shape) -> None:
        self.hosts, self.page, self.shape = hosts, page, shape
        self.servers: dict[str, ServerProcess] = {}
        for one, other in shape.cables:
            join(hosts, one, shape.ips[one], other, shape.ips[other])
        self.mesh = HostMesh(hosts, root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs and unmount what killed nodes have left."""
        for server in self.servers.values():
            server.stop()
        for host in self.shape.ips:
            self.mesh.kill(host)
        for pins in self.mesh.root.glob("*/bpf"):
            subprocess.run(["umount", pins], check=False, capture_output=True, timeout=20)

    # ------------------------------------------------------------------ starting
    def serve(self) -> None:
        """Start services and authority, and say who may call what."""
        shape = self.shape
        self.mesh.authority(shape.authority, f"{shape.ips[shape.authority]}:{AUTHORITY}")
        uid = (f"unix:uid:{os.getuid()}",)
        entries = []
        for name, host in shape.services.items():
            before = ("ip", "netns", "exec", self.hosts.space(host))
            self.servers[name] = ServerProcess(self.page, 1, before, ("--port", str(SERVICE)))
            entries.append(
                Entry(id=_id(name), node=host, selectors=uid, address=f"127.0.0.1:{SERVICE}")
            )
        plain = [host for host in shape.callers if host not in shape.services.values()]
        entries += [Entry(id=_id("reader"), node=host, selectors=uid) for host in plain]
        self.mesh.operator.create_entries(entries)
        for name in shape.services:
            others = [other for other in shape.services if other != name]
            callers = tuple(map(_id, ["reader", *others]))
            self.mesh.operator.create_name(Name(name, _id(name), callers))

    def start(self, at_once: int = 4, seconds: float = START_S) -> None:
        """Start all nodes, those near the authority first, and wait until each has said `ready`.

        Args:
            at_once: nodes on their way at any moment.
            seconds: for one node.
        """
        todo, under_way = deque(self.shape.waves()), dict[str, float]()
        while todo or under_way:
            while todo and len(under_way) < at_once:
                host = todo.popleft()
                under_way[host] = time.monotonic() + seconds
                plane = self.shape.planes.get(host, "kernel")
                self.mesh.node(host, self.settings(host, plane))
            for host, end in list(under_way.items()):
                if self.state(host) == "ready":
                    del under_way[host]
                elif time.monotonic() > end:
                    raise Unavailable("X0-LAB-001", f"{host} is late:\n{self.mesh.tail(host)}")
            time.sleep(LOOK_S)

    def settings(self, name: str, plane: Plane) -> cfg.NodeSettings:
        """The file of a node."""
        shape = self.shape
        near, ips = shape.near(name), shape.ips
        direct = name == shape.authority or shape.authority in near
        through = () if direct else tuple(f"{ips[other]}:{DATA}" for other in near)
        order = list(ips)
        return cfg.NodeSettings(
            trust_domain="",
            node=name,
            state_dir="",
            authority=cfg.AuthorityAt(
                address=f"{ips[shape.authority]}:{AUTHORITY}" if direct else "", through=through
            ),
            data=cfg.Data(
                listen=f"0.0.0.0:{DATA}",
                advertise=(f"{ips[name]}:{DATA}",),
                plane=plane,
                xdp=shape.xdp,
            ),
            control=cfg.Control(listen=f"0.0.0.0:{CONTROL}"),
            link=tuple(
                cfg.Link(
                    node=other,
                    address=f"{ips[other]}:{CONTROL}"
                    if order.index(other) > order.index(name)
                    else "",
                )
                for other in near
            ),
            listen=tuple(
                cfg.Listen(address=f"127.0.0.1:{LOCAL + at}", kind="plain", name=service)
                for at, (service, host) in enumerate(shape.services.items())
                if name in shape.callers and name != host
            ),
            metrics=cfg.Metrics(listen=f"127.0.0.1:{METRICS}"),
        )

    # ------------------------------------------------------------------ looking
    def state(self, name: str) -> str:
        """What a node says it is; empty: nothing yet."""
        try:
            return self.mesh.status(name).state
        except X0Error:
            return ""

    def local(self, service: str) -> tuple[str, int]:
        """Where programs of a host reach a service."""
        return "127.0.0.1", LOCAL + list(self.shape.services).index(service)

    def gets(self, name: str, service: str) -> bool:
        """Whether a request at a host is answered, on a connection of its own."""
        with self.space(name):
            return get_page(self.local(service)) == self.page.read_bytes()

    def space(self, name: str) -> AbstractContextManager[None]:
        """To move this thread into a host."""
        return named(self.hosts.space(name))

    def counter(self, name: str, key: str) -> int:
        """A counter of a node."""
        return self.mesh.status(name).counters.get(key, 0)

    def kernel_links(self, name: str) -> dict[str, bool]:
        """Whether the kernel forwards over the links that both ends have offered it for."""
        head = "kernel_link_up|"
        counters = self.mesh.status(name).counters
        return {key[len(head) :]: bool(n) for key, n in counters.items() if key.startswith(head)}

    def wait_kernels(self, names: Iterable[str], seconds: float = 15) -> None:
        """Wait until kernels forward over every link between nodes in kernel mode."""
        kernels = {n for n in self.shape.ips if self.shape.planes.get(n, "kernel") == "kernel"}
        for name in names:
            near = {other for other in self.shape.near(name) if other in kernels}

            def forwards(name: str = name, near: set[str] = near) -> bool:
                links = self.kernel_links(name)
                return near <= links.keys() and all(links[other] for other in near)

            if name in kernels:
                wait_for(forwards, f"the kernel of {name} to forward", seconds)

    # ------------------------------------------------------------------ hurting
    def cut(self, one: str, other: str, *, one_in: int = 1) -> None:
        """Drop silently what comes over a cable, or some of it, both ways."""
        self._drop([(one, other)], lossy_program(one_in))

    def heal(self, one: str, other: str) -> None:
        """Drop nothing any more."""
        for here, there in ((one, other), (other, one)):
            with self.space(here):
                Libbpf().detach_xdp(socket.if_nametoindex(f"to-{there}"))

    def blink(self, cables: Sequence[tuple[str, str]], seconds: float) -> None:
        """Drop silently what comes over cables, at one moment and for so long."""
        begin = time.monotonic() + 0.2
        self._drop(cables, blinking_program(begin, begin + seconds))
        assert time.monotonic() < begin
        time.sleep(max(begin + seconds - time.monotonic(), 0))
        for one, other in cables:
            self.heal(one, other)

    def _drop(self, cables: Sequence[tuple[str, str]], drop: int) -> None:
        for here, there in itertools.chain.from_iterable(((a, b), (b, a)) for a, b in cables):
            with self.space(here):
                Libbpf().attach_xdp(socket.if_nametoindex(f"to-{there}"), drop)
        os.close(drop)


_Line = tuple[int, int, int, int]
_DROP_OR_PASS: tuple[_Line, ...] = (
    (0xB7, 0, 0, 1), (0x95, 0, 0, 0), (0xB7, 0, 0, 2), (0x95, 0, 0, 0),
)  # fmt: skip


def lossy_program(one_in: int) -> int:
    """An XDP program that drops one packet in so many, at random: r0 = prandom % one_in; ..."""
    return _program(((0x85, 0, 0, 7), (0x97, 0, 0, one_in), (0x55, 0, 2, 0), *_DROP_OR_PASS))


def blinking_program(begin: float, end: float) -> int:
    """One that drops all from one second of CLOCK_MONOTONIC to another: r0 = ktime; r1 = ..."""

    def second(at: float) -> tuple[_Line, _Line]:
        ns = int(at * 1e9)
        return (0x18, 1, 0, ns & 0x7FFFFFFF | -(ns & 0x80000000)), (0, 0, 0, ns >> 32)

    return _program(
        ((0x85, 0, 0, 5), *second(begin), (0xAD, 0x10, 5, 0), *second(end), (0x3D, 0x10, 2, 0),
         *_DROP_OR_PASS)
    )  # fmt: skip


def _program(lines: Sequence[_Line]) -> int:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    code = b"".join(struct.pack("<BBhi", *line) for line in lines)
    program: int = library.bpf_prog_load(
        6, b"lossy", b"GPL", code, ctypes.c_size_t(len(lines)), None
    )
    assert program >= 0, ctypes.get_errno()
    return program


def _id(workload: str) -> str:
    return f"spiffe://hosts.mesh/{workload}"
