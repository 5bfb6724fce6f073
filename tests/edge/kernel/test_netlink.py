"""Rtnetlink: bytes written and read, batches, refusals in the kernel's words, what is lost."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.kernel.space import Space
from x0tta6bl4.edge.kernel import netlink as nl
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink, Refusal, Said
from x0tta6bl4.wire.errors import BadMessage, Unavailable

A, B, C = (bytes([0xFD, *bytes(14), n]) for n in (1, 2, 3))
GATEWAY = b"\xfe\x80" + bytes(13) + b"\1"
BYTES16 = st.binary(min_size=16, max_size=16)
NUMBERS = st.integers(1, 2**32 - 1)


@pytest.fixture
def space() -> Iterator[Space]:
    space = Space()
    space.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in ("v0", "v1"):
        space.run("ip", "link", "set", name, "up")
    yield space
    space.close()


@pytest.fixture
def netlink(space: Space) -> Iterator[Netlink]:
    with space:
        netlink = Netlink(5)
    yield netlink
    netlink.close()


def said(request: nl.Request) -> Said:
    return Said(request[0], 0, 0, request[2])


# ------------------------------------------------------------------ bytes
@given(st.dictionaries(st.integers(1, 99), st.binary(max_size=40)))
def test_attributes_are_read_as_written(values: dict[int, bytes]) -> None:
    data = b"".join(nl.attribute(kind, value) for kind, value in values.items())
    assert len(data) % 4 == 0
    assert nl.attributes(b"head" + data, 4) == values
    assert nl.attributes(nl.nested(7, data))[7] == data


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        for one in nl.messages(data):
            nl.refusal(one)
            for kind in (16, 20, 24, 28, 104):
                message = Said(kind, 0, 0, one.body)
                for read in (rt.read_link, rt.read_address, rt.read_route, rt.read_neighbour,
                             rt.read_next_hop):  # fmt: skip
                    read(message)
    except BadMessage:
        pass


@given(
    BYTES16, NUMBERS, NUMBERS, st.one_of(st.just(b""), BYTES16), st.integers(0, 255),
    st.one_of(st.just(b""), st.builds(rt.recovery, NUMBERS, NUMBERS)),
)  # fmt: skip
def test_routes_are_read_as_written(
    target: bytes, metric: int, hop: int, source: bytes, protocol: int, metrics: bytes
) -> None:
    route = rt.Route(
        target, 128, metric, hop, rt.RouteKind.UNICAST, source, protocol, metrics=metrics
    )
    assert rt.read_route(said(rt.put_route(route))) == route
    before, between, behind = rt.host_route(metric, source, protocol, metrics)
    said_so = before + target + between + rt.number(hop) + behind
    assert said_so == nl.message(rt.put_route(route))
    unreachable = rt.Route(target, 48, metric, 0, rt.RouteKind.UNREACHABLE, b"", protocol)
    assert rt.read_route(said(rt.put_route(unreachable))) == unreachable
    gone = rt.read_link(said(rt.drop_route(route)))
    assert gone is None


@given(NUMBERS, st.integers(1, 2**31 - 1), BYTES16, st.lists(BYTES16, max_size=9))
def test_next_hops_are_read_as_written(
    id: int, index: int, gateway: bytes, segments: list[bytes]
) -> None:
    hop = rt.NextHop(id, index, gateway, tuple(segments), (), 120)
    assert rt.read_next_hop(said(rt.put_next_hop(hop))) == hop
    group = rt.NextHop(id, group=((5, 1), (6, 256)), protocol=120)
    assert rt.read_next_hop(said(rt.put_next_hop(group))) == group


def test_addresses_and_neighbours_are_read_as_written() -> None:
    address = rt.Address(7, A, 64)
    assert rt.read_address(said(rt.put_address(address))) == address
    neighbour = rt.Neighbour(7, A, b"\2\0\0\0\0\1", True, 120)
    assert rt.read_neighbour(said(rt.put_neighbour(neighbour))) == neighbour


def test_words_of_an_error_are_read_behind_the_request_it_quotes() -> None:
    words = nl.attribute(1, b"no such thing\0")
    head = struct.pack("=IHHII", 20, 24, 5, 9, 0)
    capped = Said(2, 0x300, 9, struct.pack("=i", -errno.ENOENT) + head + words)
    assert nl.refusal(capped, 3) == Refusal(3, errno.ENOENT, "no such thing")
    quoted = Said(2, 0x200, 9, struct.pack("=i", -errno.ENOENT) + head + b"body" + words)
    assert nl.refusal(quoted) == Refusal(0, errno.ENOENT, "no such thing")
    assert nl.refusal(Said(2, 0x100, 9, struct.pack("=i", 0) + head)) is None
    assert str(Refusal(0, errno.ENOENT, "")) == "no such file or directory"
    assert "root" in str(nl.refused_error("x", Refusal(0, errno.EPERM, "")))
    with pytest.raises(BadMessage, match="X0-KRN-101"):
        nl.refusal(Said(2, 0x300, 9, b"\xff\xff\xff\xff"))


# ------------------------------------------------------------------ the kernel
@pytest.mark.netns
def test_what_is_refused_says_why_and_the_rest_is_done(space: Space, netlink: Netlink) -> None:
    index = space.index("v0")
    hop = rt.put_next_hop(rt.NextHop(5, index, GATEWAY, protocol=120))
    bad = rt.put_route(rt.Route(A, 128, 1, 77, protocol=120))
    good = rt.put_route(rt.Route(B, 128, 1, 5, protocol=120))
    refused = netlink.ask([bad, hop, bad, good])
    assert [one.at for one in refused] == [0, 2]
    assert str(refused[0]) == "Nexthop id does not exist"
    assert "fd00::2" in space.run("ip", "-6", "route", "show", "proto", "120")
    found = netlink.put_all([nl.message(one) for one in [hop] * 200 + [bad] + [good] * 100 + [bad]])
    assert [(one.at, str(one)) for one in found] == [(200, str(refused[0])), (301, str(refused[0]))]
    assert netlink.put_all([]) == []
    assert netlink.put_all([nl.message(good)] * 300) == []
    with pytest.raises(Unavailable, match="X0-KRN-103: a route: Nexthop id does not exist"):
        netlink.carry_out("a route", [bad])
    with pytest.raises(Unavailable, match="X0-KRN-103: links: bytes leftover"):
        netlink.dump("links", rt.GET_LINK, b"\0" * 16 + nl.attribute(29, b"\0\0\0\0") + b"\1" * 8)


@pytest.mark.netns
def test_thousands_in_one_batch_good_and_bad(space: Space, netlink: Netlink) -> None:
    index = space.index("v0")
    requests = [rt.put_next_hop(rt.NextHop(5, index, GATEWAY, protocol=120))]
    for at in range(3000):
        target = A[:-4] + at.to_bytes(4, "big")
        requests.append(rt.put_route(rt.Route(target, 128, 1, 5 + at % 2, protocol=120)))
    refused = netlink.ask(requests)
    assert [one.at for one in refused] == list(range(2, 3001, 2))
    found = netlink.dump("routes", rt.GET_ROUTE, rt.routes(120))
    assert len(found) == 1500
    assert {route.next_hop for one in found if (route := rt.read_route(one))} == {5}
    assert netlink.ask([rt.drop_next_hop(5)]) == []
    assert netlink.dump("routes", rt.GET_ROUTE, rt.routes(120)) == []


@pytest.mark.netns
def test_all_kinds_of_next_hops_are_kept_by_the_kernel(space: Space, netlink: Netlink) -> None:
    index = space.index("v0")
    hops = [
        rt.NextHop(5, index, GATEWAY, protocol=120),
        rt.NextHop(6, index, GATEWAY, (A, B, C), protocol=120),
        rt.NextHop(7, index, GATEWAY, protocol=120),
        rt.NextHop(8, group=((5, 1), (7, 256)), protocol=120),
    ]
    netlink.carry_out("next hops", [rt.put_next_hop(hop) for hop in hops])
    dumped = netlink.dump("next hops", rt.GET_NEXT_HOP, rt.ALL_NEXT_HOPS)
    assert [rt.read_next_hop(one) for one in dumped] == hops
    shown = space.run("ip", "nexthop", "show", "id", "6")
    assert "segs 3 [ fd00::1 fd00::2 fd00::3 ]" in shown


@pytest.mark.netns
def test_links_addresses_and_neighbours_of_a_namespace(space: Space, netlink: Netlink) -> None:
    asked = netlink.dump("links", rt.GET_LINK, rt.ALL_LINKS)
    links = {link.name: link for one in asked if (link := rt.read_link(one))}
    assert {"lo", "v0", "v1"} <= links.keys()
    v0 = links["v0"]
    assert (v0.mtu, v0.up, v0.carrier, v0.mac) == (1500, True, True, space.mac("v0"))
    netlink.carry_out("address", [rt.put_address(rt.Address(v0.index, A, 128))])
    asked = netlink.dump("addresses", rt.GET_ADDRESS, rt.addresses(v0.index))
    assert rt.Address(v0.index, A, 128) in [rt.read_address(one) for one in asked]
    netlink.carry_out("address", [rt.drop_address(rt.Address(v0.index, A, 128))])
    known = rt.Neighbour(v0.index, GATEWAY, b"\2\0\0\0\0\1", True, 120)
    netlink.carry_out("neighbour", [rt.put_neighbour(known)])
    asked = netlink.dump("neighbours", rt.GET_NEIGHBOUR, rt.ALL_NEIGHBOURS)
    assert known in [rt.read_neighbour(one) for one in asked]
    netlink.carry_out("neighbour", [rt.drop_neighbour(known)])
    one = netlink.get("link", rt.GET_LINK, struct.pack("=BxHiII", 0, 0, v0.index, 0, 0))
    assert one is not None
    found = rt.read_link(one)
    assert found is not None
    assert found.name == "v0"
    assert netlink.get("link", rt.GET_LINK, struct.pack("=BxHiII", 0, 0, 9999, 0, 0)) is None


@pytest.mark.netns
def test_a_late_answer_is_an_error_once_and_confuses_nobody(space: Space) -> None:
    with space:
        netlink = Netlink(0)
    with pytest.raises(Unavailable, match="X0-KRN-102"):
        netlink.ask([rt.drop_next_hop(5)])
    netlink._deadline_s = 5
    assert [one.code for one in netlink.ask([rt.drop_next_hop(6)])] == [errno.ENOENT]
    netlink.close()


@pytest.mark.netns
def test_answers_of_others_than_the_kernel_are_dropped(space: Space, netlink: Netlink) -> None:
    forged = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, 0) + bytes(16)
    with space, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as other:
        other.bind((0, 0))
        pid = netlink._sock.getsockname()[0]
        other.sendto(forged, (pid, 0))
    assert [one.code for one in netlink.ask([rt.drop_next_hop(6)])] == [errno.ENOENT]


@pytest.mark.netns
def test_a_monitor_tells_what_changes_and_when_it_has_lost_some(
    space: Space, netlink: Netlink
) -> None:
    with space:
        monitor = Monitor(rt.GROUP_LINK, rt.GROUP_ROUTE, rt.GROUP_NEXT_HOP)
    assert monitor.read() == ([], False)
    space.run("ip", "link", "set", "v0", "mtu", "1400")
    space.run("ip", "link", "set", "v0", "name", "w0")
    found, lost = monitor.read()
    links = [link for one in found if (link := rt.read_link(one))]
    assert [(link.name, link.mtu) for link in links if link.name.endswith("0")][-1] == ("w0", 1400)
    assert not lost
    requests = [rt.put_next_hop(rt.NextHop(5, space.index("w0"), GATEWAY, protocol=120))]
    for at in range(6000):
        target = A[:-4] + at.to_bytes(4, "big")
        requests.append(rt.put_route(rt.Route(target, 128, 1, 5, protocol=120)))
    assert netlink.ask(requests) == []
    told = []
    while True:
        found, some = monitor.read()
        lost |= some
        if not found and not some:
            break
        told += found
    assert lost
    assert monitor.lost == 1
    assert 100 < len(told) < 6000
    monitor.close()


@pytest.mark.netns
def test_what_one_does_oneself_can_be_left_out_and_drives_nothing_out_of_the_queue(
    space: Space, netlink: Netlink
) -> None:
    with space:
        monitor, other = Monitor(rt.GROUP_ROUTE, rt.GROUP_NEXT_HOP), Netlink(5)
    monitor.leave_out(netlink.port, (rt.NEW_ROUTE, rt.NEW_LINK))
    index = space.index("v0")
    requests = [rt.put_next_hop(rt.NextHop(5, index, GATEWAY, protocol=120))]
    routes = [rt.Route(A[:-4] + at.to_bytes(4, "big"), 128, 1, 5) for at in range(6000)]
    requests += map(rt.put_route, routes)
    assert netlink.ask(requests) == []
    assert netlink.ask(map(rt.drop_route, routes[2:])) == []
    assert monitor.read() == ([], False)
    assert other.ask([rt.put_next_hop(rt.NextHop(6, index, GATEWAY)), *requests[:9]]) == []
    assert other.ask([rt.drop_route(routes[0])]) == []
    assert netlink.ask([rt.drop_next_hop(5)]) == []  # With it the kernel drops what names it.
    found, lost = monitor.read()
    assert not lost
    assert [one.kind for one in found[:3]] == [rt.NEW_NEXT_HOP, rt.NEW_NEXT_HOP, rt.DEL_ROUTE]
    assert {one.kind for one in found[3:]} == {rt.DEL_ROUTE}
    other.close()
    monitor.close()
