"""Client sessions of a proxy: the machine of each, its circuits, and when it is due.

All calls of one workload to one workload on one node share a session; a call may have one of its
own instead, with a handshake and circuits that carry nothing else, which ends when the call has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from random import Random
from typing import Final

import msgspec

from x0tta6bl4.core.machine import MS, NEVER, Effects, Event, Instant, Tick
from x0tta6bl4.core.proxy.words import OpenSession
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.control import Client
from x0tta6bl4.core.session.facts import Limits, Path, Token
from x0tta6bl4.core.session.frames import Mac
from x0tta6bl4.core.session.pipe import Pipe
from x0tta6bl4.wire.ids import NodeName, SpiffeId

SESSIONS_MAX: Final = 4096
"""Client sessions of one proxy; further ones are refused."""
OWN_IDLE: Final = 1
"""Without its stream for this long an own session ends, once everything is acknowledged: at the
next look.  Then the other end has everything too, or waits for its application alone."""
OWN_ACK: Final = 25 * MS
"""How long an own session waits for a chunk that takes an ACK along: most end before."""
OWN_STANDBY: Final = 200 * MS
"""An own session that lives for less than this gets no standby."""

MakePipe = Callable[[int, bool], Pipe]
"""(session, whether this end is the client) -> its pipe."""
Key = tuple[SpiffeId, SpiffeId, NodeName]
"""Source, target and node."""


class Outgoing:
    """A client's session with whom it joins."""

    __slots__ = ("deadline", "key", "machine", "own", "peer_issued_unix_s", "peer_via")

    def __init__(self, machine: Client, event: OpenSession) -> None:
        self.machine = machine
        self.key: Key = event.source, event.target, event.node
        self.own = event.own
        self.deadline: int = NEVER
        self.peer_issued_unix_s = 0
        self.peer_via = ""

    @property
    def source(self) -> SpiffeId:
        """The calling workload, of this node."""
        return self.key[0]

    @property
    def target(self) -> SpiffeId:
        """The called workload."""
        return self.key[1]

    @property
    def node(self) -> NodeName:
        """Where the called workload is."""
        return self.key[2]


class Clients:
    """Table of the client sessions; at most SESSIONS_MAX.

    Args:
        make_pipe: gives the pipe of a new session.
        token: gives numbers for circuits.
        mac: HMAC-SHA256.
        seed: names the random streams.
        limits: of shared sessions; own ones differ in the OWN_ constants.
    """

    __slots__ = (
        "_by_circuit", "_by_key", "_due", "_limits", "_mac", "_make_pipe", "_of_key", "_own_limits",
        "_seed", "_sessions", "_token",
    )  # fmt: skip

    def __init__(
        self, make_pipe: MakePipe, *, token: Token, mac: Mac, seed: object, limits: Limits
    ) -> None:
        self._make_pipe, self._token, self._mac, self._seed = make_pipe, token, mac, seed
        self._limits = limits
        self._own_limits = msgspec.structs.replace(
            limits, idle_max=OWN_IDLE, standby_after=OWN_STANDBY, ack_delay=OWN_ACK
        )
        self._sessions: dict[int, Outgoing] = {}
        self._by_key: dict[Key, int] = {}
        """The shared ones."""
        self._of_key: dict[Key, int] = {}
        """How many there are, own ones too."""
        self._by_circuit: dict[int, int] = {}
        """Circuits and dials: number -> session; bounded by what each session may have."""
        self._due: list[tuple[int, int]] = []

    # ------------------------------------------------------------------ questions
    def get(self, number: int) -> Outgoing | None:
        """A session by its number."""
        return self._sessions.get(number)

    def values(self) -> tuple[Outgoing, ...]:
        """All sessions, as they are now."""
        return tuple(self._sessions.values())

    def shared(self, key: Key) -> int | None:
        """Number of the session that calls under this key share, if there is one."""
        return self._by_key.get(key)

    def at_work(self, source: SpiffeId, target: SpiffeId) -> tuple[NodeName, ...]:
        """Nodes to which these two share a session with a circuit that nothing speaks against."""
        found = []
        for key, number in self._by_key.items():
            machine = self._sessions[number].machine
            active = machine.active if key[:2] == (source, target) and machine.joined else None
            if active is not None and not active.suspect_at:
                found.append(key[2])
        return tuple(found)

    def owner(self, circuit: int) -> int | None:
        """Number of the session that a circuit or a dial is of; it may be over already."""
        return self._by_circuit.get(circuit)

    def soonest(self) -> int:
        """Earliest deadline of all sessions."""
        due = self._due
        while due:
            deadline, number = due[0]
            client = self._sessions.get(number)
            if client is not None and client.machine.deadline == deadline:
                return deadline
            heapq.heappop(due)
        return NEVER

    # ------------------------------------------------------------------ changes
    def open(
        self,
        now: Instant,
        event: OpenSession,
        *,
        clock_us: int,
        generation: int,
        paths: tuple[Path, ...],
    ) -> Effects:
        """Begin a session; it ends at once where there is one to share, or no room.

        Args:
            now: the instant.
            event: who with whom.
            clock_us: wall time minus instant, microseconds.
            generation: of the source's SVID.
            paths: to the node, best first.
        """
        key = (event.source, event.target, event.node)
        if (key in self._by_key and not event.own) or len(self._sessions) >= SESSIONS_MAX:
            return (facts.SessionEnded(event.session, "busy"),)
        machine = Client(
            event.session,
            event.session_id,
            self._make_pipe(event.session, True),
            token=self._token,
            mac=self._mac,
            random=Random(f"{self._seed}/session/{event.session}"),
            now=now,
            clock_us=clock_us,
            generation=generation,
            limits=self._own_limits if event.own else self._limits,
        )
        client = self._sessions[event.session] = Outgoing(machine, event)
        self._of_key[key] = self._of_key.get(key, 0) + 1
        if not event.own:
            self._by_key[key] = event.session
        return self.run(now, client, facts.PathsChanged(event.session, paths))

    def run(self, now: Instant, client: Outgoing, event: Event) -> Effects:
        """Give a session's machine an event."""
        machine = client.machine
        effects = machine.handle(now, event)
        if machine.deadline != client.deadline:
            client.deadline = machine.deadline
            if machine.deadline != NEVER:
                heapq.heappush(self._due, (machine.deadline, machine.number))
                if len(self._due) > 64 + 8 * len(self._sessions):
                    self._due = sorted((c.deadline, n) for n, c in self._sessions.items())
        return effects

    def tick(self, now: Instant) -> Iterator[Effects]:
        """Run every session that is due."""
        tick = Tick()
        while self._due and self._due[0][0] <= now:
            deadline, number = heapq.heappop(self._due)
            client = self._sessions.get(number)
            if client is not None and client.machine.deadline == deadline:
                yield self.run(now, client, tick)

    def dialled(self, circuit: int, session: int) -> None:
        """A dial for a session is under way; its token is the number of its circuit."""
        self._by_circuit[circuit] = session

    def forget_circuit(self, circuit: int) -> None:
        """A circuit or a dial is no more; what is not known is ignored."""
        self._by_circuit.pop(circuit, None)

    def ended(self, number: int) -> tuple[Outgoing | None, bool]:
        """A session is over.

        Returns:
            The session, None if it was no client's; and whether it was the last under its key.
        """
        client = self._sessions.pop(number, None)
        if client is None:
            return None, False
        key = client.key
        if self._by_key.get(key) == number:
            del self._by_key[key]
        left = self._of_key.pop(key) - 1
        if left:
            self._of_key[key] = left
        return client, not left
