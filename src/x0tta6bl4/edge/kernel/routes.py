"""The kernel's routes to mesh addresses: a table is compared with what is there, and put right.

    target, metric 64 ---> next hop (primary, alternate)   its content: the primary, or while that
                                                           is cut off, the alternate
    target, metric 65 ---> next hop (alternate)            takes over by itself when the kernel
                                                           drops the first: interface down
    mesh prefix -------------------------> unreachable     what no route leads to goes nowhere else

All targets with the same primary and alternate share one next-hop object, so a failed link is
diverted by as many changes as the neighbour has alternates, however many targets there are.
Objects are replaced in place, never groups of them (that waits for all readers of the kernel), and
new ones are there before old ones go: a change leaves no gap.  Ids follow from the content, so
that who comes after a crash finds the same ones and writes only what differs.  Routes, next hops
and neighbours carry our protocol number; nobody else's are touched.

Source: linux/nexthop.h; RFC 4193 section 4.3 for the unreachable prefix; draft-ietf-rtgwg-bgp-pic
for the idea of shared next hops.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.core.routing.alternates import Way
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.netlink import Netlink, Refusal, Request
from x0tta6bl4.wire.errors import Conflict
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import link_address, mesh_address

PROTOCOL: Final = 120
"""Who has written a route: free in /etc/iproute2/rt_protos."""
METRIC: Final = 64
SECOND: Final = 65
"""Metric of the route that takes over when the first is gone."""
_METRICS: Final = (METRIC, SECOND)
"""In this order they are written: first what packets are led by."""
RTO_MIN_MS: Final = 5
"""What a cut swallows before the kernel diverts is sent again so soon (`rt.recovery`)."""
TARGETS_MAX: Final = 65_536
NEXT_HOPS_MAX: Final = 4096
"""From here on a change tidies up by itself."""
_FIRST_ID: Final = 0x78 << 24
_ID_MASK: Final = 0xFFFFFF
_LOOPBACK: Final = 1
"""Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`)."""
DETOUR_BYTES: Final = 40 + 8 + 4 * 16
"""Headers of a source route of four segments (RFC 8754 section 2): TCP leaves room for them, so
that what is on its way when a link dies fits the detour, too."""
_TCP_BYTES: Final = 40 + 20
_MTU: Final = 1500


@final
class Exit(Value, frozen=True):
    """How packets leave this host."""

    index: int
    """Of the interface."""
    gateway: bytes
    """Link-local or other IPv6 address of the neighbour there."""
    segments: tuple[bytes, ...] = ()
    """Addresses along which they are led first; empty: nobody is told how to go on."""

    @property
    def neighbour(self) -> tuple[int, bytes]:
        """Interface and address of the neighbour."""
        return self.index, self.gateway


Course = tuple[Exit, Exit | None]
"""Primary and alternate."""
_Routes = tuple[dict[bytes, int], dict[bytes, int]]
"""Id of the next hop by target: of first routes, and of second ones."""
_Moved = tuple[dict[int, list[bytes]], dict[int, list[bytes]]]
"""Targets by the id of the next hop that their first and second routes are to name; 0: none."""


@final
class Done(Value, frozen=True):
    """What a change took."""

    routes_put: int = 0
    routes_dropped: int = 0
    next_hops_put: int = 0
    refused: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.routes_put or self.routes_dropped or self.next_hops_put)


class KernelRoutes:
    """Routes to mesh addresses in this network namespace.

    Args:
        netlink: a socket in it.
        prefix: the first 6 bytes of all mesh addresses.
        own: this node's mesh address.
    """

    __slots__ = (
        "_cut", "_forms", "_hops", "_ids", "_led", "_links", "_metrics", "_netlink", "_own",
        "_owners", "_prefix", "_routes", "_stale", "_taken", "_vias", "_wanted",
    )  # fmt: skip

    def __init__(self, netlink: Netlink, prefix: bytes, own: bytes) -> None:
        self._netlink = netlink
        self._prefix = prefix + bytes(16 - len(prefix))
        self._own = own
        self._links: dict[int, rt.Link] = {}
        self._cut: dict[tuple[int, bytes], None] = {}
        """Neighbours out of reach; as bounded as neighbours are (`follow`)."""
        self._ids: dict[Course, int] = {}
        self._owners: dict[int, Course] = {}
        self._hops: dict[int, rt.NextHop] = {}
        self._taken: set[int] = set()
        """Ids of somebody else's next hops."""
        self._routes: _Routes = {}, {}
        """What the kernel has, as far as we know."""
        self._stale: tuple[set[bytes], set[bytes]] = set(), set()
        """Those of them that another version has written; they are written again."""
        self._wanted: dict[bytes, Course] = {}
        self._led: dict[bytes, Course] = {}
        """Targets that are addresses of links, not of nodes: of ours, and first segments."""
        self._vias: frozenset[bytes] = frozenset()
        self._metrics = b""
        self._forms: list[tuple[bytes, bytes, bytes]] = []
        """Messages for first and second routes, without address and next hop."""
        self.fit(_MTU)

    # -------------------------------------------------------------------------- start and stop
    def start(self) -> int:
        """Put this node's address there and take over what an earlier process has left.

        Returns:
            How many routes were found.
        Raises:
            Conflict: X0-KRN-148 another node's routes are here.
            Unavailable: the kernel refuses (X0-KRN-103) or does not answer.
        """
        self.be_alone()
        self.look()
        unreachable = rt.Route(self._prefix, 48, METRIC, 0, rt.RouteKind.UNREACHABLE, b"", PROTOCOL)
        self._netlink.carry_out(
            "mesh address",
            [rt.put_address(rt.Address(_LOOPBACK, self._own, 128)), rt.put_route(unreachable)],
        )
        return sum(map(len, self._routes))

    def be_alone(self) -> None:
        """Two nodes in one network namespace would take each other's routes for their own.

        Nodes have their addresses on the loopback interface; elsewhere anybody on the same cable
        can give us one, by a router advertisement (RFC 4862).

        Raises:
            Conflict: X0-KRN-148 another node's routes are here; nothing was changed.
            Unavailable: the kernel does not answer.
        """
        others = set()
        for said in self._netlink.dump("addresses", rt.GET_ADDRESS, rt.addresses(_LOOPBACK)):
            at = rt.read_address(said)
            if at and at.index == _LOOPBACK and at.address[:8] == self._prefix[:8]:
                others.add(at.address)
        for said in self._netlink.dump("routes", rt.GET_ROUTE, rt.routes(PROTOCOL)):
            route = rt.read_route(said)
            if route is not None and route.protocol == PROTOCOL and route.prefix == 48:
                others.add(route.target)
        others -= {self._own, self._prefix}
        if others:
            raise Conflict(
                "X0-KRN-148",
                f"routes of another node are here: {IPv6Address(min(others))}",
                "stop it (`x0 node stop`), or give each node a network namespace",
            )

    def fit(self, mtu: int) -> None:
        """Have TCP send segments that fit a detour over links of this many bytes.

        Routes that ask for others are written again at the next change of all (`apply`, `mend`).
        """
        metrics = rt.recovery(RTO_MIN_MS, mtu - _TCP_BYTES - DETOUR_BYTES)
        if metrics != self._metrics or not self._forms:
            self._metrics, self._stale = metrics, ({*self._routes[0]}, {*self._routes[1]})
            self._forms = [rt.host_route(m, self._own, PROTOCOL, metrics) for m in _METRICS]

    def look(self) -> None:
        """Read anew what the kernel has: links, next hops and routes of ours."""
        self.look_at_links()
        asked = self._netlink.dump("routes", rt.GET_ROUTE, rt.routes(PROTOCOL))
        self._routes, self._stale = ({}, {}), (set(), set())
        for said in asked:
            route = rt.read_route(said)
            if route is None or not route.next_hop or route.protocol != PROTOCOL:
                continue
            if route.metric in _METRICS:
                at = _METRICS.index(route.metric)
                self._routes[at][route.target] = route.next_hop
                if route.metrics != self._metrics:
                    self._stale[at].add(route.target)

    def look_at_links(self) -> None:
        """Read links and next hops anew: with a link the kernel drops its next hops and routes."""
        netlink = self._netlink
        links = (rt.read_link(s) for s in netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS))
        self._links = {link.index: link for link in links if link is not None}
        asked = netlink.dump("next hops", rt.GET_NEXT_HOP, rt.ALL_NEXT_HOPS)
        hops = [hop for said in asked if (hop := rt.read_next_hop(said)) is not None]
        self._hops = {hop.id: hop for hop in hops if _ours(hop)}
        self._taken = {hop.id for hop in hops if not _ours(hop)}
        first, second = (
            {target: id for target, id in routes.items() if id in self._hops}
            for routes in self._routes
        )
        self._routes = first, second

    def stop(self) -> list[Refusal]:
        """Take away all that carries our number, whoever has put it there, and the address.

        Returns:
            What could not be taken away.
        """
        netlink = self._netlink
        self.look()
        gone: list[Request] = [rt.drop_next_hop(id) for id in self._hops]
        for said in netlink.dump("routes", rt.GET_ROUTE, rt.routes(PROTOCOL)):
            route = rt.read_route(said)
            if route is not None and route.protocol == PROTOCOL and not route.next_hop:
                gone.append(rt.drop_route(route))
        for said in netlink.dump("neighbours", rt.GET_NEIGHBOUR, rt.ALL_NEIGHBOURS):
            neighbour = rt.read_neighbour(said)
            if neighbour is not None and neighbour.protocol == PROTOCOL:
                gone.append(rt.drop_neighbour(neighbour))
        for said in netlink.dump("addresses", rt.GET_ADDRESS, rt.addresses()):
            address = rt.read_address(said)
            if address is not None and address.address == self._own:
                gone.append(rt.drop_address(address))
        refused = netlink.ask(gone)
        self._hops, self._routes, self._wanted, self._led = {}, ({}, {}), {}, {}
        return refused

    # -------------------------------------------------------------------------- the table
    def apply(self, table: Mapping[bytes, Course]) -> Done:
        """Make the kernel's routes those of a table; what it has already is not written.

        Args:
            table: by mesh address.
        Returns:
            What it took.
        """
        kept = {*table, *self._led}
        gone = {target: None for target in self._wanted if target not in kept}
        foreign = {target: None for target in self.targets if target not in kept}
        return self.change({**foreign, **gone, **table})

    def change(self, changes: Mapping[bytes, Course | None]) -> Done:
        """Bring these targets up to date; None: nothing leads there any more."""
        wanted, (firsts, seconds), stale = self._wanted, self._routes, self._stale
        hops: dict[int, rt.NextHop] = {}
        moved: _Moved = {0: []}, {0: []}
        led = self._first_segments(changes.values())
        changes = {**led, **changes, **led} if led else changes
        seen = {id(None): (0, 0, moved[0][0], moved[1][0])}
        for target, course in changes.items():
            if course is None:
                wanted.pop(target, None)
            elif target in wanted or len(wanted) < TARGETS_MAX:
                wanted[target] = course
            else:
                continue
            known = seen.get(id(course))  # Hashing a course takes longer than a route.
            if known is None:
                first, second = (self._next_hop(c, hops) for c in (course, _second(course)))
                known = seen[id(course)] = (
                    first, second, moved[0].setdefault(first, []), moved[1].setdefault(second, []),
                )  # fmt: skip
            first, second, first_moved, second_moved = known
            if firsts.get(target, 0) != first or target in stale[0]:
                first_moved.append(target)
            if seconds.get(target, 0) != second or target in stale[1]:
                second_moved.append(target)
        return self._carry_out(hops, moved)

    def cut(self, neighbour: tuple[int, bytes], off: bool) -> Done:
        """A neighbour is out of reach, so its targets take their alternates; or in reach again.

        Args:
            neighbour: interface and address.
            off: whether it is out of reach.
        """
        if off == (neighbour in self._cut):
            return Done()
        if off:
            self._cut[neighbour] = None
        else:
            del self._cut[neighbour]
        hops: dict[int, rt.NextHop] = {}
        lost = False
        for id, course in self._owners.items():
            if id in self._hops and any(e and e.neighbour == neighbour for e in course):
                lost |= not self._next_hop(course, hops)
        done = self._carry_out(hops, ({}, {}))
        return self.change(dict(self._wanted)) if lost else done

    def follow(self, moves: Mapping[tuple[int, bytes], tuple[int, bytes]]) -> None:
        """Neighbours are somewhere else; before the table says so.

        Args:
            moves: where each is now, by where it was; those that are not named are gone.
        """
        self._cut = {moves[where]: None for where in self._cut if where in moves}

    def mend(self) -> Done:
        """After a look: write again what others have taken away."""
        return self.apply(dict(self._wanted))

    def tidy(self) -> int:
        """Take away what nothing names any more; it waits for all readers of the kernel.

        Returns:
            How many next hops.
        """
        needed = {*self._vias}
        for _, exit in self._wanted.values():
            if exit is not None and exit.segments:
                needed.add(exit.segments[0])
        stale = [target for target in self._led if target not in needed]
        self._led = {target: self._led[target] for target in self._led if target in needed}
        self.change(dict.fromkeys(stale))
        named = {*self._routes[0].values(), *self._routes[1].values()}
        unused = [id for id in self._hops if id not in named]
        self._netlink.ask([rt.drop_next_hop(id) for id in unused])
        self._hops = {id: hop for id, hop in self._hops.items() if id in named}
        self._owners = {id: course for id, course in self._owners.items() if id in named}
        self._ids = {course: id for id, course in self._owners.items()}
        return len(unused)

    # -------------------------------------------------------------------------- neighbours
    def lead(self, links: Mapping[bytes, tuple[bytes, Exit]]) -> list[Refusal]:
        """Let others' source routes name our links: what arrives for a link goes out over it.

        Args:
            links: by the link's address here, that of any link to the neighbour, and the way to
                it; others of ours are taken away.
        Returns:
            What the kernel does not do: it may have been built without segment routing.
        """
        requests: list[Request] = []
        for said in self._netlink.dump("routes", rt.GET_ROUTE, rt.routes(PROTOCOL)):
            route = rt.read_route(said)
            if route is None or route.protocol != PROTOCOL or route.prefix != 128:
                continue
            if not route.next_hop and route.target not in links:
                requests.append(rt.drop_route(route))
        vias: dict[bytes, Course] = {via: (exit, None) for via, exit in links.values()}
        self._led |= vias
        self._vias = frozenset(vias)
        done = self.change(vias)
        for address, (via, exit) in links.items():
            if self._up(exit):
                requests.append(rt.put_segment(address, via, exit.index, PROTOCOL))
        return [*done.refused, *self._netlink.ask(requests)]

    def settle(self, macs: Mapping[tuple[int, bytes], bytes]) -> list[Refusal]:
        """Write down MAC addresses of neighbours for good: one that fails eats no packets then.

        Args:
            macs: by interface and address; others of ours are forgotten.
        """
        requests: list[Request] = []
        left = dict(macs)
        for said in self._netlink.dump("neighbours", rt.GET_NEIGHBOUR, rt.ALL_NEIGHBOURS):
            found = rt.read_neighbour(said)
            if found is None or found.protocol != PROTOCOL:
                continue
            mac = left.get((found.index, found.address))
            if mac is None:
                requests.append(rt.drop_neighbour(found))
            elif mac == found.mac and found.permanent:
                del left[found.index, found.address]
        for (index, address), mac in left.items():
            requests.append(
                rt.put_neighbour(rt.Neighbour(index, address, mac, True, PROTOCOL)),
            )
        return self._netlink.ask(requests)

    # -------------------------------------------------------------------------- what is there
    @property
    def links(self) -> Mapping[int, rt.Link]:
        """Interfaces as of the last look."""
        return self._links

    @property
    def next_hops(self) -> Mapping[int, rt.NextHop]:
        """By id, as far as we know."""
        return self._hops

    @property
    def targets(self) -> Iterable[bytes]:
        """To which there is a route."""
        return {*self._routes[0], *self._routes[1]}

    def _first_segments(self, courses: Iterable[Course | None]) -> dict[bytes, Course]:
        """Ways to first segments, where there is none yet: the kernel asks its routes for them."""
        found: dict[bytes, Course] = {}
        seen = {id(course): course for course in courses}
        for course in seen.values():
            exit = course[1] if course else None
            if exit is not None and exit.segments:
                direct = (Exit(exit.index, exit.gateway), None)
                if self._led.get(exit.segments[0]) != direct:
                    found[exit.segments[0]] = self._led[exit.segments[0]] = direct
        return found

    def _up(self, exit: Exit) -> bool:
        """Whether the kernel takes a next hop there."""
        link = self._links.get(exit.index)
        return link is not None and link.up and link.carrier

    def _next_hop(self, course: Course | None, hops: dict[int, rt.NextHop]) -> int:
        """Id of the next hop for a course, which is put down in `hops` if the kernel lacks it."""
        if course is None:
            return 0
        exit, alternate = course
        if not self._up(exit) or exit.neighbour in self._cut:
            if alternate and self._up(alternate) and alternate.neighbour not in self._cut:
                exit = alternate
            elif not self._up(exit):
                return 0
        id = self._ids.get(course, 0)
        if not id or id in self._taken:
            id = self._new_id(course)
        hop = rt.NextHop(id, exit.index, exit.gateway, exit.segments, (), PROTOCOL)
        if self._hops.get(id) != hop:
            hops[id] = hop
        return id

    def _new_id(self, course: Course) -> int:
        digest = hashlib.sha256()
        for exit in course:
            if exit is not None:
                digest.update(struct.pack("=I16sI", exit.index, exit.gateway, len(exit.segments)))
                digest.update(b"".join(exit.segments))
        id = _FIRST_ID | int.from_bytes(digest.digest()[:3], "big")
        while id in self._owners or id in self._taken:
            id = _FIRST_ID | (id + 1 & _ID_MASK)
        self._ids[course], self._owners[id] = id, course
        return id

    def _carry_out(self, hops: dict[int, rt.NextHop], moved: _Moved) -> Done:
        """Next hops first, then the routes that name them, then what is not wanted.

        Args:
            hops: to be put, by id.
            moved: routes; each target once.
        """
        messages: list[bytes] = []
        drops: list[Request] = []
        gone = [by_hop.pop(0, []) for by_hop in moved]
        for at, metric in enumerate(_METRICS):
            before, between, end = self._forms[at]
            for id, targets in moved[at].items():
                behind = between + rt.number(id) + end
                messages += [before + target + behind for target in targets]
            for target in gone[at]:
                drops.append(rt.drop_route(rt.Route(target, 128, metric, protocol=PROTOCOL)))
        refused = self._netlink.ask(map(rt.put_next_hop, hops.values()))
        bad = {refusal.at for refusal in refused}
        hops = {id: hop for at, (id, hop) in enumerate(hops.items()) if at not in bad}
        self._hops |= hops
        missing = self._netlink.put_all(messages)
        refused += missing
        bad = {refusal.at for refusal in missing}
        first = 0
        for routes, stale, by_hop in zip(self._routes, self._stale, moved, strict=True):
            for id, targets in by_hop.items():
                put = targets
                if bad:
                    put = [target for at, target in enumerate(targets, first) if at not in bad]
                    first += len(targets)
                routes |= dict.fromkeys(put, id)
                stale.difference_update(put)
        refused += self._netlink.ask(drops)
        for routes, stale, targets in zip(self._routes, self._stale, gone, strict=True):
            stale.difference_update(targets)
            for target in targets:
                routes.pop(target, None)
        if len(self._owners) > NEXT_HOPS_MAX:
            self.tidy()
        return Done(len(messages) - len(bad), len(drops), len(hops), tuple(refused))


def course_of(
    domain: TrustDomain, way: Way, exits: Mapping[str, Exit], *, source_routes: bool
) -> Course | None:
    """The course for a way that the forwarding machine has told.

    Args:
        domain: whose mesh it is.
        way: neighbours and what to do without them.
        exits: by neighbour.
        source_routes: whether this kernel has segment routing.
    Returns:
        None where the neighbour is not on an interface of ours.
    """
    primary = exits.get(way.hop)
    detour = way.detour(source_routes=source_routes)
    out = exits.get(detour[0]) if detour else None
    if primary is None or out is None or len(detour) == 1:
        return None if primary is None else (primary, out)
    nodes = [NodeName(node) for node in detour]
    led = [link_address(domain, here, there).packed for here, there in pairwise(nodes)]
    led.append(mesh_address(domain, nodes[-1]).packed)
    return primary, Exit(out.index, out.gateway, tuple(led))


def _second(course: Course | None) -> Course | None:
    return None if course is None or course[1] is None else (course[1], None)


def _ours(hop: rt.NextHop) -> bool:
    return hop.protocol == PROTOCOL and hop.id & ~_ID_MASK == _FIRST_ID
