"""The kernel's data plane as a mode of real nodes: a ring of four hosts, each a namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.kernel_ring import IPS, LOCAL, KernelRing, OwnMounts, Requests
from tests.real.lab import PAGE_BYTES, Ticks, scratch
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import wait_for

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
        wait_for(lambda: used(ring) == ("a", "d"), "a circuit without relays", 10)
        requests.wait(20)
    assert requests.failed == 0
    status = ring.mesh.status("a")
    assert status.plane.text == "kernel (generic on to-b, generic on to-c)"
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
        moves = ring.mesh.status("a").sessions[0].moves
        requests.longest_s = ticks.gap_s = 0.0
        ring.cut("a", by)
        requests.wait(100)
        wait_for(lambda: link(ring, "a", by) == "down", "the mesh to know", 5)
        gap_ms, longest_ms = ticks.gap_s * 1000, requests.longest_s * 1000
        assert ring.counter("a", f"kernel_verdicts_total|{by}|down") == 1
        assert ring.counter(by, "kernel_verdicts_total|a|down") == 1
        assert ring.mesh.status("a").sessions[0].moves == moves
        requests.longest_s = ticks.gap_s = 0.0
        ring.heal("a", by)
        wait_for(lambda: link(ring, "a", by) == "up", "the link to come back", 10)
        requests.wait(100)
    print(f"cut: longest gap {gap_ms:.1f} ms, longest request {longest_ms:.1f} ms; "
          f"healed: {ticks.gap_s * 1000:.1f} ms")  # fmt: skip
    ticks.stop()
    assert requests.failed == 0
    assert ticks.ended == "stopped"
    assert gap_ms < 500


def link(ring: KernelRing, node: str, other: str) -> str:
    return next(x.state for x in ring.mesh.status(node).links if x.node == other)


def test_without_its_agent_a_node_forwards_and_the_next_agent_takes_over(ring: KernelRing) -> None:
    before = ring.left("b")
    asked = ring.counter("a", "kernel_hellos_total|b|answered")
    downs = [ring.counter(n, "kernel_verdicts_total|b|down") for n in "ad"]
    agent, proxy = ring.mesh.pids("b")
    with Requests(ring) as requests:
        requests.wait(10)
        os.kill(agent, signal.SIGKILL)
        wait_for(lambda: agent not in ring.mesh.pids("b"), "the agent to be gone", 5)
        time.sleep(1.0)  # What nobody renews for so long goes on.
        assert ring.counter("a", "kernel_hellos_total|b|answered") > asked + 200
        assert ring.left("b") == before
        requests.wait(20)
        ring.mesh.start("b")
        ring.mesh.wait_ready("b")
        wait_for(lambda: forwards(ring, "b"), "the agent to take over", 10)
        requests.wait(20)
    assert requests.failed == 0
    assert ring.mesh.pids("b")[1] == proxy
    assert ring.left("b") == before
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
            assert found.text == "kernel (generic on to-b)"
            assert [f.id for f in found.findings] == ["X0-KRN-141"]
            assert ring.mesh.status("c").plane.text == "userspace"
            with Requests(ring) as requests:
                requests.wait(10)
                wait_for(lambda: used(ring) == ("a", "d"), "a circuit without relays", 10)
                ring.mesh.end("b")  # The kernel's only way: circuits go through c's proxy.
                requests.wait(50)
                wait_for(lambda: used(ring) == ("a", "c", "d"), "a circuit by c", 10)
            assert requests.failed == 0
        finally:
            ring.server.stop()
            for name in IPS:
                ring.mesh.end(name)


def run_unprivileged(root: Path, plane: str) -> subprocess.CompletedProcess[str]:
    """A node without any capability, until it gives up."""
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
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_without_rights_the_kernel_plane_says_so_in_one_line() -> None:
    with scratch("kn") as root:
        root.mkdir(mode=0o755)
        done = run_unprivileged(root, "kernel")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "X0-KRN-" in line]
    assert len(lines) == 1, done.stderr
    assert "root" in done.stderr
