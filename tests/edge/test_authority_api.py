"""The authority's API over real TLS and sockets: who gets in, what is pushed, what is refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.authority_world import (
    DOMAIN,
    World,
    client,
    eventually,
    play,
    refusal,
    wanted,
    world,
)
from tests.fakes.ca import new_svid
from x0tta6bl4.app.admission import Admission, Unjudged
from x0tta6bl4.app.authority import ADMIN_SOCKET
from x0tta6bl4.core.authority.rows import EntriesChanged, Published
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.authority_api import service as service_module
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.authority_api.service import Watcher
from x0tta6bl4.edge.bundle.document import of_bundle
from x0tta6bl4.edge.jwt.svid import JwtSvid, judge_token
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.edge.tls.crl import withdrawn
from x0tta6bl4.edge.tls.judge import Judge, allow_all
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire import errors
from x0tta6bl4.wire.errors import Conflict, Unavailable
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.records import (
    Name,
    decode_bundle,
    decode_crls,
    decode_manifest,
    decode_names,
    decode_record,
)


# ------------------------------------------------------------------ enrolment
def test_a_node_enrols_watches_and_is_told_what_changes(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        assert (me.how, me.svid.id) == ("enrolled", "spiffe://example.org/node/alpha")
        first = await here.entry("alpha")
        async with here.client(me) as connection:
            updates = connection.watch()
            update = await anext(updates)
            assert (update.full, update.entries) == (True, (first,))
            assert len(update.records) == 7
            await here.entry("beta", "other")
            second = await here.entry("alpha", "db")
            update = await anext(updates)
            assert (update.full, update.entries, update.gone) == (False, (second,), ())
            await here.admin.entry_delete(first.key)
            assert (await anext(updates)).gone == (first.key,)
            name = Name("web", first.id, ())
            await here.admin.name_create(name)
            (data,) = (await anext(updates)).records
            assert decode_names(decode_manifest(decode_record(data).body).inline) == (name,)
            assert (await here.admin.node_show("alpha")).connected
            await here.admin.node_drain(words.NodeDrain("alpha"))
            assert (await anext(updates)).draining
            await here.admin.renew_all()
            update = await anext(updates)
            assert update.renew_issued_before_unix_s
            assert update.draining
            (issued,) = await connection.issue(wanted(second.key))
            assert issued.id == second.id
            assert connection.peer().group == "X25519MLKEM768"

    play(tmp_path, story)


def test_a_node_mints_tokens_that_the_bundle_verifies(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        alpha, beta = await here.enrol("alpha"), await here.enrol("beta")
        entry = await here.entry("alpha")
        bundle = of_bundle(decode_bundle(alpha.bundle))
        async with here.client(alpha) as mine, here.client(beta) as others:
            made = await mine.mint(entry.key, ("db", "cache"))
            svid = judge_token(made.token, "db", {DOMAIN: bundle}, unix_us())
            assert isinstance(svid, JwtSvid)
            assert (svid.id, svid.audience) == (entry.id, ("db", "cache"))
            assert svid.expires_unix_s - svid.issued_unix_s == 300
            assert svid.expires_unix_s == made.expires_unix_s
            assert (await others.mint(entry.key, ("db",))).refused == "entry of another node"
            assert (await refusal(mine.mint(entry.key, ()))).id == "X0-AUT-048"
            await here.admin.revoke(words.Revoke(subject=entry.id))
            assert (await mine.mint(entry.key, ("db",))).refused == "subject is banned"
        assert here.process.statistics()["minted"] == 1

    play(tmp_path, story)


def test_what_is_revoked_stands_in_a_list_that_the_ca_has_signed(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        alpha = await here.enrol("alpha")
        entry = await here.entry("alpha")
        anchors = decode_bundle(alpha.bundle).anchors
        async with here.client(alpha) as mine:

            async def serial() -> int:
                (issued,) = await mine.issue(wanted(entry.key))
                return x509.parse(issued.chain[0]).certificate.serial_number

            async def listed() -> set[int]:
                found, believed = withdrawn((await here.admin.crl_show()).lists, anchors)
                assert all(believed)
                return {number for _, number in found}

            old = await serial()
            await eventually(lambda: len(here.process._machine.state.crls) == 1)
            assert await listed() == set()
            await here.admin.revoke(words.Revoke(subject=entry.id, ban=False))

            async def is_listed() -> bool:
                return await listed() == {old}

            await eventually(is_listed)
            await serial()  # The new one is good.
            await here.admin.renew_all()
            await here.admin.revoke(words.Revoke(subject="spiffe://example.org/other"))
            await asyncio.sleep(0)
            assert await listed() == {old}
            update = await anext(mine.watch())
            names = {r.name: r for r in map(decode_record, update.records)}
            lists = decode_crls(decode_manifest(names["crls"].body).inline)
            assert {number for _, number in withdrawn(lists, anchors)[0]} == {old}

    play(tmp_path, story)


def test_a_token_is_good_once_and_for_its_node(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        token = await here.token("alpha")
        await here.admission("alpha").admit(token)
        again = await refusal(here.admission("thief").admit(token))
        assert (again.id, "used before" in again.what) == ("X0-AUT-040", True)
        other = await refusal(here.admission("beta").admit(await here.token("gamma")))
        assert (other.id, "another node" in other.what) == ("X0-AUT-040", True)
        short = await here.admin.token_create(words.TokenCreate(node="late", ttl_s=1))
        await asyncio.sleep(1.1)
        late = await refusal(here.admission("late").admit(words_token(short.token)))
        assert (late.id, "expired" in late.what) == ("X0-AUT-040", True)

    play(tmp_path, story)


def test_a_neighbour_that_plays_authority_gets_no_secret(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        async with world(tmp_path / "impostor") as impostor:
            token = await here.token("alpha")
            astray = Admission(DOMAIN, NodeName("alpha"), here.wallet("alpha"),
                               (impostor.address,), (), tmp_path)  # fmt: skip
            astray._direct = (impostor.address,)
            error = await refusal(astray.admit(msgspec.structs.replace(token, authorities=())))
            assert error.id in ("X0-RUN-033", "X0-AUT-021")
            assert not [c for c in impostor.process.statistics() if c.startswith("calls|Enrol")]
            assert (await here.admission("alpha").admit(token)).how == "enrolled"

    (tmp_path / "impostor").mkdir(mode=0o700)
    play(tmp_path, story)


def test_an_impostor_who_has_the_bundle_lacks_its_key(tmp_path: Path) -> None:
    """It answers Trust with the true bundle, but can't prove itself by it afterwards."""

    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        async with world(tmp_path / "impostor") as impostor:
            async with client(impostor.address, None, me.bundle) as connection:
                error = await refusal(connection.challenge())
            assert "untrusted issuer" in error.what

    (tmp_path / "impostor").mkdir(mode=0o700)
    play(tmp_path, story)


def test_a_node_returns_by_its_key_after_its_svid_has_ended(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.enrol("alpha")
        wallet = here.wallet("alpha")
        assert wallet.svid is not None
        wallet.keep(msgspec.structs.replace(wallet.svid, not_after_unix_s=1), wallet.bundle)
        # Two turns of the CA meanwhile: it walks from the bundle that it holds.
        for step in ("prepare", "activate", "retire", "prepare", "activate"):
            await eventually_rotated(here, step)
        back = await here.admission("alpha").admit(None)
        assert back.how == "attested"
        assert len(decode_bundle(back.bundle).anchors) == 2
        async with here.client(back) as connection:
            assert (await connection.issue(wanted("")))[0].chain

    play(tmp_path, story)


async def eventually_rotated(here: World, step: str) -> None:
    async def turned() -> bool:
        try:
            await here.admin.bundle_rotate(words.BundleRotate(step, force=True))
        except Conflict as error:
            if error.id != "X0-AUT-072":
                raise
            return False
        return True

    await eventually(turned)


def test_an_evicted_node_is_cut_off_and_stays_out(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        async with here.client(me) as connection:
            updates = connection.watch()
            await anext(updates)
            await here.admin.node_evict(words.NodeEvict("alpha", "lost"))
            assert type(await refusal(drained(updates))) is Unavailable
            assert type(await refusal(connection.issue(wanted("")))) is Unavailable
        assert "handshakes_refused|banned" in here.process.statistics()
        wallet = here.wallet("alpha")
        assert wallet.svid is not None
        wallet.keep(msgspec.structs.replace(wallet.svid, not_after_unix_s=1), wallet.bundle)
        assert (await refusal(here.admission("alpha").admit(None))).id == "X0-AUT-042"

    play(tmp_path, story)


def test_a_stolen_node_key_gets_no_foreign_svids(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        await here.enrol("alpha")
        thief = await here.enrol("beta")
        entry = await here.entry("alpha")
        async with here.client(thief) as connection:
            (answer,) = await connection.issue(wanted(entry.key))
            assert (answer.refused, answer.chain) == ("entry of another node", ())

    play(tmp_path, story)


async def drained(updates: AsyncIterator[words.Update]) -> None:
    async for _ in updates:
        pass


# ------------------------------------------------------------------ who may connect
def test_without_an_svid_only_the_calls_that_lead_to_one(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        async with here.client(None, me.bundle) as nobody:
            assert len(await nobody.challenge()) == 32
            assert (await refusal(nobody.issue(()))).id == "X0-AUT-086"
            assert (await refusal(anext(nobody.watch()))).id == "X0-AUT-086"

    play(tmp_path, story)


def test_a_challenge_is_good_once_and_on_its_own_connection(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        key = here.wallet("alpha").key
        async with (
            here.client(None, me.bundle) as one,
            here.client(None, me.bundle) as other,
        ):
            nonce = await one.challenge()
            request = words.AttestRequest(
                node="alpha", csr=x509.new_csr(x509.new_key()), proof=b"", unix_us=unix_us()
            )
            proof = x509.sign(key, words.attest_signed_part(nonce, request))
            request = msgspec.structs.replace(request, proof=proof)
            assert (await refusal(other.attest(request))).id == "X0-AUT-041"
            assert (await one.attest(request)).id.endswith("/alpha")
            assert (await refusal(one.attest(request))).id == "X0-AUT-041"

    play(tmp_path, story)


@pytest.mark.parametrize("what", ["workload", "authority", "foreign CA", "expired", "self made"])
def test_only_nodes_of_this_trust_domain_get_through_the_handshake(
    tmp_path: Path, what: str
) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        (ca,) = here.process._machine.state.cas.values()
        issuer = x509.Issuer(DOMAIN, x509.load_key(ca.private), ca.certificate)
        now = unix_us() // 1_000_000
        id, start = "spiffe://example.org/node/alpha", now
        if what == "workload":
            id = "spiffe://example.org/web"
        elif what == "authority":
            id = "spiffe://example.org/authority/main"
        elif what == "foreign CA":
            issuer = x509.new_anchor(DOMAIN, now)
        elif what == "expired":
            start = now - 4000
        svid = new_svid(issuer, SpiffeId(id), start)
        if what == "self made":
            key = x509.new_key()
            own = x509.new_anchor(DOMAIN, now, key=key)
            svid = Svid(SpiffeId(id), (own.certificate,), x509.key_bytes(key), now + 100)
        async with client(here.address, svid, me.bundle) as impostor:
            assert type(await refusal(impostor.challenge())) is Unavailable
        good = new_svid(
            x509.Issuer(DOMAIN, x509.load_key(ca.private), ca.certificate),
            SpiffeId("spiffe://example.org/node/alpha"), now,
        )  # fmt: skip
        async with client(here.address, good, me.bundle) as twin:
            assert len(await twin.challenge()) == 32

    play(tmp_path, story)


def test_no_connection_outlives_its_svid(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        left_us = me.svid.not_after_unix_s * 1_000_000 - unix_us()
        here.process._api._unix_us = lambda: unix_us() + left_us - 1_500_000
        async with here.client(me) as connection:
            updates = connection.watch()
            await anext(updates)
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await anext(updates)
            assert 0.2 < asyncio.get_running_loop().time() - started < 2.0

    play(tmp_path, story)


def test_clocks_are_compared_at_both_ends(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        judge = Judge(DOMAIN, decode_bundle(me.bundle).anchors, allow_all, unix_us)
        context = SslContext(TlsContext(me.svid, judge, (ALPN_AUTHORITY,), ANYBODY))
        async with AuthorityClient(here.address, context, lambda: unix_us() + 60_000_000) as fast:
            error = await refusal(fast.challenge())
            assert (error.id, "+60 s" in error.what) == ("X0-AUT-010", True)
            held = x509_digest(me.bundle)
            assert (await refusal(fast.trust(held))).id == "X0-AUT-010"

    play(tmp_path, story)


# ------------------------------------------------------------------ bad bytes
def test_what_is_too_long_or_no_message_is_refused(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        async with here.client(me) as connection:
            huge = words.TrustRequest(held=bytes(words.REQUEST_BYTES_MAX))
            error = await refusal(connection._connection.call("Trust", huge, words.TrustReply))
            assert error.id == "X0-AUT-002"
            wrong = words.ChallengeRequest(unix_us=1)
            error = await refusal(connection._connection.call("Trust", wrong, words.TrustReply))
            assert (error.id, type(error)) == ("X0-AUT-003", errors.BadInput)
            error = await refusal(
                connection._connection.call("Nonsense", wrong, words.ChallengeReply)
            )
            assert (error.id, type(error)) == ("X0-AUT-004", Unavailable)
            assert len(await connection.challenge()) == 32

    play(tmp_path, story)


def test_a_client_that_speaks_no_tls_or_an_old_one_is_dropped(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.process.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        async with asyncio.timeout(8):
            while await reader.read(4096):
                pass
        writer.close()
        unjudged = TlsContext(None, Unjudged(), ("x0-link/1",), ANYBODY)
        async with AuthorityClient(here.address, SslContext(unjudged), unix_us) as wrong_alpn:
            error = await refusal(wrong_alpn.challenge())
            assert "no application protocol" in error.what

    play(tmp_path, story)


# ------------------------------------------------------------------ operators
def test_the_admin_socket_is_for_its_owner(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        path = tmp_path / "authority" / ADMIN_SOCKET
        assert path.stat().st_mode & 0o777 == 0o600
        health = await here.admin.health()
        assert (health.trust_domain, health.read_only) == (DOMAIN, "")
        assert health.sequences["bundle"] == 1

    play(tmp_path, story)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_refused_even_past_the_file_mode(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        path = tmp_path / "authority" / ADMIN_SOCKET
        for each in (path, path.parent, *path.parents):
            if str(each).startswith(str(tmp_path.parents[1])):
                each.chmod(0o777)
        script = (
            "import os, socket, sys\n"
            "os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.settimeout(5)\n"
            "s.connect(sys.argv[1])\n"
            "data = b'-'\n"
            "try:\n"
            "    s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n')\n"
            "    while data: data = s.recv(1000)\n"
            "except (BrokenPipeError, ConnectionResetError): pass\n"
            "print('closed')\n"
        )
        done = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(path), stdout=subprocess.PIPE
        )
        out, _ = await done.communicate()
        assert out == b"closed\n"
        await eventually(
            lambda: (
                "handshakes_refused|uid 65534 is no operator of this authority"
                in here.process.statistics()
            )
        )

    play(tmp_path, story)


def test_every_method_of_operators_has_a_typed_call(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        admin = here.admin
        made = await admin.entry_create(
            words.Entry(id="spiffe://example.org/a", node="n", selectors=("unix:uid:1",))
        )
        assert await admin.entry_show(made.key) == made
        made = await admin.entry_update(msgspec.structs.replace(made, hint="h"))
        assert (await admin.entry_list(words.Page())).entries == (made,)
        assert await admin.entry_delete(made.key) == made
        name = Name("a", "spiffe://example.org/a", ())
        assert await admin.name_create(name) == await admin.name_show("a") == name
        assert await admin.name_update(name) == (await admin.name_list(words.Page())).names[0]
        assert await admin.name_delete("a") == name
        token = await admin.token_create(words.TokenCreate("n"))
        assert (await admin.token_list(words.Page())).tokens[0].id == token.id
        assert (await admin.token_delete(token.id)).id == token.id
        assert (await admin.node_list(words.Page())).nodes == ()
        assert (await refusal(admin.node_evict(words.NodeEvict("n")))).id == "X0-AUT-068"
        assert (await refusal(admin.node_delete("n"))).id == "X0-AUT-068"
        policy = await admin.policy_show()
        assert (await admin.policy_apply(policy)).version == 1
        await admin.revoke(words.Revoke("spiffe://example.org/a"))
        assert len((await admin.revocation_list()).bans) == 1
        await admin.unban("spiffe://example.org/a")
        assert len((await admin.bundle_show()).cas) == 1
        for method, (request, _) in words.ADMIN_METHODS.items():
            if request is words.Nothing:
                assert await admin.call(method, words.Nothing()) is not None

    play(tmp_path, story)


# ------------------------------------------------------------------ watchers and the disk
def test_a_slow_watcher_gets_the_full_set_again_and_holds_little() -> None:
    watcher = Watcher("alpha")
    watcher.reset()
    for n in range(service_module.PENDING_MAX + 1):
        entry = words.Entry(id="spiffe://e/x", node="alpha", selectors=(), key=str(n))
        watcher.hear(EntriesChanged("alpha", (entry,)))
    assert watcher.full
    assert watcher.take(1, False) == words.Update(unix_us=1)
    watcher.hear(Published("names", (b"1",)))
    watcher.hear(Published("names", (b"2",)))
    watcher.hear(Published("bundle", (b"b",)))
    watcher.hear(EntriesChanged("alpha", (), ("gone",)))
    assert watcher.take(1, True) == words.Update(
        unix_us=1, gone=("gone",), records=(b"b", b"2"), draining=True
    )


def test_a_watcher_that_reads_nothing_for_long_is_whole_again(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        async with here.client(me) as connection:
            updates = connection.watch()
            await anext(updates)
            for n in range(150):
                await here.entry("alpha", f"w{n}")
            seen: dict[str, words.Entry] = {}
            while len(seen) < 150:
                update = await anext(updates)
                seen = ({} if update.full else seen) | {e.key: e for e in update.entries}
            stored = (await here.admin.entry_list(words.Page(limit=500))).entries
            assert tuple(seen[key] for key in sorted(seen)) == stored

    play(tmp_path, story)


def test_when_the_disk_is_full_it_refuses_writes_answers_questions_and_recovers(
    tmp_path: Path,
) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        entry = await here.entry("alpha")
        store = here.process._store
        commit = store.commit

        def full(changes: Any) -> Any:
            raise Unavailable("X0-STO-005", "no room left on the disk")

        store.commit = full  # type: ignore[method-assign]
        async with here.client(me) as connection:
            updates = connection.watch()
            await anext(updates)
            error = await refusal(here.entry("alpha", "db"))
            assert (error.id, type(error)) == ("X0-STO-005", Unavailable)
            again = await refusal(here.admin.name_create(Name("a", entry.id, ())))
            assert again.id == "X0-AUT-082"
            assert "X0-STO-005" in (await here.admin.health()).read_only
            assert (await here.admin.entry_list(words.Page())).entries == (entry,)
            assert (await refusal(connection.issue(wanted(entry.key)))).id == "X0-AUT-082"
            mixed = await asyncio.gather(
                here.admin.entry_list(words.Page()), refusal(here.entry("alpha", "x")),
                here.admin.entry_show(entry.key),
            )  # fmt: skip
            assert (mixed[0].entries, mixed[2]) == ((entry,), entry)
            store.commit = commit  # type: ignore[method-assign]

            async def writes() -> bool:
                try:
                    await here.entry("alpha", "db")
                except Unavailable:
                    return False
                return True

            await eventually(writes)
            assert (await here.admin.health()).read_only == ""
            assert [e.id for e in (await anext(updates)).entries] == ["spiffe://example.org/db"]

    play(tmp_path, story)


def test_issue_costs_less_than_a_millisecond_and_shares_commits(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        entries = [await here.entry("alpha", f"w{n}") for n in range(64)]
        async with here.client(me) as connection:
            before = dict(here.process.service.counts)
            batch = wanted(*(entry.key for entry in entries))
            await asyncio.gather(*(connection.issue(batch) for _ in range(4)))
        counts = here.process.service.counts
        issued = counts["issued"] - before["issued"]
        each_us = (counts["issue_cpu_us"] - before["issue_cpu_us"]) / issued
        print(f"{issued} SVIDs in {counts['commits'] - before['commits']} commits, "
              f"{each_us:.0f} µs of CPU each")  # fmt: skip
        assert issued == 256
        assert counts["commits"] - before["commits"] <= 4
        assert each_us < 2000

    play(tmp_path, story)


def words_token(text: str) -> Any:
    from x0tta6bl4.wire.token import read_token

    return read_token(text)


def x509_digest(body: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(body).digest()
