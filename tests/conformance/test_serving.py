"""Which identity the SDK serves, whom it trusts, which tokens it gets: what the Workload API says.

One harness serves all tests here; before each of them it has taken a new SVID, the bundle of its
own trust domain and nothing else.

Source: SPIFFE_Workload_API.md sections 4.3, 4.4, 5, 6 and 8.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.driver import Harness, Meeting, until
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[WorkloadApi, Harness]]:
    with WorkloadApi() as api:
        api.issue("/web")
        with Harness(api.endpoint) as harness:
            yield api, harness


@pytest.fixture
def harness(shared: tuple[WorkloadApi, Harness]) -> Harness:
    return shared[1]


@pytest.fixture
def api(shared: tuple[WorkloadApi, Harness]) -> WorkloadApi:
    """Serves `spiffe://example.org/web` and nothing else, and the harness has heard of it."""
    api, harness = shared
    api.clear()
    api.federate()
    api.revoke()
    api.write_bundle(api.domain.name)
    svid = api.domain.svid("/web")
    api.serve(svid)
    assert until(lambda: harness.meet(api.domain.svid("/peer")).chain == svid.chain)
    return api


def shown(api: WorkloadApi, harness: Harness) -> Meeting:
    """What the X.509 port presents to a proper peer."""
    return harness.meet(api.domain.svid("/peer"))


def presents(api: WorkloadApi, harness: Harness, chain: tuple[bytes, ...]) -> bool:
    return until(lambda: shown(api, harness).chain[:1] == chain[:1])


# ----------------------------------------------------------------------------------- what is served
def test_SP_112_the_svid_is_presented_with_its_chain(api: WorkloadApi, harness: Harness) -> None:
    meeting = shown(api, harness)
    assert meeting.said == "spiffe://example.org/peer\n"
    assert meeting.chain == api.svids[0].chain
    long = api.domain.svid("/long", signers=[{}, {}])
    api.serve(long)
    assert presents(api, harness, long.chain)
    assert shown(api, harness).chain == long.chain
    answer, seen = harness.dials(api.domain.svid("/peer"))
    assert answer.body["spiffe_id"] == "spiffe://example.org/peer"
    assert seen.chain == long.chain


@pytest.mark.parametrize("key", ["P-256", "P-384", "P-521", "RSA-2048", "ML-DSA-65"])
def test_SP_112_keys_of_every_usual_kind(api: WorkloadApi, harness: Harness, key: str) -> None:
    svid = api.domain.svid("/web", key=key)
    api.serve(svid)
    assert presents(api, harness, svid.chain)
    assert harness.dials(api.domain.svid("/peer"))[1].chain == svid.chain


def test_SP_124_the_first_svid_is_the_default_one(api: WorkloadApi, harness: Harness) -> None:
    first, second = api.domain.svid("/first"), api.domain.svid("/second")
    for order in ((first, second), (second, first), (first, second)):
        api.serve(*order)
        assert presents(api, harness, order[0].chain)
        assert harness.dials(api.domain.svid("/peer"))[1].id == order[0].id


def test_SP_105_a_rotated_svid_serves_new_connections(api: WorkloadApi, harness: Harness) -> None:
    seen = {shown(api, harness).chain}
    for _ in range(5):
        (svid,) = api.rotate()
        assert presents(api, harness, svid.chain)
        assert harness.dials(api.domain.svid("/peer"))[1].chain == svid.chain
        seen.add(svid.chain)
    assert len(seen) == 6


def test_SP_105_an_identity_can_be_replaced_by_another(api: WorkloadApi, harness: Harness) -> None:
    api.serve(api.domain.svid("/other"))
    assert until(lambda: shown(api, harness).id == "spiffe://example.org/other")
    moved = Domain("moved.test")
    api.federate(moved)
    api.serve(moved.svid("/web"))
    assert until(lambda: harness.meet(moved.svid("/peer")).id == "spiffe://moved.test/web")


def test_SP_105_a_rotated_ca_is_trusted_and_a_retired_one_is_not(
    api: WorkloadApi, harness: Harness
) -> None:
    old = api.domain.svid("/old")
    assert harness.meet(old).accepted
    api.rotate_anchor()
    new = api.domain.svid("/new")
    assert until(lambda: harness.meet(new).accepted)
    assert harness.meet(old).accepted
    assert harness.accepts("client", old)
    api.rotate_anchor(retire=True)
    newest = api.domain.svid("/newest")
    assert until(lambda: harness.meet(newest).accepted)
    for gone in (old, new):
        assert not harness.meet(gone).accepted
        assert harness.accepts("client", gone) == ""


def test_SP_112_the_order_in_a_bundle_makes_no_difference(
    api: WorkloadApi, harness: Harness
) -> None:
    other = Domain("example.org")
    both = b"".join((*other.anchors, *api.domain.anchors))
    api.write_bundle("example.org", x509=both)
    assert until(lambda: harness.meet(other.svid("/a")).accepted)
    assert harness.meet(api.domain.svid("/b")).accepted


def test_SP_115_of_two_svids_with_one_hint_the_first_counts(
    api: WorkloadApi, harness: Harness
) -> None:
    first = api.domain.svid("/first", hint="same")
    api.serve(first, api.domain.svid("/second", hint="same"))
    assert presents(api, harness, first.chain)


def test_SP_125_hints_of_every_length(api: WorkloadApi, harness: Harness) -> None:
    for hint in ("x", "\u00e9" * 500, "x" * 1024):
        svid = api.domain.svid("/web", hint=hint)
        api.serve(svid)
        assert presents(api, harness, svid.chain)


def test_SP_108_revoked_certificates_are_refused_in_both_roles(
    api: WorkloadApi, harness: Harness
) -> None:
    good, bad = api.domain.svid("/good"), api.domain.svid("/bad")
    assert harness.accepts("server", bad)
    api.revoke(bad)
    assert until(lambda: not harness.meet(bad).accepted)
    assert harness.accepts("client", bad) == ""
    for role in ("server", "client"):
        assert harness.accepts(role, good)
    api.revoke()  # An absent field replaces what there was.
    assert until(lambda: harness.meet(bad).accepted)


def test_SP_108_a_crl_of_somebody_else_revokes_nobody(api: WorkloadApi, harness: Harness) -> None:
    good, bad = api.domain.svid("/good"), api.domain.svid("/bad")
    stranger = Domain("example.org").crl(good)

    def more(answer: Any) -> Any:
        answer.crl.append(stranger)
        answer.crl.append(b"not a list")
        return answer

    api.inject("FetchX509SVID", Fault(change=more))
    api.revoke(bad)
    assert until(lambda: not harness.meet(bad).accepted)
    assert harness.meet(good).accepted


# ------------------------------------------------------------------------------------------ tokens
def claims_of(token: str) -> Any:
    part = token.split(".")[1]
    return json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_SP_050_118_tokens_for_one_and_for_several_audiences(
    api: WorkloadApi, harness: Harness
) -> None:
    for audience in (["db"], ["db", "spiffe://example.org/db", "other"]):
        (svid,) = harness.fetch(*audience).body["svids"]
        assert svid["spiffe_id"] == "spiffe://example.org/web"
        assert claims_of(svid["token"])["aud"] == audience
    asked = [list(c.request.audience) for c in api.calls if c.method == "FetchJWTSVID"]
    assert asked == [["db"], ["db", "spiffe://example.org/db", "other"]]


def test_SP_118_tokens_of_one_or_of_all_identities(api: WorkloadApi, harness: Harness) -> None:
    api.issue("/second", hint="two")
    all_of = harness.fetch("db").body["svids"]
    assert [svid["spiffe_id"] for svid in all_of] == [
        "spiffe://example.org/web",
        "spiffe://example.org/second",
    ]
    assert all_of[1]["hint"] == "two"
    (one,) = harness.fetch("db", spiffe_id="spiffe://example.org/second").body["svids"]
    assert one["spiffe_id"] == "spiffe://example.org/second"


def test_SP_115_of_two_tokens_with_one_hint_the_first_counts(
    api: WorkloadApi, harness: Harness
) -> None:
    api.serve(api.domain.svid("/first", hint="same"), api.domain.svid("/second", hint="same"))
    (svid,) = harness.fetch("db").body["svids"]
    assert svid["spiffe_id"] == "spiffe://example.org/first"


def test_SP_119_no_token_for_somebody_else_and_none_that_is_stale(
    api: WorkloadApi, harness: Harness
) -> None:
    assert harness.fetch("db").code == 200
    assert harness.fetch("db", spiffe_id="spiffe://example.org/other").code == 422
    api.inject("FetchJWTSVID", Fault(code="PERMISSION_DENIED"))
    assert harness.fetch("db").code == 422


def test_SP_118_no_audience_no_token(harness: Harness) -> None:
    assert harness.fetch().code == 422


def _response(api: WorkloadApi, token: str, id: str = "spiffe://example.org/web") -> Fault:
    def change(answer: Any) -> Any:
        answer.svids[0].svid = token
        answer.svids[0].spiffe_id = id
        return answer

    return Fault(change=change)


def test_SP_110_tokens_that_are_not_what_was_asked_for_are_not_used(
    api: WorkloadApi, harness: Harness
) -> None:
    make = api.domain.token
    wrong = {
        "another audience": make("/web", ["other"]),
        "another subject": make("/other", ["db"]),
        "expired": make("/web", ["db"], ttl_s=-10),
        "no expiry": make("/web", ["db"], claims={"exp": None}),
        "no subject": make("/web", ["db"], claims={"sub": None}),
        "no token": "",
        "garbage": "a.b.c",
    }
    assert harness.fetch("db").code == 200
    for name, token in wrong.items():
        api.inject("FetchJWTSVID", _response(api, token), times=1)
        assert harness.fetch("db").code in (422, 500), name
        assert harness.fetch("db").code == 200
    api.inject("FetchJWTSVID", _response(api, make("/web", ["db"]), ""), times=1)
    assert harness.fetch("db").code in (422, 500)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_SP_098_an_error_of_the_server_is_an_error(
    api: WorkloadApi, harness: Harness, code: str
) -> None:
    api.inject("FetchJWTSVID", Fault(code=code), times=1)
    assert harness.fetch("db").code == 500
    assert harness.fetch("db").code == 200
