"""Revocation: bans, bans of what is older, and what a node has passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.identity import revocation
from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.wire.ids import NodeName, SpiffeId

WEB = SpiffeId("spiffe://mesh.test/web")
NODE = SpiffeId("spiffe://mesh.test/node/a")
A = NodeName("a")


def test_a_ban_hits_every_svid_of_the_id_and_no_other() -> None:
    table = Revocations()
    assert table.check(WEB, 10, A) == Allowed(WEB)
    table.put(WEB, 100)
    assert table.check(WEB, 10, A) == Denied("revoked")
    assert table.check(WEB, 2**40, None) == Denied("revoked")
    assert table.check(SpiffeId(WEB + "2"), 10, A) == Allowed(SpiffeId(WEB + "2"))
    table.drop(WEB)
    assert table.check(WEB, 10, A) == Allowed(WEB)
    assert len(table) == 0


def test_only_what_was_issued_before_is_hit() -> None:
    table = Revocations()
    table.put(WEB, 100, 50)
    assert table.check(WEB, 49, None) == Denied("revoked")
    assert table.check(WEB, 50, None) == Allowed(WEB)


def test_a_revoked_node_takes_with_it_what_was_issued_through_it() -> None:
    table = Revocations()
    table.put(NODE, 100)
    assert table.check(WEB, 10, A) == Denied("node revoked")
    assert table.check(NODE, 10, A) == Denied("revoked")
    assert table.check(WEB, 10, NodeName("b")) == Allowed(WEB)
    assert table.check(WEB, 10, None) == Allowed(WEB)
    other = SpiffeId("spiffe://other.test/web")
    assert table.check(other, 10, A) == Allowed(other)  # A node of that name elsewhere.


def test_entries_go_when_all_they_hit_has_expired() -> None:
    table = Revocations()
    table.replace([(WEB, 100, 0), (NODE, 200, 0)])
    table.prune(100)
    assert table.check(WEB, 10, None) == Allowed(WEB)
    assert table.check(NODE, 10, A) == Denied("revoked")


def test_a_full_table_denies_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "REVOCATIONS_MAX", 2)
    table = Revocations()
    for n in range(3):
        table.put(f"{WEB}{n}", 100)
    assert len(table) == 2
    assert table.check(NODE, 10, None) == Denied("revocation table full")
    table.prune(200)  # What did not fit is not known.
    assert table.check(NODE, 10, None) == Denied("revocation table full")
    table.replace([])
    assert table.check(NODE, 10, None) == Allowed(NODE)


@given(
    st.lists(st.tuples(st.sampled_from([WEB, NODE]), st.integers(0, 99), st.integers(0, 99))),
    st.sampled_from([WEB, NODE]),
    st.integers(0, 99),
)
def test_a_check_is_the_definition(
    bans: list[tuple[str, int, int]], id: SpiffeId, issued: int
) -> None:
    table = Revocations()
    table.replace(bans)
    hit = any(
        subject in (id, NODE) and (before == 0 or issued < before) for subject, _, before in bans
    )
    assert (type(table.check(id, issued, A)) is Denied) == hit
