"""The SPIFFE rules over parsed fields, one by one, and their laws."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.identity.rules import (
    ANYBODY,
    AUTHORITY,
    CLIENT_AUTH,
    NODE,
    SERVER_AUTH,
    WORKLOAD,
    CertificateFields,
    Expect,
    judge_expected,
    judge_leaf,
    judge_signer,
    judge_time,
)
from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Verdict
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain

TD = TrustDomain("mesh.test")
WEB = SpiffeId("spiffe://mesh.test/web")
T0 = 1_800_000_000
NOW = (T0 + 100) * SECOND

LEAF = CertificateFields(
    uris=(WEB,),
    san_critical=True,
    subject_empty=True,
    ca=False,
    path_length=None,
    key_usage=("digital_signature",),
    key_usage_critical=True,
    extended_key_usage=(SERVER_AUTH, CLIENT_AUTH),
    unknown_critical=(),
    not_before_unix_s=T0,
    not_after_unix_s=T0 + 3_600,
    key="P-256",
    signature="sha256",
)
SIGNER = msgspec.structs.replace(
    LEAF,
    uris=("spiffe://mesh.test",),
    ca=True,
    key_usage=("key_cert_sign", "crl_sign"),
    extended_key_usage=None,
    key="P-384",
    signature="sha384",
)


def leaf(**changes: Any) -> Verdict:
    return judge_leaf(msgspec.structs.replace(LEAF, **changes), TD, NOW)


def signer(**changes: Any) -> Verdict:
    return judge_signer(msgspec.structs.replace(SIGNER, **changes), TD)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"extended_key_usage": None},
        {"san_critical": False, "subject_empty": False},
        {"key_usage": ("digital_signature", "key_encipherment", "key_agreement")},
        {"key": "ML-DSA-65", "signature": "ML-DSA"},
        {"key": "RSA-2048", "signature": "sha512"},
        {"via": "node-a"},
    ],
)
def test_a_proper_leaf_is_allowed(changes: dict[str, Any]) -> None:
    assert leaf(**changes) == Allowed(WEB)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("leaf is a CA", {"ca": True}),  # SP-027, SP-033
        ("no key usage", {"key_usage": None}),  # SP-028
        ("key usage not critical", {"key_usage_critical": False}),  # SP-028
        (
            "leaf may sign certificates or CRLs",
            {"key_usage": ("digital_signature", "key_cert_sign")},
        ),  # SP-030, SP-034
        ("leaf may sign certificates or CRLs", {"key_usage": ("digital_signature", "crl_sign")}),
        ("no digital signature usage", {"key_usage": ()}),  # SP-030
        ("wrong extended key usage", {"extended_key_usage": (SERVER_AUTH,)}),  # SP-031
        ("wrong extended key usage", {"extended_key_usage": ()}),
        ("unknown critical extension", {"unknown_critical": ("1.2.3",)}),
        ("weak key", {"key": "RSA-1024"}),
        ("weak key", {"key": "Ed25519PublicKey"}),
        ("weak signature", {"signature": "sha1"}),
        ("weak signature", {"signature": ""}),
        ("no URI", {"uris": ()}),  # SP-020
        ("more than one URI", {"uris": (WEB, WEB)}),  # SP-021
        ("SAN not critical", {"san_critical": False}),  # SP-024
        ("not a SPIFFE ID", {"uris": ("https://mesh.test/web",)}),  # SP-001, SP-035
        ("ID not in normal form", {"uris": ("spiffe://Mesh.test/web",)}),  # SP-005
        ("ID without a path", {"uris": ("spiffe://mesh.test",)}),  # SP-023, SP-036
        ("foreign trust domain", {"uris": ("spiffe://other.test/web",)}),  # SP-076
        ("not yet valid", {"not_before_unix_s": T0 + 101}),
        ("expired", {"not_after_unix_s": T0 + 100}),
        ("lifetime too long", {"not_before_unix_s": T0 - 61}),
    ],
)
def test_one_thing_wrong_with_a_leaf_is_denied(reason: str, changes: dict[str, Any]) -> None:
    assert leaf(**changes) == Denied(reason)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("issuer is no CA", {"ca": False}),  # SP-027
        ("issuer may not sign", {"key_usage": None}),  # SP-028
        ("issuer may not sign", {"key_usage": ("crl_sign",)}),  # SP-029
        ("issuer of a foreign trust domain", {"uris": ("spiffe://other.test",)}),  # SP-025
        ("issuer of a foreign trust domain", {"uris": (WEB,)}),
        ("issuer of a foreign trust domain", {"uris": ("spiffe://mesh.test",) * 2}),
        ("unknown critical extension", {"unknown_critical": ("1.2.3",)}),
        ("weak key", {"key": "RSA-1024"}),
        ("weak signature", {"signature": "md5"}),
    ],
)
def test_one_thing_wrong_with_a_signer_is_denied(reason: str, changes: dict[str, Any]) -> None:
    assert signer() == Allowed(SpiffeId("spiffe://mesh.test"))
    assert signer(uris=()) == Allowed(SpiffeId("spiffe://mesh.test"))  # An upstream CA.
    assert signer(**changes) == Denied(reason)


def test_the_last_second_does_not_count() -> None:
    end = T0 + 3_600
    assert judge_time(T0, end, (end - 1) * SECOND) == ""
    assert judge_time(T0, end, (end - 1) * SECOND + 1) == "expired"
    assert judge_time(T0, end, T0 * SECOND) == ""
    assert judge_time(T0, end, T0 * SECOND - 1) == "not yet valid"


@pytest.mark.parametrize(
    ("path", "roles"),
    [
        ("web", {"workload"}),
        ("ns/a/sa/b", {"workload"}),
        ("nodes/a", {"workload"}),
        ("node/a", {"node"}),
        ("authority/1", {"authority"}),
        ("node", set()),
        ("authority", set()),
        ("node/a/b", set()),
        ("node/A", set()),
        ("node/a.b", set()),
    ],
)
def test_each_reserved_name_counts_in_its_role_only(path: str, roles: set[str]) -> None:
    id = SpiffeId(f"spiffe://mesh.test/{path}")
    allowed = {
        expect.role
        for expect in (NODE, WORKLOAD, AUTHORITY)
        if type(judge_expected(id, expect)) is Allowed
    }
    assert allowed == roles
    assert judge_expected(id, ANYBODY) == Allowed(id)
    assert type(judge_expected(id, Expect(role="nobody"))) is Denied


def test_an_exact_id_and_a_question_of_the_caller() -> None:
    other = SpiffeId("spiffe://mesh.test/shop")
    assert judge_expected(WEB, Expect(id=WEB)) == Allowed(WEB)
    assert judge_expected(other, Expect(id=WEB)) == Denied("unexpected peer")
    picky = Expect(role="workload", accept=lambda id: Denied("no caller of web"))
    assert judge_expected(WEB, picky) == Denied("no caller of web")
    node = SpiffeId("spiffe://mesh.test/node/a")
    assert judge_expected(node, picky) == Denied("not a workload")


FIELDS = st.builds(
    CertificateFields,
    uris=st.lists(
        st.one_of(
            st.just(WEB),
            st.text(max_size=20),
            st.text(max_size=20).map(lambda t: "spiffe://mesh.test/" + t),
        ),
        max_size=2,
    ).map(tuple),
    san_critical=st.booleans(),
    subject_empty=st.booleans(),
    ca=st.booleans(),
    path_length=st.none(),
    key_usage=st.sampled_from(
        [None, (), ("digital_signature",), ("digital_signature", "key_cert_sign")]
    ),
    key_usage_critical=st.booleans(),
    extended_key_usage=st.sampled_from([None, (), (SERVER_AUTH,), (SERVER_AUTH, CLIENT_AUTH)]),
    unknown_critical=st.sampled_from([(), ("1.2",)]),
    not_before_unix_s=st.integers(T0 - 5_000, T0 + 200),
    not_after_unix_s=st.integers(T0, T0 + 5_000),
    key=st.sampled_from(["P-256", "P-224", ""]),
    signature=st.sampled_from(["sha256", "md5"]),
)


@given(FIELDS)
def test_whatever_is_allowed_keeps_every_rule(fields: CertificateFields) -> None:
    verdict = judge_leaf(fields, TD, NOW)
    if type(verdict) is Denied:
        assert verdict.reason
        return
    assert type(verdict) is Allowed
    assert fields.uris == (verdict.peer,)
    assert verdict.peer.startswith("spiffe://mesh.test/")
    assert not fields.ca
    assert fields.key_usage == ("digital_signature",)
    assert fields.not_before_unix_s * SECOND <= NOW < fields.not_after_unix_s * SECOND
    assert fields.key == "P-256"
    assert not fields.unknown_critical
