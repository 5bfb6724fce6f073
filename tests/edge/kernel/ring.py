"""Hosts in namespaces with kernel routes between them, all driven by one test."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

from tests.edge.kernel.space import Space, Spaces, link_local
from x0tta6bl4.core.routing.alternates import Alternates
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink
from x0tta6bl4.edge.kernel.routes import Course, Done, Exit, KernelRoutes, course_of
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.edge.kernel.watch import GROUPS, Watch
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import link_address, mesh_address, mesh_prefix
from x0tta6bl4.wire.records import Adjacency

DOMAIN = TrustDomain("example.org")
PREFIX = mesh_prefix(DOMAIN)


def address(name: str) -> bytes:
    return mesh_address(DOMAIN, NodeName(name)).packed


def link(node: str, neighbour: str) -> bytes:
    return link_address(DOMAIN, NodeName(node), NodeName(neighbour)).packed


class Host:
    """A namespace with the routes of one node."""

    def __init__(self, name: str, space: Space, stack: ExitStack, state: Path | None) -> None:
        self.name, self.space = name, space
        self.exits: dict[str, Exit] = {}
        self.macs: dict[tuple[int, bytes], bytes] = {}
        self.table = Alternates(name)
        self._stack, self._state = stack, state
        self.begin()

    def begin(self) -> None:
        """As an agent does when it starts; also after another one has died."""
        with self.space:
            self.netlink, monitor = Netlink(5), Monitor(*GROUPS)
            self.sysctls = Sysctls(self._state)
        self._stack.callback(self.netlink.close)
        self._stack.callback(monitor.close)
        self.routes = KernelRoutes(self.netlink, PREFIX, address(self.name))
        self.watch = Watch(self.netlink, monitor, self.sysctls, PREFIX, source_routes=True)
        self.found = self.routes.start()
        self.use()

    def use(self) -> None:
        """The mesh's interfaces are those of the cables."""
        mesh = {exit.index for exit in self.exits.values()}
        with self.space:
            self.watch.use(link for link in self.routes.links.values() if link.index in mesh)
        assert self.routes.settle(self.macs) == []
        self.lead()

    def lead(self) -> None:
        """Let others' source routes name the cables."""
        links = {link(self.name, o): (link(o, o), exit) for o, exit in self.exits.items()}
        assert self.routes.lead(links) == []

    def courses(self) -> dict[bytes, Course]:
        self.table.update()
        while self.table.unrepaired:
            self.table.repair()
        found = {
            address(node): course_of(DOMAIN, way, self.exits, source_routes=True)
            for node, way in self.table.ways.items()
        }
        return {node: course for node, course in found.items() if course is not None}

    def apply(self) -> Done:
        done = self.routes.apply(self.courses())
        assert not done.refused, done
        return done

    def check(self) -> list[str]:
        """Ids of what the watch finds: switches are those of the thread's namespace."""
        with self.space:
            return [finding.id for finding in self.watch.check()]

    def udp(self) -> socket.socket:
        """A socket at the mesh address."""
        with self.space:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._stack.callback(sock.close)
        sock.bind((str(IPv6Address(address(self.name))), 9))
        sock.settimeout(5)
        return sock


class Ring(ExitStack):
    """Hosts joined by cables; everybody knows the map, and has no routes before `settle`."""

    def __init__(self, *links: tuple[str, str], state: Path | None = None) -> None:
        super().__init__()
        self._spaces = self.enter_context(Spaces())
        self.links = dict.fromkeys(links, 16)
        self.hosts: dict[str, Host] = {}
        names = sorted({name for link in links for name in link})
        spaces = {name: self._spaces.add() for name in names}
        for a, b in links:
            spaces[a].wire(f"to-{b}", spaces[b], f"to-{a}")
        for name in names:
            file = state / f"{name}.sysctls" if state else None
            self.hosts[name] = Host(name, spaces[name], self, file)
        for link in links:
            for here, there in (link, link[::-1]):
                self._plug(self.hosts[here], there, spaces[there].mac(f"to-{here}"))
        for host in self.hosts.values():
            host.use()
        self.tell()

    def _plug(self, host: Host, other: str, mac: bytes) -> None:
        exit = Exit(host.space.index(f"to-{other}"), link_local(mac).packed)
        host.exits[other] = exit
        host.macs[exit.neighbour] = mac

    def tell(self, *to: str) -> None:
        """These hosts (all) learn the map as it is."""
        for name in to or self.hosts:
            for node in self.hosts:
                near = {
                    (set(link) - {node}).pop(): cost
                    for link, cost in self.links.items()
                    if node in link
                }
                said = [Adjacency(other, cost, True) for other, cost in near.items()]
                self.hosts[name].table.say(node, said)

    def settle(self) -> None:
        for host in self.hosts.values():
            host.apply()
