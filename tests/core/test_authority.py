"""Who is issued what, who is refused, and what an operator's word does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.authority_desk import OPERATOR, AuthorityDesk, digest
from x0tta6bl4.core.authority.rows import (
    Caller,
    EntriesChanged,
    NodeCut,
    NodeTold,
    Published,
    Refusal,
    RenewWanted,
)
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.records import Name, Rule, decode_manifest, decode_record, decode_revocations
from x0tta6bl4.wire.token import Token


def refused(answer: Any, id: str, part: str = "") -> None:
    assert type(answer) is Refusal, answer
    assert answer.id == id, answer
    assert part in answer.what, answer


def revoked(desk: AuthorityDesk) -> dict[str, tuple[int, int]]:
    """Subject -> (until, issued before), as the published set says."""
    row = desk.machine.state.sets["revocations"]
    body = decode_manifest(decode_record(row.records[0]).body).inline
    return {r.subject: (r.until_unix_s, r.issued_before_unix_s) for r in decode_revocations(body)}


# ------------------------------------------------------------------ enrolment
def test_a_token_enrols_its_node_once() -> None:
    desk = AuthorityDesk()
    token = desk.token("alpha")
    assert token.trust_domain == "example.org"
    assert token.authorities == ("127.0.0.1:7000",)
    assert token.bundle_sha256 == digest(desk.machine.state.newest_bundle().body)
    admitted = desk.enrol("alpha", token)
    assert admitted.id == "spiffe://example.org/node/alpha"
    assert admitted.not_after_unix_s == desk.unix_s + 3600 - 35
    assert digest(admitted.bundle) == token.bundle_sha256
    refused(desk.enrol("alpha", token), "X0-AUT-040", "used before")
    assert [t.used_unix_s > 0 for t in desk.ask("TokenList", words.Page()).tokens] == [True]


def test_the_authority_keeps_no_secret_of_a_token() -> None:
    desk = AuthorityDesk()
    token = desk.token("alpha")
    for change in desk.changes:
        assert token.secret not in repr(change).encode("latin-1", "replace")
        assert token.secret.hex() not in repr(change)


@pytest.mark.parametrize(
    ("change", "id", "part"),
    [
        ({"secret": bytes(32)}, "X0-AUT-040", "unknown"),
        ({"id": bytes(8)}, "X0-AUT-040", "unknown"),
    ],
)
def test_a_guessed_token_is_unknown(change: dict[str, bytes], id: str, part: str) -> None:
    desk = AuthorityDesk()
    token = desk.token("alpha")
    fields = {f: getattr(token, f) for f in token.__struct_fields__} | change
    refused(desk.enrol("alpha", Token(**fields)), id, part)
    assert desk.enrol("alpha", token).id  # A failed try does not spend it.


def test_a_token_expires_at_its_second() -> None:
    desk = AuthorityDesk()
    early, late = desk.token("alpha", ttl_s=60), desk.token("beta", ttl_s=60)
    desk.wait(59)
    assert desk.enrol("alpha", early).id
    desk.wait(1)
    refused(desk.enrol("beta", late), "X0-AUT-040", "expired")


def test_a_token_for_one_node_enrols_no_other() -> None:
    desk = AuthorityDesk()
    refused(desk.enrol("beta", desk.token("alpha")), "X0-AUT-040", "another node")


def test_an_open_token_takes_no_name_that_is_taken() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    refused(desk.enrol("alpha", desk.token(""), b"thief"), "X0-AUT-043")
    assert desk.enrol("beta", desk.token("")).id.endswith("/beta")


def test_a_token_for_a_name_replaces_the_node_and_its_key() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha", key=b"old")
    desk.enrol("alpha", desk.token("alpha"), b"new")
    refused(desk.attest("alpha", b"old"), "X0-AUT-041")
    assert desk.attest("alpha", b"new").id


def test_enrolment_needs_the_key_it_registers() -> None:
    desk = AuthorityDesk()
    token = desk.token("alpha")
    request = words.EnrolRequest(
        token=token.id, secret=token.secret, node="alpha", key=b"\x04" * 65, csr=b"csr a",
        proof=b"no", unix_us=desk.unix_us,
    )  # fmt: skip
    refused(desk.ask("Enrol", request, Caller()), "X0-AUT-041")
    assert desk.enrol("alpha", token).id


def test_a_csr_without_possession_changes_nothing() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    wanted = (words.Wanted(entry="", csr=b"stolen"),)
    reply = desk.ask("Issue", words.IssueRequest(wanted, desk.unix_us), desk.node("alpha"))
    assert reply.issued[0].refused == "CSR without proof of possession"


@pytest.mark.parametrize("ahead_s", [-31, 31])
def test_clocks_that_differ_by_more_than_30_s_are_refused(ahead_s: int) -> None:
    desk = AuthorityDesk()
    request = words.ChallengeRequest(unix_us=desk.unix_us + ahead_s * 1_000_000)
    refused(desk.ask("Challenge", request, Caller()), "X0-AUT-010", f"{ahead_s:+d} s")
    near = words.ChallengeRequest(unix_us=desk.unix_us + ahead_s * 960_000)
    assert len(desk.ask("Challenge", near, Caller()).nonce) == 32


# ------------------------------------------------------------------ coming back
def test_a_node_comes_back_by_its_key_after_two_lifetimes() -> None:
    desk = AuthorityDesk()
    first = desk.enrol("alpha")
    desk.wait(2 * 3600 + 1)
    assert first.not_after_unix_s < desk.unix_s
    assert desk.attest("alpha").not_after_unix_s > desk.unix_s


def test_attestation_needs_a_fresh_challenge_and_the_right_key() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    refused(desk.attest("alpha", nonce=b""), "X0-AUT-041", "challenge")
    refused(desk.attest("alpha", nonce=b"other"), "X0-AUT-041")
    refused(desk.attest("alpha", b"thief"), "X0-AUT-041")
    refused(desk.attest("gamma"), "X0-AUT-044")


def test_an_evicted_node_does_not_come_back() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    spare = desk.token("alpha")
    desk.ask("NodeEvict", words.NodeEvict("alpha", "lost"))
    assert NodeCut("alpha", "node was evicted") in desk.facts
    refused(desk.attest("alpha"), "X0-AUT-042", "evicted")
    refused(desk.issue("alpha", ""), "X0-AUT-042", "evicted")
    refused(desk.enrol("alpha", spare), "X0-AUT-040")
    refused(desk.enrol("alpha", desk.token("")), "X0-AUT-042", "evicted")
    refused(desk.ask("TokenCreate", words.TokenCreate(node="alpha")), "X0-AUT-042")
    watching = desk.ask("Watch", words.WatchRequest(desk.unix_us), desk.node("alpha"))
    refused(watching, "X0-AUT-042")


def test_the_name_of_an_evicted_node_is_free_after_its_last_svid() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    refused(desk.ask("NodeDelete", words.Key("alpha")), "X0-AUT-066")
    desk.ask("NodeEvict", words.NodeEvict("alpha"))
    refused(desk.ask("NodeDelete", words.Key("alpha")), "X0-AUT-067")
    desk.wait(3600)
    desk.ask("NodeDelete", words.Key("alpha"))
    assert desk.enrol("alpha", key=b"new machine").id


# ------------------------------------------------------------------ issue
def test_only_the_parent_node_gets_the_svid() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    desk.enrol("beta")
    entry = desk.entry("alpha")
    (mine,) = desk.issue("alpha", entry.key).issued
    assert mine.id == "spiffe://example.org/web"
    assert b"via alpha" in mine.chain[0]
    (stolen,) = desk.issue("beta", entry.key).issued
    assert (stolen.refused, stolen.chain) == ("entry of another node", ())
    (gone,) = desk.issue("alpha", "e-none").issued
    assert gone.refused == "no such entry"


def test_who_presents_nothing_or_is_unknown_gets_nothing() -> None:
    desk = AuthorityDesk()
    request = words.IssueRequest((), desk.unix_us)
    refused(desk.ask("Issue", request, Caller()), "X0-AUT-042", "no node SVID")
    refused(desk.ask("Issue", request, desk.node("gamma")), "X0-AUT-042", "not enrolled")
    refused(desk.ask("EntryList", words.Page(), desk.node("gamma")), "X0-AUT-042", "operators")
    refused(desk.ask("OwnSvid", None, OPERATOR), "X0-AUT-042")
    refused(desk.ask("Nonsense", None), "X0-AUT-076")


def test_no_more_than_64_at_once() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    assert len(desk.issue("alpha", *[""] * 64).issued) == 64
    refused(desk.issue("alpha", *[""] * 65), "X0-AUT-045")


@pytest.mark.parametrize(("ttl_s", "back_s"), [(3600, 35), (140, 35), (60, 15), (10, 2)])
def test_not_before_lies_back_inside_the_lifetime(ttl_s: int, back_s: int) -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha", ttl_s=ttl_s)
    (issued,) = desk.issue("alpha", entry.key).issued
    start, end = map(int, issued.chain[0].split()[1:3])
    assert (desk.unix_s - start, end - start) == (back_s, ttl_s)
    assert issued.not_after_unix_s == end


# ------------------------------------------------------------------ revocation
def test_a_ban_lasts_and_its_revocation_stays_until_the_last_svid_has_expired() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    (issued,) = desk.issue("alpha", entry.key).issued
    until = desk.ask("Revoke", words.Revoke(entry.id, "stolen")).until_unix_s
    assert until == issued.not_after_unix_s
    assert revoked(desk) == {entry.id: (until, 0)}
    assert desk.issue("alpha", entry.key).issued[0].refused == "subject is banned"
    desk.wait(issued.not_after_unix_s - desk.unix_s - 6)
    assert entry.id in revoked(desk)
    desk.wait(12)
    assert revoked(desk) == {}
    assert desk.issue("alpha", entry.key).issued[0].refused == "subject is banned"
    desk.ask("Unban", words.Key(entry.id))
    assert desk.issue("alpha", entry.key).issued[0].chain


def test_after_a_rekey_only_new_svids_are_good() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    (old,) = desk.issue("alpha", entry.key).issued
    desk.ask("Revoke", words.Revoke(entry.id, ban=False))
    (new,) = desk.issue("alpha", entry.key).issued
    until, before = revoked(desk)[entry.id]
    old_start, new_start = (int(i.chain[0].split()[1]) for i in (old, new))
    assert old_start < before <= new_start
    assert until == old.not_after_unix_s


def test_unban_before_the_end_leaves_the_old_ones_revoked() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    (old,) = desk.issue("alpha", entry.key).issued
    desk.ask("Revoke", words.Revoke(entry.id))
    desk.ask("Unban", words.Key(entry.id))
    (new,) = desk.issue("alpha", entry.key).issued
    _, before = revoked(desk)[entry.id]
    assert int(old.chain[0].split()[1]) < before <= int(new.chain[0].split()[1])


def test_a_revoked_node_takes_all_that_was_issued_through_it() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    desk.wait(600)
    entry = desk.entry("alpha")
    (issued,) = desk.issue("alpha", entry.key).issued
    desk.ask("NodeEvict", words.NodeEvict("alpha"))
    id = "spiffe://example.org/node/alpha"
    assert revoked(desk) == {id: (issued.not_after_unix_s, 0)}


def test_a_rekeyed_node_that_shows_its_old_svid_is_refused() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    old = desk.unix_s - 35
    desk.ask("Revoke", words.Revoke("spiffe://example.org/node/alpha", ban=False))
    refused(desk.issue("alpha", "", not_before_unix_s=old), "X0-AUT-042", "revoked")
    admitted = desk.attest("alpha")
    start = int(admitted.chain[0].split()[1])
    assert desk.issue("alpha", "", not_before_unix_s=start).issued[0].chain


def test_revocations_survive_a_restart() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    desk.issue("alpha", entry.key)
    desk.ask("Revoke", words.Revoke(entry.id))
    state = desk.machine.state
    rows = (state.domain, *[row for table in state.tables.values() for row in table.values()])
    before = revoked(desk)
    desk.restart(rows)
    assert revoked(desk) == before
    assert desk.issue("alpha", entry.key).issued[0].refused == "subject is banned"


def test_renew_all_moves_every_not_before_past_the_wish() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha")
    (old,) = desk.issue("alpha", entry.key).issued
    desk.ask("RenewAll")
    wanted = [fact for fact in desk.facts if type(fact) is RenewWanted]
    (new,) = desk.issue("alpha", entry.key).issued
    before = wanted[0].before_unix_s
    assert int(old.chain[0].split()[1]) < before <= int(new.chain[0].split()[1])


# ------------------------------------------------------------------ entries, names, policy
@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"id": "spiffe://example.org/node/alpha"}, "X0-AUT-025"),
        ({"id": "spiffe://example.org/authority/main"}, "X0-AUT-025"),
        ({"id": "spiffe://example.org"}, "X0-AUT-025"),
        ({"id": "spiffe://other.org/web"}, "X0-AUT-024"),
        ({"id": "spiffe://EXAMPLE.org/web"}, "X0-AUT-023"),
        ({"id": "https://example.org/web"}, "X0-ID-002"),
        ({"node": "Alpha"}, "X0-ID-004"),
        ({"node": "authority"}, "X0-AUT-022"),
        ({"selectors": ()}, "X0-AUT-054"),
        ({"selectors": ("uid:1",)}, "X0-SEL-001"),
        ({"selectors": ("unix:uid:x",)}, "X0-SEL-002"),
        ({"ttl_s": 9}, "X0-AUT-056"),
        ({"ttl_s": 3601}, "X0-AUT-056"),
        ({"address": "localhost:80"}, "X0-AUT-059"),
        ({"address": "127.0.0.1:0"}, "X0-AUT-059"),
        ({"address": "::1:80"}, "X0-AUT-059"),
        ({"address": "unix:relative"}, "X0-AUT-059"),
        ({"proxy_header": True}, "X0-AUT-057"),
        ({"hint": "x" * 1025}, "X0-AUT-058"),
        ({"key": "Über"}, "X0-AUT-053"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(change: dict[str, Any], id: str) -> None:
    desk = AuthorityDesk()
    fields = {
        "id": "spiffe://example.org/web", "node": "alpha", "selectors": ("unix:uid:1",),
    } | change  # fmt: skip
    refused(desk.ask("EntryCreate", words.Entry(**fields)), id)
    assert not desk.machine.state.entries


@pytest.mark.parametrize("address", ["127.0.0.1:80", "[::1]:65535", "unix:/run/web.sock"])
def test_addresses_of_services(address: str) -> None:
    assert AuthorityDesk().entry("alpha", address=address).address == address


def test_an_entry_lives_through_update_move_and_delete() -> None:
    desk = AuthorityDesk()
    made = desk.entry("alpha")
    assert (made.revision, made.ttl_s) == (1, 3600)
    refused(desk.entry("alpha"), "X0-AUT-050", made.key)
    moved = desk.ask("EntryUpdate", _with(made, node="beta"))
    assert desk.facts[-2:] == [
        EntriesChanged("alpha", (), (made.key,)), EntriesChanged("beta", (moved,)),
    ]  # fmt: skip
    refused(desk.ask("EntryUpdate", _with(made, hint="late")), "X0-AUT-052")
    assert desk.ask("EntryList", words.Page(node="beta")).entries == (moved,)
    assert desk.ask("EntryList", words.Page(node="alpha")).entries == ()
    desk.ask("EntryDelete", words.Key(made.key))
    refused(desk.ask("EntryShow", words.Key(made.key)), "X0-AUT-068")


def test_lists_come_in_pages() -> None:
    desk = AuthorityDesk()
    for n in range(5):
        desk.entry("alpha", f"w{n}", key=f"e{n}")
    first = desk.ask("EntryList", words.Page(limit=2))
    assert ([e.key for e in first.entries], first.more) == (["e0", "e1"], True)
    rest = desk.ask("EntryList", words.Page(after="e1"))
    assert ([e.key for e in rest.entries], rest.more) == (["e2", "e3", "e4"], False)
    assert [e.key for e in desk.ask("EntryList", words.Page(match="/w3")).entries] == ["e3"]
    refused(desk.ask("EntryList", words.Page(limit=0)), "X0-AUT-069")


def test_names_are_published_and_policy_is_replaced_as_a_whole() -> None:
    desk = AuthorityDesk()
    web = Name("web", "spiffe://example.org/web", ("spiffe://example.org/*",))
    assert desk.ask("NameCreate", web) == web
    assert any(type(f) is Published and f.set == "names" for f in desk.facts)
    refused(desk.ask("NameCreate", web), "X0-AUT-050")
    refused(desk.ask("NameCreate", Name("x", "spiffe://example.org/node/a", ())), "X0-AUT-025")
    rule = Rule("all", "allow", ("spiffe://example.org/*",), ("spiffe://example.org/web",))
    policy = desk.ask("PolicyApply", words.Policy((rule,), 0))
    assert (policy.rules, policy.version) == ((rule,), 1)
    refused(desk.ask("PolicyApply", words.Policy((), 0)), "X0-AUT-052")
    bad = Rule("x", "permit", rule.callers, rule.targets)
    refused(desk.ask("PolicyApply", words.Policy((bad,), 1)), "X0-AUT-062")
    assert desk.ask("PolicyApply", words.Policy((), 1)).rules == ()


def test_a_watcher_gets_everything_of_its_node_and_nothing_of_others() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    mine = desk.entry("alpha")
    desk.entry("beta", "db")
    desk.ask("NodeDrain", words.NodeDrain("alpha"))
    assert desk.facts[-1] == NodeTold("alpha", True)
    update = desk.ask("Watch", words.WatchRequest(desk.unix_us), desk.node("alpha"))
    assert (update.full, update.entries, update.draining) == (True, (mine,), True)
    assert {decode_record(data).name for data in update.records} == {
        "bundle", "crls", "federated", "heartbeat", "names", "policy", "revocations",
    }  # fmt: skip


def test_nobody_can_be_called_authority() -> None:
    refused(AuthorityDesk().ask("TokenCreate", words.TokenCreate("authority")), "X0-AUT-022")


def _with(entry: words.Entry, **changes: Any) -> words.Entry:
    fields = {f: getattr(entry, f) for f in entry.__struct_fields__}
    return words.Entry(**(fields | changes))
