"""The simulator as a profiler: one large mesh at production intervals, faster than real time.

A step that is O(n) in a node is O(n²) here, and shows.  Booting is measured apart: a thousand
nodes that start in the same second are a flood that no mesh has otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from pathlib import Path
from random import Random
from typing import Final, Protocol, final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.runtime.sim.elision import Elision
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.network import Shape, Wire
from x0tta6bl4.runtime.sim.swarm import names
from x0tta6bl4.runtime.sim.world import Clock, World

DEGREE: Final = 3
HELLO: Final = 125 * MS
"""What `app.settings.HELLO_MS` is in production (a test compares them)."""
WORKLOADS: Final = 20
"""Hosts that call and serve: paths are computed to nodes in use only."""
BOOT: Final = 30 * SECOND
"""Virtual time given to booting: links, floods, anti-entropy, first SVIDs."""
CUT_EVERY: Final = 5 * SECOND
CUT_FOR: Final = 3 * SECOND
_MAPS: Final = Path("/proc/self/maps")
_HUGE: Final = 2 << 20
_MADV_COLLAPSE: Final = 25
"""Linux, include/uapi/asm-generic/mman-common.h."""


class Profiler(Protocol):
    """What looks at the measured part of a run."""

    def enable(self) -> None:
        """Look from now on."""

    def disable(self) -> None:
        """Look no more."""


@final
class Measured(msgspec.Struct, frozen=True):
    """What a run cost."""

    nodes: int
    links: int
    elided: int
    """Links that passed no hellos in the end."""
    boot_virtual_s: float
    boot_cpu_s: float
    virtual_s: float
    cpu_s: float
    times_real_time: float
    messages: int
    """Hellos, elided or not, and messages between agents, sent while measuring."""
    us_per_message: float
    events: int
    """Of all machines while measuring, without what was elided."""
    us_per_event: float
    records_min: int
    """Records in the store that holds the fewest, in the end."""
    records_max: int
    links_up: int
    """Of twice the links: each end counts."""
    rss_mb: int


def measure(
    nodes: int,
    seconds: int,
    seed: int = 1,
    elide: bool = False,
    profiler: Profiler | None = None,
) -> Measured:
    """Boot a mesh and run it, with a link cut now and then.

    Args:
        nodes: hosts, each with an agent and a proxy.
        seconds: virtual seconds to measure after booting.
        seed: of topology and wires.
        elide: pass no hellos over calm links (see `elision`); they count as messages.
        profiler: enabled after booting (e.g. `cProfile.Profile`); makes all of it slower.
    """
    fleet = _fleet(nodes, seed)
    world = fleet.world
    elision = Elision(fleet.mesh) if elide else None
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    began = time.process_time()
    fleet.start()
    world.run(BOOT)
    gc.freeze()
    _collapse()
    events, messages = _events(fleet), _messages(fleet)
    booted = time.process_time()
    _cut_now_and_then(fleet, Random(f"{seed}/cuts"))
    if profiler is not None:
        profiler.enable()
    world.run(BOOT + seconds * SECOND)
    if profiler is not None:
        profiler.disable()
    cpu_s = time.process_time() - booted
    events, messages = _events(fleet) - events, _messages(fleet) - messages
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    held = [host.agent.machine.view(0).records for host in fleet.mesh.hosts.values()]
    told = [state for host in fleet.mesh.hosts.values() for state in host.proxy.told.values()]
    return Measured(
        nodes=nodes,
        links=len(fleet.mesh.links),
        elided=len(elision) if elision is not None else 0,
        boot_virtual_s=BOOT / SECOND,
        boot_cpu_s=round(booted - began, 2),
        virtual_s=seconds,
        cpu_s=round(cpu_s, 2),
        times_real_time=round(seconds / cpu_s, 2),
        messages=messages,
        us_per_message=round(cpu_s * 1e6 / messages, 2),
        events=events,
        us_per_event=round(cpu_s * 1e6 / events, 2),
        records_min=min(held),
        records_max=max(held),
        links_up=sum(state == "up" for state in told),
        rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    )


def _fleet(nodes: int, seed: int) -> Fleet:
    """A tree with chords of mean degree DEGREE, links of 1 to 20 ms."""
    world = World(seed, recording=False, nervous=False)
    mesh = Mesh(world, HELLO)
    random = world.random("topology")
    hosts = names(nodes)
    for name in hosts:
        mesh.host(name, Clock(random.randrange(SECOND, 10**6 * SECOND)))
    edges = {(random.randrange(max(0, i - 20), i), i) for i in range(1, nodes)}
    while len(edges) < nodes * DEGREE // 2:
        a, b = sorted(random.sample(range(nodes), 2))
        edges.add((a, b))
    for a, b in sorted(edges):
        mesh.link(hosts[a], hosts[b], Shape(latency_us=random.randrange(MS, 20 * MS)))
    some = hosts[:: max(1, nodes // WORKLOADS)]
    return Fleet(world, mesh, some, workloads=some)


def _cut_now_and_then(fleet: Fleet, random: Random) -> None:
    edges = fleet.mesh.network.edges()

    def cut(_: object) -> None:
        a, b = random.choice(edges)
        wires = (fleet.mesh.network.wire(a, b), fleet.mesh.network.wire(b, a))
        for wire in wires:
            wire.cut()
            fleet.world.after(CUT_FOR, _mend, wire)
        fleet.world.after(CUT_EVERY, cut)

    fleet.world.after(CUT_EVERY, cut)


def _mend(wire: Wire) -> None:
    wire.mend()


def _events(fleet: Fleet) -> int:
    processes = [p for host in fleet.mesh.hosts.values() for p in host.processes()]
    return sum(process.handled for process in processes) + fleet.world.taken


def _messages(fleet: Fleet) -> int:
    network = fleet.mesh.network
    hellos = sum(
        network.wire(*pair).sent for edge in network.edges() for pair in (edge, edge[::-1])
    )
    if fleet.mesh.elision is not None:
        hellos += fleet.mesh.elision.elided()
    return hellos + sum(link.delivered for link in fleet.mesh.links.values())


def _collapse() -> None:
    """Have the kernel put what has been allocated onto huge pages, if it can.

    Where a gigabyte of small objects lies on pages of 4 KiB, hardly anything that a hello touches
    is in the TLB: a quarter of all time.  Kernels before 6.1 don't know MADV_COLLAPSE.
    """
    libc = ctypes.CDLL(None)
    for line in _MAPS.read_text().splitlines():
        span, access, _, _, inode, *_ = line.split()
        if access.startswith("rw") and inode == "0":
            start, end = (int(at, 16) for at in span.split("-"))
            start = -(-start // _HUGE) * _HUGE
            if start + _HUGE <= end:
                length = (end - start) // _HUGE * _HUGE
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_COLLAPSE)
