"""Kernel routes in namespaces: packets flow, change over without a gap, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.edge.kernel.ring import PREFIX, Host, Ring, address, link
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel import sysctl
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink
from x0tta6bl4.edge.kernel.routes import (
    DETOUR_BYTES,
    METRIC,
    PROTOCOL,
    RTO_MIN_MS,
    SECOND,
    Exit,
    KernelRoutes,
)
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.edge.kernel.watch import Watch
from x0tta6bl4.wire.errors import Unavailable

pytestmark = pytest.mark.netns

INET6 = socket.AF_INET6
MSS = 1500 - 60 - DETOUR_BYTES
SQUARE = (("a", "b"), ("b", "c"), ("c", "d"), ("a", "d"))


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with Ring(*SQUARE, state=tmp_path) as ring:
        ring.settle()
        yield ring


def passes(here: Host, there: Host, times: int = 1) -> None:
    """Datagrams arrive, from one mesh address at the other."""
    sender, receiver = here.udp(), there.udp()
    for count in range(times):
        sender.sendto(b"%d" % count, receiver.getsockname())
        data, source = receiver.recvfrom(100)
        assert data == b"%d" % count
        assert IPv6Address(source[0]).packed == address(here.name)
    sender.close()
    receiver.close()


def segment(here: Host, there: Host) -> int:
    """Bytes that segments to a host carry at most, as that has asked for."""
    with there.space:
        listener = socket.create_server((str(IPv6Address(address(there.name))), 0), family=INET6)
    with here.space:
        sock = socket.create_connection(listener.getsockname()[:2], 5)
    accepted, _ = listener.accept()
    with listener, sock, accepted:
        sock.send(b"x")
        assert accepted.recv(10) == b"x"
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def leavings(host: Host) -> list[str]:
    """What is in the kernel that a host without us would not have."""
    found = host.space.run("ip", "nexthop").splitlines()
    found += host.space.run("ip", "-6", "route", "show", "proto", str(PROTOCOL)).splitlines()
    found += [line for line in host.space.run("ip", "-6", "neigh").splitlines() if "PERM" in line]
    found += [
        line
        for line in host.space.run("ip", "-6", "addr", "show", "lo").splitlines()
        if "inet6" in line and "::1/" not in line
    ]
    return found


def test_packets_pass_along_the_ring_and_come_from_mesh_addresses(ring: Ring) -> None:
    for here in ring.hosts.values():
        for there in ring.hosts.values():
            if here is not there:
                passes(here, there)
    a = ring.hosts["a"]
    links = {link("b", "b"), link("d", "d"), link("b", "c"), link("d", "c")}
    assert {*a.routes.targets} == links | {address(name) for name in "bcd"}
    assert a.check() == []
    shown = a.space.run("ip", "-6", "route", "get", str(IPv6Address(address("c"))))
    assert "via fe80" in shown
    assert "dev to-b" in shown


def test_every_route_tells_tcp_to_recover_at_once_also_those_of_an_earlier_version(
    ring: Ring,
) -> None:
    a = ring.hosts["a"]
    says = f"advmss {MSS} rto_min lock {RTO_MIN_MS}ms quickack 1"

    def shown(metric: int) -> list[str]:
        words = f"ip -6 route show proto {PROTOCOL} metric {metric}".split()
        return [line for line in a.space.run(*words).splitlines() if "nhid" in line]

    for metric in (METRIC, SECOND):
        lines = shown(metric)
        assert len(lines) >= 3
        assert [line for line in lines if says not in line] == []
    to = str(IPv6Address(address("c")))
    old = next(line for line in shown(METRIC) if line.startswith(to))
    bare = f"{to} nhid {old.split()[2]} proto {PROTOCOL} metric {METRIC}"
    a.space.run("ip", "-6", "route", "replace", *bare.split())
    assert says not in next(line for line in shown(METRIC) if line.startswith(to))
    a.routes.look()
    assert a.routes.mend().routes_put == 1
    assert says in next(line for line in shown(METRIC) if line.startswith(to))
    a.routes.look()
    assert not a.routes.mend()


def test_segments_of_tcp_fit_a_detour_and_follow_the_mtu_of_the_links(ring: Ring) -> None:
    a, c = ring.hosts["a"], ring.hosts["c"]
    assert segment(c, a) == MSS - 12  # Of time stamps.
    a.routes.fit(1400)
    assert a.routes.mend().routes_put >= 2 * 3
    assert segment(c, a) == 1400 - 60 - DETOUR_BYTES - 12
    a.routes.fit(1400)
    assert not a.routes.mend()


def test_what_leads_nowhere_is_unreachable_and_goes_to_no_default_route(ring: Ring) -> None:
    a = ring.hosts["a"]
    a.space.run("ip", "-6", "route", "add", "default", "dev", "to-d")
    sock = a.udp()
    with pytest.raises(OSError, match="No route to host"):
        sock.sendto(b"x", (str(IPv6Address(PREFIX + bytes(9) + b"\1")), 9))


def test_an_interface_that_goes_down_is_left_by_the_kernel_itself(ring: Ring) -> None:
    a, c = ring.hosts["a"], ring.hosts["c"]
    sender, receiver = a.udp(), c.udp()
    sender.sendto(b"before", receiver.getsockname())
    assert receiver.recv(100) == b"before"
    a.space.run("ip", "link", "set", "to-b", "down")
    sender.sendto(b"after", receiver.getsockname())  # Nobody of us has done anything yet.
    assert receiver.recv(100) == b"after"
    seen = a.watch.read()
    assert seen.links
    a.routes.look_at_links()
    done = a.routes.mend()
    assert done.routes_put
    assert not done.refused
    assert a.check() == ["X0-KRN-131"]
    sender.sendto(b"mended", receiver.getsockname())
    assert receiver.recv(100) == b"mended"
    a.space.run("ip", "link", "set", "to-b", "up")
    assert a.watch.read().links
    a.routes.look_at_links()
    assert a.routes.settle(a.macs) == []
    assert not a.routes.mend().refused
    assert a.check() == []
    shown = a.space.run("ip", "-6", "route", "get", str(IPv6Address(address("c"))))
    assert "dev to-b" in shown
    sender.sendto(b"back", receiver.getsockname())
    assert receiver.recv(100) == b"back"


def test_a_neighbour_out_of_reach_is_left_at_once_and_found_again_without_a_gap(
    ring: Ring,
) -> None:
    a, c = ring.hosts["a"], ring.hosts["c"]
    target, hop = str(IPv6Address(address("c"))), a.exits["b"].neighbour
    sender, receiver = a.udp(), c.udp()
    sent = 0
    for off in (True, False, True, False):
        done = a.routes.cut(hop, off)
        assert (done.next_hops_put, done.routes_put, done.refused) == (2, 0, ())
        assert ("dev to-d" if off else "dev to-b") in a.space.run(
            "ip", "-6", "route", "get", target
        )
        assert not a.routes.cut(hop, off)
        for _ in range(20):
            sender.sendto(b"%d" % sent, receiver.getsockname())
            assert receiver.recv(100) == b"%d" % sent
            sent += 1


def test_not_one_packet_is_lost_while_next_hops_and_routes_change(ring: Ring) -> None:
    """Cut and found again, moved by the map and back: new before old, each time."""
    a, c = ring.hosts["a"], ring.hosts["c"]
    sender, receiver = a.udp(), c.udp()
    target, hop = receiver.getsockname(), a.exits["b"].neighbour
    received = 0

    def stream() -> None:
        nonlocal received
        for _ in range(40):
            sender.sendto(b"%d" % received, target)
            assert receiver.recv(100) == b"%d" % received
            received += 1

    changes = {True: 64, False: 16}
    for at in range(20):
        odd = at % 2 == 0
        a.routes.cut(hop, odd)
        stream()
        ring.links["a", "b"] = changes[odd]
        ring.tell()
        ring.settle()
        stream()
        if at % 4 == 3:
            a.routes.tidy()
            stream()
    assert received == 20 * 80 + 5 * 40


def test_where_no_alternate_is_packets_are_led_around_the_ring(ring: Ring) -> None:
    """From a to b without their link, while c and d still send b's packets back by their tables."""
    a, b = ring.hosts["a"], ring.hosts["b"]
    sender, receiver = a.udp(), b.udp()
    assert a.table.ways["b"].repair == ("d", "c", "b")
    shown = ring.hosts["d"].space.run("ip", "-6", "route", "get", str(IPv6Address(address("b"))))
    assert "dev to-a" in shown
    done = a.routes.cut(a.exits["b"].neighbour, True)
    assert done.next_hops_put
    assert not done.refused
    b.space.run("ip", "link", "set", "to-a", "down")
    for count in range(20):
        sender.sendto(b"%d" % count, receiver.getsockname())
        assert receiver.recv(100) == b"%d" % count
    b.space.run("ip", "link", "set", "to-a", "up")
    done = a.routes.cut(a.exits["b"].neighbour, False)
    sender.sendto(b"back", receiver.getsockname())
    assert receiver.recv(100) == b"back"


def test_who_comes_after_a_crash_leads_packets_around_the_ring_too(ring: Ring) -> None:
    """The way to the first segment is one of those that the earlier life has left."""
    a, b = ring.hosts["a"], ring.hosts["b"]
    sender, receiver = a.udp(), b.udp()
    a.begin()
    a.apply()
    a.routes.tidy()
    a.routes.cut(a.exits["b"].neighbour, True)
    b.space.run("ip", "link", "set", "to-a", "down")
    sender.sendto(b"around", receiver.getsockname())
    assert receiver.recv(100) == b"around"


def test_a_link_that_leaves_the_map_is_replaced_by_its_alternate(ring: Ring) -> None:
    """b's way to d led over c or a; the link a-b is gone for good: b learns it from the map."""
    a, b, c = (ring.hosts[name] for name in "abc")
    a.space.run("ip", "link", "del", "to-b")
    passes(a, c)  # The kernel has taken the alternate.
    del ring.links["a", "b"]
    ring.tell()
    for host in (a, b):
        host.routes.look_at_links()
    ring.settle()
    passes(a, b)
    passes(b, a)
    assert a.check() == ["X0-KRN-130"]
    assert a.apply() == a.apply()
    assert not a.apply()


def test_only_differences_are_written(ring: Ring) -> None:
    a = ring.hosts["a"]
    assert not a.apply()
    ring.links["b", "c"] = 32
    ring.tell("a")
    done = a.apply()
    assert 1 <= done.routes_put + done.routes_dropped <= 6
    assert a.routes.tidy() > 0
    assert a.routes.tidy() == 0
    passes(a, ring.hosts["c"])


def test_what_the_kernel_refuses_is_not_taken_for_done_and_the_rest_is(ring: Ring) -> None:
    a = ring.hosts["a"]
    b, d = a.exits["b"], a.exits["d"]
    multicast = Exit(b.index, b"\xff\2" + bytes(14))
    table = {address("x"): (b, d), address("y"): (multicast, d), address("z"): (b, d)}
    done = a.routes.change(table)
    assert (done.routes_put, len(done.refused)) == (5, 2)  # A next hop, and the route over it.
    done = a.routes.change(table)
    assert (done.routes_put, len(done.refused)) == (0, 2)
    done = a.routes.change({address("y"): (b, d)})
    assert (done.routes_put, done.refused) == (1, ())
    a.routes.look()
    assert not a.routes.mend()
    assert {address(name) for name in "xyz"} <= {*a.routes.targets}
    a.routes.fit(1400)  # All are to be written again; what goes is not.
    assert a.routes.change({address("x"): None}).routes_dropped == 2
    assert not a.routes.change({address("x"): None})


def test_what_others_take_away_is_written_again(ring: Ring) -> None:
    a, c = ring.hosts["a"], ring.hosts["c"]
    a.space.run("ip", "-6", "route", "flush", "proto", str(PROTOCOL))
    assert a.watch.read().routes
    a.routes.look()
    done = a.routes.mend()
    assert done.routes_put
    assert not done.refused
    passes(a, c)
    a.space.run("ip", "nexthop", "flush", "proto", str(PROTOCOL))
    a.routes.look()
    assert not a.routes.mend().refused
    passes(a, c)


def test_next_hops_of_others_with_ids_like_ours_are_left_alone(ring: Ring) -> None:
    a, c = ring.hosts["a"], ring.hosts["c"]
    ids = sorted(a.routes.next_hops)
    for id in ids:
        a.space.run(*f"ip -6 nexthop replace id {id} blackhole proto static".split())
    with a.space:
        a.routes.look()
        a.routes.mend()
    passes(a, c, times=3)
    assert not set(ids) & {*a.routes.next_hops}
    shown = a.space.run("ip", "nexthop").splitlines()
    assert sum("blackhole" in line for line in shown) == len(ids) > 0


def test_stopping_leaves_nothing(ring: Ring) -> None:
    for host in ring.hosts.values():
        assert len(leavings(host)) > 5
        with host.space:
            assert host.routes.stop() == []
            assert host.watch.restore() == []
        assert leavings(host) == []
        assert host.space.run("sysctl", "-n", "net.ipv4.nexthop_compat_mode").strip() == "1"
        assert "= 1" not in host.space.run("sysctl", "-ar", "(forwarding|seg6_enabled)$")


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}]
from x0tta6bl4.edge.kernel.netlink import Monitor, Netlink
from x0tta6bl4.edge.kernel.routes import Exit, KernelRoutes
from x0tta6bl4.edge.kernel.sysctl import Sysctls
from x0tta6bl4.edge.kernel.watch import GROUPS, Watch
netlink = Netlink()
routes = KernelRoutes(netlink, bytes.fromhex({prefix!r}), bytes.fromhex({own!r}))
routes.start()
watch = Watch(netlink, Monitor(*GROUPS), Sysctls(Path({state!r})), bytes.fromhex({prefix!r}))
watch.use([l for l in routes.links.values() if l.name.startswith("v")])
index = {{link.name: link.index for link in routes.links.values()}}
exits = [Exit(index["v0"], bytes([254, 128, *bytes(13), n])) for n in (1, 2)]
done = routes.apply({{bytes.fromhex(t): (exits[0], exits[1]) for t in {targets!r}}})
print(done.routes_put, len(done.refused), flush=True)
time.sleep(60)
"""


def test_who_comes_after_a_crash_writes_nothing_and_can_put_all_back(tmp_path: Path) -> None:
    with Ring(("x", "y")) as other:
        space = other.hosts["x"].space
        assert other.hosts["x"].routes.stop() == []
        space.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for name in ("v0", "v1"):
            space.run("ip", "link", "set", name, "up")
        space.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=1")
        targets = [address(f"n{at}").hex() for at in range(50)]
        state = tmp_path / "sysctls"
        code = CHILD.format(
            root=str(Path(sysctl.__file__).parents[3]),
            prefix=PREFIX.hex(),
            own=address("x").hex(),
            state=str(state),
            targets=targets,
        )
        with space:
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline().split() == [b"100", b"0"]
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        assert state.stat().st_mode & 0o777 == 0o600
        with space:
            netlink, sysctls = Netlink(), Sysctls(state)
        routes = KernelRoutes(netlink, PREFIX, address("x"))
        assert routes.start() == 100
        index = space.index("v0")
        exits = [Exit(index, bytes([254, 128, *bytes(13), n])) for n in (1, 2)]
        table = {bytes.fromhex(t): (exits[0], exits[1]) for t in targets}
        assert not routes.apply(table)
        moved = {**table, address("n0"): (exits[1], exits[0]), address("n1"): (exits[0], None)}
        del moved[address("n2")]
        done = routes.apply(moved)
        assert (done.routes_put, done.routes_dropped, done.refused) == (3, 3, ())
        assert routes.stop() == []
        with space:
            assert sysctls.restore() == []
        netlink.close()
        assert not state.exists()
        assert leavings(other.hosts["x"]) == []
        assert space.run("sysctl", "-n", "net.ipv4.nexthop_compat_mode").strip() == "1"


def test_findings_of_interfaces(ring: Ring) -> None:
    a = ring.hosts["a"]

    a.space.run("sysctl", "-qw", "net.ipv6.conf.to-b.disable_ipv6=1")
    assert a.check() == ["X0-KRN-138"]
    a.space.run("sysctl", "-qw", "net.ipv6.conf.to-b.disable_ipv6=0")
    a.space.run("ip", "link", "set", "to-b", "mtu", "1200")
    assert a.check() == ["X0-KRN-134"]
    a.space.run("ip", "link", "set", "to-b", "mtu", "1500")
    a.check()
    assert a.check() == []
    a.space.run("ip", "link", "set", "to-b", "down")
    a.space.run("ip", "link", "set", "to-b", "name", "eth7")
    assert sorted(a.check()) == ["X0-KRN-131", "X0-KRN-133"]
    a.space.run("ip", "link", "set", "eth7", "up")
    assert a.check() == []
    ring.hosts["d"].space.run("ip", "link", "set", "to-a", "down")
    assert a.check() == ["X0-KRN-132"]
    a.space.run("sysctl", "-qw", "net.ipv4.nexthop_compat_mode=1")
    assert "X0-KRN-136" in a.check()
    assert a.space.run("sysctl", "-n", "net.ipv4.nexthop_compat_mode").strip() == "0"
    foreign = str(IPv6Address(address("b")))
    a.space.run("ip", "-6", "route", "add", foreign, "dev", "lo", "metric", "1")
    assert "X0-KRN-135" in a.check()
    a.space.run("ip", "link", "set", "lo", "down")
    assert "X0-KRN-137" in a.check()
    with a.space:
        assert a.watch.restore() == []
    left = a.space.run("sysctl", "-ar", "(force_forwarding|seg6_enabled)$")
    assert "= 1" not in left


class OldKernel(Sysctls):
    """One that can't forward by interface."""

    def get(self, name: str) -> str | None:
        return None if "force_forwarding" in name else super().get(name)


def test_where_the_whole_host_has_to_forward_it_goes_on_heeding_routers(ring: Ring) -> None:
    a = ring.hosts["a"]
    heeded = "net.ipv6.conf.to-b.accept_ra"
    with a.space:
        assert a.watch.restore() == []
        monitor = Monitor()
        old = Watch(a.netlink, monitor, OldKernel(None), PREFIX)
        assert a.space.run("sysctl", "-n", heeded).strip() == "1"
        old.use(a.routes.links.values())
        assert a.space.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
        assert a.space.run("sysctl", "-n", heeded).strip() == "2"
        passes(ring.hosts["d"], ring.hosts["b"])
        a.space.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
        assert "X0-KRN-136" in [finding.id for finding in old.check()]
        assert a.space.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
        assert old.restore() == []
        assert a.space.run("sysctl", "-n", heeded).strip() == "1"
        assert a.space.run("sysctl", "-n", "net.ipv6.conf.to-b.forwarding").strip() == "0"
        monitor.close()


def test_switches_that_another_has_set_stay(tmp_path: Path) -> None:
    with Ring(("x", "y")) as ring:
        space = ring.hosts["x"].space
        with space:
            mine = Sysctls(tmp_path / "kept")
            name = "ipv6/conf/lo/accept_ra"
            before = mine.get(name)
            assert mine.set(name, "2")
            assert not mine.set("ipv6/conf/lo/nothing_like_it", "1")
            assert Sysctls(tmp_path / "kept").changed == (name,)
            space.run("sysctl", "-qw", "net.ipv6.conf.lo.accept_ra=0")
            assert mine.restore() == []
            assert mine.get(name) == "0"
            assert mine.set(name, str(before))
        elsewhere = Sysctls(tmp_path / "kept")  # Another namespace: not our switches.
        assert elsewhere.changed == ()


def test_a_file_of_switches_that_is_damaged_is_said(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("{")
    with pytest.raises(Unavailable, match="X0-KRN-121"):
        Sysctls(tmp_path / "kept")


def test_neighbours_that_are_no_longer_ours_are_forgotten(ring: Ring) -> None:
    a = ring.hosts["a"]
    b, d = a.exits["b"].neighbour, a.exits["d"].neighbour
    other = b"\x02\0\0\0\0\x07"
    assert a.routes.settle({b: other}) == []
    said = a.netlink.dump("neighbours", rt.GET_NEIGHBOUR, rt.ALL_NEIGHBOURS)
    ours = {
        (one.index, one.address): (one.mac, one.permanent)
        for one in map(rt.read_neighbour, said)
        if one is not None and one.protocol == PROTOCOL
    }
    assert ours == {b: (other, True)}
    assert d not in ours
