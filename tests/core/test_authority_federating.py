"""Foreign trust domains: what an operator may say, and what a poll changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.authority_desk import AuthorityDesk
from x0tta6bl4.core.authority.federating import (
    POLL_S,
    POLL_S_MAX,
    POLL_S_MIN,
    Polled,
    due,
    endpoint_of,
)
from x0tta6bl4.core.authority.rows import Caller, PollWanted, Refusal
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.records import (
    Federated,
    decode_federated,
    decode_manifest,
    decode_record,
)

URL = "https://other.test/bundle"
ENDPOINT = "spiffe://other.test/endpoint"


def web(domain: str = "other.test", url: str = URL, **more: Any) -> words.Federation:
    return words.Federation(**({"trust_domain": domain, "url": url, "profile": "https_web"} | more))


def document(sequence: int, hint: int = 0, domain: str = "other.test") -> bytes:
    return f"bundle {domain} {sequence} {hint}".encode()


def poll(desk: AuthorityDesk, data: bytes = b"", failed: str = "", of: str = "other.test") -> Any:
    return desk.ask("Polled", Polled(of, data, failed), Caller(own=True))


def held(desk: AuthorityDesk) -> tuple[Federated, ...]:
    """What nodes are told."""
    desk.wait(40)
    record = decode_record(desk.machine.state.sets["federated"].records[0])
    return decode_federated(decode_manifest(record.body).inline)


def refused(answer: Any, id: str) -> None:
    assert type(answer) is Refusal, answer
    assert answer.id == id, answer


# ------------------------------------------------------------------ what operators say
def test_a_federation_is_created_shown_listed_changed_and_deleted() -> None:
    desk = AuthorityDesk()
    made = desk.ask("FederationCreate", web())
    assert (made.trust_domain, made.url, made.bundle) == ("other.test", URL, b"")
    assert PollWanted() in desk.facts
    refused(desk.ask("FederationCreate", web()), "X0-AUT-050")
    poll(desk, document(4))
    assert desk.ask("FederationShow", words.Key("other.test")).bundle == document(4)
    (listed,) = desk.ask("FederationList", words.Page()).federations
    assert (listed.sequence, listed.bundle) == (4, b"")
    new = desk.ask("FederationUpdate", web(url="https://new.test:8443/"))
    assert (new.url, new.bundle, new.sequence) == ("https://new.test:8443/", document(4), 4)
    desk.ask("FederationDelete", words.Key("other.test"))
    assert held(desk) == ()
    for method in ("FederationShow", "FederationDelete", "FederationRefresh"):
        refused(desk.ask(method, words.Key("other.test")), "X0-AUT-068")
    refused(desk.ask("FederationUpdate", web()), "X0-AUT-068")


def test_nodes_may_not_ask_for_federations() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    refused(desk.ask("FederationCreate", web(), desk.node("alpha")), "X0-AUT-042")


def test_SP_132_140_the_name_is_given_and_foreign() -> None:
    desk = AuthorityDesk()
    for wrong in ("example.org", "Other.test"):
        refused(desk.ask("FederationCreate", web(wrong)), "X0-FED-002")
    for wrong in ("", "spiffe://other.test", "a/b"):
        refused(desk.ask("FederationCreate", web(wrong)), "X0-ID-001")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://other.test", ("other.test", 443, "/")),
        ("HTTPS://other.test:8443/a/b?c=d", ("other.test", 8443, "/a/b?c=d")),
        ("https://[::1]:1/", ("::1", 1, "/")),
        ("https://other.test?a", ("other.test", 443, "/?a")),
    ],
)
def test_SP_133_a_url_is_https(url: str, parts: tuple[str, int, str]) -> None:
    assert endpoint_of(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "", "other.test", "http://other.test/", "https:///x", "https://u@other.test/",
        "https://u:p@other.test/", "https://other.test/#f", "https://other.test:0/",
        "https://other.test:65536/", "https://other.test:/", "https://other.test/a b",
        "https://other.test/\r\nHost: x", "https://other.test\n", "https://öther.test/",
        "https://other.test/" + "a" * 2048, "https://[::1/", "ftp://other.test/",
        "https://other.test\\@evil.test/",
    ],
)  # fmt: skip
def test_SP_133_another_url_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="X0-FED-001"):
        endpoint_of(url)
    refused(AuthorityDesk().ask("FederationCreate", web(url=url)), "X0-FED-001")


def test_SP_137_https_spiffe_has_an_endpoint_id_and_something_to_judge_it_by() -> None:
    desk = AuthorityDesk()

    def spiffe(**more: Any) -> Any:
        wanted = {"profile": "https_spiffe", "endpoint_id": ENDPOINT} | more
        return desk.ask("FederationCreate", web(**wanted))

    refused(spiffe(endpoint_id=""), "X0-FED-003")
    refused(spiffe(profile="https_web"), "X0-FED-003")
    refused(spiffe(profile="http"), "X0-FED-003")
    refused(spiffe(endpoint_id="spiffe://other.test"), "X0-FED-003")
    refused(spiffe(endpoint_id="spiffe://Other.test/x"), "X0-FED-003")
    refused(spiffe(endpoint_id="other.test/x"), "X0-ID-002")
    refused(spiffe(), "X0-FED-004")
    refused(spiffe(endpoint_id="spiffe://third.test/x"), "X0-FED-004")
    refused(spiffe(bundle=b"nonsense"), "X0-BUN-006")
    refused(spiffe(bundle=document(1, domain="third.test")), "X0-BUN-006")
    assert spiffe(bundle=document(1)).sequence == 1
    assert held(desk) == (Federated("other.test", document(1), 1),)
    desk.ask("FederationCreate", web("third.test"))
    fourth = web("fourth.test", profile="https_spiffe", endpoint_id="spiffe://third.test/x")
    assert desk.ask("FederationCreate", fourth).trust_domain == "fourth.test"
    fifth = web("fifth.test", profile="https_spiffe", endpoint_id="spiffe://example.org/x")
    assert desk.ask("FederationCreate", fifth).trust_domain == "fifth.test"


def test_there_is_room_for_so_many() -> None:
    desk = AuthorityDesk()
    for n in range(words.FEDERATIONS_MAX):
        desk.ask("FederationCreate", web(f"d{n}.test"))
    refused(desk.ask("FederationCreate", web("one-more.test")), "X0-AUT-020")


# ------------------------------------------------------------------ polls
def test_SP_127_the_hint_says_when_within_bounds() -> None:
    desk = AuthorityDesk()
    desk.ask("FederationCreate", web())
    for hint, wait in ((0, POLL_S), (60, 60), (1, POLL_S_MIN), (10**9, POLL_S_MAX)):
        row = poll(desk, document(1, hint))
        assert row.next_unix_s - desk.unix_s == wait
        assert due([row], row.next_unix_s - 1) == ()
        assert due([row], row.next_unix_s) == (row,)


def test_SP_128_bundles_of_two_domains_stay_apart() -> None:
    desk = AuthorityDesk()
    for domain in ("b.test", "a.test"):
        desk.ask("FederationCreate", web(domain))
        poll(desk, document(3, domain=domain), of=domain)
    assert held(desk) == tuple(
        Federated(domain, document(3, domain=domain), 3) for domain in ("a.test", "b.test")
    )


def test_SP_129_an_older_bundle_is_not_taken() -> None:
    desk = AuthorityDesk()
    desk.ask("FederationCreate", web())
    poll(desk, document(2**63))
    row = poll(desk, document(2**63 - 1))
    assert row.failed.startswith("X0-FED-005")
    assert row.bundle == document(2**63)
    assert poll(desk, document(2**64 - 1)).failed == ""
    by_hand = desk.ask("FederationUpdate", web(bundle=document(1)))
    assert by_hand.sequence == 1


def test_SP_139_a_poll_that_failed_changes_nothing_but_the_time_of_the_next() -> None:
    desk = AuthorityDesk()
    desk.ask("FederationCreate", web())
    row = poll(desk, failed="it\nis away" + "x" * 999)
    assert (row.failed[:10], len(row.failed), row.fetched_unix_s) == ("it is away", 200, 0)
    assert row.next_unix_s == desk.unix_s + POLL_S
    good = poll(desk, document(1, 60))
    desk.wait(60)
    for failed in (poll(desk, failed="away"), poll(desk, b"nonsense")):
        assert (failed.bundle, failed.fetched_unix_s) == (document(1, 60), good.fetched_unix_s)
        assert failed.next_unix_s == desk.unix_s + 60
        assert failed.failed
    assert held(desk) == (Federated("other.test", document(1, 60), 1),)
    assert poll(desk, document(1, 60)).failed == ""


def test_a_refresh_makes_it_due_and_says_so() -> None:
    desk = AuthorityDesk()
    desk.ask("FederationCreate", web())
    row = poll(desk, document(1))
    assert due([row], desk.unix_s) == ()
    desk.facts.clear()
    row = desk.ask("FederationRefresh", words.Key("other.test"))
    assert due([row], desk.unix_s) == (row,)
    assert desk.facts == [PollWanted()]


def test_a_poll_of_what_was_deleted_meanwhile_is_forgotten() -> None:
    assert poll(AuthorityDesk(), document(1)) is None


def test_operators_and_nodes_cant_say_that_they_polled() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    for caller in (Caller(operator=True), desk.node("alpha"), Caller()):
        answer = desk.ask("Polled", Polled("other.test", document(1)), caller)
        assert type(answer) is Refusal


# ------------------------------------------------------------------ entries
def test_an_entry_names_the_domains_that_it_federates_with() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    entry = desk.entry("alpha", federates_with=("B.test", "a.test", "b.test"))
    assert entry.federates_with == ("a.test", "b.test")
    refused(desk.entry("alpha", "x", federates_with=("example.org",)), "X0-AUT-077")
    refused(desk.entry("alpha", "x", federates_with=("a b",)), "X0-ID-001")
    many = tuple(f"d{n}.test" for n in range(words.FEDERATIONS_MAX + 1))
    refused(desk.entry("alpha", "x", federates_with=many), "X0-AUT-077")
