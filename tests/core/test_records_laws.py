"""Laws of many stores: whatever the network does, they end up holding the same true records."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import signing
from tests.fakes.signing import DOMAIN, bundle, node_record, set_records
from x0tta6bl4.core.machine import SECOND, ClockSet, Effects, Event, Instant, Received, Send, Tick
from x0tta6bl4.core.records import store as store_module
from x0tta6bl4.core.records.sets import SetChanged
from x0tta6bl4.core.records.store import Records
from x0tta6bl4.core.records.words import (
    Learn,
    PeerDown,
    PeerUp,
    Publish,
    Restore,
    Settings,
    Trust,
)
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import Flood
from x0tta6bl4.wire.records import KIND_NODE

UNIX = 1_800_000_000
LATER = UNIX + 86_400
SMALL = Settings(records_max=64, parked_max=16, gone_max=16, sins_max=8)


class World:
    """Some stores, the links between them, and a network that loses, doubles and reorders."""

    def __init__(self, size: int, seed: int) -> None:
        self.random = Random(seed)
        self.now = Instant(0)
        self.names = [f"n{number}" for number in range(size)]
        self.stores = {name: self.born(name) for name in self.names}
        self.links = {(a, b) for a in self.names for b in self.names if a < b}
        self.up: set[tuple[str, str]] = set()
        self.flying: list[tuple[str, str, object]] = []
        self.said: dict[str, bytes] = {}
        self.seen: dict[str, list[tuple[str, int]]] = {name: [] for name in self.names}
        self.lossy = True

    def born(self, name: str) -> Records:
        machine = Records(
            NodeName(name),
            DOMAIN,
            verify=signing.verify,
            verify_key=signing.verify_key,
            sign=signing.signer(name),
            random=Random(f"{name}"),
            settings=SMALL,
        )
        machine.handle(self.now, Trust(bundle(1, "k1"), LATER))
        machine.handle(self.now, ClockSet(UNIX * SECOND + self.now))
        return machine

    def give(self, name: str, event: Event) -> Effects:
        machine = self.stores[name]
        effects = machine.handle(self.now, event)
        assert type(event) is not Tick or machine.deadline > self.now
        for effect in effects:
            if type(effect) is Send:
                link = (min(name, effect.dst), max(name, effect.dst))
                if link in self.up and len(self.flying) < 5000:
                    self.flying.append((name, effect.dst, effect.message))
            elif type(effect) is SetChanged:
                self.seen[name].append((effect.set, effect.sequence))
        return effects

    def deliver(self) -> None:
        """One message from anywhere in the air; sometimes lost, sometimes twice."""
        if not self.flying:
            return
        at = self.random.randrange(len(self.flying)) if self.lossy else 0
        src, dst, message = self.flying[at]
        luck = self.random.random() if self.lossy else 0.5
        if luck < 0.9:
            del self.flying[at]
        if luck > 0.2:
            self.give(dst, Received(src, message))

    def pass_time(self, us: int) -> None:
        until = self.now + us
        while True:
            at = min(machine.deadline for machine in self.stores.values())
            if at > until:
                break
            self.now = Instant(max(self.now, at))
            for name, machine in self.stores.items():
                early = machine.deadline
                effects = self.give(name, Tick())
                assert early <= self.now or (effects == () and machine.deadline == early)
            while not self.lossy and self.flying:
                self.deliver()
        self.now = Instant(until)

    def connect(self, link: tuple[str, str]) -> None:
        self.up.add(link)
        for a, b in (link, link[::-1]):
            self.give(a, PeerUp(b))

    def cut(self, link: tuple[str, str]) -> None:
        self.up.discard(link)
        self.flying = [f for f in self.flying if (min(f[:2]), max(f[:2])) != link]
        for a, b in (link, link[::-1]):
            self.give(a, PeerDown(b))

    def restart(self, name: str) -> None:
        held = self.stores[name].held()
        for link in sorted(self.up):
            if name in link:
                self.cut(link)
        self.stores[name] = self.born(name)
        self.give(name, Restore(held))
        if name in self.said:
            self.give(name, Publish(KIND_NODE, "", self.said[name], LATER))

    def forge(self, name: str, victim: str) -> None:
        """A neighbour signs about somebody else, or with a key that it does not have."""
        ahead = UNIX + self.now // SECOND + 50
        forged = (
            node_record(victim, ahead, b"forged", LATER, by=name),
            node_record(victim, ahead, b"forged", LATER)[:-1] + b"\0",
            *set_records("names", 99, b"forged", key="k9", generation=ahead, expires_unix_s=LATER),
        )
        for other in self.names:
            self.give(other, Received(name, Flood(forged)))

    def heal(self) -> None:
        self.lossy = False
        for link in sorted(self.links - self.up):
            self.connect(link)
        while self.flying:
            self.deliver()
        self.pass_time(45 * SECOND)


step = st.sampled_from(
    ["publish", "publish", "deliver", "time", "restart", "cut", "connect", "forge", "set"]
)


def run(world: World, steps: list[tuple[str, int, int]]) -> None:
    sequence = 0
    links = sorted(world.links)
    for number, (kind, a, b) in enumerate(steps):
        name, other = world.names[a % len(world.names)], world.names[b % len(world.names)]
        if kind == "publish":
            world.said[name] = b"%d" % number
            world.give(name, Publish(KIND_NODE, "", world.said[name], LATER))
        elif kind == "deliver":
            for _ in range(b):
                world.deliver()
        elif kind == "time":
            world.pass_time(b * SECOND // 4)
        elif kind == "restart":
            world.restart(name)
        elif kind == "cut":
            world.cut(links[a % len(links)])
        elif kind == "connect":
            world.connect(links[a % len(links)])
        elif kind == "forge" and name != other:
            world.forge(name, other)
        elif kind == "set":
            sequence += 1
            body = b"%d" % sequence * (1 if b % 2 else 9000)
            now_s = UNIX + world.now // SECOND
            records = set_records(
                "names", sequence, body, key="k1", generation=now_s + sequence % 50,
                expires_unix_s=LATER,
            )  # fmt: skip
            world.give(name, Learn("authority", records))


steps = st.lists(st.tuples(step, st.integers(0, 9), st.integers(1, 30)), min_size=20, max_size=60)


@settings(max_examples=100)
@given(st.integers(2, 5), st.integers(0, 999), steps)
def test_all_stores_converge_on_what_the_writers_said_last(
    size: int, seed: int, steps: list[tuple[str, int, int]]
) -> None:
    world = World(size, seed)
    run(world, steps)
    world.heal()
    first = world.stores[world.names[0]]
    for name, machine in world.stores.items():
        assert machine.generations() == first.generations(), name
        for writer in world.names:
            held = machine.record((writer, KIND_NODE, ""))
            assert (held.body if held else None) == world.said.get(writer)
        assert {key[0] for key in machine.generations()} <= {*world.said, "authority"}


@settings(max_examples=100)
@given(st.integers(2, 4), st.integers(0, 999), steps)
def test_sequences_only_grow_and_everything_stays_within_its_bound(
    size: int, seed: int, steps: list[tuple[str, int, int]]
) -> None:
    world = World(size, seed)
    restarted = {world.names[a % size] for kind, a, _ in steps if kind == "restart"}
    run(world, steps)
    for name, machine in world.stores.items():
        held = machine.statistics()
        assert held.records <= SMALL.records_max
        assert held.parked <= SMALL.parked_max
        assert held.gone <= SMALL.gone_max
        if name not in restarted:
            for set in ("names", "bundle"):
                sequences = [sequence for s, sequence in world.seen[name] if s == set]
                assert sequences == sorted(dict.fromkeys(sequences))


@given(st.permutations(range(12)), st.integers(0, 99))
def test_merging_is_commutative_and_idempotent(order: list[int], seed: int) -> None:
    records = [
        node_record(f"n{number % 3}", UNIX + number // 3, b"%d" % number, LATER)
        for number in range(12)
    ]
    again = order + Random(seed).sample(order, 6)
    machine = World(2, 0).stores["n0"]
    other = World(2, 0).stores["n1"]
    for at in again:
        machine.handle(Instant(1), Learn("t", (records[at],)))
        other.handle(Instant(1), Learn("t", (records[at],)))
    for name in ("n2",):
        assert machine.record((name, KIND_NODE, "")) == other.record((name, KIND_NODE, ""))
        held = machine.record((name, KIND_NODE, ""))
        assert held is not None
        assert held.generation == UNIX + 3


def same_seed(steps: list[tuple[str, int, int]]) -> list[object]:
    world = World(3, 7)
    effects: list[object] = []
    give = world.give

    def noted(name: str, event: Event) -> Effects:
        found = give(name, event)
        effects.append((name, event, found))
        return found

    world.give = noted  # type: ignore[method-assign]
    run(world, steps)
    return effects


@settings(max_examples=20)
@given(steps)
def test_the_same_events_give_the_same_effects(steps: list[tuple[str, int, int]]) -> None:
    assert same_seed(steps) == same_seed(steps)


def test_mutation_accepting_an_equal_generation_breaks_the_merge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two copies of one generation would replace each other wherever they are heard last."""
    monkeypatch.setattr(store_module, "newer", lambda generation, than: generation >= than)
    left, right = World(2, 0).stores["n0"], World(2, 0).stores["n0"]
    twins = [node_record("x", UNIX, body, LATER) for body in (b"1", b"2")]
    for machine, order in ((left, twins), (right, twins[::-1])):
        for data in order:
            machine.handle(Instant(1), Learn("t", (data,)))
    bodies = [machine.record(("x", KIND_NODE, "")) for machine in (left, right)]
    assert [record.body for record in bodies if record] == [b"2", b"1"]
