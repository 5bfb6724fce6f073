"""The line of all commits to a store: numbered, and for a while with what each has changed.

An authority that writes knows every change up to its own, or it is told what it has missed.  An
entry names rows by class and key; who reads it gets them as they are now, which is at least as
new.  Issued SVIDs are told as they are: they never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from x0tta6bl4.core.authority.rows import (
    Change,
    DomainRow,
    Drop,
    Forget,
    IssuedRow,
    Learnt,
    Put,
    row_key,
)
from x0tta6bl4.edge.store import rows
from x0tta6bl4.wire.records import Revocation

LOG_MAX: Final = 4096
"""So many commits can be told; who has missed more reads everything."""
BEHIND_MAX: Final = LOG_MAX // 8
"""Who has missed so many reads them, though they are but SVIDs that were issued."""
_TRIM_EVERY: Final = 64
_ISSUED: Final = IssuedRow.__name__
_FORGET: Final = Forget.__name__
_ENTRIES: Final = msgspec.msgpack.Decoder(list[list[Any]])


class Log:
    """What one writer knows of the line.

    Args:
        writer: its name; no other writer has it at the same time.

    Attributes:
        changed: number of the newest commit known that did more than to add what is out.
    """

    __slots__ = ("_commits", "_writer", "changed")

    def __init__(self, writer: str) -> None:
        self._writer = writer
        self._commits = 0
        self.changed = 0

    def begin(self, connection: Connection) -> None:
        """All rows are read in this transaction."""
        self._commits, self.changed = _head(connection)

    def missed(self, connection: Connection, changes: Sequence[Change] = ()) -> Learnt | None:
        """What others have written, if these changes should not be written without knowing it."""
        commits, changed = _head(connection)
        if self.is_current(commits, changed) and (
            commits == self._commits or not _needs_all(changes)
        ):
            return None
        found = connection.exec_driver_sql(
            "SELECT number, writer, changes FROM log WHERE number > ? ORDER BY number",
            (self._commits,),
        ).all()
        whole = len(found) != commits - self._commits
        told: Iterable[Change]
        if whole:
            told = map(Put, rows.read_all(connection, 0))
        else:
            told = _told(connection, [c for _, writer, c in found if writer != self._writer])
        learnt = Learnt(tuple(told), whole)
        self._commits, self.changed = commits, changed
        return learnt if learnt.changes else None

    def is_current(self, commits: int, changed: int) -> bool:
        """Whether a head that was read says nothing that ought to be known by now."""
        return changed == self.changed and commits - self._commits < BEHIND_MAX

    def add(self, connection: Connection, changes: Sequence[Change]) -> tuple[int, int]:
        """Write the next entry; `added` when it is on the disk.

        Returns:
            For `added`.
        """
        commits, changed = _head(connection)
        number = commits + 1
        if not all(type(change) is Put and type(change.row) is IssuedRow for change in changes):
            changed = number
        entry = msgspec.msgpack.encode([_entry(change) for change in changes])
        run = connection.exec_driver_sql
        run("INSERT INTO log (number, writer, changes) VALUES (?, ?, ?)",
            (number, self._writer, entry))  # fmt: skip
        run("UPDATE head SET commits = ?, changed = ?", (number, changed))
        if number % _TRIM_EVERY == 0:
            run("DELETE FROM log WHERE number <= ?", (number - LOG_MAX,))
        return number, changed

    def added(self, number: int, changed: int) -> None:
        """The entry is on the disk."""
        if number == self._commits + 1:  # Else others have issued; that is read another time.
            self._commits = number
        self.changed = changed


def _head(connection: Connection) -> tuple[int, int]:
    commits, changed = connection.exec_driver_sql("SELECT commits, changed FROM head").one()
    return commits, changed


def _needs_all(changes: Sequence[Change]) -> bool:
    """Whether they depend on what is out: how long a revocation stays, and from when it counts."""
    return any(
        type(change.row) in (Revocation, DomainRow)
        if type(change) is Put
        else type(change) is Drop and change.kind == Revocation.__name__
        for change in changes
    )


def _entry(change: Change) -> tuple[Any, ...]:
    if type(change) is Put:
        row = change.row
        if type(row) is IssuedRow:
            return (_ISSUED, row.subject, row.node, row.not_before_unix_s, row.not_after_unix_s)
        return (type(row).__name__, row_key(row))
    if type(change) is Drop:
        return (change.kind, change.key)
    return (_FORGET, change.before_unix_s)


def _told(connection: Connection, entries: list[bytes]) -> list[Change]:
    told: list[Change] = []
    keys: dict[str, dict[str, None]] = {}
    for entry in entries:
        for kind, *values in _ENTRIES.decode(entry):
            if kind == _ISSUED:
                subject, node, start, end = values
                told.append(Put(IssuedRow("", subject, node, "", start, end)))
            elif kind == _FORGET:
                told.append(Forget(values[0]))
            else:
                keys.setdefault(kind, {})[values[0]] = None
    for kind, some in keys.items():
        told += rows.read(connection, kind, some)
    return told
