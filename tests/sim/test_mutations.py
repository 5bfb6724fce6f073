"""The laws have teeth: a mesh with one thing wrong in it turns red, in few seeds and little time.

Each mutation replaces one decision of the product; the worlds are small and have the fault that
meets it.  The same worlds without the mutation are green.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from x0tta6bl4.core.links import liveness, quality
from x0tta6bl4.core.machine import MS, NEVER, SECOND
from x0tta6bl4.core.records import store
from x0tta6bl4.core.routing import map as routing_map
from x0tta6bl4.core.session import answer, frames
from x0tta6bl4.runtime.sim import swarm
from x0tta6bl4.runtime.sim.faults import shape
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.plan import FOREVER, Fault
from x0tta6bl4.runtime.sim.world import Clock, World
from x0tta6bl4.wire.hello import UP

SEEDS = (1, 2, 3)
RING = [("n00", "n01"), ("n01", "n02"), ("n02", "n03"), ("n00", "n03"), ("n03", "n04")]


def fleet(seed: int) -> Fleet:
    """Five nodes: a ring of four, and one that hangs on it."""
    world = World(f"mutation {seed}")
    mesh = Mesh(world)
    for index, name in enumerate(swarm.names(5)):
        mesh.host(name, Clock(SECOND + index))
    for a, b in RING:
        mesh.link(a, b, shape(world.random(f"{a}{b}")))
    return Fleet(world, mesh, ["n00"])


def red(plan: list[Fault], every: int = 500 * MS) -> str:
    """The first law that is broken in a few seeds, empty if none is."""
    for seed in SEEDS:
        report = swarm.run(seed, fleet(seed), plan, every)
        if report.broken:
            return report.broken
    return ""


def fault(kind: str, at: float, duration: float, *target: str, number: int = 0) -> Fault:
    lasts = FOREVER if duration == float("inf") else int(duration * SECOND)
    return Fault(kind, int(at * SECOND), lasts, target, number)


EVER = float("inf")
LIAR = [fault("liar", 6, EVER, "n04"), fault("cut", 8, EVER, "n00", "n01")]
MOVES = [
    fault("kill-proxy", at, 1.5, name)
    for at, name in ((7, "n01"), (10, "n03"), (13, "n01"), (16, "n03"), (19, "n01"))
]
REPLAY = [fault("replay-records", 6, 12, "n02", number=100 * MS)]
THIEF = [fault("thief", 6, 12, *pair, number=200 * MS) for pair in (*RING, ("n02", "n00"))]
JAM = [fault("jam", 6, EVER, "n00", "n01", number=20_040)]
ONE_WAY = [fault("one-way", 6, EVER, "n02", "n01")]
CUT = [fault("cut", 6, 8, "n02", "n01"), fault("cut", 8, EVER, "n00", "n01")]
ROTATE = [fault("rotate", at, 1, name) for at in (6, 9, 12) for name in swarm.names(5)]


# ------------------------------------------------------------------------------ what is broken
def one_way_counts(patch: pytest.MonkeyPatch) -> None:
    """The two-way check is skipped: what one end says of a link is enough."""

    def one(here: Any, there: Any) -> int:
        return max((report.cost for report in (here, there) if report), default=0)

    def weigh(self: Any, *ends: Any, real: Any = routing_map.Map._weigh) -> Any:
        says = self.says
        missing = [node for node in ends[:2] if says[node] is None]
        for node in missing:
            says[node] = ()
        try:
            return real(self, *ends)
        finally:
            for node in missing:
                says[node] = None

    patch.setattr(routing_map, "two_way", one)
    patch.setattr(routing_map.Map, "_weigh", weigh)


def _shifted(by: int) -> Callable[[pytest.MonkeyPatch], None]:
    def replay(patch: pytest.MonkeyPatch) -> None:
        def carry(self: Any, now: Any, session: Any, held: Any, join: Any, real: Any) -> None:
            real(self, now, session, held, join)
            if join.start:
                held.circuit.offset += by

        real = answer.Server._carry
        patch.setattr(answer.Server, "_carry", lambda s, n, se, h, j: carry(s, n, se, h, j, real))

    return replay


def equal_generation_counts(patch: pytest.MonkeyPatch) -> None:
    """A record of the generation that is held already is taken for a new one."""
    patch.setattr(store, "newer", lambda generation, than: generation >= than)


def anybody_joins(patch: pytest.MonkeyPatch) -> None:
    """The MAC of a JOIN is not judged."""
    patch.setattr(frames, "same_bytes", lambda one, other: True)


def repeats_count(patch: pytest.MonkeyPatch) -> None:
    """A hello is heard as often as somebody repeats it."""

    def accept(self: Any, sequence: int) -> tuple[int, int]:
        self.top = min(sequence, self.top or sequence)
        return 0, 0

    patch.setattr(quality.Window, "fresh", lambda self, sequence: True)
    patch.setattr(quality.Window, "accept", accept)


def hearing_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A link is up as soon as something is heard: no three-way handshake."""

    def step(self: Any, n: Any, theirs: int, out: Any) -> None:
        n.state = UP

    patch.setattr(liveness.Links, "_step", step)


def silence_is_never_judged(patch: pytest.MonkeyPatch) -> None:
    """The timer that declares a link down is lost."""

    def judge(self: Any, n: Any, now: int, out: Any) -> None:
        n.judge_at = NEVER

    patch.setattr(liveness.Links, "_judge", judge)


MUTATIONS: list[tuple[Callable[[pytest.MonkeyPatch], None], list[Fault], str]] = [
    (one_way_counts, LIAR, "two-way"),
    (_shifted(1), MOVES, "stream"),
    (_shifted(-1), MOVES, "stream"),
    (equal_generation_counts, REPLAY, "bounded"),
    (anybody_joins, THIEF, "without the secret"),
    (repeats_count, JAM, "detect time"),
    (hearing_is_enough, ONE_WAY, "detect time"),
    (silence_is_never_judged, CUT, "detect time"),
]


@pytest.mark.parametrize(
    ("mutate", "plan", "law"), MUTATIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_laws_catch(
    mutate: Callable[[pytest.MonkeyPatch], None],
    plan: list[Fault],
    law: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    assert law in red(plan)


@pytest.mark.parametrize("plan", [LIAR, MOVES, REPLAY, THIEF, JAM, ONE_WAY, CUT, ROTATE])
def test_the_same_worlds_are_green_with_nothing_broken(plan: list[Fault]) -> None:
    report = swarm.run(1, fleet(1), plan, 500 * MS)
    assert not report.broken
