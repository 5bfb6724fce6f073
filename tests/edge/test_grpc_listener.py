"""Peers of a gRPC listener: met, asked for, forgotten, sent away, and all gone at its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.grpc_listener import GrpcListener, abort

Run = Callable[[Coroutine[Any, Any, None]], None]


class _Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class Guests(GrpcListener[int]):
    """Numbers its peers, and takes one at a time; answers with the number, or hangs up."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.seen = 0
        self.left: list[int] = []
        self.one_left = asyncio.Event()
        super().__init__(self, _Bytes(), 65_536, self.refused.append)

    def __mapping__(self) -> dict[str, Handler]:
        return {"/a/Who": Handler(self.who, Cardinality.UNARY_UNARY, bytes, bytes)}

    async def who(self, stream: Stream[bytes, bytes]) -> None:
        if await stream.recv_message() == b"hang up":
            abort(stream)
        else:
            await stream.send_message(str(self.of(stream)).encode())

    def meet(self, transport: Any) -> int | Denied:
        if self.peers:
            return Denied("one at a time")
        self.seen += 1
        return self.seen

    def forget(self, peer: int) -> None:
        self.left.append(peer)
        self.one_left.set()

    async def until_left(self, *peers: int) -> None:
        while self.left != list(peers):
            self.one_left.clear()
            await self.one_left.wait()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def runs(story: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story, 10))

    return runs


async def listening(path: Path) -> Guests:
    made = Guests()
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    await made.listen(sock)
    return made


async def ask(channel: Channel, said: bytes = b"") -> bytes | None:
    return await UnaryUnaryMethod[bytes, bytes](channel, "/a/Who", bytes, bytes)(said)


def test_a_peer_is_met_once_known_by_its_calls_and_forgotten(tmp_path: Path, run: Run) -> None:
    async def story() -> None:
        guests = await listening(tmp_path / "s")
        for number in (1, 2):
            async with Channel(path=str(tmp_path / "s"), codec=_Bytes()) as channel:
                assert await ask(channel) == await ask(channel) == b"%d" % number
            await guests.until_left(*range(1, number + 1))
            assert not guests.peers
        async with Channel(path=str(tmp_path / "s"), codec=_Bytes()) as channel:
            with pytest.raises((StreamTerminatedError, ConnectionError)):
                await ask(channel, b"hang up")
            await guests.until_left(1, 2, 3)
        await guests.stop()
        assert guests.refused == []

    run(story())


def test_whoever_is_denied_is_sent_away_with_a_reason(tmp_path: Path, run: Run) -> None:
    async def story() -> None:
        guests = await listening(tmp_path / "s")
        async with Channel(path=str(tmp_path / "s"), codec=_Bytes()) as channel:
            await ask(channel)
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
            assert guests.refused == ["one at a time"]
            assert list(guests.peers.values()) == [1]
            assert await ask(channel) == b"1"
        await guests.stop()

    run(story())


def test_its_end_is_the_end_of_whoever_is_connected_however_shortly(
    tmp_path: Path, run: Run
) -> None:
    async def story() -> None:
        for turns in range(8):
            guests = await listening(tmp_path / f"s{turns}")
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / f"s{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            await guests.stop()
            async with asyncio.timeout(1):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
            await guests.until_left(*range(1, guests.seen + 1))
            assert not guests.peers

    run(story())
