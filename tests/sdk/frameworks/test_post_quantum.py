"""What every adapter passes on: `require_pq`; and what nobody imports unasked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import aiohttp
import httpx
import pytest

from tests.fakes.workload import WEB, source_of
from tests.sdk.frameworks import (
    stories,
    test_aiohttp,
    test_asyncio,
    test_httpx,
    test_hypercorn,
    test_uvicorn,
)
from x0tta6bl4.sdk.identity import anyone, exact, stdlib_context
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

SERVERS: dict[str, Any] = {
    "asyncio": test_asyncio.serve,
    "aiohttp": test_aiohttp.serve,
    "uvicorn": test_uvicorn.uvicorn_serving,
    "hypercorn": test_hypercorn.serve,
}
CLIENTS: dict[str, Any] = {
    "asyncio": test_asyncio.clients,
    "aiohttp": test_aiohttp.clients,
    "httpx": test_httpx.clients,
}
CUT = (ConnectionError, aiohttp.ClientConnectorError, httpx.ConnectError)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_refuses_a_classical_key_exchange(served: WorkloadApi, name: str) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(served) as theirs:
            classical = stdlib_context(theirs, authorize=exact(WEB))
            tls: dict[str, Any] = {"ssl": classical, "server_hostname": ""}
            async with SERVERS[name](ours, anyone, id=WEB) as port:
                _, writer = await asyncio.open_connection("127.0.0.1", port, **tls)
                await stories.until(lambda: ours.connections.groups == {"X25519": 1})
                writer.close()
            async with SERVERS[name](ours, anyone, id=WEB, require_pq=True) as port:
                with pytest.raises(OSError, match="handshake failure"):
                    await asyncio.open_connection("127.0.0.1", port, **tls)
                assert ours.connections.refused == {"no common group": 1}
                async with stories.plain_client(theirs, exact(WEB)) as client:
                    assert await client.get(port) == WEB
                assert ours.connections.groups == {"X25519": 1, "X25519MLKEM768": 1}

    asyncio.run(story())


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_refuses_a_classical_key_exchange(served: WorkloadApi, name: str) -> None:
    served.issue("/client")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = stories.CLIENT.encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.read()
        writer.close()

    async def story() -> None:
        async with source_of(served) as source:
            classical = stdlib_context(source, authorize=anyone, id=WEB)
            server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=classical)
            port = server.sockets[0].getsockname()[1]
            async with server:
                for require_pq in (False, True):
                    options = {"id": stories.CLIENT, "require_pq": require_pq}
                    async with CLIENTS[name](source, exact(WEB), **options) as client:
                        if not require_pq:
                            assert await client.get(port) == stories.CLIENT
                            continue
                        with pytest.raises(CUT):  # The standard library sends no alert.
                            await client.get(port)
                assert source.connections.groups == {"X25519": 1}

    asyncio.run(story())


def test_the_sdk_imports_no_framework() -> None:
    code = (
        "import sys, x0tta6bl4.sdk.frameworks, x0tta6bl4.sdk.identity as i;"
        "[getattr(i, name) for name in i.__all__];"
        "print({'aiohttp', 'httpx', 'uvicorn', 'hypercorn', 'starlette'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
