"""What an authority signs besides SVIDs: JWT-SVIDs with their keys' life, revocation lists."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.fakes.authority_desk import AuthorityDesk
from tests.fakes.authority_keys import sign
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.rows import Caller, CaRow, NewJwtKey, Refusal, Withdrawn
from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.records import (
    Bundle,
    decode_bundle,
    decode_crls,
    decode_manifest,
    decode_record,
)

CA = 36_000
CONFIG = AuthorityConfig(ca_ttl_s=CA)


def mint(desk: AuthorityDesk, node: str, entry: str, *audience: str, **options: Any) -> Any:
    request = words.MintRequest(
        entry=entry, audience=audience or ("db",), unix_us=options.pop("unix_us", desk.unix_us)
    )
    return desk.ask("Mint", request, options.pop("caller", None) or desk.node(node, **options))


def world(config: AuthorityConfig | None = None) -> tuple[AuthorityDesk, words.Entry]:
    desk = AuthorityDesk(config)
    desk.enrol("alpha")
    desk.enrol("beta")
    entry: words.Entry = desk.entry("alpha")
    return desk, entry


def newest(desk: AuthorityDesk) -> Bundle:
    return decode_bundle(desk.machine.state.newest_bundle().body)


def refused(answer: Any, id: str) -> None:
    assert type(answer) is Refusal, answer
    assert answer.id == id


# ------------------------------------------------------------------ who gets one
def test_SP_118_a_node_gets_a_token_for_its_own_entry() -> None:
    desk, entry = world()
    made = mint(desk, "alpha", entry.key, "db", "cache")
    assert (made.refused, made.id) == ("", "spiffe://example.org/web")
    assert (made.issued_unix_s, made.expires_unix_s) == (desk.unix_s, desk.unix_s + 300)
    ca = desk.machine.state.active()
    said, _, signature = made.token.rpartition(" ")
    assert said.split() == [
        made.id, "db,cache", str(made.issued_unix_s), str(made.expires_unix_s), ca.jwt_key,
    ]  # fmt: skip
    assert signature == sign(ca.jwt_private, said.encode()).hex()
    assert made.token not in repr(made)


def test_a_token_lives_no_longer_than_an_svid_of_its_entry() -> None:
    desk, _ = world()
    short = desk.entry("alpha", "short", ttl_s=20)
    assert mint(desk, "alpha", short.key).expires_unix_s == desk.unix_s + 20


def test_minting_writes_nothing() -> None:
    desk, entry = world()
    before = len(desk.changes)
    mint(desk, "alpha", entry.key)
    assert len(desk.changes) == before


def test_nobody_else_gets_a_token_for_an_entry() -> None:
    desk, entry = world()
    assert mint(desk, "beta", entry.key).refused == "entry of another node"
    assert mint(desk, "alpha", "e-none").refused == "no such entry"
    assert mint(desk, "beta", entry.key).token == ""
    refused(mint(desk, "", entry.key, caller=Caller()), "X0-AUT-042")
    refused(mint(desk, "gamma", entry.key), "X0-AUT-042")
    refused(mint(desk, "", entry.key, caller=Caller(operator=True)), "X0-AUT-076")


def test_bans_and_evictions_end_minting() -> None:
    desk, entry = world()
    desk.ask("Revoke", words.Revoke(subject=entry.id))
    assert mint(desk, "alpha", entry.key).refused == "subject is banned"
    desk.ask("Unban", words.Key(entry.id))
    assert mint(desk, "alpha", entry.key).token
    desk.ask("NodeEvict", words.NodeEvict("alpha"))
    refused(mint(desk, "alpha", entry.key), "X0-AUT-042")


def test_a_node_whose_svid_is_revoked_or_whose_clock_is_off_gets_none() -> None:
    desk, entry = world()
    desk.issue("alpha", "")
    desk.ask("Revoke", words.Revoke(subject="spiffe://example.org/node/alpha", ban=False))
    refused(mint(desk, "alpha", entry.key, not_before_unix_s=desk.unix_s - 36), "X0-AUT-042")
    refused(mint(desk, "beta", entry.key, unix_us=desk.unix_us + 31 * SECOND), "X0-AUT-010")


@pytest.mark.parametrize(
    "audience", [("",), ("a" * 1025,), ("é" * 513,), tuple("abcdefghijklmnopq")]
)
def test_audiences_are_bounded(audience: tuple[str, ...]) -> None:
    desk, entry = world()
    refused(mint(desk, "alpha", entry.key, *audience), "X0-AUT-048")
    assert mint(desk, "alpha", entry.key, *audience[1:16] or ("a" * 1024,)).token


def test_no_audience_is_refused() -> None:
    desk, entry = world()
    request = words.MintRequest(entry=entry.key, audience=(), unix_us=desk.unix_us)
    refused(desk.ask("Mint", request, desk.node("alpha")), "X0-AUT-048")


# ------------------------------------------------------------------ the keys
def test_SP_126_a_key_is_in_the_bundle_before_it_signs_and_until_its_last_token_has_ended() -> None:
    desk, entry = world(CONFIG)
    first = desk.machine.state.active()
    assert [key.kid for key in newest(desk).jwt_keys] == [first.jwt_key]
    start = desk.unix_s
    seen: dict[str, int] = {}
    while desk.unix_s < start + 3 * CA:
        made = mint(desk, "alpha", entry.key)
        kid = made.token.split()[4]
        published = {key.kid: key for key in newest(desk).jwt_keys}
        assert made.expires_unix_s <= published[kid].not_after_unix_s
        for other in published:
            seen.setdefault(other, desk.unix_s)
        if kid != first.jwt_key:
            assert desk.unix_s - seen[kid] >= desk.config.ca_advance_s
        desk.wait(290)
    assert len(seen) > 3
    assert first.jwt_key not in {key.kid for key in newest(desk).jwt_keys}


def test_a_token_never_outlives_its_ca() -> None:
    desk, entry = world(CONFIG)
    ca = desk.machine.state.active()
    desk.machine.state.cas.clear()
    desk.machine.state.cas[ca.id] = ca
    desk.now = Instant(desk.now + (ca.not_after_unix_s - 100 - desk.unix_s) * SECOND)
    assert mint(desk, "alpha", entry.key).expires_unix_s == ca.not_after_unix_s
    desk.now = Instant(desk.now + 100 * SECOND)
    refused(mint(desk, "alpha", entry.key), "X0-AUT-047")


def test_a_ca_of_an_older_release_is_given_a_key_which_signs_once_it_is_published() -> None:
    desk, entry = world()
    state = desk.machine.state
    bare = msgspec.structs.replace(state.active(), jwt_key="", jwt_public=b"", jwt_private=b"")
    rows = [row for row in _rows(desk) if type(row) is not CaRow]
    desk.machine.state.cas.clear()
    desk.restart((*rows, bare))
    desk.wait(40)
    ca = desk.machine.state.active()
    assert ca.jwt_key.startswith("j-")
    assert ca.jwt_key in {k.kid for k in newest(desk).jwt_keys}
    assert mint(desk, "alpha", entry.key).token
    desk.machine.state.cas[ca.id] = msgspec.structs.replace(ca, jwt_key="j-unpublished")
    refused(mint(desk, "alpha", entry.key), "X0-AUT-049")


def test_private_halves_are_in_no_repr() -> None:
    desk, _ = world()
    ca = desk.machine.state.active()
    assert repr(ca.jwt_private)[2:-1] not in repr(ca)
    assert "secret" not in repr(NewJwtKey(b"public", b"secret"))


def _rows(desk: AuthorityDesk) -> list[Any]:
    state = desk.machine.state
    rows = [row for table in state.tables.values() for row in table.values()]
    return [state.the_domain(), *rows]


# ------------------------------------------------------------------ revocation lists
def test_each_ca_has_a_revocation_list_that_is_published_when_it_is_made() -> None:
    desk, _ = world(CONFIG)
    desk.wait(CA // 2)
    cas = sorted(desk.machine.state.cas)
    assert len(cas) == 2
    for number in (desk.unix_s, desk.unix_s + 1):  # Two of one second are told apart.
        desk.ask("Withdrawn", Withdrawn(("ab", "cd")), Caller(own=True))
        expected = tuple(
            f"{ca} {number} {desk.unix_s} {desk.unix_s + 86_400} ab cd".encode() for ca in cas
        )
        assert desk.ask("CrlShow").lists == expected
    desk.wait(40)
    record = decode_record(desk.machine.state.sets["crls"].records[0])
    assert decode_crls(decode_manifest(record.body).inline) == expected
    for caller in (Caller(operator=True), desk.node("alpha"), Caller()):
        assert type(desk.ask("Withdrawn", Withdrawn(()), caller)) is Refusal
