"""TLS under asyncio and uvloop: real sockets, real grpclib, the same judge."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import grpclib.client
import grpclib.const
import grpclib.server
import pytest
import uvloop
from grpclib.encoding.base import CodecBase

from tests.fakes.ca import ALPN, FakeCa
from x0tta6bl4.core.identity.rules import AUTHORITY, NODE, WORKLOAD
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.tls.aio import SslContext, SslObject
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.edge.tls.engine import TlsRefused

LOOPS: list[Any] = [asyncio.new_event_loop, uvloop.new_event_loop]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])


def run(loop: Any, story: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await story

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(bounded())


async def listen(handler: Handler, context: SslContext) -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
    return server, server.sockets[0].getsockname()[1]


def tls(writer: asyncio.StreamWriter) -> SslObject:
    found: SslObject = writer.get_extra_info("ssl_object")
    return found


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass


async def speak(port: int, context: TlsContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=SslContext(context))
    try:
        writer.write(b"secret")
        return await reader.read()
    finally:
        await close(writer)


def test_both_ends_know_each_other_and_share_keying_material(loop: Any) -> None:
    ca = FakeCa()
    at_server: asyncio.Queue[tuple[Any, bytes, str]] = asyncio.Queue()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        object = tls(writer)
        at_server.put_nowait(
            (object.peer, object.exporter(b"EXPERIMENTAL x0 hello", b"a", 32), object.group)
        )
        writer.write((await reader.readexactly(5)).upper())
        await writer.drain()
        await close(writer)

    async def story() -> None:
        server, port = await listen(answer, SslContext(ca.context("web", WORKLOAD)))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=SslContext(ca.context("shop", WORKLOAD))
        )
        writer.write(b"hello")
        assert await reader.read() == b"HELLO"
        peer, key, group = await at_server.get()
        assert peer == Allowed(ca.id("shop"))
        assert tls(writer).peer == Allowed(ca.id("web"))
        assert tls(writer).exporter(b"EXPERIMENTAL x0 hello", b"a", 32) == key
        assert group == tls(writer).group == "X25519MLKEM768"
        assert tls(writer).selected_alpn_protocol() == ALPN
        assert tls(writer).getpeercert() == {"subjectAltName": (("URI", ca.id("web")),)}
        await close(writer)
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_large_transfers_both_ways_arrive_whole(loop: Any) -> None:
    ca = FakeCa()
    size = 12 * 1024 * 1024
    data = os.urandom(size)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(100_000):
            writer.write(part)
            await writer.drain()
        await close(writer)

    async def story() -> None:
        server, port = await listen(echo, SslContext(ca.context("web")))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=SslContext(ca.context("shop"))
        )

        async def send() -> None:
            for at in range(0, size, 3_000_000):
                writer.write(data[at : at + 3_000_000])
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            got = group.create_task(reader.readexactly(size))
        assert hashlib.sha256(got.result()).digest() == hashlib.sha256(data).digest()
        await close(writer)
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_the_server_speaks_at_once_in_the_segment_of_its_handshake(loop: Any) -> None:
    """What comes with the last handshake bytes must not be left lying in OpenSSL's buffer."""
    ca = FakeCa()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"at once" + await reader.readexactly(1))
        await writer.drain()
        await close(writer)

    async def story() -> None:
        server, port = await listen(greet, SslContext(ca.context("web")))
        for _ in range(20):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=SslContext(ca.context("shop"))
            )
            writer.write(b"!")
            reader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
            assert await reader.read() == b"at once!"
            await close(writer)
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_a_server_refuses_and_nothing_reaches_its_handler(loop: Any) -> None:
    ca, foreign = FakeCa(), FakeCa()
    handled: list[str] = []
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append("called")
        writer.close()

    async def story() -> None:
        context = SslContext(ca.context("web", WORKLOAD), on_refused=reasons.put_nowait)
        server, port = await listen(handler, context)
        foreign_svid = TlsContext(foreign.svid("shop"), ca.judge(), [ALPN], WORKLOAD)
        for impostor, reason, alert in (
            (foreign_svid, "untrusted issuer", "unknown ca"),
            (ca.context("node/a"), "not a workload", "bad certificate"),
            (ca.context("shop", alpn="x0-link/1"), "no common protocol", "no application protocol"),
            (ca.context(None), "no certificate", "certificate required"),
        ):
            with pytest.raises(TlsRefused) as refused:
                await speak(port, impostor)
            assert refused.value.reason == f"alert from peer: {alert}"
            assert await reasons.get() == reason
        assert handled == []
        assert reasons.empty()  # Told once each.
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_a_client_refuses_a_server_with_the_reason(loop: Any) -> None:
    ca = FakeCa()
    handled: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append("called")
        writer.close()

    async def story() -> None:
        server, port = await listen(handler, SslContext(ca.context("node/b")))
        with pytest.raises(TlsRefused) as refused:
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=SslContext(ca.context("shop", WORKLOAD))
            )
        assert refused.value.reason == "not a workload"
        assert isinstance(refused.value, ssl.SSLError)
        assert handled == []
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_half_a_handshake_and_garbage_end_without_a_handler(loop: Any) -> None:
    ca = FakeCa()
    handled: list[str] = []
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append("called")
        writer.close()

    async def story() -> None:
        context = SslContext(ca.context("web"), on_refused=reasons.put_nowait)
        server = await asyncio.start_server(
            handler, "127.0.0.1", 0, ssl=context, ssl_handshake_timeout=0.3
        )
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reasons.get() == "not tls"
        writer.write(b"x")  # Whatever comes next, it ends.
        try:
            assert len(await reader.read()) < 100
        except ConnectionError:
            pass
        writer.close()
        assert reasons.empty()  # Told once, whatever came after it.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01\x02\x00")  # A header, and silence: the deadline ends it.
        assert await reader.read() == b""
        writer.close()
        assert handled == []
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_a_listener_follows_the_rotation_of_its_svid(loop: Any) -> None:
    ca = FakeCa()
    current = [ca.context("web")]
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        await close(writer)

    async def story() -> None:
        server, port = await listen(handler, SslContext(lambda: current[0]))
        for _ in range(2):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=SslContext(ca.context("shop"))
            )
            seen.append(tls(writer).getpeercert(binary_form=True))
            writer.write(b"x")
            assert await reader.read() == b""
            await close(writer)
            current[0] = ca.context("web")
        assert seen[0] != seen[1]
        server.close()
        await server.wait_closed()

    run(loop, story())


# ---------------------------------------------------------------------------------------- enrol
def test_a_client_without_an_svid_is_let_in_where_none_is_demanded(loop: Any) -> None:
    """It may enrol: the server learns `no certificate` and lets the RPC decide."""
    ca = FakeCa()
    verdicts: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verdicts.put_nowait(tls(writer).peer)
        writer.write(await reader.readexactly(6))
        await writer.drain()
        await close(writer)

    async def story() -> None:
        authority = ca.context("authority/1", alpn=ALPN_AUTHORITY, demand=False)
        server, port = await listen(handler, SslContext(authority))
        enrolling = TlsContext(None, ca.judge(), [ALPN_AUTHORITY], AUTHORITY)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=SslContext(enrolling))
        assert tls(writer).peer == Allowed(ca.id("authority/1"))
        writer.write(b"secret")
        assert await reader.read() == b"secret"
        assert await verdicts.get() == Denied("no certificate")
        await close(writer)

        reader, writer = await asyncio.open_connection(  # A node with an SVID, the same listener.
            "127.0.0.1", port, ssl=SslContext(ca.context("node/a", AUTHORITY, ALPN_AUTHORITY))
        )
        writer.write(b"secret")
        assert await reader.read() == b"secret"
        assert await verdicts.get() == Allowed(ca.id("node/a"))
        await close(writer)

        with pytest.raises(TlsRefused) as refused:
            await asyncio.open_connection(
                "127.0.0.1",
                port,
                ssl=SslContext(TlsContext(None, FakeCa().judge(), [ALPN_AUTHORITY], AUTHORITY)),
            )
        assert refused.value.reason == "untrusted issuer"
        server.close()
        await server.wait_closed()

    run(loop, story())


def test_a_bad_certificate_is_refused_even_where_none_is_demanded(loop: Any) -> None:
    ca, foreign = FakeCa(), FakeCa()
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pytest.fail("handler called")

    async def story() -> None:
        authority = ca.context("authority/1", NODE, ALPN_AUTHORITY, demand=False)
        server, port = await listen(handler, SslContext(authority, reasons.put_nowait))
        impostor = TlsContext(foreign.svid("node/a"), ca.judge(), [ALPN_AUTHORITY], AUTHORITY)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=SslContext(impostor))
        with pytest.raises(TlsRefused):
            await reader.read()
        assert await reasons.get() == "untrusted issuer"
        await close(writer)
        server.close()
        await server.wait_closed()

    run(loop, story())


# --------------------------------------------------------------------------------------- grpclib
class BytesCodec(CodecBase):
    __content_subtype__ = "bytes"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class Echo:
    def __init__(self) -> None:
        self.peers: list[Any] = []

    async def echo(self, stream: grpclib.server.Stream[Any, Any]) -> None:
        self.peers.append(stream.peer.cert())
        message = await stream.recv_message()
        assert message is not None
        await stream.send_message(message * 2)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            "/x0.Echo/Echo": grpclib.const.Handler(
                self.echo, grpclib.const.Cardinality.UNARY_UNARY, bytes, bytes
            )
        }


def test_grpclib_runs_over_it_unchanged(loop: Any) -> None:
    ca = FakeCa()
    service = Echo()

    async def story() -> None:
        server = grpclib.server.Server([service], codec=BytesCodec())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        await server.start(
            "127.0.0.1", port, ssl=SslContext(ca.context("authority/1", NODE, ALPN_AUTHORITY))
        )
        channel = grpclib.client.Channel(
            "127.0.0.1",
            port,
            codec=BytesCodec(),
            ssl=SslContext(ca.context("node/a", AUTHORITY, ALPN_AUTHORITY)),
        )
        method = grpclib.client.UnaryUnaryMethod[Any, Any](channel, "/x0.Echo/Echo", bytes, bytes)
        assert await method(b"ab", timeout=5) == b"abab"
        big = os.urandom(1_000_000)
        assert await method(big, timeout=10) == big * 2
        assert service.peers[0] == {"subjectAltName": (("URI", ca.id("node/a")),)}
        channel.close()

        stranger = grpclib.client.Channel(
            "127.0.0.1",
            port,
            codec=BytesCodec(),
            ssl=SslContext(ca.context("shop", AUTHORITY, ALPN_AUTHORITY)),
        )
        method = grpclib.client.UnaryUnaryMethod[Any, Any](stranger, "/x0.Echo/Echo", bytes, bytes)
        with pytest.raises((OSError, grpclib.exceptions.StreamTerminatedError)):
            await method(b"ab", timeout=5)
        assert len(service.peers) == 2
        stranger.close()
        server.close()
        await server.wait_closed()

    run(loop, story())
