"""The engine's contract, kept by it and by a twin on the standard library, each with each."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import ssl
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.edge.attack.attacker import Attacker
from tests.fakes.ca import ALPN, FakeCa, FakeClock
from tests.fakes.tls_twin import TlsTwin
from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.identity.rules import NODE, WORKLOAD, Expect
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.binding import lib
from x0tta6bl4.edge.tls.context import GROUPS, GROUPS_PQ, TlsContext
from x0tta6bl4.edge.tls.engine import WRITE_BYTES_MAX, Engine, TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.recipes import Presented
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire.errors import BadInput

Make = Callable[[FakeCa, TlsContext, bool], Any]


def real(ca: FakeCa, context: TlsContext, server: bool) -> Engine:
    return Engine(context, server)


def twin(ca: FakeCa, context: TlsContext, server: bool) -> TlsTwin:
    return TlsTwin(context, server, (ca.issuer.certificate,))


PAIRS = [(real, real), (real, twin), (twin, real), (twin, twin)]
each_pair = pytest.mark.parametrize(
    ("client", "server"), PAIRS, ids=["real-real", "real-twin", "twin-real", "twin-twin"]
)


@pytest.fixture(scope="module")
def ca() -> FakeCa:
    """At the real time of day: the twin's library has no other."""
    return FakeCa(clock=FakeClock(time.clock_gettime(time.CLOCK_REALTIME)))


def move(source: Any, target: Any, step: int = 1 << 20) -> int:
    """Carry what waits from one to the other, `step` bytes at a time."""
    buffer, moved = memoryview(bytearray(step)), 0
    while n := source.take(buffer):
        target.feed(buffer[:n])
        moved += n
        if step < 1000:
            target.shake()
    return moved


def shake(client: Any, server: Any, step: int = 1 << 20) -> None:
    for _ in range(6):
        if client.shake() & (move(client, server, step) >= 0) & server.shake():
            move(server, client, step)
            return
        move(server, client, step)
    pytest.fail("no end of the handshake")


def refusals(client: Any, server: Any) -> tuple[str, str]:
    """Handshake to the bitter end: reasons at the client and at the server, '' if content."""
    reasons = ["", ""]
    for _ in range(6):
        for n, (here, there) in enumerate(((client, server), (server, client))):
            if not reasons[n]:
                try:
                    if here.shake() and n == 0:
                        here.read(bytearray(10))
                except TlsRefused as refused:
                    reasons[n] = refused.reason
            move(here, there)
    return reasons[0], reasons[1]


def pair(ca: FakeCa, client: Make = real, server: Make = real) -> tuple[Any, Any]:
    both = (
        client(ca, ca.context("shop", WORKLOAD), False),
        server(ca, ca.context("web", WORKLOAD), True),
    )
    shake(*both)
    return both


def read_all(engine: Any, size: int = 1 << 20) -> bytes:
    buffer, found = bytearray(size), b""
    while n := engine.read(buffer):
        found += buffer[:n]
    return found


# ---------------------------------------------------------------------------------- the contract
@each_pair
def test_both_ends_learn_who_the_other_is(ca: FakeCa, client: Make, server: Make) -> None:
    c, s = pair(ca, client, server)
    assert c.peer == Allowed(ca.id("web"))
    assert s.peer == Allowed(ca.id("shop"))
    assert c.alpn == s.alpn == ALPN
    assert c.peer_not_after_unix_s == ca.now_unix_s - 35 + 3_600


@each_pair
@pytest.mark.parametrize("size", [1, 1_000, 16_384, 65_536, WRITE_BYTES_MAX])
def test_bytes_arrive_whole_both_ways(ca: FakeCa, client: Make, server: Make, size: int) -> None:
    c, s = pair(ca, client, server)
    for source, target in ((c, s), (s, c)):
        data = os.urandom(size)
        source.write(data)
        move(source, target)
        assert read_all(target) == data
        assert target.read(bytearray(10)) == 0


@each_pair
def test_a_handshake_in_single_bytes(ca: FakeCa, client: Make, server: Make) -> None:
    c = client(ca, ca.context("shop"), False)
    s = server(ca, ca.context("web"), True)
    shake(c, s, step=1)
    c.write(b"hello")
    move(c, s)
    assert read_all(s) == b"hello"


@each_pair
def test_small_buffers_lose_nothing(ca: FakeCa, client: Make, server: Make) -> None:
    c, s = pair(ca, client, server)
    data = os.urandom(50_000)
    c.write(data)
    move(c, s, step=1_009)
    assert read_all(s, 777) == data


@each_pair
def test_a_close_is_clean_and_one_sided(ca: FakeCa, client: Make, server: Make) -> None:
    c, s = pair(ca, client, server)
    c.write(b"last words")
    c.close()
    move(c, s)
    s.feed_eof()
    buffer = bytearray(100)
    assert s.read(buffer) == 10
    with pytest.raises(TlsClosed):
        s.read(buffer)
    with pytest.raises(TlsClosed):
        s.read(buffer)


def test_after_a_close_the_other_end_may_go_on_writing(ca: FakeCa) -> None:
    c, s = pair(ca)
    c.close()
    move(c, s)
    with pytest.raises(TlsClosed):
        s.read(bytearray(10))
    s.write(b"still here")
    move(s, c)
    assert read_all(c) == b"still here"
    assert s.closed
    assert not c.closed


def test_a_reader_that_asks_only_once_is_told_that_an_end_follows(ca: FakeCa) -> None:
    c, s = pair(ca)
    c.write(b"first")
    move(c, s)
    assert s.read(bytearray(100)) == 5
    assert (s.failed, s.pending) == (False, 0)
    c.write(b"last")
    c.close()
    move(c, s)
    assert s.read(bytearray(100)) == 4
    assert (s.failed, s.pending) == (True, 1)
    with pytest.raises(TlsClosed):
        s.read(bytearray(100))


def test_decrypt_is_feed_and_read_at_once(ca: FakeCa) -> None:
    c, s = pair(ca)
    cipher, plain = memoryview(bytearray(1 << 18)), memoryview(bytearray(1 << 16))
    for length in (1, 16_384, 16_385, 60_000):
        data = random.Random(length).randbytes(length)
        c.write(data)
        assert s.decrypt(cipher, c.take(cipher), plain) == length, "all records"
        assert bytes(plain[:length]) == data
    c.write(bytes(100_000))
    got = s.decrypt(cipher, c.take(cipher), plain)
    assert got == len(plain), "as much as fits"
    assert got + s.read(plain) == 100_000
    c.write(b"in pieces")
    size = c.take(cipher)
    assert s.decrypt(cipher, 7, plain) == 0
    cipher[: size - 7] = bytes(cipher[7:size])
    assert s.decrypt(cipher, size - 7, plain) == 9
    other = memoryview(bytearray(1 << 10))
    c.write(b"elsewhere")
    assert s.decrypt(other, c.take(other), plain) == 9
    c.write(b"last")
    c.close()
    assert s.decrypt(cipher, c.take(cipher), plain) == 4
    assert s.failed
    with pytest.raises(TlsClosed):
        s.read(plain)


def test_encrypt_is_write_and_take_at_once(ca: FakeCa) -> None:
    c, s = pair(ca)
    cipher, plain = memoryview(bytearray(1 << 16)), memoryview(bytearray(1 << 18))
    assert c.encrypt(b"", cipher) == 0
    for length in (1, 16_384, 100_000):
        data = random.Random(length).randbytes(length)
        size = c.encrypt(data, cipher)
        while size:  # What did not fit is still there.
            s.feed(cipher[:size])
            size = c.take(cipher)
        assert s.read(plain) == length
        assert bytes(plain[:length]) == data
    c.feed(b"no record of anybody" * 3)
    with pytest.raises(TlsRefused):
        c.read(plain)
    assert c.failed
    with pytest.raises(TlsRefused):
        c.encrypt(b"too late", cipher)


def test_decrypt_keeps_pointers_into_whole_buffers_only(ca: FakeCa) -> None:
    c, s = pair(ca)
    whole = memoryview(bytearray(1 << 10))
    c.write(b"x")
    size = c.take(whole)
    with pytest.raises(AssertionError, match="a view of a part"):
        s.decrypt(whole[:size], size, memoryview(bytearray(10)))


@each_pair
def test_a_bare_end_is_not_a_close(ca: FakeCa, client: Make, server: Make) -> None:
    c, s = pair(ca, client, server)
    c.write(b"half of it")
    move(c, s)
    s.feed_eof()
    buffer = bytearray(100)
    assert s.read(buffer) == 10
    for _ in range(2):
        with pytest.raises(TlsRefused) as refused:
            s.read(buffer)
        assert refused.value.reason == "cut off without a close"


@each_pair
def test_a_flipped_bit_is_noticed_and_nothing_after_it_is_read(
    ca: FakeCa, client: Make, server: Make
) -> None:
    c, s = pair(ca, client, server)
    c.write(b"one")
    move(c, s)
    buffer = bytearray(1_000)
    c.write(b"two")
    n = c.take(buffer)
    buffer[n - 3] ^= 4
    s.feed(memoryview(buffer)[:n])
    assert s.read(bytearray(100)) == 3
    c.write(b"three")
    move(c, s)
    for _ in range(2):
        with pytest.raises(TlsRefused):
            s.read(bytearray(100))


@each_pair
@pytest.mark.parametrize(
    ("path", "expect", "reason"),
    [
        ("node/a", WORKLOAD, "not a workload"),
        ("shop", NODE, "not a node"),
        ("shop", Expect(id=None, accept=lambda id: Denied("no caller")), "no caller"),
    ],
)
def test_either_end_refuses_whom_it_does_not_expect(
    ca: FakeCa, client: Make, server: Make, path: str, expect: Expect, reason: str
) -> None:
    c, s = client(ca, ca.context(path), False), server(ca, ca.context("web", expect), True)
    at_client, at_server = refusals(c, s)
    assert at_server == reason
    if server is real:
        assert at_client.startswith("alert from peer")
    c, s = client(ca, ca.context("shop", expect), False), server(ca, ca.context(path), True)
    at_client, at_server = refusals(c, s)
    assert at_client == reason


@each_pair
def test_a_client_without_a_certificate(ca: FakeCa, client: Make, server: Make) -> None:
    c, s = client(ca, ca.context(None), False), server(ca, ca.context("web"), True)
    assert refusals(c, s)[1] == "no certificate"
    c, s = client(ca, ca.context(None), False), server(ca, ca.context("web", demand=False), True)
    shake(c, s)
    assert s.peer == Denied("no certificate")
    assert c.peer == Allowed(ca.id("web"))


@each_pair
def test_without_a_common_protocol_there_is_no_connection(
    ca: FakeCa, client: Make, server: Make
) -> None:
    c = client(ca, ca.context("shop", alpn="x0-link/1"), False)
    at_client, at_server = refusals(c, server(ca, ca.context("web"), True))
    assert at_client or at_server
    assert at_server == "no common protocol" or server is twin


# ------------------------------------------------------------------------- more than the contract
def test_the_hybrid_group_is_the_default_and_can_be_required(ca: FakeCa) -> None:
    c, s = pair(ca)
    assert c.group == s.group == "X25519MLKEM768"
    classical = ca.context("shop", groups=("X25519",))
    c, s = Engine(classical, False), Engine(ca.context("web"), True)
    shake(c, s)
    assert c.group == s.group == "X25519"
    c, s = Engine(classical, False), Engine(ca.context("web", groups=GROUPS_PQ), True)
    assert refusals(c, s) == ("alert from peer: handshake failure", "no common group")


def test_keying_material_is_shared_and_depends_on_label_and_context(ca: FakeCa) -> None:
    c, s = pair(ca)
    key = c.exporter(b"EXPERIMENTAL x0 hello", b"a to b", 32)
    assert s.exporter(b"EXPERIMENTAL x0 hello", b"a to b", 32) == key
    others = {
        s.exporter(b"EXPERIMENTAL x0 setup", b"a to b", 32),
        s.exporter(b"EXPERIMENTAL x0 hello", b"b to a", 32),
        pair(ca)[0].exporter(b"EXPERIMENTAL x0 hello", b"a to b", 32),
    }
    assert len({key, *others}) == 4


def test_nothing_is_read_or_written_before_the_peer_is_judged(ca: FakeCa) -> None:
    c, s = Engine(ca.context("shop"), False), Engine(ca.context("web"), True)
    for _ in range(2):
        c.shake()
        move(c, s)
        with pytest.raises(AssertionError):
            s.read(bytearray(10))
        with pytest.raises(AssertionError):
            s.write(b"x")
        if not c.shake():
            s.shake()
            move(s, c)
    c.write(b"early")  # The client is complete, the server has not judged it yet.
    move(c, s)
    with pytest.raises(AssertionError):
        s.read(bytearray(10))
    assert s.shake()
    assert read_all(s) == b"early"


def test_one_failure_does_not_condemn_the_next_connection(ca: FakeCa) -> None:
    """OpenSSL's queue of errors is per thread: what is left there hits somebody else."""
    _, s = pair(ca)
    victim, other = pair(ca)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\x00\x20" + bytes(32)):
        broken = Engine(ca.context("web"), True)
        broken.feed(garbage)
        with pytest.raises(TlsRefused):
            broken.shake()
    s.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsRefused):
        s.read(bytearray(10))
    victim.write(b"fine")
    move(victim, other)
    assert read_all(other) == b"fine"
    assert other.read(bytearray(10)) == 0


def test_openssls_queue_of_errors_is_empty_after_each_failure(ca: FakeCa) -> None:
    """Even if there was more in it than the failure's own entry."""

    def litter() -> None:
        for _ in range(3):
            lib.ERR_put_error(lib.ERR_LIB_EVP, 0, 1, b"test", 1)

    _, s = pair(ca)
    s.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    litter()
    with pytest.raises(TlsRefused):
        s.read(bytearray(10))
    assert lib.ERR_peek_error() == 0
    broken = Engine(ca.context("web"), True)
    broken.feed(b"GET / HTTP/1.1\r\n\r\n")
    litter()
    with pytest.raises(TlsRefused):
        broken.shake()
    assert lib.ERR_peek_error() == 0


def test_a_client_that_names_no_protocol_and_shows_no_certificate(ca: FakeCa) -> None:
    """Nothing of it comes before the judge inside the handshake; the last check finds it."""
    attacker = Attacker(False, None, alpn=())
    s = Engine(ca.context("web", demand=False), True)
    for _ in range(3):
        attacker.shake()
        move(attacker, s)
        try:
            assert not s.shake()
        except TlsRefused as refused:
            reason = refused.reason
        move(s, attacker)
    assert reason == "no common protocol"


@pytest.mark.parametrize("server", [False, True], ids=["server attacks", "client attacks"])
def test_whoever_names_no_protocol_gets_an_alert(ca: FakeCa, server: bool) -> None:
    svid = ca.svid("shop")
    attacker = Attacker(not server, Presented(svid.chain, svid.key), alpn=())
    end, reasons = Engine(ca.context("web"), server), set()
    for _ in range(4):
        attacker.shake()
        attacker.read()
        move(attacker, end)
        try:
            end.shake()
        except TlsRefused as refused:
            reasons.add(refused.reason)
        move(end, attacker)
    assert reasons == {"no common protocol"}
    assert "alert" in attacker.dead


def test_the_adapter_sends_the_alert_first_and_tells_a_refusal_once(ca: FakeCa) -> None:
    """As an event loop drives it: want read, flush, and the refusal when the peer answers."""
    told: list[str] = []
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = SslContext(ca.context("web", groups=GROUPS_PQ), told.append)
    adapter = context.wrap_bio(incoming, outgoing, server_side=True)
    client = Engine(ca.context("shop", groups=("X25519",)), False)
    client.shake()
    buffer = bytearray(1 << 16)
    incoming.write(memoryview(buffer)[: client.take(buffer)])
    with pytest.raises(ssl.SSLWantReadError):
        adapter.do_handshake()
    assert told == ["no common group"]
    client.feed(outgoing.read())
    with pytest.raises(TlsRefused, match="alert from peer: handshake failure"):
        client.shake()
    for _ in range(2):
        with pytest.raises(TlsRefused, match="no common group"):
            adapter.do_handshake()
    assert told == ["no common group"]


def test_revoked_while_the_context_stays(ca: FakeCa) -> None:
    """A context lives as long as its SVID; revocations are asked for at every handshake."""
    table = Revocations()
    web = ca.context("web", revoked=table.check)
    shop = TlsContext(ca.svid("shop", via="a"), ca.judge(), [ALPN], WORKLOAD)
    shake(Engine(shop, False), Engine(web, True))
    table.put(ca.id("node/a"), 2**40)
    assert refusals(Engine(shop, False), Engine(web, True)) == (
        "alert from peer: certificate revoked",
        "node revoked",
    )
    table.replace([(ca.id("shop"), 2**40, ca.now_unix_s)])
    assert refusals(Engine(shop, False), Engine(web, True))[1] == "revoked"
    table.replace([])
    shake(Engine(shop, False), Engine(web, True))


def test_the_clock_is_asked_at_every_handshake() -> None:
    ca = FakeCa()
    shop, web = ca.context("shop"), ca.context("web")
    shake(Engine(shop, False), Engine(web, True))
    ca.clock.unix_us += 3_565 * 1_000_000
    assert refusals(Engine(shop, False), Engine(web, True))[0] == "expired"


def test_a_failed_connection_can_be_collected(ca: FakeCa) -> None:
    """A pointer into a buffer, kept by a traceback, made the collector crash (CPython 3.11)."""
    for _ in range(5):
        c, s = pair(ca)
        c.write(b"x")
        c.close()
        move(c, s)
        errors: list[object] = []
        view = memoryview(bytearray(10))
        for _ in range(3):
            try:
                s.read(view)
            except TlsClosed as closed:
                errors.append(closed)
        errors.append(errors)
        del c, s, view, errors
        gc.collect()


@pytest.mark.parametrize("end", ["closed", "broken", "cut off"])
def test_a_connection_that_ended_is_freed_at_once(ca: FakeCa, end: str) -> None:
    """Some 50 KB of OpenSSL's, of which the collector knows nothing: it would come too late."""
    c, s = pair(ca)
    if end == "closed":
        c.close()
        move(c, s)
    elif end == "broken":
        s.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    else:
        s.feed_eof()
    gc.disable()
    try:
        with contextlib.suppress(TlsClosed, TlsRefused):
            s.read(memoryview(bytearray(10)))
        assert s.failed
        left = weakref.ref(s._connection)
        del s
        assert left() is None
    finally:
        gc.enable()


def test_a_key_that_does_not_fit_and_settings_that_make_no_sense(ca: FakeCa) -> None:
    mine, other = ca.svid("shop"), ca.svid("web")
    mixed = Svid(mine.id, mine.chain, other.key, mine.not_after_unix_s)
    assert "key" not in repr(mixed)
    for svid, alpn, groups in (
        (mixed, [ALPN], GROUPS),
        (mine, [], GROUPS),
        (mine, [ALPN], ("nonsense",)),
    ):
        with pytest.raises(BadInput):
            TlsContext(svid, ca.judge(), alpn, WORKLOAD, groups)
    pair(ca)  # And nothing of it is left in OpenSSL's queue.


def test_cost_of_a_handshake_and_of_a_byte(ca: FakeCa, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints figures; the bounds are loose, for busy machines."""
    shop, web = ca.context("shop"), ca.context("web")
    shake(Engine(shop, False), Engine(web, True))
    began, rounds = time.process_time(), 40
    for _ in range(rounds):
        shop.judge._cache.clear()  # type: ignore[attr-defined]
        web.judge._cache.clear()  # type: ignore[attr-defined]
        shake(Engine(shop, False), Engine(web, True))
    handshake_ms = (time.process_time() - began) / rounds * 1e3
    c, s = pair(ca)
    data, wire, plain = os.urandom(65_536), memoryview(bytearray(1 << 20)), bytearray(1 << 20)
    began, rounds = time.process_time(), 600
    for _ in range(rounds):
        c.write(data)
        s.feed(wire[: c.take(wire)])
        assert s.read(plain) == 65_536
    rate = rounds * 65_536 / (time.process_time() - began) / 1e9
    with capsys.disabled():
        print(
            f"\n[tls] mutual handshake, both ends, X25519MLKEM768, P-256: {handshake_ms:.2f} ms "
            f"CPU; 64 KiB writes, encrypt and decrypt: {rate:.2f} GB/s"
        )
    assert handshake_ms < 50
    assert rate > 0.1
