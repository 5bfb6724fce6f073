"""A GOAWAY among the frames of others, against the frames of hyperframe."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.sdk.frameworks.http2 import Frames, refuse_call

BLOCK = [
    HeadersFrame(1, b"a" * 20),
    ContinuationFrame(1, b"b" * 5),
    ContinuationFrame(1, b"", flags=["END_HEADERS"]),
]
OTHERS = [
    [PingFrame(0, b"12345678")],
    [DataFrame(1, b"x" * 300)],
    [DataFrame(3, b"")],
    [HeadersFrame(5, b"c", flags=["END_HEADERS"])],
    BLOCK,
]


def read(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    while data:
        frame, size = Frame.parse_frame_header(memoryview(data[:9]))
        found.append((type(frame).__name__, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


@given(st.lists(st.sampled_from(OTHERS), max_size=8), st.data())
def test_exactly_one_goaway_stands_between_frames_and_nothing_is_changed(
    groups: list[list[Frame]], data: st.DataObject
) -> None:
    sent = [SettingsFrame(0)] + [frame for group in groups for frame in group]
    raw = b"".join(frame.serialize() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    when = data.draw(st.integers(0, len(cuts)))
    frames, out = Frames(), b""
    for turn, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(raw)], strict=True)):
        if turn == when:
            out += frames.move()
        out += frames.feed(raw[start:end])
    out += frames.move()  # Asked again: said once.
    heard = read(out)
    at = [place for place, (kind, _) in enumerate(heard) if kind == "GoAwayFrame"]
    assert len(at) == 1
    assert at[0] > 0, "settings come first"
    before = heard[at[0] - 1]
    assert before != ("HeadersFrame", b"a" * 20)
    assert before != ("ContinuationFrame", b"b" * 5)
    assert heard[at[0]][1] == (2**31 - 1).to_bytes(4) + bytes(4)
    del heard[at[0]]
    assert heard == read(raw)


def test_without_being_asked_nothing_is_said() -> None:
    raw = SettingsFrame(0).serialize() + DataFrame(1, b"x").serialize()
    assert Frames().feed(raw) == raw


@pytest.mark.parametrize("reason", ["peer refused: revoked", "100 % ü" + "x" * 500])
def test_a_refused_call_hears_why(reason: str) -> None:
    async def story() -> bytes:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        client, to_server = await asyncio.open_connection(sock=theirs)
        to_server.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize())
        to_server.write(HeadersFrame(7, b"\x82", flags=["END_HEADERS"]).serialize())
        async with asyncio.timeout(5):
            await refuse_call(reader, writer, reason)
            writer.close()
            heard = await client.read()
        to_server.close()
        return heard

    heard = asyncio.run(story())
    kinds = read(heard)
    names = [kind for kind, _ in kinds]
    assert names == ["SettingsFrame", "SettingsFrame", "HeadersFrame", "GoAwayFrame"]
    fields = dict(Decoder().decode(kinds[2][1], raw=True))
    said = reason.replace("%", "%25").replace("ü", "?")[:120]
    assert fields[b":status"] == b"200"
    assert fields[b"grpc-status"] == b"16"
    assert fields[b"grpc-message"] == said.encode()
    frame = GoAwayFrame(0)
    frame.parse_body(memoryview(kinds[3][1]))
    assert (frame.last_stream_id, frame.error_code) == (7, 0)
