"""The authority's store: SQLite in WAL mode, every commit on the disk before it returns.

One thread at a time.  Several authorities of one machine may have it open: each commit is made on
the newest rows, or its writer is told what it has missed (`log`).  What cannot be written is
refused as Unavailable with nothing changed; reading goes on.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Transaction, create_engine, event, literal, select, union
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from x0tta6bl4.core.authority.rows import Change, Learnt, Put, Row
from x0tta6bl4.edge.store import rows, schema
from x0tta6bl4.edge.store.log import Log
from x0tta6bl4.edge.store.neighbours import Neighbours
from x0tta6bl4.wire.errors import BadConfig, Conflict, NotFound, Unavailable

FILE: Final = "authority.db"
BUSY_S: Final = 5.0
"""Waits so long for another process that has the file open, e.g. a backup."""
_APPLICATION_ID: Final = 0x78307474
_CREATOR: Final = "creator"
_CREATE_LOOK_S: Final = 0.01


class Store:
    """An open store.

    Args:
        directory: 0700, of this user; holds the database and what its users share.
        name: of this authority among them.

    Attributes:
        neighbours: the other authorities of the store.

    Raises:
        NotFound: X0-STO-001 no store there.
        BadConfig: X0-STO-002 others could read or write it.
        Conflict: X0-STO-003 another process of this name has it open.
        Unavailable: X0-STO-004 and others, the database can't be opened.
    """

    def __init__(self, directory: Path, name: str = "main") -> None:
        self.path = directory / FILE
        if not self.path.exists():
            raise NotFound(
                "X0-STO-001",
                f"there is no authority in {directory}",
                "make one with `x0 authority init`",
            )
        check_private(directory)
        check_private(self.path)
        self._log = Log(name)
        self._transaction: Transaction | None = None
        """Open after `commit` has told what was missed."""
        try:
            self.neighbours = Neighbours(directory, name)
        except OSError as error:
            raise _refusal(error, directory) from None
        try:
            self._connection = self._open()
            self._reader, self._eye = self._read_only()
        except BaseException:
            self.neighbours.close()
            raise

    @staticmethod
    def create(directory: Path, first: Iterable[Row]) -> None:
        """Make a store with its first rows; of several who try, one does.

        Raises:
            Conflict: X0-STO-006 there is one already.
            Unavailable: no room, or no right to write.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(directory)
            neighbours = _alone(directory)
            try:
                new = directory / f"{FILE}.new"
                new.unlink(missing_ok=True)
                os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                connection = _connect(new)
                try:
                    _migrate(connection)
                    with connection.begin():
                        rows.write(connection, [Put(row) for row in first])
                finally:
                    _close(connection)
                os.rename(new, directory / FILE)
                _sync_directory(directory)
            finally:
                neighbours.close()
        except (OSError, DBAPIError) as error:
            raise _refusal(error, directory) from None

    def load(self, now_unix_s: int) -> Iterator[Row]:
        """All rows; of SVIDs that are still good one row per subject and node, with the maxima."""
        with self._reader.begin():
            self._log.begin(self._reader)
            yield from rows.read_all(self._reader, now_unix_s)

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
        with self._reader.begin():
            return tuple(self._reader.execute(query).scalars())

    # -------------------------------------------------------------- writing with others
    def commit(self, changes: Sequence[Change]) -> Learnt | None:
        """Write changes in one transaction; on the disk when this returns None.

        Returns:
            What others have written meanwhile, if these changes depend on it: nothing was written,
            and nobody else can write until the next `commit`, which does, or `release`.
        Raises:
            Unavailable: X0-STO-005 no room, X0-STO-004 otherwise; nothing was written.
        """
        try:
            if self._transaction is None:
                self._transaction = self._connection.begin()
                missed = self._log.missed(self._connection, changes)
                if missed is not None:
                    return missed
            rows.write(self._connection, changes)
            number, changed = self._log.add(self._connection, changes)
            self._transaction.commit()
            self._transaction = None
        except DBAPIError as error:
            self.release()
            raise _refusal(error, self.path.parent) from None
        told = self._log.changed != changed
        self._log.added(number, changed)
        if told:
            self.neighbours.ring()
        return None

    def release(self) -> None:
        """Nothing is to be written after all."""
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            transaction.rollback()

    def missed(self) -> Learnt | None:
        """What others have written since this was asked last.

        Raises:
            Unavailable: X0-STO-004 it can't be read.
        """
        try:
            with self._reader.begin():
                return self._log.missed(self._reader)
        except DBAPIError as error:
            raise _refusal(error, self.path.parent) from None

    def is_current(self) -> bool:
        """Whether nobody else has changed rows; quick, and good in any thread.

        Raises:
            Unavailable: X0-STO-004 it can't be read.
        """
        try:
            commits, changed = self._eye.execute("SELECT commits, changed FROM head").fetchone()
        except sqlite3.Error as error:
            raise _refusal(error, self.path.parent) from None
        return self._log.is_current(commits, changed)

    def leads(self) -> bool:
        """Whether this authority is to do what only time asks for."""
        return self.neighbours.leads()

    def is_alone(self) -> bool:
        """Whether no other authority runs that could lead."""
        return not self.neighbours.ring()

    def close(self) -> None:
        """Give the file back."""
        self.release()
        self._eye.close()
        _close(self._reader)
        _close(self._connection)
        self.neighbours.close()

    def _open(self) -> Connection:
        try:
            connection = _connect(self.path)
            (found,) = connection.exec_driver_sql("PRAGMA application_id").one()
            connection.rollback()
            if found != _APPLICATION_ID:
                raise BadConfig("X0-STO-007", f"{self.path} is not an authority's database")
            if _revision(connection) != schema.REVISION:
                self._migrate(connection)
        except (OSError, DBAPIError) as error:
            raise _refusal(error, self.path.parent) from None
        return connection

    def _read_only(self) -> tuple[Connection, sqlite3.Connection]:
        """For long questions beside what is written, and for a glance at the head."""
        try:
            eye = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            return _connect(self.path, "BEGIN"), eye
        except (sqlite3.Error, DBAPIError) as error:
            raise _refusal(error, self.path.parent) from None

    def _migrate(self, connection: Connection) -> None:
        if not self.neighbours.alone():
            raise Conflict(
                "X0-STO-009",
                "the store is to be changed for this release, and other authorities run on it",
                "stop them first; start them with the same release",
            )
        try:
            _migrate(connection)
        finally:
            self.neighbours.share()


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
def _connect(path: Path, begin: str = "BEGIN IMMEDIATE") -> Connection:
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
        connection.exec_driver_sql(begin)

    return engine.connect()


def _close(connection: Connection) -> None:
    connection.close()
    connection.engine.dispose()


def _revision(connection: Connection) -> str | None:
    with connection.begin():
        run = connection.exec_driver_sql
        if run("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").first() is None:
            return None
        return str(run("SELECT version_num FROM alembic_version").scalar())


def _migrate(connection: Connection) -> None:
    now = _revision(connection)
    if now is not None and now > schema.REVISION:
        raise BadConfig(
            "X0-STO-008",
            f"the store is of a newer release (revision {now})",
            "install that release",
        )
    from alembic import command  # A tenth of a second, needed once in a store's life.
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    with connection.begin():
        command.upgrade(config, "head")
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")


def _alone(directory: Path) -> Neighbours:
    """Alone in a directory without a store.

    Raises:
        Conflict: X0-STO-006 there is one by now.
    """
    until = time.monotonic() + BUSY_S
    while True:
        if (directory / FILE).exists():
            raise Conflict(
                "X0-STO-006",
                f"there is an authority in {directory} already",
                "choose another directory; nothing was changed",
            )
        try:
            neighbours = Neighbours(directory, _CREATOR)
        except Conflict:  # Another one makes it just now.
            if time.monotonic() > until:
                raise
            time.sleep(_CREATE_LOOK_S)
            continue
        if neighbours.alone() and not (directory / FILE).exists():
            return neighbours
        neighbours.close()


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
