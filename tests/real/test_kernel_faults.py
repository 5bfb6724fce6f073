"""What may befall the kernel's half of real nodes: data goes on, and one finding says why.

A packet a millisecond goes from a to c.  While a fault is there, a finding with a stable id says
so, alone, or there is nothing to say; `c`'s view of a fault at `a` counts, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import broken_agent
from tests.real.kernel_mesh import lossy_program
from tests.real.kernel_ring import OwnMounts, Requests
from tests.real.kernel_triangle import Probe, Triangle, living
from tests.real.lab import PAGE_BYTES, cpu_s, scratch
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import living as living_pid
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.libbpf import Libbpf, Map
from x0tta6bl4.wire.admin import Fine, Renew

pytestmark = pytest.mark.netns

AROUND_MS = 150.0
"""With another way: 7.5 ms for the verdict, the rest is for a machine that does other things."""
ALONE_MS = 8_000.0
"""Without: programs anew, keys agreed on anew, and 2 s before a link that failed is trusted."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Triangle]:
    with scratch("kt") as root, OwnMounts(*Triangle.ips) as hosts:
        root.mkdir(mode=0o700)
        page = root / "page"
        page.write_bytes(os.urandom(PAGE_BYTES))
        with Triangle(hosts, root / "m", page) as found:
            yield found


@pytest.fixture
def ring(shared: Triangle) -> Triangle:
    """The triangle as it should be: nothing is cut, and nothing is to be said."""
    shared.heal("a", "c")
    shared.wait_forwards(30)
    wait_for(lambda: not any(shared.findings(name) for name in "abc"), "nothing to say", 10)
    return shared


@pytest.fixture
def probe(ring: Triangle) -> Iterator[Probe]:
    with Probe(ring) as found:
        yield found


def back(ring: Triangle, probe: Probe) -> None:
    """All is as before, and no packet was missed for it."""
    probe.reset()
    ring.wait_forwards(30)
    assert probe.gap() < AROUND_MS
    wait_for(lambda: not any(ring.findings(name) for name in "abc"), "nothing to say", 10)


def test_a_network_that_stands_still_for_a_moment_costs_that_moment(
    ring: Triangle, probe: Probe
) -> None:
    """Every node hears nothing over any link, again and again: none of them is said to be down."""
    for _ in range(3):
        probe.reset()
        ring.blink(ring.cables, 0.03)
        assert 25 < probe.gap() < AROUND_MS
        assert not [x for name in "abc" for x in ring.mesh.status(name).links if x.state == "down"]
    back(ring, probe)


def test_an_interface_that_is_down(ring: Triangle, probe: Probe) -> None:
    ring.run("a", "ip link set to-c down")
    assert probe.gap() < AROUND_MS
    wait_for(lambda: ring.findings("a") == ["X0-KRN-131"], "a to see it", 5)
    wait_for(lambda: ring.findings("c") == ["X0-KRN-132"], "c to see it", 5)
    ring.run("a", "ip link set to-c up")
    ring.run("a", f"ip route add {ring.ips['c']}/32 dev to-c src {ring.ips['a']}")
    back(ring, probe)


def test_an_interface_with_another_name(ring: Triangle, probe: Probe) -> None:
    ring.run("a", "ip link set to-c name cable")
    assert ring.findings("a") == ["X0-KRN-133"]
    assert "cable" in ring.mesh.status("a").plane.text
    assert probe.gap() < AROUND_MS
    ring.run("a", "ip link set cable name to-c")
    assert "to-c" in ring.mesh.status("a").plane.text
    back(ring, probe)


@pytest.mark.parametrize(
    ("wrong", "right", "finding"),
    [
        ("ip link set to-c mtu 1000", "ip link set to-c mtu 1500", "X0-KRN-134"),
        (
            "sysctl -w net.ipv6.conf.to-c.disable_ipv6=1",
            "sysctl -w net.ipv6.conf.to-c.disable_ipv6=0",
            "X0-KRN-138",
        ),
    ],
    ids=["mtu", "ipv6"],
)
def test_an_interface_that_loses_its_ipv6_is_left_by_both_ends(
    ring: Triangle, probe: Probe, wrong: str, right: str, finding: str
) -> None:
    ring.run("a", wrong)
    assert probe.gap() < AROUND_MS + 1000  # Seen at once, or at the next look.
    wait_for(lambda: ring.findings("a") == [finding], "a to see it", 5)
    wait_for(lambda: ring.findings("c") == ["X0-CHK-005"], "c to leave it", 5)
    ring.run("a", right)
    back(ring, probe)


def test_a_smaller_mtu_is_nothing_to_talk_about(ring: Triangle, probe: Probe) -> None:
    ring.run("a", "ip link set to-c mtu 1400")
    assert probe.gap() < AROUND_MS
    assert ring.findings("a") == []
    ring.run("a", "ip link set to-c mtu 1500")
    back(ring, probe)


def test_programs_that_somebody_takes_off_are_put_on_again(ring: Triangle, probe: Probe) -> None:
    downs = ring.counter("a", "kernel_verdicts_total|c|down")
    ring.run("a", "tc qdisc del dev to-c clsact")
    assert probe.gap() < AROUND_MS
    wait_for(lambda: ring.counter("a", "kernel_verdicts_total|c|down") > downs, "the verdict", 5)
    wait_for(lambda: "x0_leave" in ring.run("a", "tc filter show dev to-c egress"), "it", 5)
    back(ring, probe)


def test_switches_that_somebody_sets_are_set_again(ring: Triangle, probe: Probe) -> None:
    ring.cut("a", "c")
    probe.wait(300)
    probe.reset()
    ring.run("b", "sysctl -w net.ipv6.conf.all.forwarding=0")
    ring.run("b", "sysctl -w net.ipv6.conf.to-a.force_forwarding=0")
    assert probe.gap(1500) < 1500
    assert ring.findings("b") == ["X0-KRN-136"]
    ring.heal("a", "c")
    back(ring, probe)


def test_pins_that_are_gone_are_pinned_again(ring: Triangle, probe: Probe) -> None:
    before = ring.objects("b")
    for pin in ring.pins("b").glob("x0_*"):
        pin.unlink()
    assert ring.findings("b") == ["X0-KRN-145"]
    ring.unmount("b")
    assert ring.findings("b") == ["X0-KRN-145"]
    assert ring.objects("b") == before
    ring.kill("b")
    ring.mesh.start("b")
    ring.mesh.wait_ready("b")
    assert ring.objects("b") == before  # Adopted.
    back(ring, probe)


@pytest.mark.parametrize(
    "change", ["newer", pytest.param("older", marks=pytest.mark.night), "unmounted"]
)
def test_another_layout_or_no_pins_is_a_short_gap_for_who_has_no_other_way(
    ring: Triangle, probe: Probe, change: str
) -> None:
    before = ring.objects("b")
    ring.cut("a", "c")
    probe.wait(300)
    ring.kill("b")
    if change == "unmounted":
        ring.unmount("b")
    else:
        settings = Map(Libbpf(), Libbpf().unpin(ring.pins("b") / "x0_settings") or -1)
        values = layout.SETTINGS.unpack(settings.get(bytes(4)) or b"")
        values["layout"] += 1 if change == "older" else -1
        settings.put(bytes(4), layout.SETTINGS.pack(**values))
        settings.close()
    probe.reset()
    ring.mesh.start("b")
    wait_for(lambda: ring.forwards("b"), "b to forward", 20)
    gap_ms = probe.gap(500, ALONE_MS / 1000)
    print(f"{change}: {gap_ms:.0f} ms")
    assert gap_ms < ALONE_MS
    wait_for(lambda: not living(before), "the programs of before to be gone", 20)
    ring.heal("a", "c")
    back(ring, probe)


@pytest.mark.night
def test_a_host_without_ipv6_says_so_once_and_comes_back(ring: Triangle, probe: Probe) -> None:
    for where in ("all", "lo"):
        ring.run("a", f"sysctl -w net.ipv6.conf.{where}.disable_ipv6=1")
        wait_for(lambda: ring.findings("a") == ["X0-KRN-138"], "a to see it", 5)
        ring.run("a", f"sysctl -w net.ipv6.conf.{where}.disable_ipv6=0")
        probe.gap(200, ALONE_MS / 1000)
        back(ring, probe)


@pytest.mark.night
def test_a_filter_before_ours_is_told_after_a_while(ring: Triangle, probe: Probe) -> None:
    ring.run(
        "a", "tc filter add dev to-c ingress prio 1 protocol ipv6 u32 match u32 0 0 flowid 1:1"
    )
    assert probe.gap() < AROUND_MS
    for name in "ac":
        wait_for(lambda name=name: ring.findings(name) == ["X0-KRN-142"], "it to be told", 8)  # type: ignore[misc]
    ring.run("a", "tc filter del dev to-c ingress prio 1")
    back(ring, probe)


@pytest.mark.night
def test_a_packet_filter_that_forwards_nothing_leaves_requests_to_the_proxies(
    ring: Triangle,
) -> None:
    ring.cut("a", "c")
    with Requests(ring) as requests:
        requests.wait(20)
        ring.hosts.nft("b", "table inet w { chain f { type filter hook forward priority 0; policy"
                            " drop; }\n}")  # fmt: skip
        wait_for(lambda: "X0-KRN-146" in ring.findings("a"), "a to tell it", 40)
        requests.wait(20)
    assert requests.failed == 0
    ring.run("b", "nft delete table inet w")
    ring.heal("a", "c")
    wait_for(lambda: ring.findings("a") == [], "circuits through the kernel", 90)


def test_a_full_disk_costs_no_packet_and_is_told(ring: Triangle, probe: Probe) -> None:
    """Of `b`: a link is agreed on anew, its agent is killed and begins again."""
    with small_disk(ring, "b") as fill:
        back(ring, probe)
        ring.cut("a", "c")  # All goes by b.
        probe.wait(300)
        fill.write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space left"), open(fill, "ab") as file:
            file.write(bytes(16 << 20))
        probe.reset()
        ring.run("a", "ip link set to-b mtu 1400")
        with AdminClient(ring.mesh.state("a")) as client:
            client.ask(Renew("spiffe://hosts.mesh/node/a"), Fine)
        wait_for(lambda: ring.findings("b") == ["X0-KRN-151"], "b to tell it", 10)
        ring.kill("b")
        ring.mesh.start("b")
        wait_for(lambda: ring.forwards("b"), "b to forward", 20)
        assert probe.gap(500) < AROUND_MS
        fill.unlink()
        wait_for(lambda: "X0-KRN-151" not in ring.findings("b"), "it to be written", 10)
        ring.run("a", "ip link set to-b mtu 1500")
        ring.heal("a", "c")
        back(ring, probe)
    back(ring, probe)


@contextlib.contextmanager
def small_disk(ring: Triangle, name: str) -> Iterator[Path]:
    """A node whose state is on a disk of its own while the block runs; a file to fill it with."""
    state, keep = ring.mesh.state(name), ring.mesh.root / "keep"
    ring.mesh.end(name)
    shutil.copytree(state, keep, ignore=shutil.ignore_patterns("*.sock"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "x0", state], check=True, timeout=20
    )
    try:
        shutil.copytree(keep, state, dirs_exist_ok=True)
        ring.mesh.start(name)
        ring.mesh.wait_ready(name)
        yield state / "fill"
        ring.mesh.end(name)
    finally:
        shutil.rmtree(keep)
        subprocess.run(["umount", "-l", state], check=True, timeout=20)
    ring.mesh.start(name)
    ring.mesh.wait_ready(name)


def test_an_xdp_program_of_somebody_else_stays_where_it_is(ring: Triangle, probe: Probe) -> None:
    """Ours are behind the driver here; `test_kernel_native` has those who want to be in it."""
    passing = lossy_program(0x7FFFFFFF)
    with ring.space("b"):
        Libbpf().attach_xdp(socket.if_nametoindex("to-a"), passing)
    os.close(passing)
    ring.kill("b")
    ring.mesh.start("b")
    ring.mesh.wait_ready("b")
    back(ring, probe)
    ring.mesh.end("b")
    with ring.space("b"):
        index = socket.if_nametoindex("to-a")
        assert Libbpf().name_of_id(Libbpf().xdp_on(index)) == "lossy"
        Libbpf().detach_xdp(index)
    ring.mesh.start("b")
    ring.mesh.wait_ready("b")


def test_rules_for_local_packets_are_none_for_hellos(ring: Triangle, probe: Probe) -> None:
    ring.hosts.nft(
        "a",
        "table inet w { chain i { type filter hook input priority 0; udp dport 8464 drop;"
        " meta l4proto ipv6-icmp drop; }\n chain o { type filter hook output priority 0;"
        " udp dport 8464 drop; meta l4proto ipv6-icmp drop; }\n}",
    )
    asked = ring.counter("a", "kernel_hellos_total|c|answered")
    assert probe.gap(500) < AROUND_MS
    assert ring.counter("a", "kernel_hellos_total|c|answered") > asked + 50
    assert ring.findings("a") == []
    ring.run("a", "nft delete table inet w")


def test_an_agent_that_stands_still_costs_nothing(ring: Triangle, probe: Probe) -> None:
    agent = ring.agent("b")
    ring.cut("a", "c")
    probe.wait(300)
    os.kill(agent, signal.SIGSTOP)
    settings = Map(Libbpf(), Libbpf().unpin(ring.pins("b") / "x0_settings") or -1)
    values = layout.SETTINGS.unpack(settings.get(bytes(4)) or b"")
    values["renewed_ns"] -= values["agent_ns"]  # As after three seconds.
    settings.put(bytes(4), layout.SETTINGS.pack(**values))
    settings.close()
    probe.reset()
    assert probe.gap(700) < AROUND_MS
    os.kill(agent, signal.SIGCONT)
    ring.heal("a", "c")
    back(ring, probe)


def test_an_agent_with_a_bug_is_one_that_was_killed(ring: Triangle, probe: Probe) -> None:
    """Twice: the next goes on with what is there, and where there is none a stop takes it away."""
    ring.mesh.end("b")
    was = None
    for _ in range(2):
        log = ring.mesh.root / "broken.log"
        config = ring.mesh.state("b") / "node.toml"
        agent = ring.hosts.start("b", *broken_agent.COMMAND, str(config), log=log)
        ring.mesh.wait_ready("b")
        ring.wait_forwards(30)
        ring.cut("a", "c")  # All goes by b.
        probe.wait(300)
        objects = ring.objects("b")
        works = objects, living_pid(ring.mesh.state("b") / "proxy.pid")
        assert was in (None, works), "the next one began anew"
        was = works
        probe.reset()
        agent.send_signal(broken_agent.BUG)
        assert agent.wait(10) == 1
        assert probe.gap(500) < AROUND_MS
        assert living(objects) == objects
        ring.heal("a", "c")
        wait_for(lambda: ring.kernel_links("a")["c"] and ring.kernel_links("c")["a"], "a link", 10)
    assert "its proxy is stopped, its programs" in stop(ring, "b")
    wait_for(lambda: not ring.mesh.pids("b"), "its proxy to end", 10)
    wait_for(lambda: not living(objects), "programs and maps to be gone", 5)
    ring.mesh.start("b")
    ring.mesh.wait_ready("b")
    back(ring, probe)


@pytest.mark.parametrize("agent", ["alive", "killed"])
def test_a_stop_leaves_nothing_at_all(ring: Triangle, agent: str) -> None:
    objects = ring.objects("c")
    assert len(living(objects)) == len(objects) > 15
    at_work = ring.switches("c")
    assert len(set(at_work) - set(ring.untouched)) > 10
    if agent == "alive":
        ring.mesh.end("c")
    else:
        ring.kill("c")
        assert "the agent is gone already" in stop(ring, "c")
        wait_for(lambda: not ring.mesh.pids("c"), "its proxy to end", 10)
        assert "X0-ADM-001" in stop(ring, "c", status=1)
    assert sorted(set(ring.switches("c")) ^ set(ring.untouched)) == []
    wait_for(lambda: not living(objects), "programs and maps to be gone", 5)
    left = {path.name for path in ring.mesh.state("c").iterdir()}
    assert not left & {"bpf", "kernel-links", "switches"}
    wait_for(lambda: ring.findings("a") != [], "a to miss c", 10)
    ring.mesh.start("c")
    ring.mesh.wait_ready("c")


def stop(ring: Triangle, name: str, status: int = 0) -> str:
    """`x0 node stop` at a host; what it says."""
    command = (sys.executable, "-m", "x0tta6bl4", "node", "stop", "--state-dir")
    log = ring.mesh.root / f"stop-{name}.log"
    log.unlink(missing_ok=True)
    done = ring.hosts.start(name, *command, str(ring.mesh.state(name)), log=log)
    assert done.wait(30) == status, log.read_text()
    return log.read_text()


@pytest.mark.night
def test_an_interface_that_was_made_anew(ring: Triangle, probe: Probe) -> None:
    there = ring.hosts.space("c")
    ring.run("a", "ip link del to-c")
    assert probe.gap() < AROUND_MS
    wait_for(lambda: ring.findings("a") == ["X0-KRN-130"], "a to see it", 5)
    ring.run("a", f"ip link add to-c index 4242 type veth peer name to-a netns {there}")
    for name, other in (("a", "c"), ("c", "a")):
        ring.run(name, f"ip addr add {ring.ips[name]}/32 dev to-{other}")
        ring.run(name, f"ip link set to-{other} up")
        ring.run(name, f"ip route add {ring.ips[other]}/32 dev to-{other} src {ring.ips[name]}")
    back(ring, probe)


def test_a_host_that_is_gone_takes_all_with_it_and_nobody_spins(ring: Triangle) -> None:
    objects = ring.objects("c")
    ring.unmount("c")
    ring.server.stop()
    ring.mesh.kill("c")
    wait_for(lambda: not ring.mesh.pids("c"), "c to be gone", 5)
    space = ring.hosts.space("c")
    subprocess.run(["ip", "netns", "del", space], check=True, timeout=20)
    wait_for(lambda: not living(objects), "programs and maps to go with the host", 15)
    wait_for(lambda: ring.findings("a") == ["X0-KRN-130"], "a to see it", 5)
    pids, began = ring.mesh.pids("a") + ring.mesh.pids("b"), time.monotonic()
    spent = cpu_s(pids)
    time.sleep(1.5)  # That nobody spins takes time to see.
    assert cpu_s(pids) - spent < 0.6 * (time.monotonic() - began)
