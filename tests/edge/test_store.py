"""The store: what was committed is there again, and whatever is wrong has one clear line."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

import x0tta6bl4.edge.store.store as module
from tests.fakes.authority_keys import FakeKeys
from x0tta6bl4.core.authority.desk import AuthorityConfig
from x0tta6bl4.core.authority.life import genesis
from x0tta6bl4.core.authority.rows import (
    CaRow,
    Drop,
    Forget,
    IssuedRow,
    NodeRow,
    Put,
    Row,
    TokenRow,
)
from x0tta6bl4.edge.store import schema
from x0tta6bl4.edge.store.serials import Serials
from x0tta6bl4.edge.store.store import FILE, Store
from x0tta6bl4.wire.authority import Ban, Entry, Federation
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import trust_domain
from x0tta6bl4.wire.records import Name, Revocation, Rule

NOW = 1_790_000_000


def first_rows() -> tuple[Row, ...]:
    return genesis(
        trust_domain("example.org"), "main", NOW * 1_000_000, FakeKeys(), AuthorityConfig()
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "authority"
    Store.create(place, first_rows())
    return place


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    store = Store(place)
    yield store
    store.close()


def entry(key: str, node: str = "alpha") -> Entry:
    return Entry(
        id="spiffe://example.org/web", node=node, selectors=("unix:uid:1", "unix:path:/ü x"),
        ttl_s=60, address="[::1]:80", proxy_header=True, hint="an 'odd'; hint", key=key, revision=3,
        federates_with=("a.test", "b.test"),
    )  # fmt: skip


ROWS: tuple[Row, ...] = (
    NodeRow("alpha", b"\x04point", NOW, NOW + 1, True, NOW + 2, "why"),
    TokenRow("t1", b"digest", "", NOW, NOW + 600),
    TokenRow("t2", b"digest", "alpha", NOW, NOW + 600, NOW + 5, "alpha"),
    entry("e-1"),
    entry("e-2", "beta"),
    Federation(
        trust_domain="other.test",
        url="https://o/",
        profile="https_web",
        bundle=b"\x00{}",
        sequence=2**64 - 1,
        fetched_unix_s=NOW,
        next_unix_s=NOW + 1,
        failed="no",
    ),
    Name("web", "spiffe://example.org/web", ("spiffe://example.org/*",), True),
    Rule("r", "deny", ("spiffe://a/x",), ("spiffe://b/y", "spiffe://b/z")),
    Ban(subject="spiffe://example.org/bad", reason="", since_unix_s=NOW),
    Revocation("spiffe://example.org/bad", NOW + 9, "stolen", 0),
    Revocation("spiffe://example.org/bad", NOW + 9, "stolen", NOW),
)


def by_kind(rows: tuple[Row, ...] | list[Row]) -> list[str]:
    return sorted(map(repr, rows))


def test_all_rows_come_back_as_they_were(place: Path) -> None:
    store = Store(place)
    store.commit([Put(row) for row in ROWS])
    store.close()
    again = Store(place)
    rows = list(again.load(NOW))
    again.close()
    assert by_kind(rows) == by_kind((*first_rows(), *ROWS))
    (ca,) = [row for row in rows if type(row) is CaRow]
    assert (ca.private, ca.record_private) == (
        first_rows()[1].private, first_rows()[1].record_private,  # type: ignore[union-attr]
    )  # fmt: skip


def test_put_replaces_and_takes_nothing_else_with_it(store: Store) -> None:
    store.commit([Put(row) for row in ROWS])
    store.commit([Put(IssuedRow("1f", "spiffe://example.org/web", "alpha", "e-1", NOW, NOW + 60))])
    store.commit([Put(NodeRow("alpha", b"new", NOW, NOW))])
    rows = list(store.load(NOW))
    assert NodeRow("alpha", b"new", NOW, NOW) in rows
    assert ROWS[2] in rows  # Its token still says who used it.
    assert IssuedRow("", "spiffe://example.org/web", "alpha", "", NOW, NOW + 60) in rows


def test_drop_by_every_kind_of_key(store: Store) -> None:
    store.commit([Put(row) for row in ROWS])
    store.commit([
        Drop("Entry", "e-1"), Drop("Name", "web"), Drop("TokenRow", "t1"), Drop("Rule", "r"),
        Drop("Ban", "spiffe://example.org/bad"), Drop("BundleRow", "1"),
        Drop("Revocation", f"spiffe://example.org/bad {NOW}"), Drop("NodeRow", "alpha"),
        Drop("Federation", "other.test"),
    ])  # fmt: skip
    left = [row for row in store.load(NOW) if row in ROWS]
    assert left == [ROWS[4], ROWS[9]]


def test_issued_svids_are_summed_up_and_forgotten_after_their_end(store: Store) -> None:
    store.commit([Put(NodeRow("alpha", b"p", NOW, NOW))])
    subject = "spiffe://example.org/web"
    store.commit(
        [Put(IssuedRow(f"{n}", subject, "alpha", "e", NOW + n, NOW + 100 + n)) for n in range(5)]
        + [Put(IssuedRow("own", "spiffe://example.org/authority/main", "", "", NOW, NOW + 5))]
    )
    issued = [row for row in store.load(NOW + 50) if type(row) is IssuedRow]
    assert issued == [IssuedRow("", subject, "alpha", "", NOW + 4, NOW + 104)]
    store.commit([Forget(NOW + 103)])
    with sqlite3.connect(store.path) as raw:
        assert raw.execute("SELECT serial FROM issued ORDER BY serial").fetchall() == [
            ("3",), ("4",),
        ]  # fmt: skip
    raw.close()


def test_B4_a_serial_number_is_known_as_long_as_its_row_is_kept(store: Store) -> None:
    serials = Serials(store.path.parent)
    serial = 0xABCDEF01 << 120
    assert not serials.has(serial)
    store.commit([Put(NodeRow("alpha", b"p", NOW, NOW))])
    store.commit([Put(IssuedRow(f"{serial:x}", "spiffe://a/b", "alpha", "e", NOW, NOW + 100))])
    assert serials.has(serial)
    assert not serials.has(serial + 1)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        serials._connection.execute("DELETE FROM issued")
    store.commit([Forget(NOW + 103)])
    assert not serials.has(serial)
    serials.close()


def test_a_commit_that_fails_leaves_nothing_of_it(store: Store) -> None:
    with pytest.raises(X0Error, match="X0-STO-004.*CONSTRAINT"):
        store.commit(
            [
                Put(entry("e-9")),
                Put(IssuedRow("1", "spiffe://example.org/web", "nobody", "e-9", NOW, NOW + 9)),
            ]
        )
    assert not [row for row in store.load(NOW) if type(row) is Entry]
    store.commit([Put(entry("e-9"))])


def test_it_is_durable_private_and_checked(store: Store) -> None:
    store.commit([Put(entry("e-1"))])
    for path in store.path.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    pragma = store._connection.exec_driver_sql
    assert pragma("PRAGMA synchronous").scalar() == 2
    assert pragma("PRAGMA journal_mode").scalar() == "wal"
    assert pragma("PRAGMA foreign_keys").scalar() == 1
    store._connection.rollback()


# ------------------------------------------------------------------ refusals
def refusal(place: Path) -> str:
    with pytest.raises(X0Error) as caught:
        Store(place).close()
    assert caught.value.hint or caught.value.id == "X0-STO-007"
    assert "\n" not in str(caught.value)
    return caught.value.id


def test_no_store(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "X0-STO-001"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_database_that_others_can_read(place: Path, mode: int) -> None:
    (place / FILE).chmod(mode)
    assert refusal(place) == "X0-STO-002"


def test_a_directory_that_others_can_enter(place: Path) -> None:
    place.chmod(0o755)
    assert refusal(place) == "X0-STO-002"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_database_of_somebody_else(place: Path) -> None:
    os.chown(place / FILE, 65534, 65534)
    assert refusal(place) == "X0-STO-002"


def test_a_second_authority_on_one_directory(store: Store) -> None:
    assert refusal(store.path.parent) == "X0-STO-003"


def test_a_file_that_is_no_database(place: Path) -> None:
    (place / FILE).write_bytes(b"not a database, by far" * 1000)
    assert refusal(place) == "X0-STO-004"


def test_a_database_of_something_else(place: Path) -> None:
    (place / FILE).unlink()
    sqlite3.connect(place / FILE).executescript("CREATE TABLE t (x); PRAGMA user_version = 5")
    (place / FILE).chmod(0o600)
    assert refusal(place) == "X0-STO-007"


def test_a_store_of_a_newer_release(place: Path) -> None:
    raw = sqlite3.connect(place / FILE)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    assert refusal(place) == "X0-STO-008"


def test_creating_twice_changes_nothing(place: Path) -> None:
    before = (place / FILE).read_bytes()
    with pytest.raises(X0Error, match="X0-STO-006"):
        Store.create(place, first_rows())
    assert (place / FILE).read_bytes() == before


def test_a_creation_that_was_cut_off_is_begun_anew(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.mkdir(mode=0o700)
    (place / f"{FILE}.new").write_bytes(b"half")
    Store.create(place, first_rows())
    store = Store(place)
    assert by_kind(list(store.load(NOW))) == by_kind(first_rows())
    store.close()


def test_what_is_revoked_is_listed_by_its_serial_and_nothing_else(store: Store) -> None:
    web, db, other = (f"spiffe://example.org/{name}" for name in ("web", "db", "other"))
    node = "spiffe://example.org/node/alpha"

    def issued(serial: str, subject: str, node: str, start: int = 0, end: int = 100) -> Put:
        return Put(IssuedRow(serial, subject, node, "e", NOW + start, NOW + end))

    store.commit([Put(NodeRow(name, b"p", NOW, NOW)) for name in ("alpha", "beta")])
    store.commit([
        issued("aa", web, "beta", 0), issued("ab", web, "beta", 10, 300),
        issued("ac", web, "beta", 20), issued("ba", db, "beta"),
        issued("bb", db, "alpha", 0, 200), issued("bc", node, "alpha", 0, 150),
        issued("ca", other, "alpha", 0, 40), issued("cb", other, "beta"),
        Put(Revocation(web, NOW + 999, "", NOW + 20)), Put(Revocation(node, NOW + 999, "", 0)),
    ])  # fmt: skip
    assert store.withdrawn(NOW + 50, 10) == ("ab", "bb", "bc", "aa")
    assert store.withdrawn(NOW + 50, 2) == ("ab", "bb")
    store.commit([Put(Revocation(db, NOW + 999, "", 0))])
    assert set(store.withdrawn(NOW, 10)) == {"ab", "bb", "bc", "aa", "ca", "ba"}
    assert store.withdrawn(NOW + 999, 10) == ()


# ------------------------------------------------------------------ migrations
def test_migrations_lead_to_the_schema(place: Path) -> None:
    scripts = ScriptDirectory(str(Path(module.__file__).parent / "migrations"))
    assert scripts.get_current_head() == schema.REVISION
    engine = create_engine(f"sqlite:///{place / FILE}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.METADATA) == []
    engine.dispose()


def test_a_store_of_the_first_revision_is_migrated_and_its_ca_kept(place: Path) -> None:
    store = Store(place)
    store.commit([Put(entry("e-1"))])
    store.close()
    engine = create_engine(f"sqlite:///{place / FILE}")
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        connection.commit()
        names = {row[1] for row in connection.exec_driver_sql("PRAGMA table_info(ca_keys)")}
        assert "jwt_key" not in names
    engine.dispose()
    again = Store(place)
    rows = list(again.load(NOW))
    again.close()
    (ca,) = (row for row in rows if type(row) is CaRow)
    (before,) = (row for row in first_rows() if type(row) is CaRow)
    assert ca == msgspec.structs.replace(before, jwt_key="", jwt_public=b"", jwt_private=b"")
    (kept,) = (row for row in rows if type(row) is Entry)
    assert kept == msgspec.structs.replace(entry("e-1"), federates_with=())


# ------------------------------------------------------------------ full disk
def fill(store: Store) -> tuple[int, X0Error]:
    """Commit entries until there is no room; how many were acknowledged."""
    for n in range(100_000):
        try:
            store.commit([Put(entry(f"e-{n}-{m}")) for m in range(20)])
        except X0Error as error:
            return n, error
    raise AssertionError("the disk never filled")


def entries(store: Store) -> set[str]:
    return {row.key for row in store.load(NOW) if type(row) is Entry}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a tmpfs")
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", disk],
        check=False, capture_output=True, timeout=20,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("needs a kernel that lets us mount a tmpfs")
    try:
        place = disk / "a"
        Store.create(place, first_rows())
        store = Store(place)
        acknowledged, error = fill(store)
        assert error.id == "X0-STO-005"
        assert acknowledged > 5
        wanted = {f"e-{n}-{m}" for n in range(acknowledged) for m in range(20)}
        assert entries(store) == wanted  # Reading goes on.
        with pytest.raises(X0Error, match="X0-STO-005"):
            store.commit([Put(entry("more")), *[Put(entry(f"m{n}")) for n in range(500)]])
        assert entries(store) == wanted
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True, timeout=20)
        store.commit([Put(entry("more"))])
        store.close()
        again = Store(place)
        assert entries(again) == wanted | {"more"}
        again.close()
    finally:
        subprocess.run(["umount", disk], check=True, timeout=20)


def test_a_file_that_may_not_grow_refuses_and_loses_nothing(place: Path) -> None:
    script = (
        "import resource, sys\n"
        "from tests.edge.test_store import fill, entries, Store, Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "store = Store(Path(sys.argv[1]))\n"
        "n, error = fill(store)\n"
        "assert len(entries(store)) == 20 * n, n\n"
        "print(n, error.id)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(place)], check=False, capture_output=True, text=True,
        timeout=60, cwd=root, env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    acknowledged, id = done.stdout.split()
    assert id in ("X0-STO-004", "X0-STO-005")
    store = Store(place)
    assert len(entries(store)) == 20 * int(acknowledged)
    store.close()


# ------------------------------------------------------------------ power cut
WRITER = (
    "import os, sys\n"
    "from tests.edge.test_store import Store, Path, Put, entry\n"
    "store = Store(Path(sys.argv[1]))\n"
    "n = int(sys.argv[2])\n"
    "while True:\n"
    "    store.commit([Put(entry(f'{n}-a')), Put(entry(f'{n}-b'))])\n"
    "    os.write(1, b'%d\\n' % n)\n"
    "    n += 1\n"
)


def test_what_was_acknowledged_survives_sigkill_and_nothing_is_there_by_half(place: Path) -> None:
    root = Path(__file__).parents[2]
    acknowledged = 0
    for after in (1, 7, 40):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place), str(acknowledged + 1)], cwd=root,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
        )  # fmt: skip
        assert child.stdout is not None
        for _ in range(after):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split(b"\n")[:-1]
        acknowledged = int(rest[-1]) if rest else acknowledged
        child.wait(10)
        child.stdout.close()
        store = Store(place)
        found = entries(store)
        store.close()
        for n in range(1, acknowledged + 1):
            assert {f"{n}-a", f"{n}-b"} <= found
        assert len(found) % 2 == 0
        assert len(found) <= 2 * (acknowledged + 1)
        acknowledged = len(found) // 2
