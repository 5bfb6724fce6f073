"""What this node is: its entries and SVIDs, and the records that say so.

The node's own record has its links; endpoints stand on pages beside it (`e0`, `e1`, ...), so that
a change of links does not flood certificates.  Each page ends with the node's SVID, each endpoint
with its workload's.  SVIDs that an entry asks for and that are not there are renewals that are
overdue: the renewal machine asks, pauses and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import Final

import msgspec

from x0tta6bl4.core.agent.pace import Pace
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.words import NodeConfig, Workloads
from x0tta6bl4.core.identity.renewal import Renewal, RenewWanted, SvidDropped, SvidHeld
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    Done,
    Effect,
    Effects,
    Failed,
    Instant,
)
from x0tta6bl4.core.records.words import Publish, Withdraw
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id
from x0tta6bl4.wire.messages import CallerItem, NodeItem, ServiceItem, SvidItem
from x0tta6bl4.wire.records import (
    KIND_NODE,
    PQ_SIGNATURE_BYTES_MIN,
    PQ_TIMES,
    Adjacency,
    Endpoint,
    NodeBody,
    Record,
    encode_body,
    endpoint_signed_part,
    signed_part,
)

ENTRIES_MAX: Final = 4096
PAGE_BYTES_MAX: Final = 8 * 1024
"""Of the endpoints on a page, so that the node's own chain fits into the record too; PQ_TIMES that
where the node signs with a post-quantum key."""
PAGES: Final = tuple(f"e{number}" for number in range(31))
PAGES_EVERY: Final = 1 * SECOND
LINKS_KNOWN_AFTER: Final = 5 * SECOND
"""After a start: a node of which no link is up by then says so."""
NEWS_EVERY: Final = 1 * SECOND
"""Between two records that say nothing new but links in user space: they come one after the other
where nodes start, and everybody verifies each record.  Who has lost one says it at once."""
RESTART_TIME_S: Final = 120


class Own:
    """Entries, SVIDs and publications of this node; bounded by ENTRIES_MAX.

    Args:
        me: this node.
        domain: trust domain.
        sign: (key PKCS#8, data) -> signature.
        random: stream for the spread of renewals.
        snapshot: of the proxy, which hears of SVIDs, callers and services.

    Attributes:
        stale: something changed that `publications` has not said yet.
        adjacency: links as routing wants them published; None before it has said any.
        entries: by key; empty until all are known.
        knows_all: the authority has told all entries, or nobody knows better than the disk.
        svids: by ID, this node's own among them.
        later_at: when something that waits is to be published.
        keep: when `workloads` is to be written down.
        moved: entries or SVIDs have changed, and nobody has been told.
        kept: what `workloads` was in the life before.
    """

    __slots__ = (
        "_asked", "_bare", "_domain", "_endpoints", "_headers", "_ids", "_links_by", "_me",
        "_page_of", "_paged_at", "_published", "_renew_before", "_said", "_said_at", "_sign",
        "_snapshot", "_stopping", "_told_to_drain", "adjacency", "config", "entries", "id", "keep",
        "kept", "knows_all", "later_at", "moved", "renewal", "stale", "svids",
    )  # fmt: skip

    def __init__(
        self,
        me: NodeName,
        domain: TrustDomain,
        sign: Callable[[bytes, bytes], bytes],
        random: Random,
        snapshot: Snapshot,
    ) -> None:
        self._me = me
        self._domain = domain
        self.id = node_id(domain, me)
        self._sign = sign
        self._snapshot = snapshot
        self.renewal = Renewal(random)
        self.config = NodeConfig()
        self.entries: dict[str, Entry] = {}
        self.knows_all = False
        self.svids: dict[str, SvidItem] = {}
        self.adjacency: tuple[Adjacency, ...] | None = None
        self._told_to_drain = False
        self.stale = False
        self._stopping = False
        self._headers: frozenset[str] = frozenset()
        self._asked: dict[int, SpiffeId] = {}
        self._endpoints: dict[str, tuple[int, Endpoint]] = {}
        self._published: dict[str, tuple[bytes, int]] = {}
        self._renew_before = 0
        self._page_of: dict[str, str] = {}
        self._paged_at: int = -PAGES_EVERY
        self._links_by: Instant | None = None
        self._said = NodeBody((), ())
        self._said_at: int = -NEWS_EVERY
        self.keep = Pace()
        self.kept = Workloads()
        self.moved = False
        self._ids: dict[str, None] | None = None
        self._bare: bool | None = None
        """Whether the first proxy of this life had nothing; None: none has come yet."""
        self.later_at: Instant = NEVER

    # -------------------------------------------------------------------------- SVIDs
    def hold(self, now: Instant, unix_s: int | None, item: SvidItem) -> Effects:
        """An SVID is there; an older one than is held is ignored."""
        ours = self.svids.get(item.id)
        if ours is not None and ours.not_after_unix_s > item.not_after_unix_s:
            return NOTHING
        begin = min(unix_s or item.not_after_unix_s - 3600, item.not_after_unix_s - 1)
        self._keep(item)
        return self.renewal.handle(now, SvidHeld(SpiffeId(item.id), begin, item.not_after_unix_s))

    def asked(self, wanted: RenewWanted) -> None:
        """A renewal goes out; its answer will be for this ID."""
        self._asked[wanted.token] = wanted.id

    def answered(self, now: Instant, unix_s: int | None, event: Done | Failed) -> Effects:
        """An answer to a renewal; late ones and others are ignored."""
        id = self._asked.pop(event.token, None)
        if id is None:
            return NOTHING
        if type(event) is Failed:
            return self.renewal.handle(now, event)
        item = event.value
        if type(item) is not SvidItem or item.id != id:
            return self.renewal.handle(now, Failed(event.token, "not the SVID asked for"))
        if id != self.id and self.knows_all and id not in self._wanted():
            return self.renewal.handle(now, SvidDropped(id))
        self._keep(item)
        begin = min(unix_s or item.not_after_unix_s - 3600, item.not_after_unix_s - 1)
        held = SvidHeld(id, begin, item.not_after_unix_s)
        return self.renewal.handle(now, Done(event.token, held))

    def expired(self, id: str, unix_s: int) -> bool:
        """The renewal machine says that an SVID has ended; whether there was one."""
        item = self.svids.get(id)
        if item is None or item.not_after_unix_s > unix_s + 60:
            return False
        del self.svids[id]
        self._endpoints.pop(id, None)
        self._snapshot.expire(f"SvidItem/{id}")
        self.stale = True
        self._changed()
        return True

    def renew(self, now: Instant, unix_s: int, ids: tuple[str, ...]) -> Effects:
        """Ask for these at once: their half-life is made to lie in the past."""
        effects: Effects = NOTHING
        for id in ids:
            item = self.svids.get(id)
            if item is not None:
                left = max(item.not_after_unix_s - unix_s, 1)
                begin = item.not_after_unix_s - 10 * left
                effects += self.renewal.handle(
                    now, SvidHeld(SpiffeId(id), begin, item.not_after_unix_s)
                )
        return effects

    def sign_record(self, record: Record) -> Record | None:
        """Sign for this node; None while it has no SVID, or one that ends too soon."""
        item = self.svids.get(self.id)
        if item is None or item.not_after_unix_s < record.expires_unix_s:
            return None
        record = msgspec.structs.replace(record, signer=item.chain)
        signature = self._sign(item.key, signed_part(record))
        return msgspec.structs.replace(record, signature=signature)

    # -------------------------------------------------------------------------- entries
    def update(self, now: Instant, unix_s: int | None, update: Update) -> Effects:
        """The authority has told entries of this node."""
        if update.full:
            self.entries = {}
            self.knows_all = True
        self._ids = None
        for key in update.gone:
            self.entries.pop(key, None)
        for entry in update.entries:
            if len(self.entries) < ENTRIES_MAX or entry.key in self.entries:
                self.entries[entry.key] = entry
        if update.draining != self._told_to_drain:
            self._told_to_drain = update.draining
            self.introduce()
        effects: Effects = NOTHING
        if update.full or update.gone or update.entries:
            self._changed()
            effects = self.tidy(now)
            self.offer()
            told = {entry.id for entry in update.entries}
            effects += self.look_after(now, unix_s, told)
        before = update.renew_issued_before_unix_s
        if before > self._renew_before and unix_s is not None:
            self._renew_before = before
            effects += self.renew(now, unix_s, tuple(self.svids))
        return effects

    def look_after(self, now: Instant, unix_s: int | None, told: Collection[str] = ()) -> Effects:
        """Ask for SVIDs that entries call for and that are not there.

        Args:
            now: see `Machine.handle`.
            unix_s: wall time; None before the first ClockSet, and then nothing is asked for.
            told: IDs that are asked for at once, though a pause may be under way.
        """
        effects: list[Effect] = []
        if unix_s is not None:
            for id in self._wanted():
                if id in self.svids or (id not in told and self.renewal.asks_for(SpiffeId(id))):
                    continue
                held = SvidHeld(SpiffeId(id), unix_s - 2, unix_s - 1)
                effects += self.renewal.handle(now, held)
        return tuple(effects) if effects else NOTHING

    @property
    def draining(self) -> bool:
        """Whether this node takes no new streams, by its own word or the authority's."""
        return self.config.draining or self._told_to_drain

    def introduce(self) -> None:
        """Tell the proxy who it is, and whether it drains; the mesh hears of that, too."""
        config = self.config
        self._snapshot.put(
            NodeItem(
                self._domain, self._me, config.authority, config.revocation_max_age_s, self.draining
            )
        )
        self.stale = True

    def headers(self, ids: frozenset[str]) -> None:
        """Services with these IDs want a PROXY header, whatever their entries say."""
        if ids != self._headers:
            self._headers = ids
            self.offer()

    def offer(self) -> None:
        """Tell the proxy who may call from here and who takes connections."""
        if not self.knows_all:
            return
        entries = sorted(self.entries.values(), key=lambda entry: entry.key)
        self._snapshot.replace(CallerItem, [CallerItem(e.id, e.selectors) for e in entries])
        services: dict[str, ServiceItem] = {}
        for e in entries:
            if e.address and e.id not in services:
                header = e.proxy_header or e.id in self._headers
                services[e.id] = ServiceItem(e.id, e.address, e.selectors, header)
        self._snapshot.replace(ServiceItem, list(services.values()))
        self.stale = True

    def _wanted(self) -> dict[str, None]:
        """IDs of all entries; worked out once for each state of these."""
        if self._ids is None:
            self._ids = {entry.id: None for entry in self.entries.values()}
        return self._ids

    def tidy(self, now: Instant) -> Effects:
        """Drop SVIDs that no entry calls for any more."""
        if not self.knows_all:
            return NOTHING
        effects: Effects = NOTHING
        wanted = self._wanted()
        for id in [id for id in self.svids if id != self.id and id not in wanted]:
            del self.svids[id]
            self._endpoints.pop(id, None)
            self._snapshot.drop(f"SvidItem/{id}")
            effects += self.renewal.handle(now, SvidDropped(SpiffeId(id)))
        return effects

    def _keep(self, item: SvidItem) -> None:
        self.svids[item.id] = item
        if item.id != self.id:
            self._snapshot.put(item)
            self._changed()
        self.stale = True

    def _changed(self) -> None:
        self.moved = True
        if self.knows_all:
            self.keep.want()

    # -------------------------------------------------------------------------- on the disk
    def workloads(self) -> Workloads:
        """All that this node has to offer, keys and all."""
        return Workloads(
            tuple(self.entries.values()),
            tuple(item for item in self.svids.values() if item.id != self.id),
        )

    def meet_proxy(self, *, bare: bool) -> None:
        """A proxy has come; what the first one has, or has not, is newer than the disk."""
        if self._bare is None:
            self._bare = bare

    def recall(self, now: Instant, unix_s: int | None) -> Effects:
        """Go on with what was `kept`, where neither the authority nor a proxy knows better.

        An entry without an SVID that still counts is of no use and is left out.
        """
        if self.knows_all or not self._bare or not self.kept.entries:
            return NOTHING
        kept, self.kept = self.kept, Workloads()
        good = {s.id: s for s in kept.svids if unix_s is None or s.not_after_unix_s > unix_s}
        self.entries = {e.key: e for e in kept.entries[:ENTRIES_MAX] if e.id in good}
        self._ids = None
        effects: Effects = NOTHING
        for id in self._wanted():
            effects += self.hold(now, unix_s, good[id])
        self.knows_all = True
        self.offer()
        return effects

    # -------------------------------------------------------------------------- publications
    def repeat(self) -> None:
        """Publish the node's own record once more, though nothing has changed in it."""
        self._published.pop("", None)
        self.stale = True

    def stop(self) -> None:
        """The agent is about to stop: say for how long its record may be used."""
        self._stopping = True
        self.stale = True

    def publications(self, now: Instant, unix_s: int) -> list[Publish | Withdraw]:
        """What to publish or withdraw so that the records say how things are.

        The node's own record at once, the pages of endpoints at most once a second, because many
        SVIDs come one after the other.
        """
        self.stale = False
        self.later_at = NEVER
        item = self.svids.get(self.id)
        if item is None:
            return []
        expires = item.not_after_unix_s
        said = self._own_record(now, unix_s, expires)
        if now < self._paged_at + PAGES_EVERY:
            self.later_at = min(self.later_at, Instant(self._paged_at + PAGES_EVERY))
            return said
        pages = self._pages(unix_s)
        for name, endpoints in pages.items():
            said += self._publish(name, encode_body(NodeBody((), tuple(endpoints))), expires)
        for name in [name for name in self._published if name and name not in pages]:
            del self._published[name]
            said.append(Withdraw(KIND_NODE, name))
        if len(said) > 1 or (said and said[0].name):
            self._paged_at = now
        return said

    def _own_record(self, now: Instant, unix_s: int, expires: int) -> list[Publish | Withdraw]:
        if self.adjacency is None:
            # After a restart the record from before stands until the links are known.
            if self._links_by is None:
                self._links_by = Instant(now + LINKS_KNOWN_AFTER)
            if now < self._links_by and not self._stopping:
                self.later_at = self._links_by
                return []
        body = NodeBody(
            self.adjacency or (),
            (),
            area=self.config.area,
            stub=self.config.stub or self.draining,
            restarting_until_unix_s=unix_s + RESTART_TIME_S if self._stopping else 0,
            authority=bool(self.config.authority),
        )
        known = self._published.get("")
        if known is not None and known[1] == expires and _adds(self._said, body):
            by = self._said_at + NEWS_EVERY
            if now < by and body != self._said:
                self.later_at = min(self.later_at, Instant(by))
                return []
        said = self._publish("", encode_body(body), expires)
        if said:
            self._said, self._said_at = body, now
        return said

    def _publish(self, name: str, body: bytes, expires: int) -> list[Publish | Withdraw]:
        if self._published.get(name) == (body, expires):
            return []
        self._published[name] = (body, expires)
        return [Publish(KIND_NODE, name, body, expires)]

    def _pages(self, unix_s: int) -> dict[str, list[Endpoint]]:
        """Endpoints by page; an ID stays on its page, so that it is never between two."""
        room: dict[str, int] = {}
        pages: dict[str, list[Endpoint]] = {}
        new: list[tuple[str, int, Endpoint]] = []
        before, self._page_of = self._page_of, {}
        offered = {e.id for e in self.entries.values() if e.address and not self.draining}
        own = self.svids.get(self.id)
        wide = own is not None and len(own.chain[0]) > 2 * PQ_SIGNATURE_BYTES_MIN
        times = PQ_TIMES if wide else 1  # A certificate of that size has a key of that kind.
        for id in sorted(offered):
            endpoint = self._endpoint(id, unix_s)
            if endpoint is None:
                continue
            size = sum(map(len, endpoint.chain)) + len(endpoint.signature) + len(id) + 64
            size //= times
            name = before.get(id)
            if name is None or room.setdefault(name, PAGE_BYTES_MAX) < size:
                new.append((id, size, endpoint))
                continue
            self._put_on(name, id, size, endpoint, pages, room)
        for id, size, endpoint in new:
            for name in PAGES:
                if room.setdefault(name, PAGE_BYTES_MAX) >= size or name not in pages:
                    self._put_on(name, id, size, endpoint, pages, room)
                    break
        return {name: pages[name] for name in sorted(pages)}

    def _put_on(
        self, name: str, id: str, size: int, endpoint: Endpoint,
        pages: dict[str, list[Endpoint]], room: dict[str, int],
    ) -> None:  # fmt: skip
        pages.setdefault(name, []).append(endpoint)
        room[name] -= size
        self._page_of[id] = name

    def _endpoint(self, id: str, unix_s: int) -> Endpoint | None:
        item = self.svids.get(id)
        if item is None or item.not_after_unix_s <= unix_s:
            return None
        made = self._endpoints.get(id)
        if made is None or made[0] != item.not_after_unix_s:
            endpoint = Endpoint(id, item.chain, unix_s, item.not_after_unix_s, b"")
            signature = self._sign(item.key, endpoint_signed_part(self._me, endpoint))
            made = (item.not_after_unix_s, msgspec.structs.replace(endpoint, signature=signature))
            self._endpoints[id] = made
        return made[1]


def _adds(before: NodeBody, after: NodeBody) -> bool:
    """Whether a record says what the one before has said, and of more links in user space."""
    if msgspec.structs.replace(after, links=before.links) != before:
        return False
    links = {link.node: link for link in after.links}
    for link in before.links:
        now = links.get(link.node)
        if now is None or now.cost > link.cost or (link.dials and not now.dials):
            return False
    kernel = {link.node for link in before.links if link.kernel}
    return kernel == {link.node for link in after.links if link.kernel}
