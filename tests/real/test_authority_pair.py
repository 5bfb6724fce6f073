"""Two authorities of one trust domain, one of them killed at any moment, again and again.

Operators and nodes work at both.  Whatever was acknowledged at one is there at once at the other,
whoever dies; and of all that was ever published no two pieces say different things under one
number.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography.x509 import load_der_x509_certificate

from tests.fakes.authority_forks import Forks
from tests.fakes.authority_world import DOMAIN, client, eventually, wanted
from tests.real.test_authority import SELECTORS, all_entries, all_names, kept_serials
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admission import Admission, Admitted
from x0tta6bl4.app.authority import ADMIN_SOCKET
from x0tta6bl4.app.mesh import free_ports
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.edge.authority_api.client import AdminClient
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.records import Name, decode_record
from x0tta6bl4.wire.token import read_token

NAMES = ("a", "b")
ENOUGH_S = 10.0


class Pair:
    """Two authorities on one store, in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.address: dict[str, str] = {}
        self.forks: dict[str, Forks] = {}
        for name, port in zip(NAMES, free_ports(2), strict=True):
            self.address[name] = f"127.0.0.1:{port}"
            settings = cfg.AuthoritySettings(
                trust_domain=DOMAIN, state_dir=str(root / name), name=name, store=str(self.store),
                listen=self.address[name], heartbeat_s=1,
            )  # fmt: skip
            config = root / f"{name}.toml"
            config.write_text(cfg.dump(settings))
            self.forks[name] = Forks(config, root / name)

    def operator(self, name: str) -> AdminClient:
        return AdminClient(str(self.root / name / ADMIN_SOCKET))

    def start(self, *names: str) -> None:
        for name in names:
            self.forks[name].start()

    def kill(self, name: str) -> None:
        self.forks[name].kill()
        self.forks[name].wait()

    def close(self) -> None:
        for forks in self.forks.values():
            forks.close()


class Ledger:
    """What both have acknowledged, and everything that either has published."""

    def __init__(self) -> None:
        self.sure: dict[str, words.Entry | None] = {}
        self.maybe: dict[str, words.Entry | None] = {}
        self.names: set[str] = set()
        self.serials: set[str] = set()
        self.published: dict[tuple[str, str, int], bytes] = {}
        self.done = {"rounds": 0, "seen at once by the other": 0, "bans felt": 0, "svids": 0}
        self.left = 0
        self.enough = asyncio.Event()
        self.ready = asyncio.Barrier(1)
        """Everybody is connected: kills in the midst of that are for other tests."""
        self.stopping = False

    def note(self, what: str) -> None:
        self.done[what] += 1
        self.left -= 1
        if self.left <= 0:
            self.enough.set()

    async def acknowledged(self, number: int) -> None:
        """Wait for so many more acknowledgements."""
        self.left, self.enough = number, asyncio.Event()
        async with asyncio.timeout(ENOUGH_S):
            await self.enough.wait()

    def check(self, entries: dict[str, words.Entry], names: set[str]) -> None:
        for key, asked in self.maybe.items():  # Nobody was told: it was done, or it was not.
            found = entries.get(key)
            before = self.sure.get(key)
            said = found and (found.hint, found.node)
            assert found == before or said == (asked and (asked.hint, asked.node)), key
            self.sure[key] = found
        self.maybe.clear()
        assert entries == {key: entry for key, entry in self.sure.items() if entry is not None}
        assert self.names <= names

    def see(self, update: words.Update, newest: dict[str, int]) -> None:
        """Numbers grow, and each is used for one content, whoever has signed it."""
        for data in update.records:
            record = decode_record(data)
            digest = hashlib.sha256(record.body).digest()
            key = (record.kind, record.name, record.generation)
            assert self.published.setdefault(key, digest) == digest, key
            if record.kind == "manifest":
                assert record.generation >= newest.get(record.name, 0), record.name
                newest[record.name] = record.generation


# ------------------------------------------------------------------ who works at them
async def operate(pair: Pair, at: str, other: str, who: str, ledger: Ledger, draw: Random) -> None:
    """Create, change and delete at one, and look at the other."""
    async with pair.operator(at) as admin, pair.operator(other) as beside:
        await asyncio.gather(admin.health(), beside.health())
        await ledger.ready.wait()
        for n in range(100_000):
            if ledger.stopping:
                return
            key = f"{who}-{n}"
            entry = words.Entry(id=f"spiffe://{DOMAIN}/{key}", node="alpha", selectors=SELECTORS,
                                key=key)  # fmt: skip
            ledger.maybe[key] = entry
            made = ledger.sure[key] = await admin.entry_create(entry)
            del ledger.maybe[key]
            if draw.random() < 0.4:
                change = ledger.maybe[key] = words.Entry(
                    id=made.id, node="beta", selectors=SELECTORS, key=key, hint="new"
                )
                made = ledger.sure[key] = await admin.entry_update(change)
                del ledger.maybe[key]
            if draw.random() < 0.5:
                with contextlib.suppress(Unavailable):
                    assert await beside.entry_show(key) == made
                    ledger.note("seen at once by the other")
            if draw.random() < 0.3:
                ledger.maybe[key] = None
                await admin.entry_delete(key)
                ledger.sure[key] = None
                del ledger.maybe[key]
            if draw.random() < 0.3:
                await admin.name_create(Name(key, made.id, ()))
                ledger.names.add(key)
            ledger.note("rounds")


async def issue(pair: Pair, at: str, me: Admitted, ledger: Ledger) -> None:
    """SVIDs for the node itself, as fast as they come."""
    async with client(pair.address[at], me.svid, me.bundle) as connection:
        await connection.issue(wanted(""))
        await ledger.ready.wait()
        while not ledger.stopping:
            for one in await connection.issue(wanted(*[""] * 8)):
                serial = load_der_x509_certificate(one.chain[0]).serial_number
                ledger.serials.add(f"{serial:x}")
            ledger.note("svids")


async def ban(
    pair: Pair, at: str, other: str, who: str, me: Admitted, ledger: Ledger, draw: Random
) -> None:
    """An entry made at one is issued for by the other, and not any more once it is banned."""
    async with (
        pair.operator(at) as admin,
        client(pair.address[other], me.svid, me.bundle) as connection,
    ):
        await asyncio.gather(admin.health(), connection.issue(wanted("")))
        await ledger.ready.wait()
        while not ledger.stopping:
            key = f"ban-{who}-{draw.randrange(2**40):x}"
            id = f"spiffe://{DOMAIN}/{key}"
            entry = words.Entry(id=id, node="alpha", selectors=SELECTORS, key=key)
            ledger.maybe[key] = entry
            ledger.sure[key] = await admin.entry_create(entry)
            del ledger.maybe[key]
            (one,) = await connection.issue(wanted(key))
            assert one.chain, one.refused
            await admin.revoke(words.Revoke(subject=id))
            (one,) = await connection.issue(wanted(key))
            assert one.refused == "subject is banned"
            ledger.note("bans felt")


async def watch(pair: Pair, at: str, me: Admitted, ledger: Ledger) -> None:
    """Everything that one says to its nodes, until it or the round ends."""
    newest: dict[str, int] = {}
    async with client(pair.address[at], me.svid, me.bundle) as connection:
        async for update in connection.watch():
            if not newest:
                await ledger.ready.wait()
            ledger.see(update, newest)


@contextlib.asynccontextmanager
async def running(jobs: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Jobs that end by themselves, or with the authority that they need."""

    async def guarded(job: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(Unavailable):
            await job

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(guarded(job))
        yield


async def one_round(pair: Pair, me: Admitted, ledger: Ledger, draw: Random, number: int) -> str:
    """Work at both, kill one in the midst of it; the other goes on.  Who was killed."""
    victim = draw.choice(NAMES)
    ledger.stopping, ledger.ready = False, asyncio.Barrier(11)
    jobs, watches = [], []
    for at, other in (NAMES, NAMES[::-1]):
        jobs += [operate(pair, at, other, f"{at}{number}{i}", ledger, draw) for i in range(2)]
        jobs += [issue(pair, at, me, ledger), ban(pair, at, other, f"{number}", me, ledger, draw)]
        watches.append(asyncio.create_task(watch(pair, at, me, ledger)))
    async with running(jobs):
        await ledger.ready.wait()
        await ledger.acknowledged(draw.randrange(1, 25))
        await asyncio.sleep(draw.uniform(0, 0.01))
        await asyncio.to_thread(pair.kill, victim)
        await ledger.acknowledged(5)  # Of the one that is left.
        ledger.stopping = True
    for task in watches:
        task.cancel()
    for ended in await asyncio.gather(*watches, return_exceptions=True):
        assert isinstance(ended, Unavailable | asyncio.CancelledError), ended
    return victim


async def same(pair: Pair, ledger: Ledger) -> None:
    """Both have all that was acknowledged, and the same of everything."""

    async def all_of(name: str) -> list[Any]:
        async with pair.operator(name) as admin:
            entries = await all_entries(admin)
            ledger.check(entries, await all_names(admin))
            health = await admin.health()
            sequences = {k: v for k, v in health.sequences.items() if k != "heartbeat"}
            return [entries, await all_names(admin), await admin.bundle_show(),
                    await admin.revocation_list(), sequences]  # fmt: skip

    async def are() -> bool:  # Not where one has signed something in between.
        return await all_of("a") == await all_of("b")

    await eventually(are, ENOUGH_S)


async def _have_left() -> bool:
    """Whether our ends of the last connections have noticed."""
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    return all(transport._sock is None for transport in transports.values())


def killed(root: Path, rounds: int) -> Ledger:
    draw, ledger, pair = Random("authority/pair"), Ledger(), Pair(root)
    victims = []

    async def enrol() -> Admitted:
        async with pair.operator("a") as admin:
            made = await admin.token_create(words.TokenCreate(node="alpha"))
        ways = (pair.address["b"],)  # Of the one that has not made the token.
        wallet = Wallet(root / "node")
        return await Admission(DOMAIN, NodeName("alpha"), wallet, ways, (), root).admit(
            read_token(made.token)
        )

    async def story() -> None:
        await asyncio.to_thread(pair.start, *NAMES)
        me = await enrol()
        for number in range(rounds):
            victims.append(await one_round(pair, me, ledger, draw, number))
            await asyncio.to_thread(pair.start, victims[-1])
            await same(pair, ledger)
        for name in NAMES:
            await asyncio.to_thread(pair.kill, name)
        await eventually(_have_left, ENOUGH_S)

    try:
        asyncio.run(story())
    finally:
        pair.close()
    assert ledger.serials <= kept_serials(pair.store)
    print(
        f"killed {victims.count('a')} and {victims.count('b')} times: {ledger.done}, "
        f"{len(ledger.serials)} SVIDs of the node, {len(ledger.published)} records, 0 lost"
    )
    return ledger


def test_nothing_acknowledged_is_lost_when_one_of_two_is_killed(tmp_path: Path) -> None:
    ledger = killed(tmp_path, 20)
    assert all(count > 5 for count in ledger.done.values())
    assert ledger.serials


@pytest.mark.night
@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_when_one_of_two_is_killed_200_times(tmp_path: Path) -> None:
    killed(tmp_path, 200)
