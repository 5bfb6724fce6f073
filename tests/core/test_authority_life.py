"""How an authority lives: CAs and record keys, signed sets, heartbeats, and what the laws ask."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.authority_desk import AuthorityDesk, digest
from tests.fakes.authority_keys import verify
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.life import AHEAD_S_MAX
from x0tta6bl4.core.authority.rows import ACTIVE, PREPARED, RETIRED, Published, Refusal
from x0tta6bl4.core.authority.trust import sign_set, steps
from x0tta6bl4.core.machine import NOTHING, SECOND, ClockSet, Instant, Tick
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import NotFound
from x0tta6bl4.wire.records import (
    Bundle,
    Name,
    decode_bundle,
    decode_heartbeat,
    decode_manifest,
    decode_names,
    decode_record,
    signed_part,
)

HOUR = 3600
CA = 10 * HOUR
CONFIG = AuthorityConfig(ca_ttl_s=CA)


def states(desk: AuthorityDesk) -> list[str]:
    return sorted(ca.state for ca in desk.machine.state.cas.values())


def newest(desk: AuthorityDesk) -> Bundle:
    return decode_bundle(desk.machine.state.newest_bundle().body)


def opened(records: tuple[bytes, ...], bundle: Bundle) -> tuple[int, bytes]:
    """Sequence and body of a set, every signature checked."""
    points = {key.id.encode(): key.point for key in bundle.record_keys}
    decoded = [decode_record(data) for data in records]
    for record in decoded:
        assert verify(points[record.signer[0]], signed_part(record), record.signature)
    manifest = decode_manifest(decoded[0].body)
    chunks = [record.body for record in decoded[1:]]
    assert tuple(hashlib.sha256(chunk).digest() for chunk in chunks) == manifest.chunks
    return manifest.sequence, manifest.inline or b"".join(chunks)


# ------------------------------------------------------------------ CAs
def test_a_ca_is_prepared_at_half_its_life_and_active_at_five_sixths() -> None:
    desk = AuthorityDesk(CONFIG)
    first = desk.machine.state.active()
    assert first.not_after_unix_s - first.not_before_unix_s == CA
    start = first.not_before_unix_s
    desk.wait(start + CA // 2 - 1 - desk.unix_s)
    assert states(desk) == [ACTIVE]
    desk.wait(7)
    assert states(desk) == [ACTIVE, PREPARED]
    assert next(key.id for key in newest(desk).record_keys) == first.record_key
    desk.wait(start + CA * 5 // 6 - 1 - desk.unix_s)
    assert desk.machine.state.active() == first
    desk.wait(7)
    assert states(desk) == [ACTIVE, RETIRED]
    assert desk.machine.state.active() != first
    desk.wait(first.not_after_unix_s + 7 - desk.unix_s)
    assert first.id not in desk.machine.state.cas
    assert first.certificate not in newest(desk).anchors


def test_no_svid_outlives_its_ca() -> None:
    desk = AuthorityDesk(CONFIG)
    desk.enrol("alpha")
    ca = desk.machine.state.active()
    desk.machine.state.cas.clear()
    desk.machine.state.cas[ca.id] = ca
    desk.now = Instant(desk.now + (ca.not_after_unix_s - 100 - desk.unix_s) * SECOND)
    assert desk.issue("alpha", "").issued[0].not_after_unix_s == ca.not_after_unix_s


def test_each_bundle_is_signed_by_a_key_of_the_one_before() -> None:
    desk = AuthorityDesk(CONFIG)
    first = desk.machine.state.newest_bundle()
    desk.wait(3 * CA)
    rows = sorted(desk.machine.state.bundles.values(), key=lambda row: row.sequence)
    assert len(rows) > 6
    for before, after in itertools.pairwise(rows):
        sequence, body = opened(after.records, decode_bundle(before.body))
        assert (sequence, body) == (after.sequence, after.body)
        assert decode_bundle(body).sequence == sequence == before.sequence + 1
    body, walked = steps(rows, first.digest)
    assert body == first.body
    bundle = decode_bundle(body)
    for step in walked:
        bundle = decode_bundle(opened(step, bundle)[1])
    assert bundle == newest(desk)
    assert len(walked) < len(rows) - 1  # The way is the shortest there is.


def test_nobody_walks_from_a_bundle_that_never_was() -> None:
    desk = AuthorityDesk()
    with pytest.raises(NotFound, match="X0-AUT-021"):
        steps(desk.machine.state.bundles.values(), bytes(32))
    reply = desk.ask("Trust", words.TrustRequest(bytes(32)))
    assert type(reply) is Refusal


def test_an_operator_rotates_by_hand_in_order() -> None:
    desk = AuthorityDesk()
    old = desk.machine.state.active()

    def step(name: str, force: bool = False) -> Any:
        return desk.ask("BundleRotate", words.BundleRotate(name, force))

    assert step("activate").id == "X0-AUT-071"
    assert step("retire").id == "X0-AUT-073"
    assert len(step("prepare").cas) == 2
    assert step("prepare").id == "X0-AUT-070"
    assert step("activate").id == "X0-AUT-072"
    desk.wait(desk.config.ca_advance_s)
    step("activate")
    assert desk.machine.state.active() != old
    assert step("retire").id == "X0-AUT-074"
    step("retire", force=True)
    assert old.certificate not in newest(desk).anchors
    assert step("sideways").id == "X0-AUT-075"


def test_a_forced_activation_still_waits_for_the_bundle() -> None:
    desk = AuthorityDesk()
    effects = desk.machine.handle(desk.now, _asked("BundleRotate", words.BundleRotate("prepare")))
    assert effects
    refused = desk.machine.handle(
        desk.now, _asked("BundleRotate", words.BundleRotate("activate", force=True))
    )
    assert [e.id for e in refused if type(e) is Refusal] == ["X0-AUT-072"]


# ------------------------------------------------------------------ sets
def test_a_heartbeat_comes_every_30_s_and_its_sequence_grows() -> None:
    desk = AuthorityDesk()
    told = [e for e in desk.wait(301) if type(e) is Published and e.set == "heartbeat"]
    assert len(told) == 10
    beats = [opened(e.records, newest(desk)) for e in told]
    sequences = [sequence for sequence, _ in beats]
    assert sequences == sorted(set(sequences))
    times = [decode_heartbeat(body).unix_us for _, body in beats]
    assert all(b - a == 30 * SECOND for a, b in itertools.pairwise(times))


def test_sets_are_signed_anew_at_half_of_their_time() -> None:
    desk = AuthorityDesk(AuthorityConfig(set_ttl_s=1000))
    before = dict(desk.machine.state.sets)
    desk.wait(495)
    assert desk.machine.state.sets["names"] == before["names"]
    desk.wait(11)
    after = desk.machine.state.sets
    for name in ("bundle", "names", "policy", "revocations"):
        assert after[name].sequence == before[name].sequence + 1
        assert after[name].expires_unix_s >= desk.unix_s + 990


def test_a_burst_of_changes_never_runs_more_than_30_s_ahead_of_the_clock() -> None:
    desk = AuthorityDesk()
    for n in range(200):
        desk.ask("NameCreate", Name(f"n{n}", "spiffe://example.org/web", ()))
    row = desk.machine.state.sets["names"]
    assert row.generation <= desk.unix_s + AHEAD_S_MAX
    desk.wait(2)
    sequence, body = opened(desk.machine.state.sets["names"].records, newest(desk))
    assert len(decode_names(body)) == 200
    assert sequence <= 1 + AHEAD_S_MAX + 3


def test_a_large_set_is_cut_and_only_chunks_that_changed_are_signed_again() -> None:
    desk = AuthorityDesk()
    ca = desk.machine.state.active()
    body = Random(7).randbytes(100_000)

    def signed(data: bytes) -> bytes:
        signed.calls += 1  # type: ignore[attr-defined]
        return desk.keys.sign(ca, data)

    signed.calls = 0  # type: ignore[attr-defined]
    first = sign_set("names", 1, 1000, 9000, body, ca.record_key, signed)
    assert opened(first, newest(desk)) == (1, body)
    assert signed.calls == len(first) == 10  # type: ignore[attr-defined]
    changed = body[:-1] + bytes([body[-1] ^ 1])
    second = sign_set("names", 2, 1001, 9001, changed, ca.record_key, signed, first)
    assert opened(second, newest(desk)) == (2, changed)
    assert signed.calls == 12  # type: ignore[attr-defined]
    assert second[1:-1] == first[1:-1]
    assert max(decode_record(d).generation for d in second[1:]) <= 1001


# ------------------------------------------------------------------ the disk and the clock
def test_what_the_disk_refused_never_was() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    kept = desk.entry("alpha", key="kept")
    before = (dict(desk.machine.state.entries), dict(desk.machine.state.sets))
    desk.lose(
        "EntryCreate",
        words.Entry(
            id="spiffe://example.org/db", node="alpha", selectors=("unix:uid:2",), key="lost"
        ),
    )
    desk.lose("EntryDelete", words.Key("kept"))
    desk.lose(
        "EntryUpdate", words.Entry(id=kept.id, node="beta", selectors=kept.selectors, key="kept")
    )
    desk.lose("NameCreate", Name("lost", "spiffe://example.org/web", ()))
    desk.lose("Revoke", words.Revoke(kept.id))
    desk.lose("BundleRotate", words.BundleRotate("prepare"))
    assert (dict(desk.machine.state.entries), dict(desk.machine.state.sets)) == before
    assert desk.machine.state.by_node == {"alpha": {"kept": kept}}
    assert not desk.machine.state.bans
    assert not desk.machine.state.revocations
    desk.wait(40)
    assert desk.machine.state.sets["names"] == before[1]["names"]
    assert states(desk) == [ACTIVE]
    assert desk.issue("alpha", "kept").issued[0].chain


def test_a_heartbeat_goes_out_although_nothing_can_be_written() -> None:
    desk = AuthorityDesk()
    desk.now = desk.machine.deadline = Instant(desk.now + 31 * SECOND)
    effects = desk.machine.handle(desk.now, Tick())
    assert [e.set for e in effects if type(e) is Published] == ["heartbeat"]


def test_nodes_are_refused_and_nothing_is_signed_while_the_clock_is_back() -> None:
    desk = AuthorityDesk()
    desk.wait(400)
    desk.machine.handle(desk.now, ClockSet(desk.unix_us - 3600 * SECOND))
    desk.skew_us -= 3600 * SECOND
    refused = desk.ask("Challenge", words.ChallengeRequest(desk.unix_us), _nobody())
    assert refused.id == "X0-AUT-011"
    assert not [e for e in desk.wait(60) if type(e) is Published]
    desk.machine.handle(desk.now, ClockSet(desk.unix_us + 3600 * SECOND))
    desk.skew_us += 3600 * SECOND
    assert [e for e in desk.wait(60) if type(e) is Published]


# ------------------------------------------------------------------ laws
def test_honest_deadline() -> None:
    desk = AuthorityDesk()
    desk.wait(100)
    early = Instant(desk.machine.deadline - 1)
    for now in range(desk.now, early, 100_000):
        assert desk.machine.handle(Instant(now), Tick()) is NOTHING


def _story(seed: int) -> str:
    """A digest over all changes and facts of a random operator's day."""
    desk = AuthorityDesk(AuthorityConfig(ca_ttl_s=CA, set_ttl_s=5000), seed=str(seed))
    draw = Random(seed)
    for _ in range(60):
        desk.act(draw)
    return digest(repr((desk.changes, desk.facts)).encode()).hex()


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_same_seed_same_story(seed: int) -> None:
    assert _story(seed) == _story(seed)


def test_same_story_under_any_hash_seed() -> None:
    script = "from tests.core.test_authority_life import _story; print(_story(5))"
    root = Path(__file__).parents[2]
    told = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, check=True, capture_output=True, timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{root / 'src'}:{root}"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1


def _nobody() -> Any:
    from x0tta6bl4.core.authority.rows import Caller

    return Caller()


def _asked(method: str, request: Any) -> Any:
    from tests.fakes.authority_desk import OPERATOR
    from x0tta6bl4.core.authority.rows import Asked

    return Asked(1, OPERATOR, method, request)
