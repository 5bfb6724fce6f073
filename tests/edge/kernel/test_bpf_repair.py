"""Packets of a dead link led around it by the program: real hosts, no route changes meanwhile.

a - b     b's link to d is dead; d's packets go b, a, c, d, though a would send them back to b.
|   |
c - d
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.edge.kernel.ring import Host, Ring, address
from tests.edge.kernel.space import Space, link_local
from tests.edge.kernel.triangle import until
from x0tta6bl4.edge.kernel.detector import Alternate, Detector, Link, keys_of
from x0tta6bl4.edge.kernel.layout import Reason
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf
from x0tta6bl4.edge.kernel.programs import Mode, Programs
from x0tta6bl4.edge.kernel.routes import DETOUR_BYTES

pytestmark = pytest.mark.netns
SQUARE = (("a", "b"), ("b", "d"), ("a", "c"), ("c", "d"))
NUMBERS = {"a": 1, "b": 2, "c": 3, "d": 4}
"""Of the link to each node, wherever it is watched."""
_HOPS = socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT
_CAME_IN_PIECES, _RETRANSMITTED = 20, 100
"""Where `tcpi_rcv_mss` and `tcpi_total_retrans` are in TCP_INFO."""
ROOM = 40 + 8 + 3 * 16
"""What the headers for a, c, d take."""
FULL = 1500 - 40 - 20
"""Bytes of the largest segment that the cables take."""


class Watcher:
    """Programs and detector of one host."""

    def __init__(self, host: Host, pins: Path, ring: Ring) -> None:
        self.host = host
        with host.space:
            self.programs = Programs.open(Libbpf(), pins)
            self.detector = Detector(self.programs)
        ring.callback(self.remove)

    def watch(self, other: Space, name: str) -> None:
        """Watch the link to another host."""
        here = self.host
        mine, theirs = here.space.mac(f"to-{name}"), other.mac(f"to-{here.name}")
        with here.space:
            self.programs.attach(here.exits[name].index, Mode.GENERIC)
            self.detector.set_link(
                Link(
                    number=NUMBERS[name],
                    peer_number=NUMBERS[here.name],
                    ifindex=here.exits[name].index,
                    local_mac=mine,
                    peer_mac=theirs,
                    local=link_local(mine),
                    peer=link_local(theirs),
                    incarnation=1,
                )
            )
        send, take = keys_of(bytes(range(32)), here.name < name)
        self.detector.take_under(NUMBERS[name], 0, take)
        self.detector.send_under(NUMBERS[name], 0, send)

    def revive(self, number: int) -> None:
        """When the kernel finds it good."""
        until(lambda: self.detector.report(number).good >= 10)
        self.detector.revive(number)

    def remove(self) -> None:
        """Leave nothing."""
        with self.host.space:
            self.detector.remove()
            self.programs.remove()


@pytest.fixture
def ring() -> Iterator[Ring]:
    with Ring(*SQUARE) as ring:
        ring.settle()
        yield ring


@pytest.fixture
def b(ring: Ring, tmp_path: Path) -> Watcher:
    """Its link to a is alive, that to d was never answered."""
    hosts = ring.hosts
    try:
        a, b = (Watcher(hosts[name], tmp_path / name, ring) for name in "ab")
    except KernelRefused as error:
        pytest.skip(f"no programs in this kernel: {error}")
    a.watch(hosts["b"].space, "b")
    b.watch(hosts["a"].space, "a")
    b.watch(hosts["d"].space, "d")
    for one, number in ((a, NUMBERS["b"]), (b, NUMBERS["a"])):
        one.revive(number)
    assert hosts["b"].table.ways["d"].repair == ("a", "c", "d")
    _, exit = hosts["b"].courses()[address("d")]
    assert exit is not None
    mac = hosts["a"].space.mac("to-b")
    way = Alternate(IPv6Address(address("d")), exit.index, mac, exit.segments, address("b"))
    assert b.detector.set_alternates(NUMBERS["d"], [way]) == 1
    return b


def test_it_goes_around_the_dead_link_and_none_circles(ring: Ring, b: Watcher) -> None:
    sender, receiver = ring.hosts["b"].udp(), ring.hosts["d"].udp()
    receiver.setsockopt(*_HOPS, 1)
    for count in range(50):
        sender.sendto(b"%d" % count, receiver.getsockname())
        data, said, _, _ = receiver.recvmsg(100, 100)
        assert data == b"%d" % count
        assert struct.unpack("i", said[0][2]) == (64,)  # Who carries it does not count.
    report = b.detector.report(NUMBERS["d"])
    assert (report.repaired, report.diverted, report.undeliverable) == (50, 50, 0)
    assert b.detector.report(NUMBERS["a"]).sent >= 50
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(100)
    for host in ring.hosts.values():
        assert "Ip6InHdrErrors 0" in " ".join(
            host.space.run("cat", "/proc/thread-self/net/snmp6").split()
        )


def test_what_leaves_its_source_route_here_is_counted_once(
    ring: Ring, b: Watcher, tmp_path: Path
) -> None:
    c, d = (Watcher(ring.hosts[name], tmp_path / name, ring) for name in "cd")
    c.watch(ring.hosts["d"].space, "d")
    d.watch(ring.hosts["c"].space, "c")
    sender, receiver = ring.hosts["b"].udp(), ring.hosts["d"].udp()
    receiver.settimeout(5)
    for _ in range(50):
        sender.sendto(b"around", receiver.getsockname())
        assert receiver.recv(100) == b"around"
    assert b.detector.report(NUMBERS["d"]).repaired == 50
    sent = c.detector.report(NUMBERS["d"]).sent
    assert sent >= 50
    assert d.detector.report(NUMBERS["c"]).received == sent


@pytest.mark.parametrize(
    ("source", "most", "smaller"),
    [("a", FULL, ROOM), ("b", FULL, ROOM), ("b", 1200, 0), ("a", 0, 0), ("b", 0, 0)],
)
def test_a_stream_goes_on_in_pieces_that_fit(
    ring: Ring, b: Watcher, source: str, most: int, smaller: int
) -> None:
    ring.hosts["a"].space.ip(  # By its own table it has a shorter way.
        f"route replace {IPv6Address(address('d'))} metric 1"
        f" via {link_local(ring.hosts['b'].space.mac('to-a'))} dev to-b"
    )
    with ring.hosts["d"].space:
        server = socket.create_server(
            (str(IPv6Address(address("d"))), 5001), family=socket.AF_INET6
        )
    server.settimeout(5)
    if most == FULL:  # As asked for by a host whose routes say nothing of it.
        ring.hosts["d"].routes.fit(1500 + DETOUR_BYTES)
        ring.hosts["d"].routes.mend()
    elif most:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, most)
    with ring.hosts[source].space:
        out = socket.create_connection(server.getsockname()[:2], 5)
    with server, out, server.accept()[0] as there:
        there.settimeout(5)
        piece = out.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        out.sendall(bytes(4 * piece))  # One segment for the kernel, as the cable takes it whole.
        got = 0
        while got < 4 * piece:
            got += len(there.recv(1 << 16))
        assert info(out, _RETRANSMITTED) == 0
        assert info(there, _CAME_IN_PIECES) == piece - smaller
    assert b.detector.report(NUMBERS["d"]).repaired >= 4
    assert b.programs.counters()[Reason.DIVERT_TOO_BIG] == 0


def info(sock: socket.socket, at: int) -> int:
    """A number of TCP_INFO."""
    said = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    found: int = struct.unpack_from("I", said, at)[0]
    return found
