"""Sessions of a simulated proxy: executes the circuit effects of `core.proxy`, moves the bytes.

What runtime/loop/{endpoint,circuits,streams} do over sockets is done here over `PathWire`s, with
the same pipes.  Applications are scripts: each knows every byte that it is to send and to get.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND, Allowed, Done, Effect, Failed
from x0tta6bl4.core.proxy.words import Dial, OpenSession
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import Up
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.pipe import Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.runtime.sim.circuit import End
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.pathwire import PathWire
from x0tta6bl4.runtime.sim.world import LawBroken, shown
from x0tta6bl4.wire.ids import NodeName, SpiffeId

DIAL_DEADLINE: Final = 1 * SECOND
_READ_EVERY: Final = 10 * MS


@final
class Talk(msgspec.Struct, gc=False):
    """What one stream is to say in both directions; found by its name at the other end."""

    out: bytes
    back: bytes
    pace: int = 0
    """Bytes that the slow reader at the server takes each 10 ms; 0: everything at once."""


class App(Stream):
    """One application connection: writes its script, remembers what it got, checks every byte.

    Attributes:
        end: "" while open, then `done`, `reset` or `cut`.
        reason: of a reset.
    """

    __slots__ = ("_standing", "end", "got", "opened_at", "pace", "put", "reason",
                 "script", "side", "theirs")  # fmt: skip

    def __init__(self, side: SessionSide, script: bytes, theirs: bytes, pace: int) -> None:
        super().__init__()
        self.side = side
        self.script = script
        self.theirs = theirs
        self.pace = pace
        self.put = 0
        self.got = 0
        self.end = ""
        self.reason = ""
        self.opened_at = side.world.now
        self._standing = 0

    def write_some(self) -> None:
        """Write what there is room for."""
        pipe = self.pipe
        if pipe is None or self.finished:
            return
        self.put += pipe.write(self, memoryview(self.script)[self.put :])
        if self.put == len(self.script):
            pipe.finish(self)
            self._done()

    def on_data(self, data: memoryview) -> None:
        """Check the bytes against the script of the other end."""
        if data != self.theirs[self.got : self.got + len(data)]:
            raise LawBroken(
                f"exactly the bytes sent: stream {self.ask.name!r} at {self.side.name} differs"
                f" behind {self.got} at {shown(self.side.world.now)}"
            )
        self.got += len(data)
        if not self.pace:
            self.take(len(data))
            return
        if not self._standing:
            self.side.world.after(_READ_EVERY, self._read_some)
        self._standing += len(data)

    def _read_some(self, _: Any) -> None:
        count = min(self.pace, self._standing)
        self._standing -= count
        self.take(count)
        if self._standing:
            self.side.world.after(_READ_EVERY, self._read_some)
        self._done()

    def on_finish(self) -> None:
        """The other end says it has sent everything: then everything has come."""
        if self.got != len(self.theirs):
            raise LawBroken(
                f"exactly the bytes sent: stream {self.ask.name!r} at {self.side.name} ended"
                f" after {self.got} of {len(self.theirs)} at {shown(self.side.world.now)}"
            )
        self._done()

    def on_credit(self) -> None:
        """There is credit again."""
        self.side.eager[self] = None

    def on_reset(self, reason: Reset) -> None:
        """The stream was cut off."""
        self.end = self.end or "reset"
        self.reason = self.reason or reason.name

    def _done(self) -> None:
        if self.ended and self.finished and not self._standing and self.pipe is not None:
            self.end = "done"
            self.pipe.forget(self)


class SessionSide(Hooks):
    """The circuits, sessions and applications of one proxy process.

    Args:
        proxy: the side whose machine it serves.

    Attributes:
        ends: open ends of circuits by number.
        pipes: of sessions by number.
        wires: circuits that end here or are relayed.
        joined: (virtual time, session, path, reason) of each Joined.
    """

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy
        self.name: str = proxy.host.name
        self.mesh: Mesh = proxy.host.mesh
        self.world = self.mesh.world
        self.ends: dict[int, End] = {}
        self.pipes: dict[int, Pipe] = {}
        self.eager: dict[App, None] = {}
        self.wires: dict[PathWire, None] = {}
        self.joined: list[facts.Joined] = []
        self.ended: dict[int, str] = {}
        self._numbers: dict[Pipe, int] = {}
        self._dials: dict[int, PathWire] = {}
        self._flushing = False

    # ------------------------------------------------------------------ machine
    def make_pipe(self, number: int, client: bool) -> Pipe:
        """Pipe of a new session."""
        pipe = self.pipes[number] = Pipe(_memory, self, client)
        self._numbers[pipe] = number
        return pipe

    def perform(self, effect: Effect) -> None:
        """Carry one effect of the session machines out."""
        if type(effect) is facts.SendFrame:
            end = self.ends.get(effect.circuit)
            if end is not None and end.circuit is not None:
                end.circuit.say(effect.frame)
                end.pump()
        elif type(effect) is facts.CloseCircuit:
            end = self.ends.pop(effect.circuit, None)
            if end is not None:
                end.close()
        elif type(effect) is Dial:
            self._dial(effect)
        elif type(effect) is facts.CancelDial:
            if self._dials.pop(effect.token, None) is not None:
                self.world.after(0, self._give, Failed(effect.token, "cancelled"))
        elif type(effect) is facts.Joined:
            self.joined.append(effect)
            if len(self.joined) > 10_000:
                del self.joined[:5_000]
        elif type(effect) is facts.SessionEnded:
            self.ended[effect.session] = effect.reason
            pipe = self.pipes.pop(effect.session, None)
            if pipe is not None:
                del self._numbers[pipe]

    def _give(self, event: Any) -> None:
        self.proxy.process.give(event)

    # ------------------------------------------------------------------ circuits
    def _dial(self, effect: Dial) -> None:
        path = effect.path
        joined = all(pair in self.mesh.network for pair in pairwise(path))
        if not joined or any(self.mesh.hosts[node].proxy is None for node in path):
            # Two liars who claim a link between them are believed until somebody dials.
            self.world.after(DIAL_DEADLINE, self._give, Failed(effect.token, "timed out"))
            return
        name = f"{self.world.seed}/{self.proxy.incarnation}/{effect.token}"
        wire = self._dials[effect.token] = PathWire(self.mesh, path, name)
        # Per hop TCP and setup frame, then TLS end to end: some five times there and back.
        self.world.after(8 * wire.latency(), self._shaken, (effect, wire))

    def _shaken(self, what: tuple[Dial, PathWire]) -> None:
        effect, wire = what
        if self._dials.pop(effect.token, None) is None or not self.proxy.process.alive:
            self._drop(wire)
            return
        reason = self._refusal(effect)
        if reason:
            self._drop(wire)
            delay = DIAL_DEADLINE if reason == "timed out" else 0
            self.world.after(delay, self._give, Failed(effect.token, reason))
            return
        other = self.mesh.hosts[effect.path[-1]].proxy
        mine, theirs = self._up(effect, wire, other)
        end = wire.dialled
        self.ends[effect.token] = end
        end.start(mine.circuit, self.lost, self.fed)
        # TLS 1.3: the client is done one way before the server has judged it.
        self.world.after(wire.latency(), other.sessions.accepted, (effect, wire, theirs))
        self._give(Done(effect.token, mine))
        end.pump()

    def _refusal(self, effect: Dial) -> str:
        """Why the circuit cannot be set up now; empty if it can."""
        path = effect.path
        for here, there in pairwise(path):
            host = self.mesh.hosts[there]
            if not (self.mesh.passes(here, there) and self.mesh.passes(there, here)):
                return "timed out"
            if host.proxy is None or host.proxy.process.frozen:
                return "timed out"
            if not self.mesh.hosts[here].proxy.machine.links.is_up(there):
                return "link is down"
        other = self.mesh.hosts[path[-1]].proxy
        unix_s = other.unix_s()
        for proxy, judge, id in (
            (self.proxy, other, effect.source),
            (other, self.proxy, effect.target),
        ):
            svid = proxy.machine.svid(id)
            if svid is None:
                return "no SVID"
            if svid.not_after_unix_s <= max(unix_s, self.proxy.unix_s()):
                return "expired"
            leaf = self.proxy.realm.leaf(svid.chain[0])
            verdict = judge.machine.check(id, leaf.issued_unix_s, NodeName(leaf.via))
            if type(verdict) is not Allowed:
                return str(verdict.reason)
        return ""

    def _up(self, effect: Dial, wire: PathWire, other: Any) -> tuple[Up, Up]:
        """What both ends know of the new circuit, each by its own circuit object."""
        realm = self.proxy.realm
        ends: list[Up] = []
        number = other.machine.token()
        mine = self.proxy.machine.svid(effect.source)
        theirs = other.machine.svid(effect.target)
        wire.not_after_unix_s = min(mine.not_after_unix_s, theirs.not_after_unix_s)
        not_after = wire.not_after_unix_s * SECOND
        for side, id, peer, own in (
            (self, effect.token, theirs, effect.source),
            (other.sessions, number, mine, effect.target),
        ):
            leaf = realm.leaf(peer.chain[0])
            assert leaf is not None
            ends.append(
                Up(
                    Circuit(id, side.heard),
                    effect.path,
                    not_after,
                    wire.exporter,
                    wire.secret,
                    side.proxy.machine.generation(own),
                    leaf.issued_unix_s,
                    leaf.via,
                )
            )
        return ends[0], ends[1]

    def accepted(self, what: tuple[Dial, PathWire, Up]) -> None:
        """Server: somebody's circuit is here."""
        effect, wire, up = what
        end = wire.accepted
        if not self.proxy.process.alive or not wire.dialled.open:
            end.close()
            return
        number = up.circuit.number
        self.ends[number] = end
        end.circuit = up.circuit
        self._give(facts.Accepted(number, effect.source, effect.target, up))
        if number in self.ends:
            end.start(up.circuit, self.lost, self.fed)
            end.pump()

    def _drop(self, wire: PathWire) -> None:
        wire.dialled.open = wire.accepted.open = False
        for node in wire.path:
            proxy = self.mesh.hosts[node].proxy
            if proxy is not None:
                proxy.sessions.wires.pop(wire, None)

    def heard(self, circuit: Circuit, kind: int, value: int, body: bytes) -> None:
        """A frame that is not numbered came in."""
        self._give(facts.Heard(circuit.number, kind, value, body))

    def lost(self, end: End, reason: str) -> None:
        """A circuit is gone."""
        assert end.circuit is not None
        assert isinstance(end.wire, PathWire)
        if end.wire.over():
            self._drop(end.wire)
        if self.ends.pop(end.circuit.number, None) is not None:
            self._give(facts.CircuitLost(end.circuit.number, reason))

    def fed(self, end: End) -> None:
        """Bytes came in over a circuit."""
        circuit = end.circuit
        assert circuit is not None
        pipe = circuit.pipe
        number = None if pipe is None else self._numbers.get(pipe)
        if pipe is None or number is None:
            return
        if pipe.broken:
            self._give(facts.Broken(number, pipe.broken))
            return
        if circuit.owes():
            self._give(facts.Owing(number))
        self.flush()

    def died(self, host_lives: bool) -> None:
        """The process was killed: its kernel closes what it held, unless the host is gone too."""
        for end in tuple(self.ends.values()):
            if host_lives:
                end.close()
            end.open = False
        self.ends.clear()
        for wire in tuple(self.wires):
            if host_lives and self.name in wire.path[1:-1]:
                wire.relay_died(self.name)
        for pipe in self.pipes.values():
            for stream in tuple(pipe.streams.values()):
                if isinstance(stream, App):
                    stream.end, stream.reason = "reset", "proxy died"
                    stream.pipe = None
        self.pipes.clear()

    # ------------------------------------------------------------------ hooks of the pipes
    def wake(self, pipe: Pipe) -> None:
        """Something was written."""
        if not self._flushing:
            self._flushing = True
            self.world.after(0, self._flush_later)

    def ready(self, pipe: Pipe) -> None:
        """There is a chunk for the active circuit."""
        if pipe.active is not None and pipe.active.number in self.ends:
            self.ends[pipe.active.number].pump()

    def resume(self, pipe: Pipe) -> None:
        """The session reads its applications again."""
        for stream in pipe.streams.values():
            if isinstance(stream, App):
                self.eager[stream] = None
        self.wake(pipe)

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        """The other end opens a stream to our service."""
        talk = self.mesh.talks.get(ask.name)
        if talk is None:
            return Reset.NO_SERVICE
        if ask.name in self.mesh.served:
            raise LawBroken(f"once: stream {ask.name!r} was opened twice at {self.name}")
        app = self.mesh.served[ask.name] = App(self, talk.back, talk.out, talk.pace)
        app.ask = ask

        def connected(_: object) -> None:
            if app.pipe is not None and not app.end and self.proxy.process.alive:
                pipe.opened(app)
                app.write_some()
                self.flush()

        self.world.after(100, connected)
        return app

    def _flush_later(self, _: object) -> None:
        self._flushing = False
        if self.proxy.process.frozen:
            self.wake_after_thaw()
            return
        if self.proxy.process.alive:
            self.flush()

    def wake_after_thaw(self) -> None:
        """The process stands still: nothing is written until it goes on."""
        self._flushing = True
        self.world.after(_READ_EVERY, self._flush_later)

    def flush(self) -> None:
        """End of a batch: let applications write, close batches, tell the machine."""
        eager, self.eager = self.eager, {}
        for app in eager:
            app.write_some()
        machine = self.proxy.machine
        for number, pipe in tuple(self.pipes.items()):
            pipe.flush()
            client = machine.clients.get(number)
            if client is None or client.machine.watching:
                continue
            if pipe.ring.written > pipe.ring.confirmed:
                self._give(facts.Wrote(number))

    # ------------------------------------------------------------------ applications
    def open(self, source: SpiffeId, target: SpiffeId, node: str, name: str) -> App | str:
        """An application of this node asks for a stream; the talk of that name is known.

        Returns:
            The stream, or why it was refused.
        """
        machine = self.proxy.machine
        verdict = machine.open(source, target, "")
        if type(verdict) is not Allowed:
            return str(verdict.reason)
        number = machine.session(source, target, NodeName(node))
        if number is None:
            number = machine.token()
            id = number.to_bytes(8, "little") + self.proxy.incarnation.to_bytes(8, "little")
            self._give(OpenSession(number, id, source, target, NodeName(node)))
        pipe = self.pipes.get(number)
        if pipe is None:
            return self.ended.get(number, "no session")
        talk = self.mesh.talks[name]
        app = App(self, talk.out, talk.back, 0)
        refused = pipe.open(app, Open(name=name))
        if refused is not None:
            return refused.name
        app.write_some()
        self.wake(pipe)
        return app


def _memory(size: int) -> memoryview:
    return memoryview(bytearray(size))
