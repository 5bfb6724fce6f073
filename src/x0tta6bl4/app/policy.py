"""A policy file: rules and what they are meant to do; the plan of a change; why something is so.

    [[rule]]
    id = "shop-to-db"
    effect = "allow"
    callers = ["spiffe://example.org/shop/*"]
    targets = ["spiffe://example.org/db"]

    [[test]]
    caller = "spiffe://example.org/guest"
    target = "spiffe://example.org/db"
    expect = "deny"

A deny wins over every allow; a name's callers are allows to its ID; no allow is a deny.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, final

import msgspec
from msgspec import Meta

from x0tta6bl4.app.settings_where import Where
from x0tta6bl4.app.toml_file import Section, decode, dump, read_text
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.core.policy.gate import Policy, plain
from x0tta6bl4.wire.ids import SpiffeId, spiffe_id
from x0tta6bl4.wire.messages import NameItem, RuleItem
from x0tta6bl4.wire.records import Name, Rule, id_matches

RULES_MAX: Final = 10_000
Effect = Literal["allow", "deny"]
Patterns = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]


@final
class RuleText(Section, frozen=True):
    """`[[rule]]`: who may, or may not, call whom."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    """Name of the rule, for plans and explanations."""
    effect: Effect
    """A deny wins over every allow."""
    callers: Patterns
    """SPIFFE IDs, or one with `/*` at its end for all below it."""
    targets: Patterns
    """The same, of services."""


@final
class ExpectText(Section, frozen=True):
    """`[[test]]`: what rules and names together are meant to say."""

    caller: str
    """SPIFFE ID."""
    target: str
    """SPIFFE ID, or a service name."""
    expect: Effect
    """What has to come out; `x0 policy apply` refuses a file whose tests fail."""


@final
class PolicyFile(Section, frozen=True):
    """The whole of a policy file."""

    rule: tuple[RuleText, ...] = ()
    test: tuple[ExpectText, ...] = ()


@final
class Reason(msgspec.Struct, frozen=True):
    """Why a caller gets through to a target, or does not."""

    allowed: bool
    why: str
    by: str
    """`rule ID`, `name NAME`, or `default`."""


@final
class Change(msgspec.Struct, frozen=True):
    """One rule that is added, removed or replaced."""

    what: str
    """`add`, `remove` or `change`."""
    id: str
    lines: tuple[str, ...]
    """A diff of its text."""


def read_policy(path: Path) -> PolicyFile:
    """Read and judge a policy file.

    Raises:
        BadConfig: the file can't be read, or something in it is wrong.
    """
    return parse_policy(read_text(path), str(path))


def parse_policy(text: str, source: str = "policy.toml") -> PolicyFile:
    """Judge the text of a policy file.

    Raises:
        BadConfig: with file, key path and hint.
    """
    policy = decode(text, source, PolicyFile)
    where = Where(source)
    if len(policy.rule) > RULES_MAX:
        raise where.error("X0-CFG-006", "rule", f"{len(policy.rule)} rules", f"at most {RULES_MAX}")
    for i, rule in enumerate(policy.rule):
        for key, patterns in (("callers", rule.callers), ("targets", rule.targets)):
            for j, pattern in enumerate(patterns):
                where.identifier(f"rule[{i}].{key}[{j}]", pattern.removesuffix("/*"), spiffe_id)
    for i, test in enumerate(policy.test):
        where.identifier(f"test[{i}].caller", test.caller, spiffe_id)
    where.distinct("id", ((f"rule[{i}].id", rule.id) for i, rule in enumerate(policy.rule)))
    return policy


def rules_of(policy: PolicyFile) -> tuple[Rule, ...]:
    """The rules of a file as the authority keeps them."""
    return tuple(Rule(rule.id, rule.effect, rule.callers, rule.targets) for rule in policy.rule)


def as_toml(rules: Sequence[Rule]) -> str:
    """Rules as a policy file."""
    return dump(PolicyFile(rule=tuple(_text(rule) for rule in rules)))


def plan(old: Sequence[Rule], new: Sequence[Rule]) -> list[Change]:
    """What applying `new` would do to `old`, in the order of the files."""
    before, after = {rule.id: rule for rule in old}, {rule.id: rule for rule in new}
    changes = []
    for id in [*before, *(id for id in after if id not in before)]:
        was, becomes = before.get(id), after.get(id)
        if was == becomes:
            continue
        what = "add" if was is None else "remove" if becomes is None else "change"
        diff = difflib.ndiff(_lines(was), _lines(becomes))
        changes.append(Change(what, id, tuple(line for line in diff if not line.startswith("?"))))
    return changes


def explain(caller: str, target: str, names: Sequence[Name], rules: Sequence[Rule]) -> Reason:
    """Why `caller` gets through to `target`, or does not: the gate's own verdict, with its cause.

    Args:
        caller: SPIFFE ID.
        target: SPIFFE ID, or a service name with or without `.mesh`; the callers of a name count
            only for those who ask by that name.
        names: all names of the trust domain.
        rules: all rules.
    """
    gate = Policy()
    for name in names:
        gate.put(NameItem(name.name, name.id, name.callers))
    for rule in rules:
        gate.put(RuleItem(rule.id, rule.effect, rule.callers, rule.targets))
    asked = "" if target.startswith("spiffe://") else target
    id = gate.resolve(asked) if asked else SpiffeId(target)
    if id is None:
        return Reason(False, f"there is no name {plain(asked)!r}", "default")
    verdict = gate.open(SpiffeId(caller), id, asked)
    allowed = type(verdict) is Allowed
    effect = "allow" if allowed else "deny"
    if allowed and any(
        name.name == plain(asked) and any(id_matches(p, caller) for p in name.callers)
        for name in names
    ):
        return Reason(True, "it is a caller of this name", f"name {plain(asked)}")
    for rule in rules:
        if rule.effect == effect and _covers(rule, caller, id):
            return Reason(allowed, _WHY[effect], f"rule {rule.id}")
    assert type(verdict) is Denied
    return Reason(False, verdict.reason, "default")


_WHY: Final = {
    "allow": "a rule allows it and none denies it",
    "deny": "a deny wins over every allow",
}


def _covers(rule: Rule, caller: str, target: str) -> bool:
    return any(id_matches(pattern, caller) for pattern in rule.callers) and any(
        id_matches(pattern, target) for pattern in rule.targets
    )


def _text(rule: Rule) -> RuleText:
    effect: Effect = "allow" if rule.effect == "allow" else "deny"
    return RuleText(rule.id, effect, rule.callers, rule.targets)


def _lines(rule: Rule | None) -> list[str]:
    return dump(_text(rule)).splitlines() if rule else []
