"""The endpoint of a proxy: local applications on one side, circuits on the other.

    client  connect(sock, source, name) -> policy -> replica -> session -> OPEN + first DATA
            Dial -> hop -> TLS -> Done(Up) -> NEW or JOIN -> chunks
    server  on_circuit(sock, previous, target) -> TLS -> Accepted -> NEW or JOIN -> OPEN
            -> policy -> listener attested -> connect -> attested again -> OPENED

It owns the composite machine (`core.proxy`), carries the effects of sessions out, and hands all
others to `perform`.  Everything that touches the world beyond sockets comes in through the
constructor: how to dial a hop, TLS by workload, what listens at an address.

How it is wired (app/proxy.py, and the tests):

    endpoint = Endpoint(loop, incarnation=..., seed=..., dial=hops.dial, tls=make_tls,
                        perform=perform, listener=attest, mac=..., random=os.urandom,
                        on_record=..., unix_us=...)
    hops = Hops(..., on_circuit=endpoint.on_circuit, ...)
    endpoint.give(Received(AGENT, message))     each Full and Delta of the agent
    endpoint.give(Received(node, hello))        each verified hello
    endpoint.connect(sock, source, "web")       each accepted connection of an application
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, final

import msgspec

from x0tta6bl4.core.machine import (
    MS,
    SECOND,
    Allowed,
    ClockSet,
    Denied,
    Done,
    Effect,
    Event,
    Failed,
    Tick,
)
from x0tta6bl4.core.proxy.composite import Proxy
from x0tta6bl4.core.proxy.words import Dial, OpenSession
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import LIMITS, Limits, Up
from x0tta6bl4.core.session.frames import SECRET_BYTES, SESSION_ID_BYTES, Mac
from x0tta6bl4.core.session.pipe import Pipe
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.calls import Calls
from x0tta6bl4.runtime.loop.carry import Cancellable
from x0tta6bl4.runtime.loop.circuits import Buffers, Tls, TlsCircuit, allocate
from x0tta6bl4.runtime.loop.held import Shares
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.serving import Confirm, Listener, ProxyHeader, Serving
from x0tta6bl4.runtime.loop.sessions import (
    Reply,
    Session,
    StreamRecord,
    lend_standing,
    rest_rings,
    session_of,
    states,
)
from x0tta6bl4.runtime.loop.streams import AppStream
from x0tta6bl4.wire.hop import pack_refusal
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import SessionState

LABEL_CIRCUIT: Final = b"EXPERIMENTAL x0 circuit"
LABEL_SESSION: Final = b"EXPERIMENTAL x0 session"
SWEEP_US: Final = 500 * MS
STREAMS_MAX: Final = 16_384
"""Application connections of one proxy."""
SHAKING_MAX: Final = 1024
"""Handshakes at once; neighbours share them (see `Shares`)."""
"""Accepted circuits whose TLS is not done."""
_TICK: Final = Tick()


class Tune(Protocol):
    """`dial(path, target, on_done)`: see `runtime.loop.hops.Hops.dial`."""

    def __call__(
        self,
        path: Sequence[NodeName],
        target: SpiffeId | str,
        on_done: Callable[[socket.socket | None, str], None],
    ) -> Cancellable:
        """Set up a hop; `on_done` gets the socket, or None and the reason."""
        ...


MakeTls = Callable[[SpiffeId, SpiffeId | None, bool], Tls | Denied]
"""(our workload, the peer a client expects or None, whether we are the server) -> fresh TLS."""


@final
class EndpointStatistics(msgspec.Struct, frozen=True, gc=False):
    """Sums since the start, but for the first three, which are now."""

    sessions: int
    circuits: int
    streams: int
    streams_opened: int
    streams_refused: int
    streams_reset: int
    bytes_in: int
    """Towards applications of this node."""
    bytes_out: int
    circuits_dialled: int
    circuits_accepted: int
    circuits_lost: int
    circuits_refused: int
    moves: int
    resent_bytes: int
    standing_bytes: int
    ring_bytes: int
    """Memory of all rings, now."""
    ticks_late: int


class Endpoint:
    """Sessions of one proxy.

    Args:
        loop: the proxy's loop.
        incarnation: of this proxy; random 63 bits, new at each start.
        seed: names random streams (jitter); any unpredictable value.
        dial: sets up a hop (`Hops.dial`).
        tls: fresh TLS of one of our workloads, or why not.
        perform: carries out effects that are not the endpoint's: Send, Changed.
        listener: attests what listens at a service's address, before the connect.
        confirm: the same after it; None: `listener` is asked again and must say the same.
        mac: HMAC-SHA256.
        random: `random(n)` gives n unpredictable bytes.
        unix_us: wall time; never below the newest time signed by the authority.
        on_record: takes the access log's records.
        proxy_header: makes PROXY headers.
        limits: of sessions.

    Attributes:
        proxy: the composite machine; its tables may be read, events go through `give`.
        circuits: by number.
        sessions: by number.
        draining: no new streams are taken.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        incarnation: int,
        seed: object,
        dial: Tune,
        tls: MakeTls,
        perform: Callable[[Effect], None],
        listener: Listener,
        mac: Mac,
        random: Callable[[int], bytes],
        unix_us: Callable[[], int],
        on_record: Callable[[StreamRecord], None],
        confirm: Confirm | None = None,
        proxy_header: ProxyHeader | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.loop = loop
        self._dial_hop, self._tls, self._perform = dial, tls, perform
        self._random, self._unix_us = random, unix_us
        self.on_record = on_record
        self._buffers = Buffers()
        self.allocate = allocate
        self.circuits: dict[int, TlsCircuit] = {}
        self.sessions: dict[int, Session] = {}
        self.draining = False
        self._dials: dict[int, Cancellable] = {}
        self._lost: list[Event] = []
        self._shaking = Shares(SHAKING_MAX)
        self._streams = 0
        self._counts = dict.fromkeys(_COUNTS, 0)
        self.closings: dict[str, int] = {}  # Circuits that were closed here, by the fixed reasons.
        self._alarm = loop.alarm(self._tick)
        self._clock_us = unix_us() - clock()
        self.proxy = Proxy(
            incarnation=incarnation,
            make_pipe=self._make_pipe,
            mac=mac,
            seed=seed,
            now=clock(),
            clock_us=self._clock_us,
            limits=limits,
        )
        self.calls = Calls(self)
        self.serving = Serving(self, listener, confirm, proxy_header)
        loop.after(SWEEP_US, self._sweep)

    # ------------------------------------------------------------------ the machine
    def give(self, event: Event) -> None:
        """Give the machine an event and carry its effects out."""
        proxy = self.proxy
        for effect in proxy.handle(clock(), event):
            act = self._acts.get(type(effect))
            if act is None:
                self._perform(effect)
            else:
                act(self, effect)
        self._alarm.at = proxy.deadline

    def _tick(self) -> None:
        if clock() - self._alarm.at > 12 * MS:
            self._counts["ticks_late"] += 1
        self.give(_TICK)

    def _after_batch(self, event: Event) -> None:
        """Tell the machine at the end of this batch: never from within `pump` or `feed`."""
        if not self._lost:
            self.loop.after_batch(self._give_lost)
        self._lost.append(event)

    def _give_lost(self) -> None:
        events, self._lost = self._lost, []
        for event in events:
            self.give(event)

    def count(self, what: str) -> None:
        """Count one up."""
        self._counts[what] += 1

    def begun(self) -> None:
        """A stream has begun."""
        self._streams += 1

    @property
    def full(self) -> bool:
        """Whether no more streams are taken."""
        return self._streams >= STREAMS_MAX

    # ------------------------------------------------------------------ sessions
    def connect(
        self,
        sock: socket.socket,
        source: SpiffeId,
        name: str,
        *,
        port: int = 0,
        reply: Reply | None = None,
        first: bytes = b"",
        own: bool = False,
    ) -> Allowed | Denied:
        """Take an application's connection and carry it to a service.

        Args:
            sock: accepted, non-blocking; owned from here on, also when it is refused.
            source: who calls, as its socket's owner was attested.
            name: service name, with or without `.mesh`, or a SPIFFE ID.
            port: port that the application named, 0 if none.
            reply: for SOCKS5 and CONNECT: gives the bytes of the answer, after OPENED or a
                refusal; None: nothing is answered, and a refusal is a reset.
            first: bytes of the application that were read already, at most 64 KiB.
            own: carry it in a session of its own.
        Returns:
            Allowed(target) if it is under way, Denied if it was refused at once.
        """
        return self.calls.connect(sock, source, name, port=port, reply=reply, first=first, own=own)

    def session_to(
        self, source: SpiffeId, target: SpiffeId, node: NodeName, *, own: bool
    ) -> Session | None:
        """A session for a call of `source` to `target` on a node; None: too many.

        The one that all such calls share, or a new one that no other gets.
        """
        number = None if own else self.proxy.session(source, target, node)
        if number is None:
            number = self.proxy.token()
            session_id = self._random(SESSION_ID_BYTES)
            self.give(OpenSession(number, session_id, source, target, node, own))
            session = self.sessions.get(number)
            client = self.proxy.clients.get(number)
            if session is None or client is None:
                return None
            session.source, session.target, session.node = source, target, node
            session.control = client.machine
        return self.sessions.get(number)

    def _make_pipe(self, number: int, client: bool) -> Pipe:
        session = self.sessions[number] = Session(self, number, client)
        return session.pipe

    # ------------------------------------------------------------------ streams, both roles
    def ended(self, session: Session, stream: AppStream) -> None:
        """A stream is over (called by its session)."""
        self._streams -= 1
        self.calls.ended(stream)
        self.serving.ended(stream)
        if stream.reason != "closed":
            self._counts["streams_reset"] += 1
        self._counts["bytes_in"] += stream.received
        self._counts["bytes_out"] += stream.sent
        self.on_record(
            StreamRecord(
                session.source,
                session.target,
                stream.ask.name,
                session.client,
                session.node,
                session.path,
                stream.received,
                stream.sent,
                clock() - stream.begun_at,
                stream.reason,
            )
        )

    def flushed(self, session: Session) -> None:
        """A client's batch that nobody watches was flushed, or a session that is broken."""
        pipe = session.pipe
        if pipe.broken:
            if session.number in self.sessions:
                self._after_batch(facts.Broken(session.number, pipe.broken))
        elif pipe.ring.written > pipe.ring.confirmed:
            self.give(facts.Wrote(session.number))

    # ------------------------------------------------------------------ circuits
    def on_circuit(
        self, sock: socket.socket, previous: NodeName, target: SpiffeId, first: bytes
    ) -> None:
        """A hop whose path ends here: speak TLS as `target` (given to `Hops`)."""
        if self.proxy.svid(target) is None:
            return self._refuse_circuit(sock, "no such workload here")
        if not self._shaking.take(previous):
            return self._refuse_circuit(sock, f"too many handshakes from {previous}")
        tls = self._tls(target, None, True)
        if isinstance(tls, Denied):
            self._shaking.give_back(previous)
            return self._refuse_circuit(sock, tls.reason)
        self._counts["circuits_accepted"] += 1
        number = self.proxy.token()
        circuit = self._circuit(number, sock, tls, target, (previous, self.proxy.me), first)
        circuit.start()
        return None

    def _refuse_circuit(self, sock: socket.socket, reason: str) -> None:
        self._counts["circuits_refused"] += 1
        try:
            sock.send(pack_refusal(f"{self.proxy.me}: {reason}"))
        except OSError:
            pass  # It has gone away meanwhile.
        sock.close()

    def _circuit(
        self,
        number: int,
        sock: socket.socket,
        tls: Tls,
        own: SpiffeId,
        path: tuple[str, ...],
        first: bytes = b"",
        peer: SpiffeId | None = None,
    ) -> TlsCircuit:
        circuit = self.circuits[number] = TlsCircuit(
            self.loop,
            sock,
            tls,
            self._buffers,
            Circuit(number, self._heard),
            self,
            own,
            peer=peer,
            first=first,
        )
        circuit.path = path
        circuit.generation = self.proxy.generation(own)
        return circuit

    def _dial(self, effect: Dial) -> None:
        def done(sock: socket.socket | None, why: str) -> None:
            self._dials.pop(effect.token, None)
            if sock is None:
                self.give(Failed(effect.token, why))
                return
            tls = self._tls(effect.source, effect.target, False)
            if isinstance(tls, Denied):
                sock.close()
                self.give(Failed(effect.token, tls.reason))
                return
            self._circuit(
                effect.token, sock, tls, effect.source, effect.path, peer=effect.target
            ).start()

        self._counts["circuits_dialled"] += 1
        path = tuple(NodeName(node) for node in effect.path)
        self._dials[effect.token] = self._dial_hop(path, effect.target, done)

    def _cancel_dial(self, effect: facts.CancelDial) -> None:
        dialling = self._dials.pop(effect.token, None)
        if dialling is not None:
            dialling.cancel()
        circuit = self.circuits.pop(effect.token, None)
        if circuit is not None:
            circuit.close()
        self._after_batch(Failed(effect.token, "cancelled"))

    def on_shaken(self, circuit: TlsCircuit) -> None:
        """See `CircuitOwner`."""
        tls = circuit.tls
        number = circuit.circuit.number
        svid = self.proxy.svid(circuit.own)
        peer = tls.peer
        if type(peer) is not Allowed or svid is None:
            return circuit.lose("tls: peer was not judged")
        if circuit.client and peer.peer != circuit.expected:
            return circuit.lose("tls: another peer than expected")
        circuit.peer = peer.peer
        ends = min(svid.not_after_unix_s, tls.peer_not_after_unix_s)
        up = Up(
            circuit=circuit.circuit,
            path=circuit.path,
            not_after_unix_us=ends * SECOND,
            exporter=tls.exporter(LABEL_CIRCUIT, b"", SECRET_BYTES),
            secret=tls.exporter(LABEL_SESSION, b"", SECRET_BYTES) if circuit.client else b"",
            generation=circuit.generation,
            peer_issued_unix_s=tls.peer_issued_unix_s,
            peer_via=tls.peer_via,
        )
        circuit.told = True
        if circuit.client:
            self.give(Done(number, up))
        else:
            self._shaking.give_back(circuit.path[0])
            self.give(facts.Accepted(number, circuit.peer, circuit.own, up))
        return None

    def on_fed(self, circuit: TlsCircuit) -> None:
        """See `CircuitOwner`."""
        core = circuit.circuit
        pipe = core.pipe
        if pipe is None or (core.offset <= core.told and not pipe.broken):
            return
        session = session_of(pipe)
        if pipe.broken:
            if session.number in self.sessions:
                self._after_batch(facts.Broken(session.number, pipe.broken))
        elif not session.control.owing:
            self.give(facts.Owing(session.number))

    def on_lost(self, circuit: TlsCircuit, reason: str) -> None:
        """See `CircuitOwner`."""
        number = circuit.circuit.number
        if self.circuits.pop(number, None) is None:
            return
        self._counts["circuits_lost"] += 1
        if circuit.told:
            self._after_batch(facts.CircuitLost(number, reason))
        elif circuit.client:
            self._after_batch(Failed(number, reason))
        else:
            self._shaking.give_back(circuit.path[0])

    def _heard(self, circuit: Circuit, kind: int, value: int, body: bytes) -> None:
        self.give(facts.Heard(circuit.number, kind, value, body))

    def _send_frame(self, effect: facts.SendFrame) -> None:
        circuit = self.circuits.get(effect.circuit)
        if circuit is not None:
            circuit.say(effect.frame)

    def _close_circuit(self, effect: facts.CloseCircuit) -> None:
        circuit = self.circuits.pop(effect.circuit, None)
        if circuit is not None:
            self.closings[effect.reason] = self.closings.get(effect.reason, 0) + 1
            circuit.close()

    def _session_opened(self, effect: facts.SessionOpened) -> None:
        session = self.sessions[effect.session]
        session.source, session.target = effect.source, effect.target
        session.control = self.proxy.server.sessions[effect.session]

    def _joined(self, effect: facts.Joined) -> None:
        session = self.sessions.get(effect.session)
        if session is not None:
            session.path = effect.path
            session.moves += session.joined
            self._counts["moves"] += session.joined
            session.joined = True

    def _session_ended(self, effect: facts.SessionEnded) -> None:
        session = self.sessions.pop(effect.session, None)
        if session is not None:
            self._counts["resent_bytes"] += session.pipe.resent

    def _ignore(self, effect: Effect) -> None:
        pass

    _acts: Final[dict[type, Callable[[Any, Any], None]]] = {
        Dial: _dial,
        facts.CancelDial: _cancel_dial,
        facts.SendFrame: _send_frame,
        facts.CloseCircuit: _close_circuit,
        facts.SessionOpened: _session_opened,
        facts.Joined: _joined,
        facts.SessionEnded: _session_ended,
        facts.CircuitsGone: _ignore,
    }

    # ------------------------------------------------------------------ now and then
    def _sweep(self) -> None:
        self.loop.after(SWEEP_US, self._sweep)
        now = clock()
        offset = self._unix_us() - now
        if abs(offset - self._clock_us) > 500 * MS:
            self._clock_us = offset
            self.give(ClockSet(now + offset))
        self.calls.sweep(now)
        self._counts["standing_bytes"] = lend_standing(self.sessions.values(), now)
        self._counts["ring_bytes"] = rest_rings(self.sessions.values(), now)

    def clock_set(self) -> None:
        """The wall clock has stepped: judge everything that ends again."""
        self._clock_us = self._unix_us() - clock()
        self.give(ClockSet(clock() + self._clock_us))

    # ------------------------------------------------------------------ drain, status
    def drain(self) -> int:
        """Take no new streams; returns how many are open still."""
        self.draining = True
        return self._streams

    def close(self, reason: str = "drained") -> None:
        """End every session: the proxy stops."""
        for number in tuple(self.sessions):
            self.give(facts.Withdraw(number, reason))
        for circuit in tuple(self.circuits.values()):
            circuit.close()
        self.circuits.clear()
        self.calls.close()

    def states(self) -> tuple[SessionState, ...]:
        """All client sessions as they stand, for status views."""
        return states(self.sessions.values(), self.circuits)

    def statistics(self) -> EndpointStatistics:
        """An immutable snapshot of the counters."""
        resent = sum(session.pipe.resent for session in self.sessions.values())
        counts = dict(self._counts)
        counts["resent_bytes"] += resent
        return EndpointStatistics(
            sessions=len(self.sessions),
            circuits=len(self.circuits),
            streams=self._streams,
            **counts,
        )


_COUNTS: Final = (
    "streams_opened",
    "streams_refused",
    "streams_reset",
    "bytes_in",
    "bytes_out",
    "circuits_dialled",
    "circuits_accepted",
    "circuits_lost",
    "circuits_refused",
    "moves",
    "resent_bytes",
    "standing_bytes",
    "ring_bytes",
    "ticks_late",
)
