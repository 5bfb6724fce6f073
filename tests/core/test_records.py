"""Stories about one store: what it believes, what it passes on, what it says of itself."""

from __future__ import annotations

from random import Random

import pytest

from tests.fakes import signing
from tests.fakes.signing import DOMAIN, bundle, node_record, set_records
from x0tta6bl4.core.machine import (
    SECOND,
    ClockSet,
    Denied,
    Effect,
    Effects,
    Instant,
    Received,
    Send,
    Tick,
    Verdict,
)
from x0tta6bl4.core.records.flood import CHAIN, bucket_of
from x0tta6bl4.core.records.quota import Pace
from x0tta6bl4.core.records.sets import SetChanged, SetGone
from x0tta6bl4.core.records.store import Records
from x0tta6bl4.core.records.words import (
    DuplicateName,
    Held,
    Learn,
    PeerUp,
    Publish,
    RecordChanged,
    RecordGone,
    RecordRefused,
    Rejudge,
    Restore,
    Settings,
    Trust,
    Withdraw,
)
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import Bucket, Digest, Flood, Want
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_NODE,
    Bundle,
    Heartbeat,
    Record,
    decode_record,
    encode_body,
    encode_record,
)

UNIX = 1_800_000_000
LATER = UNIX + 3600


def at(seconds: float) -> Instant:
    return Instant(int(seconds * SECOND))


def store(me: str = "m", *, settings: Settings | None = None, peers: str = "ab") -> Records:
    machine = Records(
        NodeName(me),
        DOMAIN,
        verify=signing.verify,
        verify_key=signing.verify_key,
        sign=signing.signer(me),
        random=Random(f"1/records/{me}"),
        settings=settings,
    )
    machine.handle(at(0), ClockSet(UNIX * SECOND))
    for peer in peers:
        machine.handle(at(0), PeerUp(peer))
    return machine


def flood(src: str, *records: bytes) -> Received:
    return Received(src, Flood(records))


def of(kind: type, effects: Effects) -> list[Effect]:
    return [effect for effect in effects if type(effect) is kind]


def sent(effects: Effects) -> list[tuple[str, object]]:
    return [(effect.dst, effect.message) for effect in effects if type(effect) is Send]


def reasons(effects: Effects) -> list[str]:
    return [effect.reason for effect in effects if type(effect) is RecordRefused]


def test_a_new_record_is_believed_once_and_passed_on_to_all_but_its_source() -> None:
    machine = store()
    record = node_record("x", UNIX, b"one", LATER)
    effects = machine.handle(at(1), flood("a", record))
    assert effects == (RecordChanged(decode_record(record)), Send("b", Flood((record,))))
    assert machine.handle(at(1), flood("b", record)) == ()
    assert machine.statistics().verified == 1


def test_the_higher_generation_wins_and_an_equal_one_does_not() -> None:
    machine = store()
    first = node_record("x", UNIX + 5, b"first", LATER)
    machine.handle(at(1), flood("a", first))
    assert machine.handle(at(1), flood("b", node_record("x", UNIX + 5, b"other", LATER))) == ()
    assert machine.handle(at(1), flood("b", node_record("x", UNIX + 4, b"older", LATER))) == ()
    held = machine.record(("x", KIND_NODE, ""))
    assert held is not None
    assert held.body == b"first"
    newest = node_record("x", UNIX + 6, b"newest", LATER)
    assert of(RecordChanged, machine.handle(at(1), flood("b", newest)))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (node_record("x", UNIX, b"", LATER, by="y"), "record of another writer"),
        (node_record("x", UNIX, b"", LATER, by="y")[:-1] + b"\0", "bad signature"),
        (node_record("x", UNIX + 62, b"", LATER), "generation is ahead of the clock"),
        (node_record("x", 0, b"", LATER), "generation is not positive"),
        (node_record("x", UNIX, b"", LATER, name="e31"), "no node writes such a record"),
        (b"\xc1", "not a record: MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)"),
    ],
)
def test_what_is_not_well_made_is_refused(record: bytes, reason: str) -> None:
    machine = store()
    assert reasons(machine.handle(at(1), flood("a", record))) == [reason]
    assert machine.statistics().records == 0


def test_an_expired_record_is_not_taken_in_and_a_held_one_goes_at_its_time() -> None:
    machine = store(peers="")
    assert machine.handle(at(1), Learn("a", (node_record("x", UNIX, b"1", UNIX + 1),))) == ()
    machine.handle(at(1), Learn("a", (node_record("x", UNIX, b"1", UNIX + 8),)))
    gone = []
    now = at(1)
    while now < at(9):
        now = machine.deadline
        gone += [(now, fact) for fact in of(RecordGone, machine.handle(now, Tick()))]
    assert gone == [(at(8), RecordGone("x", KIND_NODE, ""))]
    assert machine.handle(at(9), Learn("a", (node_record("x", UNIX, b"1", UNIX + 90),))) == ()


def test_a_step_of_the_clock_judges_all_expiries_again() -> None:
    machine = store()
    machine.handle(at(1), flood("a", node_record("x", UNIX, b"1", UNIX + 500)))
    effects = machine.handle(at(2), ClockSet((UNIX + 600) * SECOND))
    assert of(RecordGone, effects) == [RecordGone("x", KIND_NODE, "")]


def test_a_writer_over_its_rate_is_delayed_and_its_newest_record_arrives() -> None:
    machine = store()
    heard: list[bytes] = []
    now = at(1)
    for step in range(100):
        body = b"%d" % step
        effects = machine.handle(now, flood("a", node_record("x", UNIX + step - 50, body, LATER)))
        heard += [e.record.body for e in effects if type(e) is RecordChanged]
    assert len(heard) == 8
    while now < at(4):
        now = machine.deadline
        effects = machine.handle(now, Tick())
        heard += [e.record.body for e in effects if type(e) is RecordChanged]
    assert heard[8:] == [b"99"]


def test_a_forger_cannot_take_the_place_of_a_delayed_record() -> None:
    machine = store()
    for step in range(9):
        machine.handle(at(1), flood("a", node_record("x", UNIX + step, b"%d" % step, LATER)))
    forged = node_record("x", UNIX + 50, b"forged", LATER, by="b")
    machine.handle(at(1), flood("b", forged))
    assert machine.statistics().parked == 1
    now, heard = at(1), []
    while now < at(3):
        now = machine.deadline
        effects = machine.handle(now, Tick())
        heard += [e.record.body for e in effects if type(e) is RecordChanged]
    assert heard == [b"8"]


def test_a_peer_with_many_bad_records_is_not_listened_to_for_the_rest_of_the_round() -> None:
    machine = store(settings=Settings(sins_max=3))
    bad = [node_record("x", UNIX + n, b"", LATER, by="y") for n in range(5)]
    effects = machine.handle(at(1), flood("a", *bad))
    assert reasons(effects)[-1] == "too many bad records"
    good = node_record("x", UNIX, b"good", LATER)
    assert machine.handle(at(1), flood("a", good)) == ()
    while (now := machine.deadline) < at(11):
        machine.handle(now, Tick())
    assert of(RecordChanged, machine.handle(at(11), flood("a", good)))


def test_the_store_is_bounded_and_goes_on_renewing_what_it_holds() -> None:
    machine = store(settings=Settings(records_max=2, gone_max=1))
    for name in "xyz":
        effects = machine.handle(at(1), flood("a", node_record(name, UNIX, b"1", UNIX + 100)))
    assert reasons(effects) == ["store is full"]
    assert (
        of(RecordChanged, machine.handle(at(1), flood("a", node_record("x", UNIX + 1, b"", LATER))))
        == []
    )
    assert machine.statistics().records == 2
    machine.handle(at(2), ClockSet((LATER + 1) * SECOND))
    assert (machine.statistics().records, machine.statistics().gone) == (0, 1)


def test_publishing_follows_the_clock_and_never_repeats_a_generation() -> None:
    machine = store()
    first = machine.handle(at(1), Publish(KIND_NODE, "", b"1", LATER))
    second = machine.handle(at(1), Publish(KIND_NODE, "", b"2", LATER))
    third = machine.handle(at(9), Publish(KIND_NODE, "", b"3", LATER))
    generations = [e.record.generation for e in first + second + third if type(e) is RecordChanged]
    assert generations == [UNIX + 1, UNIX + 2, UNIX + 9]
    assert [dst for dst, _ in sent(first)] == ["a", "b"]


def test_what_was_withdrawn_is_gone_everywhere() -> None:
    machine, other = store("m", peers="n"), store("n", peers="m")
    effects = machine.handle(at(1), Publish(KIND_NODE, "e0", b"1", LATER))
    effects += machine.handle(at(2), Withdraw(KIND_NODE, "e0"))
    facts: Effects = ()
    for _, message in sent(effects):
        facts += other.handle(at(2), Received("m", message))
    assert of(RecordGone, facts) == [RecordGone("m", KIND_NODE, "e0")]
    assert other.record(("m", KIND_NODE, "e0")) is None


def test_who_hears_a_newer_record_of_its_own_jumps_above_it() -> None:
    machine = store()
    machine.handle(at(1), Publish(KIND_NODE, "", b"mine", LATER))
    effects = machine.handle(at(2), flood("a", node_record("m", UNIX + 40, b"old me", LATER)))
    (changed,) = of(RecordChanged, effects)
    assert isinstance(changed, RecordChanged)
    assert (changed.record.generation, changed.record.body) == (UNIX + 41, b"mine")


def test_a_record_of_ones_own_with_the_same_generation_is_jumped_above_too() -> None:
    machine = store()
    machine.handle(at(1), Publish(KIND_NODE, "", b"mine", LATER))
    effects = machine.handle(at(2), flood("a", node_record("m", UNIX + 1, b"twin", LATER)))
    assert [e.record.generation for e in effects if type(e) is RecordChanged] == [UNIX + 2]


def test_two_that_fight_for_a_name_are_named_and_slow_down() -> None:
    one, two = store("m", peers="n"), store("m", peers="n")
    now = at(1)
    waiting = [(two, m) for _, m in sent(one.handle(now, Publish(KIND_NODE, "", b"1", LATER)))]
    waiting += [(one, m) for _, m in sent(two.handle(now, Publish(KIND_NODE, "", b"2", LATER)))]
    named, messages = 0, 0
    while now < at(60):
        for machine, message in waiting:
            messages += type(message) is Flood
            other = two if machine is one else one
            effects = machine.handle(now, Received("n", message))
            named += len(of(DuplicateName, effects))
            waiting = waiting[1:] + [(other, m) for _, m in sent(effects)]
        now = min(one.deadline, two.deadline)
        for machine, other in ((one, two), (two, one)):
            effects = machine.handle(now, Tick())
            named += len(of(DuplicateName, effects))
            waiting += [(other, m) for _, m in sent(effects) if type(m) is Flood]
    assert named in (1, 2)
    assert messages < 40


def test_a_record_from_before_a_restart_stays_until_somebody_says_otherwise() -> None:
    machine = store()
    old = node_record("m", UNIX - 9, b"old", LATER, name="e0")
    assert of(RecordGone, machine.handle(at(1), flood("a", old))) == []
    now = at(1)
    effects: Effects = ()
    while now < at(31):
        now = machine.deadline
        effects += machine.handle(now, Tick())
    assert of(RecordGone, effects) == [RecordGone("m", KIND_NODE, "e0")]


def test_a_restart_continues_above_the_last_generation() -> None:
    machine = store()
    for _ in range(20):
        machine.handle(at(1), Publish(KIND_NODE, "", b"1", LATER))
    again = store()
    again.handle(at(2), Restore(machine.held()))
    effects = again.handle(at(2), Publish(KIND_NODE, "", b"2", LATER))
    assert [e.record.generation for e in effects if type(e) is RecordChanged] == [UNIX + 21]


def test_two_stores_compare_buckets_and_send_only_what_differs() -> None:
    left, right = store("a", peers=""), store("b", peers="")
    common = [node_record(f"c{n}", UNIX, b"1", LATER) for n in range(100)]
    for machine in (left, right):
        machine.handle(at(1), Learn("t", tuple(common)))
    left.handle(at(2), Learn("t", (node_record("l", UNIX, b"1", LATER),)))
    right.handle(at(2), Learn("t", (node_record("r", UNIX, b"1", LATER),)))
    right.handle(at(2), Learn("t", (node_record("c1", UNIX + 1, b"2", LATER),)))
    waiting = [(right, "a", m) for _, m in sent(left.handle(at(3), PeerUp("b")))]
    waiting += [(left, "b", m) for _, m in sent(right.handle(at(3), PeerUp("a")))]
    records = 0
    kinds = []
    for machine, src, message in waiting:
        kinds.append(type(message))
        records += len(message.records) if type(message) is Flood else 0
        other = left if machine is right else right
        effects = machine.handle(at(3), Received(src, message))
        waiting += [(other, "b" if machine is right else "a", m) for _, m in sent(effects)]
    assert left.generations() == right.generations()
    assert records == 3
    assert kinds.count(Digest) == 1
    differing = {bucket_of((name, KIND_NODE, "")) for name in ("l", "r", "c1")}
    assert kinds.count(Bucket) == len(differing)


def test_a_peer_cannot_ask_without_end() -> None:
    machine = store(peers="a")
    machine.handle(
        at(1), Learn("t", tuple(node_record(f"c{n}", UNIX, b"1", LATER) for n in range(9)))
    )
    answers = sum(
        len(sent(machine.handle(at(1), Received("a", Digest(b"\xff" * 512))))) for _ in range(50)
    )
    assert answers == 4 * 64
    keys = tuple((f"c{n}", KIND_NODE, "") for n in range(9)) * 10
    served = 0
    for _ in range(50):
        for _, message in sent(machine.handle(at(1), Received("a", Want(keys)))):
            assert type(message) is Flood
            served += len(message.records)
    assert 1024 <= served < 1024 + 90


def test_a_revoked_writer_goes_and_cannot_come_back() -> None:
    revoked: set[str] = set()

    def judge(record: Record, now: int) -> Verdict:
        return Denied("revoked") if record.writer in revoked else signing.verify(record, now)

    machine = Records(
        NodeName("m"), DOMAIN, verify=judge, verify_key=signing.verify_key,
        sign=signing.signer("m"), random=Random(1),
    )  # fmt: skip
    machine.handle(at(0), ClockSet(UNIX * SECOND))
    machine.handle(at(1), Learn("a", (node_record("x", UNIX, b"1", LATER),)))
    revoked.add("x")
    machine.handle(at(1), Rejudge(("x",)))
    effects = machine.handle(machine.deadline, Tick())
    assert of(RecordGone, effects) == [RecordGone("x", KIND_NODE, "")]
    again = machine.handle(at(2), Learn("a", (node_record("x", UNIX + 1, b"1", LATER),)))
    assert reasons(again) == ["revoked"]


# ------------------------------------------------------------------ sets of the authority
def trusting(sequence: int = 1, *keys: str, me: str = "m", peers: str = "ab") -> Records:
    machine = store(me, peers=peers)
    machine.handle(at(0), Trust(bundle(sequence, *(keys or ("k1",))), LATER))
    return machine


def a_set(
    set: str, sequence: int, body: bytes, key: str = "k1", generation: int = UNIX
) -> tuple[bytes, ...]:
    return set_records(set, sequence, body, key=key, generation=generation, expires_unix_s=LATER)


def test_a_small_set_is_one_record() -> None:
    machine = trusting()
    (record,) = a_set("names", 7, b"body")
    effects = machine.handle(at(1), flood("a", record))
    assert effects == (SetChanged("names", 7, b"body", LATER), Send("b", Flood((record,))))


def test_a_large_set_is_swapped_when_all_of_it_is_there_in_any_order() -> None:
    body = bytes(range(256)) * 200
    records = a_set("policy", 1, body)
    assert len(records) == 6
    for seed in range(5):
        machine = trusting()
        shuffled = list(records)
        Random(seed).shuffle(shuffled)
        facts = [of(SetChanged, machine.handle(at(1), flood("a", r))) for r in shuffled]
        assert facts[:-1] == [[]] * 5
        assert facts[-1] == [SetChanged("policy", 1, body, LATER)]


def test_the_chunks_of_the_set_before_do_not_complete_the_next() -> None:
    machine = trusting()
    first, second = bytes(range(256)) * 200, bytes(range(1, 256)) * 200
    machine.handle(at(1), flood("a", *a_set("policy", 1, first)))
    *chunks, manifest = a_set("policy", 2, second, generation=UNIX + 1)
    assert of(SetChanged, machine.handle(at(1), flood("a", manifest))) == []
    effects = machine.handle(at(1), flood("a", *chunks))
    assert of(SetChanged, effects) == [SetChanged("policy", 2, second, LATER)]


def test_a_set_that_became_shorter_leaves_no_chunk_behind() -> None:
    machine = trusting()
    machine.handle(at(1), flood("a", *a_set("policy", 1, b"x" * 50_000)))
    assert machine.statistics().records == 6
    machine.handle(at(1), flood("a", *a_set("policy", 2, b"x" * 20_000, generation=UNIX + 1)))
    assert machine.statistics().records == 3
    old = a_set("policy", 1, b"x" * 50_000)
    assert machine.handle(at(1), flood("b", *old)) == ()


def test_an_older_sequence_is_refused_even_under_a_newer_generation() -> None:
    machine = trusting()
    machine.handle(at(1), flood("a", *a_set("names", 7, b"new")))
    for sequence in (6, 7):
        again = a_set("names", sequence, b"old", generation=UNIX + 30)
        assert machine.handle(at(2), flood("a", *again)) == ()


def test_an_authority_record_needs_a_record_key_of_the_bundle() -> None:
    machine = trusting()
    effects = machine.handle(at(1), flood("a", *a_set("names", 1, b"", key="k9")))
    assert reasons(effects) == ["record key is not in the bundle held"]
    as_node = signing.signer("x")(Record(AUTHORITY, "manifest", "names", UNIX, LATER, b"", (), b""))
    assert as_node is not None
    assert not of(SetChanged, machine.handle(at(1), flood("a", encode_record(as_node))))


def chain_of(length: int) -> list[tuple[bytes, ...]]:
    """Bundles 2 .. length + 1, each signed by the key of the one before, which it drops."""
    return [
        a_set("bundle", n + 1, encode_body(bundle(n + 1, f"k{n + 1}")), f"k{n}", UNIX - 99 + n)
        for n in range(1, length + 1)
    ]


def test_a_bundle_is_believed_under_a_key_of_the_bundle_before_and_no_other() -> None:
    chain = chain_of(3)
    machine = trusting()
    skipped = machine.handle(at(1), flood("a", *chain[1]))
    assert reasons(skipped) == ["record key is not in the bundle held"]
    for records in chain:
        assert of(SetChanged, machine.handle(at(1), flood("a", *records)))
    held = machine.bundle()
    assert held is not None
    assert held.sequence == 4
    old = machine.handle(at(1), flood("a", *a_set("names", 1, b"", key="k1")))
    assert reasons(old) == ["record key is not in the bundle held"]


def test_a_node_that_was_away_asks_its_neighbour_for_the_chain() -> None:
    here, away = trusting(me="a", peers="b"), trusting(me="b", peers="a")
    for records in chain_of(9):
        here.handle(at(1), Learn("authority", records))
    names = here.handle(at(1), Learn("authority", a_set("names", 1, b"names", key="k10")))
    ((_, message),) = sent(names)
    asked = sent(away.handle(at(2), Received("a", message)))
    assert asked == [("a", Want((CHAIN,)))]
    ((_, chain),) = sent(here.handle(at(2), Received("b", asked[0][1])))
    away.handle(at(2), Received("a", chain))
    held = away.bundle()
    assert held == Bundle(DOMAIN, 10, (), bundle(10, "k10").record_keys)
    assert of(SetChanged, away.handle(at(2), Received("a", message)))


def test_a_set_ends_with_its_own_expiry() -> None:
    machine = trusting()
    records = set_records("names", 1, b"1", key="k1", generation=UNIX, expires_unix_s=UNIX + 5)
    machine.handle(at(1), flood("a", *records))
    effects = machine.handle(at(2), ClockSet((UNIX + 6) * SECOND))
    assert of(SetGone, effects) == [SetGone("names")]
    later = set_records("names", 2, b"2", key="k1", generation=UNIX + 6, expires_unix_s=LATER)
    assert of(SetChanged, machine.handle(at(3), flood("a", *later)))


def test_the_heartbeat_is_the_floor_of_wall_time() -> None:
    machine = trusting()
    beat = encode_body(Heartbeat((UNIX + 300) * SECOND, 1))
    machine.handle(at(1), flood("a", *a_set("heartbeat", 1, beat)))
    assert machine.unix_s(at(2)) == UNIX + 301
    machine.handle(at(3), ClockSet(UNIX * SECOND))
    assert machine.unix_s(at(3)) == UNIX + 302


def test_a_restart_keeps_sets_bundle_chain_and_floor() -> None:
    machine = trusting()
    body = bytes(range(256)) * 200
    for records in [*chain_of(2), a_set("policy", 4, body, key="k3")]:
        machine.handle(at(1), flood("a", *records))
    again = store(peers="")
    effects = again.handle(at(5), Restore(machine.held()))
    sets = [(e.set, e.sequence) for e in effects if type(e) is SetChanged]
    assert sorted(sets) == [("bundle", 3), ("policy", 4)]
    assert again.chain() == machine.chain()
    assert again.held() == machine.held()
    old = again.handle(at(6), Learn("t", a_set("policy", 4, b"", key="k3", generation=UNIX + 3)))
    assert not of(SetChanged, old)


def test_an_enrolled_bundle_survives_a_restart() -> None:
    machine = trusting()
    again = store(peers="")
    assert of(SetChanged, again.handle(at(1), Restore(machine.held())))
    assert again.bundle() == machine.bundle()


@pytest.mark.parametrize(("trusted", "held", "in_force"), [(3, 1, 3), (1, 3, 3), (2, 2, 2)])
def test_the_newest_of_two_bundles_on_the_disk_is_in_force(
    trusted: int, held: int, in_force: int
) -> None:
    machine = store()
    machine.handle(at(1), Trust(bundle(trusted, "k1"), LATER))
    effects = machine.handle(at(1), Restore(Held(bundle=bundle(held, "k1"))))
    assert len(of(SetChanged, effects)) == (held > trusted)
    found = machine.bundle()
    assert found is not None
    assert found.sequence == in_force


def test_nothing_held_is_nothing_restored() -> None:
    assert store().handle(at(1), Restore(Held())) == ()


def test_a_pace_remembers_only_writers_that_have_used_something_up() -> None:
    pace = Pace(SECOND, 3, keys_max=4096)
    busy = Instant(10_000 * SECOND)
    for _ in range(3):
        assert pace.take(busy, "busy") == busy
    for number in range(2000):
        now = Instant(busy + number * SECOND // 1000)
        assert pace.take(now, f"w{number % 700}") == now
        assert len(pace._full) <= 2 * 1000 + 64
    later = Instant(busy + 1000 * SECOND)
    for number in range(2000):
        now = Instant(later + number * 2 * SECOND)
        assert pace.take(now, f"w{number}") == now
    assert len(pace._full) <= 128
    assert pace.take(busy, "busy") == busy
    pace = Pace(SECOND, 3, keys_max=4096)
    for _ in range(3):
        pace.take(busy, "busy")
    for number in range(1000):
        pace.take(busy, f"w{number}")
    assert pace.take(busy, "busy") == busy + SECOND
