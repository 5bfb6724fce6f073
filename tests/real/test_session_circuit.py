"""One contract for the circuits of simulator and proxy: bytes in order, or the circuit ends.

everything that one end gives arrives at the other once and in order
a close at one end is seen at the other, behind the bytes under way
bytes that were changed on the way are never delivered: the circuit ends instead
an end that does not take holds the sender back
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest

from tests.fakes.ca import FakeCa
from tests.fakes.circuit import World, memory
from tests.fakes.endpoints import WallClock
from x0tta6bl4.core.identity.rules import WORKLOAD
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.pipe import Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.edge.tls.engine import Engine
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.circuits import Buffers, TlsCircuit
from x0tta6bl4.runtime.loop.poll import READ, Loop
from x0tta6bl4.runtime.sim.circuit import End, Wire


class Taker(Stream):
    def __init__(self) -> None:
        super().__init__()
        self.got = bytearray()

    def on_data(self, data: memoryview) -> None:
        self.got += data
        self.take(len(data))


class Side(Hooks):
    """A pipe over one circuit that was joined by hand; the kind of circuit does not matter."""

    def __init__(self, client: bool) -> None:
        self.pipe = Pipe(memory, self, client)
        self.circuit = Circuit(1, lambda *_: None)
        self.pump: Callable[[], None] = lambda: None
        self.reason = ""
        self.taker: Taker | None = None

    def start(self) -> None:
        self.pipe.attach(self.circuit)
        self.circuit.offset = 0

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        self.taker = Taker()
        return self.taker

    def flush(self) -> None:
        self.pipe.flush()
        self.pump()


class Simulated:
    def __init__(self) -> None:
        self.world = World()
        self.wire = Wire(self.world, 200, Random(1), "contract")
        self.near, self.far = Side(True), Side(False)
        for side, end in ((self.near, self.wire.dialled), (self.far, self.wire.accepted)):
            side.start()
            side.pump = end.pump
            end.start(side.circuit, self.lost, lambda end: self.of(end).flush())

    def of(self, end: End) -> Side:
        return self.near if end.side == 0 else self.far

    def lost(self, end: End, reason: str) -> None:
        self.of(end).reason = reason

    def run(self, until: Callable[[], object]) -> None:
        for _ in range(20_000):
            if until():
                return
            self.near.flush()
            self.world.run(self.world.now + 100)
        raise AssertionError("waited for too long")

    def close_far(self) -> None:
        self.wire.accepted.close()

    def corrupt(self) -> None:
        self.wire.corrupt(0)

    def block(self) -> None:
        self.wire.silence(0)

    def close(self) -> None:
        pass


class Real:
    """Two TlsCircuits with a relay of ours between them that can be told to misbehave."""

    def __init__(self) -> None:
        self.loop = Loop()
        ca = FakeCa(clock=WallClock())
        contexts = [ca.context(path, WORKLOAD) for path in ("a", "b")]
        near, middle = socket.socketpair()
        other, far = socket.socketpair()
        self.middle = (middle, other)
        for sock in (near, middle, other, far):
            sock.setblocking(False)
        self.near, self.far = Side(True), Side(False)
        self.ends: list[TlsCircuit] = []
        self.spoil = self.stop = False
        self.shaken = 0
        for side, sock, server in ((self.near, near, False), (self.far, far, True)):
            end = TlsCircuit(
                self.loop,
                sock,
                Engine(contexts[server], server),
                Buffers(),
                side.circuit,
                self,
                ca.id("b" if server else "a"),
                peer=None if server else ca.id("b"),
            )
            side.pump = end.pump
            self.ends.append(end)
        for one, two in (self.middle, self.middle[::-1]):
            self.loop.add(one.fileno(), READ, partial(self.relay, one, two))
        for end in self.ends:
            end.start()
        self.run(lambda: self.shaken == 2)
        self.near.start()
        self.far.start()

    def relay(self, one: socket.socket, two: socket.socket, mask: int) -> None:
        if self.stop:
            self.loop.set(one.fileno(), 0)
            return
        data = bytearray(one.recv(100_000))
        if not data:
            self.loop.drop(one.fileno())
            two.shutdown(socket.SHUT_WR)
            return
        if self.spoil and one is self.middle[0]:
            self.spoil = False
            data[len(data) // 2] ^= 1
        two.setblocking(True)
        two.sendall(data)

    def on_shaken(self, circuit: TlsCircuit) -> None:
        self.shaken += 1

    def on_fed(self, circuit: TlsCircuit) -> None:
        (self.near if circuit is self.ends[0] else self.far).flush()

    def on_lost(self, circuit: TlsCircuit, reason: str) -> None:
        (self.near if circuit is self.ends[0] else self.far).reason = reason

    def run(self, until: Callable[[], object]) -> None:
        deadline = clock() + 10_000_000
        while not until():
            assert clock() < deadline, "waited for too long"
            self.near.flush()
            self.loop.once(clock() + 1_000)  # type: ignore[arg-type]

    def close_far(self) -> None:
        self.ends[1].close()

    def corrupt(self) -> None:
        self.spoil = True

    def block(self) -> None:
        self.stop = True

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for sock in self.middle:
            sock.close()
        self.loop.close()


@pytest.fixture(params=[Simulated, Real])
def circuit(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def feed(circuit: Any, data: bytes) -> Taker:
    """Open a stream and send all of `data` over it, as far as credit goes."""
    stream = Taker()
    circuit.near.pipe.open(stream, Open("x"))
    sent = 0

    def done() -> bool:
        nonlocal sent
        sent += int(circuit.near.pipe.write(stream, data[sent:]))
        return sent == len(data)

    circuit.run(done)
    return stream


def test_everything_arrives_once_and_in_order(circuit: Any) -> None:
    data = Random(2).randbytes(3_000_000)
    feed(circuit, data)
    circuit.run(lambda: len(circuit.far.taker.got) == len(data))
    assert bytes(circuit.far.taker.got) == data


def test_a_close_is_seen_at_the_other_end(circuit: Any) -> None:
    feed(circuit, b"x")
    circuit.run(lambda: circuit.far.taker is not None)
    circuit.close_far()
    circuit.run(lambda: circuit.near.reason)
    assert circuit.near.reason in ("reset", "eof", "closed")
    assert circuit.far.reason == "", "who closes on purpose is not told"


def test_what_was_changed_on_the_way_is_never_delivered(circuit: Any) -> None:
    feed(circuit, b"good")
    circuit.run(lambda: circuit.far.taker and circuit.far.taker.got)
    circuit.corrupt()
    stream = next(iter(circuit.near.pipe.streams.values()))
    circuit.near.pipe.write(stream, b"changed on the way")
    circuit.run(lambda: circuit.far.reason)
    assert circuit.far.reason.startswith("tls")
    assert bytes(circuit.far.taker.got) == b"good"
    circuit.run(lambda: circuit.near.reason)


def test_an_end_that_does_not_take_holds_the_sender_back(circuit: Any) -> None:
    feed(circuit, b"x")
    circuit.run(lambda: circuit.far.taker is not None)
    circuit.block()
    pipe = circuit.near.pipe
    stream = next(iter(pipe.streams.values()))
    stream.credit = pipe.credit = 1 << 30

    def paused() -> bool:
        pipe.write(stream, bytes(100_000))
        return bool(pipe.paused)

    circuit.run(paused)
    assert pipe.ring.held < 3_000_000
