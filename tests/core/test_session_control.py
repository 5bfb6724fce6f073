"""The client's machine: stories of circuits that die, fall silent, expire, rotate and come back."""

from __future__ import annotations

import pytest

from tests.fakes.circuit import CLOCK_US, SOURCE, TARGET, Pair
from x0tta6bl4.core.machine import MS, SECOND, Instant, Tick
from x0tta6bl4.core.session import facts, frames
from x0tta6bl4.core.session.carrier import Marks
from x0tta6bl4.core.session.facts import LIMITS
from x0tta6bl4.core.session.frames import Reset

HOUR = 3600 * SECOND
R, S = ("a", "r", "b"), ("a", "s", "b")


def joins(pair: Pair) -> list[facts.Joined]:
    return [fact for fact in pair.a.facts if type(fact) is facts.Joined]


def running(**kind: object) -> Pair:
    """A session with an active circuit and a warm standby, and one stream in use."""
    pair = Pair(**kind)  # type: ignore[arg-type]
    pair.run(50 * MS)
    pair.open(b"x" * 1000, b"y" * 1000)
    pair.run(50 * MS)
    assert pair.client.active is not None
    assert pair.client.standby is not None
    pair.a.facts.clear()
    return pair


def talk(pair: Pair) -> None:
    """Something that has to be acknowledged."""
    pair.open(b"x" * 3000, b"y" * 3000)
    pair.a.flush()


def test_active_and_standby_go_over_different_paths() -> None:
    pair = running()
    assert pair.client.active is not None
    assert pair.client.standby is not None
    assert pair.client.active.path != pair.client.standby.path
    assert len(pair.open_wires) == 2


def test_a_relay_dies_and_the_standby_takes_over_at_once() -> None:
    pair = running()
    standby = pair.client.standby
    wire = pair.active_wire
    assert wire is not None
    wire.kill()
    pair.run(3 * pair.latency_us + 100)
    assert pair.client.active is standby
    assert joins(pair)[0].reason == "lost"
    assert joins(pair)[0].took_us <= 2 * pair.latency_us
    pair.run(1500 * MS)
    assert pair.client.standby is not None, "rebuilt within a second"


def test_a_silent_path_is_left_within_two_thresholds_while_bytes_flow() -> None:
    pair = running()
    wire = pair.active_wire
    assert wire is not None
    wire.silence(0, 1)
    start = pair.world.now
    talk(pair)
    pair.run(200 * MS)
    assert [join.reason for join in joins(pair)] == ["silent"]
    active = pair.client.active
    assert active is not None
    assert active.alive_at - start < 2 * 25 * MS + 10 * MS + 4 * pair.latency_us + 200 * MS
    assert any(type(fact) is facts.PathFailed for fact in pair.a.facts)
    pair.run(SECOND)
    pair.check_bytes(final=True)


@pytest.mark.parametrize("side", [0, 1])
def test_one_way_silence_is_found_too(side: int) -> None:
    pair = running()
    wire = pair.active_wire
    assert wire is not None
    wire.silence(side)
    talk(pair)
    pair.run(200 * MS)
    assert [join.reason for join in joins(pair)] == ["silent"]


def test_an_idle_session_notices_silence_by_its_pings() -> None:
    pair = running()
    wire = pair.active_wire
    assert wire is not None
    wire.silence(0, 1)
    pair.run(1200 * MS)
    assert [join.reason for join in joins(pair)] == ["silent"]


def calm() -> Pair:
    """A session whose streams have ended long ago, with an active circuit and a standby."""
    pair = running()
    pair.run(LIMITS.calm_after + 2 * SECOND)
    assert not pair.pipe.streams
    return pair


def test_a_calm_session_says_little_and_keeps_its_circuits() -> None:
    pair = calm()
    wires = pair.open_wires
    before = sum(wire.carried_bytes for wire in wires)
    pair.run(60 * SECOND)
    pings = (sum(wire.carried_bytes for wire in wires) - before) / 16
    assert 22 <= pings <= 26, "one each five seconds, on two circuits, and its answer"
    assert pair.open_wires == wires
    assert pair.client.moves == 0


def test_a_calm_session_notices_silence_too() -> None:
    pair = calm()
    wire = pair.active_wire
    assert wire is not None
    wire.silence(0, 1)
    pair.run(LIMITS.calm_every + SECOND)
    assert [join.reason for join in joins(pair)] == ["silent"]


def test_a_stream_on_a_calm_session_is_moved_as_fast_as_any_other() -> None:
    pair = calm()
    wire = pair.active_wire
    assert wire is not None
    wire.silence(0, 1)
    talk(pair)
    pair.run(60 * MS)
    assert [join.reason for join in joins(pair)] == ["silent"]
    pair.run(SECOND)
    pair.check_bytes(final=True)


def test_a_stream_on_a_calm_session_asks_its_standby_at_once() -> None:
    pair = calm()
    standby = pair.client.standby
    assert standby is not None
    opened = pair.world.now
    talk(pair)
    pair.run(5 * MS)
    assert standby.answered_at >= opened


ELSEWHERE = (("a", "t", "b"), ("a", "u", "b"))


def test_a_calm_session_does_not_run_after_paths_that_come_back() -> None:
    pair = calm()
    wires = pair.open_wires
    for _ in range(12):
        pair.a.give(facts.PathsChanged(pair.client.number, ELSEWHERE))
        pair.run(5 * SECOND)
        pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
        pair.run(5 * SECOND)
    assert pair.open_wires == wires


@pytest.mark.parametrize("opens", [False, True])
def test_a_calm_session_follows_its_paths_when_a_stream_comes_or_later(opens: bool) -> None:
    pair = calm()
    wires = pair.open_wires
    pair.paths = ELSEWHERE
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    pair.run(LIMITS.calm_jitter // 2 - SECOND)
    assert pair.open_wires == wires
    if opens:
        talk(pair)
    pair.run(2 * SECOND if opens else LIMITS.calm_jitter)
    assert not set(map(id, wires)) & set(map(id, pair.open_wires))
    assert pair.client.active is not None
    assert pair.client.active.path in ELSEWHERE


def test_a_calm_session_takes_its_time_to_go_over_to_a_standby_that_stays() -> None:
    pair = calm()
    standby = pair.client.standby
    assert standby is not None
    pair.paths = (standby.path, ELSEWHERE[0])
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    pair.run(LIMITS.calm_jitter // 2 - SECOND)
    assert pair.client.moves == 0
    pair.run(LIMITS.calm_jitter // 2 + SECOND)
    assert pair.client.active is standby


def test_a_suspect_is_kept_while_no_standby_answers() -> None:
    pair = running()
    for wire in pair.open_wires:
        wire.silence(0, 1)
    pair.dead = {R, S}
    talk(pair)
    before = pair.client.active
    pair.run(900 * MS)
    assert pair.client.active is before, "left for nobody"
    assert joins(pair) == []
    pair.dead.clear()
    pair.run(800 * MS)
    assert [join.reason for join in joins(pair)] in (["silent"], ["lost"])
    pair.run(SECOND)
    pair.check_bytes(final=True)


def test_a_slow_path_is_not_a_dead_one() -> None:
    pair = Pair(latency_us=150 * MS)
    pair.run(3 * SECOND)
    pair.open(b"x" * 600_000, b"y" * 600_000)
    pair.run(30 * SECOND)
    assert pair.client.moves == 0
    pair.check_bytes(final=True)


def test_a_path_that_turns_slow_costs_duplicates_and_nothing_else() -> None:
    pair = running()
    for wire in pair.open_wires:
        wire.slow(80 * MS)
    talk(pair)
    pair.run(2 * SECOND)
    pair.check_bytes(final=True)
    assert pair.client.moves <= 2


def test_who_slept_judges_nobody() -> None:
    pair = running()
    talk(pair)
    active = pair.client.active
    assert active is not None
    for _ in range(30):
        pair.world.now += 90 * MS  # The process stands still; bytes wait in the sockets.
        pair.run(0)
        pair.run(20 * MS)
    assert pair.client.active is active
    assert pair.client.moves == 0


def test_whatever_wakes_a_sleeper_it_judges_nobody() -> None:
    pair = running()
    talk(pair)
    pair.run(20 * MS)
    active = pair.client.active
    assert active is not None
    pair.client._ping(pair.world.now, active)  # type: ignore[arg-type]
    pair.client._effects.clear()  # It stands unanswered.
    pair.client.deadline = pair.client._next(pair.world.now)  # type: ignore[arg-type]
    pair.world.now += 500 * MS
    pair.a.give(facts.Wrote(pair.client.number))
    assert active.suspect_at == 0


def test_suspicion_may_not_resend_for_ever() -> None:
    limits = facts.Limits(resend_percent=0, resend_window=1)
    pair = running(limits=limits)
    wire = pair.active_wire
    assert wire is not None
    pair.open(b"x" * 500_000, b"")
    wire.silence(1)
    pair.run(500 * MS)
    assert joins(pair) == [], "the budget for resending is used up"
    wire.kill()
    pair.run(SECOND)
    assert [join.reason for join in joins(pair)] == ["lost"], "a real loss needs no budget"


def test_corruption_costs_a_circuit_and_names_the_path() -> None:
    pair = running()
    active = pair.client.active
    wire = pair.active_wire
    assert active is not None
    assert wire is not None
    wire.corrupt(1)
    talk(pair)
    pair.run(SECOND)
    assert facts.PathFailed(active.path, "tls") in pair.a.facts
    pair.check_bytes(final=True)


# ---------------------------------------------------------------------- certificates
@pytest.mark.parametrize("who", ["client", "server"])
def test_no_circuit_outlives_a_rotation_and_no_stream_breaks(who: str) -> None:
    pair = running()
    app = pair.open(b"z" * 100_000, b"", pace=100)
    old = set(pair.open_wires)
    side, id = (pair.a, SOURCE) if who == "client" else (pair.b, TARGET)
    side.generation += 1
    side.give(facts.SvidChanged(id, side.generation))
    pair.run(LIMITS.renew_spread + SECOND)
    assert not old & set(pair.open_wires)
    assert len(pair.open_wires) == 2
    assert joins(pair)[-1].reason == "moved"
    assert app.end in ("", "done")
    pair.run(20 * SECOND)
    pair.check_bytes(final=True)


@pytest.mark.parametrize("who", ["client", "server"])
def test_sessions_of_one_svid_do_not_all_dial_when_it_is_renewed(who: str) -> None:
    """Handshakes and memory of all of them at once would stand in the way of what goes on."""
    waits = []
    for seed in range(12):
        pair = running(seed=seed)
        begun, wires = pair.world.now, len(pair.wires)
        side, id = (pair.a, SOURCE) if who == "client" else (pair.b, TARGET)
        side.generation += 1
        side.give(facts.SvidChanged(id, side.generation))
        while len(pair.wires) == wires:
            pair.run(MS)
            assert pair.client.standby is not None, "nothing is given up for it before"
        waits.append((pair.world.now - begun) // MS)
    assert max(waits) <= LIMITS.renew_spread // MS + 2
    assert len({wait * 4 * MS // LIMITS.renew_spread for wait in waits}) >= 3, "in most quarters"


def test_a_circuit_closes_a_second_before_its_certificates_end() -> None:
    pair = Pair()
    pair.a.not_after_unix_us = CLOCK_US + pair.world.now + 10 * SECOND
    pair.run(8_900 * MS)
    assert len(pair.open_wires) == 2
    pair.run(200 * MS)
    assert pair.open_wires == [], "nothing dials with a certificate that ends"
    pair.a.not_after_unix_us = CLOCK_US + pair.world.now + HOUR
    pair.a.generation += 1
    pair.a.give(facts.SvidChanged(SOURCE, pair.a.generation))
    pair.run(SECOND)
    assert len(pair.open_wires) == 2


def test_a_step_of_the_clock_is_judged_at_once() -> None:
    pair = Pair()
    pair.a.not_after_unix_us = pair.b.not_after_unix_us = CLOCK_US + 1000 * SECOND
    pair.run(SECOND)
    from x0tta6bl4.core.machine import ClockSet

    pair.a.give(ClockSet(CLOCK_US + 2000 * SECOND))
    pair.run(10 * MS)
    assert pair.open_wires == []


def test_a_circuit_is_rolled_before_the_cipher_wears_out() -> None:
    pair = running(limits=facts.Limits(roll_bytes=300_000))
    first = pair.active_wire
    pair.open(b"x" * 1_000_000, b"")
    pair.run(2 * SECOND)
    assert pair.active_wire is not first
    assert "moved" in [join.reason for join in joins(pair)]
    pair.check_bytes(final=True)


# ---------------------------------------------------------------------- ends
def test_streams_pause_for_a_minute_and_then_are_reset() -> None:
    pair = running()
    app = pair.open(b"x" * 1000, b"y" * 1_000_000, pace=1)
    pair.run(MS)
    pair.dead = {R, S}
    for wire in pair.open_wires:
        wire.kill()
    pair.run(55 * SECOND)
    assert app.end == ""
    assert any(type(fact) is facts.CircuitsGone for fact in pair.a.facts)
    pair.run(10 * SECOND)
    assert pair.client.ended
    assert app.refused is Reset.UNREACHABLE
    assert facts.SessionEnded(pair.client.number, "no circuit") in pair.a.facts
    assert pair.server.sessions == {}


def test_an_idle_session_closes_after_five_minutes_and_tells_the_server() -> None:
    pair = running()
    pair.run(299 * SECOND)
    assert not pair.client.ended
    pair.run(2 * SECOND)
    assert facts.SessionEnded(pair.client.number, "idle") in pair.a.facts
    assert facts.SessionEnded(pair.b.facts[0].session, "left by the client") in (  # type: ignore[attr-defined]
        pair.b.facts
    )
    assert pair.open_wires == []


def test_dials_back_off_and_never_spin() -> None:
    pair = Pair()
    pair.dead = {R, S}
    count = 0
    dial = pair.dial

    def counted(side: object, effect: facts.DialCircuit) -> None:
        nonlocal count
        count += 1
        dial(side, effect)  # type: ignore[arg-type]

    pair.dial = counted  # type: ignore[method-assign]
    pair.run(5 * SECOND)
    assert 5 <= count <= 40  # The first model redialled 61,557 times in 5 s.


def test_withdrawn_means_now_and_for_good() -> None:
    pair = running()
    app = pair.open(b"x" * 10, b"", pace=1)
    pair.a.give(facts.Withdraw(pair.client.number, "revoked"))
    assert app.refused is Reset.WITHDRAWN
    assert pair.client.ended
    pair.run(SECOND)
    assert pair.open_wires == []
    assert pair.server.sessions == {}


def test_late_answers_are_ignored() -> None:
    pair = running()
    wires = len(pair.wires)
    from x0tta6bl4.core.machine import Done, Failed

    pair.a.give(Failed(12345, "late"))
    pair.a.give(facts.CircuitLost(12345, "late"))
    pair.a.give(facts.Heard(12345, 14))
    pair.a.give(Done(12345, None))
    pair.run(100 * MS)
    assert len(pair.wires) == wires


def test_a_path_that_is_no_longer_ours_is_left_without_a_break() -> None:
    pair = running()
    active = pair.client.active
    assert active is not None
    other = S if active.path == R else R
    pair.paths = (other, ("a", "t", "b"))
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    pair.run(4 * SECOND)
    assert pair.client.active is not None
    assert pair.client.standby is not None
    assert {pair.client.active.path, pair.client.standby.path} <= set(pair.paths)
    assert all(join.reason == "moved" for join in joins(pair))


def test_a_standby_over_the_same_relay_is_replaced_once_it_need_not_be_there() -> None:
    crowded: facts.Path = ("a", "r", "t", "b")
    pair = Pair(paths=(R, crowded))
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    pair.run(3 * SECOND)
    assert pair.client.standby is not None
    assert pair.client.standby.path == crowded
    pair.paths = (R, crowded, S)
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    moves = pair.client.moves
    pair.run(3 * SECOND)
    assert pair.client.active is not None
    assert pair.client.active.path == R
    assert pair.client.standby is not None
    assert pair.client.standby.path == S
    assert pair.client.moves == moves


def test_a_session_goes_to_a_path_without_relays_once_and_keeps_a_standby() -> None:
    pair = running()
    direct: facts.Path = ("a", "b")
    pair.paths = (direct, R, S)
    moves = pair.client.moves
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths))
    pair.run(4 * SECOND)
    assert pair.client.moves == moves  # A path without relays that nothing mends is no better.
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths, direct=True))
    pair.run(6 * SECOND)
    assert pair.client.active is not None
    assert pair.client.active.path == direct
    assert pair.client.standby is not None
    assert pair.client.standby.path in (R, S)
    assert pair.client.moves == moves + 1
    assert all(join.reason == "moved" for join in joins(pair))
    pair.a.give(facts.PathsChanged(pair.client.number, pair.paths, direct=True))
    pair.run(4 * SECOND)
    assert pair.client.moves == moves + 1
    wire = pair.active_wire
    assert wire is not None
    wire.kill()  # For a moment: no path changes by it.
    pair.run(100 * MS)
    assert pair.client.active.path in (R, S)
    pair.run(4 * SECOND)
    assert pair.client.active.path == direct
    assert pair.client.standby.path in (R, S)
    assert [join.reason for join in joins(pair)[-2:]] == ["lost", "moved"]


def test_to_ourselves_one_circuit_is_enough() -> None:
    pair = Pair(paths=(("a",),))
    pair.a.give(facts.PathsChanged(pair.client.number, (("a",),)))
    pair.run(3 * SECOND)
    assert len(pair.open_wires) == 1
    pair.a.generation += 1
    pair.a.give(facts.SvidChanged(SOURCE, pair.a.generation))
    pair.run(LIMITS.renew_spread + SECOND)
    assert len(pair.open_wires) == 1
    assert joins(pair)[-1].reason == "moved"


def test_an_ack_of_its_own_is_sent_only_when_no_chunk_has_taken_one_along() -> None:
    pair = running()
    client, now, delay = pair.client, pair.world.now, facts.LIMITS.ack_delay
    assert client.active is not None
    circuit = client.active.circuit

    def comes(count: int) -> None:
        circuit.offset += count
        client.pipe.received += count

    def acks(at: int) -> int:
        found = client.handle(Instant(at), Tick())
        return sum(type(e) is facts.SendFrame and e.frame[7] >> 4 == frames.ACK for e in found)

    comes(100)
    client.handle(Instant(now), facts.Owing(client.number))
    assert client.owing
    assert client.deadline <= now + delay
    circuit.told = client.pipe.received  # As `pending` does, with an answer.
    comes(50)
    assert acks(now + delay) == 0
    assert client.owing, "no further Owing is needed while traffic goes on"
    assert acks(now + 2 * delay) == 1, "and nothing waits for longer than two delays"
    assert circuit.told == client.pipe.received
    assert not client.owing


def test_the_machine_watches_on_while_bytes_come_and_go() -> None:
    marks = Marks()
    assert marks.look(Instant(0), 100, 0) == 0
    assert marks.look(Instant(10), 200, 100) == 0, "a new one stands"
    assert marks.look(Instant(20), 300, 300) == 0, "some came, and all have gone"
    assert marks.look(Instant(30), 300, 300) == -1
    assert marks.look(Instant(40), 400, 300) == 0
    assert marks.look(Instant(70), 400, 300) == 30
