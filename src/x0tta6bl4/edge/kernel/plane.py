"""The kernel's part of forwarding as one thing: told ways and neighbours, it keeps routes as told.

    WaysChanged                  table      the socket is readable     ready
    LinkDown, LinkUp, verdicts   cut        every LOOK_EVERY_S         look

Who starts while an earlier process's routes are at work has not heard of every node yet; a table
from half a map would send packets astray, so the old one stands until `settle`.  Nothing in here
waits for anything but the kernel's answers.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.core.routing.alternates import Way
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.detector import Alternate
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink, Refusal
from x0tta6bl4.edge.kernel.routes import TARGETS_MAX, Course, Done, Exit, KernelRoutes, course_of
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.edge.kernel.watch import GROUPS, Watch
from x0tta6bl4.wire.admin import Finding
from x0tta6bl4.wire.errors import Conflict, Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import is_node, link_address, mesh_address, mesh_prefix

LOOK_EVERY_S: Final = 30
REFUSED_MAX: Final = 8
"""Refusals told at once."""
_AGAIN: Final = "it is tried again; the log of the kernel may say more (dmesg)"


@final
class Adjacent(Value, frozen=True):
    """A neighbour on an interface of this host."""

    node: NodeName
    index: int
    """Of the interface."""
    address: bytes
    """Its IPv6 address there, 16 bytes, best the link-local one."""
    mac: bytes
    """6 bytes."""


@final
class Interface(Value, frozen=True):
    """An interface on which a neighbour is adjacent."""

    index: int
    name: str
    local: bytes
    """Its link-local address, 16 bytes."""
    mac: bytes
    mtu: int


class Plane:
    """Routes of one node in this network namespace.

    Args:
        domain: trust domain.
        me: this node.
        switches: file for what switches of the kernel said before, 0600; None: none.
    Raises:
        Unavailable: X0-KRN-100 no rtnetlink here; X0-KRN-121 the file can't be read.
    """

    __slots__ = (
        "_addresses", "_adjacent", "_courses", "_domain", "_exits", "_held", "_me", "_monitor",
        "_netlink", "_own", "_refused", "_routes", "_source_routes", "_watch", "_ways",
    )  # fmt: skip

    def __init__(self, domain: TrustDomain, me: NodeName, switches: Path | None) -> None:
        self._domain, self._me = domain, me
        sysctls = Sysctls(switches)
        self._netlink = Netlink()
        self._monitor = Monitor(*GROUPS)
        prefix = mesh_prefix(domain)
        self._own = mesh_address(domain, me).packed
        self._routes = KernelRoutes(self._netlink, prefix, self._own)
        self._watch = Watch(self._netlink, self._monitor, sysctls, prefix, source_routes=True)
        self._adjacent: tuple[Adjacent, ...] = ()
        self._exits: dict[str, Exit] = {}
        self._ways: dict[str, Way] = {}
        self._courses: dict[Way, Course | None] = {}
        """Of ways, as long as neighbours are the same."""
        self._addresses: dict[str, tuple[IPv6Address, bytes]] = {}
        self._held = False
        self._source_routes = True
        self._refused: list[Refusal] = []

    @property
    def nodes(self) -> Iterable[str]:
        """Nodes to which ways have been told."""
        return self._ways.keys()

    @property
    def targets(self) -> Iterable[IPv6Address]:
        """Nodes' mesh addresses to which there is a route."""
        return (IPv6Address(one) for one in self._routes.targets if is_node(one))

    def address(self, node: str) -> IPv6Address:
        """Mesh address of a node."""
        return self._address(node)[0]

    def _address(self, node: str) -> tuple[IPv6Address, bytes]:
        found = self._addresses.get(node)
        if found is None:
            if len(self._addresses) >= TARGETS_MAX:
                self._addresses.clear()
            address = mesh_address(self._domain, NodeName(node))
            found = self._addresses[node] = address, address.packed
        return found

    def towards(self, there: str) -> Interface | None:
        """The interface on which an address is adjacent; None: it is here, or behind a router.

        Raises:
            Unavailable: the kernel does not answer.
            ValueError: this is no address.
        """
        address = ip_address(there)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        netlink = self._netlink
        way = netlink.get("a route", rt.GET_ROUTE, rt.look_up(address.packed))
        index = rt.read_adjacent(way) if way is not None else 0
        told = netlink.get("an interface", rt.GET_LINK, rt.link(index)) if index else None
        link = rt.read_link(told) if told is not None else None
        if link is None or len(link.mac) != 6:
            return None
        for one in netlink.dump("addresses", rt.GET_ADDRESS, rt.addresses(index)):
            at = rt.read_address(one)
            if at is not None and at.index == index and IPv6Address(at.address).is_link_local:
                return Interface(index, link.name, at.address, link.mac, link.mtu)
        return None

    def fileno(self) -> int:
        """For a selector: when it is readable, call `ready`."""
        return self._monitor.fileno()

    def be_alone(self) -> None:
        """See that no other node is in this network namespace; nothing is changed.

        Raises:
            Conflict: X0-KRN-148 there is one.
            Unavailable: the kernel does not answer.
        """
        self._routes.be_alone()

    def start(self, adjacent: Iterable[Adjacent]) -> bool:
        """Begin, with these neighbours.

        Returns:
            Whether an earlier process's table stands, so that `settle` is to follow.
        Raises:
            Conflict: X0-KRN-148 another node's routes are in this network namespace.
            Unavailable: the kernel refuses (X0-KRN-103, X0-KRN-120) or does not answer.
        """
        self._held = self._routes.start() > 0
        self.neighbours(adjacent)
        return self._held

    def neighbours(self, adjacent: Iterable[Adjacent]) -> None:
        """These are the neighbours now, all of them.

        Raises:
            Unavailable: as `start`.
        """
        self._adjacent = tuple(adjacent)
        exits: dict[str, Exit] = {x.node: Exit(x.index, x.address) for x in self._adjacent}
        was, self._exits = self._exits, exits
        self._routes.follow(
            {exit.neighbour: exits[node].neighbour for node, exit in was.items() if node in exits}
        )
        mesh = {one.index for one in self._adjacent}
        self._routes.look_at_links()
        self._watch.use(link for index, link in self._routes.links.items() if index in mesh)
        self._lay_out()
        if not self._held:
            self._note(self._routes.apply(self._whole_table()))

    def table(self, ways: Mapping[str, Way | None]) -> Done:
        """Ways that changed, by node; None: there is none any more."""
        for node, way in ways.items():
            if way is None:
                self._ways.pop(node, None)
            else:
                self._ways[node] = way
        if self._held:
            return Done()
        return self._note(self._routes.change(self._table(ways)))

    def settle(self) -> Done:
        """Everything that can be known is known: what was not told again goes."""
        self._held = False
        return self._note(self._routes.apply(self._whole_table()))

    def cut(self, node: str, off: bool) -> Done:
        """A neighbour is out of reach, or in reach again; at once, before any table says so."""
        exit = self._exits.get(node)
        return self._note(self._routes.cut(exit.neighbour, off)) if exit else Done()

    def alternates(self) -> dict[str, list[Alternate]]:
        """For the detector: where data goes while the link to each neighbour is dead.

        The same as in the routes: by the alternate's hardware address, or along the source route.
        Before `settle` what the detector has from an earlier process is better.
        """
        macs = {(one.index, one.address): one.mac for one in self._adjacent}
        found: dict[str, list[Alternate]] = {one.node: [] for one in self._adjacent}
        for node, course in self._courses_of(self._ways):
            if course is not None and (exit := course[1]) is not None:
                mac, source = macs[exit.neighbour], self._own if exit.segments else b""
                found[self._ways[node].hop].append(
                    Alternate(self.address(node), exit.index, mac, exit.segments, source)
                )
        return found

    def ready(self) -> Done:
        """Something has changed in the kernel: follow it."""
        seen = self._watch.read()
        if seen.routes:
            self._routes.start()
        elif seen.links:
            self._routes.look_at_links()
        else:
            return Done()
        return self._mend(laid_out=not seen.links)

    def carries(self, index: int) -> bool:
        """Whether an interface has IPv6."""
        return self._watch.carries(index)

    def gone(self, index: int) -> bool:
        """Whether an interface of the mesh is no more."""
        return self._watch.gone(index)

    def works(self, index: int) -> bool:
        """Whether `look` finds nothing wrong with an interface."""
        return self._watch.works(index)

    def hold(self) -> None:
        """Set switches again that somebody has set; cheap, for once a second."""
        self._watch.hold()

    def look(self) -> list[Finding]:
        """Compare all there is with what is wanted, put it right, and say what is wrong."""
        self._refused = []
        found = self._watch.check()
        try:
            self._routes.start()
        except Conflict as error:
            return [Finding(error.id, "error", error.what, error.hint), *found]
        except Unavailable as error:
            if not found:
                found.append(Finding("X0-KRN-140", "error", error.what, error.hint or _AGAIN))
            return found
        self._mend(laid_out=False)
        self._routes.tidy()
        if not self._source_routes:
            found.append(
                Finding("X0-KRN-139", "notice", "this kernel has no segment routing",
                        "links without a loop-free alternate wait for the map when they fail")
            )  # fmt: skip
        found += [
            Finding("X0-KRN-140", "error", f"the kernel refuses a route: {refusal}", _AGAIN)
            for refusal in self._refused[:1]
            if not any(one.level == "error" for one in found)  # That is why.
        ]  # fmt: skip
        return found

    def stop(self) -> list[str]:
        """Leave nothing behind.

        Returns:
            What is left, in words.
        """
        left = [str(refusal) for refusal in self._routes.stop()]
        left += self._watch.restore()
        self.close()
        return left

    def close(self) -> None:
        """Give the sockets back; routes stay at work."""
        self._netlink.close()
        self._monitor.close()

    def _whole_table(self) -> dict[bytes, Course]:
        table = self._table(self._ways)
        return {target: course for target, course in table.items() if course is not None}

    def _table(self, ways: Mapping[str, Way | None]) -> dict[bytes, Course | None]:
        known = self._addresses
        return {
            (known.get(node) or self._address(node))[1]: course
            for node, course in self._courses_of(ways)
        }

    def _courses_of(self, ways: Mapping[str, Way | None]) -> Iterator[tuple[str, Course | None]]:
        """Courses of ways by node, None where there is none: one object for all that have the same.

        There are many nodes and few ways, and hashing a way takes longer than writing a route.
        """
        seen: dict[int, Course | None] = {id(None): None}
        for node, way in ways.items():
            if way is not None and id(way) not in seen:
                seen[id(way)] = self._course(way)
            yield node, seen[id(way)]

    def _course(self, way: Way) -> Course | None:
        known = self._courses
        if way not in known:
            if len(known) >= TARGETS_MAX:
                known.clear()
            known[way] = course_of(
                self._domain, way, self._exits, source_routes=self._source_routes
            )
        return known[way]

    def _lay_out(self) -> None:
        """Neighbours for good, and links that source routes can name."""
        self._courses.clear()
        macs = {(one.index, one.address): one.mac for one in self._adjacent}
        links = self._routes.links
        mtus = [links[one.index].mtu for one in self._adjacent if one.index in links]
        if mtus:
            self._routes.fit(min(mtus))
        self._refused += self._routes.settle(macs)
        if self._source_routes:
            named = {
                link_address(self._domain, self._me, one.node).packed: (
                    link_address(self._domain, one.node, one.node).packed,
                    self._exits[one.node],
                )
                for one in self._adjacent
            }
            refused = self._routes.lead(named)
            self._source_routes = all(one.code != errno.EOPNOTSUPP for one in refused)

    def _mend(self, *, laid_out: bool) -> Done:
        if not laid_out:
            self._lay_out()
        return Done() if self._held else self._note(self._routes.mend())

    def _note(self, done: Done) -> Done:
        self._refused += done.refused[: max(REFUSED_MAX - len(self._refused), 0)]
        return done
