"""Rows of an authority in tables, and back: one class of rows is one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, delete, func, select
from sqlalchemy.dialects.sqlite import Insert, insert

from x0tta6bl4.core.authority.rows import (
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
from x0tta6bl4.edge.store import schema
from x0tta6bl4.wire.authority import Ban, Entry, Federation
from x0tta6bl4.wire.records import Name, Revocation, Rule

AT_ONCE: Final = 500
"""So many keys in one question."""
_JSON_LISTS: Final = frozenset({"selectors", "callers", "targets", "keys", "federates_with"})
_NULLS: Final = frozenset({"used_by", "node"})
_TABLES: Final[dict[type, Table]] = {
    DomainRow: schema.TRUST_DOMAIN,
    CaRow: schema.CA_KEYS,
    NodeRow: schema.NODES,
    TokenRow: schema.TOKENS,
    IssuedRow: schema.ISSUED,
    SetRow: schema.SETS,
    BundleRow: schema.BUNDLES,
    Entry: schema.ENTRIES,
    Federation: schema.FEDERATIONS,
    Name: schema.NAMES,
    Rule: schema.RULES,
    Ban: schema.BANS,
    Revocation: schema.REVOCATIONS,
}
_BY_NAME: Final = {kind.__name__: kind for kind in _TABLES}
_RECORD_KEY: Final = ("record_key", "record_point", "record_private")
_ISSUE: Final = insert(schema.ISSUED)
_UPSERTS: Final[dict[str, Insert]] = {}


# ------------------------------------------------------------------ reading
def read_all(connection: Connection, now_unix_s: int) -> Iterator[Row]:
    """All rows; of SVIDs that are still good one row per subject and node, with the maxima."""
    for kind in _TABLES:
        if kind is IssuedRow:
            yield from _spans(connection, now_unix_s)
            continue
        for found in connection.execute(_query(kind)).mappings():
            yield _row(kind, found)


def read(connection: Connection, kind: str, keys: Iterable[str]) -> Iterator[Change]:
    """The rows with these keys as they are now: Put, or Drop where there is none.

    Args:
        connection: in a transaction.
        kind: name of their class.
        keys: as `row_key` makes them.
    """
    table = _TABLES[_BY_NAME[kind]]
    columns, wanted = list(table.primary_key.columns), list(keys)
    step = AT_ONCE if len(columns) == 1 else 1
    for some in (wanted[at : at + step] for at in range(0, len(wanted), step)):
        query = _query(_BY_NAME[kind])
        if kind != DomainRow.__name__:
            values = [_key_values(table, key) for key in some]
            for at, column in enumerate(columns):
                query = query.where(column.in_([value[at] for value in values]))
        there = set()
        for found in connection.execute(query).mappings():
            row = _row(_BY_NAME[kind], found)
            there.add(row_key(row))
            yield Put(row)
        for key in some:
            if key not in there:
                yield Drop(kind, key)


def _query(kind: type) -> Any:
    if kind is CaRow:
        return select(_TABLES[kind], schema.RECORD_KEYS).join(schema.RECORD_KEYS)
    return select(_TABLES[kind])


def _spans(connection: Connection, now_unix_s: int) -> Iterator[Row]:
    table = schema.ISSUED.c
    query = (
        select(
            table.subject,
            table.node,
            func.max(table.not_before_unix_s),
            func.max(table.not_after_unix_s),
        )
        .where(table.not_after_unix_s >= now_unix_s)
        .group_by(table.subject, table.node)
    )
    for subject, node, start, end in connection.execute(query):
        yield IssuedRow("", subject, node or "", "", start, end)


# ------------------------------------------------------------------ writing
def write(connection: Connection, changes: Sequence[Change]) -> None:
    """Write changes, in their order."""
    at = 0
    while at < len(changes):
        change = changes[at]
        if type(change) is Put:
            kind, same = type(change.row), [change.row]
            while at + 1 < len(changes):  # Neighbours of one kind go in one statement.
                follower = changes[at + 1]
                if type(follower) is not Put or type(follower.row) is not kind:
                    break
                same.append(follower.row)
                at += 1
            _put(connection, kind, same)
        elif type(change) is Drop:
            _drop(connection, change)
        elif type(change) is Forget:
            connection.execute(
                delete(schema.ISSUED).where(schema.ISSUED.c.not_after_unix_s < change.before_unix_s)
            )
        at += 1


def _put(connection: Connection, kind: type, rows: list[Row]) -> None:
    if kind is IssuedRow:
        connection.execute(_ISSUE, [_values(row) for row in rows])
        return
    table = _TABLES[kind]
    wanted = [_values(row) for row in rows]
    if kind is DomainRow:
        wanted = [{"one": 1, **values} for values in wanted]
    if kind is CaRow:
        keys = [
            {"ca": values["id"], **{name: values.pop(name) for name in _RECORD_KEY}}
            for values in wanted
        ]
        connection.execute(_upsert(table), wanted)
        connection.execute(_upsert(schema.RECORD_KEYS), keys)
        return
    connection.execute(_upsert(table), wanted)


def _upsert(table: Table) -> Insert:
    # Not REPLACE: that deletes first, and takes what refers to the row with it.
    statement = _UPSERTS.get(table.name)
    if statement is None:  # One per table.
        key = list(table.primary_key.columns)
        statement = insert(table)
        rest = {c.name: statement.excluded[c.name] for c in table.columns if c not in set(key)}
        statement = statement.on_conflict_do_update(index_elements=key, set_=rest)
        _UPSERTS[table.name] = statement
    return statement


def _drop(connection: Connection, change: Drop) -> None:
    table = _TABLES[_BY_NAME[change.kind]]
    query = delete(table)
    values = _key_values(table, change.key)
    for column, value in zip(table.primary_key.columns, values, strict=True):
        query = query.where(column == value)
    connection.execute(query)


def _key_values(table: Table, key: str) -> list[Any]:
    columns = list(table.primary_key.columns)
    parts: list[Any] = list(key.split(" ")) if len(columns) > 1 else [key]
    return [
        int(part) if isinstance(column.type.python_type(), int) else part
        for column, part in zip(columns, parts, strict=True)
    ]


def _values(row: Any) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    for name, value in values.items():
        if name in _JSON_LISTS:
            values[name] = msgspec.json.encode(value).decode()
        elif name == "records":
            values[name] = msgspec.msgpack.encode(value)
        elif (
            value == ""
            and name in _NULLS
            and type(row) in (TokenRow, IssuedRow)
            and not (type(row) is TokenRow and name == "node")
        ):
            values[name] = None
    return values


def _row(kind: type, found: Any) -> Row:
    values: dict[str, Any] = {}
    for name in kind.__struct_fields__:  # type: ignore[attr-defined]
        value = found[name]
        if name in _JSON_LISTS:
            value = msgspec.json.decode(value, type=tuple[str, ...])
        elif name == "records":
            value = msgspec.msgpack.decode(value, type=tuple[bytes, ...])
        values[name] = "" if value is None else value
    row: Row = kind(**values)
    return row
