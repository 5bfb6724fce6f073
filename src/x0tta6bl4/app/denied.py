"""`x0 explain denied`: why a program has not got an identity, from what its node knows.

Pure functions over facts, as in `checks`: every finding has a stable id.  Entries are gone through
in turn, each against the callers that the Workload API has met, the newest first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from x0tta6bl4.core.identity.selectors import Attributes, Differs, match, parse_all
from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.listener import needs
from x0tta6bl4.edge.attest.process import Needs
from x0tta6bl4.wire.admin import Finding
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import BadInput

CALLERS_MAX: Final = 8
"""Callers that are gone through for each entry."""
_AUTHORITY_AGE_S: Final = 120


@final
class Caller(Value, frozen=True):
    """A program that has called, as it was when it was last looked at."""

    pid: int
    uid: int
    gid: int
    age_s: int
    looks: dict[Needs, Attributes | Denied]

    def __str__(self) -> str:
        return f"pid {self.pid} of uid {self.uid}, gid {self.gid}, {self.age_s} s ago"


@final
class Facts(Value, frozen=True):
    """What a node knows about one ID."""

    node: str
    serving: bool
    """Whether the Workload API has its socket."""
    node_denied: str
    """Why this node counts no more; empty: it does."""
    authority_up: bool
    authority_age_s: int
    """Since its last heartbeat; -1: none heard."""
    entries: tuple[Entry, ...]
    """Of this node, with the ID."""
    svid_left_s: int
    """Life that its SVID has left; negative: there is none, or it has expired."""
    svid_denied: str
    """Why its SVIDs count no more; empty: they do."""
    error: str
    """Why the last renewal failed."""
    callers: tuple[Caller, ...]
    """The newest first."""


def findings(id: str, facts: Facts) -> tuple[Finding, ...]:
    """Why nobody gets this ID here, or who does.

    Args:
        id: of a workload.
        facts: of its node.
    """
    return (*_of_node(facts), *_of_id(id, facts), *_of_callers(facts))


def _of_node(facts: Facts) -> Iterator[Finding]:
    if facts.node_denied:
        yield Finding(
            "X0-DEN-001",
            "error",
            f"node {facts.node} counts no more: {facts.node_denied}",
            "it gets no SVIDs; enrol it anew under another name",
        )
    if not facts.serving:
        yield Finding(
            "X0-DEN-002",
            "error",
            "the Workload API is not served here",
            "`x0 status` shows the socket, the log says why there is none",
        )
    if not facts.authority_up:
        age = f"for {facts.authority_age_s} s" if facts.authority_age_s >= 0 else "since it began"
        yield Finding(
            "X0-DEN-003",
            "warning" if facts.authority_age_s <= _AUTHORITY_AGE_S else "error",
            f"the node has not heard the authority {age}",
            "what was registered meanwhile is not known here; see `x0 check`",
        )


def _of_id(id: str, facts: Facts) -> Iterator[Finding]:
    if not facts.entries:
        yield Finding(
            "X0-DEN-004",
            "error",
            f"no entry gives {id} to a program of node {facts.node}",
            "x0 entry create --id … --node …; `x0 entry list` shows where the others are",
        )
    if facts.svid_denied:
        yield Finding(
            "X0-DEN-005",
            "error",
            f"SVIDs of {id} do not count: {facts.svid_denied}",
            "x0 authority revoke did that; another ID is not hit by it",
        )
    elif facts.entries and facts.svid_left_s < 0:
        yield Finding(
            "X0-DEN-006",
            "error",
            f"the node has no valid SVID for it: {facts.error or 'none was issued yet'}",
            "it asks again by itself; `x0 status` shows how its authority is",
        )


def _of_callers(facts: Facts) -> Iterator[Finding]:
    if facts.entries and not facts.callers:
        yield Finding(
            "X0-DEN-007",
            "notice",
            "no program has asked the Workload API yet",
            "is SPIFFE_ENDPOINT_SOCKET what `x0 status` shows?",
        )
    for entry in facts.entries:
        try:
            selectors = parse_all(entry.selectors)
        except BadInput as error:
            yield Finding(
                "X0-DEN-008",
                "error",
                f"entry {entry.key} is not understood here: {error.what}",
                "this node is older than its authority",
            )
            continue
        for caller in facts.callers[:CALLERS_MAX]:
            plain = tuple(s for s in selectors if s.kind in ("unix:uid", "unix:gid"))
            by_user = match(plain, Attributes(caller.uid, (caller.gid,))) if plain else None
            found = caller.looks.get(needs(selectors))
            yield (
                _differs(entry, caller, f"it is not {by_user.reason}")
                if isinstance(by_user, Differs)
                else _judged(entry, caller, match(selectors, found), found)
                if isinstance(found, Attributes)
                else _differs(entry, caller, found.reason if found else "entry came after it")
            )


def _judged(entry: Entry, caller: Caller, matched: object, found: Attributes) -> Finding:
    if isinstance(matched, Differs):
        family = matched.reason.partition(":")[0] + ":"
        facts = ", ".join(sorted(fact for fact in found.facts if fact.startswith(family))[:8])
        was = facts or found.path or found.cgroup
        return _differs(
            entry, caller, f"it is not {matched.reason}" + (f" but {was}" if was else "")
        )
    return Finding(
        "X0-DEN-010",
        "notice",
        f"entry {entry.key}: {caller}: it is this program",
        "what it has not got, it was not given for a reason above",
    )


def _differs(entry: Entry, caller: Caller, why: str) -> Finding:
    return Finding(
        "X0-DEN-009",
        "warning",
        f"entry {entry.key}: {caller}: {why}",
        "`x0 explain program PID` shows what a program is",
    )
