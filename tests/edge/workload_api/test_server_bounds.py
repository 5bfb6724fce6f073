"""The Workload API's server at its bounds: who takes too much, does not read, or stops."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from tests.fakes.workload_client import WorkloadClient
from tests.fakes.workload_directory import (
    WEB,
    WIT,
    Told,
    refused,
    run,
    socket_path,
    until,
)
from x0tta6bl4.edge.attest.peer import PeerAttestor
from x0tta6bl4.edge.workload_api import server
from x0tta6bl4.edge.workload_api.server import Bounds, WorkloadServer
from x0tta6bl4.wire.errors import Conflict, Unavailable


@pytest.fixture
def path() -> Iterator[Path]:
    with socket_path() as made:
        yield made


# ------------------------------------------------------------------ bounds
def test_calls_beyond_the_bound_of_a_user_are_resource_exhausted(path: Path) -> None:
    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        async with client.stream("FetchX509SVID") as one, client.stream("FetchX509SVID") as two:
            assert await one.recv_message()
            assert await two.recv_message()
            assert await refused(client.first("FetchX509SVID")) == Status.RESOURCE_EXHAUSTED
        await until(lambda: not made.statistics()["open"])
        assert await client.first("FetchX509SVID")

    run(path, Told(WEB), story, bounds=Bounds(calls_of_user_max=2))
    run(path, Told(WEB), story, bounds=Bounds(calls_max=2))


@pytest.mark.parametrize("bounds", [Bounds(connections_max=1), Bounds(connections_of_user_max=1)])
def test_connections_beyond_the_bound_are_closed(path: Path, bounds: Bounds) -> None:
    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        assert await client.first("FetchX509SVID")
        async with WorkloadClient(path) as other:
            with pytest.raises((StreamTerminatedError, ConnectionError, GRPCError)):
                await other.first("FetchX509SVID")
        assert made.statistics()["connections"] == 1

    run(path, Told(WEB), story, bounds=bounds)


def test_a_client_that_does_not_read_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PUSH_S", 0.2)
    directory = Told()
    # More than the windows of HTTP/2 and the socket take.
    directory.say(WEB, crl=(bytes(4 << 20),))

    async def story(client: WorkloadClient, made: WorkloadServer) -> None:
        code = f"""
import socket, sys
sys.path[:0] = {sys.path!r}
import h2.connection
s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})
c = h2.connection.H2Connection(); c.initiate_connection()
c.send_headers(1, [(":method", "POST"), (":scheme", "http"), (":path",
    "/SpiffeWorkloadAPI/FetchX509SVID"), (":authority", "x"), ("te", "trailers"),
    ("content-type", "application/grpc"), ("workload.spiffe.io", "true")])
c.send_data(1, bytes(5), end_stream=True)
s.sendall(c.data_to_send())
print("asked", flush=True)
while True:
    data = s.recv(1 << 16)
    if not data: break
print("cut", flush=True)
"""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=subprocess.PIPE
        )
        out, _ = await child.communicate()
        assert out == b"asked\ncut\n"
        assert made.calls == {"FetchX509SVID|deadline_exceeded": 1}

    run(path, directory, story)


def test_a_server_that_stops_leaves_no_call_and_one_that_starts_takes_over_the_path(
    path: Path,
) -> None:
    async def main() -> None:
        attestor = PeerAttestor()
        first, second = (WorkloadServer(Told(WEB), attestor) for _ in range(2))
        await first.start(path)
        with pytest.raises(Conflict) as caught:
            await second.start(path)
        assert caught.value.id == "X0-WLA-001"
        async with WorkloadClient(path) as client, client.stream("FetchX509SVID") as stream:
            assert await stream.recv_message()
            await first.stop()
            with pytest.raises((StreamTerminatedError, GRPCError)):
                await stream.recv_message()
        left = socket.socket(socket.AF_UNIX)  # As a killed agent leaves it.
        left.bind(str(path))
        left.close()
        await second.start(path)
        async with WorkloadClient(path) as client:
            assert await client.first("FetchX509SVID")
        await second.stop()
        with pytest.raises(Unavailable) as unavailable:
            await second.start(path.parent / "none" / "sock")
        assert unavailable.value.id == "X0-WLA-002"
        attestor.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_secrets_stay_out_of_words() -> None:
    key = WEB.key
    assert repr(key)[2:-1] not in repr(WEB)
    assert "token" not in repr(WIT[0])
    assert str(os.getpid()) not in repr(WEB)
