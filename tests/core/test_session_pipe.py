"""Pipes of a session: the ring, frames in pieces, credit, bounds, and the bugs that models had."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.circuit import memory
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.circuit import ACK_EVERY, CONTROL_BYTES_MAX, Circuit
from x0tta6bl4.core.session.frames import Open, ProtocolError, Reset
from x0tta6bl4.core.session.pipe import (
    HELD_MAX,
    QUEUE_MAX,
    SESSION_CREDIT,
    STREAMS_MAX,
    Hooks,
    Pipe,
    SessionBroken,
)
from x0tta6bl4.core.session.ring import RING_BYTES_MAX, RING_BYTES_MIN, Ring, RingFull
from x0tta6bl4.core.session.stream import CREDIT_MAX, CREDIT_MIN, Stream


class Taker(Stream):
    """An application that takes everything at once, or nothing at all."""

    def __init__(self, eager: bool = True) -> None:
        super().__init__()
        self.eager = eager
        self.got = bytearray()
        self.events: list[str] = []

    def on_data(self, data: memoryview) -> None:
        self.got += data
        if self.eager:
            self.take(len(data))

    def on_opened(self) -> None:
        self.events.append("opened")

    def on_finish(self) -> None:
        self.events.append("finish")

    def on_reset(self, reason: Reset) -> None:
        self.events.append(reason.phrase)

    def on_credit(self) -> None:
        self.events.append("credit")


class Ends(Hooks):
    def __init__(self, eager: bool = True) -> None:
        self.eager = eager
        self.accepted: list[Taker] = []
        self.resumed = 0
        self.answer: Reset | None = None

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        if self.answer is not None:
            return self.answer
        self.accepted.append(Taker(self.eager))
        return self.accepted[-1]

    def resume(self, pipe: Pipe) -> None:
        self.resumed += 1


def nobody(circuit: Circuit, kind: int, value: int, body: bytes) -> None:
    raise AssertionError(f"unexpected frame {kind}")


class Both:
    """Two pipes joined by one circuit, without machines."""

    def __init__(self, eager: bool = True) -> None:
        self.ends = Ends(eager)
        self.client = Pipe(memory, Ends(), client=True)
        self.server = Pipe(memory, self.ends, client=False)
        self.count = 0
        self.join()

    def join(self) -> None:
        """A new circuit for both; what JOIN and JOINED say is done by hand."""
        self.count += 1
        self.near, self.far = Circuit(self.count, nobody), Circuit(self.count, nobody)
        self.client.attach(self.near)
        self.server.attach(self.far)
        self.near.offset = self.server.ring.acknowledged
        self.far.offset = self.client.ring.acknowledged

    def carry(self, rounds: int = 50) -> int:
        """Everything that waits, both ways; returns the bytes carried."""
        total = 0
        for _ in range(rounds):
            before = total
            for pipe, out, into in (
                (self.client, self.near, self.far),
                (self.server, self.far, self.near),
            ):
                pipe.flush()
                while (view := out.pending()) is not None:
                    total += len(view)
                    into.feed(memoryview(bytes(view)))
            if total == before:
                break
        return total

    def open(self) -> tuple[Taker, Taker]:
        app = Taker()
        assert self.client.open(app, Open("web")) is None
        self.carry()
        return app, self.ends.accepted[-1]


# ---------------------------------------------------------------------- the ring
@given(st.data())
def test_ring_gives_back_what_was_put_in_whatever_is_acknowledged(data: st.DataObject) -> None:
    ring = Ring(memory)
    written = bytearray()
    for number in range(data.draw(st.integers(1, 60))):
        size = data.draw(st.integers(0, 40_000))
        ring.reserve(size or 1)
        assert ring.limit - ring.at >= size
        ring.view[ring.at : ring.at + size] = bytes([number]) * size
        ring.at += size
        ring.close()
        written += bytes([number]) * size
        if data.draw(st.booleans()):
            ring.acknowledge(data.draw(st.integers(0, ring.written)))
        for offset, index, length in ring.chunks:
            assert ring.view[index : index + length] == written[offset : offset + length]
    assert ring.written == len(written)


def test_ring_starts_small_grows_and_rests() -> None:
    ring = Ring(memory)
    assert len(ring.view) == RING_BYTES_MIN
    for _ in range(12):
        ring.reserve(100_000)
        ring.at += 100_000
        ring.close()
    assert RING_BYTES_MIN < len(ring.view) < RING_BYTES_MAX
    ring.rest()
    assert len(ring.view) > RING_BYTES_MIN, "what is held is kept"
    ring.acknowledge(ring.written)
    ring.rest()
    assert len(ring.view) == RING_BYTES_MIN


def test_ring_is_bounded() -> None:
    ring = Ring(memory)

    def fill() -> None:
        for _ in range(200):
            ring.reserve(300_000)
            ring.at += 300_000
            ring.close()

    with pytest.raises(RingFull):
        fill()
    assert len(ring.view) == RING_BYTES_MAX


def test_a_batch_has_room_for_one_more_read_after_its_threshold() -> None:
    # A batch limit equal to the read chunk meant one frame per batch: 40 % of the rate.
    both = Both()
    app, _ = both.open()
    app.credit = both.client.credit = 1 << 30
    for _ in range(40):  # Grow the reads.
        assert both.client.receive(app, len) > 0
        both.carry()
    frames_of_batch = 0
    both.client.flush()
    before = both.client.ring.written
    while both.client.ring.written == before and frames_of_batch < 1000:
        assert both.client.receive(app, lambda room: 4096 * (len(room) >= 128 * 1024)) == 4096
        frames_of_batch += 1
    assert frames_of_batch > 20


# ---------------------------------------------------------------------- bytes and frames
@given(
    st.lists(st.binary(max_size=3000), max_size=30),
    st.lists(st.integers(1, 5000), min_size=1, max_size=20),
)
def test_frames_may_be_cut_anywhere(parts: list[bytes], cuts: list[int]) -> None:
    both = Both()
    app = Taker()
    both.client.open(app, Open("a-service", 80))
    for part in parts:
        both.client.write(app, part)
    both.client.finish(app)
    both.client.flush()
    stream = b""
    while (view := both.near.pending()) is not None:
        stream += bytes(view)
    at = index = 0
    while at < len(stream):
        size = cuts[index % len(cuts)]
        both.far.feed(memoryview(stream[at : at + size]))
        at += size
        index += 1
    served = both.ends.accepted[0]
    assert bytes(served.got) == b"".join(parts)
    assert served.events == ["finish"]
    assert served.ask == Open("a-service", 80)


def test_open_and_first_data_are_one_write() -> None:
    both = Both()
    app = Taker()
    both.client.open(app, Open("web"))
    both.client.write(app, b"GET /")
    both.client.flush()
    view = both.near.pending()
    assert view is not None
    both.far.feed(memoryview(bytes(view)))
    assert both.near.pending() is None
    assert both.ends.accepted[0].got == b"GET /"


def test_an_acknowledgement_rides_in_front_of_a_chunk() -> None:
    both = Both()
    app, served = both.open()
    both.client.write(app, b"question")
    both.carry()
    both.server.write(served, b"answer")
    both.server.flush()
    view = both.far.pending()
    assert view is not None
    head, word = struct.unpack_from("<II", view)
    assert word >> 28 == frames.ACK
    assert head == both.server.received
    both.near.feed(memoryview(bytes(view)))
    assert both.client.ring.held == 0


def test_refusals_resets_and_half_closes_carry_their_meaning() -> None:
    both = Both()
    both.ends.answer = Reset.NO_SERVICE
    app = Taker()
    both.client.open(app, Open("web"))
    both.carry()
    assert app.events == ["no-service"]
    assert not both.client.streams
    both.ends.answer = None
    app, served = both.open()
    both.server.opened(served)
    both.client.finish(app)
    both.carry()
    assert served.events == ["finish"]
    assert app.events == ["opened"]
    both.server.write(served, b"after your end")
    both.server.reset(served, Reset.LISTENER)
    both.carry()
    assert app.got == b"after your end"
    assert app.events == ["opened", "listener"]


def test_replay_starts_anywhere_and_nothing_is_executed_twice() -> None:
    both = Both()
    app, served = both.open()
    sent = bytes(range(256)) * 200
    both.client.write(app, sent)
    both.client.flush()
    view = both.near.pending()
    assert view is not None
    whole = bytes(view)
    both.far.feed(memoryview(whole[: len(whole) // 3]))  # The circuit dies in the middle of a body.
    both.join()
    both.carry()
    assert bytes(served.got) == sent
    assert len(both.ends.accepted) == 1


def test_two_circuits_may_deliver_at_once() -> None:
    both = Both()
    app, served = both.open()
    both.client.write(app, b"x" * 5000)
    both.client.flush()
    view = both.near.pending()
    assert view is not None
    late = bytes(view)
    old = both.far
    old.feed(memoryview(late[:1000]))
    both.join()
    both.carry()
    assert len(served.got) == 5000
    old.feed(memoryview(late[1000:]))
    assert bytes(served.got) == b"x" * 5000


def test_what_the_other_end_has_already_is_skipped_with_seek() -> None:
    both = Both()
    app, served = both.open()
    both.carry()
    for number in range(5):
        both.client.write(app, bytes([number]) * 100)
        both.client.flush()
    written = both.client.ring.written
    third = both.client.ring.chunks[2][0]
    for _ in range(3):
        view = both.near.pending()
        assert view is not None
        both.far.feed(memoryview(bytes(view)))
    both.join()
    both.client.acknowledge(both.server.received)  # JOINED says so, after the replay was queued.
    view = both.near.pending()
    assert view is not None
    head, word = struct.unpack_from("<II", view)
    assert word >> 28 == frames.SEEK
    assert head > third
    both.far.feed(memoryview(bytes(view)))
    both.carry()
    assert both.server.received == written
    assert [served.got[i * 100] for i in range(5)] == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------- bounds
def test_pause_ends_when_joined_acknowledges_all_that_is_queued() -> None:
    # A pause computed from the circuit's send offset never ended: a session hung for ever.
    both = Both()
    app, _ = both.open()
    app.credit = both.client.credit = 1 << 30
    while not both.client.paused:
        both.client.write(app, bytes(50_000))
        both.client.flush()
    stream = []
    while (view := both.near.pending()) is not None:
        stream.append(bytes(view))
    for part in stream:
        both.far.feed(memoryview(part))
    both.client.attach(Circuit(9, nobody))
    assert both.client.paused, "all of it is queued again"
    both.client.acknowledge(both.server.received)
    assert both.client.ring.queued == 0
    assert not both.client.paused


def test_reading_stops_at_the_queue_and_goes_on_below_it() -> None:
    both = Both()
    app, _ = both.open()
    app.credit = both.client.credit = 1 << 30
    total = 0
    while not both.client.paused:
        total += both.client.write(app, bytes(10_000))
        both.client.flush()
    assert QUEUE_MAX < both.client.ring.queued <= QUEUE_MAX + 400_000
    assert both.client.receive(app, len) == -1
    resumed = both.client.hooks.resumed  # type: ignore[attr-defined]
    both.carry()
    assert not both.client.paused
    assert both.client.hooks.resumed > resumed
    assert total == len(both.ends.accepted[0].got)


def test_unacknowledged_bytes_are_bounded_while_nobody_acknowledges() -> None:
    both = Both()
    apps = [both.open()[0] for _ in range(40)]
    both.client.credit = 1 << 30
    for app in apps:
        app.credit = 1 << 30
        while both.client.write(app, bytes(100_000)):
            both.client.flush()
            while both.near.pending() is not None:
                pass  # Into a circuit that swallows everything.
    assert HELD_MAX < both.client.ring.held < HELD_MAX + 600_000
    held = both.client.ring.held
    for app in apps:  # FIN and RST pass even then.
        both.client.finish(app)
        both.client.reset(app, Reset.RESET)
    assert not both.client.broken
    both.client.flush()
    assert both.client.ring.held - held < 2000
    refused = None
    while refused is None:  # New streams pass for a while, then no more.
        refused = both.client.open(Taker(), Open("web"))
        both.client.flush()
    assert refused is Reset.BUSY
    assert both.client.ring.held < HELD_MAX + 600_000
    both.join()
    both.carry()
    first, *others = both.ends.accepted[:40]
    assert first.events == ["credit"], "it had sent more than it was allowed to"
    assert all(taker.events == ["finish", "reset"] for taker in others)


def test_streams_are_bounded_at_both_ends() -> None:
    both = Both()
    for _ in range(STREAMS_MAX):
        assert both.client.open(Taker(), Open("web")) is None
        both.carry()
    assert both.client.open(Taker(), Open("web")) is Reset.BUSY
    refused = frames.open_frame(STREAMS_MAX + 1, Open("web"))
    both.far.feed(memoryview(refused))
    assert len(both.server.streams) == STREAMS_MAX
    both.server.flush()
    view = both.far.pending()
    assert view is not None
    reset = frames.frame(STREAMS_MAX + 1, frames.RST, Reset.BUSY)
    assert reset in bytes(view)


def test_credit_grows_with_what_the_application_takes() -> None:
    both = Both()
    app, served = both.open()
    assert app.credit == CREDIT_MIN
    assert both.client.write(app, bytes(1 << 20)) == CREDIT_MIN
    total = 0
    for _ in range(200):
        total += both.client.write(app, bytes(1 << 20))
        both.carry()
    assert CREDIT_MAX // 2 <= app.credit <= CREDIT_MAX
    served.eager = False
    sent = 0
    for _ in range(100):
        sent += both.client.write(app, bytes(1 << 20))
        both.carry()
    assert app.credit == 0
    assert sent <= CREDIT_MAX, "an application that stands still gets no more"
    served.take(sent)
    both.carry()
    assert app.events[-1] == "credit"


def test_a_sender_without_credit_is_cut_off() -> None:
    both = Both(eager=False)
    app, served = both.open()
    app.credit = 1 << 20
    both.client.write(app, bytes(CREDIT_MIN + 1))
    both.carry()
    assert served.events == ["credit"]
    assert app.events[-1] == "credit"


def test_the_session_has_a_credit_of_its_own() -> None:
    both = Both(eager=False)
    apps = [both.open()[0] for _ in range(200)]
    total = 0
    for app in apps:
        app.credit = CREDIT_MIN
        total += both.client.write(app, bytes(CREDIT_MIN))
        both.carry()
    assert total == SESSION_CREDIT
    lent = both.ends.accepted[0].lend()
    assert lent == CREDIT_MIN
    for stream in both.ends.accepted[1:40]:
        stream.lend()
    both.carry()
    assert both.client.credit == 32 * CREDIT_MIN, "what stands still no longer blocks the others"
    both.ends.accepted[0].take(lent)
    assert both.ends.accepted[0].lent == 0


def test_a_peer_that_ignores_the_sessions_credit_ends_the_session() -> None:
    both = Both(eager=False)
    for _ in range(300):
        app, _ = both.open()
        app.credit = CREDIT_MIN
    both.client.credit = 1 << 40

    def flood() -> None:
        for app in tuple(both.client.streams.values()):
            both.client.write(app, bytes(CREDIT_MIN))
            both.carry()

    with pytest.raises(SessionBroken):
        flood()


def test_bytes_for_a_stream_that_is_gone_give_their_credit_back() -> None:
    both = Both(eager=False)
    app, served = both.open()
    for _ in range(100):
        app, served = both.open()
        app.credit = CREDIT_MIN
        both.client.write(app, bytes(CREDIT_MIN))
        both.server.reset(served, Reset.RESET)
        both.carry()
    assert both.client.credit > SESSION_CREDIT - SESSION_CREDIT // 4 - CREDIT_MIN


# ---------------------------------------------------------------------- what a hostile peer may say
def data(number: int, body: bytes) -> bytes:
    return frames.HEADER.pack(number, len(body)) + body


@pytest.mark.parametrize(
    ("what", "bytes_"),
    [
        ("unknown kind", frames.frame(0, 6)),
        ("ack of what was never sent", frames.offset_frame(frames.ACK, 1 << 30)),
        ("seek beyond what came", frames.offset_frame(frames.SEEK, 1 << 30)),
        ("open of stream 0", frames.open_frame(0, Open("x"))),
        ("open twice", frames.open_frame(1, Open("x"))),
        ("open that is too long", frames.HEADER.pack(9, frames.OPEN << 28 | 5000) + bytes(5000)),
        ("open that is no text", frames.HEADER.pack(9, frames.OPEN << 28 | 4) + b"\0\0\xff\xff"),
        ("open without a body", frames.HEADER.pack(9, frames.OPEN << 28)),
        ("join of a wrong length", frames.HEADER.pack(0, frames.JOIN << 28 | 5) + bytes(5)),
    ],
)
def test_nonsense_closes_the_circuit_and_no_more(what: str, bytes_: bytes) -> None:
    both = Both()
    app, served = both.open()
    with pytest.raises(ProtocolError):
        both.far.feed(memoryview(bytes_))
    both.join()
    both.client.write(app, b"still here")
    both.carry()
    assert served.got == b"still here"


def test_nothing_numbered_before_join() -> None:
    for bytes_ in (data(1, b"x"), frames.open_frame(1, Open()), frames.frame(1, frames.FIN)):
        circuit = Circuit(1, nobody)
        with pytest.raises(ProtocolError):
            circuit.feed(memoryview(bytes_))
    circuit = Circuit(1, nobody)
    with pytest.raises(ProtocolError):
        circuit.feed(memoryview(frames.offset_frame(frames.ACK, 0)))


def test_a_client_accepts_no_streams() -> None:
    both = Both()
    with pytest.raises(ProtocolError):
        both.near.feed(memoryview(frames.open_frame(2, Open("x"))))


def test_who_pings_and_never_reads_is_cut_off() -> None:
    circuit = Circuit(1, nobody)
    with pytest.raises(ProtocolError):
        circuit.feed(memoryview(frames.frame(7, frames.PING) * (CONTROL_BYTES_MAX // 8 + 1)))


def test_pings_are_answered_before_join_and_acks_come_every_so_often() -> None:
    circuit = Circuit(1, nobody)
    circuit.feed(memoryview(frames.frame(7, frames.PING)))
    assert bytes(circuit.pending() or b"") == frames.frame(7, frames.PONG)
    both = Both()
    app, served = both.open()
    both.carry()
    app.credit = both.client.credit = 1 << 30
    served.promised = 1 << 30
    told = both.far.told
    both.client.write(app, bytes(ACK_EVERY + 100))
    both.client.flush()
    while (view := both.near.pending()) is not None:
        both.far.feed(memoryview(bytes(view)))
    assert both.far.told > told or both.server.ring.limit


def test_a_stream_reset_within_a_batch_leaves_the_rest_of_it_intact() -> None:
    # Closing something from within the receive path must not lose the rest of the buffer.
    both = Both()
    one, first = both.open()
    two, second = both.open()

    def cut(data: memoryview) -> None:
        assert first.pipe is not None
        first.pipe.reset(first, Reset.RESET)

    first.on_data = cut  # type: ignore[method-assign]
    both.client.write(one, b"a" * 100)
    both.client.write(two, b"b" * 100)
    both.client.write(one, b"c" * 100)
    both.client.write(two, b"d" * 100)
    both.carry()
    assert bytes(second.got) == b"b" * 100 + b"d" * 100
    assert one.events == ["reset"]


def test_a_closed_session_resets_its_streams_once() -> None:
    both = Both()
    app, _ = both.open()
    both.client.close(Reset.UNREACHABLE)
    both.client.close(Reset.UNREACHABLE)
    assert app.events == ["unreachable"]
