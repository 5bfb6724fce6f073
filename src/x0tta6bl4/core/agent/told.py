"""What the authority says, as this node uses it: bundle, revocations, names, policy, heartbeat.

Names and policy that have expired without a successor are gone, so that everything is denied.
The bundle and the revocations stay: anchors have an end of their own, and a revocation that is
forgotten would be a pardon.
"""

from __future__ import annotations

from typing import final

from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.machine import SECOND, Allowed, Value
from x0tta6bl4.core.policy.gate import Policy
from x0tta6bl4.core.records.sets import SetChanged
from x0tta6bl4.wire.admin import Explanation
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import SpiffeId, node_of
from x0tta6bl4.wire.messages import BundleItem, ClockItem, NameItem, RevokedItem, RuleItem
from x0tta6bl4.wire.records import (
    Bundle,
    Federated,
    decode_bundle,
    decode_crls,
    decode_federated,
    decode_heartbeat,
    decode_names,
    decode_policy,
    decode_revocations,
    id_matches,
)


@final
class Told(Value, frozen=True):
    """What follows from a new set for the rest of the agent."""

    rejudge: tuple[str, ...] | None = None
    """Writers whose records are to be verified again; () is all of them, None is none."""
    banned: tuple[str, ...] = ()
    """IDs that are revoked for good and were not before."""


class Sets:
    """The authority's sets in the form that the proxy and this agent use.

    Bounded by what the authority publishes (48 MiB a set).

    Args:
        snapshot: of the proxy.
    """

    __slots__ = (
        "_policy",
        "_snapshot",
        "banned",
        "bundle",
        "crls",
        "federated",
        "headers",
        "heartbeat_us",
    )

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._policy = Policy()
        self.bundle: Bundle | None = None
        self.banned: frozenset[str] = frozenset()
        """IDs that are revoked for good."""
        self.headers: frozenset[str] = frozenset()
        """IDs of services that want a PROXY header."""
        self.heartbeat_us = 0
        self.federated: tuple[Federated, ...] = ()
        """Bundles of other trust domains, as the authority has verified them."""
        self.crls: tuple[bytes, ...] = ()
        """Revocation lists, for programs that know certificates only."""

    def changed(self, fact: SetChanged) -> Told | None:
        """Take a new set in.

        Returns:
            What follows from it; None if it cannot be decoded, and then nothing has changed.
        """
        try:
            if fact.set == "bundle":
                return self._on_bundle(decode_bundle(fact.body))
            if fact.set == "revocations":
                return self._on_revocations(fact.body)
            if fact.set == "names":
                self._on_names(fact.body)
            elif fact.set == "policy":
                self._on_policy(fact.body)
            elif fact.set == "federated":
                self.federated = decode_federated(fact.body)
            elif fact.set == "crls":
                self.crls = decode_crls(fact.body)
            else:
                self.heartbeat_us = max(self.heartbeat_us, decode_heartbeat(fact.body).unix_us)
                self._snapshot.put(ClockItem(self.heartbeat_us))
        except BadMessage:
            return None
        return Told()

    def gone(self, set: str) -> bool:
        """A set has expired; whether that takes something away."""
        if set == "names":
            self._on_names(_EMPTY)
        elif set == "policy":
            self._on_policy(_EMPTY)
        elif set == "federated":
            self.federated = ()
        return set in ("names", "policy")

    def heartbeat_age_s(self, unix_s: int) -> int:
        """Age of the newest heartbeat; -1 before the first."""
        return max(unix_s - self.heartbeat_us // SECOND, 0) if self.heartbeat_us else -1

    def names(self) -> tuple[tuple[str, str], ...]:
        """Service names and their IDs."""
        items = self._snapshot.of(NameItem)
        return tuple((item.name, item.id) for item in items if type(item) is NameItem)

    def explain(self, source: str, target: str) -> Explanation:
        """What the gate says of a call, and because of what."""
        name, id = "", target
        if not target.startswith("spiffe://"):
            name, id = target, self._policy.resolve(target) or ""
        if not id:
            return Explanation(False, "no such name", source, target)
        verdict = self._policy.open(SpiffeId(source), SpiffeId(id), name)
        allowed = type(verdict) is Allowed
        reason = "allowed" if type(verdict) is Allowed else verdict.reason
        effect = "allow" if allowed else "deny"
        rule = next((r.id for r in self._rules(effect) if _covers(r, source, id)), "")
        return Explanation(allowed, reason, source, id, rule or (name if allowed else ""))

    def _rules(self, effect: str) -> list[RuleItem]:
        items = self._snapshot.of(RuleItem)
        return [item for item in items if type(item) is RuleItem and item.effect == effect]

    def _on_bundle(self, bundle: Bundle) -> Told:
        before, self.bundle = self.bundle, bundle
        self._snapshot.replace(BundleItem, [BundleItem(bundle.trust_domain, bundle.anchors)])
        lost = before is not None and not set(before.anchors) <= set(bundle.anchors)
        return Told(rejudge=() if lost else None)

    def _on_revocations(self, body: bytes) -> Told:
        revocations = decode_revocations(body)
        before = {r for r in self._snapshot.of(RevokedItem) if type(r) is RevokedItem}
        items = [
            RevokedItem(r.subject, r.until_unix_s, r.issued_before_unix_s) for r in revocations
        ]
        self._snapshot.replace(RevokedItem, items)
        nodes = dict.fromkeys(
            node
            for item in items
            if item not in before and (node := node_of(SpiffeId(item.subject))) is not None
        )
        banned = frozenset(r.subject for r in revocations if not r.issued_before_unix_s)
        new = tuple(sorted(banned - self.banned))
        self.banned = banned
        return Told(rejudge=tuple(nodes) if nodes else None, banned=new)

    def _on_names(self, body: bytes) -> None:
        names = decode_names(body)
        items = [NameItem(name.name, name.id, name.callers) for name in names]
        before = {item for item in self._snapshot.of(NameItem) if type(item) is NameItem}
        for gone in before - set(items):
            self._policy.drop_name(gone.name)
        for item in items:
            self._policy.put(item)
        self._snapshot.replace(NameItem, items)
        self.headers = frozenset(name.id for name in names if name.proxy_header)

    def _on_policy(self, body: bytes) -> None:
        items = [RuleItem(r.id, r.effect, r.callers, r.targets) for r in decode_policy(body)]
        before = {item for item in self._snapshot.of(RuleItem) if type(item) is RuleItem}
        for gone in before - set(items):
            self._policy.drop_rule(gone.id)
        for item in items:
            self._policy.put(item)
        self._snapshot.replace(RuleItem, items)


def _covers(rule: RuleItem, source: str, target: str) -> bool:
    callers = any(id_matches(pattern, source) for pattern in rule.callers)
    return callers and any(id_matches(pattern, target) for pattern in rule.targets)


_EMPTY = b"\x90"
"""An empty msgpack array."""
