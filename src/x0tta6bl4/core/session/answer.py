"""The server's end: all circuits that a proxy has accepted, and the sessions they carry.

    circuit   accepted --NEW or JOIN--> active --JOIN on another--> lame --1 s--> closed
                 '--- silence, expiry, revocation ---> closed
    session   --NEW--> carried --circuit gone--> waiting --60 s--> ended
                          ^---------JOIN------------'

The server never judges and never dials.  A session is found only under the identities of the
circuit that asks for it, so nobody joins another's; a JOIN that fails closes its circuit and
changes nothing.  Silence is 2 s without a byte where streams are, and 12 s elsewhere.

Source: RFC 8684 section 3.2 (MP_JOIN); models of the house, session rules.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    ClockSet,
    Effect,
    Effects,
    Event,
    Instant,
    Tick,
)
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.facts import (
    LIMITS,
    Accepted,
    Broken,
    CircuitLost,
    CircuitsGone,
    CloseCircuit,
    Heard,
    Joined,
    Limits,
    Owing,
    SendFrame,
    SessionEnded,
    SessionOpened,
    SvidChanged,
    Token,
    Up,
    Withdraw,
    reset_for,
)
from x0tta6bl4.core.session.frames import Join, Mac
from x0tta6bl4.core.session.pipe import Pipe
from x0tta6bl4.wire.ids import SpiffeId

MakePipe = Callable[[int, SpiffeId, SpiffeId], Pipe]
"""(session, source, target) -> the pipe of a new session."""

Key = tuple[SpiffeId, SpiffeId, bytes]


class Held:
    """One accepted circuit."""

    __slots__ = (
        "bytes_in", "circuit", "ends_at", "heard_at", "lame_until", "look_at", "number", "session",
        "source", "target", "up",
    )  # fmt: skip

    def __init__(self, event: Accepted, now: Instant) -> None:
        self.number = event.number
        self.source = event.source
        self.target = event.target
        self.up: Up = event.up
        self.circuit: Circuit = event.up.circuit
        self.session: Carried | None = None
        self.ends_at: int = NEVER
        self.heard_at: int = now
        self.look_at: int = NEVER
        """When it is asked next whether something came."""
        self.bytes_in = 0
        self.lame_until = 0


class Carried:
    """One session at its server.

    Attributes:
        number: the driver's number.
        pipe: see `core.session.pipe`.
        owing: the machine will acknowledge what came in; else tell it `Owing`.
        active: the circuit that carries it.
        up: of the circuit that carried it last.
    """

    __slots__ = (
        "active", "circuits", "epoch", "id", "left", "lost_at", "moves", "number", "owing",
        "pipe", "secret", "source", "target", "up",
    )  # fmt: skip

    def __init__(self, number: int, held: Held, join: Join, pipe: Pipe) -> None:
        self.number = number
        self.source, self.target, self.up = held.source, held.target, held.up
        self.id = join.session
        self.secret = join.secret
        self.pipe = pipe
        self.epoch = 0
        self.moves = 0
        self.owing = self.left = False
        self.lost_at = 0
        self.active: Held | None = None
        self.circuits: list[Held] = []

    @property
    def key(self) -> Key:
        """What a JOIN must know, from its circuit and its body."""
        return self.source, self.target, self.id


class Server:
    """Machine of all accepted circuits and their sessions, one per proxy.

    Args:
        make_pipe: called for each new session.
        token: gives numbers for sessions.
        mac: HMAC-SHA256.
        clock_us: wall time minus instant, in microseconds (later told by ClockSet).

    Attributes:
        deadline: see `core.machine`.
        circuits: accepted ones by number; bounded by `Limits.circuits_max` and per source.
        sessions: by number; bounded by `Limits.sessions_max` and per source.
    """

    __slots__ = (
        "_by_key", "_circuits_of", "_clock_us", "_due", "_effects", "_generations", "_limits",
        "_mac", "_make_pipe", "_sessions_of", "_token", "circuits", "deadline", "sessions",
    )  # fmt: skip

    def __init__(
        self,
        make_pipe: MakePipe,
        *,
        token: Token,
        mac: Mac,
        clock_us: int,
        limits: Limits = LIMITS,
    ) -> None:
        self.deadline: Instant = NEVER
        self.circuits: dict[int, Held] = {}
        self.sessions: dict[int, Carried] = {}
        self._by_key: dict[Key, Carried] = {}
        self._circuits_of: dict[SpiffeId, int] = {}
        self._sessions_of: dict[SpiffeId, int] = {}
        self._generations: dict[SpiffeId, int] = {}
        self._due: list[tuple[int, int, int]] = []
        """Heap of (instant, what, number); looked at again when due, so stale ones are harmless."""
        self._make_pipe, self._token, self._mac = make_pipe, token, mac
        self._clock_us = clock_us
        self._limits = limits
        self._effects: list[Effect] = []

    # ------------------------------------------------------------------ entrance
    def handle(self, now: Instant, event: Event) -> Effects:
        """See `core.machine.Machine`."""
        if type(event) is Tick:
            if now < self.deadline:
                return NOTHING
        elif type(event) is Owing:
            self._on_owing(now, event.session)
        elif type(event) is Heard:
            self._on_heard(now, event)
        elif type(event) is Accepted:
            self._on_accepted(now, event)
        elif type(event) is CircuitLost:
            held = self.circuits.get(event.circuit)
            if held is not None:
                self._forget(now, held)
        elif type(event) is Broken or type(event) is Withdraw:
            session = self.sessions.get(event.session)
            if session is not None:
                self._end(now, session, event.reason)
        elif type(event) is SvidChanged:
            self._on_svid(event)
        elif type(event) is ClockSet:
            self._clock_us = event.unix_us - now
            for held in self.circuits.values():
                self._set_end(held)
        else:
            return NOTHING
        self._run_due(now)
        effects, self._effects = tuple(self._effects), []
        return effects

    def close(self, now: Instant, number: int, reason: str) -> Effects:
        """Close a circuit by a decision from outside, e.g. a revocation; deadlines stay honest."""
        held = self.circuits.get(number)
        if held is None:
            return NOTHING
        self._close(now, held, reason)
        self._run_due(now)
        effects, self._effects = tuple(self._effects), []
        return effects

    # ------------------------------------------------------------------ events
    def _on_accepted(self, now: Instant, event: Accepted) -> None:
        limits = self._limits
        held = Held(event, now)
        of_source = self._circuits_of.get(held.source, 0)
        if len(self.circuits) >= limits.circuits_max or (
            of_source >= limits.circuits_per_source_max
        ):
            self._effects.append(CloseCircuit(held.number, "busy"))
            return
        self.circuits[held.number] = held
        self._circuits_of[held.source] = of_source + 1
        self._set_end(held)
        if held.ends_at <= now:
            self._close(now, held, "expired")
            return
        self._look(held, now + limits.calm_silence)
        if held.up.generation != self._generations.get(held.target, held.up.generation):
            self._effects.append(SendFrame(held.number, frames.frame(0, frames.MOVE)))

    def _on_heard(self, now: Instant, event: Heard) -> None:
        held = self.circuits.get(event.circuit)
        if held is None:
            return
        if event.kind in (frames.NEW, frames.JOIN):
            self._on_join(now, held, frames.join_body(event.kind, event.body))
        elif event.kind == frames.GONE and held.session is not None:
            self._leave(now, held.session)
        else:
            self._close(now, held, "protocol")

    def _on_join(self, now: Instant, held: Held, join: Join) -> None:
        if held.session is not None:
            self._close(now, held, "protocol")
            return
        session = self._by_key.get((held.source, held.target, join.session))
        if session is None and not join.secret:
            self._dismiss(now, held)
            return
        secret = join.secret if session is None else session.secret
        label, exporter = frames.LABEL_CLIENT, held.up.exporter
        if not frames.join_holds(join, self._mac, secret, label, exporter):
            self._close(now, held, "protocol")
            return
        if session is None:
            if not join.epoch:
                self._close(now, held, "protocol")
                return
            if join.received or join.start:
                self._dismiss(now, held)  # It has heard from a proxy that is no more.
                return
            session = self._create(held, join)
            if session is None:
                self._close(now, held, "busy")
                return
        pipe = session.pipe
        if (
            join.epoch <= session.epoch
            or join.start > pipe.received
            or join.received > pipe.sent_high
        ):
            self._close(now, held, "protocol")
            return
        self._carry(now, session, held, join)

    def _create(self, held: Held, join: Join) -> Carried | None:
        limits = self._limits
        of_source = self._sessions_of.get(held.source, 0)
        if len(self.sessions) >= limits.sessions_max or (
            of_source >= limits.sessions_per_source_max
        ):
            return None
        number = self._token()
        pipe = self._make_pipe(number, held.source, held.target)
        session = Carried(number, held, join, pipe)
        self.sessions[number] = session
        self._by_key[session.key] = session
        self._sessions_of[held.source] = of_source + 1
        self._effects.append(SessionOpened(number, held.source, held.target))
        return session

    def _carry(self, now: Instant, session: Carried, held: Held, join: Join) -> None:
        """This circuit is the active one from here on, in both directions."""
        pipe = session.pipe
        session.epoch = join.epoch
        pipe.acknowledge(join.received)
        old = session.active
        if old is not None:
            old.lame_until = now + self._limits.lame_max
            self._push(old.lame_until, _LAME, old.number)
        pipe.attach(held.circuit)
        held.circuit.offset = join.start
        held.session = session
        session.circuits.append(held)
        session.active, session.up = held, held.up
        answer = Join(session.id, join.epoch, pipe.received, pipe.ring.acknowledged)
        label, exporter = frames.LABEL_SERVER, held.up.exporter
        frame = frames.signed_join(
            frames.JOINED, answer, self._mac, session.secret, label, exporter
        )
        self._effects.append(SendFrame(held.number, frame))
        took = now - session.lost_at if session.lost_at else 0
        reason = "new" if join.epoch == 1 else "lost" if session.lost_at else "moved"
        if reason != "new":
            session.moves += 1
        session.lost_at = 0
        self._effects.append(Joined(session.number, held.number, held.up.path, took, reason))

    def _on_owing(self, now: Instant, number: int) -> None:
        session = self.sessions.get(number)
        if session is not None and not session.owing:
            session.owing = True
            self._push(now + self._limits.ack_delay, _ACK, number)
            active, soon = session.active, now + self._limits.silence
            if active is not None and active.look_at > soon and session.pipe.streams:
                self._look(active, soon)  # It was calm.

    def _on_svid(self, event: SvidChanged) -> None:
        self._generations[event.id] = event.generation
        for held in self.circuits.values():
            if held.target == event.id and held.up.generation != event.generation:
                self._effects.append(SendFrame(held.number, frames.frame(0, frames.MOVE)))

    # ------------------------------------------------------------------ what is due
    def _run_due(self, now: Instant) -> None:
        while self._due and self._due[0][0] <= now:
            _, what, number = heapq.heappop(self._due)
            if what == _ACK:
                self._acknowledge(now, number)
            elif what == _GONE:
                self._end_if_gone(now, number)
            else:
                held = self.circuits.get(number)
                if held is not None:
                    self._check(now, held, what)
        self.deadline = Instant(self._due[0][0]) if self._due else NEVER

    def _acknowledge(self, now: Instant, number: int) -> None:
        """As the client's."""
        session = self.sessions.get(number)
        if session is None:
            return
        session.owing = False
        for held in session.circuits:
            circuit = held.circuit
            if circuit.told_since():
                session.owing = True
            elif circuit.owes():
                self._effects.append(SendFrame(held.number, circuit.acknowledgement()))
        if session.owing:
            self._push(now + self._limits.ack_delay, _ACK, number)

    def _check(self, now: Instant, held: Held, what: int) -> None:
        limits = self._limits
        if what == _END:
            if held.ends_at <= now:
                self._close(now, held, "expired")
        elif what == _LAME:
            if held.lame_until and held.lame_until <= now:
                self._close(now, held, "left")
        elif held.look_at <= now:
            session = held.session
            busy = session is not None and bool(session.pipe.streams)
            silence = limits.silence if busy else limits.calm_silence
            if held.circuit.bytes_in != held.bytes_in:
                # Something came since the last look, which was not later than half the limit ago.
                held.bytes_in = held.circuit.bytes_in
                held.heard_at = now
                self._look(held, now + silence // 2)
            elif now - held.heard_at >= silence:
                self._close(now, held, "silent")
            else:
                self._look(held, held.heard_at + silence)

    def _end_if_gone(self, now: Instant, number: int) -> None:
        session = self.sessions.get(number)
        if session is None or not session.lost_at:
            return
        if session.left and session.pipe.streams:
            self._push(now + self._limits.pause_max, _GONE, number)
        elif now - session.lost_at >= self._limits.pause_max:
            self._end(now, session, "no circuit")

    # ------------------------------------------------------------------ actions
    def _close(self, now: Instant, held: Held, reason: str) -> None:
        self._effects.append(CloseCircuit(held.number, reason))
        self._forget(now, held)

    def _dismiss(self, now: Instant, held: Held) -> None:
        """Say that its session is no more; frames may come right behind JOIN and mean nothing."""
        held.circuit.closed = True
        self._effects.append(SendFrame(held.number, frames.frame(0, frames.GONE)))
        held.lame_until = now + self._limits.lame_max
        self._push(held.lame_until, _LAME, held.number)

    def _forget(self, now: Instant, held: Held) -> None:
        if self.circuits.pop(held.number, None) is None:
            return
        _less(self._circuits_of, held.source)
        session = held.session
        if session is None:
            return
        session.pipe.detach(held.circuit)
        session.circuits.remove(held)
        if session.active is held:
            session.active = None
            session.lost_at = now
            self._push(now + self._limits.pause_max, _GONE, session.number)
            self._effects.append(CircuitsGone(session.number))

    def _leave(self, now: Instant, session: Carried) -> None:
        """The client has left: the session goes on for what applications have yet to take."""
        session.left = session.pipe.leave()
        if not session.left:
            self._end(now, session, "left by the client")
            return
        for held in tuple(session.circuits):
            self._close(now, held, "ended")

    def _end(self, now: Instant, session: Carried, reason: str) -> None:
        del self.sessions[session.number]
        del self._by_key[session.key]
        _less(self._sessions_of, session.source)
        session.pipe.close(reset_for(reason))
        for held in tuple(session.circuits):
            if held is session.active and reason != "left by the client":
                gone = frames.frame(0, frames.GONE)
                self._effects.append(SendFrame(held.number, gone))
            held.session = None
            self._close(now, held, "ended")
        session.pipe.active = None
        self._effects.append(SessionEnded(session.number, reason))

    # ------------------------------------------------------------------ details
    def _set_end(self, held: Held) -> None:
        ends = held.up.not_after_unix_us - self._clock_us - self._limits.expiry_margin
        held.ends_at = min(ends, NEVER)
        self._push(held.ends_at, _END, held.number)

    def _look(self, held: Held, when: int) -> None:
        held.look_at = when
        self._push(when, _SILENCE, held.number)

    def _push(self, when: int, what: int, number: int) -> None:
        due = self._due
        heapq.heappush(due, (when, what, number))
        if len(due) > 64 + 8 * (len(self.circuits) + len(self.sessions)):
            self._due = sorted({entry for entry in due if self._counts(*entry)})

    def _counts(self, when: int, what: int, number: int) -> bool:
        """Whether an entry of the heap still means something."""
        held = self.circuits.get(number)
        if held is None:
            return number in self.sessions
        if what == _SILENCE:
            return when == held.look_at
        return what != _END or when == held.ends_at


_ACK, _LAME, _SILENCE, _END, _GONE = range(5)


def _less(counts: dict[SpiffeId, int], key: SpiffeId) -> None:
    """Count one down; nothing is kept at zero."""
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
