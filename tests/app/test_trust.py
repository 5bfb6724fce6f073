"""Whom the agent believes: records, endpoints and connections, by the anchors and bans of now."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.fakes.ca import DOMAIN, FakeCa, FakeClock, new_svid
from x0tta6bl4.app.trust import Trusts
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, ALPN_LINK
from x0tta6bl4.edge.tls.x509 import Svid, load_key, new_key, public_point, sign
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import (
    KIND_NODE,
    Bundle,
    Endpoint,
    Record,
    Revocation,
    encode_body,
    endpoint_signed_part,
    signed_part,
)

NOW_S = unix_us() // 1_000_000


@pytest.fixture(scope="module")
def ca() -> FakeCa:
    return FakeCa(clock=FakeClock(NOW_S))


@pytest.fixture
def trusts(ca: FakeCa) -> Trusts:
    trusts = Trusts(DOMAIN, require_pq=False)
    trusts.believe([ca.issuer.certificate])
    return trusts


def record(svid: Svid, expires_unix_s: int) -> Record:
    made = Record("b", KIND_NODE, "", 1, expires_unix_s, b"body", svid.chain, b"")
    return msgspec.structs.replace(made, signature=sign(load_key(svid.key), signed_part(made)))


def endpoint(svid: Svid, node: str, expires_unix_s: int) -> Endpoint:
    made = Endpoint(svid.id, svid.chain, 1, expires_unix_s, b"")
    data = endpoint_signed_part(node, made)
    return msgspec.structs.replace(made, signature=sign(load_key(svid.key), data))


# ------------------------------------------------------------------ records
def test_a_node_record_counts_while_its_svid_does(ca: FakeCa, trusts: Trusts) -> None:
    verify = trusts.crypto().verify
    svid = ca.svid("node/b")
    good = record(svid, svid.not_after_unix_s)
    assert verify(good, NOW_S) == Allowed(ca.id("node/b"))
    assert verify(good, svid.not_after_unix_s + 1) == Denied("expired")
    late = record(svid, svid.not_after_unix_s + 1)
    assert verify(late, NOW_S) == Denied("record outlives its SVID")
    changed = msgspec.structs.replace(good, body=b"other")
    assert verify(changed, NOW_S) == Denied("bad record signature")
    web = ca.svid("web")
    assert verify(record(web, NOW_S + 10), NOW_S) == Denied("not a node")
    stranger = FakeCa(clock=ca.clock).svid("node/b")
    assert verify(record(stranger, NOW_S + 10), NOW_S) == Denied("untrusted issuer")


def test_an_endpoint_is_signed_by_its_workload_for_one_node(ca: FakeCa, trusts: Trusts) -> None:
    verify = trusts.crypto().verify_endpoint
    svid = ca.svid("web", via="b")
    good = endpoint(svid, "b", svid.not_after_unix_s)
    assert verify("b", good, NOW_S) == Allowed(ca.id("web"))
    assert verify("c", good, NOW_S) == Denied("bad record signature")
    # With the workload's key in hand, but at a node to which its SVID was not issued.
    for writer, stolen in (("c", svid), ("b", ca.svid("web"))):
        moved = endpoint(stolen, writer, svid.not_after_unix_s)
        assert verify(writer, moved, NOW_S) == Denied("endpoint of an SVID of another node")
    late = endpoint(svid, "b", svid.not_after_unix_s + 1)
    assert verify("b", late, NOW_S) == Denied("endpoint outlives its SVID")
    node = endpoint(ca.svid("node/b"), "b", NOW_S + 10)
    assert verify("b", node, NOW_S) == Denied("not a workload")


def test_authority_records_are_judged_by_the_point_of_their_key(trusts: Trusts) -> None:
    crypto, key = trusts.crypto(), new_key()
    made = Record("authority", KIND_NODE, "", 1, NOW_S + 10, b"body", (b"r1",), b"")
    good = msgspec.structs.replace(made, signature=sign(key, signed_part(made)))
    assert type(crypto.verify_key(good, public_point(key))) is Allowed
    assert crypto.verify_key(good, public_point(new_key())) == Denied("bad signature")
    assert crypto.verify_key(good, b"no point") == Denied("bad signature")


def test_what_it_signs_it_verifies(ca: FakeCa, trusts: Trusts) -> None:
    svid, crypto = ca.svid("node/b"), trusts.crypto()
    made = Record("b", KIND_NODE, "", 1, NOW_S + 10, b"body", svid.chain, b"")
    signature = crypto.sign(svid.key, signed_part(made))
    signed = msgspec.structs.replace(made, signature=signature)
    assert type(crypto.verify(signed, NOW_S)) is Allowed


# ------------------------------------------------------------------ sets of the authority
def test_a_revocation_and_a_new_bundle_count_at_once(ca: FakeCa, trusts: Trusts) -> None:
    svid = ca.svid("node/b")
    good, crypto = record(svid, NOW_S + 10), trusts.crypto()
    bans = encode_body((Revocation(svid.id, NOW_S + 3600),))
    assert trusts.set_changed("revocations", bans) is False
    assert crypto.verify(good, NOW_S) == Denied("revoked")
    trusts.set_changed("revocations", encode_body(()))
    assert type(crypto.verify(good, NOW_S)) is Allowed
    other = FakeCa(clock=ca.clock)
    bundle = Bundle(DOMAIN, 2, (other.issuer.certificate,), ())
    assert trusts.set_changed("bundle", encode_body(bundle)) is True
    assert crypto.verify(good, NOW_S) == Denied("untrusted issuer")


def test_a_kept_svid_counts_by_the_anchors_and_bans_of_now(ca: FakeCa, trusts: Trusts) -> None:
    svid, other = ca.svid("web"), ca.svid("shop")
    good = SvidItem(svid.id, svid.chain, svid.key, svid.not_after_unix_s)

    def changed(**what: Any) -> Verdict:
        return trusts.judge_kept(msgspec.structs.replace(good, **what))

    assert trusts.judge_kept(good) == Allowed(svid.id)
    assert changed(id=other.id) == Denied("SVID of another ID")
    assert changed(key=other.key) == Denied("key of another SVID")
    assert changed(key=b"damaged") == Denied("no key")
    assert changed(chain=()) == Denied("no certificate")
    node = ca.svid("node/b")
    assert changed(id=node.id, chain=node.chain, key=node.key) == Denied("not a workload")
    old = new_svid(ca.issuer, svid.id, NOW_S - 7200)
    assert changed(chain=old.chain, key=old.key) == Denied("expired")
    evicted = Revocation(ca.id("node/b"), NOW_S + 60)
    through = ca.svid("web", via="b")
    for ban, reason in (
        (Revocation(svid.id, NOW_S + 60), "revoked"),
        (Revocation(svid.id, NOW_S + 60, "", NOW_S + 1), "revoked"),
        (evicted, "node revoked"),
    ):
        trusts.set_changed("revocations", encode_body((ban,)))
        assert changed(chain=through.chain, key=through.key) == Denied(reason)


# ------------------------------------------------------------------ connections
def test_contexts_follow_svid_and_bundle(ca: FakeCa, trusts: Trusts) -> None:
    with pytest.raises(Unavailable, match="X0-RUN-043"):
        trusts._context(ALPN_LINK)
    trusts.present(ca.svid("node/a"))
    first = trusts._context(ALPN_LINK)
    assert trusts._context(ALPN_LINK) is first
    assert (first.expect.role, trusts._context(ALPN_AUTHORITY).expect.role) == (
        "node", "authority")  # fmt: skip
    trusts.believe([ca.issuer.certificate])
    second = trusts._context(ALPN_LINK)
    assert second is not first
    assert second.svid is trusts.svid


def test_links_are_dialled_anew_for_another_svid_only(ca: FakeCa, trusts: Trusts) -> None:
    told: list[str] = []
    trusts.on_new_svid = lambda: told.append("new")
    svid = ca.svid("node/a")
    trusts.present(svid)
    trusts.present(svid)
    assert told == []
    trusts.present(ca.svid("node/a"))
    assert told == ["new"]
