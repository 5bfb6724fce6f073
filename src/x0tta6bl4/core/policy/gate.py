"""Who may call whom, and what a service name means.

    a deny rule covers caller and target                       denied
    a name was asked for and it does not lead to the target    denied (skew between two ends)
    the name's callers, or an allow rule, cover the caller     allowed
    nothing does                                               denied

Both ends of a session ask, each from its own copy of the authority's sets, for every stream, and
again for every open stream when a set has changed.  What either end denies does not happen.
"""

from __future__ import annotations

from typing import Final

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.wire.ids import SpiffeId, is_reserved
from x0tta6bl4.wire.messages import NameItem, RuleItem
from x0tta6bl4.wire.records import id_matches

CACHE_MAX: Final = 4096
"""Answers kept; at the bound all are forgotten."""

SUFFIX: Final = ".mesh"

_RESERVED: Final = Denied("reserved identity")
_RULE: Final = Denied("denied by rule")
_MOVED: Final = Denied("name leads elsewhere")
_NOTHING: Final = Denied("nothing allows it")


class Policy:
    """Gate over the names and rules of a trust domain; bounded by what the authority publishes."""

    __slots__ = ("_cache", "_names", "_rules", "changes")

    def __init__(self) -> None:
        self._names: dict[str, NameItem] = {}
        self._rules: dict[str, RuleItem] = {}
        self._cache: dict[tuple[SpiffeId, SpiffeId, str], Verdict] = {}
        self.changes = 0
        """Grows with every change: whoever keeps an answer asks again."""

    def put(self, item: NameItem | RuleItem) -> None:
        """Take a name or rule in; it replaces the one of its key."""
        if type(item) is NameItem:
            self._names[item.name] = item
        else:
            assert type(item) is RuleItem
            self._rules[item.id] = item
        self._changed()

    def drop_name(self, name: str) -> None:
        """Forget a name; unknown ones are ignored."""
        if self._names.pop(name, None) is not None:
            self._changed()

    def drop_rule(self, id: str) -> None:
        """Forget a rule; unknown ones are ignored."""
        if self._rules.pop(id, None) is not None:
            self._changed()

    def resolve(self, name: str) -> SpiffeId | None:
        """The ID that a service name stands for, with or without its `.mesh`."""
        item = self._names.get(plain(name))
        return SpiffeId(item.id) if item is not None else None

    def open(self, source: SpiffeId, target: SpiffeId, name: str = "") -> Verdict:
        """Whether `source` may open a stream to `target`.

        Args:
            source: who calls.
            target: who is called.
            name: the service name it asked for; empty: it asked by ID.
        Returns:
            Allowed(target), or Denied with a stable reason.
        """
        key = (source, target, name)
        verdict = self._cache.get(key)
        if verdict is None:
            if len(self._cache) >= CACHE_MAX:
                self._cache.clear()
            verdict = self._cache[key] = self._judge(source, target, plain(name))
        return verdict

    def _judge(self, source: SpiffeId, target: SpiffeId, name: str) -> Verdict:
        if is_reserved(source) or is_reserved(target):
            return _RESERVED
        if self._covered("deny", source, target):
            return _RULE
        if name:
            item = self._names.get(name)
            if item is None or item.id != target:
                return _MOVED
            if any(id_matches(pattern, source) for pattern in item.callers):
                return Allowed(target)
        if self._covered("allow", source, target):
            return Allowed(target)
        return _NOTHING

    def _covered(self, effect: str, source: SpiffeId, target: SpiffeId) -> bool:
        return any(
            rule.effect == effect
            and any(id_matches(pattern, source) for pattern in rule.callers)
            and any(id_matches(pattern, target) for pattern in rule.targets)
            for rule in self._rules.values()
        )

    def _changed(self) -> None:
        self.changes += 1
        self._cache.clear()


def plain(name: str) -> str:
    """A service name as it stands in the table: lower case, without `.mesh` and a last dot."""
    return name.lower().removesuffix(".").removesuffix(SUFFIX)
