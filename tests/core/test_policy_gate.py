"""The gate: deny wins, nothing is a deny, a name must lead where it is used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.core.policy.gate import CACHE_MAX, Policy, plain
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import NameItem, RuleItem

A, B, C = (SpiffeId(f"spiffe://mesh.test/{name}") for name in ("a", "b", "c"))


def test_nothing_allows_anything() -> None:
    assert Policy().open(A, B) == Denied("nothing allows it")
    assert Policy().resolve("web") is None


def test_a_name_admits_its_callers_and_only_to_where_it_leads() -> None:
    policy = Policy()
    policy.put(NameItem("web", B, ("spiffe://mesh.test/a",)))
    assert policy.resolve("WEB.mesh.") == B
    assert policy.open(A, B, "web.mesh") == Allowed(B)
    assert policy.open(C, B, "web") == Denied("nothing allows it")
    assert policy.open(A, B) == Denied("nothing allows it"), "not by the ID alone"
    assert policy.open(A, C, "web") == Denied("name leads elsewhere")
    policy.put(NameItem("web", C, ("spiffe://mesh.test/a",)))
    assert policy.open(A, B, "web") == Denied("name leads elsewhere"), "answers are not kept"
    policy.drop_name("web")
    assert policy.open(A, C, "web") == Denied("name leads elsewhere")


def test_rules_allow_by_pattern_and_deny_wins() -> None:
    policy = Policy()
    policy.put(RuleItem("1", "allow", ("spiffe://mesh.test/*",), (B,)))
    assert policy.open(A, B) == Allowed(B)
    policy.put(NameItem("web", B, (A,)))
    policy.put(RuleItem("2", "deny", (A,), ("spiffe://mesh.test/*",)))
    assert policy.open(A, B) == Denied("denied by rule")
    assert policy.open(A, B, "web") == Denied("denied by rule")
    assert policy.open(C, B) == Allowed(B)
    policy.drop_rule("2")
    assert policy.open(A, B, "web") == Allowed(B)


def test_reserved_identities_call_nobody_and_are_called_by_nobody() -> None:
    policy = Policy()
    policy.put(RuleItem("1", "allow", ("spiffe://mesh.test/*",), ("spiffe://mesh.test/*",)))
    for reserved in ("node/a", "authority/1"):
        id = SpiffeId(f"spiffe://mesh.test/{reserved}")
        assert policy.open(id, B) == Denied("reserved identity")
        assert policy.open(A, id) == Denied("reserved identity")


def test_answers_kept_are_bounded_and_changes_are_counted() -> None:
    policy = Policy()
    for number in range(CACHE_MAX + 10):
        policy.open(SpiffeId(f"spiffe://mesh.test/{number}"), B)
    assert len(policy._cache) <= CACHE_MAX
    before = policy.changes
    policy.drop_name("never there")
    assert policy.changes == before
    policy.put(NameItem("web", B, ()))
    assert policy.changes > before


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["allow", "deny"]), st.sampled_from("abc*"), st.sampled_from("abc*")
        ),
        max_size=8,
    )
)
def test_the_order_of_rules_means_nothing(rules: list[tuple[str, str, str]]) -> None:
    policies = [Policy(), Policy()]
    items = [
        RuleItem(str(n), effect, (f"spiffe://mesh.test/{a}",), (f"spiffe://mesh.test/{b}",))
        for n, (effect, a, b) in enumerate(rules)
    ]
    for policy, order in zip(policies, (items, items[::-1]), strict=True):
        for item in order:
            policy.put(item)
    for source in (A, B, C):
        for target in (A, B, C):
            assert policies[0].open(source, target) == policies[1].open(source, target)


def test_names_are_plain() -> None:
    assert plain("Web.mesh.") == plain("web") == "web"
    assert plain("a.mesh.mesh") == "a.mesh"
