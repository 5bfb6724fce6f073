"""The agent's composite (see the package for what it hears and says).

    driver --event--> owner --fact--> whoever it concerns --fact--> ... --> effects
                        records  routing  renewal, and the tables in here

One growing list, no recursion: an effect that is a fact is given to those it concerns, what they
say is put behind it, and what nobody in here wanted goes out.  At the end the proxy hears what
changed of its snapshot, as one Delta.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from x0tta6bl4.core.agent import words
from x0tta6bl4.core.agent.directory import Directory
from x0tta6bl4.core.agent.members import Members
from x0tta6bl4.core.agent.neighbours import Neighbours
from x0tta6bl4.core.agent.own import Own
from x0tta6bl4.core.agent.pace import Pace, Said
from x0tta6bl4.core.agent.planes import Planes
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.told import Sets
from x0tta6bl4.core.identity.renewal import RenewWanted, SvidExpired, SvidRefused
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    ClockSet,
    Done,
    Effect,
    Effects,
    Event,
    Failed,
    Instant,
    Received,
    Tick,
)
from x0tta6bl4.core.records import words as said
from x0tta6bl4.core.records.sets import SetChanged, SetGone
from x0tta6bl4.core.records.store import Records
from x0tta6bl4.core.routing import words as route
from x0tta6bl4.core.routing.routing import Routing
from x0tta6bl4.wire.admin import Explanation
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id, node_of
from x0tta6bl4.wire.messages import (
    AuthorityPathItem,
    CallerItem,
    Completion,
    Full,
    LinkState,
    ListenItem,
    NeedFull,
    PathBad,
    PathsItem,
    Ready,
    ReplicasItem,
    SessionGone,
    SessionState,
    SvidItem,
)
from x0tta6bl4.wire.records import (
    KIND_NODE,
    NodeBody,
    Record,
    decode_node,
    decode_record,
)

SETTLE_AFTER: Final = 15 * SECOND
"""After a start: until then what an earlier agent told the proxy stands."""
SESSIONS_MAX: Final = 4096


class Agent:
    """The machine.

    Args:
        me: this node's name.
        domain: trust domain.
        crypto: functions for signatures and chains.
        seed: of all random streams in here.
        settings: bounds of the record store.
        decode: decodes a record; a simulator shares the work between its nodes.
        decode_body: decodes a node's body, likewise.
        forwards: whether the kernel is to have a table (`forwarding.WaysChanged`).
    """

    def __init__(
        self,
        me: NodeName,
        domain: TrustDomain,
        *,
        crypto: words.Crypto,
        seed: str,
        settings: said.Settings | None = None,
        decode: Callable[[bytes], Record] = decode_record,
        decode_body: Callable[[bytes], NodeBody] = decode_node,
        forwards: bool = False,
    ) -> None:
        self.me = me
        self.domain = domain
        self._decode_body = decode_body
        self._snapshot = Snapshot()
        random = Random(f"{seed}/renewal/{me}")
        self._own = Own(me, domain, crypto.sign, random, self._snapshot)
        self._records = Records(
            me,
            domain,
            verify=crypto.verify,
            verify_key=crypto.verify_key,
            sign=self._own.sign_record,
            random=Random(f"{seed}/records/{me}"),
            settings=settings,
            decode=decode,
        )
        self._routing = Routing(me)
        self._planes = Planes(me, domain, self._own, self._snapshot, forwards=forwards)
        self._renewal = self._own.renewal
        self._rooms = (self._records, self._routing, self._renewal, self._planes)
        self._directory = Directory(crypto.verify_endpoint)
        self._sets = Sets(self._snapshot)
        self._neighbours = Neighbours(self._records, self._routing, self._snapshot)
        self._members = Members()
        self._sessions: dict[tuple[str, str, str], SessionState] = {}
        self._wanted: dict[str, bool] = {me: True}
        """Nodes whose paths are wanted, and whether there is one."""
        self._calling = False
        self._proxy = 0
        self._authority = words.AuthorityState(False, "not tried yet")
        self._settle_at: Instant = NEVER
        self._settled = False
        self._persist = Pace()
        self._said = Said()
        self._out: list[Effect] = []
        self._now = Instant(0)
        self.deadline: Instant = self._records.deadline

    # -------------------------------------------------------------------------- doors
    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in (see the package and `core.machine.Machine`)."""
        if type(event) is Tick and now < self.deadline:
            return NOTHING
        out: list[Effect] = []
        self._out, self._now = out, now
        hears = self._HEARS
        effects = self._EVENTS[type(event)](self, now, event)
        if not effects and type(event) is Received:  # Nearly always: a record that is known.
            if self._records.deadline < self.deadline:
                self.deadline = self._records.deadline
            return NOTHING
        pending: list[Effect] = list(effects)
        at = 0
        while True:
            while at < len(pending):
                effect = pending[at]
                at += 1
                hear = hears.get(type(effect))
                if hear is None:
                    out.append(effect)
                else:
                    pending += hear(self, now, effect)
            if not (self._own.stale or self._own.later_at <= now):
                break
            unix_s = self._records.unix_s(now)
            if unix_s is None:
                break
            for publication in self._own.publications(now, unix_s):
                pending += self._records.handle(now, publication)
        if self._own.moved:
            self._own.moved = False
            out.append(words.WorkloadsChanged())
        order = self._snapshot.order()
        if order is not None:
            out.append(words.Order(order))
        self._out = []
        self._wake(now)
        return tuple(out) if out else NOTHING

    def held(self) -> said.Held:
        """What is to be found again after a restart."""
        return self._records.held()

    def workloads(self) -> words.Workloads:
        """Entries and SVIDs, to be found again where the authority is out of reach."""
        return self._own.workloads()

    def bundle_chain(self) -> tuple[bytes, ...]:
        """Records of the last bundles, for a node that was away (`enrol`)."""
        return self._records.chain()

    def paths(
        self, source: str, target: str
    ) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
        """Paths from any node to any other by this node's map, best first, and their costs."""
        paths, costs = self._routing.paths_from(source, target)
        return paths, tuple(costs)

    def explain(self, source: str, target: str) -> Explanation:
        """What the gate says of a call, and because of what.

        Args:
            source: SPIFFE ID.
            target: SPIFFE ID, or a service name with or without `.mesh`.
        """
        return self._sets.explain(source, target)

    @property
    def draining(self) -> bool:
        """Whether this node takes no new streams."""
        return self._own.draining

    def entries(self) -> tuple[Entry, ...]:
        """Entries of this node, as the authority told them."""
        return tuple(self._own.entries.values())

    @property
    def sets(self) -> Sets:
        """What the authority has said: its bundle, those of other trust domains, its CRLs."""
        return self._sets

    def svid(self, id: str) -> SvidItem | None:
        """The SVID held for an ID, key and all."""
        return self._own.svids.get(id)

    def view(self, now: Instant | None = None) -> words.View:
        """What `x0 status` shows; no secrets in it.

        Args:
            now: the driver's clock; without it ages are those at the last event.
        """
        unix_s = self._records.unix_s(self._now if now is None else now) or 0
        statistics = self._records.statistics()
        return words.View(
            node=self.me,
            trust_domain=self.domain,
            unix_s=unix_s,
            bundle_sequence=self._sets.bundle.sequence if self._sets.bundle else 0,
            heartbeat_age_s=self._sets.heartbeat_age_s(unix_s),
            authority_up=self._authority.up,
            authority_reason=self._authority.reason,
            proxy_up=self._snapshot.connected,
            snapshot=self._snapshot.version,
            svids=tuple((id, item.not_after_unix_s) for id, item in self._own.svids.items()),
            links=self._neighbours.views(),
            nodes=self._members.views(self._routing, self._directory, self._wanted),
            entries=tuple(self._own.entries[key] for key in sorted(self._own.entries)),
            names=self._sets.names(),
            sessions=tuple(self._sessions.values()),
            records=statistics.records,
            records_bytes=statistics.bytes,
        )

    def statistics(self) -> dict[str, int]:
        """Sums since the start and sizes now, for metrics."""
        sums = self._records.statistics()
        kinds = "accepted", "refused", "verified"
        totals = {f"records_{kind}_total": getattr(sums, kind) for kind in kinds}
        return {"records": sums.records, "records_bytes": sums.bytes} | totals

    # -------------------------------------------------------------------------- events: driver
    def _on_tick(self, now: Instant, event: Tick) -> Effects:
        effects: Effects = NOTHING
        for room in self._rooms:
            if room.deadline <= now:
                effects += room.handle(now, event)
        effects += self._neighbours.withdraw(now)
        if self._settle_at <= now:
            self._settle_at, self._settled = NEVER, True
            self._snapshot.settle()
            self._changed(self._directory.ids())
        if self._persist.due(now):
            effects += (words.PersistWanted(),)
        if self._own.keep.due(now):
            effects += (words.KeepWanted(),)
        unix_s = self._records.unix_s(now)
        if unix_s is not None:
            self._changed(self._directory.expire(unix_s))
        return effects

    def _on_clock(self, now: Instant, event: ClockSet) -> Effects:
        effects = self._records.handle(now, event) + self._renewal.handle(now, event)
        effects += self._own.look_after(now, self._records.unix_s(now))
        self._changed(self._directory.expire(event.unix_us // SECOND))
        return effects

    def _on_records(self, now: Instant, event: Event) -> Effects:
        tables = type(event) is Received and type(event.message) is Completion
        return (self._planes if tables else self._records).handle(now, event)

    def _on_configured(self, now: Instant, event: words.Configured) -> Effects:
        before, config = self._own.config, event.config
        self._own.config, self._own.stale = config, True
        effects: Effects = NOTHING
        for node in before.neighbours:
            if node not in config.neighbours:
                effects += self._neighbours.hang_up(now, node, "no longer configured")
        self._reassert()
        return effects + self._look_around(now)

    def _on_stopping(self, now: Instant, event: words.Stopping) -> Effects:
        self._own.stop()
        kept = self._own.keep.at != NEVER
        return (words.PersistWanted(), words.KeepWanted()) if kept else (words.PersistWanted(),)

    def _reassert(self) -> None:
        """Tell the proxy again what the configuration and the entries say: they are complete."""
        self._own.introduce()
        self._snapshot.replace(ListenItem, self._own.config.listens)
        self._snapshot.put(PathsItem(self.me, ((self.me,),)))
        self._own.offer()

    def _look_around(self, now: Instant) -> Effects:
        """Nodes that offer anything are in use as soon as there is anybody to call from here."""
        calling = self._snapshot.has(CallerItem)
        if calling == self._calling:
            return NOTHING
        self._calling = calling
        effects: Effects = NOTHING
        for node in self._directory.nodes() if calling else list(self._wanted):
            effects += self._want(now, node)
        self._changed(self._directory.ids())
        return effects

    # -------------------------------------------------------------------------- events: SVIDs
    def _on_svid(self, now: Instant, event: words.SvidHeld) -> Effects:
        return self._own.hold(now, self._records.unix_s(now), event.item)

    def _on_workloads(self, now: Instant, event: words.Workloads) -> Effects:
        self._own.kept = event
        return self._own.recall(now, self._records.unix_s(now)) + self._look_around(now)

    def _on_answer(self, now: Instant, event: Done | Failed) -> Effects:
        return self._own.answered(now, self._records.unix_s(now), event)

    def _on_renew(self, now: Instant, event: words.RenewNow) -> Effects:
        unix_s = self._records.unix_s(now)
        return NOTHING if unix_s is None else self._own.renew(now, unix_s, event.ids)

    def _on_authority(self, now: Instant, event: words.AuthoritySaid) -> Effects:
        update = event.update
        effects: Effects = NOTHING
        if update.records:
            effects = self._records.handle(now, said.Learn("authority", update.records))
        effects += self._own.update(now, self._records.unix_s(now), update)
        return effects + self._look_around(now)

    def _on_authority_state(self, now: Instant, event: words.AuthorityState) -> Effects:
        self._authority = event
        return NOTHING

    # -------------------------------------------------------------------------- events: links
    def _on_neighbour(self, now: Instant, event: words.NeighbourUp) -> Effects:
        if node_id(self.domain, NodeName(event.item.node)) in self._sets.banned:
            return (words.HangUp(event.item.node, "revoked"),)
        return self._neighbours.connected(now, event.item)

    def _on_neighbour_down(self, now: Instant, event: words.NeighbourDown) -> Effects:
        return self._neighbours.disconnected(now, event.node)

    # -------------------------------------------------------------------------- events: proxy
    def _on_proxy(self, now: Instant, event: words.ProxySaid) -> Effects:
        fact = event.fact
        if type(fact) is LinkState:
            return self._neighbours.told(now, fact)
        if type(fact) is SessionState:
            key = (fact.source, fact.target, fact.node)
            if key in self._sessions or len(self._sessions) < SESSIONS_MAX:
                self._sessions[key] = fact
        elif type(fact) is SessionGone:
            self._sessions.pop((fact.source, fact.target, fact.node), None)
        elif type(fact) is PathBad:
            return self._routing.handle(now, route.PathBad(fact.path))
        elif type(fact) is Ready:
            return self._on_ready(now, fact)
        elif type(fact) is Full:
            return self._take_over(now, fact)
        elif type(fact) is NeedFull:
            self._out.append(words.Order(self._snapshot.full(fact.holds)))
        return NOTHING

    def _on_ready(self, now: Instant, ready: Ready) -> Effects:
        """A proxy is there; one that has started anew knows no keys, links or sessions."""
        self._snapshot.connected = False
        if ready.incarnation == self._proxy:
            return NOTHING
        first, self._proxy = not self._proxy, ready.incarnation
        if first:
            return NOTHING
        self._snapshot.new_proxy()
        self._sessions = {}
        return self._neighbours.new_proxy(now)

    def _take_over(self, now: Instant, held: Full) -> Effects:
        """Read the proxy's snapshot back, then tell it everything."""
        effects: Effects = NOTHING
        for item in self._snapshot.take_over(held):
            if type(item) is SvidItem:
                effects += self._own.hold(now, self._records.unix_s(now), item)
        self._own.meet_proxy(bare=not held.items)
        effects += self._own.recall(now, self._records.unix_s(now))
        effects += self._own.tidy(now)
        if self._settled:
            self._snapshot.settle()
        elif self._settle_at == NEVER:
            self._settle_at = Instant(now + SETTLE_AFTER)
        self._reassert()
        effects += self._look_around(now)
        self._out.append(words.Order(self._snapshot.full(held.version)))
        return effects

    def _on_proxy_gone(self, now: Instant, event: words.ProxyGone) -> Effects:
        self._snapshot.connected = False
        return NOTHING

    # -------------------------------------------------------------------------- facts: records
    def _on_record(self, now: Instant, fact: said.RecordChanged) -> Effects:
        record = fact.record
        if record.kind != KIND_NODE:
            return NOTHING
        try:
            body = self._decode_body(record.body)
        except BadMessage as error:
            return self._notice(now, "refused", f"record of {record.writer}: {error.what}")
        effects: Effects = NOTHING
        unix_s = self._records.unix_s(now) or 0
        if not record.name:
            self._members.say(record, body)
            until = NEVER
            if body.restarting_until_unix_s:
                left_s = max(body.restarting_until_unix_s - unix_s, 0)
                until = Instant(now + left_s * SECOND)
            effects = self._route(now, route.MemberChanged(record.writer, body, until))
        if body.endpoints or record.name:
            said_now = record.writer, record.name, body.endpoints, unix_s
            changed, refused = self._directory.say(*said_now)
            for reason in refused:
                effects += self._notice(now, "refused", f"endpoint at {record.writer}: {reason}")
            self._changed(changed)
            effects += self._want(now, record.writer)
        return effects

    def _on_record_gone(self, now: Instant, fact: said.RecordGone) -> Effects:
        effects: Effects = NOTHING
        if not fact.name:
            self._members.gone(fact.writer)
            effects = self._route(now, route.MemberGone(fact.writer))
        self._changed(self._directory.gone(fact.writer, fact.name))
        return effects + self._want(now, fact.writer)

    def _on_set(self, now: Instant, fact: SetChanged) -> Effects:
        self._out.append(fact)
        told = self._sets.changed(fact)
        if told is None:
            return self._notice(now, "authority", f"set {fact.set} cannot be decoded")
        if fact.set != "heartbeat":
            self._persist.want()
        if fact.set == "names":
            self._own.headers(self._sets.headers)
        effects: Effects = NOTHING
        for id in told.banned:
            self._changed(self._directory.forget(id))
            node = node_of(SpiffeId(id))
            if node is not None:
                effects += self._neighbours.hang_up(now, node, "revoked")
        if told.rejudge is not None:
            effects += self._records.handle(now, said.Rejudge(told.rejudge))
        return effects

    def _on_set_gone(self, now: Instant, fact: SetGone) -> Effects:
        self._out.append(fact)
        if self._sets.gone(fact.set):
            return self._notice(now, "authority", f"set {fact.set} has expired: nothing is allowed")
        return NOTHING

    def _on_duplicate(self, now: Instant, fact: said.DuplicateName) -> Effects:
        text = f"another node publishes as {fact.node}, with a valid SVID"
        return self._notice(now, "duplicate", text)

    def _on_refused(self, now: Instant, fact: said.RecordRefused) -> Effects:
        return self._notice(now, "refused", f"record from {fact.src}: {fact.reason}")

    # -------------------------------------------------------------------------- facts: routing
    def _on_adjacency(self, now: Instant, fact: route.AdjacencyWanted) -> Effects:
        return self._planes.publish(now, fact.links)

    def _route(self, now: Instant, event: route.MemberChanged | route.MemberGone) -> Effects:
        """What a record says of links goes to both that compute with the map."""
        return self._routing.handle(now, event) + self._planes.handle(now, event)

    def _on_paths(self, now: Instant, fact: route.PathsChanged) -> Effects:
        if fact.paths:
            self._snapshot.put(PathsItem(fact.node, fact.paths))
        else:
            self._snapshot.drop(f"PathsItem/{fact.node}")
        if self._wanted.get(fact.node) != bool(fact.paths):
            self._wanted[fact.node] = bool(fact.paths)
            self._changed(self._directory.ids_at(fact.node))
        return NOTHING

    def _on_authority_paths(self, now: Instant, fact: route.AuthorityPathsChanged) -> Effects:
        self._snapshot.put(AuthorityPathItem(fact.paths))
        return NOTHING

    def _want(self, now: Instant, node: str) -> Effects:
        """Paths to a node are wanted while it offers anything and there is anybody to call."""
        offers = self._calling and bool(self._directory.ids_at(node))
        if offers and node not in self._wanted:
            self._wanted[node] = False
            return self._routing.handle(now, route.Wanted(node))
        if not offers and node in self._wanted and node != self.me:
            del self._wanted[node]
            self._snapshot.drop(f"PathsItem/{node}")
            return self._routing.handle(now, route.Unwanted(node))
        return NOTHING

    def _changed(self, ids: list[str]) -> None:
        """Tell the proxy where these IDs can be reached now."""
        for id in ids:
            item = self._directory.replicas(id, lambda node: self._wanted.get(node, False))
            before = self._snapshot.inherited(f"ReplicasItem/{id}")
            if type(before) is ReplicasItem and len(item.nodes) < len(before.nodes):
                continue  # Still being learnt; looked at again when everything has settled.
            if item.nodes and self._calling:
                self._snapshot.put(item)
            else:
                self._snapshot.drop(f"ReplicasItem/{id}")

    # -------------------------------------------------------------------------- facts: identity
    def _on_renew_wanted(self, now: Instant, fact: RenewWanted) -> Effects:
        self._own.asked(fact)
        self._out.append(fact)
        return NOTHING

    def _on_svid_expired(self, now: Instant, fact: SvidExpired) -> Effects:
        unix_s = self._records.unix_s(now)
        if unix_s is not None and self._own.expired(fact.id, unix_s):
            self._out.append(fact)
        return NOTHING

    def _on_svid_refused(self, now: Instant, fact: SvidRefused) -> Effects:
        return self._notice(now, "svid", f"{fact.id}: {fact.reason}")

    # -------------------------------------------------------------------------- details
    def _notice(self, now: Instant, kind: str, text: str) -> Effects:
        return (words.Noticed(kind, text),) if self._said.is_news(now, kind, text) else NOTHING

    def _wake(self, now: Instant) -> None:
        at = min(
            *(room.deadline for room in (*self._rooms, self._neighbours)),
            self._settle_at,
            self._persist.at,
            self._own.later_at,
            self._own.keep.at,
        )
        expiry_s, unix_s = self._directory.next_expiry_unix_s(), self._records.unix_s(now)
        if expiry_s is not None and unix_s is not None:
            at = min(at, Instant(now + max(expiry_s - unix_s, 0) * SECOND))
        self.deadline = at if at > now else Instant(now + 1)

    _EVENTS: Final[dict[type, Callable[..., Effects]]] = {
        Received: _on_records,
        Tick: _on_tick,
        words.ProxySaid: _on_proxy,
        words.KernelLinks: lambda self, now, event: self._planes.use(now, event),
        words.KernelPace: lambda self, _, event: self._neighbours.watch(event.nodes),
        words.NeighbourUp: _on_neighbour,
        words.NeighbourDown: _on_neighbour_down,
        words.AuthoritySaid: _on_authority,
        words.AuthorityState: _on_authority_state,
        words.SvidHeld: _on_svid,
        words.Workloads: _on_workloads,
        words.RenewNow: _on_renew,
        words.Configured: _on_configured,
        words.ProxyGone: _on_proxy_gone,
        words.Stopping: _on_stopping,
        Done: _on_answer,
        Failed: _on_answer,
        ClockSet: _on_clock,
        said.Restore: _on_records,
        said.Trust: _on_records,
    }
    _HEARS: Final[dict[type, Callable[..., Effects]]] = {
        said.RecordChanged: _on_record,
        said.RecordGone: _on_record_gone,
        SetChanged: _on_set,
        SetGone: _on_set_gone,
        said.DuplicateName: _on_duplicate,
        said.RecordRefused: _on_refused,
        route.PathsChanged: _on_paths,
        route.AuthorityPathsChanged: _on_authority_paths,
        route.AdjacencyWanted: _on_adjacency,
        RenewWanted: _on_renew_wanted,
        SvidExpired: _on_svid_expired,
        SvidRefused: _on_svid_refused,
    }
