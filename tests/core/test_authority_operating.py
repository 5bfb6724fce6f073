"""The rest of what operators may do, what a token looks like, and what happens at the bounds."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.authority_desk import AuthorityDesk
from x0tta6bl4.core.authority import state as state_module
from x0tta6bl4.core.authority.desk import DAY_S, AuthorityConfig
from x0tta6bl4.core.authority.rows import CaRow, Refusal, TokenRow
from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.records import Name, Rule
from x0tta6bl4.wire.token import Token, read_token, token_digest, write_token

TOKEN = Token("example.org", ("192.0.2.1:7000",), bytes(range(32)), "alpha", 1_790_000_600,
              b"identity", bytes(range(32, 64)))  # fmt: skip


def refused(answer: Any, id: str) -> None:
    assert type(answer) is Refusal, answer
    assert answer.id == id, answer


# ------------------------------------------------------------------ the token as a word
def test_a_token_is_one_word_and_comes_back() -> None:
    text = write_token(TOKEN)
    assert text.isascii()
    assert text.split() == [text]
    assert read_token(f"  {text}\n") == TOKEN


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_token_is_refused(at: int, flip: int) -> None:
    text = bytearray(write_token(TOKEN).encode())
    text[at % len(text)] ^= flip
    try:
        assert read_token(text.decode("latin-1")) == TOKEN  # E.g. a blank at its end.
    except BadInput as error:
        damaged = error
    else:
        return
    assert damaged.id == "X0-AUT-001"


@pytest.mark.parametrize("text", ["", "x0t1.", "x0t1.AAAA", "x0t1." + "A" * 5000, "x0t2.abc"])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(BadInput, match="X0-AUT-001"):
        read_token(text)


def test_a_token_with_short_parts_is_no_token() -> None:
    short = Token("example.org", (), b"short", "", 0, b"identity", bytes(32))
    with pytest.raises(BadInput, match="X0-AUT-001"):
        read_token(write_token(short))


def test_the_digest_tells_nothing_of_the_word() -> None:
    digest = token_digest(TOKEN.id, TOKEN.secret)
    text = write_token(TOKEN)
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") not in text
    assert digest != token_digest(TOKEN.id, bytes(32))


# ------------------------------------------------------------------ tokens, nodes, names
def test_tokens_are_listed_deleted_and_purged_after_a_day() -> None:
    desk = AuthorityDesk()
    kept, lost = desk.token("alpha"), desk.token("beta")
    assert {t.id for t in desk.ask("TokenList", words.Page()).tokens} == {
        kept.id.hex(), lost.id.hex(),
    }  # fmt: skip
    assert [t.node for t in desk.ask("TokenList", words.Page(node="beta")).tokens] == ["beta"]
    desk.ask("TokenDelete", words.Key(lost.id.hex()))
    refused(desk.enrol("beta", lost), "X0-AUT-040")
    refused(desk.ask("TokenDelete", words.Key(lost.id.hex())), "X0-AUT-068")
    desk.wait(DAY_S + 590)
    assert len(desk.ask("TokenList", words.Page()).tokens) == 1
    desk.wait(30)
    assert desk.ask("TokenList", words.Page()).tokens == ()


@pytest.mark.parametrize(
    ("request_", "id"),
    [
        (words.TokenCreate(ttl_s=601), "X0-AUT-064"),
        (words.TokenCreate(ttl_s=-1), "X0-AUT-064"),
        (words.TokenCreate(node="No Node"), "X0-ID-004"),
        (words.TokenCreate(authorities=("h:1",) * 9), "X0-AUT-065"),
        (words.TokenCreate(authorities=("h" * 261,)), "X0-AUT-065"),
    ],
)
def test_tokens_that_cannot_be(request_: words.TokenCreate, id: str) -> None:
    refused(AuthorityDesk().ask("TokenCreate", request_), id)


def test_nodes_are_shown_with_the_end_of_their_newest_svid() -> None:
    desk = AuthorityDesk()
    admitted = desk.enrol("alpha")
    (node,) = desk.ask("NodeList", words.Page()).nodes
    assert node == desk.ask("NodeShow", words.Key("alpha"))
    assert (node.not_after_unix_s, len(node.key_sha256)) == (admitted.not_after_unix_s, 64)
    refused(desk.ask("NodeShow", words.Key("beta")), "X0-AUT-068")
    refused(desk.ask("NodeEvict", words.NodeEvict("beta")), "X0-AUT-068")


def test_names_live_through_update_and_delete() -> None:
    desk = AuthorityDesk()
    web = Name("web", "spiffe://example.org/web", ())
    refused(desk.ask("NameUpdate", web), "X0-AUT-068")
    desk.ask("NameCreate", web)
    other = Name("web", "spiffe://example.org/new", ("spiffe://example.org/a",))
    assert desk.ask("NameUpdate", other) == desk.ask("NameShow", words.Key("web")) == other
    assert desk.ask("NameList", words.Page(match="new")).names == (other,)
    assert desk.ask("NameDelete", words.Key("web")) == other
    refused(desk.ask("NameShow", words.Key("web")), "X0-AUT-068")


@pytest.mark.parametrize(
    ("name", "id"),
    [
        (Name("Web", "spiffe://example.org/web", ()), "X0-AUT-060"),
        (Name("w" * 65, "spiffe://example.org/web", ()), "X0-AUT-060"),
        (Name("w", "spiffe://other.org/web", ()), "X0-AUT-024"),
        (Name("w", "spiffe://example.org/web", ("*",)), "X0-ID-002"),
        (Name("w", "spiffe://example.org/web", ("spiffe://EXAMPLE.org/x",)), "X0-AUT-023"),
        (Name("w", "spiffe://example.org/web", ("spiffe://a/b",) * 65), "X0-AUT-063"),
    ],
)
def test_names_that_cannot_be(name: Name, id: str) -> None:
    refused(AuthorityDesk().ask("NameCreate", name), id)


@pytest.mark.parametrize(
    ("rules", "id"),
    [
        ((Rule("R", "allow", ("spiffe://a/b",), ("spiffe://a/b",)),), "X0-AUT-061"),
        ((Rule("r", "allow", ("spiffe://a/b",), ("spiffe://a/b",)),) * 2, "X0-AUT-061"),
        ((Rule("r", "allow", (), ("spiffe://a/b",)),), "X0-AUT-063"),
    ],
)
def test_rules_that_cannot_be(rules: tuple[Rule, ...], id: str) -> None:
    refused(AuthorityDesk().ask("PolicyApply", words.Policy(rules, 0)), id)


def test_a_smaller_policy_drops_the_rules_it_lacks() -> None:
    desk = AuthorityDesk()
    a, b = (Rule(id, "deny", ("spiffe://a/b",), ("spiffe://a/c",)) for id in "ab")
    desk.ask("PolicyApply", words.Policy((a, b), 0))
    assert desk.ask("PolicyApply", words.Policy((b,), 1)) == words.Policy((b,), 2)


# ------------------------------------------------------------------ revocations
@pytest.mark.parametrize(
    "subject", ["spiffe://other.org/x", "spiffe://example.org", "web", "spiffe://example.org/a b"]
)
def test_what_is_no_subject(subject: str) -> None:
    answer = AuthorityDesk().ask("Revoke", words.Revoke(subject))
    assert type(answer) is Refusal


def test_revocations_and_bans_are_listed() -> None:
    desk = AuthorityDesk()
    made = desk.ask("Revoke", words.Revoke("spiffe://example.org/web", "why\n\x00not"))
    listed = desk.ask("RevocationList")
    assert listed.revocations == (made,)
    assert listed.bans[0].reason == "why  not"
    refused(desk.ask("Unban", words.Key("spiffe://example.org/db")), "X0-AUT-068")


def test_a_second_rekey_takes_the_place_of_the_first() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    for _ in range(3):
        desk.issue("alpha", entry.key)
        desk.wait(5)
        desk.ask("Revoke", words.Revoke(entry.id, ban=False))
    assert len(desk.ask("RevocationList").revocations) == 1


# ------------------------------------------------------------------ bounds
def test_a_full_table_refuses_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(state_module.LIMITS, TokenRow, 2)
    desk = AuthorityDesk()
    desk.token("a"), desk.token("b")
    refused(desk.ask("TokenCreate", words.TokenCreate("c")), "X0-AUT-020")
    assert len(desk.machine.state.tokens) == 2


def test_a_node_has_no_end_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x0tta6bl4.core.authority.operating.ENTRIES_PER_NODE_MAX", 2)
    desk = AuthorityDesk()
    desk.entry("alpha", "a"), desk.entry("alpha", "b"), desk.entry("beta", "c")
    refused(desk.entry("alpha", "d"), "X0-AUT-051")


def test_nothing_is_issued_by_a_ca_that_has_expired() -> None:
    desk = AuthorityDesk(AuthorityConfig(ca_ttl_s=7200))
    desk.enrol("alpha")
    desk.now = Instant(desk.now + 7200 * SECOND)
    (answer,) = desk.issue("alpha", "").issued
    assert "CA has expired" in answer.refused
    desk.wait(30)  # Woken up after all this time it moves on by itself.
    assert desk.issue("alpha", "").issued[0].chain


def test_a_csr_that_is_too_large_is_refused() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    wanted = (words.Wanted("", b"csr " + bytes(words.CSR_BYTES_MAX)),)
    reply = desk.ask("Issue", words.IssueRequest(wanted, desk.unix_us), desk.node("alpha"))
    assert reply.issued[0].refused == "the CSR is too large"


def test_health_counts_and_keys_stay_out_of_reprs() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    health = desk.ask("Health")
    assert (health.counts["node"], health.counts["subjects"]) == (1, 1)
    assert health == desk.machine.health(desk.now)
    assert health.ca_not_after_unix_s == desk.machine.state.active().not_after_unix_s
    assert desk.machine.statistics()["refused"] == 0
    for ca in desk.machine.state.cas.values():
        assert type(ca) is CaRow
        assert "key" not in repr(ca)
