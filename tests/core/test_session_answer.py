"""The server's machine: who may join what, and what every lie costs; and the law that catches it.

Each attack says whether it was refused.  The real machine refuses all of them; machines with one
check missing must let at least one through, so that a green run means something.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fakes.circuit import CLOCK_US, FOREVER, SOURCE, TARGET, Pair, mac, memory
from x0tta6bl4.core.machine import MS, SECOND, Effects, Instant, Tick
from x0tta6bl4.core.session import facts, frames
from x0tta6bl4.core.session.answer import Carried, Held, Server
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import Accepted, Limits, Up
from x0tta6bl4.core.session.frames import Join
from x0tta6bl4.core.session.pipe import Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.wire.ids import SpiffeId

OTHER = SpiffeId("spiffe://mesh.test/c")
NOW = Instant(SECOND)
SID = b"s" * 16
SECRET = b"k" * 32


class Rig:
    """A server with one session that has been created and has received 8 bytes."""

    def __init__(self, kind: type[Server] = Server, limits: Limits = facts.LIMITS) -> None:
        self.numbers = iter(range(1000, 10_000))
        self.pipes: list[Pipe] = []
        self.said: Effects = ()

        def make_pipe(number: int, source: SpiffeId, target: SpiffeId) -> Pipe:
            self.pipes.append(Pipe(memory, Hooks(), client=False))
            return self.pipes[-1]

        self.server = kind(
            make_pipe,
            token=lambda: next(self.numbers),
            mac=mac,
            clock_us=CLOCK_US,
            limits=limits,
        )
        self.first = self.accept()
        self.join(self.first, self.body(self.first, epoch=1, secret=SECRET), frames.NEW)
        assert len(self.server.sessions) == 1
        self.first.circuit.feed(memoryview(frames.frame(5, frames.WINDOW, 1)))

    def accept(self, source: SpiffeId = SOURCE, ends: int = FOREVER) -> Held:
        number = next(self.numbers)
        circuit = Circuit(number, self.heard)
        up = Up(circuit, ("a", "b"), ends, exporter=f"exporter {number}".encode())
        self.said = self.server.handle(NOW, Accepted(number, source, TARGET, up))
        return self.server.circuits.get(number) or Held(Accepted(number, source, TARGET, up), NOW)

    def heard(self, circuit: Circuit, kind: int, value: int, body: bytes) -> None:
        self.said = self.server.handle(NOW, facts.Heard(circuit.number, kind, value, body))

    def body(
        self,
        held: Held,
        epoch: int = 2,
        received: int = 0,
        start: int = 0,
        secret: bytes = b"",
        key: bytes = SECRET,
        label: bytes = frames.LABEL_CLIENT,
        exporter: bytes = b"",
        session: bytes = SID,
    ) -> bytes:
        join = Join(session, epoch, received, start, secret=secret)
        kind = frames.NEW if secret else frames.JOIN
        return frames.signed_join(kind, join, mac, key, label, exporter or held.up.exporter)

    def join(self, held: Held, frame: bytes, kind: int = frames.JOIN) -> None:
        held.circuit.feed(memoryview(frame))

    def refused(self, held: Held, frame: bytes) -> bool:
        """Whether this JOIN closed its circuit and changed nothing."""
        session = next(iter(self.server.sessions.values()))
        before = (session.epoch, session.active, session.pipe.received, session.pipe.active)
        self.join(held, frame)
        after = (session.epoch, session.active, session.pipe.received, session.pipe.active)
        closed = any(
            type(effect) is facts.CloseCircuit and effect.circuit == held.number
            for effect in self.said
        )
        gone = any(
            type(effect) is facts.SendFrame and effect.frame == frames.frame(0, frames.GONE)
            for effect in self.said
        )
        return before == after and (closed or gone)


def copied_to_another_circuit(rig: Rig) -> bool:
    """A JOIN that was good on one circuit, said again on another."""
    one, other = rig.accept(), rig.accept()
    return rig.refused(other, rig.body(one))


def without_the_secret(rig: Rig) -> bool:
    held = rig.accept()
    return rig.refused(held, rig.body(held, key=bytes(32)))


def reflected(rig: Rig) -> bool:
    """Our own JOINED, sent back to us."""
    held = rig.accept()
    return rig.refused(held, rig.body(held, label=frames.LABEL_SERVER))


def same_epoch(rig: Rig) -> bool:
    held = rig.accept()
    return rig.refused(held, rig.body(held, epoch=1))


def older_epoch(rig: Rig) -> bool:
    held = rig.accept()
    rig.join(held, rig.body(held, epoch=7))
    late = rig.accept()
    return rig.refused(late, rig.body(late, epoch=6))


def from_the_future(rig: Rig) -> bool:
    held = rig.accept()
    return rig.refused(held, rig.body(held, start=9))


def acknowledging_what_was_never_sent(rig: Rig) -> bool:
    held = rig.accept()
    return rig.refused(held, rig.body(held, received=1 << 20))


def by_another_identity(rig: Rig) -> bool:
    held = rig.accept(OTHER)
    return rig.refused(held, rig.body(held))


def again_on_the_same_circuit(rig: Rig) -> bool:
    """Only its own circuit suffers."""
    session = next(iter(rig.server.sessions.values()))
    rig.join(rig.first, rig.body(rig.first, epoch=3))
    return session.epoch == 1 and facts.CloseCircuit(rig.first.number, "protocol") in rig.said


ATTACKS: list[Callable[[Rig], bool]] = [
    copied_to_another_circuit,
    without_the_secret,
    reflected,
    same_epoch,
    older_epoch,
    from_the_future,
    acknowledging_what_was_never_sent,
    by_another_identity,
    again_on_the_same_circuit,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_refused(attack: Callable[[Rig], bool]) -> None:
    assert attack(Rig())


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_owner_joins_after_every_attack(attack: Callable[[Rig], bool]) -> None:
    rig = Rig()
    attack(rig)
    held = rig.accept()
    rig.join(held, rig.body(held, epoch=50))
    session = next(iter(rig.server.sessions.values()))
    assert session.active is held
    held.circuit.feed(memoryview(frames.frame(5, frames.WINDOW, 1) * 3))
    assert session.pipe.received == 24


class TakesEqualEpochs(Server):
    def _on_join(self, now: Instant, held: Held, join: Join) -> None:
        session = self._by_key.get((held.source, held.target, join.session))
        if session is not None and session.epoch == join.epoch:
            session.epoch -= 1
        super()._on_join(now, held, join)


class TakesAnyIdentity(Server):
    def _on_join(self, now: Instant, held: Held, join: Join) -> None:
        held.source = SOURCE
        super()._on_join(now, held, join)


def test_a_server_that_takes_equal_epochs_is_caught() -> None:
    assert not all(attack(Rig(TakesEqualEpochs)) for attack in ATTACKS)


def test_a_server_that_looks_at_no_identity_is_caught() -> None:
    assert not all(attack(Rig(TakesAnyIdentity)) for attack in ATTACKS)


@pytest.mark.parametrize(
    "skipped", [copied_to_another_circuit, without_the_secret, reflected], ids=lambda a: a.__name__
)
def test_a_server_that_skips_the_mac_is_caught(
    skipped: Callable[[Rig], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def equal(one: bytes, other: bytes) -> bool:
        return True

    monkeypatch.setattr(frames, "same_bytes", equal)
    assert not skipped(Rig())


def test_a_replayed_offset_that_is_off_by_one_is_caught() -> None:
    class Off(Server):
        def _carry(self, now: Instant, session: Carried, held: Held, join: Join) -> None:
            super()._carry(now, session, held, join)
            held.circuit.offset += 1

    pair = Pair(server_kind=Off)
    pair.run(50 * MS)
    pair.open(b"x" * 100, b"")
    pair.run(50 * MS)
    assert not pair.served


# ---------------------------------------------------------------------- life of a circuit
def test_an_unknown_session_is_gone_and_new_may_create_it() -> None:
    rig = Rig()
    held = rig.accept()
    rig.join(held, rig.body(held, session=b"?" * 16))
    assert facts.SendFrame(held.number, frames.frame(0, frames.GONE)) in rig.said
    held.circuit.feed(memoryview(frames.frame(1, frames.FIN)))  # It was on its way, too.
    again = rig.accept()
    rig.join(again, rig.body(again, epoch=9, session=b"?" * 16, secret=SECRET))
    assert len(rig.server.sessions) == 2


def test_new_of_a_session_that_exists_joins_it() -> None:
    # The first NEW arrived, its answer did not: the client can't know.
    rig = Rig()
    held = rig.accept()
    rig.join(held, rig.body(held, epoch=2, secret=SECRET))
    assert len(rig.server.sessions) == 1
    assert next(iter(rig.server.sessions.values())).active is held


def closings(rig: Rig, after: int, until: int) -> list[tuple[int, str]]:
    """Circuits that a server closes which hears nothing: (milliseconds since NOW, reason)."""
    found = []
    for at in range(NOW + after, NOW + until, 10 * MS):
        for effect in rig.server.handle(Instant(at), Tick()):
            if type(effect) is facts.CloseCircuit:
                found.append(((at - NOW) // MS, effect.reason))
    return found


@pytest.mark.parametrize("calm_s", [0, 7])
def test_a_circuit_with_streams_that_is_silent_for_two_seconds_is_dropped(calm_s: int) -> None:
    rig = Rig()
    opened = calm_s * SECOND
    assert closings(rig, 0, opened) == []
    Told(rig.pipes[0], 1, ended=False, finished=False)
    rig.first.circuit.feed(memoryview(frames.frame(7, frames.WINDOW, 1)))
    session = next(iter(rig.server.sessions))
    rig.server.handle(Instant(NOW + opened), facts.Owing(session))
    ((at, reason),) = closings(rig, opened, opened + 20 * SECOND)
    assert reason == "silent"
    assert opened // MS + 2000 <= at <= opened // MS + 4100


def test_a_circuit_without_streams_has_more_time() -> None:
    rig = Rig()
    standby = rig.accept()
    found = closings(rig, 0, 30 * SECOND)
    assert [reason for _, reason in found] == ["silent", "silent"]
    assert all(12_000 <= at <= 24_100 for at, _ in found), found
    assert standby.number not in rig.server.circuits


def test_circuits_and_sessions_of_one_source_are_bounded() -> None:
    limits = Limits(circuits_per_source_max=4, sessions_per_source_max=2)
    rig = Rig(limits=limits)
    for _ in range(3):
        rig.accept()
    refused = rig.accept()
    assert facts.CloseCircuit(refused.number, "busy") in rig.said
    other = rig.accept(OTHER)
    assert other.number in rig.server.circuits
    for number in range(2):
        held = list(rig.server.circuits.values())[1 + number]
        rig.join(held, rig.body(held, secret=SECRET, session=bytes([number]) * 16))
    assert len(rig.server.sessions) == 2


class Told(Stream):
    """A stream of the session, in a state as given."""

    def __init__(self, pipe: Pipe, number: int, *, ended: bool, finished: bool) -> None:
        super().__init__()
        self.number, self.pipe, self.ended, self.finished = number, pipe, ended, finished
        pipe.streams[number] = self
        self.reason: frames.Reset | None = None

    def on_reset(self, reason: frames.Reset) -> None:
        self.reason = reason


def test_who_has_left_leaves_what_applications_have_yet_to_take() -> None:
    rig = Rig()
    pipe = rig.pipes[0]
    done = Told(pipe, 1, ended=True, finished=True)
    half = Told(pipe, 2, ended=True, finished=False)
    other = Told(pipe, 3, ended=False, finished=True)
    rig.first.circuit.feed(memoryview(frames.frame(0, frames.GONE)))
    assert facts.CloseCircuit(rig.first.number, "ended") in rig.said
    assert half.reason is frames.Reset.SESSION_ENDED
    assert other.reason is frames.Reset.SESSION_ENDED
    server = rig.server
    (session,) = server.sessions.values()
    now = NOW
    for _ in range(5):  # Five minutes of a reader that stands still.
        now = Instant(max(now + 60 * SECOND, server.deadline))
        server.handle(now, Tick())
        assert server.sessions
    assert done.reason is None
    pipe.forget(done)
    now = Instant(max(now + 60 * SECOND, server.deadline))
    assert facts.SessionEnded(session.number, "no circuit") in server.handle(now, Tick())
    assert not server.sessions


def test_who_has_left_nothing_behind_is_gone_at_once() -> None:
    rig = Rig()
    rig.server.handle(NOW, facts.Heard(rig.first.number, frames.GONE))
    assert not rig.server.sessions


def test_an_expired_circuit_is_not_taken() -> None:
    rig = Rig()
    held = rig.accept(ends=CLOCK_US + NOW + SECOND // 2)
    assert facts.CloseCircuit(held.number, "expired") in rig.said


def test_timers_are_bounded_however_often_the_clock_steps() -> None:
    from x0tta6bl4.core.machine import ClockSet

    rig = Rig()
    for step in range(5000):
        rig.server.handle(NOW, ClockSet(CLOCK_US + NOW + step))
    assert len(rig.server._due) < 200
