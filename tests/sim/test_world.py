"""The simulator itself: same seed, same world, under any hash seed; and its laws have teeth."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from x0tta6bl4.app.settings import HELLO_MS
from x0tta6bl4.core.machine import MS, NEVER, NOTHING, SECOND, Effects, Event, Instant, Tick
from x0tta6bl4.runtime.sim import bench, swarm
from x0tta6bl4.runtime.sim.world import Clock, LawBroken, Process, World


def test_the_same_seed_gives_the_same_world_under_any_hash_seed() -> None:
    code = (
        "from x0tta6bl4.runtime.sim import swarm;"
        "print([swarm.judged(seed, nodes=8, seconds=15).digest for seed in (1, 2)])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "77")
    ]
    first, second = (process.communicate(timeout=100)[0] for process in running)
    assert first == second
    assert first.count("'") == 4
    assert len({*first.split("'")[1::2]}) == 2  # Other seeds, other worlds.


@pytest.mark.parametrize("drift", [-300, 0, 7, 250])
def test_a_clock_is_inverted_exactly(drift: int) -> None:
    clock = Clock(boot_us=5 * SECOND)
    clock.drift(3 * SECOND, drift)
    for local in range(8 * SECOND, 8 * SECOND + 5000, 7):
        at = clock.virtual(Instant(local))
        assert clock.local(at) >= local
        assert clock.local(at - 1) < local


def test_a_change_of_drift_is_no_jump() -> None:
    clock = Clock()
    before = clock.local(100 * SECOND)
    clock.drift(100 * SECOND, 200)
    assert clock.local(100 * SECOND) == before
    assert clock.local(110 * SECOND) == before + 10 * SECOND + 2000


class _Stuck:
    """Wants to be woken at once, for ever."""

    def __init__(self) -> None:
        self.deadline = Instant(2 * SECOND)

    def handle(self, now: Instant, event: Event) -> Effects:
        return NOTHING


class _Hasty:
    """Does its work at any tick, even before its deadline."""

    def __init__(self) -> None:
        self.deadline = Instant(2 * SECOND)

    def handle(self, now: Instant, event: Event) -> Effects:
        self.deadline = Instant(now + 100 * MS)
        return (Tick(),)


class _Sleeper:
    """Counts its ticks."""

    def __init__(self) -> None:
        self.deadline: Instant = NEVER
        self.seen: list[tuple[int, Event]] = []

    def handle(self, now: Instant, event: Event) -> Effects:
        self.seen.append((now, event))
        self.deadline = NEVER if type(event) is Tick else Instant(now + SECOND)
        return NOTHING


def test_a_machine_that_makes_no_progress_is_caught() -> None:
    world = World(1)
    Process(world, "a/proxy", Clock(), _Stuck(), lambda _: None).arm()
    with pytest.raises(LawBroken, match="progress"):
        world.run(10 * SECOND)


def test_a_machine_whose_deadline_is_not_honest_is_caught() -> None:
    world = World(1)
    Process(world, "a/proxy", Clock(), _Hasty(), lambda _: None).arm()
    with pytest.raises(LawBroken, match="honest deadline"):
        world.run(100 * SECOND)


def test_a_frozen_process_gets_its_mail_first_and_its_tick_late() -> None:
    world = World(1, nervous=False)
    machine = _Sleeper()
    process = Process(world, "a/proxy", Clock(0), machine, lambda _: None)
    process.give(Event())
    world.run(SECOND // 2)
    process.freeze()
    process.give(Event())
    world.run(5 * SECOND)
    process.thaw()
    assert [now for now, _ in machine.seen] == [0, 5 * SECOND]
    world.run(7 * SECOND)
    assert machine.seen[-1] == (6 * SECOND, Tick())


def test_report_is_plain() -> None:
    report = swarm.judged(5, nodes=2, seconds=6)
    assert (report.nodes, report.links, report.broken) == (2, 1, "")


def test_the_bench_boots_a_mesh_in_which_everybody_knows_everybody() -> None:
    measured = bench.measure(12, 5)
    assert measured.links_up >= 2 * measured.links - 4  # One link may be cut at the end.
    assert measured.records_min == measured.records_max >= 12
    assert measured.times_real_time > 3
    assert HELLO_MS * MS == bench.HELLO


def test_the_bench_without_hellos_counts_as_many_messages() -> None:
    every, elided = (bench.measure(12, 10, elide=elide) for elide in (False, True))
    assert elided.messages == every.messages
    assert elided.links_up == every.links_up
    assert elided.elided >= elided.links - 2
    assert elided.events * 3 < every.events
