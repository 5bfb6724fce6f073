"""The Workload API of a real agent under a real authority: what a workload sees, and how soon."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.fakes.workload_client import WorkloadClient, end_of
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import Mesh, Plan, wait_for
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.edge.authority_api.client import AdminClient as Authority
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.wire import admin
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import X0Error

DOMAIN = "workload.test"
ME = (f"unix:uid:{os.getuid()}",)
SLOW = 10
"""A shared machine may take so many times as long as the bounds that are measured elsewhere."""


class Node:
    """One node with its authority."""

    def __init__(self, root: Path) -> None:
        self.mesh = Mesh(root / "m", Plan(DOMAIN, ("n1",), ()))
        self.operator = Operator(self.mesh.state("authority"))

    def start(self) -> None:
        self.mesh.lay_out()
        self.mesh.start("authority")
        self.mesh.wait("authority", self.operator.is_serving, "the authority")
        self.operator.enrol_file("n1", self.mesh.state("n1") / "enrol-token")
        self.mesh.start("n1")
        self.mesh.wait("n1", lambda: self.state() == "ready", "n1")

    def status(self) -> admin.Status:
        with AdminClient(self.mesh.state("n1")) as client:
            return client.ask(admin.GetStatus(), admin.Status)

    def state(self) -> str:
        try:
            return self.status().state
        except X0Error:
            return ""

    @property
    def socket(self) -> str:
        return self.status().workload_api.removeprefix("unix:")

    def authority(self) -> Authority:
        return Authority(str(self.mesh.state("authority") / "admin.sock"))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="x0wl"))
    made = Node(root)
    try:
        made.start()
        yield made
    finally:
        made.mesh.stop()
        shutil.rmtree(root)


def told(node: Node, story: Callable[[WorkloadClient, Authority], Awaitable[None]]) -> None:
    async def main() -> None:
        async with node.authority() as authority, WorkloadClient(node.socket) as client:
            async with asyncio.timeout(60):
                try:
                    await story(client, authority)
                finally:
                    listed = await authority.entry_list(words.Page())
                    for entry in listed.entries:
                        await authority.call("EntryDelete", words.Key(key=entry.key))

    asyncio.run(main())
    wait_for(lambda: len(node.status().svids) == 1, "the entries to be gone")


def entry(key: str, *selectors: str, **others: Any) -> Entry:
    return Entry(
        id=f"spiffe://{DOMAIN}/{key}", node="n1", selectors=selectors or ME, key=key, **others
    )


def names(answer: Any) -> list[str]:
    return [svid.spiffe_id.rpartition("/")[2] for svid in answer.svids]


def test_the_socket_stands_where_status_says_for_every_user(node: Node) -> None:
    path = Path(node.socket)
    assert path.stat().st_mode & 0o777 == 0o666
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert path == Path(f"{node.mesh.state('n1')}.api") / "sock"


def test_a_waiting_workload_has_its_svid_as_soon_as_there_is_an_entry(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        waiting = asyncio.create_task(client.first("FetchX509SVID"))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        started = time.monotonic()
        await authority.entry_create(entry("web", hint="external"))
        answer = await waiting
        assert time.monotonic() - started < 0.15 * SLOW
        assert names(answer) == ["web"]
        (svid,) = answer.svids
        leaf = x509.load_der_x509_certificate(svid.x509_svid)
        key = serialization.load_der_private_key(svid.x509_svid_key, None)
        assert leaf.public_key() == key.public_key()
        anchor = x509.load_der_x509_certificate(svid.bundle)
        leaf.verify_directly_issued_by(anchor)
        assert svid.hint == "external"
        bundles = await client.first("FetchX509Bundles")
        assert dict(bundles.bundles) == {f"spiffe://{DOMAIN}": svid.bundle}

    told(node, story)


def test_SP_105_116_entries_come_and_go_on_an_open_stream_server(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("a"))
        async with client.stream("FetchX509SVID") as stream:
            assert names(await stream.recv_message()) == ["a"]
            await asyncio.sleep(0.6)
            started = time.monotonic()
            await authority.entry_create(entry("b"))
            assert names(await stream.recv_message()) == ["a", "b"]
            created_s = time.monotonic() - started
            await asyncio.sleep(0.6)
            started = time.monotonic()
            await authority.call("EntryDelete", words.Key(key="a"))
            assert names(await stream.recv_message()) == ["b"]
            assert max(created_s, time.monotonic() - started) < 0.1 * SLOW
            await authority.entry_create(entry("other", f"unix:uid:{os.getuid() + 1}"))
            await authority.call("EntryDelete", words.Key(key="b"))
            with pytest.raises(GRPCError) as caught:
                await end_of(stream)
            assert caught.value.status == Status.PERMISSION_DENIED

    told(node, story)


def test_a_revoked_identity_is_withdrawn(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("keeps"))
        await authority.entry_create(entry("loses"))
        async with client.stream("FetchX509SVID") as stream:
            while len(names(await stream.recv_message())) < 2:
                pass
            await authority.call("Revoke", words.Revoke(subject=f"spiffe://{DOMAIN}/loses"))
            assert names(await stream.recv_message()) == ["keeps"]

    told(node, story)


def test_a_renewal_is_pushed_with_a_new_key(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("web"))
        async with client.stream("FetchX509SVID") as stream:
            before = (await stream.recv_message()).svids[0]

            def renew() -> None:
                with AdminClient(node.mesh.state("n1")) as desk:
                    desk.ask(admin.Renew(id=f"spiffe://{DOMAIN}/web"), admin.Fine)

            renewing = asyncio.create_task(asyncio.to_thread(renew))
            after = (await stream.recv_message()).svids[0]
            await renewing
            assert after.spiffe_id == before.spiffe_id
            assert after.x509_svid != before.x509_svid
            assert after.x509_svid_key != before.x509_svid_key

    told(node, story)


def test_many_entries_at_once_come_in_few_updates(node: Node) -> None:
    count = 200

    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("first"))
        async with client.stream("FetchX509SVID") as stream:
            assert names(await stream.recv_message()) == ["first"]
            created = asyncio.gather(
                *(authority.entry_create(entry(f"m{i}")) for i in range(count))
            )
            updates, seen = 0, 0
            while seen < count + 1:
                seen, updates = len((await stream.recv_message()).svids), updates + 1
            await created
            assert updates <= 10

    told(node, story)


def test_a_jwt_svid_is_minted_kept_and_validated(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("web"))
        await client.first("FetchX509SVID")
        request = schema.JWTSVIDRequest(audience=["db"])
        first = await client.call("FetchJWTSVID", request)
        again = await client.call("FetchJWTSVID", request)
        assert first.svids[0].spiffe_id == f"spiffe://{DOMAIN}/web"
        assert first.svids[0].svid == again.svids[0].svid
        good = schema.ValidateJWTSVIDRequest(audience="db", svid=first.svids[0].svid)
        validated = await client.call("ValidateJWTSVID", good)
        assert validated.spiffe_id == f"spiffe://{DOMAIN}/web"
        assert list(validated.claims["aud"]) == ["db"]
        bad = schema.ValidateJWTSVIDRequest(audience="other", svid=first.svids[0].svid)
        with pytest.raises(GRPCError) as caught:
            await client.call("ValidateJWTSVID", bad)
        assert caught.value.status == Status.INVALID_ARGUMENT
        bundles = await client.first("FetchJWTBundles")
        assert b'"kid"' in bundles.bundles[f"spiffe://{DOMAIN}"]

    told(node, story)


def test_counters_move(node: Node) -> None:
    async def story(client: WorkloadClient, authority: Authority) -> None:
        await authority.entry_create(entry("web"))
        before = node.status().counters
        async with client.stream("FetchX509SVID") as stream:
            await stream.recv_message()
            during = node.status().counters
            assert during["workload_api_calls"] == before["workload_api_calls"] + 1
            assert during["workload_api_connections"] >= 1
        pushed = "workload_api_pushes_total|FetchX509SVID"
        assert during[pushed] == before.get(pushed, 0) + 1
        client._metadata = ()
        with pytest.raises(GRPCError):
            await client.first("FetchX509SVID")
        refused = "workload_api_calls_total|FetchX509SVID|invalid_argument"
        assert node.status().counters[refused] == before.get(refused, 0) + 1

    told(node, story)
