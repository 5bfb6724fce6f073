"""The SDK against our own Workload API server: what both sides agree on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fakes.ca import new_svid
from tests.fakes.workload_directory import CA, DB, WEB, Told, made, socket_path
from x0tta6bl4.edge.attest.peer import PeerAttestor
from x0tta6bl4.edge.workload_api.server import WorkloadServer
from x0tta6bl4.edge.workload_api.words import TrustBundle
from x0tta6bl4.sdk.identity import Connection, X509Source, anyone, dial, exact, listen
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.wire.errors import NotFound, Refused


@asynccontextmanager
async def serving(directory: Told, hold_s: float = 5.0) -> AsyncIterator[WorkloadClient]:
    attestor = PeerAttestor()
    server = WorkloadServer(directory, attestor, hold_s)
    with socket_path() as path:
        await server.start(path)
        try:
            async with WorkloadClient(f"unix://{path}", clock=CA.clock) as client:
                yield client
        finally:
            await server.stop()
            attestor.close()


async def hold(connection: Connection) -> None:
    connection.writer.write(b"!")
    with contextlib.suppress(Refused):
        await connection.reader.read()


def test_an_identity_comes_rotates_goes_and_its_connections_with_it() -> None:
    async def story() -> None:
        directory = Told()
        async with serving(directory) as client, X509Source(client) as source:
            directory.say(WEB, DB)  # Held open meanwhile: no flapping at the start.
            await source.wait(5)
            assert source.error is None
            assert not source.problems
            assert [svid.id for svid in source.svids] == [WEB.id, DB.id]
            assert source.current(hint="external").key == WEB.key
            async with await listen("127.0.0.1:0", source, hold, authorize=anyone) as listener:
                where = f"127.0.0.1:{listener.port}"
                for _ in range(3):
                    version = source.version
                    directory.say(made("web"), made("db"))
                    await source.changed(version, 5)
                    async with await dial(
                        where, source, authorize=exact(WEB.id), id=DB.id, first_byte=True
                    ) as connection:
                        assert connection.own_id == DB.id
                connection = await dial(where, source, authorize=anyone, first_byte=True)
                await connection.reader.readexactly(1)
                started = time.monotonic()
                directory.say()
                with pytest.raises(Refused):
                    await asyncio.wait_for(connection.reader.read(), 5)
                assert time.monotonic() - started < 1
                assert source.svids == ()
                directory.say(WEB)
                await source.wait(5)

    asyncio.run(story())


def test_who_has_nothing_is_told_so_when_the_hold_is_over() -> None:
    async def story() -> None:
        async with serving(Told(), hold_s=0.05) as client, X509Source(client) as source:
            with pytest.raises(Refused):
                await source.wait(0.5)
            with pytest.raises(Refused):
                await client.fetch_x509()

    asyncio.run(story())


def test_federated_bundles_and_validation_by_the_server() -> None:
    async def story() -> None:
        directory = Told(WEB)
        other = new_svid(CA.issuer, CA.id("x"), CA.now_unix_s).chain[0]  # Any certificate.
        directory.say(WEB, federated=(TrustBundle("other.test", (other,), b'{"keys":[]}'),))
        async with serving(directory) as client:
            assert set((await client.fetch_x509()).bundles) == {"mesh.test", "other.test"}
            assert set((await client.fetch_x509_bundles()).bundles) == {"mesh.test", "other.test"}
            assert (await client.fetch_jwt_bundles())["other.test"] == b'{"keys":[]}'  # type: ignore[index]
            id, claims = await client.ask_validity("good", "db")
            assert id == WEB.id
            assert claims["x"] == {"y": [None]}
            assert [one[0] for one in await client.fetch_tokens(["db"])] == [WEB.id]
            with pytest.raises((Refused, NotFound)):
                await client.fetch_tokens(["db"], "spiffe://mesh.test/nobody")

    asyncio.run(story())
