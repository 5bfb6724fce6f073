"""The client's end of a session: dials circuits, judges them, and moves the session between them.

    session   NEW --JOINED--> RUNNING --both circuits gone--> PAUSED --60 s--> ended
                                 ^------------JOINED------------'
    circuit   dialling --Done--> standby --JOIN--> active --another JOINs--> lame --> closed
                  '--Failed         '--- stale, silent: replaced first, then closed

The machine is level-triggered: every event changes the state, then `_settle` compares what is with
what should be (one active circuit, one warm standby, nothing stale, nothing unacknowledged for
long) and asks for the difference.  It reads offsets from the pipe; bytes never pass through it.

A circuit is *suspect* when a ping stands unanswered and no ACK on it confirmed anything for
max(25 ms, srtt + 4 rttvar).  It is left only for a standby that answered a ping sent after the
suspicion; with none, it is kept while a new one is dialled.  A tick that came late judges nobody.
So a false alarm costs duplicate bytes and nothing else, and those are bounded.

Source: RACK-TLP, RFC 8985, across circuits; RFC 6298 section 2 for srtt and rttvar; RFC 8684
section 3.2 for JOIN.
"""

from __future__ import annotations

from random import Random

from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    ClockSet,
    Done,
    Effect,
    Effects,
    Event,
    Failed,
    Instant,
    Tick,
)
from x0tta6bl4.core.session import facts, frames
from x0tta6bl4.core.session.carrier import Carrier, Marks, Quiet, spread, strays
from x0tta6bl4.core.session.facts import LIMITS, Limits, Token, Up
from x0tta6bl4.core.session.frames import Join, Mac
from x0tta6bl4.core.session.pipe import Pipe


class Client:
    """Machine of one session at its client's proxy.

    Args:
        number: the driver's number of this session.
        session_id: 16 random bytes.
        pipe: the session's pipe.
        token: gives numbers for circuits.
        mac: HMAC-SHA256.
        random: a stream of this session's own.
        now: instant of creation; the first `Tick` dials.
        clock_us: wall time minus instant, in microseconds (later told by ClockSet).

    Attributes:
        deadline: see `core.machine`.
        watching: the machine looks after what stands unacknowledged; else tell it `Wrote`.
        owing: the machine will acknowledge what came in; else tell it `Owing`.
        active: the circuit that carries the session.
        standby: the warm one.
        moves: times that another circuit took over after the first.
    """

    __slots__ = (
        "_ack_at", "_announced", "_clock_us", "_dials", "_effects", "_epoch", "_established",
        "_fails", "_fresh", "_id", "_joined_at", "_joining_since", "_lame", "_limits", "_lost_at",
        "_mac", "_marks", "_paths", "_quiet", "_random", "_reason", "_retry_at", "_secret",
        "_standby_at", "_token", "active", "deadline", "ended", "generation", "joined", "moves",
        "number", "owing", "pipe", "standby", "watching",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        session_id: bytes,
        pipe: Pipe,
        *,
        token: Token,
        mac: Mac,
        random: Random,
        now: Instant,
        clock_us: int,
        generation: int = 0,
        limits: Limits = LIMITS,
    ) -> None:
        self.number = number
        self.pipe = pipe
        self.deadline: Instant = now
        self.watching = self.owing = self.ended = False
        self.active: Carrier | None = None
        self.standby: Carrier | None = None
        self.generation = generation
        self.joined, self.moves = False, 0
        self._id = session_id
        self._token, self._mac, self._random, self._limits = token, mac, random, limits
        self._clock_us = clock_us
        self._fresh: Carrier | None = None
        self._lame: list[Carrier] = []
        self._dials: dict[int, int] = {}
        self._paths: facts.PathsChanged | None = None
        self._secret, self._epoch = b"", 0
        self._established = False
        """The other end has the session for certain: JOIN instead of NEW."""
        self._fails, self._retry_at = 0, int(now)
        """Back-off: no dial before this."""
        self._standby_at: int = now
        """Jitter: no dial for a standby before this."""
        self._lost_at: int = now
        self._joining_since = self._joined_at = 0
        self._reason, self._announced = "new", False
        self._ack_at: int = NEVER
        self._marks, self._quiet = Marks(), Quiet(now)
        self._effects: list[Effect] = []

    @property
    def dialling(self) -> tuple[int, ...]:
        """Tokens of the dials under way."""
        return tuple(self._dials)

    # ------------------------------------------------------------------ entrance
    def handle(self, now: Instant, event: Event) -> Effects:
        """See `core.machine.Machine`."""
        if self.ended:
            if type(event) is Done and self._dials.pop(event.token, None) is not None:
                return (facts.CloseCircuit(event.token, "ended"),)
            return NOTHING
        judge = now - self.deadline <= self._limits.late
        if type(event) is Tick:
            if now < self.deadline:
                return NOTHING
        elif type(event) is facts.Wrote:
            self._watch(now)
        elif type(event) is facts.Owing:
            self._owe(now)
        elif type(event) is facts.Heard:
            self._on_heard(now, event)
        elif type(event) is Done:
            self._on_up(now, event.token, event.value)
        elif type(event) is Failed:
            if self._dials.pop(event.token, None) is not None:
                self._back_off(now)
        elif type(event) is facts.CircuitLost:
            self._on_lost(now, event.circuit, event.reason)
        elif type(event) is facts.Broken or type(event) is facts.Withdraw:
            self._end(event.reason)
        elif type(event) is facts.SvidChanged:
            self.generation = event.generation
            self._forgive(now)
            self._standby_at = now + self._jitter(spread(self.active, now, self._limits))
        elif type(event) is facts.PathsChanged:
            self._on_paths(now, event)
        elif type(event) is ClockSet:
            self._clock_us = event.unix_us - now
            for carrier in self._carriers():
                self._set_end(carrier)
        else:
            return NOTHING
        if not self.ended:
            self._settle(now, judge)
            self.deadline = self._next(now)
        effects, self._effects = tuple(self._effects), []
        return effects

    # ------------------------------------------------------------------ events
    def _watch(self, now: Instant) -> None:
        if not self.watching:
            self.watching = True
            self._marks.look(now, self.pipe.ring.written, self.pipe.ring.confirmed)

    def _owe(self, now: Instant) -> None:
        if not self.owing:
            self.owing = True
            self._ack_at = now + self._limits.ack_delay

    def _on_up(self, now: Instant, token: int, up: Up) -> None:
        if self._dials.pop(token, None) is None:
            return
        carrier = Carrier(token, up, now)
        self._set_end(carrier)
        if carrier.ends_at <= now:
            self._close(carrier, "expired")
            self._back_off(now)
            return
        if not self._secret:
            self._secret = up.secret
        if self.active is None:
            self._join(now, carrier, self._reason)
        elif self.standby is None:
            self.standby = carrier
            self._ping(now, carrier)
        elif self._fresh is None and self.standby is not None:
            self._fresh = carrier
            self._ping(now, carrier)
        else:
            self._close(carrier, "surplus")

    def _on_lost(self, now: Instant, number: int, reason: str) -> None:
        carrier = self._forget(number)
        if carrier is None:
            return
        if reason.partition(":")[0] in facts.FAILED_PATH:
            self._effects.append(facts.PathFailed(carrier.path, reason))
        self.pipe.detach(carrier.circuit)
        if carrier is self.active:
            self._lose_active(now, "lost")
        elif carrier is self.standby:
            self.standby = None
            self._standby_at = now + self._jitter()

    def _lose_active(self, now: Instant, reason: str) -> None:
        self.active = None
        self._reason = reason if self.joined else "new"
        self._lost_at = self._lost_at or now
        self._announced = False
        if self._joining_since or now - self._joined_at < self._limits.retry_short:
            # Whatever took this circuit away so soon may take the next one too.
            self._back_off(now)
        else:
            self._forgive(now)

    def _on_heard(self, now: Instant, event: facts.Heard) -> None:
        carrier = self._find(event.circuit)
        if carrier is None:
            return
        if event.kind == frames.PONG:
            carrier.pong(now, event.value)
        elif event.kind == frames.JOINED:
            self._on_joined(now, carrier, event.body)
        elif event.kind == frames.MOVE:
            carrier.moved = True
            self._standby_at = now + self._jitter(spread(self.active, now, self._limits))
        elif event.kind == frames.GONE:
            if carrier is self.active:
                self._end("gone")
        else:
            self._drop(now, carrier, "protocol")

    def _on_joined(self, now: Instant, carrier: Carrier, body: bytes) -> None:
        join = frames.join_body(frames.JOINED, body)
        pipe = self.pipe
        if (
            carrier is not self.active
            or not self._joining_since
            or not frames.join_holds(
                join, self._mac, self._secret, frames.LABEL_SERVER, carrier.exporter
            )
            or join.session != self._id
            or join.epoch != self._epoch
            or join.start > pipe.received
            or join.received > pipe.sent_high
        ):
            self._drop(now, carrier, "protocol")
            return
        carrier.circuit.offset = join.start
        pipe.acknowledge(join.received)
        carrier.pong(now, carrier.ping_token)
        first = not self.joined
        self._established = self.joined = True
        if not first:
            self.moves += 1
        took, reason = now - min(self._joining_since, self._lost_at or NEVER), self._reason
        self._joining_since = self._lost_at = 0
        self._joined_at = self._retry_at = now
        wait = self._limits.standby_after if first else 0 if reason == "moved" else self._jitter()
        self._standby_at = now + wait
        for lame in self._lame:
            self._close(lame, "left")
        self._lame = []
        if self._paths is not None and self._paths.paths:
            strays(self.active, self.standby, self._paths)  # They have changed places.
        self._effects.append(facts.Joined(self.number, carrier.number, carrier.path, took, reason))

    def _on_paths(self, now: Instant, event: facts.PathsChanged) -> None:
        """Leave, one after the other and without haste, what is no longer a path of ours."""
        if self._paths is None or event.paths != self._paths.paths:
            self._forgive(now)
        self._paths, calm = event, self._quiet.calm
        if event.paths and strays(self.active, self.standby, event):
            rest = spread(self.active, now, self._limits, calm) // 2
            self._standby_at = now + (rest + self._jitter(rest) if calm else self._jitter())

    # ------------------------------------------------------------------ what is due
    def _settle(self, now: Instant, judge: bool) -> None:
        if self._quiet.look(now, self.pipe, self._limits):
            self._standby_at = min(self._standby_at, now + self._jitter())
        self._see_progress(now, judge)
        if self._ack_at <= now:
            self._acknowledge(now)
        self._expire(now)
        if self._watch_marks(now):
            self._ping_for_marks(now)
        if judge and self.active is not None:
            self._judge(now, self.active)
        if self.active is None:
            self._recover(now)
        self._replace(now)
        self._ping_idle(now)
        self._dial(now)
        self._end_idle(now)
        if now - self._gone_since(now) >= self._limits.pause_max:
            self._end("no circuit")

    def _gone_since(self, now: Instant) -> int:
        """Since when nothing has carried the session; `now` if something does."""
        suspect_at = self.active.suspect_at if self.active is not None else 0
        return self._lost_at or suspect_at or now

    def _see_progress(self, now: Instant, judge: bool) -> None:
        for carrier in self._carriers():
            progress = carrier.circuit.progress
            if progress != carrier.progress:
                carrier.progress = progress
                carrier.alive_at = now
                carrier.suspect_at = 0
                if carrier is self.active:
                    self._established = True
                    self._fails = 0
            elif not judge:
                carrier.alive_at = now
                carrier.suspect_at = 0

    def _acknowledge(self, now: Instant) -> None:
        """Acknowledge what waits since before the last look; look again while chunks do so."""
        self.owing = False
        for carrier in self._carriers():
            if carrier.circuit.told_since():
                self.owing = True
            elif carrier.circuit.owes():
                ack = carrier.circuit.acknowledgement()
                self._effects.append(facts.SendFrame(carrier.number, ack))
        self._ack_at = now + self._limits.ack_delay if self.owing else NEVER

    def _expire(self, now: Instant) -> None:
        for carrier in self._carriers():
            if carrier.ends_at <= now:
                self._drop(now, carrier, "expired")
        for carrier in tuple(self._lame):
            if carrier.lame_until <= now:
                self._drop(now, carrier, "left")
        standby = self.standby
        if standby is not None and standby.ping_out:
            since = max(standby.ping_at, standby.alive_at)
            if now - since >= standby.patience(self._limits):
                self._drop(now, standby, "silent")

    def _watch_marks(self, now: Instant) -> bool:
        """Follow what stands unacknowledged; returns whether some of it has stood for long."""
        if not self.watching:
            return False
        ring = self.pipe.ring
        stands = self._marks.look(now, ring.written, ring.confirmed)
        self.watching = stands >= 0
        active = self.active
        return active is not None and stands >= active.threshold(self._limits) // 2

    def _ping_for_marks(self, now: Instant) -> None:
        active, standby = self.active, self.standby
        if active is not None and not active.ping_out:
            self._ping(now, active)
            if standby is not None and not standby.ping_out:
                self._ping(now, standby)

    def _judge(self, now: Instant, active: Carrier) -> None:
        limits = self._limits
        if not active.ping_out:
            return
        since = max(active.ping_at, active.alive_at)
        if now - since < active.threshold(limits):
            return
        if not active.suspect_at:
            active.suspect_at = now
            if self.standby is not None:
                self._ping(now, self.standby)
            else:
                # What failed so far were dials for a standby; now there is need.
                self._standby_at = now
                self._forgive(now)
            return
        standby = self.standby
        if standby is None or standby.answered_at < active.suspect_at:
            return
        pipe = self.pipe
        allowed = limits.resend_window + pipe.ring.written * limits.resend_percent // 100
        if pipe.resent + pipe.again > allowed:
            return
        self._effects.append(facts.PathFailed(active.path, "silent"))
        self._lost_at = active.suspect_at
        self._move(now, standby, "silent")

    def _recover(self, now: Instant) -> None:
        """No active circuit: take the standby, else pause."""
        for carrier in (self.standby, self._fresh):
            if carrier is not None:
                self._move(now, carrier, self._reason)
                return
        if self.joined and not self._announced:
            self._announced = True
            self._effects.append(facts.CircuitsGone(self.number))

    def _replace(self, now: Instant) -> None:
        """Planned moves: a stale standby is replaced first, then the stale active one left."""
        standby, fresh = self.standby, self._fresh
        if fresh is not None and (standby is None or fresh.answered_at >= 0):
            self._fresh = None
            self.standby = fresh
            if standby is not None:
                self._close(standby, "stale")
            standby = fresh
        active = self.active
        if active is None or standby is None or not self._stale(active) or self._stale(standby):
            return
        waits = (active.moved or self._quiet.calm) and now < self._standby_at
        busy = self._lame or self._joining_since or waits
        if standby.answered_at >= 0 and not busy:
            self._move(now, standby, "moved")

    def _ping_idle(self, now: Instant) -> None:
        every = self._quiet.ping_every(self._limits)
        for carrier in self._carriers():
            quiet = not carrier.lame_until and not carrier.ping_out
            if quiet and now - carrier.ping_at >= every:
                self._ping(now, carrier)

    def _dial(self, now: Instant) -> None:
        wanted = self._wanted(now)
        while len(self._dials) < wanted and now >= self._dial_at:
            token = self._token()
            self._dials[token] = now
            avoid = tuple(c.path for c in self._carriers() if c.off_path or not self._stale(c))
            self._effects.append(facts.DialCircuit(token, self.number, avoid))

    @property
    def _dial_at(self) -> int:
        return self._retry_at if self.active is None else max(self._retry_at, self._standby_at)

    def _wanted(self, now: Instant) -> int:
        """How many dials should be under way."""
        if self.ended:
            return 0
        if self.active is None:
            waited = now - self._lost_at >= self._limits.second_dial
            return facts.DIALS_MAX if waited or self._fails else 1
        if self._joining_since and not self.active.suspect_at:
            return 0
        if self._paths is not None and self._paths.paths and len(self._paths.paths[0]) < 2:
            # To ourselves: nothing between can fail, only certificates make a move necessary.
            return 1 if self.standby is None and self._stale(self.active) else 0
        standby = self.standby
        if standby is None:
            return self._in_need(now)
        if self._fresh is not None:
            return 0
        deaf = standby.ping_out and now - standby.ping_at >= standby.threshold(self._limits)
        if deaf and self.active.suspect_at:
            return self._in_need(now)
        return 1 if self._stale(standby) else 0

    def _in_need(self, now: Instant) -> int:
        """One dial; a second beside one that is swallowed while the active circuit is suspect."""
        active, first = self.active, min(self._dials.values(), default=now)
        swallowed = now - first >= self._limits.second_dial
        return facts.DIALS_MAX if active is not None and active.suspect_at and swallowed else 1

    def _end_idle(self, now: Instant) -> None:
        pipe, limits = self.pipe, self._limits
        said = pipe.ring.confirmed >= pipe.ring.written
        if said and now - self._quiet.stream_at >= limits.idle_max:
            self._end("idle")
        elif now - self._quiet.frame_at >= limits.rest_after:
            pipe.rest()

    # ------------------------------------------------------------------ actions
    def _join(self, now: Instant, carrier: Carrier, reason: str) -> None:
        """Make a circuit active in both directions and replay at once."""
        pipe = self.pipe
        carrier.suspect_at = 0
        carrier.alive_at = now
        pipe.attach(carrier.circuit)
        self.active = carrier
        self._epoch += 1
        self._reason = reason
        self._joining_since = now
        blank = Join(
            self._id, self._epoch, pipe.received, pipe.ring.acknowledged, secret=self._secret
        )
        kind = frames.JOIN if self._established else frames.NEW
        frame = frames.signed_join(
            kind, blank, self._mac, self._secret, frames.LABEL_CLIENT, carrier.exporter
        )
        self._effects.append(facts.SendFrame(carrier.number, frame))
        if not carrier.ping_out:
            carrier.ask(now)  # JOINED answers.
        self._watch(now)

    def _move(self, now: Instant, to: Carrier, reason: str) -> None:
        """Leave the active circuit, if there is one, for `to`."""
        old = self.active
        if old is not None:
            old.lame_until = now + self._limits.lame_max
            self._lame.append(old)
        if to is self.standby:
            self.standby = None
        elif to is self._fresh:
            self._fresh = None
        if reason == "moved":
            self._lost_at = now
        self._join(now, to, reason)

    def _ping(self, now: Instant, carrier: Carrier) -> None:
        self._effects.append(carrier.ping(now))

    def _drop(self, now: Instant, carrier: Carrier, reason: str) -> None:
        was_active = carrier is self.active
        self._forget(carrier.number)
        self._close(carrier, reason)
        if was_active:
            self._lose_active(now, "lost")

    def _close(self, carrier: Carrier, reason: str) -> None:
        self.pipe.detach(carrier.circuit)
        self._effects.append(facts.CloseCircuit(carrier.number, reason))

    def _end(self, reason: str) -> None:
        if self.ended:
            return
        self.ended = True
        self.deadline = NEVER
        active = self.active
        if active is not None and self.joined and reason != "gone":
            gone = frames.frame(0, frames.GONE)
            self._effects.append(facts.SendFrame(active.number, gone))
        for carrier in self._carriers():
            self._close(carrier, "ended")
        for token in self._dials:
            self._effects.append(facts.CancelDial(token))
        self.active = self.standby = self._fresh = None
        self._lame = []
        self.pipe.close(facts.reset_for(reason))
        self._effects.append(facts.SessionEnded(self.number, reason))

    def _back_off(self, now: Instant) -> None:
        limits = self._limits
        most = limits.retry_max if self.active is None else limits.retry_standby_max
        self._fails = min(self._fails + 1, 16)
        wait = min(limits.retry_min << self._fails, most)
        self._retry_at = now + wait // 2 + self._random.randrange(wait // 2 + 1)

    def _forgive(self, now: Instant) -> None:
        """Forget the back-off: what made dials fail is not what is dialled now."""
        self._fails, self._retry_at = 0, now

    # ------------------------------------------------------------------ questions
    def _carriers(self) -> list[Carrier]:
        all_of_them = (self.active, self.standby, self._fresh, *self._lame)
        return [carrier for carrier in all_of_them if carrier is not None]

    def _find(self, number: int) -> Carrier | None:
        return next((one for one in self._carriers() if one.number == number), None)

    def _forget(self, number: int) -> Carrier | None:
        """Take a circuit out of its place; the caller deals with what follows from it."""
        carrier = self._find(number)
        self.standby = None if carrier is self.standby else self.standby
        self._fresh = None if carrier is self._fresh else self._fresh
        self._lame = [lame for lame in self._lame if lame is not carrier]
        return carrier

    def _stale(self, carrier: Carrier) -> bool:
        return carrier.stale(self.generation, self._limits)

    def _set_end(self, carrier: Carrier) -> None:
        carrier.ends_at = min(
            carrier.not_after_unix_us - self._clock_us - self._limits.expiry_margin, NEVER
        )

    def _jitter(self, most: int | None = None) -> int:
        return self._random.randrange((self._limits.jitter if most is None else most) + 1)

    def _next(self, now: Instant) -> Instant:
        """When something may be due next."""
        limits, active, quiet = self._limits, self.active, self._quiet
        due: list[int] = [self._ack_at, quiet.stream_at + limits.idle_max]
        due += (quiet.frame_at + limits.rest_after, self._gone_since(now) + limits.pause_max)
        every = quiet.ping_every(limits)
        for carrier in self._carriers():
            due += carrier.due(now, carrier is active, every, limits)
        if self.watching and active is not None and not active.ping_out:
            due.append(now + active.threshold(limits) // 4)
        if active is None:
            due.append(self._lost_at + limits.second_dial)
        elif active.suspect_at:
            due += [begun + limits.second_dial for begun in self._dials.values()]
        if len(self._dials) < self._wanted(now):
            due.append(self._dial_at)
        soonest = min(when for when in due if when > now) if due else NEVER
        return Instant(min(soonest, NEVER))
