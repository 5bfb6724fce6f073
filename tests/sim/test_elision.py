"""Worlds without the hellos of calm links say the same, at the same times, as with all hellos.

And where nobody looks, so that a hello that says nothing new is no event, all comes to the same.
"""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from x0tta6bl4.core.machine import MS, SECOND, Effects, Event, Received, Send, Tick
from x0tta6bl4.runtime.sim import swarm
from x0tta6bl4.runtime.sim.elision import Elision
from x0tta6bl4.runtime.sim.faults import Faults, draw
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.network import Shape
from x0tta6bl4.runtime.sim.plan import Fault
from x0tta6bl4.runtime.sim.traffic import Traffic
from x0tta6bl4.runtime.sim.world import Clock, Process, World
from x0tta6bl4.wire.hello import Hello

Step = tuple[int, str, str, str]


class History:
    """Everything that machines hear and say, but hellos."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, process: Process, event: Event, effects: Effects) -> None:
        said = [e for e in effects if not (type(e) is Send and type(e.message) is Hello)]
        hello = type(event) is Received and type(event.message) is Hello
        if said or not (hello or type(event) is Tick):
            heard = "" if hello or type(event) is Tick else shown(event)
            self.steps.append((process.world.now, process.name, heard, shown(said)))


def shown(value: object) -> str:
    return str(msgspec.to_builtins(value, enc_hook=lambda v: type(v).__name__, order="sorted"))


def world(seed: int) -> tuple[Fleet, list[Fault], Random]:
    """A mesh of some nodes, most wires of which only take time, and a plan of faults."""
    random = Random(f"{seed}/elision")
    world = World(seed, recording=False, nervous=False)
    mesh = Mesh(world, random.choice((50, 100, 125)) * MS)
    count = random.randrange(3, 9)
    hosts = swarm.names(count)
    for name in hosts:
        mesh.host(name, Clock(random.randrange(SECOND, 10**6 * SECOND)))
    for a, b in swarm.topology(random, count):
        jitter_us = random.choice((0, 0, 0, 0, 300))
        mesh.link(hosts[a], hosts[b], Shape(random.randrange(100, 40 * MS), jitter_us))
    fleet = Fleet(world, mesh, random.sample(hosts, 2), random.choice((30, 3600)))
    plan = draw(random, mesh, random.randrange(4, 12), 4 * SECOND, 30 * SECOND)
    return fleet, plan, random


def stands(mesh: Mesh) -> str:
    """All that proxies know of links, to the last counter, and what wires have carried."""
    known = [
        (name, node, inside(n), inside(n.window), inside(n.quality))
        for name, host in mesh.hosts.items()
        if host.proxy is not None
        for node, n in host.proxy.machine.links._neighbours.items()
    ]
    wires = [(e, mesh.network.wire(*e).sent, mesh.network.wire(*e).lost) for e in mesh.links]
    told = [(name, host.proxy.told) for name, host in mesh.hosts.items() if host.proxy is not None]
    return shown((known, wires, told))


def inside(thing: object) -> list[tuple[str, object]]:
    """All fields, but when a tick was asked for: it may be too early, by what has come since."""
    names = [name for name in type(thing).__slots__ if name != "scheduled"]  # type: ignore[attr-defined]
    return [(name, getattr(thing, name)) for name in names]


def played(seed: int, elided: bool, watched: bool = True) -> tuple[list[Step], list[str], int]:
    """What happens in a world, how all stands now and then, and for how long links were calm."""
    fleet, plan, random = world(seed)
    mesh = fleet.mesh
    elision = Elision(mesh) if elided else None
    history = History()
    if watched:
        fleet.world.observe(history)
    assert fleet.world.plain is not watched
    Faults(fleet, plan)
    fleet.start()
    talk = Traffic(fleet, 3 * SECOND)
    fleet.world.at(5 * SECOND, lambda _: talk.start(), None)
    calm = 0
    stood = []
    for second in range(45):
        fleet.world.run(fleet.world.now + SECOND - random.randrange(1000))
        calm += len(elision) if elision is not None else 0
        if second in (19, 42, 44):
            if elision is not None:
                elision.wake()
            stood.append(stands(mesh))
    return history.steps, stood, calm


@pytest.mark.parametrize("seed", range(12))
def test_nothing_else_differs(seed: int) -> None:
    steps, stood, _ = played(seed, elided=False)
    elided_steps, elided_stood, calm = played(seed, elided=True)
    for one, other in zip(steps, elided_steps, strict=False):
        assert one == other
    assert len(steps) == len(elided_steps)
    assert stood == elided_stood
    assert calm > 20


@pytest.mark.parametrize("seed", range(100, 104))
def test_all_stands_the_same_where_nobody_looks(seed: int) -> None:
    _, stood, _ = played(seed, elided=False)
    assert played(seed, elided=False, watched=False)[1] == stood
    assert played(seed, elided=True, watched=False)[1] == stood
