"""What this node is: its entries and SVIDs, and the records that say so.

The node's own record has its links; endpoints stand on pages beside it (`e0`, `e1`, ...), so that
a change of links does not flood certificates.  Each page ends with the node's SVID, each endpoint
with its workload's.  SVIDs that an entry asks for and that are not there are renewals that are
overdue: the renewal machine asks, pauses and asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import msgspec

from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.words import NodeConfig
from x0tta6bl4.core.identity.renewal import Renewal, RenewWanted, SvidDropped, SvidHeld
from x0tta6bl4.core.machine import NOTHING, Done, Effects, Failed, Instant
from x0tta6bl4.core.records.words import Publish, Withdraw
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id
from x0tta6bl4.wire.messages import CallerItem, ServiceItem, SvidItem
from x0tta6bl4.wire.records import (
    KIND_NODE,
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
"""Of the endpoints on a page, so that the node's own chain fits into the record too."""
PAGES_MAX: Final = 31
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
        adjacency: links as routing wants them published.
        entries: by key; empty until the authority has told all.
        svids: by ID, this node's own among them.
    """

    __slots__ = (
        "_asked", "_endpoints", "_headers", "_me", "_published", "_renew_before", "_sign",
        "_snapshot", "_stopping", "adjacency", "config", "draining", "entries", "heard_full", "id",
        "renewal", "stale", "svids",
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
        self.id = node_id(domain, me)
        self._sign = sign
        self._snapshot = snapshot
        self.renewal = Renewal(random)
        self.config = NodeConfig()
        self.entries: dict[str, Entry] = {}
        self.heard_full = False
        self.svids: dict[str, SvidItem] = {}
        self.adjacency: tuple[Adjacency, ...] = ()
        self.draining = False
        self.stale = False
        self._stopping = False
        self._headers: frozenset[str] = frozenset()
        self._asked: dict[int, SpiffeId] = {}
        self._endpoints: dict[str, tuple[int, Endpoint]] = {}
        self._published: dict[str, tuple[bytes, int]] = {}
        self._renew_before = 0

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
        if id != self.id and self.heard_full and id not in self._wanted():
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
            self.heard_full = True
        for key in update.gone:
            self.entries.pop(key, None)
        for entry in update.entries:
            if len(self.entries) < ENTRIES_MAX or entry.key in self.entries:
                self.entries[entry.key] = entry
        if update.draining != self.draining:
            self.draining = update.draining
            self.stale = True
        effects: Effects = NOTHING
        if update.full or update.gone or update.entries:
            effects = self.tidy(now)
            self.offer()
            effects += self.look_after(now, unix_s)
        before = update.renew_issued_before_unix_s
        if before > self._renew_before and unix_s is not None:
            self._renew_before = before
            effects += self.renew(now, unix_s, tuple(self.svids))
        return effects

    def look_after(self, now: Instant, unix_s: int | None) -> Effects:
        """Ask for SVIDs that entries call for and that are not there."""
        effects: Effects = NOTHING
        if unix_s is not None:
            for id in self._wanted():
                if id not in self.svids:
                    held = SvidHeld(SpiffeId(id), unix_s - 2, unix_s - 1)
                    effects += self.renewal.handle(now, held)
        return effects

    def headers(self, ids: frozenset[str]) -> None:
        """Services with these IDs want a PROXY header, whatever their entries say."""
        if ids != self._headers:
            self._headers = ids
            self.offer()

    def offer(self) -> None:
        """Tell the proxy who may call from here and who takes connections."""
        if not self.heard_full:
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
        return {entry.id: None for entry in self.entries.values()}

    def tidy(self, now: Instant) -> Effects:
        """Drop SVIDs that no entry calls for any more."""
        if not self.heard_full:
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
        self.stale = True

    # -------------------------------------------------------------------------- publications
    def stop(self) -> None:
        """The agent is about to stop: say for how long its record may be used."""
        self._stopping = True
        self.stale = True

    def publications(self, unix_s: int) -> list[Publish | Withdraw]:
        """What to publish or withdraw so that the records say how things are."""
        self.stale = False
        item = self.svids.get(self.id)
        if item is None:
            return []
        expires = item.not_after_unix_s
        body = NodeBody(
            self.adjacency,
            (),
            area=self.config.area,
            stub=self.config.stub or self.draining,
            restarting_until_unix_s=unix_s + RESTART_TIME_S if self._stopping else 0,
            authority=bool(self.config.authority),
        )
        pages = {"": encode_body(body)}
        for number, endpoints in enumerate(self._pages(unix_s)):
            pages[f"e{number}"] = encode_body(NodeBody((), tuple(endpoints)))
        said: list[Publish | Withdraw] = []
        for name, page in pages.items():
            if self._published.get(name) != (page, expires):
                self._published[name] = (page, expires)
                said.append(Publish(KIND_NODE, name, page, expires))
        for name in [name for name in self._published if name not in pages]:
            del self._published[name]
            said.append(Withdraw(KIND_NODE, name))
        return said

    def _pages(self, unix_s: int) -> list[list[Endpoint]]:
        pages: list[list[Endpoint]] = []
        room = 0
        for id in sorted({entry.id for entry in self.entries.values() if entry.address}):
            endpoint = self._endpoint(id, unix_s)
            if endpoint is None:
                continue
            size = sum(map(len, endpoint.chain)) + len(endpoint.signature) + len(id) + 64
            if size > room:
                if len(pages) == PAGES_MAX:
                    break
                pages.append([])
                room = max(PAGE_BYTES_MAX, size)
            pages[-1].append(endpoint)
            room -= size
        return pages

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
