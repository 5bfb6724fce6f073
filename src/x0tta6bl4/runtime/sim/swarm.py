"""The swarm: each seed chooses size, topology, wires, faults and their parameters, and is judged.

Source: swarm testing, Groce et al., ISSTA 2012: leaving kinds of faults out of a run finds what
running all of them at once hides.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from random import Random
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.agent.words import KeepWanted, PersistWanted
from x0tta6bl4.core.machine import MS, SECOND, Effects, Event, Send
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.frames import ProtocolError
from x0tta6bl4.runtime.sim import laws, traffic
from x0tta6bl4.runtime.sim.elision import Elision
from x0tta6bl4.runtime.sim.faults import KINDS, Faults, draw, shape
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.plan import Fault
from x0tta6bl4.runtime.sim.world import Clock, LawBroken, Process, World, shown
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.messages import LinkState

ITEMS_MAX: Final = 4096
"""Most items in any container of a machine, in worlds of at most NODES_MAX nodes."""
STREAMS_SETTLE: Final = 65 * SECOND
"""A session without a circuit ends after 60 s, and its streams with it."""
OUR_BUGS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError, ProtocolError, X0Error,
)  # fmt: skip
NODES_MIN: Final = 2
NODES_MAX: Final = 40


@final
class Report(msgspec.Struct, frozen=True):
    """What one seed was, and what came of it."""

    seed: int
    nodes: int
    links: int
    virtual_s: float
    faults: dict[str, int]
    digest: str
    handled: int
    streams: dict[str, int]
    """How streams ended: `done`, or why not."""
    broken: str = ""
    """The law that does not hold, empty if all do."""


def names(count: int) -> list[str]:
    """Names of hosts: n00, n01 ..."""
    return [f"n{index:02}" for index in range(count)]


def topology(random: Random, count: int) -> list[tuple[int, int]]:
    """Pairs of a connected graph: a tree, a ring, a grid or a tree with chords."""
    kind = random.choice(("tree", "ring", "chords", "chords", "grid", "star"))
    edges: set[tuple[int, int]] = set()
    if kind == "ring":
        edges = {(i, (i + 1) % count) for i in range(count if count > 2 else 1)}
    elif kind == "grid":
        width = max(1, int(count**0.5))
        for i in range(count):
            if (i + 1) % width and i + 1 < count:
                edges.add((i, i + 1))
            if i + width < count:
                edges.add((i, i + width))
        edges |= {(i - 1, i) for i in range(1, count) if not any(i in edge for edge in edges)}
    elif kind == "star":
        edges = {(0, i) for i in range(1, count)}
    else:
        edges = {(random.randrange(i), i) for i in range(1, count)}
        if kind == "chords" and count > 3:
            for _ in range(random.randrange(count)):
                a, b = random.sample(range(count), 2)
                edges.add((min(a, b), max(a, b)))
    return sorted((min(a, b), max(a, b)) for a, b in edges)


def build(world: World, count: int, everyday: bool = True) -> Mesh:
    """A mesh of `count` hosts; everyday wires, or the plain ones of scenario files."""
    mesh = Mesh(world)
    random = world.random("topology")
    hosts = names(count)
    for name in hosts:
        mesh.host(name, Clock(random.randrange(SECOND, 10**6 * SECOND)))
    for a, b in topology(random, count):
        mesh.link(hosts[a], hosts[b], shape(random) if everyday else shape(Random(0)))
    return mesh


def judged(
    seed: int,
    trace: Callable[[str], None] | None = None,
    nodes: int | None = None,
    seconds: int | None = None,
    elide: bool = False,
    **kinds: Any,
) -> Report:
    """Run one seed to its end.

    Args:
        seed: chooses everything.
        trace: takes one line per fault and fact.
        nodes: in place of the number of nodes that the seed chooses.
        seconds: virtual seconds with faults, in place of the seed's 35 to 60.
        elide: pass no hellos over calm links (see `elision`); then timers are never late, and no
            machine is ticked early.
        kinds: `agent` or `proxy`: makers of broken machines, that the laws must catch.
    """
    fleet, plan, talk_every = prepared(seed, nodes, seconds, elide, **kinds)
    return run(seed, fleet, plan, talk_every, trace)


def prepared(
    seed: int,
    nodes: int | None = None,
    seconds: int | None = None,
    elide: bool = False,
    **kinds: Any,
) -> tuple[Fleet, list[Fault], int]:
    """What a seed chooses: the mesh, the faults, the mean time between two streams."""
    random = Random(f"{seed}/swarm")
    count = min(NODES_MAX, max(NODES_MIN, int(random.gauss(14, 6))))
    if nodes is not None:
        count = nodes
    late_us = random.choice((0, 0, 500, 5 * MS))
    world = World(seed, nervous=not elide, tick_late_us=0 if elide else late_us)
    mesh = build(world, count)
    if elide:
        Elision(mesh)
    direct = random.sample(sorted(mesh.hosts), random.randint(1, max(1, count // 3)))
    ttl_s = random.choice((30, 60, 600, 3600, 3600))
    fleet = Fleet(world, mesh, direct, ttl_s, **kinds)
    faulty_until = random.randrange(35, 60) * SECOND
    if seconds is not None:
        faulty_until = max(6, seconds) * SECOND
    plan = draw(random, mesh, random.randrange(3, 4 + count), 5 * SECOND, faulty_until)
    few = random.sample(sorted(KINDS), random.randrange(3, len(KINDS)))
    kept = [fault for fault in plan if fault.kind in few]
    return fleet, kept if len(kept) >= 3 else plan, traffic.mean_every(random)


def run(
    seed: int,
    fleet: Fleet,
    plan: list[Fault],
    talk_every: int,
    trace: Callable[[str], None] | None = None,
) -> Report:
    """Run a mesh under a plan of faults, let it settle, and judge it by all laws."""
    world, mesh = fleet.world, fleet.mesh
    faults = Faults(fleet, plan)
    if trace is not None:
        for fault in plan:
            trace(f"plan: {fault}")
        world.observe(Trace(trace))
    world.observe(laws.LinkFacts())
    world.observe(laws.Orders())
    world.observe(laws.Floods())
    laws.LinkTimes(mesh)
    laws.Circuits(mesh)
    fleet.start()
    talk = traffic.Traffic(fleet, talk_every)
    world.at(5 * SECOND, lambda _: talk.start(), None)
    broken = ""
    try:
        world.run(faults.quiet_from)
        laws.bounded(mesh, ITEMS_MAX)
        world.run(max(faults.quiet_from + laws.LINKS_SETTLE, 60 * SECOND))
        talk.stop()
        laws.links_agree(mesh)
        world.run(max(faults.quiet_from + laws.PATHS_SETTLE, world.now))
        laws.paths_agree(mesh)
        laws.revoked_gone(fleet)
        calls = talk.prove()
        world.run(world.now + traffic.PROOF)
        talk.proved(calls)
        laws.bounded(mesh, ITEMS_MAX)
        patience = world.now + STREAMS_SETTLE
        while talk.waiting() and world.now < patience:
            world.run(world.now + 2 * SECOND)
        talk.judge()
    except LawBroken as error:
        broken = str(error)
    except OUR_BUGS as error:  # The swarm is a judge: a bug in one world does not end the others.
        broken = f"{shown(world.now)} {''.join(traceback.format_exception(error)[-2:])}"
    handled = sum(p.handled for host in mesh.hosts.values() for p in host.processes())
    return Report(
        seed,
        len(mesh.hosts),
        len(mesh.links),
        world.now / SECOND,
        faults.begun,
        world.digest(),
        handled,
        talk.summary() | {f"refused {why}": n for why, n in talk.refused.items()},
        broken,
    )


class Trace:
    """Shows every fact (whatever is no message to another node) as one line.

    Args:
        out: takes the lines.
    """

    def __init__(self, out: Callable[[str], None]) -> None:
        self._out = out

    def __call__(self, process: Process, event: Event, effects: Effects) -> None:
        """Look at the effects of one step."""
        for effect in effects:
            if type(effect) in (facts.SendFrame, PersistWanted, KeepWanted):
                continue
            if type(effect) is not Send or type(effect.message) is LinkState:
                self._out(f"{shown(process.world.now)} {process.name} {effect!r:.300}")
