"""Greetings at local listeners: SOCKS5, CONNECT and the PROXY header, whole and byte by byte."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.edge.ingress import connect, socks5
from x0tta6bl4.edge.ingress.connect import Connect
from x0tta6bl4.edge.ingress.proxy_header import BODY_BYTES_MAX, SIGNATURE, ProxyHeader, build, parse
from x0tta6bl4.edge.ingress.socks5 import Socks5
from x0tta6bl4.runtime.ports import Greeting
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.ingress import Asked, More, Rejected, Step, service_name

HELLO = b"\x05\x01\x00"
WEB = SpiffeId("spiffe://mesh.test/web")
Make = Callable[[], Greeting]


def request(host: bytes, port: int = 80, command: int = 1, kind: int = 3) -> bytes:
    length = bytes((len(host),)) if kind == 3 else b""
    return bytes((5, command, 0, kind)) + length + host + port.to_bytes(2, "big")


def run(greeting: Greeting, chunks: list[bytes]) -> tuple[Step, bytes]:
    """The last step, and all that was to be sent; bytes after the end are the application's."""
    sent = b""
    step: Step = More()
    for at, chunk in enumerate(chunks):
        step = greeting.feed(chunk)
        sent += step.send
        if type(step) is not More:
            rest = b"".join(chunks[at + 1 :])
            if type(step) is Asked:
                return Asked(step.name, step.port, step.rest + rest), sent
            assert type(step) is Rejected
            return Rejected(b"", step.reason), sent
    return step, sent


# ---------------------------------------------------------------------- SOCKS5
def test_socks5_asks_by_name() -> None:
    step, sent = run(Socks5(), [HELLO + request(b"Web.Mesh.") + b"GET /"])
    assert step == Asked("web.mesh", 80, b"GET /")
    assert sent == b"\x05\x00"
    step, sent = run(Socks5(), [HELLO, request(b"web.mesh", 65535)])
    assert step == Asked("web.mesh", 65535, b"")


@pytest.mark.parametrize(
    ("bytes_in", "sent"),
    [
        (b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00", b""),
        (b"GET / HTTP/1.1\r\n", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x00", b"\x05\xff"),
        (HELLO + request(b"web", command=2), b"\x05\x00\x05\x07"),
        (HELLO + request(b"web", command=3), b"\x05\x00\x05\x07"),
        (HELLO + request(b"\x7f\x00\x00\x01", kind=1), b"\x05\x00\x05\x08"),
        (HELLO + request(bytes(16), kind=4), b"\x05\x00\x05\x08"),
        (HELLO + request(b"web", kind=9), b"\x05\x00\x05\x08"),
        (HELLO + request(b"10.0.0.1"), b"\x05\x00\x05\x08"),
        (HELLO + request(b"::1"), b"\x05\x00\x05\x08"),
        (HELLO + request(b""), b"\x05\x00\x05\x04"),
        (HELLO + request(b"a..b"), b"\x05\x00\x05\x04"),
        (HELLO + request(b"we\xffb"), b"\x05\x00\x05\x04"),
        (HELLO + b"\x04\x01\x00\x03\x01a\x00\x50", b"\x05\x00\x05\x01"),
    ],
)
def test_socks5_refuses_with_the_right_code(bytes_in: bytes, sent: bytes) -> None:
    step, got = run(Socks5(), [bytes_in])
    assert type(step) is Rejected
    assert got[: len(sent)] == sent
    assert len(got) in (0, 2, 12)
    assert step.reason


def test_an_address_with_a_name_is_served() -> None:
    names = {"10.9.0.1": "web.mesh", "fd00::1": "web.mesh"}
    for host, kind in (
        (b"\x0a\x09\x00\x01", 1),
        (bytes.fromhex("fd" + "00" * 14 + "01"), 4),
        (b"10.9.0.1", 3),
        (b"fd00:0::1", 3),
    ):
        step, _ = run(Socks5(names), [HELLO + request(host, kind=kind)])
        assert step == Asked("web.mesh", 80, b"")
    step, _ = run(Connect(names), [b"CONNECT [fd00::1]:80 HTTP/1.1\r\n\r\n"])
    assert step == Asked("web.mesh", 80, b"")


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (None, 0),
        (Reset.DENIED, 2),
        (Reset.NO_SERVICE, 4),
        (Reset.UNREACHABLE, 4),
        (Reset.CONNECT_REFUSED, 5),
        (Reset.CONNECT_TIMEOUT, 6),
        (Reset.BUSY, 1),
    ],
)
def test_socks5_answers_after_the_stream(outcome: Reset | None, code: int) -> None:
    assert Socks5().answer(outcome) == bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))


# ---------------------------------------------------------------------- CONNECT
def test_connect_asks_by_name() -> None:
    step, sent = run(
        Connect(), [b"CONNECT Web.mesh:443 HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n\x16\x03\x01"]
    )
    assert step == Asked("web.mesh", 443, b"\x16\x03\x01")
    assert sent == b""


@pytest.mark.parametrize(
    ("bytes_in", "code"),
    [
        (b"GET http://web.mesh/ HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01", 405),
        (b"CONNECT web.mesh HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT web.mesh:0 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT web.mesh:" + b"1" * 5000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT web.mesh:80\r\n\r\n", 400),
        (b"CONNECT  web.mesh:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT web\x00.mesh:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT [web]:80 HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT web.mesh:80 HTTP/2.0\r\n\r\n", 505),
        (b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT [::1]:80 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT a..b:80 HTTP/1.1\r\n\r\n", 502),
        (b"CONNECT web.mesh:80 HTTP/1.1\r\n" + b"X: y\r\n" * 4000, 431),
    ],
)
def test_connect_refuses_with_the_right_code(bytes_in: bytes, code: int) -> None:
    step, sent = run(Connect(), [bytes_in])
    assert type(step) is Rejected
    assert sent.startswith(b"HTTP/1.1 %d " % code)
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
    assert body.count(b"\n") == 1


def test_connect_answers_after_the_stream() -> None:
    assert Connect().answer(None).startswith(b"HTTP/1.1 200 ")
    for outcome, code in (
        (Reset.DENIED, 403),
        (Reset.NO_SERVICE, 502),
        (Reset.UNREACHABLE, 502),
        (Reset.CONNECT_TIMEOUT, 504),
        (Reset.BUSY, 503),
    ):
        answer = Connect().answer(outcome, "no rule\r\nSet-Cookie: x")
        assert answer.startswith(b"HTTP/1.1 %d " % code)
        assert answer.endswith(b"\r\n\r\nno rule??Set-Cookie: x\n"), "nothing gets into the header"
    assert Connect().stranger("no entry").startswith(b"HTTP/1.1 407 ")
    assert b"Proxy-Authenticate:" in Connect().stranger("no entry")
    assert set(connect._CODES.values()) <= set(connect._PHRASES)


# ---------------------------------------------------------------------- both
VALID = [
    HELLO + request(b"web.mesh") + b"rest",
    b"\x05\x03\x01\x00\x02" + request(b"x" * 63 + b".mesh") + b"rest",
    b"CONNECT web.mesh:80 HTTP/1.1\r\nA: b\r\n\r\nrest",
    b"CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("make", [Socks5, Connect])
@given(data=st.data())
def test_however_bytes_are_cut_the_outcome_is_the_same(make: Make, data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(VALID) | st.binary(max_size=80)))
    for _ in range(data.draw(st.integers(0, 3))):
        if whole:
            at = data.draw(st.integers(0, len(whole) - 1))
            whole[at] = data.draw(st.integers(0, 255))
    stream = bytes(whole)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    bounds = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    whole_step = run(make(), [stream] if stream else [])
    if type(whole_step[0]) is not Rejected:
        assert run(make(), pieces) == whole_step
        assert run(make(), bytewise) == whole_step
    else:
        assert type(run(make(), bytewise)[0]) is Rejected


def test_what_is_buffered_is_bounded() -> None:
    greeting = Connect()
    fed = 0
    step: Step = greeting.feed(b"CONNECT a:1 HTTP/1.1\r\n")
    while type(step) is More:
        step = greeting.feed(b"a: b\r\n")
        fed += 6
        assert fed < 20_000
    assert connect.HEADER_BYTES_MAX == 16 * 1024
    socks = Socks5()
    fed = 0
    step = socks.feed(b"\x05\xff")
    while type(step) is More and fed < 2000:
        step = socks.feed(b"\x00")
        fed += 1
    assert fed <= socks5.GREETING_BYTES_MAX


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Web.Mesh.", "web.mesh"),
        ("a_b", "a_b"),
        ("", ""),
        (".", ""),
        ("a..b", ""),
        ("a b", ""),
        ("x" * 64, ""),
        ("é", ""),
        (".".join(["a" * 60] * 5), ""),
    ],
)
def test_service_names(text: str, name: str) -> None:
    assert service_name(text) == name


# ---------------------------------------------------------------------- PROXY protocol
def test_the_proxy_header_carries_caller_and_target() -> None:
    header = build(WEB, "db.mesh")
    assert header[:16] == SIGNATURE + b"\x21\x00" + struct.pack(">H", len(header) - 16)
    assert parse(header + b"the request") == (ProxyHeader(WEB, "db.mesh"), len(header))
    assert [parse(header[:n]) for n in range(len(header))] == [None] * len(header)


def test_other_tlvs_and_addresses_are_skipped() -> None:
    ours = build(WEB, "db.mesh")[16:]
    for family, addresses in ((0x11, bytes(12)), (0x21, bytes(36)), (0x31, bytes(216))):
        body = addresses + b"\x04\x00\x02ab" + ours
        data = SIGNATURE + bytes((0x21, family)) + struct.pack(">H", len(body)) + body
        assert parse(data) == (ProxyHeader(WEB, "db.mesh"), len(data))


def test_bad_proxy_headers_are_refused() -> None:
    good = build(WEB, "db.mesh")

    def made(body: bytes, command: int = 0x21, family: int = 0) -> bytes:
        return SIGNATURE + bytes((command, family)) + struct.pack(">H", len(body)) + body

    for data in (
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        made(good[16:], 0x20),
        made(good[16:], family=0x41),
        made(b""),
        made(good[16:] * 2),
        made(good[16:] + b"\xe2"),
        made(good[16:-1]),
        made(b"\xe0\x00\x03bad\xe1\x00\x00"),
        made(b"\xe0\x00\x01\xff\xe1\x00\x00"),
        SIGNATURE + b"\x21\x00\xff\xff" + bytes(65535),
    ):
        with pytest.raises(BadMessage):
            parse(data)
    assert len(good) - 16 < BODY_BYTES_MAX


@given(st.binary(max_size=100), st.booleans())
def test_no_bytes_make_the_proxy_header_fall(data: bytes, signed: bool) -> None:
    try:
        parse(SIGNATURE + b"\x21" + data if signed else data)
    except BadMessage:
        pass
