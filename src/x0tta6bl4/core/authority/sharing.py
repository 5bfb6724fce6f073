"""What one authority makes of that which another one of its trust domain has written.

Changes come in the order of the store and are on the disk: they are applied, never judged, and
told to who watches here as if they had been made here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from x0tta6bl4.core.authority import life
from x0tta6bl4.core.authority.rows import (
    CaRow,
    Change,
    DomainRow,
    Drop,
    EntriesChanged,
    NodeCut,
    NodeRow,
    NodeTold,
    PollWanted,
    Published,
    Put,
    RenewWanted,
    Row,
    SetRow,
    row_key,
)
from x0tta6bl4.core.authority.state import State
from x0tta6bl4.core.authority.trust import signed_body
from x0tta6bl4.core.machine import Effect
from x0tta6bl4.wire.authority import Entry, Federation
from x0tta6bl4.wire.ids import SpiffeId, node_of
from x0tta6bl4.wire.records import Name, Revocation, Rule, decode_crls

_SIGNED: Final[dict[type, str]] = {
    CaRow: life.BUNDLE,
    Federation: life.FEDERATED,
    Name: "names",
    Revocation: "revocations",
    Rule: "policy",
}
"""Class of rows -> the set that is made of them."""
_SIGNED_BY_NAME: Final = {kind.__name__: name for kind, name in _SIGNED.items()}


def learn(state: State, changes: Iterable[Change], whole: bool) -> tuple[Effect, ...]:
    """Apply what others have written.

    Args:
        state: of this authority, with nothing to undo.
        changes: in the order in which they are to be applied.
        whole: they are all rows there are.
    Returns:
        Facts for those who watch.
    """
    assert not state.mark(), "what was decided meanwhile has to be undone first"
    told: list[Effect] = []
    changes = tuple(changes)
    for change in (*_gone(state, changes), *changes) if whole else changes:
        if type(change) is Put:
            if _is_known(state, change.row):
                continue
            told += _of_row(state, change.row)
        elif type(change) is Drop:
            told += _of_drop(state, change)
        state.change((change,))
        state.settle()
    if any(type(fact) is Published and fact.set == life.CRLS for fact in told):
        state.crls = lists(state)
    return tuple(told)


def signed_with(changes: Iterable[Change]) -> set[str]:
    """The sets whose content these may have changed."""
    found = {
        _SIGNED.get(type(change.row), "")
        if type(change) is Put
        else _SIGNED_BY_NAME.get(getattr(change, "kind", ""), "")
        for change in changes
    }
    return found - {""}


def lists(state: State) -> tuple[bytes, ...]:
    """The revocation lists as they were signed last; none if there are none yet."""
    row = state.sets.get(life.CRLS)
    return decode_crls(signed_body(row.records)) if row is not None else ()


def _gone(state: State, rows: tuple[Change, ...]) -> list[Change]:
    there = {(type(put.row), row_key(put.row)) for put in rows if type(put) is Put}
    return [
        Drop(kind.__name__, key)
        for kind, table in state.tables.items()
        for key in table
        if (kind, key) not in there and (kind, key) != (SetRow, life.HEARTBEAT)
    ]


def _is_known(state: State, row: Row) -> bool:
    if type(row) is DomainRow:
        return row == state.domain
    if type(row) is SetRow:  # A heartbeat need not be on the disk to be the newest.
        old = state.sets.get(row.name)
        return old is not None and old.generation >= row.generation
    table = state.tables.get(type(row))
    return table is not None and table.get(row_key(row)) == row


def _of_row(state: State, row: Row) -> list[Effect]:
    if type(row) is Entry:
        before = state.entries.get(row.key)
        moved = before is not None and before.node != row.node
        left = [EntriesChanged(before.node, (), (row.key,))] if before and moved else []
        return [*left, EntriesChanged(row.node, (row,))]
    if type(row) is SetRow:
        return [Published(row.name, row.records)]
    if type(row) is NodeRow:
        node = state.nodes.get(row.name)
        told: list[Effect] = []
        if row.evicted_unix_s and not (node and node.evicted_unix_s):
            told.append(NodeCut(row.name, "node was evicted"))
        if row.draining != (node is not None and node.draining):
            told.append(NodeTold(row.name, row.draining))
        return told
    if type(row) is Revocation:
        name = node_of(SpiffeId(row.subject))
        return [NodeCut(name, "node was revoked")] if name is not None else []
    if type(row) is DomainRow:
        newer = row.renew_before_unix_s > state.the_domain().renew_before_unix_s
        return [RenewWanted(row.renew_before_unix_s)] if newer else []
    return [PollWanted()] if type(row) is Federation else []


def _of_drop(state: State, drop: Drop) -> list[Effect]:
    if drop.kind == Entry.__name__ and drop.key in state.entries:
        return [EntriesChanged(state.entries[drop.key].node, (), (drop.key,))]
    return [PollWanted()] if drop.kind == Federation.__name__ else []
