"""Connections over time: rotation, expiry, revocation; the same for frameworks and threads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

import pytest

from tests.fakes.ca import FakeClock
from tests.fakes.workload import WEB, hold, listening, source_of, to
from x0tta6bl4.core.identity.rules import Expect
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.edge.tls.engine import Engine
from x0tta6bl4.sdk.identity import (
    Connection,
    anyone,
    blocking,
    connections,
    dial,
    exact,
    listen,
    member_of,
    register,
    ssl_context,
    stdlib_context,
    tls,
    verify_peer,
)
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import Refused, Unavailable

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


# -------------------------------------------------------------------------- what changes over time
def test_a_listener_goes_on_over_rotations_of_svid_and_ca(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        async with source_of(served) as source, listening(source) as listener:
            leaves = set()
            for turn in range(20):
                version = source.version
                if turn % 5 == 4:
                    served.rotate_anchor(retire=True)
                else:
                    served.rotate()
                await source.changed(version, 5)
                async with await dial(to(listener), source, authorize=exact(WEB)) as connection:
                    assert await connection.reader.readline() == f"{WEB}\n".encode()
                    leaves.add(connection.peer_chain[0])
                    assert connection.peer_chain == served.svids[0].chain
            assert len(leaves) == 20
            assert listener.refused == {}

    run(story)


async def both_end(served: WorkloadApi, change: Callable[[], Any], reason: str) -> None:
    """Open a connection, change something, and see both of its ends end."""
    ended: list[Refused] = []

    async def handler(connection: Connection) -> None:
        connection.writer.write(b"!")
        try:
            await connection.reader.read()
        except Refused as error:
            ended.append(error)

    async with source_of(served) as source, listening(source, handler) as listener:
        connection = await dial(to(listener), source, authorize=anyone, first_byte=True)
        await connection.reader.readexactly(1)
        started = time.monotonic()
        change()
        with pytest.raises(Refused) as error:
            await asyncio.wait_for(connection.reader.read(), 5)
        assert time.monotonic() - started < 1
        assert reason in error.value.what
        while len(source.connections) or not ended:  # noqa: ASYNC110  # A turn of the loop or two.
            await asyncio.sleep(0)
        assert source.connections.ended[reason] >= 1


def test_SP_116_connections_end_when_the_identity_is_withdrawn_client(served: WorkloadApi) -> None:
    asyncio.run(both_end(served, served.withdraw, "own identity withdrawn"))


def test_connections_end_when_the_peer_is_revoked(served: WorkloadApi) -> None:
    asyncio.run(both_end(served, lambda: served.revoke(served.svids[0]), "peer refused: revoked"))


def test_connections_end_when_the_ca_of_the_peer_is_gone(served: WorkloadApi) -> None:
    asyncio.run(
        both_end(
            served,
            lambda: served.rotate_anchor(retire=True),
            "peer refused: untrusted issuer",
        )
    )


def test_peers_are_judged_again_only_when_bundles_or_revocations_change(
    served: WorkloadApi,
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            first = source.judges
            for change, same in (
                (served.rotate, True),
                (lambda: served.issue("/db"), True),
                (lambda: served.revoke(served.svids[0]), False),
                (lambda: served.federate(Domain("a.test")), False),
            ):
                version = source.version
                change()
                await source.changed(version, 5)
                assert (source.judges is first) == same
                first = source.judges

    asyncio.run(story())


@pytest.mark.parametrize(
    ("module", "name"),
    [(tls, "LISTENER_CONNECTIONS_MAX"), (connections, "CONNECTIONS_MAX")],
    ids=["listener", "registry"],
)
def test_at_the_bound_a_connection_is_closed_without_a_byte(
    served: WorkloadApi, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(module, name, 1)

    async def story() -> None:
        taken = socket.create_server(("127.0.0.1", 0))
        async with source_of(served) as ours, source_of(served) as theirs, source_of(served) as to:  # noqa: SIM117
            async with await listen(taken, ours, hold, authorize=anyone) as listener:
                where = f"127.0.0.1:{listener.port}"
                async with await dial(where, theirs, authorize=anyone, first_byte=True):
                    with pytest.raises((Refused, ConnectionError)):
                        await dial(where, to, authorize=anyone, first_byte=True)
                    assert listener.refused == {"too many connections": 1}
                assert sum(ours.connections.groups.values()) == 1

    asyncio.run(story())


def test_a_handshake_that_outlasts_the_revocation_of_its_peer_is_in_vain(
    served: WorkloadApi,
) -> None:
    async def story() -> None:
        async with source_of(served) as source, listening(source) as listener:
            for revoked in (False, True):
                engine = Engine(tls.contexts(source, Expect(accept=anyone))(), server=False)
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                buffer = bytearray(64 * 1024)
                while not engine.shake():  # The last flight is not sent yet.
                    writer.write(bytes(buffer[: engine.take(buffer)]))
                    engine.feed(await reader.read(64 * 1024))
                version = source.version
                served.revoke(*served.svids[: int(revoked)])
                await source.changed(version, 5)
                writer.write(bytes(buffer[: engine.take(buffer)]))
                if not revoked:
                    while not (got := engine.read(buffer)):
                        engine.feed(await reader.read(64 * 1024))
                    assert buffer[:got] == f"{WEB}\n".encode()
                else:
                    with contextlib.suppress(ConnectionResetError):
                        assert not await asyncio.wait_for(reader.read(), 5)
                writer.close()
            assert source.connections.refused == {"revoked": 1}

    asyncio.run(story())


def test_connections_live_on_over_an_ordinary_rotation(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source, listening(source) as listener:  # noqa: SIM117
            async with await dial(to(listener), source, authorize=anyone) as connection:
                await connection.reader.readline()
                version = source.version
                served.rotate()
                await source.changed(version, 5)
                connection.writer.write(b"still here\n")
                assert await connection.reader.readline() == b"still here\n"

    asyncio.run(story())


def test_connections_end_when_their_certificates_expire(served: WorkloadApi) -> None:
    clock = FakeClock(time.clock_gettime(time.CLOCK_REALTIME))

    async def story() -> None:
        async with source_of(served, clock) as source, listening(source, hold) as listener:
            connection = await dial(to(listener), source, authorize=anyone, first_byte=True)
            await connection.reader.readexactly(1)
            assert connection.not_after_unix_s == source.current().not_after_unix_s
            clock.unix_us = connection.not_after_unix_s * SECOND - 1
            source.connections.expire()
            assert len(source.connections) == 2
            clock.unix_us += 1
            with pytest.raises(Refused) as error:
                await asyncio.wait_for(connection.reader.read(), 5)
            assert error.value.what == "connection ended: own SVID expired"
            with pytest.raises(Unavailable):
                await dial(to(listener), source, authorize=anyone)

    asyncio.run(story())


def test_a_list_of_revocations_counts_only_if_a_ca_of_the_bundle_signed_it(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            forged = other.domain.crl(served.svids[0])
            served._crl = (forged, b"garbage")
            version = source.version
            served.push()
            version = await source.changed(version, 5)
            assert verify_peer(served.svids[0].chain, source, authorize=anyone)
            assert any("revocation" in problem for problem in source.problems)
            served.revoke(served.svids[0])
            await source.changed(version, 5)
            with pytest.raises(Refused) as error:
                verify_peer(served.svids[0].chain, source, authorize=anyone)
            assert error.value.what == "peer refused: revoked"

    asyncio.run(story())


def test_a_listener_without_an_identity_refuses_and_comes_back(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    served.federate(other.domain)
    other.federate(served.domain)

    async def story() -> None:
        async with source_of(served) as source, source_of(other) as theirs:  # noqa: SIM117
            async with listening(source) as listener:
                version = source.version
                served.withdraw()
                version = await source.changed(version, 5)
                with pytest.raises((Refused, Unavailable)):
                    await dial(to(listener), theirs, authorize=anyone, timeout_s=2)
                assert listener.refused == {"no such SVID": 1}
                served.issue("/web")
                await source.wait(5)
                async with await dial(to(listener), theirs, authorize=anyone) as connection:
                    assert await connection.reader.readline()

    asyncio.run(story())


def test_a_cut_is_an_error_and_a_close_is_an_end(served: WorkloadApi, run: Run) -> None:
    async def cut(connection: Connection) -> None:
        connection.writer.write(b"half")
        await connection.writer.drain()
        await connection.reader.readexactly(1)
        connection.writer.transport.abort()

    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source, cut) as listener:
                connection = await dial(to(listener), source, authorize=anyone)
                assert await connection.reader.readexactly(4) == b"half"
                connection.writer.write(b"!")
                with pytest.raises((Refused, ConnectionError)):
                    await connection.reader.read()
                connection.end("test")
            async with listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=anyone) as connection:
                    await connection.reader.readline()

    run(story)


# ------------------------------------------------------------------------- frameworks, and threads
def test_contexts_for_frameworks_rotate_and_judge(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            for make in (ssl_context, stdlib_context):
                server = await asyncio.start_server(
                    lambda reader, writer: writer.close(),
                    "127.0.0.1",
                    0,
                    ssl=make(source, authorize=exact(WEB)),
                )
                port = server.sockets[0].getsockname()[1]
                for _ in range(2):
                    version = source.version
                    served.rotate()
                    await source.changed(version, 5)
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1",
                        port,
                        ssl=make(source, authorize=exact(WEB)),
                        server_hostname="",
                    )
                    tls = writer.get_extra_info("ssl_object")
                    assert tls.peer_id == WEB
                    assert tls.getpeercert(True) == served.svids[0].chain[0]
                    writer.close()
                with pytest.raises(ssl.SSLError) as refused:
                    await asyncio.open_connection(
                        "127.0.0.1",
                        port,
                        ssl=make(source, authorize=member_of("x.test")),
                        server_hostname="",
                    )
                assert refused.value.reason == "unexpected trust domain"
                server.close()

    run(story)


@pytest.mark.parametrize("make", [ssl_context, stdlib_context])
def test_a_registered_connection_of_a_framework_ends_with_its_identity(
    served: WorkloadApi, run: Run, make: Any
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

            async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                assert register(writer.transport, source, authorize=anyone) == WEB
                accepted.put_nowait(writer)

            context = make(source, authorize=anyone)
            server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
            port = server.sockets[0].getsockname()[1]
            ends = []
            for _ in range(2):
                ends.append(
                    await asyncio.open_connection(
                        "127.0.0.1", port, ssl=context, server_hostname=""
                    )
                )
                await accepted.get()
            assert len(source.connections) == 2
            ends.pop()[1].close()
            while len(source.connections) > 1:
                await asyncio.sleep(0.01)
                source.connections.expire()  # What was closed is forgotten.
            started = time.monotonic()
            served.withdraw()
            with contextlib.suppress(OSError, Refused):
                assert await asyncio.wait_for(ends[0][0].read(), 5) == b""
            assert time.monotonic() - started < 1
            assert len(source.connections) == 0
            ends[0][1].close()
            server.close()

    run(story)


def test_the_standard_library_on_blocking_sockets_passes_no_byte_before_the_judge(
    served: WorkloadApi,
) -> None:
    with blocking.X509Source() as source:
        source.wait(5)
        good = stdlib_context(source.real, authorize=exact(WEB))
        bad = stdlib_context(source.real, authorize=member_of("x.test"))
        for handshake in (True, False):
            with socket.create_server(("127.0.0.1", 0)) as plain:
                port = plain.getsockname()[1]

                def serve(plain: socket.socket = plain) -> None:
                    with good.wrap_socket(plain.dup(), True) as listener:
                        for _ in range(2):
                            with contextlib.suppress(OSError):
                                made, _ = listener.accept()
                                with made:
                                    made.sendall(b"secret")

                thread = threading.Thread(target=serve)
                thread.start()
                with (
                    socket.create_connection(("127.0.0.1", port), 5) as raw,
                    good.wrap_socket(raw, do_handshake_on_connect=handshake) as made,
                ):
                    assert made.recv(100) == b"secret"
                    assert made.peer_id == WEB  # type: ignore[attr-defined]
                with socket.create_connection(("127.0.0.1", port), 5) as raw:
                    with (
                        pytest.raises(ssl.SSLError) as refused,
                        bad.wrap_socket(raw, do_handshake_on_connect=handshake) as made,
                    ):
                        made.send(b"x")
                    assert refused.value.reason == "unexpected trust domain"
                thread.join(5)
                assert not thread.is_alive()


def test_the_same_for_threads(served: WorkloadApi) -> None:
    told: list[int] = []

    def handler(connection: blocking.Connection) -> None:
        connection.write(connection.peer_id.encode() + b"\n")
        while line := connection.readline():
            connection.write(line)

    with (
        blocking.X509Source() as source,
        blocking.JWTSource() as tokens,
        blocking.BundleSource() as bundles,
        blocking.WorkloadClient() as client,
    ):
        for one in (source, tokens, bundles):
            one.wait(5)
        assert source.ready
        assert source.current().id == source.svids[0].id == WEB
        assert set(source.bundles) == set(bundles.bundles) == {"example.org"}
        remove = source.on_change(lambda: told.append(1))
        version = source.version
        served.rotate()
        source.changed(version, 5)
        remove()
        with blocking.listen("127.0.0.1:0", source, handler, authorize=anyone) as listener:
            with blocking.dial(
                f"127.0.0.1:{listener.port}", source, authorize=exact(WEB), first_byte=True
            ) as connection:
                assert connection.group == "X25519MLKEM768"
                assert connection.signature == "ecdsa_secp256r1_sha256"
                assert connection.readline(5) == f"{WEB}\n".encode()
                connection.write(b"hello\n")
                assert connection.read(6, 5) == b"hello\n"
                with pytest.raises(Unavailable):
                    connection.read(1, 0.01)
            assert len(source.connections) <= 1
        assert blocking.verify_peer(source.current().chain, bundles, authorize=anyone) == WEB
        (token,) = client.fetch_jwt_svids("db")
        assert blocking.fetch_jwt_svids("db", client=client)[0].id == WEB
        assert blocking.fetch_jwt_svids("db")[0].id == WEB
        assert tokens.token("db").id == tokens.validate(token.token, "db").id == WEB
        assert blocking.validate_jwt(token.token, "db", bundles).id == WEB
        assert bundles.documents.keys() == tokens.documents.keys() == {"example.org"}
        assert client.fetch_x509().svids[0].id == WEB
        assert client.fetch_x509_bundles().bundles.keys() == {"example.org"}
        with blocking.enable_auto_renew(client, audience="db", on_renewed=told.append) as renewal:
            while renewal.current is None:
                time.sleep(0.005)
    assert len(told) == 2
    source.close()
    with pytest.raises(Unavailable):
        source.wait(1)


def test_nobody_there_and_no_address(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
            with pytest.raises(Unavailable) as error:
                await dial(f"127.0.0.1:{port}", source, authorize=anyone)
            assert error.value.id == "X0-SDK-034"

    asyncio.run(story())


def test_importing_the_sdk_takes_a_quarter_of_a_second_at_most() -> None:
    code = (
        "import time; t = time.perf_counter(); import x0tta6bl4.sdk.identity;"
        "print(time.perf_counter() - t)"
    )
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    assert median(taken) < 0.25


def test_every_name_of_the_sdk_is_there() -> None:
    import x0tta6bl4.sdk.identity as identity

    assert len(identity.__all__) == len(set(identity.__all__)) == len(dir(identity))
    for name in identity.__all__:
        assert getattr(identity, name) is not None
    with pytest.raises(AttributeError):
        _ = identity.nothing
