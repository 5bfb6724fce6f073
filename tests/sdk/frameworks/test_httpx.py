"""httpx against a plain server."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, listening, source_of
from tests.sdk.frameworks import stories
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.frameworks.httpx import BlockingTransport, Transport, peer_id
from x0tta6bl4.sdk.identity import Connection, X509Source, anyone, blocking, exact, listen
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


class Client:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.held: list[httpx.Response] = []

    async def get(self, port: int) -> str:
        response = await self.client.get(f"https://127.0.0.1:{port}/")
        response.raise_for_status()
        assert peer_id(response) == WEB
        return response.text

    async def hold(self, port: int) -> Awaitable[Any]:
        request = self.client.build_request("GET", f"https://127.0.0.1:{port}/hold", timeout=60)
        response = await self.client.send(request, stream=True)
        self.held.append(response)
        body = response.aiter_raw()
        assert await anext(body)

        async def end() -> None:
            with contextlib.suppress(httpx.ReadError, httpx.RemoteProtocolError):
                await anext(body, None)

        return end()


@asynccontextmanager
async def clients(
    source: X509Source, authorize: Authorizer, id: str | None = None, **more: Any
) -> AsyncIterator[Client]:
    transport = Transport(source, authorize=authorize, id=id, **more)
    async with httpx.AsyncClient(transport=transport) as client:
        made = Client(client)
        yield made
        for response in made.held:
            await response.aclose()


def test_load_over_rotations(served: WorkloadApi) -> None:
    asyncio.run(stories.rotations_under_load(served, stories.plain_server, clients))


@pytest.mark.parametrize(
    ("change", "reason"),
    [("revoke", "peer refused: revoked"), ("redact", "own identity withdrawn")],
)
def test_connections_end_with_an_identity(served: WorkloadApi, change: str, reason: str) -> None:
    asyncio.run(stories.ends(served, stories.plain_server, clients, change, reason))


def test_connections_end_with_a_certificate(served: WorkloadApi) -> None:
    asyncio.run(stories.expires(served, stories.plain_server, clients))


def test_the_client_refuses_wrong_servers(served: WorkloadApi, other: WorkloadApi) -> None:
    asyncio.run(stories.client_refuses(served, other, clients, httpx.ConnectError))


def test_a_client_hears_why_it_is_refused(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            nobody = exact(stories.OTHER)
            async with stories.plain_server(source, nobody) as port:
                async with clients(source, exact(WEB)) as client:
                    with pytest.raises(httpx.ReadError, match="alert from peer: bad certificate"):
                        await client.get(port)
                assert source.connections.refused == {"unexpected peer": 1}

    asyncio.run(story())


def test_a_connection_is_left_before_its_end(served: WorkloadApi) -> None:
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served, clock) as theirs,
            stories.plain_server(ours, anyone) as port,
            clients(theirs, exact(WEB)) as client,
        ):
            await client.get(port)
            await client.get(port)
            (first,) = theirs.connections
            clock.unix_us = first.not_after_unix_s * SECOND - 10 * SECOND
            await client.get(port)
            assert sum(theirs.connections.groups.values()) == 2
            assert first not in theirs.connections

    asyncio.run(story())


def test_a_connection_that_the_server_has_ended_is_not_taken_again(served: WorkloadApi) -> None:
    async def story() -> None:
        async with (
            source_of(served) as ours,
            source_of(served) as theirs,
            stories.plain_server(ours, anyone) as port,
            clients(theirs, exact(WEB)) as client,
        ):
            await client.get(port)
            (live,) = ours.connections
            live.end("test")
            (kept,) = theirs.connections
            await stories.until(kept.gone)
            assert await client.get(port) == WEB
            assert sum(theirs.connections.groups.values()) == 2

    asyncio.run(story())


def test_plaintext_goes_nowhere(served: WorkloadApi) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            async with source_of(served) as source, clients(source, exact(WEB)) as client:
                with pytest.raises(httpx.UnsupportedProtocol, match="or nothing"):
                    await client.client.get(url)
            with pytest.raises(BlockingIOError):
                server.accept()

    asyncio.run(story())


def test_nobody_there_and_nobody_who_answers(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source, clients(source, exact(WEB)) as client:
            with pytest.raises(httpx.ConnectError, match="X0-SDK-034"):
                await client.get(1)
            async with listening(source, silent) as listener:
                client.client.timeout = httpx.Timeout(5, read=0.05)
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(listener.port)
            with socket.create_server(("127.0.0.1", 0)) as unread:
                client.client.timeout = httpx.Timeout(5, connect=0.05)
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get(unread.getsockname()[1])

    asyncio.run(story())


async def silent(connection: Connection) -> None:
    await connection.reader.read()


def test_a_unix_socket(served: WorkloadApi, tmp_path: Path) -> None:
    async def story() -> None:
        path = str(tmp_path / "s")
        async with source_of(served) as source:
            transport = Transport(source, authorize=exact(WEB), uds=path)
            async with (
                await listen(f"unix:{path}", source, stories.answer, authorize=anyone),
                httpx.AsyncClient(transport=transport) as client,
            ):
                assert (await client.get("https://web/")).text == WEB

    asyncio.run(story())


# ------------------------------------------------------------------------------------- for threads
@pytest.fixture
def threaded(served: WorkloadApi) -> Iterator[tuple[blocking.X509Source, str]]:
    """A source, and where a server with the same identity is."""
    with blocking.X509Source() as source:
        source.wait(5)
        listener = source._loop.do(
            listen("127.0.0.1:0", source.real, stories.answer, authorize=anyone)
        )
        yield source, f"https://127.0.0.1:{listener.port}"
        source._loop.do(listener.close())


def test_threads_go_on_over_rotations(
    served: WorkloadApi, threaded: tuple[blocking.X509Source, str]
) -> None:
    source, url = threaded
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop = threading.Event()

    def work(client: httpx.Client) -> None:
        try:
            while not stop.is_set():
                done.put(client.get(f"{url}/").text)
        except httpx.HTTPError as error:
            done.put(str(error))

    with httpx.Client(transport=BlockingTransport(source, authorize=exact(WEB))) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(stories.ROTATIONS):
            version = source.version
            served.rotate()
            source.changed(version, 5)
            for _ in range(stories.REQUESTS):
                assert done.get(timeout=5) == WEB
        stop.set()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        while not done.empty():
            assert done.get() == WEB


def test_threads_send_and_get_streams_that_end(
    served: WorkloadApi, threaded: tuple[blocking.X509Source, str]
) -> None:
    source, url = threaded
    with httpx.Client(transport=BlockingTransport(source, authorize=exact(WEB))) as client:
        answer = client.post(f"{url}/", content=(part for part in (b"a", b"b")))
        assert (answer.text, peer_id(answer)) == (WEB, WEB)
        assert client.post(f"{url}/", content=b"whole").text == WEB
        with client.stream("GET", f"{url}/hold") as held:
            parts = held.iter_raw()
            assert next(parts) == WEB.encode()
            started = time.monotonic()
            served.revoke(served.svids[0])
            with pytest.raises(httpx.ReadError, match="peer refused: revoked"):
                next(parts)
            assert time.monotonic() - started < 1


def test_threads_refuse_wrong_servers(threaded: tuple[blocking.X509Source, str]) -> None:
    source, url = threaded
    nobody = exact(stories.OTHER)
    with httpx.Client(transport=BlockingTransport(source, authorize=nobody)) as client:
        with pytest.raises(httpx.ConnectError, match="unexpected peer"):
            client.get(url)
        with pytest.raises(httpx.UnsupportedProtocol):
            client.get(url.replace("https", "http"))
