"""Links in real namespaces: cut silently, diverted, healed, left alone by their agent, removed."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.edge.kernel.triangle import MESH, NUMBERS, Node, Triangle, until
from x0tta6bl4.edge.kernel import clock, layout
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.detector import Alternate, Detector, Link, Pace
from x0tta6bl4.edge.kernel.layout import EventKind
from x0tta6bl4.edge.kernel.libbpf import KernelRefused, Libbpf, is_bpffs, unmount
from x0tta6bl4.edge.kernel.netlink import Monitor
from x0tta6bl4.edge.kernel.programs import Mode, Programs

pytestmark = pytest.mark.netns
_FILTERS, _NEW_FILTER = 4, 44
"""RTNLGRP_TC and RTM_NEWTFILTER."""
AB, AC, BA, CA = (NUMBERS[way] for way in ("ab", "ac", "ba", "ca"))


@pytest.fixture
def triangle() -> Iterator[Triangle]:
    """Three nodes without programs."""
    with Triangle() as made:
        yield made


@pytest.fixture
def nodes(triangle: Triangle, tmp_path: Path) -> dict[str, Node]:
    """a watches both its links, b and c answer; all revived."""
    try:
        made = {name: Node(triangle, name, tmp_path / name, Pace()) for name in "abc"}
    except KernelRefused as error:
        pytest.skip(f"no programs in this kernel: {error}")
    for name, others in (("a", "bc"), ("b", "a"), ("c", "a")):
        for other in others:
            made[name].watch(triangle, other)
    for name, numbers in (("a", (AB, AC)), ("b", (BA,)), ("c", (CA,))):
        for number in numbers:
            made[name].revive(number)
    made["a"].detector.set_alternates(AB, [triangle.alternate("ac", "b")])
    return made


def _after(counted: Callable[[], int], more: int) -> None:
    """Wait until something has been counted so many times more."""
    start = counted()
    until(lambda: counted() > start + more)


def _gone(library: Libbpf, programs: list[int]) -> None:
    """The kernel frees programs a moment later."""
    until(lambda: not any(library.name_of_id(number) for number in programs))


def test_a_silent_cut_is_healed_before_anybody_notices(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    a = nodes["a"]
    outages, verdicts = [], []
    for _ in range(5):
        with triangle.probes("a", "b") as probes:
            until(lambda: len(probes.came) > 20)
            triangle.cut("ba")
            until(lambda: a.told(AB, EventKind.DOWN))
            _after(lambda: a.detector.report(AB).diverted, 20)
        down = next(one for one in a.events() if one.kind == EventKind.DOWN)
        assert a.told(AB, EventKind.SUSPECTED)
        verdicts.append(down.silent_us / 1000)
        outages.append(probes.outage_ms())
        triangle.heal("ba")
        with triangle.probes("a", "b") as probes:
            a.revive(AB)
            nodes["b"].revive(BA)
            _after(lambda: a.detector.report(AB).sent, 20)
        assert not probes.lost(), "nothing is lost on the way back"
    report = a.detector.report(AB)
    assert report.downs == 6  # with the one that it began with
    assert report.duplicated > 0
    # Suspect after 3.5 ms, dead after 7.5; the rest is for machines that others use, too.
    assert statistics.median(outages) < 15, outages
    assert statistics.median(verdicts) < 15, verdicts


def test_duplicates_come_while_a_link_is_suspect_and_only_then(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.came) > 50)
    twice = [number for number, count in probes.came.items() if count > 1]
    report = nodes["a"].detector.report(AB)
    assert len(twice) <= report.duplicated
    assert report.sent >= len(probes.came)
    assert nodes["b"].detector.report(BA).received >= len(probes.came)


def test_without_a_live_alternate_nothing_is_diverted(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    a = nodes["a"]
    triangle.cut("ba")
    triangle.cut("ca")
    until(lambda: a.told(AB, EventKind.DOWN) and a.told(AC, EventKind.DOWN))
    diverted = a.detector.report(AB).diverted
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.sent) > 20)
    assert not probes.came
    report = a.detector.report(AB)
    assert (report.diverted, report.undeliverable > 0) == (diverted, True)


def test_loss_is_counted_by_direction(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a, b = nodes["a"].detector, nodes["b"].detector
    a.traffic(AB)
    b.traffic(BA)
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.came) > 100)
    _after(lambda: a.report(AB).asked, 4)
    out, into = a.traffic(AB), b.traffic(BA)
    assert (out.lost_out, into.lost_in) == (0, 0)
    assert out.came_out >= 100
    assert into.came_in >= 100
    # What user space does not want to hear of is lost for good: cut a -> b, keep it alive.
    b.traffic(BA)
    a.traffic(AB)
    triangle.cut("ba")
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.sent) > 3)
    triangle.heal("ba")
    _after(lambda: b.report(BA).requests, 4)
    assert b.traffic(BA).lost_in > 0


def test_new_keys_disturb_nothing(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a, b = nodes["a"].detector, nodes["b"].detector
    one, other = b"1" * 16, b"2" * 16
    a.take_under(AB, 1, other)
    b.take_under(BA, 1, one)
    downs = a.report(AB).downs
    a.send_under(AB, 1, one)
    b.send_under(BA, 1, other)
    for detector, number in ((a, AB), (b, BA)):
        detector.take_under(number, 0, bytes(16))
    _after(lambda: a.report(AB).answers, 40)
    assert a.report(AB).downs == downs
    assert a.report(AB).refused <= 2  # under way with the old ones


def test_a_peer_that_has_died_and_begins_anew_is_good_again(
    triangle: Triangle, nodes: dict[str, Node], tmp_path: Path
) -> None:
    a, b = nodes["a"], nodes["b"]
    b.remove()
    until(lambda: a.told(AB, EventKind.DOWN))
    b = Node(triangle, "b", tmp_path / "b2", Pace())
    b.watch(triangle, "a")
    until(lambda: a.told(AB, EventKind.GOOD))
    a.revive(AB)


def test_what_user_space_declares_dead_stays_so_until_it_is_revived(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    detector = nodes["a"].detector
    detector.declare_dead(AB)
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.came) > 20)
    assert detector.report(AB).dead
    assert detector.report(AB).diverted >= 20
    assert detector.report(AB).good > 20
    detector.revive(AB)
    diverted = detector.report(AB).diverted
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.came) > 20)
    assert detector.report(AB).diverted == diverted


_AGENT = """
import sys, time
from pathlib import Path
from x0tta6bl4.edge.kernel.detector import Detector, Pace
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.edge.kernel.programs import Programs
programs = Programs.open(Libbpf(), Path(sys.argv[1]))
detector = Detector(programs, Pace())
print(programs.adopted, sorted(detector.links()), flush=True)
time.sleep(60)
"""


def test_detection_outlives_its_agent_and_is_adopted_by_the_next(
    triangle: Triangle, nodes: dict[str, Node], tmp_path: Path
) -> None:
    a = nodes["a"]
    downs = a.detector.report(AB).downs
    with a.space:
        agent = subprocess.Popen(
            [sys.executable, "-c", _AGENT, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
        )
    assert agent.stdout is not None
    assert agent.stdout.readline() == f"True [{AB}, {AC}]\n"
    # Nobody but that process holds the maps now; then nobody does.
    a.detector.close()
    a.programs.close()
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    agent.stdout.close()
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.came) > 20)
        triangle.cut("ba")
        _after(lambda: len(probes.came), 100)
    with a.space:
        a.programs = Programs.open(Libbpf(), tmp_path / "a")
        a.detector = Detector(a.programs)
    assert a.programs.adopted
    report = a.detector.report(AB)
    assert report.dead
    assert report.downs == downs + 1
    assert report.diverted > 50
    triangle.heal("ba")
    a.revive(AB)


def test_without_its_agent_a_node_stands_down(triangle: Triangle, tmp_path: Path) -> None:
    a, b = (Node(triangle, one, tmp_path / one, Pace(stand_down_s=1)) for one in "ab")
    a.watch(triangle, "b")
    b.watch(triangle, "a")
    for node, number in ((a, AB), (b, BA)):
        node.revive(number)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        with b.space:
            b.detector.renew()
        time.sleep(0.1)
    until(lambda: b.told(BA, EventKind.DOWN))
    assert a.programs.counters()[layout.Reason.CLOCK_STRAY] == 1
    assert a.programs.counters()[layout.Reason.HELLO_STOOD_DOWN] > 0
    with a.space:
        a.detector.renew()
        a.detector.renew()  # sees that the clock stands
    b.revive(BA)


def test_nothing_is_left(triangle: Triangle, tmp_path: Path) -> None:
    space = triangle.spaces["a"]
    before = _traces(triangle)
    a = Node(triangle, "a", tmp_path / "pins", Pace())
    a.watch(triangle, "b")
    a.detector.set_alternates(AB, [triangle.alternate("ab", "b")])
    library = a.programs.library
    numbers = [library.name_and_id(one)[1] for one in a.programs.programs.values()]
    assert _traces(triangle) != before
    assert is_bpffs(tmp_path / "pins")
    a.remove()
    assert _traces(triangle) == before
    assert not (tmp_path / "pins").exists()
    with space:
        assert clock.exists() is None
    _gone(library, numbers)


def test_no_clock_is_made_while_links_are_removed(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    with triangle.spaces["a"]:
        known = {index for index, _ in socket.if_nameindex()}
        assert clock.exists() is not None
        monitor = Monitor(rt.GROUP_LINK)
        nodes["a"].detector.remove()
        nodes["a"].programs.remove()
        said, lost = monitor.read()
        monitor.close()
    links = [link for one in said if (link := rt.read_link(one)) is not None]
    assert not lost
    assert clock.NEAR in {link.name for link in links}
    assert {link.index for link in links} <= known


def _traces(triangle: Triangle) -> str:
    space = triangle.spaces["a"]
    filters = [
        space.run("tc", "filter", "show", "dev", device, side, check=False)
        for device in ("ab", "ac", "lo")
        for side in ("ingress", "egress")
    ]
    return space.run("ip", "-d", "-o", "link") + space.run("tc", "qdisc") + "".join(filters)


def test_an_upgrade_keeps_the_maps_if_it_can(triangle: Triangle, tmp_path: Path) -> None:
    a = Node(triangle, "a", tmp_path / "pins", Pace())
    a.watch(triangle, "b")
    ids = [a.programs.library.name_and_id(one)[1] for one in a.programs.programs.values()]
    for layout_number, kept in ((layout.LAYOUT, True), (layout.LAYOUT + 1, False)):
        a.programs._settle(layout=layout_number, build=1)  # as an older one has left it
        a.detector.close()
        a.programs.close()
        with a.space:
            a.programs = Programs.open(Libbpf(), tmp_path / "pins")
            a.detector = Detector(a.programs)
        assert a.programs.adopted == kept
        assert sorted(a.detector.links()) == ([AB] if kept else [])
        _gone(a.programs.library, ids)
        with a.space:
            assert a.programs.attached() == {a.space.index("ab"): Mode.GENERIC}
        ids = [a.programs.library.name_and_id(one)[1] for one in a.programs.programs.values()]
    a.remove()
    assert clock.NEAR not in a.space.run("ip", "link")


def test_lost_pins_are_made_again(triangle: Triangle, tmp_path: Path) -> None:
    a = Node(triangle, "a", tmp_path / "pins", Pace())
    a.watch(triangle, "b")
    a.detector.close()
    a.programs.close()
    unmount(tmp_path / "pins")
    again = Node(triangle, "a", tmp_path / "pins", Pace())
    assert not again.programs.adopted
    with a.space:
        assert again.programs.attached() == {a.space.index("ab"): Mode.GENERIC}
    again.watch(triangle, "b")
    _after(lambda: again.detector.report(AB).asked, 5)
    again.remove()
    assert clock.NEAR not in a.space.run("ip", "link")


def test_a_lost_frame_is_put_back(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a = nodes["a"]
    with a.space:
        a.detector._write_settings(generation=1)  # a frame of another generation is dropped
        a.detector.renew()
        time.sleep(0.02)
        asked = a.detector.report(AB).asked
        a.detector.renew()
        a.detector.renew()
    until(lambda: a.detector.report(AB).asked > asked + 5)


def test_forty_links_get_their_hellos_evenly(triangle: Triangle, tmp_path: Path) -> None:
    a = Node(triangle, "a", tmp_path / "pins", Pace(hello_us=5_000))
    a.watch(triangle, "b")
    with a.space:
        base = a.detector._read(AB)
        for number in range(100, 139):
            a.detector.set_link(
                Link(
                    number=number,
                    peer_number=0,
                    ifindex=base["ifindex"],
                    local_mac=base["local_mac"],
                    peer_mac=struct.pack(">HI", 0x0200, number),
                    local=IPv6Address(base["local"]),
                    peer=IPv6Address(base["peer"]),
                    incarnation=1,
                )
            )

    def asked() -> dict[int, int]:
        """Of all links at one moment: looked at anew if that took more than a hello's time."""
        found: dict[int, int] = {}

        def at_once() -> bool:
            began = time.monotonic()
            found.update((n, a.detector.report(n).asked) for n in a.detector.links())
            return time.monotonic() - began < 0.005

        until(at_once)
        return found

    start = asked()
    _after(lambda: a.detector.report(100).asked, 40)
    grown = {number: count - start[number] for number, count in asked().items()}
    assert max(grown.values()) - min(grown.values()) <= 2, grown
    with a.space:
        a.detector.remove_link(138)
    assert 138 not in a.detector.links()


def test_what_can_not_be_a_link_is_refused(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a = nodes["a"]
    base = Link(
        number=9,
        peer_number=9,
        ifindex=1,
        local_mac=bytes(6),
        peer_mac=bytes(6),
        local=IPv6Address("fe80::1"),
        peer=IPv6Address("fe80::2"),
        incarnation=1,
    )
    for wrong in (
        {"number": 256},
        {"peer_number": -1},
        {"local": IPv6Address("fd00::1")},
        {"peer_mac": b""},
    ):
        fields = {name: getattr(base, name) for name in base.__struct_fields__} | wrong
        with pytest.raises(KernelRefused, match="X0-KRN-010"):
            a.detector.set_link(Link(**fields))
    stranger = Alternate(IPv6Address("fd00::2"), 1, bytes(6))
    with pytest.raises(KernelRefused, match="X0-KRN-011"):
        a.detector.set_alternates(AB, [stranger])


def test_nobody_gets_the_place_of_another_link(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a = nodes["a"]
    there = a.detector._read(AB)
    thief = Link(
        number=200,
        peer_number=0,
        ifindex=there["ifindex"],
        local_mac=there["local_mac"],
        peer_mac=there["peer_mac"],
        local=IPv6Address(there["local"]),
        peer=IPv6Address("fe80::bad"),
        incarnation=1,
    )
    with pytest.raises(KernelRefused, match="X0-KRN-010.*another neighbour's hardware address"):
        a.detector.set_link(thief)
    assert 200 not in a.detector.links()
    a.detector.remove_link(200)  # It was none: that takes nothing from the other one either.
    assert set(a.detector.links()) >= {AB, AC}
    a.detector.set_alternates(AC, [triangle.alternate("ab", "c")])


def test_somebody_elses_xdp_program_is_left_alone(triangle: Triangle, tmp_path: Path) -> None:
    triangle.cut("ab")
    a = Node(triangle, "a", tmp_path / "pins", Pace())
    with a.space:
        index = a.space.index("ab")
        with pytest.raises(KernelRefused, match="X0-KRN-008.*cut"):
            a.programs.attach(index, Mode.NATIVE)
        a.programs.attach(index, Mode.GENERIC)
        assert a.programs.attached() == {index: Mode.GENERIC}
        a.programs.detach(index)
        assert Libbpf().name_of_id(Libbpf().xdp_on(index)) == "cut"


def test_native_mode_where_both_ends_have_it(triangle: Triangle, tmp_path: Path) -> None:
    a, b = (Node(triangle, one, tmp_path / one, Pace()) for one in "ab")
    a.watch(triangle, "b", Mode.NATIVE)
    b.watch(triangle, "a", Mode.NATIVE)
    a.revive(AB)
    b.revive(BA)
    with a.space:
        assert a.programs.attached() == {a.space.index("ab"): Mode.NATIVE}
        monitor = Monitor(rt.GROUP_LINK, _FILTERS)
        a.programs.attach(a.space.index("ab"), Mode.GENERIC)
        said, _ = monitor.read()
        monitor.close()
        assert a.programs.attached() == {a.space.index("ab"): Mode.GENERIC}
    kinds = [one.kind for one in said if one.kind in (rt.NEW_LINK, _NEW_FILTER)]
    assert {*kinds} == {rt.NEW_LINK, _NEW_FILTER}
    # Nobody would filter or answer if XDP went before the other is there.
    assert kinds == sorted(kinds, reverse=True)


def test_no_verdict_while_our_own_clock_stands(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a = nodes["a"]
    a.detector._write_settings(generation=1)
    late = a.detector.report(AB).late
    until(lambda: a.detector.report(AB).late >= late + 3)
    assert not a.detector.report(AB).dead
    assert not a.told(AB, EventKind.DOWN)


def test_no_verdict_of_a_timer_that_comes_late(triangle: Triangle, nodes: dict[str, Node]) -> None:
    a = nodes["a"]
    a.detector._write(AB, a.detector._read(AB) | {"late_ns": 0})  # it always does
    triangle.cut("ba")
    late = a.detector.report(AB).late
    until(lambda: a.detector.report(AB).late > late + 10)
    assert not a.told(AB, EventKind.DOWN)


def test_what_was_diverted_once_is_not_diverted_again(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    # The detour's interface belongs to a dead link, too, with a detour that leads nowhere: as it
    # is for the blink of an eye when two links die at once.
    a = nodes["a"].detector
    dead, nowhere = 200, 201
    a._write(dead, a._read(AC) | {"forgiven": 0})
    a._write(nowhere, a._read(AC) | {"forgiven": 0, "peer_mac": b"\2\0\0\0\0\1"})
    maps = nodes["a"].programs.maps
    maps["x0_states"].put(struct.pack("I", dead), layout.STATE.pack(downs=1))
    port = layout.PORT_KEY.pack(ifindex=a._read(AC)["ifindex"], mac=a._read(AC)["peer_mac"])
    maps["x0_ports"].put(port, struct.pack("I", dead))
    for key in maps["x0_alternates"].keys():  # noqa: SIM118
        route = layout.ROUTE.unpack(key) | {"link": dead}
        choice = layout.ALTERNATE.pack(link=nowhere)
        maps["x0_alternates"].put(layout.ROUTE.pack(**route), choice)
    a.declare_dead(AB)
    with triangle.probes("a", "b") as probes:
        until(lambda: len(probes.sent) > 20)
    assert not probes.lost()
    assert a.report(dead).sent >= 20


def test_a_segment_that_was_diverted_is_not_taken_for_sent_again(
    triangle: Triangle, nodes: dict[str, Node]
) -> None:
    a = nodes["a"].detector
    a.declare_dead(AB)
    with triangle.spaces["b"], socket.create_server(
        (str(MESH["b"]), 5001), family=socket.AF_INET6
    ) as server:  # fmt: skip
        server.settimeout(5)
        with triangle.spaces["a"]:
            out = socket.create_connection(server.getsockname()[:2], 5)
        with out, server.accept()[0] as there:
            there.settimeout(5)
            out.sendall(b"x")
            assert there.recv(10) == b"x"
    assert a.report(AB).tcp >= 1
    assert a.report(AC).sent >= 2
    assert (a.report(AB).retransmitted, a.report(AC).retransmitted) == (0, 0)


@pytest.mark.parametrize("side", ["a", "b"])
def test_an_interface_goes_down_and_comes_back(
    triangle: Triangle, nodes: dict[str, Node], side: str
) -> None:
    a, device = nodes["a"], "ab" if side == "a" else "ba"
    space = triangle.spaces[side]
    if side == "b":
        with triangle.probes("a", "b") as probes:
            until(lambda: len(probes.came) > 20)
            space.run("ip", "link", "set", device, "down")
            _after(lambda: a.detector.report(AB).diverted, 20)
        assert probes.outage_ms() < 100
    else:
        space.run("ip", "link", "set", device, "down")
    until(lambda: a.told(AB, EventKind.DOWN))
    space.run("ip", "link", "set", device, "up")
    space.run("ip", "link", "set", device, "mtu", "1400")
    until(lambda: a.told(AB, EventKind.GOOD))
    a.revive(AB)
    with a.space:
        assert a.space.index("ab") in a.programs.attached()
