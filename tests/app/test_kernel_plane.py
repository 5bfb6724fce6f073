"""The kernel's plane of one node: what the kernel refuses is tried again, what fails is told."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import ssl
import struct
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.kernel_house import B, House
from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.space import Spaces, link_local
from x0tta6bl4.app import kernel_plane
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.told import Sets
from x0tta6bl4.core.links import verdicts as said
from x0tta6bl4.core.routing.alternates import Guard, Way
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.edge.kernel.detector import Alternate
from x0tta6bl4.edge.kernel.libbpf import KernelRefused
from x0tta6bl4.edge.kernel.plane import Plane
from x0tta6bl4.runtime.aio.links import LinkConnections
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

pytestmark = pytest.mark.netns


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with Spaces() as spaces:
        try:
            made = House(spaces.add(), spaces.add(), tmp_path)
        except KernelRefused as error:
            pytest.skip(f"no programs in this kernel: {error}")
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
        plane._decide(said.KernelDown(B, 7500))
        await asyncio.sleep(0.1)
        assert passes(c), "it is down by now"

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
