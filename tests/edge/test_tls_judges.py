"""One judge, several rules: per trust domain, by the specification, with revocation lists."""

from __future__ import annotations

import pytest

from tests.fakes.ca import FakeClock
from x0tta6bl4.core.identity.rules import ANYBODY, MESH, SPIFFE, Rules
from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Verdict
from x0tta6bl4.edge.tls import crl
from x0tta6bl4.edge.tls.crl import withdrawn
from x0tta6bl4.edge.tls.judge import Judge, Judges, allow_all
from x0tta6bl4.sdk.testing.domain import Domain, Svid
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.ids import TrustDomain

NOW = 1_800_000_000


def domain(name: str = "example.org", key: str = "P-256") -> Domain:
    return Domain(name, key=key, now_unix_s=lambda: NOW)


def judge(of: Domain, rules: Rules = SPIFFE, at_us: int = NOW * SECOND) -> Judge:
    return Judge(TrustDomain(of.name), of.anchors, allow_all, lambda: at_us, rules)


def verdict(made: Svid, judging: Judge | Judges) -> Verdict:
    return judging.judge(made.chain, ANYBODY).verdict


def test_what_the_specification_allows_the_mesh_refuses() -> None:
    own = domain()
    for shape, reason in (
        ({"life_s": 86_400}, "lifetime too long"),
        ({"uris": ("spiffe://EXAMPLE.org/web",)}, "ID not in normal form"),
        ({"key": "RSA-3072", "life_s": 3_600, "start_s": -3_600}, "expired"),
    ):
        made = own.svid("/web", **shape)
        assert verdict(made, judge(own, MESH)) == Denied(reason)
        assert verdict(made, judge(own)) == Allowed("spiffe://example.org/web")  # type: ignore[arg-type]


def test_SP_032_validity_ends_with_not_after_itself_client() -> None:
    own = domain()
    made = own.svid(start_s=-10, life_s=100)
    end_us = (NOW + 90) * SECOND
    for at_us, right in (
        (end_us, Allowed("spiffe://example.org/web")),  # type: ignore[arg-type]
        (end_us + 1, Denied("expired")),
        ((NOW - 10) * SECOND, Allowed("spiffe://example.org/web")),  # type: ignore[arg-type]
        ((NOW - 10) * SECOND - 1, Denied("not yet valid")),
    ):
        assert verdict(made, judge(own, at_us=at_us)) == right


def test_six_signing_certificates_are_the_most() -> None:
    own = domain()
    assert type(verdict(own.svid(signers=[{}] * 6), judge(own))) is Allowed
    assert type(verdict(own.svid(signers=[{}] * 7), judge(own))) is Denied
    assert type(verdict(own.svid(signers=[{}] * 4), judge(own, MESH))) is Denied


def test_SP_025_a_signer_of_another_domain_signs_where_the_rules_say_so() -> None:
    own = domain()
    made = own.svid(signers=[{"uris": ("spiffe://upstream.test",)}])
    assert type(verdict(made, judge(own))) is Allowed
    assert verdict(made, judge(own, MESH)) == Denied("issuer of a foreign trust domain")


def test_SP_076_128_each_domain_has_its_own_judge_client() -> None:
    ours, theirs = domain(), domain("other.test")
    judges = Judges({TrustDomain(d.name): judge(d) for d in (ours, theirs)})
    for one in (ours, theirs):
        assert verdict(one.svid(), judges) == Allowed(f"spiffe://{one.name}/web")  # type: ignore[arg-type]
    assert verdict(theirs.svid(ours.id("/web")), judges) == Denied("untrusted issuer")
    assert verdict(domain("x.test").svid(), judges) == Denied("foreign trust domain")
    assert verdict(ours.svid(uris=None), judges) == Denied("no URI")
    assert verdict(ours.svid(uris=("web",)), judges) == Denied("not a SPIFFE ID")
    assert judges.judge((), ANYBODY).verdict == Denied("no certificate")
    assert judges.judge((b"x",), ANYBODY).verdict == Denied("malformed certificate")
    two = ours.svid(uris=("spiffe://other.test/a", "spiffe://example.org/b"))
    assert type(verdict(two, judges)) is Denied


# ------------------------------------------------------------------------------------ revocation
def test_a_revoked_leaf_or_signer_is_refused_and_a_fresh_one_is_not() -> None:
    own = domain()
    good, bad = own.svid(), own.svid()
    below = own.svid(signers=[{}])
    signer = Svid("", below.chain[1:], b"")
    gone, believed = withdrawn([own.crl(bad, signer)], own.anchors)
    assert believed == [True]
    assert len(gone) == 2
    judging = Judge(TrustDomain(own.name), own.anchors, allow_all, FakeClock(NOW), SPIFFE, gone)
    for made, right in ((good, True), (bad, False), (below, False), (bad, False)):
        found = verdict(made, judging)
        assert found == (Allowed("spiffe://example.org/web") if right else Denied("revoked"))  # type: ignore[arg-type]


def test_a_list_of_somebody_else_revokes_nothing() -> None:
    own, twin = domain(), domain()
    made = own.svid()
    assert withdrawn([twin.crl(made), domain("x.test").crl(made)], own.anchors) == (
        frozenset(),
        [False, False],
    )
    own.rotate_anchor()
    gone, believed = withdrawn([own.crl(made, anchor=1), own.crl()], own.anchors)
    assert believed == [True, True]
    assert len(gone) == 1


def test_a_list_that_is_none_or_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = domain()
    revoked = own.crl(own.svid(), own.svid())
    with pytest.raises(BadInput) as refused:
        withdrawn([b"x"], own.anchors)
    assert refused.value.id == "X0-TLS-014"
    monkeypatch.setattr(crl, "ENTRIES_MAX", 1)
    with pytest.raises(BadInput) as refused:
        withdrawn([revoked], own.anchors)
    assert refused.value.id == "X0-TLS-015"
    monkeypatch.setattr(crl, "CRL_BYTES_MAX", 10)
    with pytest.raises(BadInput):
        withdrawn([revoked], own.anchors)
