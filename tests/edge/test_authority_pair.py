"""Two authorities on one store, in this process: what one has written the other knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.authority_world import DOMAIN, World, eventually, refusal, wanted, world
from x0tta6bl4.core.authority.rows import Learnt
from x0tta6bl4.edge.store.store import Store
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.records import Name, decode_record

Story = Callable[[World, World], Awaitable[None]]


@contextlib.asynccontextmanager
async def two(root: Path) -> AsyncIterator[tuple[World, World]]:
    (root / "a").mkdir()
    (root / "b").mkdir()
    store = str(root / "store")
    async with (
        world(root / "a", name="a", store=store) as a,
        world(root / "b", name="b", store=store) as b,
    ):
        yield a, b


def play(root: Path, story: Story) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), two(root) as (a, b):
            await story(a, b)

    asyncio.run(run())


def deaf(here: World) -> None:
    """It neither hears the bell nor looks by itself any more."""
    here.process.service.wake = lambda: None  # type: ignore[method-assign]
    here.process.service._look_at = float("inf")


# ------------------------------------------------------------------ nothing old is said or done
def test_a_question_is_answered_with_what_another_has_acknowledged(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        deaf(b)
        await a.enrol("alpha")
        entry = await a.entry("alpha")
        assert await b.admin.entry_show(entry.key) == entry
        await a.admin.entry_delete(entry.key)
        assert (await refusal(b.admin.entry_show(entry.key))).id == "X0-AUT-068"
        assert (await b.admin.node_show("alpha")).name == "alpha"
        assert (await b.admin.health()).id == f"spiffe://{DOMAIN}/authority/b"

    play(tmp_path, story)


def test_nothing_is_issued_or_minted_for_who_was_banned_at_another(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        deaf(b)
        me = await a.enrol("alpha")
        entry = await a.entry("alpha")
        async with b.client(me) as connection:
            (one,) = await connection.issue(wanted(entry.key))
            assert one.chain
            assert (await connection.mint(entry.key, ("x",))).token
            await a.admin.revoke(words.Revoke(subject=entry.id))
            assert (await connection.mint(entry.key, ("x",))).refused == "subject is banned"
            (one,) = await connection.issue(wanted(entry.key))
            assert one.refused == "subject is banned"
            await a.admin.node_evict(words.NodeEvict("alpha"))
            assert (await refusal(connection.issue(wanted("")))).id in ("X0-AUT-042", "X0-AUT-008")

    play(tmp_path, story)


def test_a_revocation_here_lasts_as_long_as_what_another_has_issued(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        deaf(a)
        me = await a.enrol("alpha")
        entry = await a.admin.entry_create(
            words.Entry(id=f"spiffe://{DOMAIN}/web", node="alpha", selectors=("unix:uid:1",),
                        ttl_s=3600)
        )  # fmt: skip
        async with b.client(me) as connection:
            (one,) = await connection.issue(wanted(entry.key))
        revoked = await a.admin.revoke(words.Revoke(subject=entry.id))
        assert revoked.until_unix_s >= one.not_after_unix_s

    play(tmp_path, story)


def test_a_token_is_spent_once(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        deaf(b)
        for number in range(5):
            token = await a.token()
            tries = [here.admission(f"{name}{number}").admit(token)
                     for here, name in ((a, "x"), (b, "y"))]  # fmt: skip
            done = await asyncio.gather(*tries, return_exceptions=True)
            assert sorted(type(one).__name__ for one in done) == ["Admitted", "Refused"]
            assert "X0-AUT-040" in str(next(one for one in done if isinstance(one, X0Error)))
        assert sum(here.process.statistics()["superseded"] for here in (a, b)) > 0

    play(tmp_path, story)


def test_a_name_is_given_once_and_sequences_never_fork(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        id, made = f"spiffe://{DOMAIN}/web", []

        async def create(here: World, name: str) -> None:
            with contextlib.suppress(X0Error):
                await here.admin.name_create(
                    Name(name, id, (f"spiffe://{DOMAIN}/{here.root.name}",))
                )
                made.append(name)

        seen: dict[int, set[bytes]] = {}
        for number in range(20):
            await asyncio.gather(*(create(here, f"n{number}") for here in (a, b)))
            for here in (a, b):
                row = here.process._machine.state.sets["names"]
                seen.setdefault(row.sequence, set()).add(row.records[0])
        assert made == [f"n{number}" for number in range(20)]
        assert all(len(contents) == 1 for contents in seen.values())
        assert (await a.admin.name_list(words.Page())) == (await b.admin.name_list(words.Page()))

    play(tmp_path, story)


# ------------------------------------------------------------------ nodes hear of it
def test_nodes_of_one_are_told_what_was_changed_at_the_other(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        me = await a.enrol("alpha")
        async with b.client(me) as connection:
            updates = connection.watch()
            await anext(updates)
            entry = await a.entry("alpha")
            assert (await anext(updates)).entries == (entry,)
            await a.admin.entry_delete(entry.key)
            assert (await anext(updates)).gone == (entry.key,)
            await a.admin.node_drain(words.NodeDrain("alpha", True))
            assert (await anext(updates)).draining
            await a.admin.name_create(Name("web", entry.id, ()))
            names = [decode_record(data).name for data in (await anext(updates)).records]
            assert names == ["names"]
            await a.admin.renew_all()
            assert (await anext(updates)).renew_issued_before_unix_s
            await a.admin.node_evict(words.NodeEvict("alpha"))
            with pytest.raises(Unavailable):
                await _all_of(updates)

    play(tmp_path, story)


async def _all_of(updates: AsyncIterator[words.Update]) -> None:
    async for _ in updates:
        pass


def test_who_was_away_for_long_says_everything_again(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        me = await a.enrol("alpha")
        first = await a.entry("alpha", "first")
        gone = await a.entry("alpha", "gone")
        async with b.client(me) as connection:
            updates = connection.watch()
            assert set((await anext(updates)).entries) == {first, gone}
            await eventually(lambda: not b.process.service._queue)
            deaf(b)
            await a.admin.entry_delete(gone.key)
            _forget_the_log(a)
            assert (await b.admin.entry_list(words.Page())).entries == (first,)
            update = await anext(updates)
            assert (update.full, update.entries) == (True, (first,))

    play(tmp_path, story)


def _forget_the_log(here: World) -> None:
    store: Store = here.process._store
    with store._connection.begin():
        store._connection.exec_driver_sql("DELETE FROM log")


# ------------------------------------------------------------------ who leads
def test_one_signs_heartbeats_and_both_pass_them_on(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        me = await a.enrol("alpha")
        leads = [here.process.service.leading for here in (a, b)]
        assert leads == [True, False]
        beats: list[set[bytes]] = []
        for here in (a, b):
            async with here.client(me) as connection:
                update = await anext(connection.watch())
                beats.append({d for d in update.records if decode_record(d).name == "heartbeat"})
        assert beats[0] == beats[1]
        health = await b.admin.health()
        assert (health.leading, health.others) == (False, ("a",))
        assert b.process.statistics()["learnt"]
        assert not b.process.statistics()["behind"]
        assert beats[0]

    play(tmp_path, story)


def test_the_other_leads_at_the_end_of_the_first(tmp_path: Path) -> None:
    async def story() -> None:
        store = str(tmp_path / "store")
        async with contextlib.AsyncExitStack() as first:
            a = await first.enter_async_context(world(tmp_path / "a", name="a", store=store))
            assert a.process.service.leading
            async with world(tmp_path / "b", name="b", store=store) as b:
                assert not b.process.service.leading
                before = b.process._machine.state.sets["heartbeat"].generation
                await first.aclose()
                await eventually(lambda: b.process.service.leading)
                beat = b.process._machine.state.sets
                await eventually(lambda: beat["heartbeat"].generation > before)

    for name in "ab":
        (tmp_path / name).mkdir()
    asyncio.run(story())


def test_what_a_dead_colleague_has_not_signed_any_more_the_leader_signs(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        assert a.process.service.leading
        before = a.process._machine.state.sets["names"].sequence
        b.process._machine._publish_at = b.process.service._clock() + 3600 * 10**6  # type: ignore[assignment]
        await b.admin.name_create(Name("web", f"spiffe://{DOMAIN}/web", ()))
        await eventually(lambda: a.process._machine.state.sets["names"].sequence > before, 10)
        assert a.process._machine.statistics()["refused"] == 0

    play(tmp_path, story)


# ------------------------------------------------------------------ the store is gone
def test_a_heartbeat_that_can_not_be_written_is_sent_by_the_only_one(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        service, store = a.process.service, a.process._store
        told: list[str] = []

        def tell(fact: Any) -> None:
            told.extend({"heartbeat"} & {fact.set})

        service._tell_all = tell  # type: ignore[method-assign, assignment]

        def full(changes: object) -> Learnt | None:
            raise Unavailable("X0-STO-005", "no room")

        async def beat() -> None:
            before = service.counts["commits_failed"]
            service._retry_at = 0.0
            machine: Any = a.process._machine
            machine._heartbeat_at = machine.deadline = service._clock()
            service.wake()
            await eventually(lambda: service.counts["commits_failed"] > before)
            await asyncio.sleep(0)

        store.commit = full  # type: ignore[method-assign]
        await beat()
        assert told == []
        (tmp_path / "store" / "bell-b").unlink()  # As if it had ended.
        await beat()
        assert told == ["heartbeat"]

    play(tmp_path, story)


def test_who_can_not_look_at_the_store_says_and_does_nothing(tmp_path: Path) -> None:
    async def story(a: World, b: World) -> None:
        me = await a.enrol("alpha")
        entry = await a.entry("alpha")
        store: Any = b.process._store

        def broken(*_: object) -> Learnt | None:
            raise Unavailable("X0-STO-004", "the database can't be used")

        async with b.client(me) as connection:
            await connection.issue(wanted(entry.key))
            store.is_current = store.missed = store.commit = broken
            assert (await refusal(connection.mint(entry.key, ("x",)))).id == "X0-STO-004"
            assert (await refusal(connection.issue(wanted(entry.key)))).id in (
                "X0-STO-004", "X0-AUT-082",
            )  # fmt: skip
            assert (await refusal(b.admin.entry_list(words.Page()))).id == "X0-STO-004"
            del store.is_current, store.missed, store.commit

            async def again() -> bool:
                with contextlib.suppress(Unavailable):
                    return bool((await connection.issue(wanted(entry.key)))[0].chain)
                return False

            await eventually(again)

    play(tmp_path, story)
