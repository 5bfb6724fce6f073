"""Tables of an authority in memory: the same rows as in the store, with the indexes to ask them.

`change` applies changes at once and notes how to undo them; `settle` forgets the notes when the
changes are on the disk, `undo` takes them back when they can't be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from x0tta6bl4.core.authority.rows import (
    ACTIVE,
    PREPARED,
    BundleRow,
    CaRow,
    Change,
    DomainRow,
    Drop,
    Forget,
    IssuedRow,
    NodeRow,
    Put,
    Row,
    SetRow,
    TokenRow,
    row_key,
)
from x0tta6bl4.wire.authority import FEDERATIONS_MAX, Ban, Entry, Federation
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.mesh_address import mesh_host
from x0tta6bl4.wire.records import Name, Revocation, Rule

LIMITS: Final[dict[type, int]] = {
    Entry: 100_000,
    Federation: FEDERATIONS_MAX,
    Name: 65_536,
    Rule: 4_096,
    NodeRow: 10_000,
    TokenRow: 4_096,
    Revocation: 100_000,
    Ban: 100_000,
    CaRow: 8,
    SetRow: 7,
    BundleRow: 257,
    DomainRow: 1,
}
"""Most rows of each class; one more is refused."""
ENTRIES_PER_NODE_MAX: Final = 10_000
UNDO_MAX: Final = 100_000


class State:
    """All rows but the single SVIDs, of which only the span per subject and node is kept."""

    __slots__ = (
        "_floors",
        "_last",
        "_undo",
        "bans",
        "bundles",
        "by_node",
        "cas",
        "crl_number",
        "crls",
        "domain",
        "entries",
        "federations",
        "hosts",
        "names",
        "nodes",
        "revocations",
        "rules",
        "sets",
        "tables",
        "tokens",
    )

    def __init__(self, rows: Iterable[Row]) -> None:
        self.domain: DomainRow | None = None
        self.cas: dict[str, CaRow] = {}
        self.crls: tuple[bytes, ...] = ()
        """Made anew by every leading process, from what its store says was issued."""
        self.crl_number = 0
        self.nodes: dict[str, NodeRow] = {}
        self.tokens: dict[str, TokenRow] = {}
        self.sets: dict[str, SetRow] = {}
        self.bundles: dict[str, BundleRow] = {}
        self.entries: dict[str, Entry] = {}
        self.federations: dict[str, Federation] = {}
        self.names: dict[str, Name] = {}
        self.rules: dict[str, Rule] = {}
        self.bans: dict[str, Ban] = {}
        self.revocations: dict[str, Revocation] = {}
        self.by_node: dict[str, dict[str, Entry]] = {}
        self.hosts: dict[bytes, str] = {}
        """Whose mesh address ends so; one node each, as bounded as the nodes."""
        self._floors: dict[str, int] = {}
        self._last: dict[str, dict[str, tuple[int, int]]] = {}
        self._undo: list[Callable[[], object]] = []
        self.tables: dict[type, dict[str, Any]] = {
            CaRow: self.cas,
            NodeRow: self.nodes,
            TokenRow: self.tokens,
            SetRow: self.sets,
            BundleRow: self.bundles,
            Entry: self.entries,
            Federation: self.federations,
            Name: self.names,
            Rule: self.rules,
            Ban: self.bans,
            Revocation: self.revocations,
        }
        for row in rows:
            self._put(row)
        self._undo.clear()

    # -------------------------------------------------------------- changes
    def change(self, changes: Iterable[Change]) -> None:
        """Apply changes, to be undone until `settle`.

        Raises:
            Unavailable: a table is full; what was applied before it is undone by `undo`.
        """
        for change in changes:
            if type(change) is Put:
                self._put(change.row)
            elif type(change) is Drop:
                self._drop(change)
            elif type(change) is Forget:
                self._forget(change.before_unix_s)
        assert len(self._undo) <= UNDO_MAX

    def settle(self) -> None:
        """The changes so far are on the disk."""
        self._undo.clear()

    def mark(self) -> int:
        """Point to which `undo` can go back."""
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Take back all changes since the mark (since the last `settle`)."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def _put(self, row: Row) -> None:
        if type(row) is IssuedRow:
            self._note(row)
            return
        if type(row) is DomainRow:
            old_domain = self.domain
            self._undo.append(lambda: setattr(self, "domain", old_domain))
            self.domain = row
            return
        table, key = self.tables[type(row)], row_key(row)
        old = table.get(key)
        if old is None and len(table) >= LIMITS[type(row)]:
            raise Unavailable(
                "X0-AUT-020",
                f"no room for another {type(row).__name__.lower()}",
                f"at most {LIMITS[type(row)]}; delete some",
            )
        self._undo.append(lambda: self._set(table, key, old))
        self._set(table, key, row)

    def _drop(self, change: Drop) -> None:
        table = next(t for kind, t in self.tables.items() if kind.__name__ == change.kind)
        old = table.get(change.key)
        if old is not None:
            self._undo.append(lambda: self._set(table, change.key, old))
            self._set(table, change.key, None)

    def _set(self, table: dict[str, Any], key: str, row: Any) -> None:
        if table is self.entries:
            old = table.get(key)
            if old is not None:
                of_node = self.by_node[old.node]
                del of_node[key]
                if not of_node:
                    del self.by_node[old.node]
            if row is not None:
                self.by_node.setdefault(row.node, {})[key] = row
        if row is None:
            table.pop(key, None)
        else:
            table[key] = row
        if table is self.nodes:
            host = mesh_host(NodeName(key))
            if row is not None:
                self.hosts[host] = key
            elif self.hosts.get(host) == key:
                del self.hosts[host]
        if table is self.revocations:
            subject = key.partition(" ")[0]
            before = self._floors.pop(subject, 0)
            floor = (
                max(
                    (
                        r.issued_before_unix_s
                        for r in self.revocations.values()
                        if r.subject == subject
                    ),
                    default=0,
                )
                if row is None
                else max(row.issued_before_unix_s, before)
            )
            if floor:
                self._floors[subject] = floor

    # -------------------------------------------------------------- SVIDs that are out
    def _note(self, row: IssuedRow) -> None:
        # Not undone: a span that is too long only keeps a revocation longer than needed.
        nodes = self._last.setdefault(row.subject, {})
        start, end = nodes.get(row.node, (0, 0))
        nodes[row.node] = (max(start, row.not_before_unix_s), max(end, row.not_after_unix_s))

    def _forget(self, before_unix_s: int) -> None:
        for subject in list(self._last):
            nodes = self._last[subject]
            for node in [n for n, (_, end) in nodes.items() if end < before_unix_s]:
                del nodes[node]
            if not nodes:
                del self._last[subject]

    def span(self, subject: str, via: str = "") -> tuple[int, int]:
        """Newest notBefore and newest notAfter of a subject's SVIDs and of all through a node.

        Args:
            subject: SPIFFE ID.
            via: node name, when the subject is that node; empty otherwise.
        Returns:
            Unix seconds; (0, 0) when none is out.
        """
        spans = list(self._last.get(subject, {}).values())
        if via:
            spans += [nodes[via] for nodes in self._last.values() if via in nodes]
        return (max((s for s, _ in spans), default=0), max((e for _, e in spans), default=0))

    def floor(self, subject: str) -> int:
        """Earliest notBefore that is not revoked for a subject; 0 when any is good."""
        return self._floors.get(subject, 0)

    def span_all(self) -> int:
        """Newest notBefore of all SVIDs that are out."""
        return max((s for nodes in self._last.values() for s, _ in nodes.values()), default=0)

    def ends(self, node_id: str, node: str) -> int:
        """End of the newest SVID of a node itself; 0 when none is out."""
        return self._last.get(node_id, {}).get(node, (0, 0))[1]

    def subjects(self) -> int:
        """How many subjects have an SVID out."""
        return len(self._last)

    # -------------------------------------------------------------- questions
    def the_domain(self) -> DomainRow:
        """The trust domain; the store always has it."""
        assert self.domain is not None
        return self.domain

    def active(self) -> CaRow:
        """The CA that issues; there is always exactly one."""
        return next(ca for ca in self.cas.values() if ca.state == ACTIVE)

    def prepared(self) -> CaRow | None:
        """The CA that will be next."""
        return next((ca for ca in self.cas.values() if ca.state == PREPARED), None)

    def newest_bundle(self) -> BundleRow:
        """The bundle of now."""
        return self.bundles[str(max(row.sequence for row in self.bundles.values()))]
