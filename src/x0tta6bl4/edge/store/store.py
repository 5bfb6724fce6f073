"""The authority's store: SQLite in WAL mode, every commit on the disk before it returns.

One writer at a time (a lock file says so), one thread at a time.  What cannot be written is
refused as Unavailable with nothing changed; reading goes on.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import (
    Connection,
    Table,
    create_engine,
    delete,
    event,
    func,
    literal,
    select,
    union,
)
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

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
)
from x0tta6bl4.edge.store import schema
from x0tta6bl4.wire.authority import Ban, Entry, Federation
from x0tta6bl4.wire.errors import BadConfig, Conflict, NotFound, Unavailable
from x0tta6bl4.wire.records import Name, Revocation, Rule

FILE: Final = "authority.db"
BUSY_S: Final = 5.0
"""Waits so long for another process that has the file open, e.g. a backup."""
_APPLICATION_ID: Final = 0x78307474

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
_BY_NAME: Final = {kind.__name__: table for kind, table in _TABLES.items()}


class Store:
    """An open store.

    Args:
        directory: 0700, of this user; holds the database and its lock.

    Raises:
        NotFound: X0-STO-001 no store there.
        BadConfig: X0-STO-002 others could read or write it.
        Conflict: X0-STO-003 another process has it open.
        Unavailable: X0-STO-004 and others, the database can't be opened.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        if not self.path.exists():
            raise NotFound(
                "X0-STO-001",
                f"there is no authority in {directory}",
                "make one with `x0 authority init`",
            )
        check_private(directory)
        check_private(self.path)
        self._lock = _locked(directory)
        try:
            self._connection = self._open()
        except BaseException:
            os.close(self._lock)
            raise

    @staticmethod
    def create(directory: Path, rows: Iterable[Row]) -> None:
        """Make a store with its first rows.

        Raises:
            Conflict: X0-STO-006 there is one already.
            Unavailable: no room, or no right to write.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory)
            new = directory / f"{FILE}.new"
            if (directory / FILE).exists():
                raise Conflict(
                    "X0-STO-006",
                    f"there is an authority in {directory} already",
                    "choose another directory; nothing was changed",
                )
            new.unlink(missing_ok=True)
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = _connect(new)
            try:
                _migrate(connection)
                with connection.begin():
                    _write(connection, [Put(row) for row in rows])
            finally:
                connection.close()
                connection.engine.dispose()
            os.rename(new, directory / FILE)
            _sync_directory(directory)
        except (OSError, DBAPIError) as error:
            raise _refusal(error, directory) from None

    def load(self, now_unix_s: int) -> Iterator[Row]:
        """All rows; of SVIDs that are still good one row per subject and node, with the maxima."""
        with self._connection.begin():
            for kind, table in _TABLES.items():
                if kind is IssuedRow:
                    yield from self._issued(now_unix_s)
                    continue
                query = select(table)
                if kind is CaRow:
                    query = select(table, schema.RECORD_KEYS).join(schema.RECORD_KEYS)
                for found in self._connection.execute(query).mappings():
                    yield _row(kind, found)

    def _issued(self, now_unix_s: int) -> Iterator[Row]:
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
        for subject, node, start, end in self._connection.execute(query):
            yield IssuedRow("", subject, node or "", "", start, end)

    def withdrawn(self, now_unix_s: int, most: int) -> tuple[str, ...]:
        """Serial numbers of certificates that are revoked and not expired.

        Args:
            now_unix_s: wall time.
            most: so many at most, those that end last.
        Returns:
            Hexadecimal; the longest valid first.
        """
        issued, revoked = schema.ISSUED.c, schema.REVOCATIONS.c
        domain = select(schema.TRUST_DOMAIN.c.trust_domain).scalar_subquery()
        node_id = literal("spiffe://") + domain + literal("/node/") + issued.node
        ended = (revoked.issued_before_unix_s == 0) | (
            issued.not_before_unix_s < revoked.issued_before_unix_s
        )
        found = union(
            *(
                select(issued.serial, issued.not_after_unix_s)
                .join_from(schema.ISSUED, schema.REVOCATIONS, ended & of)
                .where(issued.not_after_unix_s > now_unix_s)
                for of in (issued.subject == revoked.subject, node_id == revoked.subject)
            )
        ).subquery()
        query = select(found.c.serial).order_by(found.c.not_after_unix_s.desc()).limit(most)
        with self._connection.begin():
            return tuple(self._connection.execute(query).scalars())

    def commit(self, changes: Sequence[Change]) -> None:
        """Write changes in one transaction; on the disk when this returns.

        Raises:
            Unavailable: X0-STO-005 no room, X0-STO-004 otherwise; nothing was written.
        """
        try:
            with self._connection.begin():
                _write(self._connection, changes)
        except DBAPIError as error:
            raise _refusal(error, self.path.parent) from None

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()
        self._connection.engine.dispose()
        os.close(self._lock)

    def _open(self) -> Connection:
        try:
            connection = _connect(self.path)
            (found,) = connection.exec_driver_sql("PRAGMA application_id").one()
            connection.rollback()
            if found != _APPLICATION_ID:
                raise BadConfig("X0-STO-007", f"{self.path} is not an authority's database")
            _migrate(connection)
        except (OSError, DBAPIError) as error:
            raise _refusal(error, self.path.parent) from None
        return connection


def check_private(path: Path) -> None:
    """Refuse a file or directory that somebody else could read, write or own.

    Raises:
        BadConfig: X0-STO-002.
        Unavailable: X0-STO-004 it can't even be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _refusal(error, path) from None
    if status.st_uid != os.geteuid():
        raise BadConfig(
            "X0-STO-002",
            f"{path} belongs to uid {status.st_uid}",
            f"run as its owner, or: chown {os.geteuid()} {path}",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        mode = "700" if path.is_dir() else "600"
        raise BadConfig(
            "X0-STO-002",
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o})",
            f"chmod {mode} {path}",
        )


# ------------------------------------------------------------------ connection
def _connect(path: Path) -> Connection:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # Transactions are begun below, not guessed by pysqlite.
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",
            "wal_autocheckpoint = 1000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine.connect()


def _migrate(connection: Connection) -> None:
    with connection.begin():
        known = connection.exec_driver_sql(
            "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        ).first()
        now = (
            connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if known
            else None
        )
        if now == schema.REVISION:
            return
        from alembic import command  # A tenth of a second, needed once in a store's life.
        from alembic.config import Config

        if now is not None and str(now) > schema.REVISION:
            raise BadConfig(
                "X0-STO-008",
                f"the store is of a newer release (revision {now})",
                "install that release",
            )
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")


def _locked(directory: Path) -> int:
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise Conflict(
            "X0-STO-003",
            f"another authority runs on {directory}",
            "stop it first; one directory is for one authority",
        ) from None
    return lock


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(error: Exception, where: Path) -> Unavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    name = getattr(cause, "sqlite_errorname", "") or type(cause).__name__
    if name == "SQLITE_FULL" or getattr(cause, "errno", 0) in (28, 122):
        return Unavailable(
            "X0-STO-005",
            f"no room left on the disk of {where}",
            "make room; nothing was changed, and what is there can still be read",
        )
    if isinstance(cause, sqlite3.Error):
        return Unavailable(
            "X0-STO-004",
            f"the database in {where} can't be used: {name}",
            "check disk, rights and quota; nothing was changed",
        )
    return Unavailable("X0-STO-004", f"{where} can't be used: {cause}", "check its rights")


# ------------------------------------------------------------------ rows
def _write(connection: Connection, changes: Sequence[Change]) -> None:
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
    table = _BY_NAME[change.kind]
    key = list(table.primary_key.columns)
    parts: list[Any] = list(change.key.split(" ")) if len(key) > 1 else [change.key]
    values = [
        int(part) if isinstance(column.type.python_type(), int) else part
        for column, part in zip(key, parts, strict=True)
    ]
    query = delete(table)
    for column, value in zip(key, values, strict=True):
        query = query.where(column == value)
    connection.execute(query)


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


_RECORD_KEY: Final = ("record_key", "record_point", "record_private")
_ISSUE: Final = insert(schema.ISSUED)
_UPSERTS: Final[dict[str, Insert]] = {}
