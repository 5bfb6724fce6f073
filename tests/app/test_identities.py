"""Who is told which identities, when: entries, callers and changes without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from tests.fakes.ca import FakeCa
from x0tta6bl4.app import identities
from x0tta6bl4.app.identities import Identities
from x0tta6bl4.core.identity.selectors import Attributes
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.attest.process import Needs
from x0tta6bl4.edge.bundle.document import Document, JwtAuthority, encode
from x0tta6bl4.edge.jwt.svid import Signer
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.workload_api.words import Snapshot, Validated
from x0tta6bl4.wire.authority import Entry, Minted
from x0tta6bl4.wire.errors import Refused
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import Bundle, Federated, JwtKey

CA = FakeCa()
OTHER = TrustDomain("other.test")

T = TypeVar("T")


class Process:
    """A caller whose program can be changed."""

    def __init__(self, uid: int, gid: int = 100, path: str = "/bin/web") -> None:
        self.uid, self.gid, self.path = uid, gid, path
        self.pid = 1
        self.ended = False
        self.looks = 0

    def attributes(self, wanted: Needs) -> Attributes | Denied:
        if self.ended:
            return Denied("caller has ended")
        self.looks += wanted.path
        if wanted.path and not self.path:
            return Denied("not readable")
        return Attributes(self.uid, (self.gid,), self.path if wanted.path else "")


class FakeWorld:
    """What a test says that the agent knows."""

    def __init__(self) -> None:
        self.told: dict[str, Entry] = {}
        self.svids: dict[str, SvidItem] = {}
        self.revoked: set[str] = set()
        self.others: tuple[Federated, ...] = ()
        self.minted: list[tuple[str, tuple[str, ...]]] = []
        self.known: Bundle | None = Bundle(CA.domain, 1, (CA.issuer.certificate,), ())
        self.now_us = CA.clock.unix_us
        self.crl: tuple[bytes, ...] = ()
        self.answers = asyncio.Event()
        self.answers.set()

    def add(self, key: str, *selectors: str, id: str = "", **others: Any) -> None:
        found = id or key
        entry = Entry(id=f"spiffe://{CA.domain}/{found}", node="n1", selectors=selectors, key=key)
        self.told[key] = msgspec.structs.replace(entry, **others)
        if entry.id not in self.svids:
            svid = CA.svid(found)
            self.svids[entry.id] = SvidItem(svid.id, svid.chain, svid.key, svid.not_after_unix_s)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self.told.values())

    def svid(self, id: str) -> SvidItem | None:
        return self.svids.get(id)

    def bundle(self) -> Bundle | None:
        return self.known

    def federated(self) -> tuple[Federated, ...]:
        return self.others

    def crls(self) -> tuple[bytes, ...]:
        return self.crl

    def good(self, item: SvidItem) -> Verdict:
        return Denied("revoked") if item.id in self.revoked else Allowed(SpiffeId(item.id))

    async def mint(self, entry: str, audience: tuple[str, ...]) -> Minted:
        self.minted.append((entry, audience))
        token = f"token {len(self.minted)}"
        await self.answers.wait()
        now_s = self.now_us // 1_000_000
        return Minted(self.now_us, token, self.told[entry].id, now_s, now_s + 300)

    def unix_us(self) -> int:
        return self.now_us


def names(snapshot: Snapshot) -> list[str]:
    return [svid.id.rpartition("/")[2] for svid in snapshot.svids]


def soon(answer: Awaitable[T]) -> asyncio.Task[T]:
    async def wait() -> T:
        return await answer

    return asyncio.get_running_loop().create_task(wait())


class Table:
    """A world, its identities, and subscriptions that end with the story."""

    def __init__(self) -> None:
        self.world = FakeWorld()
        self.refused: list[str] = []
        self.identities = Identities(self.world, self.refused.append)
        self._open: list[AsyncIterator[Snapshot]] = []

    def subscribe(self, process: Process) -> AsyncIterator[Snapshot]:
        made = self.identities.subscribe(process)
        self._open.append(made)
        return made

    async def now(self, process: Process) -> Snapshot:
        return await anext(self.subscribe(process))

    def changed(self) -> None:
        self.identities.changed()

    async def close(self) -> None:
        for one in self._open:
            await one.aclose()  # type: ignore[attr-defined]
        self.identities.close()
        assert all(not c.members for c in self.identities._cohorts.values())


def told(story: Callable[[Table], Awaitable[None]]) -> None:
    async def main() -> None:
        table = Table()
        try:
            await story(table)
        finally:
            await table.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_all_entries_that_match_give_their_svids_the_most_selective_first() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("b", "unix:uid:7")
        world.add("a", "unix:uid:7")
        world.add("c", "unix:uid:7", "unix:gid:100")
        world.add("any", "unix:path:/bin/web")
        world.add("theirs", "unix:uid:8")
        world.add("group", "unix:gid:101")
        table.changed()
        await asyncio.sleep(0.01)
        assert names(await table.now(Process(7))) == ["c", "a", "any", "b"]
        assert names(await table.now(Process(7, path="/bin/other"))) == ["c", "a", "b"]
        assert names(await table.now(Process(8, gid=101, path=""))) == ["group", "theirs"]
        assert names(await table.now(Process(9))) == ["any"]
        assert table.refused == ["not readable"]

    told(story)


def test_SP_115_125_ids_and_hints_stand_once_and_long_hints_are_left_out_server() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7", hint="in")
        world.add("b", "unix:uid:7", hint="in")
        world.add("c", "unix:uid:7", hint="x" * 1025)
        world.add("d", "unix:uid:7", hint="out")
        world.add("e", "unix:uid:7", id="a", hint="again")
        table.changed()
        await asyncio.sleep(0.01)
        found = await table.now(Process(7))
        assert [(s.id[-1], s.hint) for s in found.svids] == [
            ("a", "in"), ("b", ""), ("c", ""), ("d", "out"),
        ]  # fmt: skip

    told(story)


def test_federated_bundles_are_those_that_the_entries_name() -> None:
    async def story(table: Table) -> None:
        world = table.world
        document = encode(Document(OTHER, (CA.issuer.certificate,)))
        world.others = (
            Federated("third.test", document, 1),
            Federated("other.test", document, 1),
            Federated("broken.test", b"{", 1),
        )
        world.add("a", "unix:uid:7", federates_with=("third.test", "broken.test"))
        world.add("b", "unix:uid:7", federates_with=("other.test", "unknown.test"))
        world.add("c", "unix:uid:8")
        table.changed()
        await asyncio.sleep(0.01)
        found = await table.now(Process(7))
        assert [b.trust_domain for b in found.federated] == ["other.test", "third.test"]
        assert found.own.trust_domain == CA.domain
        assert json.loads(found.own.jwks) == {"keys": []}
        assert not (await table.now(Process(8))).federated

    told(story)


def test_revoked_missing_and_ended_are_left_out_and_before_the_bundle_there_is_nothing() -> None:
    async def story(table: Table) -> None:
        world = table.world
        for key in ("a", "b", "c"):
            world.add(key, "unix:uid:7")
        world.revoked.add(world.told["a"].id)
        del world.svids[world.told["b"].id]
        table.changed()
        await asyncio.sleep(0.01)
        process = Process(7)
        assert names(await table.now(process)) == ["c"]
        process.ended = True
        assert names(await table.now(process)) == []
        assert table.refused == ["caller has ended"]
        world.known = None
        table.changed()
        await asyncio.sleep(0.05)
        assert names(await table.now(Process(7))) == []

    told(story)


def test_only_those_who_have_something_new_are_woken_and_callers_of_a_user_share_it() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7")
        world.add("b", "unix:uid:8")
        table.changed()
        await asyncio.sleep(0.01)
        sevens = [table.subscribe(Process(7)) for _ in range(identities.SLICE + 10)]
        eight = table.subscribe(Process(8))
        first = [await anext(one) for one in sevens]
        assert all(one is first[0] for one in first)
        await anext(eight)
        waiting = [soon(anext(one)) for one in sevens]
        other = soon(anext(eight))
        world.add("c", "unix:uid:7")
        table.changed()
        found = await asyncio.gather(*waiting)
        assert names(found[0]) == ["a", "c"]
        assert all(one is found[0] for one in found)
        assert not other.done()
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    told(story)


def test_a_new_call_hears_nothing_old_while_the_others_wait_for_more() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7")
        world.add("b", "unix:uid:7")
        table.changed()
        await asyncio.sleep(0.01)
        one = table.subscribe(Process(7))
        assert names(await anext(one)) == ["a", "b"]
        assert names(await table.now(Process(8))) == []
        del world.told["a"]
        world.add("c", "unix:uid:8")
        table.changed()
        table.changed()
        assert names(await table.now(Process(7))) == ["b"]
        assert names(await table.now(Process(8))) == ["c"]
        assert names(await anext(one)) == ["b"]

    told(story)


def test_entries_that_ask_for_the_program_have_it_looked_at_again_when_they_change() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7", "unix:path:/bin/web")
        table.changed()
        await asyncio.sleep(0.01)
        process = Process(7)
        one = table.subscribe(process)
        assert names(await anext(one)) == ["a"]
        process.path = "/bin/other"  # It has run another program since.
        world.add("b", "unix:uid:7")
        waiting = soon(anext(one))
        table.changed()
        assert names(await waiting) == ["b"]
        assert process.looks == 2

    told(story)


def test_SP_107_many_changes_in_a_row_are_few_messages_and_a_single_one_is_told_at_once() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7")
        one = table.subscribe(Process(7))
        table.changed()
        await asyncio.sleep(0.01)
        await anext(one)
        await asyncio.sleep(identities.QUIET_S)
        updates = 0
        waiting = soon(anext(one))
        for i in range(300):
            world.add(f"m{i}", "unix:uid:7", id="a" if i % 30 else f"m{i}")
            table.changed()
            if i % 2 == 0:
                await asyncio.sleep(0.0005)
            if waiting.done():
                if not updates:
                    assert i < 10
                updates += 1
                waiting = soon(anext(one))
        while len((await waiting).svids) < 11:
            updates += 1
            waiting = soon(anext(one))
        assert updates + 1 <= 10

    told(story)


def test_an_entry_whose_svid_is_still_to_come_is_nothing_to_pause_after() -> None:
    async def story(table: Table) -> None:
        table.world.add("api", "unix:uid:1", id="api")
        table.changed()
        given = table.subscribe(Process(1))
        assert names(await anext(given)) == ["api"]
        later = soon(anext(given))
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        for number in range(5):  # Each time an entry first, its SVID a moment later.
            name = f"late{number}"
            table.world.add(name, "unix:uid:1")
            svid = table.world.svids.pop(f"spiffe://{CA.domain}/{name}")
            table.changed()
            table.identities._timer.cancel()  # type: ignore[union-attr]
            table.identities._tell()
            assert not later.done()
            if number == 4:
                table.world.svids[svid.id] = svid
        table.changed()
        assert table.identities._timer is not None
        assert table.identities._timer.when() <= loop.time()
        assert "late4" in names(await later)

    told(story)


def test_one_user_who_asks_for_ever_more_tokens_keeps_nobody_waiting() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("greedy", "unix:uid:7")
        world.add("modest", "unix:uid:8")
        table.changed()
        await asyncio.sleep(0.01)
        world.answers.clear()  # The authority takes its time.
        greedy, modest = Process(7), Process(8)
        svids = (await table.now(greedy)).svids
        mint = table.identities.mint
        asked = [soon(mint(greedy, svids, (f"a{number}",))) for number in range(40)]
        await asyncio.sleep(0.01)
        assert 0 < len(world.minted) < 16
        other = soon(mint(modest, (await table.now(modest)).svids, ("x",)))
        await asyncio.sleep(0.01)
        assert world.minted[-1] == ("modest", ("x",))
        world.answers.set()
        await asyncio.gather(other, *asked)
        assert len(world.minted) == 41

    told(story)


def test_tokens_are_kept_for_half_of_their_life() -> None:
    async def story(table: Table) -> None:
        world = table.world
        world.add("a", "unix:uid:7")
        world.add("b", "unix:uid:7")
        table.changed()
        await asyncio.sleep(0.01)
        process = Process(7)
        svids = (await table.now(process)).svids
        mint = table.identities.mint
        assert await mint(process, svids, ("x",)) == ("token 1", "token 2")
        assert await mint(process, svids[1:], ("x",)) == ("token 2",)
        assert await mint(process, svids[:1], ("y",)) == ("token 3",)
        world.now_us += 149_000_000
        assert await mint(process, svids[:1], ("x",)) == ("token 1",)
        world.now_us += 1_000_000
        assert await mint(process, svids[:1], ("x",)) == ("token 4",)
        del world.told["a"]
        table.changed()
        await asyncio.sleep(0.1)
        with pytest.raises(Refused) as caught:
            await mint(process, svids[:1], ("new",))
        assert caught.value.id == "X0-WLA-011"

    told(story)


def test_SP_122_a_token_is_judged_by_the_bundle_of_its_own_trust_domain_server() -> None:
    async def story(table: Table) -> None:
        world = table.world
        ours, theirs = x509.new_key(), x509.new_key()
        now_s = world.now_us // 1_000_000
        world.known = Bundle(
            CA.domain, 2, (CA.issuer.certificate,), (), jwt_keys=(_jwt(ours, "k", now_s),)
        )
        foreign = Document(OTHER, (), (_authority(theirs, "k"),))
        world.others = (Federated(OTHER, encode(foreign), 1),)
        world.add("a", "unix:uid:7", federates_with=("other.test",))
        world.add("b", "unix:uid:8")
        table.changed()
        await asyncio.sleep(0.01)
        with_it, without = await table.now(Process(7)), await table.now(Process(8))
        own = Signer(x509.key_bytes(ours), "k").mint(CA.id("a"), ("x",), 60, now_s)
        other = SpiffeId("spiffe://other.test/z")
        far = Signer(x509.key_bytes(theirs), "k").mint(other, ("x",), 60, now_s)
        crossed = Signer(x509.key_bytes(theirs), "k").mint(CA.id("a"), ("x",), 60, now_s)
        validate = table.identities.validate
        good = validate(with_it, own, "x")
        assert isinstance(good, Validated)
        assert good.id == CA.id("a")
        assert isinstance(validate(with_it, far, "x"), Validated)
        assert validate(without, far, "x") == Denied("no bundle of the trust domain")
        assert isinstance(validate(with_it, crossed, "x"), Denied)
        assert isinstance(validate(with_it, own, "y"), Denied)

    told(story)


def _spki(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _jwt(key: Any, kid: str, now_s: int) -> JwtKey:
    return JwtKey(kid, "ES256", _spki(key), now_s + 3600)


def _authority(key: Any, kid: str) -> JwtAuthority:
    return JwtAuthority(kid, _spki(key))
