"""Sessions over particular wires: what a swarm would meet too rarely."""

from __future__ import annotations

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.core.session import facts
from x0tta6bl4.runtime.sim.faults import KINDS
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.network import Shape
from x0tta6bl4.runtime.sim.plan import FOREVER, Fault
from x0tta6bl4.runtime.sim.traffic import Traffic
from x0tta6bl4.runtime.sim.world import Clock, World


def diamond(shape: Shape, seed: str = "diamond") -> Fleet:
    """a and d, joined over b and over c."""
    world = World(seed)
    mesh = Mesh(world)
    for name in "abcd":
        mesh.host(name, Clock(SECOND))
    for a, b in ("ab", "ac", "bd", "cd"):
        mesh.link(a, b, shape)
    fleet = Fleet(world, mesh, ["a"])
    fleet.start()
    world.run(5 * SECOND)
    return fleet


def begin(fleet: Fleet, kind: str, *target: str, number: int = 0) -> None:
    KINDS[kind](fleet, Fault(kind, fleet.world.now, FOREVER, target, number))


def test_bulk_over_10_mbit_s_and_50_ms_resends_next_to_nothing_and_stays() -> None:
    fleet = diamond(Shape(latency_us=12_500, bytes_per_s=1_250_000))
    call = Traffic(fleet, SECOND).open("a", "d", 8_000_000, 8_000_000)
    assert call is not None
    fleet.world.run(fleet.world.now + 40 * SECOND)
    assert call.app.end == "done"
    client = fleet.mesh.hosts["a"].proxy
    server = fleet.mesh.hosts["d"].proxy
    for side in (client, server):
        (pipe,) = side.sessions.pipes.values()
        assert pipe.sent_high > 8_000_000
        assert pipe.resent <= pipe.sent_high // 100
    joined = [fact.reason for fact in client.sessions.joined]
    assert joined == ["new"]


def test_a_relay_that_dies_is_left_within_a_round_trip() -> None:
    fleet = diamond(Shape(latency_us=500))
    traffic = Traffic(fleet, SECOND)
    call = traffic.open("a", "d", 3_000_000, 10, pace=20_000)
    assert call is not None
    fleet.world.run(fleet.world.now + 300 * MS)
    client = fleet.mesh.hosts["a"].proxy
    relay = client.sessions.joined[-1].path[1]
    killed = fleet.world.now
    begin(fleet, "kill-proxy", relay)
    fleet.world.run(killed + 10 * MS)
    moved = client.sessions.joined[-1]
    assert (moved.reason, moved.path[1] == relay) == ("lost", False)
    fleet.world.run(killed + 10 * SECOND)
    assert call.app.end == "done"
    traffic.judge()


def test_a_relay_that_swallows_bytes_is_found_out_by_the_session() -> None:
    fleet = diamond(Shape(latency_us=500))
    traffic = Traffic(fleet, SECOND)
    call = traffic.open("a", "d", 3_000_000, 10, pace=20_000)
    assert call is not None
    fleet.world.run(fleet.world.now + 300 * MS)
    client = fleet.mesh.hosts["a"].proxy
    relay = client.sessions.joined[-1].path[1]
    (session,) = client.machine.clients.values()
    ring = session.machine.pipe.ring
    while ring.written == ring.confirmed:  # Out of credit: nothing is on its way, nobody waits.
        fleet.world.run(fleet.world.now + 100)
    cut = fleet.world.now
    begin(fleet, "cut", "a", relay)
    fleet.world.run(cut + 100 * MS)
    assert client.sessions.joined[-1].path[1] != relay
    assert client.sessions.joined[-1].reason in ("silent", "lost")
    fleet.world.run(cut + 10 * SECOND)
    assert call.app.end == "done"
    traffic.judge()


def test_rotation_under_load_moves_circuits_and_breaks_nothing() -> None:
    fleet = diamond(Shape(latency_us=2 * MS))
    traffic = Traffic(fleet, SECOND)
    calls = [traffic.open("a", "d", 300_000, 300_000, pace=20_000) for _ in range(5)]
    for second in range(4):
        begin(fleet, "rotate", "ad"[second % 2])
        fleet.world.run(fleet.world.now + SECOND)
    fleet.world.run(fleet.world.now + 10 * SECOND)
    assert [call.app.end for call in calls if call is not None] == ["done"] * 5
    client = fleet.mesh.hosts["a"].proxy
    assert sum(fact.reason == "moved" for fact in client.sessions.joined) >= 2
    assert {type(fact) for fact in client.sessions.joined} == {facts.Joined}


def test_a_revoked_identity_is_cut_off_within_a_second_of_hearing_it() -> None:
    fleet = diamond(Shape(latency_us=2 * MS))
    traffic = Traffic(fleet, SECOND)
    call = traffic.open("a", "d", 3_000_000, 10, pace=20_000)
    assert call is not None
    fleet.world.run(fleet.world.now + 300 * MS)
    begin(fleet, "revoke", "a")
    fleet.world.run(fleet.world.now + SECOND)
    assert call.app.end == "reset"
    assert not fleet.mesh.hosts["d"].proxy.machine.server.circuits
