"""The kernel's data plane as a mode of real nodes: a ring of four hosts, each a namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.real.kernel_mesh import LOCAL, OwnMounts
from tests.real.kernel_ring import IPS, KernelRing, Requests
from tests.real.lab import PAGE_BYTES, Ticks, scratch
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.planes import open_plane
from x0tta6bl4.wire.admin import Fine, Renew
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

pytestmark = pytest.mark.netns


def ring_of(root: Path, hosts: OwnMounts, **planes: str) -> KernelRing:
    root.mkdir(mode=0o700)
    page = root / "page"
    page.write_bytes(os.urandom(PAGE_BYTES))
    return KernelRing(hosts, root / "m", page, **planes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ring() -> Iterator[KernelRing]:
    with scratch("kr") as root, OwnMounts(*IPS) as hosts:
        found = ring_of(root, hosts)
        try:
            wait_for(lambda: all(forwards(found, name) for name in IPS), "kernels to forward", 15)
            yield found
        finally:
            found.server.stop()
            for name in IPS:
                found.mesh.end(name)


def forwards(ring: KernelRing, name: str) -> bool:
    """Whether all links of a node are the kernel's."""
    status = ring.mesh.status(name)
    alive = [key for key in status.counters if key.startswith("kernel_link_up|")]
    return len(alive) == 2 and all(status.counters[key] for key in alive)


def used(ring: KernelRing) -> tuple[str, ...]:
    """The path of the session from a."""
    found = [x.path for x in ring.mesh.status("a").sessions if x.source.endswith("reader")]
    return found[0] if found else ()


def test_requests_go_by_the_kernel_past_all_proxies(ring: KernelRing) -> None:
    with Requests(ring) as requests:
        requests.wait(20)
        wait_for(lambda: used(ring) == ("a", "d"), "a circuit without relays", 40)
        requests.wait(20)
    assert requests.failed == 0
    status = ring.mesh.status("a")
    assert status.plane.text.startswith("kernel (generic on to-b: veth, generic on to-c: veth; lib")
    assert [f.id for f in status.plane.findings] == []
    wait_for(lambda: ring.counter("a", "direct_circuits_total|dialled") > 0, "sums of a", 5)
    wait_for(lambda: ring.counter("d", "direct_circuits_total|accepted") > 0, "d's sums", 5)
    passed = [ring.counter(n, f"kernel_packets_total|{m}|received") for n in "bc" for m in "ad"]
    assert sum(passed) > 100, passed
    assert 0 < ring.counter("a", "kernel_link_rtt_seconds|b") < 5_000


def way_of(ring: KernelRing) -> str:
    """Over which neighbour the kernel of a sends to d."""
    before = {n: ring.counter("a", f"kernel_packets_total|{n}|sent") for n in "bc"}
    with Requests(ring) as requests:
        requests.wait(30)
    grown = {n: ring.counter("a", f"kernel_packets_total|{n}|sent") - before[n] for n in "bc"}
    return max(grown, key=lambda n: grown[n])


def test_a_silent_cut_of_the_link_in_use_costs_no_request(ring: KernelRing) -> None:
    by = way_of(ring)
    with ring.space("a"):
        ticks = Ticks(("127.0.0.1", LOCAL), interval_ms=1)
    with Requests(ring) as requests:
        requests.wait(20)
        requests.longest_s = ticks.gap_s = 0.0
        ring.cut("a", by)
        requests.wait(100)
        wait_for(lambda: link(ring, "a", by) == "down", "the mesh to know", 5)
        gap_ms, longest_ms = ticks.gap_s * 1000, requests.longest_s * 1000
        assert ring.counter("a", f"kernel_verdicts_total|{by}|down") == 1
        assert ring.counter(by, "kernel_verdicts_total|a|down") == 1
        requests.longest_s = ticks.gap_s = 0.0
        ring.heal("a", by)
        wait_for(lambda: link(ring, "a", by) == "up", "the link to come back", 10)
        requests.wait(100)
    print(f"cut: longest gap {gap_ms:.1f} ms, longest request {longest_ms:.1f} ms; "
          f"healed: {ticks.gap_s * 1000:.1f} ms")  # fmt: skip
    ticks.stop()
    assert requests.failed == 0
    assert ticks.ended == "stopped"
    assert gap_ms < 300


class Answers:
    """One request after the other between two mesh addresses, past all proxies.

    Args:
        ring: whose node d echoes and whose node a asks.
    """

    def __init__(self, ring: KernelRing) -> None:
        self.count = 0
        self.longest_s = 0.0
        address = str(mesh_address(TrustDomain("hosts.mesh"), NodeName("d"))), 9001
        with ring.space("d"):
            listening = socket.create_server(address, family=socket.AF_INET6)
        with listening, ring.space("a"):
            self._asks = socket.create_connection(address, 5)
            self._echoes, _ = listening.accept()
        self._threads = [threading.Thread(target=x, daemon=True) for x in (self._echo, self._ask)]
        for thread in self._threads:
            thread.start()

    def _echo(self) -> None:
        while data := self._echoes.recv(100):
            self._echoes.sendall(data)

    def _ask(self) -> None:
        with self._asks:
            while self.count >= 0:
                began = time.monotonic()
                self._asks.sendall(b"?")
                assert self._asks.recv(100) == b"?"
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.count += 1

    def wait(self, more: int) -> None:
        """Until so many more have been given."""
        until = self.count + more
        wait_for(lambda: self.count >= until, f"{more} answers", 10)

    def stop(self) -> None:
        """Hang up."""
        self.count = -1000
        for thread in reversed(self._threads):
            thread.join(5)
        self._echoes.close()


def test_tcp_past_the_proxies_is_back_long_before_its_own_200_ms(ring: KernelRing) -> None:
    by = way_of(ring)
    answers = Answers(ring)
    ring.cut("a", by, one_in=2**31 - 1)  # Next to none: all of them, both ways at once, is next.
    answers.wait(200)
    answers.longest_s = 0.0
    ring.cut("a", by)
    wait_for(lambda: link(ring, "a", by) == "down", "the mesh to know", 5)
    answers.wait(200)
    longest_ms = answers.longest_s * 1000
    ring.heal("a", by)
    wait_for(lambda: link(ring, "a", by) == "up", "the link to come back", 10)
    answers.stop()
    print(f"cut: longest answer {longest_ms:.1f} ms")
    assert longest_ms < 150


def link(ring: KernelRing, node: str, other: str) -> str:
    return next(x.state for x in ring.mesh.status(node).links if x.node == other)


def test_a_link_that_loses_a_twentieth_is_seen_and_left(ring: KernelRing) -> None:
    """As a loss, while it is up; now and then three hellos in a row are lost before that."""

    def seen() -> bool:
        found = ring.mesh.status("a").counters
        return found[f"kernel_link_gray|{by}"] == found[f"kernel_link_up|{by}"] == 1

    for _ in range(4):
        by = way_of(ring)
        ring.cut("a", by, one_in=20)
        began = time.monotonic()
        with contextlib.suppress(Unavailable):
            wait_for(seen, "a to see it", 5)
            break
        ring.heal("a", by)
        wait_for(lambda: all(forwards(ring, name) for name in IPS), "kernels to forward", 20)
    else:
        pytest.fail("a did not see it, four times")
    print(f"5 % loss seen after {time.monotonic() - began:.2f} s")
    other = "c" if by == "b" else "b"
    wait_for(lambda: way_of(ring) == other, "data to go the other way", 10)
    ring.heal("a", by)
    wait_for(lambda: ring.counter("a", f"kernel_link_gray|{by}") == 0, "it to be good again", 20)
    wait_for(lambda: all(forwards(ring, name) for name in IPS), "kernels to forward", 10)


def test_who_is_no_member_is_dropped_and_counted(ring: KernelRing) -> None:
    to = mesh_address(TrustDomain("hosts.mesh"), NodeName("d"))
    stranger = IPv6Address(int(to) + 1)
    key = "kernel_dropped_total|filter_no_member"
    led = ("ip", "-6", "route", "get", str(to))
    wait_for(lambda: " dev to-" in ring.hosts.run("b", *led, check=False).stdout, "b's table", 20)
    before = ring.counter("d", key)
    with ring.space("b"), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
        sock.bind((str(stranger), 0))
        for _ in range(7):
            sock.sendto(b"let me in", (str(to), 9))
    wait_for(lambda: ring.counter("d", key) == before + 7, "the filter", 5)


def test_a_new_svid_of_a_node_costs_its_links_no_hello(ring: KernelRing) -> None:
    wait_for(lambda: forwards(ring, "b"), "links that lost packets to be alive", 10)

    def unanswered(other: str) -> int:
        """Hellos that nobody has answered; the fewest of some looks, for one may be on its way."""
        looks = [ring.mesh.status("b").counters for _ in range(5)]
        key = f"kernel_hellos_total|{other}|"
        return min(look[key + "asked"] - look[key + "answered"] for look in looks)

    before = [unanswered(other) for other in "ad"]
    slots = [ring.counter("b", f"kernel_link_slot|{other}") for other in "ad"]
    with AdminClient(ring.mesh.state("b")) as client:
        client.ask(Renew("spiffe://hosts.mesh/node/b"), Fine)

    def turned() -> bool:
        now = [ring.counter("b", f"kernel_link_slot|{other}") for other in "ad"]
        return now == [1 - slot for slot in slots]

    wait_for(turned, "both links to use the other slot", 10)
    assert forwards(ring, "b")
    assert [unanswered(other) for other in "ad"] == before


def at_work(ring: KernelRing, name: str) -> set[str]:
    """Programs with their ids, and where routes lead to."""
    lines = ring.left(name)
    return {x if x.startswith("filter") else x.split()[0] for x in lines if x[:2] in ("fi", "fd")}


def test_without_its_agent_a_node_forwards_and_the_next_agent_takes_over(ring: KernelRing) -> None:
    before = at_work(ring, "b")
    asked = ring.counter("a", "kernel_hellos_total|b|answered")
    downs = [ring.counter(n, "kernel_verdicts_total|b|down") for n in "ad"]
    agent, proxy = ring.mesh.pids("b")
    with Requests(ring) as requests:
        requests.wait(10)
        os.kill(agent, signal.SIGKILL)
        wait_for(lambda: agent not in ring.mesh.pids("b"), "the agent to be gone", 5)
        time.sleep(1.0)  # What nobody renews for so long goes on.
        assert ring.counter("a", "kernel_hellos_total|b|answered") > asked + 200
        assert at_work(ring, "b") == before
        requests.wait(20)
        ring.mesh.start("b")
        ring.mesh.wait_ready("b")
        wait_for(lambda: forwards(ring, "b"), "the agent to take over", 10)
        requests.wait(20)
    assert requests.failed == 0
    assert ring.mesh.pids("b")[1] == proxy
    assert at_work(ring, "b") == before
    assert [ring.counter(n, "kernel_verdicts_total|b|down") for n in "ad"] == downs


def test_stop_leaves_nothing(ring: KernelRing) -> None:
    assert ring.left("c")
    pins = ring.mesh.state("c") / "bpf"
    assert pins.is_dir()
    ring.mesh.end("c")
    assert ring.left("c") == []
    assert not pins.exists()
    assert not (ring.mesh.state("c") / "kernel-links").exists()
    assert ring.switches("c") == ring.untouched


def test_a_mesh_of_both_kinds_serves() -> None:
    with scratch("km") as root, OwnMounts(*IPS) as hosts:
        ring = ring_of(root, hosts, c="userspace")
        try:
            wait_for(lambda: ring.counter("a", "kernel_link_up|b") == 1, "a and b", 15)
            wait_for(lambda: ring.counter("d", "kernel_link_up|b") == 1, "d and b", 15)
            found = ring.mesh.status("a").plane
            assert found.text.startswith("kernel (generic on to-b: veth; libbpf ")
            assert [f.id for f in found.findings] == ["X0-KRN-141"]
            assert ring.mesh.status("c").plane.text == "userspace"
            with Requests(ring) as requests:
                requests.wait(10)
                wait_for(lambda: used(ring) == ("a", "d"), "a circuit without relays", 40)
                ring.mesh.end("b")  # The kernel's only way: circuits go through c's proxy.
                requests.wait(50)
                wait_for(lambda: used(ring) == ("a", "c", "d"), "a circuit by c", 40)
            assert requests.failed == 0
        finally:
            ring.server.stop()
            for name in IPS:
                ring.mesh.end(name)


def unprivileged(root: Path, plane: str) -> subprocess.Popen[str]:
    """A node without any capability, that has no authority either."""
    state = root / plane
    state.mkdir(mode=0o700)
    settings = cfg.NodeSettings(
        trust_domain="hosts.mesh",
        node="n",
        state_dir=str(state),
        data=cfg.Data(listen="127.0.0.1:0", plane=plane),  # type: ignore[arg-type]
        control=cfg.Control(listen=""),
    )
    (state / "node.toml").write_text(cfg.dump(settings))
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m",
               "x0tta6bl4", "node", "run", "--config", str(state / "node.toml")]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_without_rights_the_kernel_plane_says_so_in_one_line() -> None:
    with scratch("kn") as root:
        root.mkdir(mode=0o755)
        node = unprivileged(root, "kernel")
        said = node.communicate(timeout=20)[1]
    assert node.returncode != 0
    lines = [line for line in said.splitlines() if "X0-KRN-" in line]
    assert len(lines) == 1, said
    assert "root" in said


def test_auto_without_rights_is_user_space_and_says_why() -> None:
    with scratch("ka") as root:
        root.mkdir(mode=0o755)
        node = unprivileged(root, "auto")
        said = node.communicate(timeout=20)[1]
        settings = cfg.NodeSettings(
            trust_domain="hosts.mesh",
            node="n",
            state_dir=str(root / "nowhere" / "n"),
            data=cfg.Data(plane="auto"),
        )
        events: list[str] = []
        kernel, plane = open_plane(settings, lambda _, text: events.append(text))
    assert "data goes through user space: X0-KRN-0" in said
    assert "X0-KRN" not in said.splitlines()[-1]  # It ends for want of a token, not for this.
    assert kernel is None
    assert plane.kind == "userspace"
    assert plane.text.startswith("userspace, because X0-KRN-006: ")
    assert [(one.id, one.level) for one in plane.findings] == [("X0-KRN-143", "warning")]
    assert events == [plane.findings[0].what]
