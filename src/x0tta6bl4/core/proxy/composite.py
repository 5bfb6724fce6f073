"""The proxy's composite: gives each event to its machine and lets the others hear the facts.

One loop over one growing list of effects, no recursion (house rule for composites).  Streams,
circuits and sessions are judged again at every change of names, rules and revocations.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Final

from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.links.liveness import Links
from x0tta6bl4.core.links.words import (
    AgentAlive,
    Counted,
    LinkDown,
    LinkQuality,
    LinkSuspected,
    LinkUp,
    NeighbourGone,
    NeighbourSet,
    Parked,
)
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    Allowed,
    ClockSet,
    Denied,
    Done,
    Effect,
    Effects,
    Event,
    Failed,
    Instant,
    Received,
    Send,
    Tick,
    Verdict,
)
from x0tta6bl4.core.policy.gate import Policy
from x0tta6bl4.core.proxy.clients import Clients, MakePipe, Outgoing
from x0tta6bl4.core.proxy.routes import Routes
from x0tta6bl4.core.proxy.snapshot import Snapshot
from x0tta6bl4.core.proxy.words import AGENT, Changed, Dial, OpenSession
from x0tta6bl4.core.session import facts
from x0tta6bl4.core.session.answer import Server
from x0tta6bl4.core.session.facts import LIMITS, Limits
from x0tta6bl4.core.session.frames import Mac
from x0tta6bl4.wire.hello import Hello
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import (
    ClockItem,
    Delta,
    DirectItem,
    Full,
    Item,
    LinkState,
    NameItem,
    NeedFull,
    NeighbourItem,
    NodeItem,
    PathBad,
    PathsItem,
    RevokedItem,
    RuleItem,
    ServiceItem,
    SessionGone,
    SvidItem,
    item_key,
)

ISSUED_LAST: Final = 2**62
"""Issued after any revocation of single SVIDs: what still hits it is a ban of the identity."""
STALE: Final = Denied("revocations are too old")


class Proxy:
    """All decisions of one proxy.

    Args:
        incarnation: random 63 bits, new at each start.
        make_pipe: gives the pipe of a new session.
        mac: HMAC-SHA256.
        seed: names the random streams.
        now: instant of creation.
        clock_us: wall time minus instant, microseconds (later told by ClockSet).
        limits: of sessions.

    Attributes:
        deadline: see `core.machine`.
        policy, revocations, routes, snapshot: its tables; to be read.
        clients: client sessions.
        server: accepted circuits and sessions.
        links: neighbours.
        link_states: what the agent was last told of each, for one that comes later.
    """

    __slots__ = (
        "_clock_us", "_floor_unix_us", "_generations", "_numbers", "_others_at", "_out",
        "_stale_at", "_svid_at", "clients", "deadline", "link_states", "links", "me", "policy",
        "revocations", "routes", "server", "snapshot",
    )  # fmt: skip

    def __init__(
        self,
        *,
        incarnation: int,
        make_pipe: MakePipe,
        mac: Mac,
        seed: object,
        now: Instant,
        clock_us: int,
        limits: Limits = LIMITS,
    ) -> None:
        self._numbers = itertools.count(1)
        self._clock_us = clock_us
        self.me = NodeName("")
        self.snapshot = Snapshot()
        self.routes = Routes(self.snapshot)
        self.policy = Policy()
        self.revocations = Revocations()
        self.links = Links(incarnation, Random(f"{seed}/links"))
        self.server = Server(
            lambda number, source, target: make_pipe(number, False),
            token=self.token,
            mac=mac,
            clock_us=clock_us,
            limits=limits,
        )
        self.clients = Clients(make_pipe, token=self.token, mac=mac, seed=seed, limits=limits)
        self._generations: dict[SpiffeId, int] = {}
        self.link_states: dict[str, LinkState] = {}
        self._floor_unix_us = 0
        self._others_at: Instant = NEVER
        """Deadline of everything but links."""
        self._stale_at: int = NEVER
        self._svid_at: int = NEVER
        self._out: list[Effect] = []
        self.deadline: Instant = NEVER

    # ------------------------------------------------------------------ questions
    def token(self) -> int:
        """A fresh number: of a circuit, a dial, a session."""
        return next(self._numbers)

    def open(self, source: SpiffeId, target: SpiffeId, name: str = "") -> Verdict:
        """Whether a stream may be opened now, in either role."""
        if self._stale_at == 0:
            return STALE
        for id in (source, target):
            verdict = self.revocations.check(id, ISSUED_LAST, None)
            if type(verdict) is Denied:  # At once: no circuit of theirs would be let in.
                return verdict
        return self.policy.open(source, target, name)

    def resolve(self, name: str) -> SpiffeId | None:
        """The ID behind a service name."""
        return self.policy.resolve(name)

    def check(self, id: SpiffeId, issued_unix_s: int, via: NodeName | None) -> Verdict:
        """Whether an SVID counts: for the judge of handshakes."""
        return self.revocations.check(id, issued_unix_s, via)

    def service(self, target: SpiffeId) -> ServiceItem | None:
        """The local service of a workload."""
        item = self.snapshot.items.get(f"ServiceItem/{target}")
        return item if type(item) is ServiceItem else None

    def svid(self, id: SpiffeId) -> SvidItem | None:
        """The SVID that this proxy holds for a workload of its node."""
        item = self.snapshot.items.get(f"SvidItem/{id}")
        return item if type(item) is SvidItem else None

    def generation(self, id: SpiffeId) -> int:
        """Grows with each new SVID of this ID."""
        return self._generations.get(id, 0)

    def session(self, source: SpiffeId, target: SpiffeId, node: NodeName) -> int | None:
        """Number of the client session that such calls share, if there is one."""
        return self.clients.shared((source, target, node))

    def replicas(self, target: SpiffeId) -> tuple[NodeName, ...]:
        """Nodes where a workload can be reached, nearest first, then least loaded."""
        return self.routes.replicas(self.me, target)

    def reached(self, source: SpiffeId, target: SpiffeId) -> tuple[NodeName, ...]:
        """Nodes with a session of these two that is at work.

        A node that stood still for a moment is down to all its neighbours for some seconds, and no
        way leads there; what goes through it all the while knows better.
        """
        return self.clients.at_work(source, target)

    # ------------------------------------------------------------------ entrance
    def handle(self, now: Instant, event: Event) -> Effects:
        """See `core.machine.Machine`."""
        if (kind := type(event)) is Tick and now < self.deadline:
            return NOTHING
        hello = type(event) is Received and type(event.message) is Hello
        if hello or (kind is Tick and self._others_at > now):
            effects = self.links.handle(now, event)
            for effect in effects:
                if type(effect) is not Send:
                    break
            else:  # Nearly always: nothing but hellos, nobody else has anything to do.
                due, others = self.links.deadline, self._others_at
                self.deadline = due if due < others else others
                return effects
            self._out += effects
        elif kind is Tick:
            self._tick(now)
        else:
            self._give(now, event)
        at = 0
        while at < len(self._out):
            # An effect that is a fact for another machine may append more.
            if type(self._out[at]) is not Send:
                self._hear(now, at)
            at += 1
        effects = tuple([effect for effect in self._out if effect is not NONE])
        self._out = []
        clients, server = self.clients.soonest(), self.server.deadline
        self._others_at = Instant(min(clients, server, self._stale_at or NEVER, self._svid_at))
        self.deadline = min(self._others_at, self.links.deadline)
        return effects

    def _tick(self, now: Instant) -> None:
        tick = Tick()
        if self.links.deadline <= now:
            self._out += self.links.handle(now, tick)
        if self.server.deadline <= now:
            self._out += self.server.handle(now, tick)
        for effects in self.clients.tick(now):
            self._out += effects
        if self._svid_at <= now:
            self._expire_svids(now)
        if 0 < self._stale_at <= now:
            self._stale_at = 0
            self._judge_streams()

    def _give(self, now: Instant, event: Event) -> None:
        """Give an event to its owner."""
        if type(event) is Received:
            self._on_agent(now, event.message)
        elif type(event) in _OF_CIRCUIT:
            self._to_circuit(now, event)
        elif type(event) in _OF_SESSION:
            number: int = event.session  # type: ignore[attr-defined]
            client = self.clients.get(number)
            if client is not None:
                self._run(now, client, event)
            else:
                self._out += self.server.handle(now, event)
        elif type(event) is facts.Accepted:
            if type(self._check_peer(event.source, event.up)) is Allowed:
                self._out += self.server.handle(now, event)
            else:
                self._out.append(facts.CloseCircuit(event.number, "revoked"))
        elif type(event) is OpenSession:
            self._open_session(now, event)
        elif type(event) in (AgentAlive, Counted, Parked):
            self._out += self.links.handle(now, event)
        elif type(event) is ClockSet:
            self._on_clock(now, event)

    def _hear(self, now: Instant, at: int) -> None:
        """Facts of one machine that concern another, or the agent."""
        fact = self._out[at]
        if type(fact) is facts.DialCircuit:
            self._out[at] = self._dial(now, fact)
        elif type(fact) is facts.SessionEnded:
            client, last = self.clients.ended(fact.session)
            if client is not None and last:
                gone = SessionGone(client.source, client.target, client.node, fact.reason)
                self._out.append(Send(AGENT, gone))
        elif type(fact) is facts.CloseCircuit:
            self.clients.forget_circuit(fact.circuit)
        elif type(fact) is facts.PathFailed:
            self._out[at] = Send(AGENT, PathBad(fact.path, fact.reason))
        elif type(fact) is LinkUp or type(fact) is LinkQuality:
            self.routes.suspects.discard(fact.node)
            figures = (fact.rtt_us, fact.loss_ppm, self.snapshot.dials(fact.node), fact.agent_alive)
            self._tell(at, LinkState(fact.node, "up", *figures, gray=fact.gray))
        elif type(fact) is LinkSuspected:
            self.routes.suspects.add(fact.node)
            self._tell(
                at, LinkState(fact.node, "suspected", 0, 0, self.snapshot.dials(fact.node), True)
            )
        elif type(fact) is LinkDown:
            self.routes.suspects.add(fact.node)
            self._out += map(facts.CancelDial, self.routes.through(fact.node))
            figures = (0, 0, self.snapshot.dials(fact.node), False)
            self._tell(at, LinkState(fact.node, "down", *figures, fact.reason))

    def _tell(self, at: int, state: LinkState) -> None:
        """Put a link's state in the place of the fact, and keep it for an agent that comes."""
        self.link_states[state.node] = state
        if state.reason == "removed":
            del self.link_states[state.node]
        self._out[at] = Send(AGENT, state)

    # ------------------------------------------------------------------ sessions
    def _open_session(self, now: Instant, event: OpenSession) -> None:
        self._out += self.clients.open(
            now,
            event,
            clock_us=self._clock_us,
            generation=self.generation(event.source),
            paths=self.routes.paths(self.me, event.node),
        )

    def _run(self, now: Instant, client: Outgoing, event: Event) -> None:
        self._out += self.clients.run(now, client, event)

    def _to_circuit(self, now: Instant, event: Event) -> None:
        number = event.token if type(event) is Done or type(event) is Failed else -1
        if type(event) is facts.Heard or type(event) is facts.CircuitLost:
            number = event.circuit
        self.routes.answered(number, type(event) is Done)
        session = self.clients.owner(number)
        if session is None:
            self._out += self.server.handle(now, event)
            return
        if type(event) is facts.CircuitLost or type(event) is Failed:
            self.clients.forget_circuit(number)
        client = self.clients.get(session)
        if client is None:
            self.clients.forget_circuit(number)
            if type(event) is Done:
                self._out.append(facts.CloseCircuit(number, "ended"))
            return
        if type(event) is Done:
            up: facts.Up = event.value
            client.peer_issued_unix_s, client.peer_via = up.peer_issued_unix_s, up.peer_via
        self._run(now, client, event)

    def _dial(self, now: Instant, fact: facts.DialCircuit) -> Effect:
        client = self.clients.get(fact.session)
        path = None
        if client is not None:
            taken = tuple(self.routes.way(token) for token in client.machine.dialling)
            path = self.routes.dial(fact.token, self.me, client.node, (*fact.avoid, *taken))
        if client is None or path is None:
            if client is not None:
                self._run(now, client, Failed(fact.token, "no path"))
            return NONE
        self.clients.dialled(fact.token, fact.session)
        return Dial(fact.token, fact.session, path, client.source, client.target)

    # ------------------------------------------------------------------ the agent
    def _on_agent(self, now: Instant, message: object) -> None:
        taken = (
            self.snapshot.take_full(message)
            if type(message) is Full
            else self.snapshot.take_delta(message)
            if type(message) is Delta
            else None
        )
        if taken is None:
            self._out.append(Send(AGENT, NeedFull(self.snapshot.version)))
            return
        puts, drops = taken
        changes = self.policy.changes
        revoked = False
        for item in puts:
            revoked = self._put(now, item) or revoked
        for key in drops:
            revoked = self._drop(now, key) or revoked
        self._out.append(Changed(puts, drops))
        if revoked:
            self._judge_circuits(now)
        if self.policy.changes != changes:
            self._judge_streams()

    def _put(self, now: Instant, item: Item) -> bool:
        """Let the tables and machines know of an item; returns whether it revokes something."""
        if type(item) is NameItem or type(item) is RuleItem:
            self.policy.put(item)
        elif type(item) is RevokedItem:
            self.revocations.put(item.subject, item.until_unix_s, item.issued_before_unix_s)
            return True
        elif type(item) is SvidItem:
            self._on_svid(now, item)
        elif type(item) is PathsItem or type(item) is DirectItem:
            self._on_paths(now, NodeName(item.node))
        elif type(item) is NeighbourItem:
            told = item.node, item.incarnation, item.link, item.hello_us, item.watched
            self._out += self.links.handle(now, NeighbourSet(*told))
        elif type(item) is NodeItem:
            self.me = NodeName(item.node)
            self._set_stale_at(now)
        elif type(item) is ClockItem:
            self._floor_unix_us = max(self._floor_unix_us, item.floor_unix_us)
            self._set_stale_at(now)
        return False

    def _drop(self, now: Instant, key: str) -> bool:
        """As `_put`; an SVID named here is withdrawn: what presents it ends at once."""
        kind, _, name = key.partition("/")
        if kind == "NameItem":
            self.policy.drop_name(name)
        elif kind == "RuleItem":
            self.policy.drop_rule(name)
        elif kind == "RevokedItem":
            subject, _, before = name.rpartition("/")
            self.revocations.drop(subject, int(before))
        elif kind == "NeighbourItem":
            self._out += self.links.handle(now, NeighbourGone(name))
            self.routes.suspects.discard(name)
        elif kind == "PathsItem" or kind == "DirectItem":
            self._on_paths(now, NodeName(name))
        elif kind == "SvidItem":
            self._withdraw(now, SpiffeId(name))
        return False

    def _on_svid(self, now: Instant, item: SvidItem) -> None:
        id = SpiffeId(item.id)
        generation = self._generations[id] = self.generation(id) + 1
        changed = facts.SvidChanged(id, generation)
        for client in self.clients.values():
            if client.source == id:
                self._run(now, client, changed)
        self._out += self.server.handle(now, changed)
        self._set_svid_at()

    def _on_paths(self, now: Instant, node: NodeName) -> None:
        self.routes.forget(self.me, node)
        self._out += map(facts.CancelDial, self.routes.astray(self.me, node))
        for client in self.clients.values():
            if client.node == node:
                number, direct = client.machine.number, self.routes.direct(self.me, node)
                paths = self.routes.paths(self.me, node)
                event = facts.PathsChanged(number, paths, direct)
                self._run(now, client, event)

    def _on_clock(self, now: Instant, event: ClockSet) -> None:
        self._clock_us = event.unix_us - now
        for client in self.clients.values():
            self._run(now, client, event)
        self._out += self.server.handle(now, event)
        self.revocations.prune(event.unix_us // SECOND)
        self._set_svid_at()
        self._set_stale_at(now)

    # ------------------------------------------------------------------ judged again
    def _judge_streams(self) -> None:
        """Every open stream, in both roles, by the policy of now."""
        sessions = [(c.source, c.target, c.machine.pipe) for c in self.clients.values()]
        sessions += [(s.source, s.target, s.pipe) for s in self.server.sessions.values()]
        for source, target, pipe in sessions:
            for stream in tuple(pipe.streams.values()):
                if type(self.open(source, target, stream.ask.name)) is not Allowed:
                    pipe.withdraw(stream)

    def _judge_circuits(self, now: Instant) -> None:
        """Every peer, by the revocations of now; what is revoked ends for good."""
        for client in self.clients.values():
            via = _node(client.peer_via) or client.node
            issued = client.peer_issued_unix_s
            if type(self.check(client.target, issued, via)) is not Allowed or (
                type(self.check(client.source, self._issued(client.source), self.me)) is not Allowed
            ):
                self._run(now, client, facts.Withdraw(client.machine.number, "revoked"))
        for session in tuple(self.server.sessions.values()):
            verdict = self._check_peer(session.source, session.up)
            if not session.circuits and type(verdict) is not Allowed:
                self._out += self.server.handle(now, facts.Withdraw(session.number, "revoked"))
        for held in tuple(self.server.circuits.values()):
            if type(self._check_peer(held.source, held.up)) is Allowed:
                continue
            if held.session is not None:
                event = facts.Withdraw(held.session.number, "revoked")
                self._out += self.server.handle(now, event)
            else:
                self._out += self.server.close(now, held.number, "revoked")

    def _check_peer(self, source: SpiffeId, up: facts.Up) -> Verdict:
        """Whether the SVID of an accepted circuit's peer counts."""
        return self.check(source, up.peer_issued_unix_s, _node(up.peer_via))

    def _withdraw(self, now: Instant, id: SpiffeId) -> None:
        for client in self.clients.values():
            if client.source == id:
                self._run(now, client, facts.Withdraw(client.machine.number, "withdrawn"))
        for held in tuple(self.server.circuits.values()):
            if held.target != id:
                continue
            if held.session is not None:
                event = facts.Withdraw(held.session.number, "withdrawn")
                self._out += self.server.handle(now, event)
            else:
                self._out += self.server.close(now, held.number, "withdrawn")

    def _expire_svids(self, now: Instant) -> None:
        """SVIDs leave by expiry; their circuits have closed a second before."""
        unix_s = (now + self._clock_us) // SECOND
        svids = self.snapshot.svids()
        gone = [item_key(item) for item in svids if item.not_after_unix_s <= unix_s]
        for key in gone:
            self.snapshot.drop(key)
        if gone:
            self._out.append(Changed((), tuple(gone)))
        self._set_svid_at()

    # ------------------------------------------------------------------ details
    def _set_svid_at(self) -> None:
        ends = [item.not_after_unix_s for item in self.snapshot.svids()]
        self._svid_at = min(ends) * SECOND - self._clock_us if ends else NEVER

    def _set_stale_at(self, now: Instant) -> None:
        """When everything is refused because the newest revocations are too old."""
        node = self.snapshot.items.get("NodeItem")
        age_s = node.revocation_max_age_s if type(node) is NodeItem else 0
        if not age_s:
            self._stale_at = NEVER
            return
        was = self._stale_at
        at = self._floor_unix_us + age_s * SECOND - self._clock_us
        self._stale_at = at if at > now else 0
        if was and not self._stale_at:
            self._judge_streams()

    def _issued(self, id: SpiffeId) -> int:
        """When our own SVID was issued: not known here; only bans of the identity count."""
        return ISSUED_LAST if self.svid(id) is not None else 0


NONE: Final = Tick()
"""Stands where an effect was consumed inside."""

_OF_CIRCUIT: Final = frozenset({Done, Failed, facts.Heard, facts.CircuitLost})
_OF_SESSION: Final = frozenset({facts.Wrote, facts.Owing, facts.Broken, facts.Withdraw})


def _node(name: str) -> NodeName | None:
    return NodeName(name) if name else None
