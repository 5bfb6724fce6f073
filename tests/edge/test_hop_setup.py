"""Setup frames: what is sealed opens once, and nothing else opens at all."""

from __future__ import annotations

import struct
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.core.machine import Denied, Instant
from x0tta6bl4.edge.hop.setup import WINDOW, LinkSeal, Window
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import (
    AUTHORITY,
    CHANNEL,
    ENROL,
    HEADER_BYTES,
    HOP,
    Header,
    Hop,
    pack_header,
    pack_hop,
    pack_refusal,
    target_id,
    unpack_header,
    unpack_hop,
    unpack_refusal,
)
from x0tta6bl4.wire.ids import NodeName

WEB = "spiffe://mesh.test/web"
B = NodeName("b")


def pair(now: int = 1_000_000) -> tuple[LinkSeal, LinkSeal]:
    one, two = b"\x01" * 32, b"\x02" * 32
    return LinkSeal(7, one, two, Instant(now)), LinkSeal(7, two, one, Instant(now))


def split(frame: bytes) -> tuple[bytes, bytes]:
    return frame[:HEADER_BYTES], frame[HEADER_BYTES:]


def test_a_hop_opens_at_the_other_end_of_the_link() -> None:
    a, b = pair()
    hop = Hop(("b", "c"), WEB)
    header, sealed = split(a.seal(HOP, pack_hop(hop)))
    assert unpack_header(header) == Header(HOP, 7, 1_000_001, len(sealed))
    body = b.open(header, sealed)
    assert isinstance(body, bytes)
    assert unpack_hop(body, B) == hop
    assert target_id(hop) == WEB
    assert target_id(Hop(("b",), AUTHORITY)) is None


def test_the_same_frame_opens_only_once_and_never_at_its_sender() -> None:
    a, b = pair()
    frame = split(a.seal(HOP, b"x"))
    assert b.open(*frame) == b"x"
    assert b.open(*frame) == Denied("setup frame replayed")
    assert a.open(*frame) == Denied("setup frame forged"), "a reflected frame has the wrong key"


def test_a_flood_of_replays_and_reordering_inside_the_window_admits_each_frame_once() -> None:
    a, b = pair()
    frames = [split(a.seal(HOP, b"%d" % i)) for i in range(WINDOW + 200)]
    order = [*range(100, WINDOW + 100), *range(100), *range(WINDOW + 100, WINDOW + 200)]
    opened = [i for i in order for _ in range(3) if isinstance(b.open(*frames[i]), bytes)]
    # What is more than a window behind the newest counts as seen.
    assert opened == [i for i in order if not i < 100]


def test_the_window_keeps_what_is_inside_it() -> None:
    window = Window()
    window.admit(WINDOW)
    assert not window.fresh(0)
    assert window.fresh(1)
    window.admit(1)
    assert not window.fresh(1)
    window.admit(10 * WINDOW)
    assert not window.fresh(WINDOW)
    assert window.fresh(10 * WINDOW - 1)


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_the_window_agrees_with_a_set(counters: list[int]) -> None:
    window, seen, newest = Window(), set[int](), -1
    for counter in counters:
        expected = counter not in seen and counter > newest - WINDOW
        assert window.fresh(counter) == expected
        if expected:
            window.admit(counter)
            seen.add(counter)
            newest = max(newest, counter)


@given(st.data())
def test_no_flipped_bit_and_no_cut_opens(data: st.DataObject) -> None:
    a, b = pair()
    frame = bytearray(a.seal(HOP, pack_hop(Hop(("b",), WEB))))
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, len(frame) * 8 - 1))
        frame[bit // 8] ^= 1 << bit % 8
    else:
        del frame[data.draw(st.integers(0, len(frame) - 1)) :]
    assert isinstance(b.open(*split(bytes(frame))), Denied)


@given(st.binary(max_size=64))
def test_no_forged_bytes_open(garbage: bytes) -> None:
    _, b = pair()
    header = pack_header(Header(HOP, 7, 99, len(garbage)))
    assert isinstance(b.open(header, garbage), Denied)


def test_another_link_s_frame_is_not_tried() -> None:
    other = LinkSeal(8, b"\x01" * 32, b"\x02" * 32, Instant(0))
    _, b = pair()
    assert b.open(*split(other.seal(HOP, b""))) == Denied("setup frame of another link")


@pytest.mark.parametrize(
    ("path", "id"),
    [
        ((), "X0-HOP-007"),
        (tuple(f"n{i}" for i in range(17)), "X0-HOP-007"),
        (tuple(f"n{i}" for i in range(1000)), "X0-HOP-004"),
        (("b", "c", "b"), "X0-HOP-008"),
        (("b", "b"), "X0-HOP-008"),
        (("b", "C"), "X0-HOP-009"),
        (("b", ""), "X0-HOP-009"),
        (("b", "../x"), "X0-HOP-009"),
        (("a", "b"), "X0-HOP-010"),
    ],
)
def test_bad_paths_are_refused_by_name(path: tuple[str, ...], id: str) -> None:
    with pytest.raises(BadMessage) as caught:
        unpack_hop(msgspec.msgpack.encode(Hop(path, WEB)), B)
    assert caught.value.id == id


def test_a_thousand_hops_do_not_even_fit_a_frame() -> None:
    a, _ = pair()
    body = msgspec.msgpack.encode(Hop(tuple(f"n{i}" for i in range(1000)), WEB))
    with pytest.raises(BadMessage):
        a.seal(HOP, body)
    with pytest.raises(BadMessage):
        unpack_header(pack_header(Header(HOP, 7, 1, 4097)))


def test_sixteen_of_the_longest_names_fit() -> None:
    a, b = pair()
    path = tuple(f"{i:02}" + "n" * 61 for i in range(16))
    hop = Hop(path, "spiffe://mesh.test/" + "x" * (2048 - 19))
    body = b.open(*split(a.seal(HOP, pack_hop(hop))))
    assert isinstance(body, bytes)
    assert unpack_hop(body, NodeName(path[0])) == hop


@pytest.mark.parametrize("target", ["", "web", "spiffe://MESH.test/web", "spiffe://m/../x"])
def test_bad_targets_are_refused(target: str) -> None:
    with pytest.raises(BadMessage):
        unpack_hop(msgspec.msgpack.encode(Hop(("b",), target)), B)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parsers_fall(data: bytes) -> None:
    for call in (lambda: unpack_header(data[:HEADER_BYTES]), lambda: unpack_hop(data, B)):
        try:
            call()
        except BadMessage:
            pass


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ({"kind": 0}, "X0-HOP-003"),
        ({"kind": 16}, "X0-HOP-003"),
        ({"kind": 0x80}, "X0-HOP-003"),
        ({"length": 5000}, "X0-HOP-004"),
        ({"kind": ENROL}, "X0-HOP-005"),
    ],
)
def test_bad_headers_are_refused_by_name(change: dict[str, int], id: str) -> None:
    fields = {"kind": HOP, "link": 1, "counter": 1, "length": 20} | change
    with pytest.raises(BadMessage) as caught:
        unpack_header(pack_header(Header(**fields)))
    assert caught.value.id == id


def test_a_version_to_come_and_other_protocols_are_refused() -> None:
    for data in (b"X0\x02\x01", b"\x16\x03\x01\x02", b"GET ", b"SSH-"):
        with pytest.raises(BadMessage):
            unpack_header(data + bytes(HEADER_BYTES - 4))


def test_a_refusal_is_told_from_tls_at_every_byte() -> None:
    frame = pack_refusal("no link to c")
    assert [unpack_refusal(frame[:n]) for n in range(1, len(frame))] == [""] * (len(frame) - 1)
    assert unpack_refusal(frame) == "no link to c"
    assert unpack_refusal(frame + b"more") == "no link to c"
    assert unpack_refusal(b"\x16\x03\x03") is None
    assert unpack_refusal(b"X1") is None
    assert len(pack_refusal("r" * 5000)) < 256
    assert unpack_refusal(pack_refusal("a\x1b[31m\u00e9")) == "a?[31m?"
    assert unpack_refusal(struct.pack("<2sBBH", b"X0", 1, 0x80, 60000)) == ""


def test_a_channel_s_messages_open_in_order_only() -> None:
    a, b = pair()
    header, sealed = split(a.seal(CHANNEL, b""))
    assert b.open(header, sealed) == b""
    dialler, acceptor = a.channel(header, True), b.channel(header, False)
    first, second = dialler.seal(b"one"), dialler.seal(b"two")
    assert acceptor.open(first) == b"one"
    assert acceptor.open(second) == b"two"
    assert isinstance(acceptor.open(second), Denied), "replayed"
    assert dialler.open(acceptor.seal(b"back")) == b"back"
    assert isinstance(dialler.open(dialler.seal(b"reflected")), Denied)
    other = pair()[1].channel(split(a.seal(CHANNEL, b""))[0], False)
    assert isinstance(other.open(a.channel(header, True).seal(b"one")), Denied), "another channel"


def test_counters_of_a_link_given_again_do_not_repeat() -> None:
    first, _ = pair(now=5_000_000)
    used = [unpack_header(first.seal(HOP, b"")[:HEADER_BYTES]).counter for _ in range(100)]
    again, _ = pair(now=5_001_000)
    assert unpack_header(again.seal(HOP, b"")[:HEADER_BYTES]).counter > max(used)


@pytest.mark.parametrize(
    ("link", "tx", "rx"),
    [
        (0, b"1" * 32, b"2" * 32),
        (2**32, b"1" * 32, b"2" * 32),
        (1, b"1" * 31, b"2" * 32),
        (1, b"1" * 32, b"1" * 32),
    ],
)
def test_keys_of_a_wrong_form_are_refused(link: int, tx: bytes, rx: bytes) -> None:
    with pytest.raises(BadMessage):
        LinkSeal(link, tx, rx, Instant(0))


def test_sealing_and_opening_are_cheap() -> None:
    a, b = pair()
    body = pack_hop(Hop(("b", "c", "d"), WEB))
    began = time.process_time()
    for _ in range(2000):
        assert not isinstance(b.open(*split(a.seal(HOP, body))), Denied)
    each_us = (time.process_time() - began) / 2000 * 1e6
    print(f"seal and open: {each_us:.1f} us")
    assert each_us < 200
