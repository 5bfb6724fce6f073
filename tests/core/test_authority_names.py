"""What the authority calls its workloads: never anything that is no SPIFFE ID.

Source: SPIFFE-ID.md section 2; entries are the only way to a name.
"""

from __future__ import annotations

import pytest

from tests.fakes.authority_desk import AuthorityDesk
from x0tta6bl4.core.authority.rows import Refusal
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadId
from x0tta6bl4.wire.ids import trust_domain

TD = "spiffe://example.org"


def refused(*ids: str) -> None:
    """No entry is made for these; the twin that is an ID gets one."""
    desk = AuthorityDesk()
    desk.enrol("alpha")
    for id in ids:
        answer = desk.ask("EntryCreate", words.Entry(id, "alpha", ("unix:uid:1",)))
        assert type(answer) is Refusal, id
    assert desk.entry("alpha").id == f"{TD}/web"


def test_SP_001_another_scheme_server() -> None:
    refused("https://example.org/web", "//example.org/web", "example.org/web", "web")


def test_SP_002_an_empty_trust_domain_server() -> None:
    refused("spiffe:///web", "spiffe://", "spiffe:////web")


def test_SP_003_query_and_fragment_server() -> None:
    refused(f"{TD}/web?x=1", f"{TD}/web#x", f"{TD}/web?", f"{TD}/web#")


def test_SP_004_port_and_user_server() -> None:
    for name in ("example.org:443", "me@example.org", "example.org:"):
        refused(f"spiffe://{name}/web")


def test_SP_005_006_007_letters_of_the_trust_domain_server() -> None:
    refused("spiffe://EXAMPLE.org/web", "spiffe://ex%61mple.org/web", "spiffe://ex$/web")
    for name in ("", "a b", "ex%61mple", "a/b", "ex\u00e4mple", "a:1", "[::1]"):
        with pytest.raises(BadId):
            trust_domain(name)


def test_SP_008_names_that_look_like_addresses_server() -> None:
    for name in ("10.0.0.1", "localhost", "1", "a_b", "xn--bcher-kva.example"):
        assert trust_domain(name) == name


def test_SP_009_010_011_012_paths_server() -> None:
    refused(f"{TD}/w%65b", f"{TD}//web", f"{TD}/./web", f"{TD}/../web", f"{TD}/web/..")
    refused(f"{TD}/web/", f"{TD}/", f"{TD}/a b", f"{TD}/a!b", f"{TD}/w\u00e4b", f"{TD}/a:b")


def test_SP_014_no_id_longer_than_2048_bytes() -> None:
    refused(f"{TD}/" + "a" * 2048)


def test_SP_015_no_trust_domain_longer_than_255_bytes_server() -> None:
    assert trust_domain("a" * 255)
    with pytest.raises(BadId):
        trust_domain("a" * 256)


def test_SP_016_upper_case_is_never_given_out_server() -> None:
    refused(TD.replace("spiffe", "SPIFFE") + "/web", TD.replace("example", "Example") + "/a")


def test_SP_023_no_entry_without_a_path() -> None:
    refused(TD, f"{TD}/")


def test_SP_115_125_hints_of_entries_are_short_server() -> None:
    desk = AuthorityDesk()
    desk.enrol("alpha")
    assert type(desk.entry("alpha", "a", hint="x" * 1025)) is Refusal
    assert type(desk.entry("alpha", "b", hint="\u00e9" * 513)) is Refusal
    assert type(desk.entry("alpha", "c", hint="x" * 1024)) is words.Entry
