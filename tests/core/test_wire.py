"""The words between processes: frames cut anywhere arrive whole, and nothing else is decoded."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.wire import codec, messages, records
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import Hop, pack_hop, unpack_hop
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import (
    AuthorityPathItem,
    BundleItem,
    CallerItem,
    ClockItem,
    Delta,
    DirectItem,
    Flood,
    Full,
    Intro,
    ListenItem,
    NameItem,
    NeighbourItem,
    NodeItem,
    PathsItem,
    Ready,
    ReplicasItem,
    RevokedItem,
    RuleItem,
    ServiceItem,
    SvidItem,
    Want,
    item_key,
)
from x0tta6bl4.wire.records import (
    PQ_TIMES,
    RECORD_BYTES_MAX,
    Adjacency,
    Bundle,
    Endpoint,
    Heartbeat,
    Manifest,
    Name,
    NodeBody,
    Record,
    RecordKey,
    Revocation,
    Rule,
    decode_record,
    encode_body,
    encode_record,
    id_matches,
    signed_part,
)

ITEMS: tuple[messages.Item, ...] = (
    NodeItem("mesh.test", "a", "10.0.0.1:8443", 300),
    SvidItem("spiffe://mesh.test/web", (b"leaf", b"ca"), b"key", 9),
    BundleItem("mesh.test", (b"ca",)),
    NeighbourItem("b", 7, ("127.0.0.1:1",), 3, 100_000, b"1", b"2", b"3", b"4", udp=False),
    PathsItem("c", (("a", "b", "c"), ("a", "d", "c"))),
    DirectItem("n3", "fd00::1"),
    AuthorityPathItem((("a", "b"),)),
    ReplicasItem("spiffe://mesh.test/web", (("c", 4),)),
    ServiceItem("spiffe://mesh.test/web", "unix:/run/web", ("unix:uid:1",), True),
    CallerItem("spiffe://mesh.test/shop", ("unix:uid:2", "unix:gid:3")),
    ListenItem("127.0.0.1:8080", "plain", "web"),
    NameItem("web", "spiffe://mesh.test/web", ("spiffe://mesh.test/*",)),
    RuleItem("r", "deny", ("spiffe://mesh.test/shop",), ("spiffe://mesh.test/web",)),
    RevokedItem("spiffe://mesh.test/node/b", 9, 5),
    ClockItem(1),
)


def record(body: bytes = b"body") -> Record:
    return Record("a", "node", "", 1, 2, body, (b"leaf",), b"signature")


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(0, 2**32))
def test_frames_arrive_whole_however_the_stream_is_cut(bodies: list[bytes], seed: int) -> None:
    sent = [Flood((body,)) for body in bodies]
    stream = b"".join(codec.encode(message) for message in sent)
    reader = codec.link_reader()
    got: list[object] = []
    at, step = 0, seed
    while at < len(stream):
        step = (step * 1_103_515_245 + 12_345) % 2**31
        size = 1 + step % 37
        got += reader.feed(stream[at : at + size])
        at += size
    assert got == sent


def test_every_kind_of_item_has_a_key_of_its_own_and_survives_the_socket() -> None:
    assert len({item_key(item) for item in ITEMS}) == len(ITEMS)
    assert {type(item) for item in ITEMS} == set(messages.Item.__args__)
    full = Full(4, ITEMS)
    delta = Delta(4, 5, ITEMS[:2], ("ClockItem",))
    assert list(codec.agent_reader().feed(codec.encode(full) + codec.encode(delta))) == [
        full,
        delta,
    ]
    ready = Ready(1, 2, 3, 4, 5)
    assert list(codec.proxy_reader().feed(codec.encode(ready))) == [ready]


def test_a_replaced_item_keeps_its_key_and_a_caller_with_other_selectors_is_another() -> None:
    for item in ITEMS:
        key = item_key(item)
        assert key == item_key(msgspec.structs.replace(item))
    one = CallerItem("spiffe://mesh.test/shop", ("unix:uid:2",))
    assert item_key(one) != item_key(ITEMS[8])


@pytest.mark.parametrize(
    ("data", "id"),
    [
        ((3 * 1024 * 1024).to_bytes(4, "little"), "X0-MSG-001"),
        (b"\x01\0\0\0\xc1", "X0-MSG-002"),
        (codec.encode({"t": "Unheard"}), "X0-MSG-002"),
        (codec.encode({"t": "Flood", "records": [], "more": 1}), "X0-MSG-002"),
        (codec.encode({"t": "Want", "keys": [["a", "b"]]}), "X0-MSG-002"),
        (codec.encode(Full(1, ())), "X0-MSG-002"),
    ],
)
def test_what_is_not_a_message_of_the_link_closes_it(data: bytes, id: str) -> None:
    with pytest.raises(BadMessage) as caught:
        list(codec.link_reader().feed(data))
    assert caught.value.id == id


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_refusal(data: bytes) -> None:
    framed = len(data).to_bytes(4, "little") + data
    for reader in (codec.link_reader(), codec.proxy_reader(), codec.agent_reader()):
        with contextlib.suppress(BadMessage):
            list(reader.feed(framed))
    with contextlib.suppress(BadMessage):
        assert encode_record(decode_record(data))


def test_text_that_is_no_utf8_is_no_message() -> None:
    # msgspec lets UnicodeDecodeError through, which is no DecodeError.
    bad = encode_record(record()).replace(b"node", b"n\xffde")
    with pytest.raises(BadMessage, match="X0-REC-002"):
        decode_record(bad)
    with pytest.raises(BadMessage, match="X0-REC-003"):
        records.decode_node(encode_body(NodeBody((), (), report="aaaa")).replace(b"aa", b"a\xff"))
    frame = codec.encode(Want((("aaaa", "node", ""),))).replace(b"aaaa", b"aaa\xff")
    with pytest.raises(BadMessage, match="X0-MSG-002"):
        list(codec.link_reader().feed(frame))
    hop = pack_hop(Hop(("a", "b"), "spiffe://mesh.test/web"))
    with pytest.raises(BadMessage, match="X0-HOP-006"):
        unpack_hop(hop.replace(b"web", b"w\xffb"), NodeName("a"))


def test_an_incomplete_frame_waits() -> None:
    reader = codec.link_reader()
    data = codec.encode(Want((("a", "node", ""),)))
    assert list(reader.feed(data[:-1])) == []
    assert list(reader.feed(data[-1:])) == [Want((("a", "node", ""),))]


def test_defaults_are_not_sent() -> None:
    intro = Intro(1, "a", 2, 3, (), 100_000, 5)
    assert b"area" not in codec.encode(intro)
    assert b"kernel" not in codec.encode(intro)
    assert list(codec.link_reader().feed(codec.encode(intro))) == [intro]
    offer = messages.KernelOffer(3, b"l" * 16, b"m" * 6, 1500, -1)
    offered = msgspec.structs.replace(intro, kernel=offer)
    later = msgspec.msgpack.decode(msgspec.msgpack.encode(offered))
    later["kernel"]["more"] = later["more"] = 1  # What a later version adds is no mistake.
    said = msgspec.msgpack.encode(later)
    assert msgspec.msgpack.decode(said, type=Intro).kernel == offer


@pytest.mark.parametrize(
    "wrong",
    [
        {"link": 256}, {"link": -1}, {"local": b"short"}, {"mac": b"m" * 7}, {"mtu": -1},
        {"mtu": 1 << 31}, {"slot": 2}, {"slot": -2},
    ],
)  # fmt: skip
def test_an_offer_of_what_no_kernel_has_is_no_message(wrong: dict[str, int | bytes]) -> None:
    offer = messages.KernelOffer(3, b"l" * 16, b"m" * 6, 1500, -1)
    bad = msgspec.structs.replace(offer, **wrong)
    intro = Intro(1, "a", 2, 3, (), 100_000, 5, kernel=bad)
    with pytest.raises(BadMessage, match="X0-MSG-002"):
        list(codec.link_reader().feed(codec.encode(intro)))


# ------------------------------------------------------------------ records
def test_a_record_is_bounded_and_its_signature_covers_everything_but_itself() -> None:
    one = record()
    assert decode_record(encode_record(one)) == one
    with pytest.raises(BadMessage, match="X0-REC-001"):
        encode_record(record(b"x" * RECORD_BYTES_MAX))
    with pytest.raises(BadMessage, match="X0-REC-001"):
        decode_record(b"x" * (PQ_TIMES * RECORD_BYTES_MAX + 1))
    padded = msgspec.msgpack.encode(record(b"x" * RECORD_BYTES_MAX))
    with pytest.raises(BadMessage, match="X0-REC-001"):  # As large as only others may be.
        decode_record(padded)
    wide = msgspec.structs.replace(record(b"x" * RECORD_BYTES_MAX), signature=b"s" * 3309)
    assert decode_record(encode_record(wide)) == wide
    with pytest.raises(BadMessage, match="X0-REC-001"):
        encode_record(msgspec.structs.replace(wide, body=b"x" * PQ_TIMES * RECORD_BYTES_MAX))
    part = signed_part(one)
    assert part == signed_part(msgspec.structs.replace(one, signature=b"other"))
    for field in ("writer", "kind", "name"):
        assert part != signed_part(msgspec.structs.replace(one, **{field: "other"}))
    for field in ("generation", "expires_unix_s"):
        assert part != signed_part(msgspec.structs.replace(one, **{field: 99}))
    assert part != signed_part(msgspec.structs.replace(one, signer=(b"other",)))
    assert part != signed_part(msgspec.structs.replace(one, body=b"other"))


def test_bodies_and_sets_survive_their_encoding() -> None:
    endpoint = Endpoint("spiffe://mesh.test/web", (b"leaf",), 1, 2, b"signature", 3)
    node = NodeBody((Adjacency("b", 16, True),), (endpoint,), authority=True)
    assert records.decode_node(encode_body(node)) == node
    manifest = Manifest("names", 1, (b"x" * 32,), b"")
    assert records.decode_manifest(encode_body(manifest)) == manifest
    bundle = Bundle("mesh.test", 1, (b"ca",), (RecordKey("k1", b"point"),))
    assert records.decode_bundle(encode_body(bundle)) == bundle
    revocations = (Revocation("spiffe://mesh.test/web", 9, "stolen", 5),)
    assert records.decode_revocations(encode_body(revocations)) == revocations
    names = (Name("web", "spiffe://mesh.test/web", ("spiffe://mesh.test/*",), True),)
    assert records.decode_names(encode_body(names)) == names
    rules = (Rule("r", "allow", (), ()),)
    assert records.decode_policy(encode_body(rules)) == rules
    assert records.decode_heartbeat(encode_body(Heartbeat(1, 2))) == Heartbeat(1, 2)
    with pytest.raises(BadMessage, match="X0-REC-003"):
        records.decode_node(b"\x90")


@pytest.mark.parametrize(
    ("pattern", "id", "matches"),
    [
        ("spiffe://t/a", "spiffe://t/a", True),
        ("spiffe://t/a", "spiffe://t/a/b", False),
        ("spiffe://t/a/*", "spiffe://t/a/b", True),
        ("spiffe://t/a/*", "spiffe://t/a/b/c", True),
        ("spiffe://t/a/*", "spiffe://t/a", False),
        ("spiffe://t/a/*", "spiffe://t/ab", False),
        ("spiffe://t/a/*", "spiffe://t/a/", False),
        ("spiffe://t/*", "spiffe://u/a", False),
        ("*", "spiffe://t/a", False),
    ],
)
def test_a_pattern_covers_an_id_or_everything_below_it(
    pattern: str, id: str, matches: bool
) -> None:
    assert id_matches(pattern, id) is matches
