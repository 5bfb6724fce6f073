"""The kernel's plane of one node: what the kernel refuses is tried again, what fails is told."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import ssl
import struct
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.app.kernel_house import B, House, house_in
from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.space import link_local
from x0tta6bl4.app import kernel_links, kernel_plane
from x0tta6bl4.app.kernel_links import KEPT
from x0tta6bl4.app.kernel_plane import NOBODY
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.told import Sets
from x0tta6bl4.core.links import verdicts as said
from x0tta6bl4.core.routing.alternates import Guard, Way
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.detector import Alternate, Detector, LinkEvent
from x0tta6bl4.edge.kernel.layout import EventKind
from x0tta6bl4.edge.kernel.plane import Plane
from x0tta6bl4.runtime.aio.links import LinkConnections
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import link_address, mesh_address

pytestmark = pytest.mark.netns
C = NodeName("c")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path) as made:
        yield made
        with made.here:
            assert made.plane.remove() == []


def test_a_link_that_the_kernel_does_not_let_rest_is_tried_again(house: House) -> None:
    plane, links = house.plane, house.plane.programs.maps["x0_links"]
    whole, links.fd = links.fd, read_only(house.state / "bpf" / "x0_links")
    house.here.sysctl("ipv6.conf.to-b.disable_ipv6", "1")
    with house.here:
        plane._moved()
        assert not plane.detector.rests(house.number)
        assert house.said, "it was refused"
        os.close(links.fd)
        links.fd = whole
        plane._rest()
        assert plane.detector.rests(house.number)


def test_a_link_whose_detours_are_refused_leaves_the_others_theirs(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, to = house.plane, mesh_address(TrustDomain("example.org"), NodeName("d"))
    with house.here:
        number, _ = house.second()
        good = [Alternate(to, house.index, house.mac("to-a"))]
        stranger = [Alternate(to, house.index, bytes.fromhex("020000000001"))]
        table = {"b": stranger, "c": good}
        monkeypatch.setattr(Plane, "alternates", lambda _: table)
        plane._set_alternates()
        assert [text for text in house.said if "is no link" in text]
        assert plane.detector.set_alternates(number, good) == 0, "they were not there"


def test_data_leaves_a_link_that_loses_packets_at_once_until_the_tables_have_changed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_plane, "LEAVE_S", 0.05)
    plane, to = house.plane, str(mesh_address(TrustDomain("example.org"), NodeName("d")))
    shown = dead_as_said(monkeypatch)

    def passes(by: str) -> bool:
        return by in house.here.run("ip", "-6", "route", "get", to)

    async def live() -> None:
        _, c = house.second()
        b = str(link_local(house.mac("to-a")))
        plane._decide(said.KernelShows(B, True, 0, 10))  # It is up.
        plane.ways(WaysChanged((("d", Way(B, "c", Guard.NODE)),)))
        for ends in (True, False):
            assert passes(b)
            plane._loses(said.KernelLoses(B, True))
            assert passes(c)
            if ends:
                plane._loses(said.KernelLoses(B, False))
            else:
                await asyncio.sleep(0.1)
            assert passes(b)
        plane._loses(said.KernelLoses(B, True))
        monkeypatch.setattr(kernel_plane, "LEAVE_S", 60)
        plane._loses(said.KernelLoses(B, True))
        await asyncio.sleep(0.1)
        assert passes(c), "it lost packets again, and its time is that of the last"
        plane._loses(said.KernelLoses(B, False))
        monkeypatch.setattr(kernel_plane, "LEAVE_S", 0.05)
        plane._loses(said.KernelLoses(B, True))
        shown["dead"] = True
        await asyncio.sleep(0.1)
        assert passes(c), "the kernel calls it dead, in doubt though it may be"
        shown["dead"] = False
        plane._loses(said.KernelLoses(B, True))
        plane._decide(said.KernelDown(B, 7500))
        await asyncio.sleep(0.1)
        assert passes(c), "it is down by now"

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


@pytest.mark.parametrize("ended", [True, False])
def test_a_link_that_loses_packets_carries_data_again_after_a_doubt(
    house: House, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    """It is left for LEAVE_S, and that ends before the doubt begins, or within it."""
    plane, to = house.plane, str(mesh_address(TrustDomain("example.org"), NodeName("d")))
    monkeypatch.setattr(kernel_plane, "LEAVE_S", 0.05)
    shown = dead_as_said(monkeypatch)

    def passes(by: str) -> bool:
        return by in house.here.run("ip", "-6", "route", "get", to)

    async def live() -> None:
        _, c = house.second()
        b = str(link_local(house.mac("to-a")))
        plane._decide(said.KernelShows(B, True, 0, 10))  # It is up.
        plane.ways(WaysChanged((("d", Way(B, "c", Guard.NODE)),)))
        for _ in range(10):
            plane._decide(said.KernelShows(B, False, 0, 10, came_out=100, lost_out=30))
        assert passes(c)
        if ended:
            await asyncio.sleep(0.1)
            assert passes(b)
        shown["dead"] = True
        plane.routes.cut(B, True)
        plane._decide(said.KernelDown(B, 7_500, deaf=True))
        await asyncio.sleep(0.1)
        assert passes(c)
        assert plane._verdicts.doubts
        plane._decide(said.KernelShows(B, True, 0, 10, deaf=True))
        assert plane._links[B].judged.gray
        assert passes(b)

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


def test_a_verdict_that_is_seen_and_was_not_heard_cuts_routes_too(house: House) -> None:
    plane, to = house.plane, str(mesh_address(TrustDomain("example.org"), NodeName("d")))

    async def live() -> None:
        _, c = house.second()
        plane._decide(said.KernelShows(B, True, 0, 10))  # It is up.
        plane.ways(WaysChanged((("d", Way(B, "c", Guard.NODE)),)))
        assert c not in house.here.run("ip", "-6", "route", "get", to)
        plane._decide(said.KernelShows(B, True, 9_000, 0))
        assert c in house.here.run("ip", "-6", "route", "get", to)

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


def test_a_verdict_that_was_taken_back_before_it_is_heard_is_none(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = house.plane
    kernel_says = LinkEvent(house.number, EventKind.DOWN, 0, 7_800)
    monkeypatch.setattr(Detector, "events", lambda _: [kernel_says])
    shown = dead_as_said(monkeypatch)

    async def live() -> None:
        plane._decide(said.KernelShows(B, True, 0, 10))  # It is up.
        link = plane._links.get(B)
        assert link is not None
        plane._events()
        assert not plane._verdicts.doubts
        shown["dead"] = True
        plane._events()
        assert plane._verdicts.doubts, "there is no other link"

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


def test_a_verdict_is_in_no_doubt_where_another_link_is_heard(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = house.plane
    kernel_says = LinkEvent(house.number, EventKind.DOWN, 0, 7_800)
    monkeypatch.setattr(Detector, "events", lambda _: [kernel_says])
    shown = dead_as_said(monkeypatch)

    async def live() -> None:
        number, _ = house.second()
        for node in (B, "c"):
            plane._decide(said.KernelShows(node, True, 0, 10))  # It is up.
        set_state(house, number, answered_ns=time.monotonic_ns() + 1_000_000_000)
        shown["dead"] = True
        plane._events()
        assert not plane._verdicts.doubts
        assert not plane._links[B].judged.up

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


def test_a_link_that_is_silent_is_not_good_for_what_it_was_before(house: House) -> None:
    plane = house.plane
    second = 1_000_000_000

    async def live() -> None:
        plane._decide(said.KernelShows(B, True, 0, 10))  # It is up.
        link = plane._links[B]
        for _ in range(2):
            at = time.monotonic_ns() - 9_000_000
            set_state(house, link.number, downs=9, good=5_000, answered_ns=at, suspected_ns=at - 1)
            assert plane._links.heard(plane.detector) == NOBODY
            plane._show(link, NOBODY)
            assert plane._verdicts.doubts
        set_state(house, link.number, good=5_000, answered_ns=time.monotonic_ns() + second)
        assert plane._links.heard(plane.detector) == {B}
        plane._show(link, NOBODY)
        assert not plane._verdicts.doubts
        assert link.judged.up

    with house.here:
        asyncio.run(asyncio.wait_for(live(), 10))


def test_what_the_settings_turn_away_does_not_come_in(house: House) -> None:
    for last, passes in ((6, False), (7, True)):
        assert house.comes_in(bytes([0x45]) + bytes(11) + bytes([192, 0, 2, last]) + bytes(30)) == (
            passes
        )
    domain = TrustDomain("example.org")
    here, there = (mesh_address(domain, NodeName(name)) for name in "ab")
    packet = kw.ipv6(bytes(40), there, here, next=59)
    assert not house.comes_in(packet)
    house.plane.ways(WaysChanged((("b", Way(B)),)))
    assert [house.comes_in(packet) for _ in range(70)].count(True) in (65, 66)
    assert house.plane.counters()["kernel_dropped_total|filter_rate"] > 0


def test_a_revoked_node_is_turned_away_while_there_is_a_way_to_it(house: House) -> None:
    domain = TrustDomain("example.org")
    here, there = (mesh_address(domain, NodeName(name)) for name in "ab")
    packet = kw.ipv6(bytes(40), there, here, next=59)
    with house.here:
        house.plane.ways(WaysChanged((("b", Way(B)),)))
        assert house.comes_in(packet)
        house.plane._sets = Sets(Snapshot())
        house.plane._sets.banned = frozenset({"spiffe://example.org/node/b"})
        house.plane._set_members()
        house.plane._sets = None
    assert not house.comes_in(packet)
    assert house.plane.counters()["kernel_dropped_total|filter_denied"] == 1


@pytest.mark.parametrize("pinned", [True, False])
def test_whom_a_life_before_let_in_is_let_in_for_a_while_longer(
    house: House, *, pinned: bool
) -> None:
    """Its neighbour may hold the link down, and send packets over it: there is no way to it yet."""
    domain = TrustDomain("example.org")
    here, there, stranger = (mesh_address(domain, NodeName(name)) for name in "abc")
    packet = kw.ipv6(bytes(40), there, here, next=59)
    with house.here:
        house.plane._decide(said.KernelShows(B, True, 0, 10))
        house.plane.ways(WaysChanged((("b", Way(B)),)))
        if pinned:  # Else the routes say who it was.
            house.plane.ways(WaysChanged((("b", None),)))
        house.plane.close()
    for pin in () if pinned else (house.state / "bpf").glob("x0_*"):
        pin.unlink()
    house.begin()
    assert house.comes_in(packet)
    with house.here:
        house.plane.complete()
        house.plane._set_members()
    assert house.comes_in(packet)
    assert not house.comes_in(kw.ipv6(bytes(40), stranger, here, next=59))
    assert not house.comes_in(kw.ipv6(bytes(40), link_address(domain, B, B), here, next=59))
    with house.here:
        house.plane._sets = Sets(Snapshot())
        house.plane._sets.banned = frozenset({"spiffe://example.org/node/b"})
        house.plane._set_members()
        house.plane._sets = None
    assert not house.comes_in(packet)


def test_who_was_revoked_is_turned_away_by_the_next_life_too(house: House) -> None:
    """Nobody has told it yet, and there is a route to the one that was revoked."""
    here, there = (mesh_address(TrustDomain("example.org"), NodeName(name)) for name in "ab")
    with house.here:
        house.plane._decide(said.KernelShows(B, True, 0, 10))
        house.plane.ways(WaysChanged((("b", Way(B)),)))
        house.plane._members.set({there})
        house.plane.close()
    house.begin()
    packet = kw.ipv6(bytes(40), there, here, next=59)
    assert not house.comes_in(packet)
    assert house.plane.counters()["kernel_dropped_total|filter_denied"] == 1
    with house.here:
        house.plane.complete()
        house.plane._set_members()
    assert not house.comes_in(packet)


def test_what_was_not_written_down_is_agreed_on_anew(house: House) -> None:
    house.plane.close()
    (house.state / KEPT).unlink()
    house.begin(("c", "b"))
    assert house.plane.detector.links() == frozenset()
    number, _ = house.agree()
    assert number != house.number
    assert house.plane.detector.links() == {number}
    assert kept(house, "b")


def test_links_are_of_the_network_namespace_in_which_they_were_agreed_on(house: House) -> None:
    house.plane.close()
    house.here, house.there = house.there, house.here
    house.begin()
    assert not kept(house, "b")
    assert house.plane.detector.links() == frozenset()
    with house.here:
        assert house.plane.remove() == []
    house.here, house.there = house.there, house.here
    house.begin()


def test_a_link_that_was_withdrawn_is_the_next_agents_neither(house: House) -> None:
    with house.here:
        house.plane.withdrawn(B)
    house.plane.close()
    house.begin()
    assert not kept(house, "b")
    assert house.plane.detector.links() == frozenset()


def test_who_claims_anothers_address_first_keeps_it_out_for_a_while_only(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.agree(C)
    assert house.said == [
        "X0-KRN-147: b and c say that they are at one address, and neither has answered there yet."
        " the one that answers has it; look at the addresses of the other"
    ]
    with house.here:
        house.plane._agree_again()
        assert len(house.said) == 1, "it is said once"
        monkeypatch.setattr(kernel_links, "CLAIM_S", 0)
        house.plane._agree_again()
        assert (kept(house, "b"), kept(house, "c")) == (False, True)
        told = "b did not answer where c says that it is, too"
        assert house.said[-1] == told
        assert told in " ".join(one.what for one in house.plane.view().findings)
        answers(house, C)
        house.plane._agree_again()
        assert (kept(house, "b"), kept(house, "c")) == (False, True)
        assert "b says that it is at the address of c" in house.said[-1]
        house.plane.withdrawn(C)
        house.plane._agree_again()
        assert kept(house, "b")


def test_who_never_answered_gives_way_after_a_restart_and_is_proven_by_none(house: House) -> None:
    for answered in (False, True):
        house.plane.close()
        house.begin()
        assert kept(house, "b") is not answered
        assert not house.plane._verdicts.judged("b").proven
        house.agree(C)
        assert (kept(house, "b"), kept(house, "c")) == (False, True)
        if not answered:
            with house.here:
                answers(house, C)
                house.plane.detector.revive(house.plane._links._by_node["c"].number)
    house.plane.close()
    house.begin()
    assert house.plane._verdicts.judged("c").proven, "its answers count, though it is down by now"


def kept(house: House, node: str) -> bool:
    """Whether a link is the kernel's."""
    link = house.plane._links.get(node)
    assert link is not None
    return link.kept is not None


def dead_as_said(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Links are dead when this says so, and no more when they are revived."""
    report, revive, shown = Detector.report, Detector.revive, {"dead": False}

    def revived(detector: Detector, number: int) -> None:
        shown["dead"] = False
        revive(detector, number)

    monkeypatch.setattr(Detector, "report", lambda *a: msgspec.structs.replace(report(*a), **shown))
    monkeypatch.setattr(Detector, "revive", revived)
    return shown


def set_state(house: House, number: int, **fields: int) -> None:
    """Write into what the kernel knows of a link."""
    states, key = house.plane.programs.maps["x0_states"], struct.pack("I", number)
    values = layout.STATE.unpack(states.get(key) or b"")
    states.put(key, layout.STATE.pack(**values | fields))


def answers(house: House, node: NodeName) -> None:
    """The kernel has counted an answer."""
    link = house.plane._links.get(node)
    assert link is not None
    set_state(house, link.number, answers=1)
    house.plane._show(link, NOBODY)


def read_only(pin: Path) -> int:
    """A map that can be read and not written: BPF_F_RDONLY."""
    options = struct.pack("QII", 16, 1 << 3, 0)
    fd: int = ctypes.CDLL("libbpf.so.1").bpf_obj_get_opts(os.fsencode(pin), options)
    assert fd >= 0
    return fd


def test_what_must_not_happen_ends_the_agent(house: House) -> None:
    failures: list[BaseException] = []

    async def live() -> None:
        tasks = set()

        async def watched(work: Awaitable[None]) -> None:
            try:
                await work
            except AssertionError as error:
                failures.append(error)

        def spawn(work: Awaitable[None]) -> None:
            tasks.add(asyncio.create_task(watched(work)))

        tls = ssl.create_default_context()
        nobody: Any = None
        links = LinkConnections(NodeName("a"), nobody, tls, tls, lambda: 0.0, random.Random(1))
        house.plane.run(links, lambda _: None, Sets(Snapshot()), spawn)
        assert len(tasks) == 2
        house.plane._links._by_node["b"].number = 256  # No link has this number.
        done, ends = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        house.plane._links._by_node["b"].number = house.number
        house.plane._leave()
        assert len(done) == 1

    with house.here:
        asyncio.run(live())
    assert len(failures) == 1
