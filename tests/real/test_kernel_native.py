"""Programs in the driver, with real nodes: where both ends can, and never without an answer.

 native == c    both ends of the cable of a and c are in their drivers
a           d
 \\ mtu  b  /    a-b: the driver of one end refuses; b-d: b's runs a program of somebody else;
                c-d: a bridge between them, whose ports drop what drivers send
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.real.kernel_mesh import LOCAL, OwnMounts, lossy_program
from tests.real.kernel_ring import IPS, KernelRing, Requests
from tests.real.lab import PAGE_BYTES, Ticks, scratch
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.kernel_modes import Xdp
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.wire.admin import CheckAnswer, GetCheck

pytestmark = pytest.mark.netns


class NativeRing(KernelRing):
    """All wish for native mode; one cable can."""

    xdp: ClassVar[Xdp] = "native"

    def prepare(self) -> None:
        run = self.hosts.run
        run("a", "ip", "link", "set", "to-b", "mtu", "9000")  # One end only: b's driver refuses.
        passing = lossy_program(0x7FFFFFFF)
        with self.space("b"):
            Libbpf().attach_xdp(socket.if_nametoindex("to-d"), passing)
        os.close(passing)
        run("c", "ip", "link", "del", "to-d")
        run("w", "ip", "link", "add", "bridge", "type", "bridge")
        run("w", "ip", "link", "set", "bridge", "up")
        for host, other in ("cd", "dc"):
            near, port = self.hosts.wire(host, f"{IPS[host]}/32", "w", "192.0.2.1/32")
            run("w", "ip", "link", "set", port, "master", "bridge")
            run(host, "ip", "link", "set", near, "down")
            run(host, "ip", "link", "set", near, "name", f"to-{other}")
            run(host, "ip", "link", "set", f"to-{other}", "up")
            route = f"route add {IPS[other]}/32 dev to-{other} src {IPS[host]}"
            run(host, "ip", *route.split())

    def check(self, name: str) -> CheckAnswer:
        """What `x0 check` says."""
        with AdminClient(self.mesh.state(name)) as client:
            return client.ask(GetCheck(), CheckAnswer)

    def why(self, name: str, other: str) -> str:
        """Why programs are behind the driver; empty: nobody says so."""
        head = f"the programs on to-{other} run behind its driver: "
        found = [x for x in self.check(name).findings if x.id == "X0-KRN-144"]
        assert all(x.level == "notice" for x in found)
        return next((x.what.removeprefix(head) for x in found if x.what.startswith(head)), "")

    def on(self, name: str, other: str) -> int:
        """Number of the XDP program of an interface."""
        with self.space(name):
            return Libbpf().xdp_on(socket.if_nametoindex(f"to-{other}"))

    def sever(self, one: str, other: str) -> None:
        """Swallow what either end sends; an XDP program that drops would take the place of ours."""
        for here, there in ((one, other), (other, one)):
            self.hosts.run(here, *f"tc qdisc add dev to-{there} root blackhole".split())

    def join(self, one: str, other: str) -> None:
        """Swallow nothing any more."""
        for here, there in ((one, other), (other, one)):
            self.hosts.run(here, *f"tc qdisc del dev to-{there} root".split())


@pytest.fixture(scope="module")
def ring() -> Iterator[NativeRing]:
    with scratch("kx") as root, OwnMounts(*IPS, "w") as hosts:
        root.mkdir(mode=0o700)
        page = root / "page"
        page.write_bytes(os.urandom(PAGE_BYTES))
        found = NativeRing(hosts, root / "m", page)
        try:
            found.wait_kernels(IPS, 30)
            yield found
        finally:
            found.close()


def test_each_end_says_where_its_programs_are_and_why(ring: NativeRing) -> None:
    assert ring.why("a", "c") == ring.why("c", "a") == ""
    assert "native on to-c" in ring.check("a").plane
    assert "native on to-a" in ring.check("c").plane
    assert ring.check("a").plane.startswith("kernel (generic on to-b: ")
    both = {ring.why("a", "b"), ring.why("b", "a")}
    assert any("takes no programs in native mode" in why for why in both), both
    assert any("has its programs behind its driver" in why for why in both), both
    assert "somebody else" in ring.why("b", "d")
    assert ring.why("d", "b").startswith("b has its programs behind its driver")
    both = {ring.why("c", "d"), ring.why("d", "c")}
    assert any(why.endswith("did not answer in 3 s") for why in both), both
    with ring.space("b"):
        assert Libbpf().name_of_id(ring.on("b", "d")) == "lossy"


def test_a_silent_cut_of_a_link_in_native_mode_costs_no_request(ring: NativeRing) -> None:
    with ring.space("a"):
        ticks = Ticks(("127.0.0.1", LOCAL), interval_ms=1)
    programs = ring.on("a", "c"), ring.on("c", "a")
    assert all(programs)
    with Requests(ring) as requests:
        requests.wait(50)
        requests.longest_s = ticks.gap_s = 0.0
        ring.sever("a", "c")
        wait_for(lambda: not ring.kernel_links("a")["c"], "the kernel to know", 5)
        requests.wait(50)
        gap_ms, longest_ms = ticks.gap_s * 1000, requests.longest_s * 1000
        ring.join("a", "c")
        ring.wait_kernels(IPS)
        requests.wait(50)
    ticks.stop()
    print(f"native: longest gap {gap_ms:.1f} ms, longest request {longest_ms:.1f} ms")
    assert requests.failed == 0
    assert (ring.on("a", "c"), ring.on("c", "a")) == programs
    assert ticks.ended == "stopped"
    assert gap_ms < 300


def test_what_somebody_takes_out_of_the_driver_is_put_in_again(ring: NativeRing) -> None:
    with ring.space("a"):
        Libbpf().detach_xdp(socket.if_nametoindex("to-c"))
    wait_for(lambda: not ring.kernel_links("a")["c"], "a verdict", 5)
    ring.check("a")
    assert ring.on("a", "c")
    ring.wait_kernels("ac")
    assert "native on to-c" in ring.check("a").plane


def test_stop_takes_ours_out_of_the_driver_and_leaves_those_of_others(ring: NativeRing) -> None:
    for name in "cb":
        ring.mesh.end(name)
        assert ring.left(name) == []
    assert ring.on("c", "a") == 0
    assert ring.on("b", "d") != 0
