"""What rtnetlink speaks of: links, addresses, neighbours, next hops, routes; written and read.

Writers give a request for `Netlink.ask`; readers take a message of a dump or of a monitor and give
None for what is not of their kind, or not IPv6.  Addresses are 16 bytes, as in a packet.

Source: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/nexthop.h,
linux/lwtunnel.h, linux/seg6_iptunnel.h and linux/seg6_local.h; the segment routing header of RFC
8754 section 2, End.X of RFC 8986 section 4.2.
"""

from __future__ import annotations

import socket
import struct
import sys
from enum import IntEnum
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.edge.kernel.netlink import (
    CREATE,
    REPLACE,
    Request,
    Said,
    attribute,
    attributes,
    message,
    nested,
)
from x0tta6bl4.wire.errors import BadMessage

NEW_LINK: Final = 16
DEL_LINK: Final = 17
GET_LINK: Final = 18
NEW_ADDRESS: Final = 20
DEL_ADDRESS: Final = 21
GET_ADDRESS: Final = 22
NEW_ROUTE: Final = 24
DEL_ROUTE: Final = 25
GET_ROUTE: Final = 26
NEW_NEIGHBOUR: Final = 28
DEL_NEIGHBOUR: Final = 29
GET_NEIGHBOUR: Final = 30
NEW_NEXT_HOP: Final = 104
DEL_NEXT_HOP: Final = 105
GET_NEXT_HOP: Final = 106

GROUP_LINK: Final = 1
GROUP_ADDRESS: Final = 9
"""Of IPv6."""
GROUP_ROUTE: Final = 11
"""Of IPv6."""
GROUP_NEXT_HOP: Final = 32

MAIN: Final = 254
"""The routing table that everybody uses."""

_V6: Final = socket.AF_INET6
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_NEXT_HOP: Final = struct.Struct("=BBBBI")
_MEMBER: Final = struct.Struct("=IBBxx")
_NUMBER: Final = struct.Struct("=I")

_UP: Final = 0x1
_LOWER_UP: Final = 0x10000
_SKIP_STATISTICS: Final = 1 << 3
_NO_DAD: Final = 0x02
_NO_PREFIX_ROUTE: Final = 0x200
_TENTATIVE: Final = 0x40
_PERMANENT: Final = 0x80
_ON_LINK: Final = 0x4
_USE: Final = 0x1
_SEG6: Final = 5
_SEG6_LOCAL: Final = 7
_END_X: Final = 2
_TO, _OUT, _GATEWAY, _VIA = 1, 4, 5, 18
"""RTA_..., for looking a route up."""
_METRIC_LOCK, _METRIC_MSS, _METRIC_RTO_MIN, _METRIC_QUICK_ACK = 1, 8, 13, 15
"""RTAX_...; RTO_MIN counts only if it is locked."""


class RouteKind(IntEnum):
    """What happens to packets (RTN_...)."""

    UNICAST = 1
    LOCAL = 2
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


@final
class Link(Value, frozen=True):
    """A network interface."""

    index: int
    name: str
    mtu: int
    up: bool
    """By its administrator."""
    carrier: bool
    mac: bytes
    """6 bytes where it is Ethernet."""


@final
class Address(Value, frozen=True):
    """An IPv6 address of an interface."""

    index: int
    address: bytes
    prefix: int
    tentative: bool = False


@final
class Neighbour(Value, frozen=True):
    """Which MAC address an IPv6 neighbour has."""

    index: int
    address: bytes
    mac: bytes
    permanent: bool
    protocol: int = 0
    """Who has written it; 0: not said."""


@final
class NextHop(Value, frozen=True):
    """A next-hop object: routes name it by its id."""

    id: int
    index: int = 0
    """Of the interface; 0 for a group."""
    gateway: bytes = b""
    """The neighbour on that interface."""
    segments: tuple[bytes, ...] = ()
    """Packets are wrapped and led along these addresses first (SRv6, encap mode)."""
    group: tuple[tuple[int, int], ...] = ()
    """Members and their weights, from 1."""
    protocol: int = 0
    """Who has written it."""


@final
class Route(Value, frozen=True):
    """An IPv6 route."""

    target: bytes
    prefix: int
    metric: int
    next_hop: int = 0
    """Id of a next-hop object; 0: it has none."""
    kind: RouteKind = RouteKind.UNICAST
    source: bytes = b""
    """Source address of what starts here; empty: the kernel picks."""
    protocol: int = 0
    """Who has written it."""
    table: int = MAIN
    metrics: bytes = b""
    """Those of `recovery`; none: the kernel's own."""


# ------------------------------------------------------------------ links
ALL_LINKS: Final = _LINK.pack(0, 0, 0, 0, 0) + attribute(29, _NUMBER.pack(_SKIP_STATISTICS))


def read_link(said: Said) -> Link | None:
    """An interface, of RTM_NEWLINK and RTM_DELLINK.

    Raises:
        BadMessage: malformed.
    """
    if said.kind not in (NEW_LINK, DEL_LINK):
        return None
    family, _, index, flags, _ = _read(_LINK, said)
    if family:
        return None  # Of a bridge port, as the bridge sees it.
    found = attributes(said.body, _LINK.size)
    name = found.get(3, b"").rstrip(b"\0").decode("utf-8", "replace")
    mac, mtu = found.get(1, b""), _number(found.get(4, b""))
    return Link(index, name, mtu, bool(flags & _UP), bool(flags & _LOWER_UP), mac)


# ------------------------------------------------------------------ addresses
def addresses(index: int = 0) -> bytes:
    """Body of a dump of IPv6 addresses: of one interface, or of all."""
    return _ADDRESS.pack(_V6, 0, 0, 0, index)


def put_address(address: Address) -> Request:
    """Give an interface an address at once, without a route to its neighbours."""
    body = _ADDRESS.pack(_V6, address.prefix, 0, 0, address.index)
    flags = attribute(8, _NUMBER.pack(_NO_DAD | _NO_PREFIX_ROUTE))
    return NEW_ADDRESS, CREATE | REPLACE, body + attribute(1, address.address) + flags


def drop_address(address: Address) -> Request:
    """Take an address away."""
    body = _ADDRESS.pack(_V6, address.prefix, 0, 0, address.index)
    return DEL_ADDRESS, 0, body + attribute(1, address.address)


def read_address(said: Said) -> Address | None:
    """An IPv6 address, of RTM_NEWADDR and RTM_DELADDR.

    Raises:
        BadMessage: malformed.
    """
    if said.kind not in (NEW_ADDRESS, DEL_ADDRESS):
        return None
    family, prefix, flags, _, index = _read(_ADDRESS, said)
    found = attributes(said.body, _ADDRESS.size)
    address = found.get(2, found.get(1, b""))
    if family != _V6 or len(address) != 16:
        return None
    flags |= _number(found.get(8, b""))
    return Address(index, address, prefix, bool(flags & _TENTATIVE))


# ------------------------------------------------------------------ neighbours
ALL_NEIGHBOURS: Final = _NEIGHBOUR.pack(_V6, 0, 0, 0, 0)


def put_neighbour(neighbour: Neighbour) -> Request:
    """Write down a neighbour's MAC address for good, so that it is never asked for."""
    return (
        NEW_NEIGHBOUR,
        CREATE | REPLACE,
        _NEIGHBOUR.pack(_V6, neighbour.index, _PERMANENT, 0, 0)
        + attribute(1, neighbour.address)
        + attribute(2, neighbour.mac)
        + attribute(12, bytes([neighbour.protocol])),
    )


def seek_neighbour(index: int, address: bytes) -> Request:
    """Have the kernel ask a neighbour for its MAC address now; a dump shows it when it is known."""
    body = _NEIGHBOUR.pack(_V6, index, 0, _USE, 0) + attribute(1, address)
    return NEW_NEIGHBOUR, CREATE | REPLACE, body


def drop_neighbour(neighbour: Neighbour) -> Request:
    """Forget a neighbour's MAC address."""
    body = _NEIGHBOUR.pack(_V6, neighbour.index, 0, 0, 0)
    return DEL_NEIGHBOUR, 0, body + attribute(1, neighbour.address)


def read_neighbour(said: Said) -> Neighbour | None:
    """A neighbour whose MAC address is known, of RTM_NEWNEIGH and RTM_DELNEIGH.

    Raises:
        BadMessage: malformed.
    """
    if said.kind not in (NEW_NEIGHBOUR, DEL_NEIGHBOUR):
        return None
    family, index, state, _, _ = _read(_NEIGHBOUR, said)
    found = attributes(said.body, _NEIGHBOUR.size)
    address, mac = found.get(1, b""), found.get(2, b"")
    if family != _V6 or len(address) != 16 or not mac:
        return None
    protocol = found.get(12, b"\0")[:1]
    return Neighbour(index, address, mac, bool(state & _PERMANENT), protocol[0] if protocol else 0)


# ------------------------------------------------------------------ next hops
ALL_NEXT_HOPS: Final = _NEXT_HOP.pack(0, 0, 0, 0, 0)


def put_next_hop(hop: NextHop) -> Request:
    """Make a next-hop object, or put another in its place: its routes follow at once."""
    if hop.group:
        members = b"".join(_MEMBER.pack(id, weight - 1, 0) for id, weight in hop.group)
        body = _NEXT_HOP.pack(0, 0, hop.protocol, 0, 0) + attribute(1, _NUMBER.pack(hop.id))
        return NEW_NEXT_HOP, CREATE | REPLACE, body + attribute(2, members)
    body = (
        _NEXT_HOP.pack(_V6, 0, hop.protocol, 0, _ON_LINK if hop.gateway else 0)
        + attribute(1, _NUMBER.pack(hop.id))
        + attribute(5, _NUMBER.pack(hop.index))
    )
    if hop.gateway:
        body += attribute(6, hop.gateway)
    if hop.segments:
        body += attribute(7, struct.pack("=H", _SEG6))
        body += nested(8, attribute(1, _segments(hop.segments)))
    return NEW_NEXT_HOP, CREATE | REPLACE, body


def drop_next_hop(id: int) -> Request:
    """Take a next-hop object away, and with it every route that names it."""
    return DEL_NEXT_HOP, 0, _NEXT_HOP.pack(0, 0, 0, 0, 0) + attribute(1, _NUMBER.pack(id))


def read_next_hop(said: Said) -> NextHop | None:
    """A next-hop object, of RTM_NEWNEXTHOP and RTM_DELNEXTHOP.

    Raises:
        BadMessage: malformed.
    """
    if said.kind not in (NEW_NEXT_HOP, DEL_NEXT_HOP):
        return None
    _, _, protocol, _, _ = _read(_NEXT_HOP, said)
    found = attributes(said.body, _NEXT_HOP.size)
    group = tuple(
        (id, weight + 1)
        for id, weight, _ in _MEMBER.iter_unpack(found.get(2, b"")[: len(found.get(2, b"")) & ~7])
    )
    segments: tuple[bytes, ...] = ()
    if found.get(7, b"")[:2] == struct.pack("=H", _SEG6):
        segments = _read_segments(attributes(found.get(8, b"")).get(1, b""))
    return NextHop(
        _number(found.get(1, b"")),
        _number(found.get(5, b"")),
        found.get(6, b""),
        segments,
        group,
        protocol,
    )


def _segments(addresses: tuple[bytes, ...]) -> bytes:
    """Encap mode and the header; the last segment stands first (RFC 8754 section 2)."""
    count = len(addresses)
    header = struct.pack("=iBBBBBBH", 1, 0, 2 * count, 4, count - 1, count - 1, 0, 0)
    return header + b"".join(reversed(addresses))


def _read_segments(data: bytes) -> tuple[bytes, ...]:
    listed = data[12:]
    return tuple(listed[at : at + 16] for at in range(len(listed) - 16, -1, -16))


# ------------------------------------------------------------------ routes
_PUT_SOURCELESS: Final = struct.Struct("=BBBBBBBBI HH16s HHI HHI")
_DELETE: Final = struct.Struct("=BBBBBBBBI HH16s HHI")


def look_up(address: bytes) -> bytes:
    """Body of GET_ROUTE: how would a packet for this IPv4 or IPv6 address leave?"""
    family = socket.AF_INET if len(address) == 4 else _V6
    head = _ROUTE.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
    return head + attribute(_TO, address)


def read_adjacent(said: Said) -> int:
    """Index of the interface where what was looked up is adjacent; 0: behind a router, or here."""
    if said.kind != NEW_ROUTE or len(said.body) < _ROUTE.size:
        return 0
    found = attributes(said.body, _ROUTE.size)
    if said.body[7] != RouteKind.UNICAST or _GATEWAY in found or _VIA in found:
        return 0
    return _number(found.get(_OUT, bytes(4)))


def link(index: int) -> bytes:
    """Body of GET_LINK for one interface."""
    return _LINK.pack(0, 0, index, 0, 0)


def routes(protocol: int = 0, table: int = MAIN) -> bytes:
    """Body of a dump of IPv6 routes of one table: of one writer, or of all."""
    body = _ROUTE.pack(_V6, 0, 0, 0, 0, protocol, 0, 0, 0)
    return body + attribute(15, _NUMBER.pack(table))


def recovery(rto_min_ms: int, mss: int) -> bytes:
    """Metrics of a route: how soon TCP sends again what was not confirmed, and confirms itself.

    Args:
        rto_min_ms: least time before it is sent again, beyond the round trip (RFC 6298 section
            2.4); the kernel rounds it up to its ticks.  Receivers wait for nothing before they
            confirm, for theirs must be shorter than that.
        mss: segments that the other end is asked for, bytes (RFC 9293 section 3.7.1).
    """
    return b"".join((
        attribute(_METRIC_LOCK, _NUMBER.pack(1 << _METRIC_RTO_MIN)),
        attribute(_METRIC_MSS, _NUMBER.pack(mss)),
        attribute(_METRIC_RTO_MIN, _NUMBER.pack(rto_min_ms)),
        attribute(_METRIC_QUICK_ACK, _NUMBER.pack(1)),
    ))  # fmt: skip


def put_route(route: Route) -> Request:
    """Make a route, or put it in the place of that with the same target and metric."""
    metrics = nested(8, route.metrics) if route.metrics else b""
    if not route.next_hop:
        body = _ROUTE.pack(_V6, route.prefix, 0, 0, route.table, route.protocol, 0, route.kind, 0)
        body += attribute(1, route.target) + attribute(6, _NUMBER.pack(route.metric))
        return NEW_ROUTE, CREATE | REPLACE, body + metrics
    body = _PUT_SOURCELESS.pack(
        _V6, route.prefix, 0, 0, route.table, route.protocol, 0, route.kind, 0,
        20, 1, route.target, 8, 6, route.metric, 8, 30, route.next_hop,
    )  # fmt: skip
    if route.source:
        body += attribute(7, route.source)
    return NEW_ROUTE, CREATE | REPLACE, body + metrics


def host_route(
    metric: int, source: bytes, protocol: int, metrics: bytes = b""
) -> tuple[bytes, bytes, bytes]:
    """The message that puts a route to one address, without the address and the next hop.

    There are thousands of them for `Netlink.put_all`, and nothing else is different.

    Args:
        metric: of the route.
        source: of what starts here.
        protocol: who writes it.
        metrics: of `recovery`.
    Returns:
        What stands before the address, between it and the `number` of the next hop, and behind.
    """
    target = bytes(16)
    whole = message(
        put_route(Route(target, 128, metric, 1, source=source, protocol=protocol, metrics=metrics))
    )
    at, end = 16 + _ROUTE.size + 4, 16 + _PUT_SOURCELESS.size
    return whole[:at], whole[at + len(target) : end - 4], whole[end:]


def number(id: int) -> bytes:
    """Four bytes as the kernel has them."""
    return _NUMBER.pack(id)


def put_segment(address: bytes, via: bytes, index: int, protocol: int) -> Request:
    """Packets with a segment routing header for this address go on to another one (End.X).

    Args:
        address: the segment, 16 bytes.
        via: where they go on: the kernel looks up its route, and leaves their target alone.
        index: of an interface that is up as long as the segment is good.
        protocol: who writes it.
    """
    body = _ROUTE.pack(_V6, 128, 0, 0, MAIN, protocol, 0, RouteKind.UNICAST, 0)
    body += attribute(1, address) + attribute(6, _NUMBER.pack(1))
    body += attribute(4, _NUMBER.pack(index)) + attribute(21, struct.pack("=H", _SEG6_LOCAL))
    action = attribute(1, _NUMBER.pack(_END_X)) + attribute(5, via)
    return NEW_ROUTE, CREATE | REPLACE, body + nested(22, action)


def drop_route(route: Route) -> Request:
    """Take away the route with this target, metric and writer."""
    return (
        DEL_ROUTE,
        0,
        _DELETE.pack(
            _V6, route.prefix, 0, 0, route.table, route.protocol, 0, 0, 0,
            20, 1, route.target, 8, 6, route.metric,
        ),
    )  # fmt: skip


def read_route(said: Said) -> Route | None:
    """An IPv6 route, of RTM_NEWROUTE and RTM_DELROUTE.

    Raises:
        BadMessage: malformed.
    """
    if said.kind not in (NEW_ROUTE, DEL_ROUTE):
        return None
    family, prefix, _, _, table, protocol, _, kind, _ = _read(_ROUTE, said)
    found = attributes(said.body, _ROUTE.size)
    target = found.get(1, bytes(16))
    if family != _V6 or len(target) != 16 or kind not in _KINDS:
        return None
    source = found.get(7, b"")
    return Route(
        target,
        prefix,
        _number(found.get(6, b"")),
        _number(found.get(30, b"")),
        RouteKind(kind),
        source if len(source) == 16 else b"",
        protocol,
        _number(found[15]) if 15 in found else table,
        found.get(8, b""),
    )


_KINDS: Final = frozenset(RouteKind)


def _read(form: struct.Struct, said: Said) -> tuple[int, ...]:
    if len(said.body) < form.size:
        raise BadMessage("X0-KRN-101", "an answer of the kernel is malformed", "report it, please")
    return form.unpack_from(said.body)


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], sys.byteorder)
