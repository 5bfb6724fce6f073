"""Two proxies with sessions over the simulator's circuits, and applications that know every byte.

`Pair` drives the same machines and pipes as the proxy does, in virtual time.  `App` sends a known
sequence and checks what it gets against the other's: the exact-bytes law.
"""

from __future__ import annotations

import heapq
import hmac
import itertools
from collections.abc import Callable
from random import Random
from typing import Any

from x0tta6bl4.core.machine import (
    SECOND,
    ClockSet,
    Done,
    Effects,
    Event,
    Failed,
    Instant,
    Machine,
    Tick,
)
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.answer import Server
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.control import Client
from x0tta6bl4.core.session.facts import LIMITS, Limits, Path, Up
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.pipe import Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.runtime.sim.circuit import End, Wire
from x0tta6bl4.wire.ids import SpiffeId

SOURCE = SpiffeId("spiffe://mesh.test/a")
TARGET = SpiffeId("spiffe://mesh.test/b")
CLOCK_US = 1_800_000_000 * SECOND
FOREVER = CLOCK_US + 10**15


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def memory(size: int) -> memoryview:
    return memoryview(bytearray(size))


class World:
    """Virtual time."""

    def __init__(self) -> None:
        self.now = SECOND
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._serial = itertools.count()

    def at(self, at: int, call: Callable[[Any], None], argument: Any = None) -> None:
        heapq.heappush(self._heap, (max(at, self.now), next(self._serial), call, argument))

    def run(self, until: int) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call, argument = heapq.heappop(self._heap)
            call(argument)
        self.now = until


class App(Stream):
    """One application connection: writes `script`, reads at its own pace, remembers everything."""

    def __init__(self, side: Side, script: bytes, pace: int = 0) -> None:
        super().__init__()
        self.side = side
        self.script = script
        self.pace = pace
        """Bytes taken per read event of a slow reader; 0: everything at once."""
        self.put = 0
        self.got = bytearray()
        self.checked = 0
        self.standing = 0
        self.end: str = ""
        self.refused: Reset | None = None
        self.want_fin = True

    def write_some(self, limit: int = 1 << 30) -> None:
        pipe = self.pipe
        if pipe is None or self.finished:
            return
        rest = self.script[self.put : self.put + limit]
        self.put += pipe.write(self, rest)
        if self.put == len(self.script) and self.want_fin:
            pipe.finish(self)
            self._done()

    def on_data(self, data: memoryview) -> None:
        self.got += data
        if self.pace:
            if not self.standing:
                self.side.world.at(self.side.world.now + 10_000, self._read)
            self.standing += len(data)
        else:
            self.take(len(data))

    def _read(self, _: Any) -> None:
        count = min(self.pace, self.standing)
        self.standing -= count
        self.take(count)
        if self.standing:
            self.side.world.at(self.side.world.now + 10_000, self._read)
        self._done()

    def on_finish(self) -> None:
        self._done()

    def on_credit(self) -> None:
        self.side.eager.add(self)

    def on_reset(self, reason: Reset) -> None:
        self.end = self.end or "reset"
        self.refused = reason

    def check_against(self, script: bytes) -> None:
        """What came since the last look is what the other end's script says there."""
        new = self.got[self.checked :]
        assert script[self.checked : self.checked + len(new)] == new, f"{self.number}: wrong bytes"
        self.checked += len(new)

    def cut(self) -> None:
        if self.pipe is not None:
            self.end = "cut"
            self.pipe.reset(self, Reset.RESET)

    def _done(self) -> None:
        if self.ended and self.finished and not self.standing and self.pipe is not None:
            self.end = "done"
            self.pipe.forget(self)


class Side(Hooks):
    """One proxy: executes effects, as the proxy's endpoint does."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair = pair
        self.world = pair.world
        self.name = name
        self.ends: dict[int, End] = {}
        self.machine: Machine
        self.pipes: dict[int, Pipe] = {}
        self.eager: set[App] = set()
        self.apps: list[App] = []
        self.facts: list[object] = []
        self.generation = 0
        self.not_after_unix_us = FOREVER
        self._armed = -1
        self._flushing = False

    # ------------------------------------------------------------------ machine
    def give(self, event: Event) -> None:
        now = Instant(self.world.now)
        before = self.machine.deadline
        if type(event) is not Tick and before > now and self.pair.random.random() < 0.1:
            assert self.machine.handle(now, Tick()) == (), "honest deadline"
            assert self.machine.deadline == before
        self.run(self.machine.handle(now, event))
        if type(event) is Tick:
            assert self.machine.deadline > now, "progress"
        self.arm()

    def arm(self) -> None:
        deadline = self.machine.deadline
        if deadline != self._armed and deadline < 2**62:
            self._armed = deadline
            self.world.at(deadline + self.pair.late_us(), self._tick, deadline)

    def _tick(self, deadline: int) -> None:
        if self.machine.deadline == deadline and self._armed == deadline:
            self._armed = -1
            self.give(Tick())

    def run(self, effects: Effects) -> None:
        for effect in effects:
            if type(effect) is facts.SendFrame:
                end = self.ends.get(effect.circuit)
                if end is not None:
                    assert end.circuit is not None
                    end.circuit.say(effect.frame)
                    end.pump()
            elif type(effect) is facts.CloseCircuit:
                end = self.ends.pop(effect.circuit, None)
                if end is not None:
                    end.close()
            elif type(effect) is facts.DialCircuit:
                self.pair.dial(self, effect)
            else:
                self.facts.append(effect)

    # ------------------------------------------------------------------ circuits
    def heard(self, circuit: Circuit, kind: int, value: int, body: bytes) -> None:
        self.give(facts.Heard(circuit.number, kind, value, body))

    def lost(self, end: End, reason: str) -> None:
        assert end.circuit is not None
        if self.ends.pop(end.circuit.number, None) is not None:
            self.give(facts.CircuitLost(end.circuit.number, reason))

    def fed(self, end: End) -> None:
        circuit = end.circuit
        assert circuit is not None
        pipe = circuit.pipe
        if pipe is None:
            return
        number = self.number_of(pipe)
        if pipe.broken:
            self.give(facts.Broken(number, pipe.broken))
            return
        if circuit.owes():
            self.give(facts.Owing(number))
        self.flush()

    def number_of(self, pipe: Pipe) -> int:
        return next(number for number, held in self.pipes.items() if held is pipe)

    # ------------------------------------------------------------------ hooks of the pipes
    def wake(self, pipe: Pipe) -> None:
        if not self._flushing:
            self._flushing = True
            self.world.at(self.world.now, self._flush_later)

    def ready(self, pipe: Pipe) -> None:
        if pipe.active is not None and pipe.active.number in self.ends:
            self.ends[pipe.active.number].pump()

    def resume(self, pipe: Pipe) -> None:
        self.eager.update(app for app in pipe.streams.values() if isinstance(app, App))
        self.wake(pipe)

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        return self.pair.accept(self, pipe, number, ask)

    def _flush_later(self, _: Any) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        eager, self.eager = self.eager, set()
        for app in sorted(eager, key=lambda app: app.number):
            app.write_some()
        for number, pipe in tuple(self.pipes.items()):
            pipe.flush()
            idle = isinstance(self.machine, Client) and not self.machine.watching
            if idle and pipe.ring.written > pipe.ring.confirmed:
                self.give(facts.Wrote(number))


class Pair:
    """A client's and a server's proxy, one session, any number of circuits between them.

    Args:
        seed: of everything random.
        limits: of both machines.
        paths: that the client may dial; each wire goes over one of them.
        client_kind, server_kind: machines, or broken ones that a law must catch.
    """

    def __init__(
        self,
        seed: object = 0,
        limits: Limits = LIMITS,
        paths: tuple[Path, ...] = (("a", "r", "b"), ("a", "s", "b")),
        client_kind: type[Client] = Client,
        server_kind: type[Server] = Server,
        pipe_kind: type[Pipe] = Pipe,
        circuit_kind: type[Circuit] = Circuit,
        latency_us: int = 200,
    ) -> None:
        self.world = World()
        self.random = Random(f"{seed}/pair")
        self.paths = paths
        self.dead: set[Path] = set()
        self.latency_us = latency_us
        self.late = False
        self.wires: list[Wire] = []
        self.tokens = itertools.count(1)
        self.circuit_kind = circuit_kind
        self.answer: Callable[[Side, Pipe, int, Open], Stream | Reset] | None = None
        self.a, self.b = Side(self, "a"), Side(self, "b")
        now = Instant(self.world.now)
        token = self.tokens.__next__
        self.pipe = pipe_kind(memory, self.a, client=True)
        self.client = client_kind(
            token(),
            b"0123456789abcdef",
            self.pipe,
            token=token,
            mac=mac,
            random=Random(f"{seed}/client"),
            now=now,
            clock_us=CLOCK_US,
            limits=limits,
        )
        self.a.pipes[self.client.number] = self.pipe
        self.a.machine = self.client

        def make_pipe(number: int, source: SpiffeId, target: SpiffeId) -> Pipe:
            assert (source, target) == (SOURCE, TARGET)
            pipe = self.b.pipes[number] = pipe_kind(memory, self.b, client=False)
            return pipe

        self.server = server_kind(make_pipe, token=token, mac=mac, clock_us=CLOCK_US, limits=limits)
        self.b.machine = self.server
        self.a.arm()

    # ------------------------------------------------------------------ the world
    def run(self, us: int) -> None:
        self.world.run(self.world.now + us)

    def late_us(self) -> int:
        return self.random.randrange(60_000) if self.late and self.random.random() < 0.3 else 0

    def clock_set(self) -> None:
        for side in (self.a, self.b):
            side.give(ClockSet(CLOCK_US + self.world.now))

    def dial(self, side: Side, effect: facts.DialCircuit) -> None:
        alive = [path for path in self.paths if path not in self.dead]
        good = [path for path in alive if path not in effect.avoid] or alive
        if not good:
            self.world.at(self.world.now + 500, side.give, Failed(effect.token, "refused"))
            return
        path = good[0] if self.random.random() < 0.7 else self.random.choice(good)
        wire = Wire(self.world, self.latency_us, self.random, f"wire {effect.token}")
        self.wires.append(wire)
        self.world.at(self.world.now + 4 * self.latency_us, self._up, (wire, effect.token, path))

    def _up(self, what: tuple[Wire, int, Path]) -> None:
        wire, token, path = what
        if path in self.dead:
            self.a.give(Failed(token, "reset"))
            return
        number = next(self.tokens)
        ends = min(self.a.not_after_unix_us, self.b.not_after_unix_us)
        for side, end, name in ((self.b, wire.accepted, number), (self.a, wire.dialled, token)):
            circuit = self.circuit_kind(name, side.heard)
            side.ends[name] = end
            end.start(circuit, side.lost, side.fed)
            up = Up(circuit, path, ends, wire.exporter, wire.secret, side.generation)
            if side is self.b:
                side.give(facts.Accepted(number, SOURCE, TARGET, up))
            else:
                side.give(Done(token, up))
            end.pump()

    @property
    def active_wire(self) -> Wire | None:
        active = self.client.active
        return None if active is None else self.a.ends[active.number].wire

    @property
    def open_wires(self) -> list[Wire]:
        return [wire for wire in self.wires if wire.dialled.open or wire.accepted.open]

    # ------------------------------------------------------------------ applications
    def open(self, out: bytes, back: bytes, pace: int = 0, back_pace: int = 0) -> App:
        """Open a stream that sends `out` and gets `back`; the other end knows by the name."""
        app = App(self.a, out, pace)
        app.refused = self.pipe.open(app, Open(name=str(len(self.a.apps))))
        self.a.apps.append(app)
        if app.refused is None:
            self.backs[len(self.a.apps) - 1] = (back, back_pace)
            app.write_some()
        else:
            app.end = "reset"
        return app

    @property
    def backs(self) -> dict[int, tuple[bytes, int]]:
        return self.__dict__.setdefault("_backs", {})  # type: ignore[no-any-return]

    @property
    def served(self) -> dict[int, App]:
        return self.__dict__.setdefault("_served", {})  # type: ignore[no-any-return]

    def accept(self, side: Side, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        if self.answer is not None:
            return self.answer(side, pipe, number, ask)
        index = int(ask.name)
        assert index not in self.served, "a stream was opened twice"
        back, pace = self.backs[index]
        app = self.served[index] = App(side, back, pace)
        side.apps.append(app)

        def connected(_: Any) -> None:
            if app.pipe is not None:
                pipe.opened(app)
                app.write_some()
                side.flush()

        self.world.at(self.world.now + 50, connected)
        return app

    def check_bytes(self, final: bool = False) -> None:
        """The exact-bytes law."""
        for index, app in enumerate(self.a.apps):
            other = self.served.get(index)
            app.check_against(other.script if other is not None else b"")
            if other is not None:
                other.check_against(app.script)
            if final:
                assert app.end, f"stream {index} never ended"
                if other is not None and app.end == other.end == "done":
                    assert bytes(other.got) == app.script, f"stream {index}: bytes are missing"
                    assert bytes(app.got) == other.script, f"stream {index}: bytes are missing"
