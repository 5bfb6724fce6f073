"""Who is not let in, where both ends speak the framework's own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks.stories import CLIENT, Clients, Serve
from x0tta6bl4.sdk.identity import anyone, exact
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


async def server_sends_strangers_away(
    served: WorkloadApi,
    other: WorkloadApi,
    serve: Serve,
    clients: Clients,
    failure: Any,
) -> None:
    """Three kinds of strangers get nothing, each for its reason; who is meant gets in."""
    served.issue("/client")
    other.federate(served.domain)
    async with (
        source_of(served) as ours,
        source_of(served) as theirs,
        source_of(other) as shop,
        serve(ours, exact(CLIENT), id=WEB) as port,
    ):
        for source, id in ((theirs, WEB), (shop, None)):
            async with clients(source, exact(WEB), id=id) as client:
                with pytest.raises(failure):
                    await client.get(port)
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=nobody, server_hostname=""
            )
            writer.write(b"x" * 100)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        reasons = ("unexpected peer", "foreign trust domain", "no certificate")
        assert all(ours.connections.refused[reason] for reason in reasons), ours.connections.refused
        assert set(ours.connections.refused) == set(reasons)
        async with clients(theirs, exact(WEB), id=CLIENT) as client:
            assert await client.get(port) == CLIENT


async def client_refuses_servers(
    served: WorkloadApi, other: WorkloadApi, serve: Serve, clients: Clients, failure: Any
) -> None:
    """The caller hears why; the service that is meant answers."""
    served.issue("/client")
    other.federate(served.domain)
    async with source_of(served) as ours, source_of(other) as shop:
        for source, id, reason in (
            (shop, None, "foreign trust domain"),
            (ours, CLIENT, "unexpected peer"),
            (ours, WEB, ""),
        ):
            async with (
                serve(source, anyone, id=id) as port,
                clients(ours, exact(WEB), id=CLIENT) as client,
            ):
                if not reason:
                    assert await client.get(port) == CLIENT
                    continue
                with pytest.raises(failure, match=reason):
                    await client.get(port)
