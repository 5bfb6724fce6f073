"""One store, several authorities: each writes on the newest rows or is told what it has missed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.test_store import NOW, ROWS, by_kind, entry, first_rows
from x0tta6bl4.core.authority.rows import (
    CaRow,
    Drop,
    Forget,
    IssuedRow,
    Learnt,
    NodeRow,
    Put,
    Row,
    SetRow,
    row_key,
)
from x0tta6bl4.edge.store.log import BEHIND_MAX, LOG_MAX
from x0tta6bl4.edge.store.store import FILE, Store
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Conflict, Unavailable
from x0tta6bl4.wire.records import Revocation

ROOT = Path(__file__).parents[2]
WEB = "spiffe://example.org/web"


def loaded(place: Path, name: str) -> Store:
    store = Store(place, name)
    list(store.load(NOW))
    return store


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    Store.create(place, first_rows())
    return place


@pytest.fixture
def two(place: Path) -> Iterator[tuple[Store, Store]]:
    a, b = loaded(place, "a"), loaded(place, "b")
    a.commit([Put(NodeRow("alpha", b"p", NOW, NOW))])
    assert b.missed() == Learnt((Put(NodeRow("alpha", b"p", NOW, NOW)),))
    yield a, b
    a.close()
    b.close()


def issued(serial: str, start: int = NOW) -> Put:
    return Put(IssuedRow(serial, WEB, "alpha", "e", start, start + 100))


def keys(store: Store) -> set[str]:
    return {row.key for row in store.load(NOW) if type(row) is Entry}


# ------------------------------------------------------------------ the line of commits
def test_who_has_missed_a_change_writes_nothing_until_it_has_heard_of_it(
    two: tuple[Store, Store],
) -> None:
    a, b = two
    assert a.commit([Put(entry("one"))]) is None
    assert not b.is_current()
    missed = b.commit([Put(entry("two"))])
    assert missed == Learnt((Put(entry("one")),))
    assert keys(a) == {"one"}
    assert b.commit([Put(entry("two"))]) is None  # Now it knows.
    assert b.is_current()
    assert a.missed() == Learnt((Put(entry("two")),))
    assert keys(a) == {"one", "two"}


def test_between_being_told_and_writing_nobody_else_writes(two: tuple[Store, Store]) -> None:
    a, b = two
    a.commit([Put(entry("one"))])
    assert b.commit([Put(entry("two"))]) is not None
    done = threading.Event()
    found: list[Learnt | None] = []

    def write() -> None:
        found.append(a.commit([Put(entry("three"))]))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.05)
    assert b.commit([Put(entry("two"))]) is None
    assert done.wait(5)
    thread.join()
    assert found == [Learnt((Put(entry("two")),))]
    assert a.commit([Put(entry("three"))]) is None


def test_who_wants_to_write_no_more_lets_the_others(two: tuple[Store, Store]) -> None:
    a, b = two
    a.commit([Put(entry("one"))])
    assert b.commit([Put(entry("two"))]) is not None
    b.release()
    assert a.commit([Put(entry("three"))]) is None
    assert keys(b) == {"one", "three"}


def test_svids_are_issued_beside_each_other_but_a_revocation_knows_them_all(
    two: tuple[Store, Store],
) -> None:
    a, b = two
    assert a.commit([issued("1")]) is None
    assert b.commit([issued("2", NOW + 5)]) is None
    assert b.is_current()
    revoked = [Put(Revocation(WEB, NOW + 999, "", NOW + 6))]
    assert a.commit(revoked) == Learnt((Put(IssuedRow("", WEB, "alpha", "", NOW + 5, NOW + 105)),))
    assert a.commit(revoked) is None
    assert b.commit([issued("3")]) == Learnt(
        (Put(IssuedRow("", WEB, "alpha", "", NOW, NOW + 100)), revoked[0])
    )


def test_who_has_missed_many_svids_is_told_long_before_the_log_ends(
    two: tuple[Store, Store],
) -> None:
    a, b = two
    a.commit([issued("1")])
    assert b.is_current()
    with a._connection.begin():
        for number in range(BEHIND_MAX):
            a._log._commits, _ = a._log.add(a._connection, [issued(f"{number:x}")])
    assert not b.is_current()
    learnt = b.missed()
    assert learnt is not None
    assert (len(learnt.changes), learnt.whole) == (BEHIND_MAX + 1, False)
    assert b.is_current()


def test_what_could_not_be_read_is_still_missed(two: tuple[Store, Store]) -> None:
    a, b = two
    a.commit([Put(entry("one"))])
    with a._connection.begin():
        a._connection.exec_driver_sql("ALTER TABLE entries RENAME TO away")
    with pytest.raises(Unavailable, match="X0-STO-004"):
        b.commit([Put(entry("two"))])
    with a._connection.begin():
        a._connection.exec_driver_sql("ALTER TABLE away RENAME TO entries")
    assert b.commit([Put(entry("two"))]) == Learnt((Put(entry("one")),))


def test_one_is_never_told_what_it_has_written_itself(two: tuple[Store, Store]) -> None:
    a, b = two
    a.commit([issued("1")])
    b.commit([issued("2")])  # It has not heard of the first.
    b.commit([Put(entry("mine"))])
    assert b.is_current()
    assert b.commit([Put(entry("mine too"))]) is None
    a.missed()
    a.commit([Put(entry("other"))])
    assert b.missed() == Learnt(
        (Put(IssuedRow("", WEB, "alpha", "", NOW, NOW + 100)), Put(entry("other")))
    )
    assert b.missed() is None


def test_every_kind_of_row_is_told_and_so_is_its_end(two: tuple[Store, Store]) -> None:
    a, b = two
    rows = (*ROWS, SetRow("names", 1, NOW, NOW + 9, (b"r",)))
    a.commit([Put(row) for row in rows])
    told = b.missed()
    assert told is not None
    assert by_kind([c.row for c in told.changes if type(c) is Put]) == by_kind(rows)
    drops: list[Drop | Forget] = [Drop(type(row).__name__, row_key(row)) for row in rows]
    a.commit([*drops, Forget(NOW)])
    told = b.missed()
    assert told is not None
    assert sorted(map(repr, told.changes)) == sorted(map(repr, [*drops, Forget(NOW)]))


def test_a_thousand_rows_are_told_at_once(two: tuple[Store, Store]) -> None:
    a, b = two
    new: list[Row] = [entry(f"e{n}") for n in range(1200)]
    a.commit([Put(row) for row in new])
    told = b.missed()
    assert told is not None
    assert set(told.changes) == set(map(Put, new))


def test_who_was_away_for_too_long_is_told_everything(two: tuple[Store, Store]) -> None:
    a, b = two
    a.commit([issued("1")])
    with a._connection.begin():
        a._connection.exec_driver_sql("UPDATE head SET commits = commits + ?", (LOG_MAX * 2,))
    a._log._commits += LOG_MAX * 2
    for _ in range(64):
        a.commit([Put(entry("new"))])
    found = b.missed()
    assert found is not None
    assert found.whole
    assert {row.key for change in found.changes if type(change) is Put
            for row in [change.row] if type(row) is Entry} == {"new"}  # fmt: skip
    assert b.is_current()
    assert b.commit([Put(entry("more"))]) is None
    (kept,) = a._eye.execute("SELECT count(*) FROM log").fetchone()
    assert kept <= LOG_MAX


def test_no_key_is_copied_into_the_log(two: tuple[Store, Store]) -> None:
    a, _ = two
    ca = next(row for row in first_rows() if type(row) is CaRow)
    a.commit([Put(ca)])
    told = b"".join(blob for (blob,) in a._eye.execute("SELECT changes FROM log"))
    assert ca.id.encode() in told
    assert ca.private not in told


# ------------------------------------------------------------------ who is there, who leads
def test_one_leads_until_its_end_then_another_does(place: Path) -> None:
    a, b = Store(place, "a"), Store(place, "b")
    assert (b.leads(), a.leads(), b.leads()) == (True, False, True)
    b.close()
    assert a.leads()
    a.close()


def test_a_change_rings_at_the_others_and_an_issue_does_not(two: tuple[Store, Store]) -> None:
    def rung() -> bool:
        return bool(select.select([b.neighbours], [], [], 0)[0])

    a, b = two
    b.neighbours.silence()
    a.commit([issued("1")])
    assert not rung()
    for n in range(50):  # Nobody listens; nobody is held up.
        a.commit([Put(entry(f"e{n}"))])
    assert rung()
    b.neighbours.silence()
    assert not rung()
    assert a.neighbours.ring() == ("b",)


def test_a_name_is_had_by_one(place: Path) -> None:
    a = Store(place, "a")
    with pytest.raises(Conflict, match="X0-STO-003"):
        Store(place, "a")
    a.close()
    Store(place, "a").close()


def test_what_is_in_the_way_of_its_bell_is_named(place: Path) -> None:
    (place / "bell-a").mkdir()
    with pytest.raises(Unavailable, match="X0-STO-004"):
        Store(place, "a")
    Store(place, "b").close()


def test_a_store_that_others_use_is_not_migrated(place: Path) -> None:
    import x0tta6bl4.edge.store.schema as schema

    a = Store(place, "a")
    before, schema.REVISION = schema.REVISION, "0004"  # type: ignore[misc]
    try:
        with pytest.raises(Conflict, match="X0-STO-009"):
            Store(place, "b")
    finally:
        schema.REVISION = before  # type: ignore[misc]
    a.close()


def test_of_many_who_make_it_at_once_one_does(tmp_path: Path) -> None:
    place, made, refused = tmp_path / "new", [], []

    def make(number: int) -> None:
        try:
            Store.create(place, first_rows())
            made.append(number)
        except Conflict as error:
            refused.append(error.id)
        Store(place, f"s{number}").close()

    threads = [threading.Thread(target=make, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(made), refused) == (1, ["X0-STO-006"] * 3)
    assert not (place / f"{FILE}.new").exists()


HOLDER = (
    "import sys\n"
    "from tests.edge.test_store_shared import *\n"
    "store = loaded(Path(sys.argv[1]), 'b')\n"
    "print(store.leads(), flush=True)\n"
    "sys.stdin.readline()\n"
    "print(store.commit([Put(entry('two'))]) is not None, flush=True)\n"
    "sys.stdin.readline()\n"
)


def test_sigkill_of_who_leads_and_has_the_store_reserved_gives_both_back(place: Path) -> None:
    a = loaded(place, "a")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)], cwd=ROOT, bufsize=0, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"True\n"
    assert not a.leads()
    assert a.commit([Put(entry("one"))]) is None
    child.stdin.write(b"\n")
    assert child.stdout.readline() == b"True\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=10)
    assert a.leads()
    assert a.neighbours.ring() == ()
    assert a.commit([Put(entry("three"))]) is None
    assert keys(a) == {"one", "three"}
    a.close()
