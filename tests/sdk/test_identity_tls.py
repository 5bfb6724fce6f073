"""listen, dial, verify_peer: who gets in, what rotates, what is ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import pytest
import uvloop

from tests.fakes.ca import FakeClock
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.sdk.identity import (
    BundleSource,
    Connection,
    Listener,
    X509Source,
    anyone,
    blocking,
    dial,
    exact,
    listen,
    matching,
    member_of,
    ssl_context,
    stdlib_context,
    verify_peer,
)
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.domain import Svid as Made
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadId, Refused, Unavailable

WEB = "spiffe://example.org/web"
Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "uvloop":
        return lambda story: uvloop.run(story())
    return lambda story: asyncio.run(story())


async def echo(connection: Connection) -> None:
    """Say who came, then repeat lines."""
    connection.writer.write(connection.peer_id.encode() + b"\n")
    async for line in connection.reader:
        connection.writer.write(line)


async def hold(connection: Connection) -> None:
    """Wait until it ends."""
    connection.writer.write(b"!")
    with contextlib.suppress(Refused):
        await connection.reader.read()


@asynccontextmanager
async def source_of(api: WorkloadApi, clock: FakeClock | None = None) -> AsyncIterator[X509Source]:
    client = WorkloadClient(api.endpoint, clock=clock or unix_us)
    async with client, X509Source(client) as source:
        await source.wait(5)
        yield source


@asynccontextmanager
async def listening(
    source: X509Source, handler: Any = echo, authorize: Any = anyone, **options: Any
) -> AsyncIterator[Listener]:
    made = await listen("127.0.0.1:0", source, handler, authorize=authorize, **options)
    async with made as listener:
        yield listener


def to(listener: Listener) -> str:
    return f"127.0.0.1:{listener.port}"


@pytest.fixture
def other() -> Iterator[WorkloadApi]:
    """A workload of another trust domain, not federated yet."""
    with WorkloadApi(Domain("other.test")) as api:
        api.issue("/shop")
        yield api


# ------------------------------------------------------------------------------------ who gets in
def test_both_ends_see_peer_group_and_signature(served: WorkloadApi, run: Run) -> None:
    async def story() -> None:
        seen: list[tuple[str, str, str, bool]] = []

        async def handler(connection: Connection) -> None:
            seen.append((connection.peer_id, connection.group, connection.signature, True))
            await echo(connection)

        async with source_of(served) as source, listening(source, handler) as listener:
            async with await dial(
                to(listener), source, authorize=exact(WEB), first_byte=True
            ) as connection:
                reader, writer = connection
                assert await reader.readline() == f"{WEB}\n".encode()
                writer.write(b"hello\n")
                assert await reader.readline() == b"hello\n"
                mine = (connection.peer_id, connection.group, connection.signature)
                assert connection.own_id == WEB
                assert connection.post_quantum
                assert len(source.connections) == 2
            assert [mine] == [one[:3] for one in seen]
            assert mine == (WEB, "X25519MLKEM768", "ecdsa_secp256r1_sha256")
            assert source.connections.groups == {"X25519MLKEM768": 2}

    run(story)


@pytest.mark.parametrize("key", ["P-384", "P-521", "RSA-2048", "ML-DSA-65"])
def test_SP_032_every_kind_of_key_is_taken_client(key: str) -> None:
    with WorkloadApi(Domain(key=key)) as api:
        api.issue("/web", key=key, hash="sha384" if key == "P-384" else "sha256")

        async def story() -> None:
            async with source_of(api) as source, listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=exact(WEB)) as connection:
                    assert await connection.reader.readline() == f"{WEB}\n".encode()
                    assert connection.signature in (
                        "ecdsa_secp384r1_sha384",
                        "ecdsa_secp521r1_sha512",
                        "rsa_pss_rsae",
                        "mldsa65",
                    )

        asyncio.run(story())


_UNUSUAL: dict[str, dict[str, Any]] = {
    "SP_016 upper case": {"path": "SPIFFE://Example.ORG/Web"},
    "a year of life": {"life_s": 365 * 86_400, "start_s": -100 * 86_400},
    "SP_031 no EKU": {"extended": None},
    "SP_022 DNS names": {"dns": ("web.example.org", "*.example.org")},
    "SP_024 a subject": {"subject": "web", "san_critical": False},
    "an unknown extension": {"unknown": "plain"},
    "a long path": {"path": "/a/b/c.d/E_f-g/1"},
    "more usages": {"usages": ("digital_signature", "key_encipherment", "key_agreement")},
    "SP_042 intermediates": {"signers": ({}, {}, {})},
    "an IP-like name": {"path": "/10.0.0.1"},
}


@pytest.mark.parametrize("shape", _UNUSUAL.values(), ids=_UNUSUAL)
def test_SP_022_024_031_032_valid_but_unusual_svids_are_accepted_client(
    shape: dict[str, Any],
) -> None:
    with WorkloadApi() as api:
        api.issue(**shape)

        async def story() -> None:
            async with source_of(api) as source, listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=anyone) as connection:
                    assert await connection.reader.readline() == f"{source.current().id}\n".encode()
                    assert connection.peer_id == source.current().id

        asyncio.run(story())


_BAD: dict[str, tuple[Callable[[Domain], Made], str]] = {
    "SP_026 signing certificate": (lambda d: d.anchor_as_svid(), "leaf is a CA"),
    "SP_033 cA": (lambda d: d.svid(ca=True), "leaf is a CA"),
    "SP_034 keyCertSign": (
        lambda d: d.svid(usages=("digital_signature", "key_cert_sign")),
        "leaf may sign certificates or CRLs",
    ),
    "SP_034 cRLSign": (
        lambda d: d.svid(usages=("digital_signature", "crl_sign")),
        "leaf may sign certificates or CRLs",
    ),
    "SP_035 scheme": (lambda d: d.svid(uris=("https://example.org/web",)), "not a SPIFFE ID"),
    "SP_036 no path": (lambda d: d.svid(uris=("spiffe://example.org",)), "ID without a path"),
    "SP_021 two URIs": (lambda d: d.svid(uris=(WEB, WEB + "2")), "more than one URI"),
    "SP_021 no URI": (lambda d: d.svid(uris=None), "no URI"),
    "SP_032 expired": (lambda d: d.svid(start_s=-7_200), "expired"),
    "SP_032 not yet valid": (lambda d: d.svid(start_s=60), "not yet valid"),
    "SP_032 bad signature": (lambda d: d.svid(spoilt=True), "bad signature"),
    "SP_032 critical extension": (
        lambda d: d.svid(unknown="critical"),
        "unknown critical extension",
    ),
    "SP_032 issuer is no CA": (lambda d: d.svid(signers=({"ca": False},)), "issuer is no CA"),
    "SP_032 path length": (
        lambda d: d.svid(signers=({"path_length": 0}, {})),
        "path length exceeded",
    ),
    "SP_032 foreign CA": (lambda d: Domain(d.name).svid(), "untrusted issuer"),
    "SP_111 no bundle": (lambda d: Domain("else.test").svid(), "foreign trust domain"),
}


class Fixed(X509Source):
    """A workload that presents whatever it has, as an attacker does."""

    def __init__(self, api: WorkloadApi, made: Made) -> None:
        super().__init__(api.endpoint)
        self.made = Svid(WEB, made.chain, made.key, 1 << 40)  # type: ignore[arg-type]

    def current(self, id: str | None = None, *, hint: str | None = None) -> Svid:
        return self.made


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize(("make", "reason"), _BAD.values(), ids=_BAD)
def test_SP_026_032_033_034_035_036_111_an_impostor_is_refused_in_both_roles_client(
    served: WorkloadApi, make: Callable[[Domain], Made], reason: str, role: str
) -> None:
    reached: list[Connection] = []

    async def handler(connection: Connection) -> None:
        reached.append(connection)

    async def story() -> None:
        async with source_of(served) as good, Fixed(served, make(served.domain)) as bad:
            await bad.wait(5)
            await bad.changed(0, 5)
            server, client = (good, bad) if role == "client" else (bad, good)
            async with listening(server, handler) as listener:
                with pytest.raises(Refused) as refused:
                    await dial(to(listener), client, authorize=anyone, first_byte=True)
                if role == "client":
                    assert listener.refused == {reason: 1}
                else:
                    assert getattr(refused.value, "reason", "") == reason
            with pytest.raises(Refused) as told:
                verify_peer(bad.made.chain, good, authorize=anyone)
            assert told.value.what == f"peer refused: {reason}"

    asyncio.run(story())
    assert reached == []


def test_SP_111_128_a_peer_is_judged_by_the_bundle_of_its_own_domain_client(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    async def story() -> None:
        async with source_of(served) as ours, source_of(other) as theirs:
            async with listening(ours) as listener:
                with pytest.raises(Refused):  # Neither knows the other.
                    await dial(to(listener), theirs, authorize=anyone)
                served.federate(other.domain)
                other.federate(served.domain)
                await asyncio.gather(ours.changed(ours.version), theirs.changed(theirs.version))
                async with await dial(to(listener), theirs, authorize=exact(WEB)) as connection:
                    assert await connection.reader.readline() == b"spiffe://other.test/shop\n"
            # Their CA signs an ID of ours: never merged.
            forged = other.domain.svid(WEB)
            with pytest.raises(Refused) as refused:
                verify_peer(forged.chain, ours, authorize=anyone)
            assert refused.value.what == "peer refused: untrusted issuer"

    asyncio.run(story())


def test_SP_113_bundles_alone_are_enough_to_verify_client(
    served: WorkloadApi, other: WorkloadApi
) -> None:
    served.federate(other.domain)

    async def story() -> None:
        async with BundleSource(jwt=False) as bundles:
            await bundles.wait(5)
            for api in (served, other):
                assert verify_peer(api.svids[0].chain, bundles, authorize=anyone)
            with pytest.raises(Refused):
                verify_peer(Domain("x.test").svid().chain, bundles, authorize=anyone)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("authorize", "reason"),
    [
        (exact("spiffe://example.org/x", "spiffe://example.org/y"), "unexpected peer"),
        (member_of("x.test"), "unexpected trust domain"),
        (matching(lambda id: False), "not authorised"),
        (matching(lambda id: "yes"), "not authorised"),  # type: ignore[arg-type,return-value]
    ],
)
def test_whoever_is_not_authorised_is_refused_in_both_roles(
    served: WorkloadApi, authorize: Any, reason: str
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source) as listener:
                with pytest.raises(Refused) as refused:
                    await dial(to(listener), source, authorize=authorize)
                assert refused.value.reason == reason  # type: ignore[attr-defined]
            async with listening(source, authorize=authorize) as listener:
                with pytest.raises(Refused):
                    await dial(to(listener), source, authorize=anyone, first_byte=True)
                assert listener.refused == {reason: 1}

    asyncio.run(story())


def test_authorisers_allow_whom_they_name() -> None:
    for authorize in (
        exact(WEB, "spiffe://a.test/x"),
        member_of("spiffe://EXAMPLE.org", "a.test"),
        matching(lambda id: id.endswith("/web")),
        anyone,
    ):
        assert type(authorize(WEB)).__name__ == "Allowed"  # type: ignore[arg-type]
    with pytest.raises(BadId):
        exact("web")
    with pytest.raises(BadId):
        member_of("a b")


def test_in_tls_1_3_a_client_that_is_refused_hears_of_it_after_its_dial(
    served: WorkloadApi, run: Run
) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            async with listening(source, authorize=member_of("x.test")) as listener:
                connection = await dial(to(listener), source, authorize=anyone)
                with pytest.raises(Refused):
                    await connection.first_byte(5)
                await connection.close()
            async with listening(source) as listener:  # noqa: SIM117
                async with await dial(to(listener), source, authorize=anyone) as connection:
                    await connection.first_byte(5)
                    assert (await connection.reader.readline()).startswith(b"spiffe")

    run(story)


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(served: WorkloadApi) -> None:
    async def silent(connection: Connection) -> None:
        await connection.reader.read()

    async def story() -> None:
        async with source_of(served) as source, listening(source, silent) as listener:
            with pytest.raises(Unavailable) as error:
                await dial(to(listener), source, authorize=anyone, first_byte=True, timeout_s=0.3)
            assert error.value.id in ("X0-SDK-031", "X0-SDK-033")

    asyncio.run(story())


def test_a_classical_key_exchange_is_counted_and_refused_where_asked(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            context = stdlib_context(source, authorize=anyone)  # It has no hybrid groups.
            async with listening(source) as listener:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", listener.port, ssl=context, server_hostname=""
                )
                assert await reader.readline() == f"{WEB}\n".encode()
                writer.close()
                assert source.connections.groups == {"X25519": 1}
            async with listening(source, require_pq=True) as listener:
                with pytest.raises((OSError, EOFError)):
                    await asyncio.open_connection(
                        "127.0.0.1", listener.port, ssl=context, server_hostname=""
                    )
                assert listener.refused == {"no common group": 1}
                async with await dial(
                    to(listener), source, authorize=anyone, require_pq=True
                ) as connection:
                    assert connection.post_quantum

    asyncio.run(story())


def test_a_unix_socket_and_application_protocols(served: WorkloadApi, tmp_path: Any) -> None:
    async def story() -> None:
        async with source_of(served) as source:
            address = f"unix:{tmp_path}/s"
            made = await listen(address, source, echo, authorize=anyone, alpn=["h2", "x/1"])
            async with made as listener:
                assert listener.port == 0
                for offered, agreed in ((["x/1", "h2"], "h2"), ([], ""), (["x/1"], "x/1")):
                    async with await dial(
                        address, source, authorize=anyone, alpn=offered
                    ) as connection:
                        assert connection.alpn == agreed

    asyncio.run(story())


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
