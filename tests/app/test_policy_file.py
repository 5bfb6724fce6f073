"""Policy files: the plan of a change, tests of the rules, and why something is so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.app.policy import as_toml, explain, parse_policy, plan, rules_of
from x0tta6bl4.core.machine import Allowed
from x0tta6bl4.core.policy.gate import Policy
from x0tta6bl4.wire.errors import BadConfig
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import NameItem, RuleItem
from x0tta6bl4.wire.records import Name, Rule

FILE = """
[[rule]]
id = "shop-to-db"
effect = "allow"
callers = ["spiffe://example.org/shop/*"]
targets = ["spiffe://example.org/db"]

[[rule]]
id = "no-guests"
effect = "deny"
callers = ["spiffe://example.org/shop/guest"]
targets = ["spiffe://example.org/*"]

[[test]]
caller = "spiffe://example.org/shop/till"
target = "spiffe://example.org/db"
expect = "allow"
"""
SHOP, GUEST, DB = (f"spiffe://example.org/{path}" for path in ("shop/till", "shop/guest", "db"))
WEB = Name("web", "spiffe://example.org/web", (SHOP, GUEST))

BAD = {
    "an unknown key": (FILE.replace("effect =", "efect =", 1), "X0-CFG-003", "rule[0].efect"),
    "maybe": (FILE.replace('"allow"', '"maybe"', 1), "X0-CFG-006", "rule[0].effect"),
    "nobody": (
        FILE.replace('["spiffe://example.org/shop/*"]', "[]"),
        "X0-CFG-006",
        "rule[0].callers",
    ),
    "a bad pattern": (FILE.replace("shop/*", "sh*p"), "X0-CFG-007", "rule[0].callers[0]"),
    "the same rule twice": (FILE.replace("no-guests", "shop-to-db"), "X0-CFG-010", "rule[1].id"),
    "a rule without an effect": (
        FILE.replace('effect = "allow"\n', ""),
        "X0-CFG-004",
        "rule[0].effect",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_has_its_place(case: str) -> None:
    text, id, key = BAD[case]
    with pytest.raises(BadConfig) as caught:
        parse_policy(text)
    assert caught.value.id == id, str(caught.value)
    assert f"policy.toml: {key}" in str(caught.value)
    assert caught.value.hint


def test_rules_written_down_read_back_the_same() -> None:
    rules = rules_of(parse_policy(FILE))
    assert rules_of(parse_policy(as_toml(rules))) == rules


def test_a_plan_names_what_is_added_removed_and_changed() -> None:
    old = rules_of(parse_policy(FILE))
    new = (old[0], Rule("no-guests", "deny", (GUEST,), (DB,)), Rule("new", "allow", (SHOP,), (DB,)))
    assert [(change.what, change.id) for change in plan(old, new)] == [
        ("change", "no-guests"),
        ("add", "new"),
    ]
    assert '- targets = ["spiffe://example.org/*"]' in plan(old, new)[0].lines
    assert [(c.what, c.id) for c in plan(old, ())] == [
        ("remove", "shop-to-db"),
        ("remove", "no-guests"),
    ]
    assert plan(old, old) == []


def test_why() -> None:
    rules = rules_of(parse_policy(FILE))
    assert explain(SHOP, DB, [WEB], rules).by == "rule shop-to-db"
    assert explain(GUEST, DB, [WEB], rules).by == "rule no-guests"
    assert explain(SHOP, "web", [WEB], rules).by == "name web"
    assert explain(SHOP, "web.mesh", [WEB], rules).allowed
    assert not explain(GUEST, "web", [WEB], rules).allowed  # A deny wins.
    assert explain(DB, "web", [WEB], rules).by == "default"
    assert explain(SHOP, WEB.id, [WEB], rules).by == "default"  # Its callers ask by name.
    assert "no name" in explain(SHOP, "nope", [WEB], rules).why


ids = st.sampled_from([SHOP, GUEST, DB, WEB.id, "spiffe://example.org/node/a"])
patterns = st.lists(
    st.sampled_from([SHOP, GUEST, DB, "spiffe://example.org/shop/*", "spiffe://example.org/*"]),
    min_size=1,
    max_size=2,
).map(tuple)
some_rules = st.lists(
    st.tuples(st.sampled_from(["allow", "deny"]), patterns, patterns), max_size=4
).map(lambda rows: tuple(Rule(f"r{i}", *row) for i, row in enumerate(rows)))


@given(ids, st.one_of(ids, st.sampled_from(["web", "nope"])), some_rules, st.booleans())
def test_the_explanation_always_says_what_the_gate_says(
    caller: str, target: str, rules: tuple[Rule, ...], named: bool
) -> None:
    names = [WEB] if named else []
    gate = Policy()
    for name in names:
        gate.put(NameItem(name.name, name.id, name.callers))
    for rule in rules:
        gate.put(RuleItem(rule.id, rule.effect, rule.callers, rule.targets))
    is_id = target.startswith("spiffe://")
    id = SpiffeId(target) if is_id else gate.resolve(target)
    allowed = id is not None and isinstance(
        gate.open(SpiffeId(caller), id, "" if is_id else target), Allowed
    )
    reason = explain(caller, target, names, rules)
    assert reason.allowed == allowed
    assert reason.why
    assert reason.by
