"""Signed, versioned, single-writer records: merge, flood, expiry, and what one says of oneself.

The store is a delta-state CRDT of last-writer-wins registers with one writer each: the higher
generation wins, an equal one is refused, so merging is commutative, associative and idempotent.
Each new record is verified once, by functions given to the constructor.

    Received(peer, Flood | Digest | Bucket | Want)    Learn  Publish  Withdraw  PeerUp  PeerDown
        |                                                |
        v                                                v
    misplaced? older? expired? too far ahead? --no--> pace of the writer --> verify --> merge
                                                         |                               |
                                                     parked, newest per source       flood, facts

Source: delta-state CRDTs, Almeida et al. 2018; OSPF's rules for newer copies and for records of
one's own, RFC 2328 sections 13 and 13.4.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import (
    NOTHING,
    SECOND,
    ClockSet,
    Denied,
    Effect,
    Effects,
    Event,
    Instant,
    Received,
    Tick,
    Value,
    Verdict,
)
from x0tta6bl4.core.records.clock import WallClock
from x0tta6bl4.core.records.flood import (
    CHAIN,
    FLOOD_RECORDS_MAX,
    ROUND,
    Buckets,
    Key,
    Peers,
)
from x0tta6bl4.core.records.quota import NODE_RECORDS_MAX, Pace, Parking, misplaced
from x0tta6bl4.core.records.sets import SetChanged, SetGone, Sets, key_id
from x0tta6bl4.core.records.words import (
    AHEAD_MAX_S,
    DuplicateName,
    Held,
    Learn,
    PeerDown,
    PeerUp,
    Publish,
    RecordChanged,
    RecordGone,
    RecordRefused,
    Rejudge,
    Restore,
    Settings,
    Statistics,
    Trust,
    Withdraw,
    newer,
    next_generation,
)
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id
from x0tta6bl4.wire.messages import Bucket, Digest, Flood, Want
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_CHUNK,
    KIND_MANIFEST,
    Bundle,
    Record,
    decode_bundle,
    decode_heartbeat,
    decode_record,
    encode_record,
)

_FIGHT_WINDOW: Final = 60 * SECOND
_UNCLAIMED: Final = 30 * SECOND
_SLICE: Final = 64
_IN_FORCE: Final = "set"


@final
class _Entry(Value, frozen=True):
    data: bytes
    generation: int
    expires: int
    latest: int
    """The latest expiry of any record under this key."""
    empty: bool


class Records:
    """The machine.

    Args:
        me: this node's name.
        domain: trust domain; only `spiffe://<domain>/node/<name>` writes about `<name>`.
        verify: judges a node record: chain, signature, and expiry not after the SVID's; answers
            with the ID that signed.  Called once per new record.
        verify_key: whether the signature of an authority record was made by the key with this
            point; answers Allowed with any ID.
        sign: returns the record with `signer` and `signature`; None while there is no SVID.
        random: stream of this room of this node, for the phase of its rounds.
        settings: bounds.
        decode: for a simulator that wants to share the work between its nodes.
    """

    __slots__ = (
        "_accepted", "_buckets", "_bundle", "_bytes", "_chain", "_clock", "_decode", "_doubtful",
        "_due", "_entries", "_expiries", "_fights", "_generation", "_gone",
        "_id", "_kept", "_me", "_named_at", "_pace", "_parked", "_peers", "_points", "_refused",
        "_sets", "_sign", "_verified", "_verify", "_verify_key", "_wanted", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        me: NodeName,
        domain: TrustDomain,
        *,
        verify: Callable[[Record, int], Verdict],
        verify_key: Callable[[Record, bytes], Verdict],
        sign: Callable[[Record], Record | None],
        random: Random,
        settings: Settings | None = None,
        decode: Callable[[bytes], Record] = decode_record,
    ) -> None:
        self._me = me
        self._id: Callable[[str], SpiffeId] = lambda name: node_id(domain, NodeName(name))
        self._verify, self._verify_key, self._sign = verify, verify_key, sign
        self._decode = decode
        self._kept = settings or Settings()
        self._entries: dict[Key, _Entry] = {}
        self._buckets = Buckets()
        self._gone: dict[Key, tuple[int, int]] = {}
        self._expiries: list[tuple[int, Key, int]] = []
        self._sets = Sets(self._body_of)
        self._bundle: Bundle | None = None
        self._points: dict[str, bytes] = {}
        self._chain: list[tuple[bytes, ...]] = []
        self._pace = Pace(self._kept.pace, self._kept.burst, self._kept.records_max)
        self._parked = Parking(self._kept.parked_max, lambda data: decode(data).generation)
        self._doubtful: list[Key] = []
        self._wanted: dict[Key, tuple[bytes, int]] = {}
        self._due: dict[Key, Instant] = {}
        self._fights: dict[Key, list[Instant]] = {}
        self._named_at: int = -_FIGHT_WINDOW
        self._generation = 0
        self._peers = Peers(
            me, peers_max=self._kept.peers_max, sins_max=self._kept.sins_max,
            round_at=Instant(random.randrange(1, ROUND)), buckets=self._buckets,
            data_of=self._data_of,
        )  # fmt: skip
        self._clock = WallClock()
        self._accepted = self._refused = self._verified = self._bytes = 0
        self.deadline = self._peers.round_at

    # -------------------------------------------------------------------------- doors
    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in (see the top of the module and `core.machine.Machine`)."""
        kind = type(event)
        if kind is Tick and now < self.deadline:
            return NOTHING
        out: list[Effect] = []
        if type(event) is Received:
            accepted = self._accepted
            self._on_received(now, event.src, event.message, out)
            if not (out or self._parked or self._due or self._accepted > accepted):
                return NOTHING  # Nearly always: a record that is known.
        elif kind is Tick:
            self._on_tick(now, out)
        elif type(event) is Learn:
            self._on_flood(now, event.src, event.records, out)
        elif type(event) is Publish:
            self._on_publish(now, event, out)
        elif type(event) is Withdraw:
            self._on_withdraw(now, event, out)
        elif type(event) is PeerUp:
            full = self._peers.up(now, event.node, len(self._entries), out)
            if full is not None:
                out.append(RecordRefused(event.node, full.reason))
        elif type(event) is PeerDown:
            self._peers.down(event.node)
        elif type(event) is ClockSet:
            self._clock.set(now, event.unix_us)
            self._on_tick(now, out)
        elif type(event) is Rejudge:
            writers = set(event.writers)
            self._doubtful = [key for key in self._entries if not writers or key[0] in writers]
        elif type(event) is Trust:
            if event.bundle.sequence > self._sets.sequence("bundle"):
                self._sets.start_at("bundle", event.bundle.sequence)
                self._believe(event.bundle)
                body = msgspec.msgpack.encode(event.bundle)
                sequence = event.bundle.sequence
                out.append(SetChanged("bundle", sequence, body, event.expires_unix_s))
        elif type(event) is Restore:
            self._on_restore(now, event.held, out)
        self.deadline = self._next(now)
        return tuple(out) if out else NOTHING

    def held(self) -> Held:
        """What is to be found again after a restart."""
        own, authority = [], []
        for key, entry in self._entries.items():
            if key[0] == AUTHORITY:
                authority.append(entry.data)
            elif key[0] == self._me:
                own.append(entry.data)
        return Held(
            tuple(own), tuple(authority), tuple(self._chain), self._bundle, self._generation,
            self._clock.floor_unix_us,
        )  # fmt: skip

    def chain(self) -> tuple[bytes, ...]:
        """Records of the last bundles, oldest first: for a node that was away (`enrol`)."""
        return tuple(data for records in self._chain for data in records)

    def bundle(self) -> Bundle | None:
        """The bundle in force."""
        return self._bundle

    def record(self, key: Key) -> Record | None:
        """The record held under (writer, kind, name)."""
        entry = self._entries.get(key)
        return self._decode(entry.data) if entry and not entry.empty else None

    def generations(self) -> dict[Key, int]:
        """Generation of every record held; a new dict."""
        return {key: entry.generation for key, entry in self._entries.items()}

    def unix_s(self, now: Instant) -> int | None:
        """Wall time: the local clock, but never below what the authority has signed."""
        return self._clock.unix_s(now)

    def statistics(self) -> Statistics:
        """Sums and sizes."""
        return Statistics(
            len(self._entries), len(self._parked), len(self._gone), len(self._peers),
            self._accepted, self._refused, self._verified, self._bytes,
        )  # fmt: skip

    # -------------------------------------------------------------------------- what is heard
    def _on_received(self, now: Instant, src: str, message: object, out: list[Effect]) -> None:
        peers = self._peers
        if src not in peers:
            return
        if type(message) is Flood:
            if peers.listens(now, src) is None:
                self._on_flood(now, src, message.records[:FLOOD_RECORDS_MAX], out)
        elif type(message) is Digest:
            peers.on_digest(now, src, message.buckets, out)
        elif type(message) is Bucket:
            peers.on_bucket(src, message, out)
        elif type(message) is Want:
            peers.on_want(src, message.keys, out)

    def _on_flood(
        self, now: Instant, src: str, records: tuple[bytes, ...], out: list[Effect]
    ) -> None:
        fresh: list[bytes] = []
        for data in records:
            self._offer(now, src, data, out, fresh)
        self._peers.flood(fresh, src, out)

    def _offer(
        self, now: Instant, src: str, data: bytes, out: list[Effect], fresh: list[bytes]
    ) -> None:
        """Look at one record: the cheap questions first, its signature last."""
        try:
            record = self._decode(data)
        except BadMessage as error:
            self._refuse(src, error.what, out)
            return
        key = (record.writer, record.kind, record.name)
        entry = self._entries.get(key)
        if entry is not None and not newer(record.generation, entry.generation):
            fight = record.writer == self._me and record.generation == entry.generation
            if not fight or data == entry.data:
                return
        unix_s = self._clock.unix_s(now)
        if unix_s is None:
            return
        gone = self._gone.get(key)
        if record.expires_unix_s <= unix_s or (gone and record.generation <= gone[0]):
            return
        if record.generation > unix_s + AHEAD_MAX_S:
            self._refuse(src, "generation is ahead of the clock", out)
            return
        wrong = misplaced(record)
        if wrong is not None:
            self._refuse(src, wrong.reason, out)
            return
        authority = record.writer == AUTHORITY
        if entry is None and not authority and len(self._entries) >= self._kept.records_max:
            self._refuse(src, "store is full", out)
            return
        if authority:
            if self._sets.out_of_place(record) is not None:
                return
        else:
            # Pages of endpoints have a pace of their own: they do not hold up a change of links.
            pace = record.writer if not record.name else f"{record.writer}/"
            when = self._pace.take(now, pace)
            if when > now:
                self._parked.put(when, key, src, data)
                return
        self._admit(now, unix_s, src, record, data, out, fresh)

    def _admit(
        self, now: Instant, unix_s: int, src: str, record: Record, data: bytes,
        out: list[Effect], fresh: list[bytes],
    ) -> None:  # fmt: skip
        denied = self._judge(record, unix_s)
        if denied is not None:
            if record.writer != AUTHORITY:
                self._pace.give_back(f"{record.writer}/" if record.name else record.writer)
            self._refuse(src, denied.reason, out)
            if denied is _UNKNOWN_KEY:
                self._peers.ask(now, src, CHAIN, out)
            return
        if record.writer == self._me:
            self._on_own(now, record, data, out)
            return
        self._put(record, data)
        fresh.append(data)
        self._accepted += 1
        if record.writer == AUTHORITY:
            self._on_authority(now, record, out)
        elif record.body:
            out.append(RecordChanged(record))
        else:
            out.append(RecordGone(record.writer, record.kind, record.name))

    def _judge(self, record: Record, unix_s: int) -> Denied | None:
        self._verified += 1
        if record.writer == AUTHORITY:
            point = self._points.get(key_id(record))
            if point is None:
                return _UNKNOWN_KEY
            verdict = self._verify_key(record, point)
            return verdict if type(verdict) is Denied else None
        verdict = self._verify(record, unix_s)
        if type(verdict) is Denied:
            return verdict
        if verdict.peer != self._id(record.writer):
            return Denied("record of another writer")
        return None

    def _refuse(self, src: str, reason: str, out: list[Effect]) -> None:
        self._refused += 1
        muted = self._peers.charge(src)
        out.append(RecordRefused(src, muted.reason if muted else reason))

    def _unpark(self, now: Instant, out: list[Effect]) -> None:
        for _ in range(min(_SLICE, len(self._parked))):
            for src, data in self._parked.take(now):
                self._on_flood(now, src, (data,), out)

    # -------------------------------------------------------------------------- merging
    def _put(self, record: Record, data: bytes) -> None:
        key = (record.writer, record.kind, record.name)
        before = self._entries.get(key)
        gone = self._gone.pop(key, None)
        expires = record.expires_unix_s
        latest = max(before.latest if before else 0, gone[1] if gone else 0, expires)
        self._bytes += len(data) - (len(before.data) if before else 0)
        self._entries[key] = _Entry(data, record.generation, expires, latest, not record.body)
        self._buckets.put(key, record.generation)
        expiries = self._expiries
        if len(expiries) > 2 * len(self._entries) + _SLICE:
            force = [x for x in expiries if x[1][1] == _IN_FORCE and self._in_force(x[1], x[2])]
            expiries[:] = [(e.expires, k, e.generation) for k, e in self._entries.items()]
            expiries += force
            heapq.heapify(expiries)
        else:
            heapq.heappush(expiries, (record.expires_unix_s, key, record.generation))

    def _in_force(self, key: Key, sequence: int) -> bool:
        return self._sets.sequence(key[2]) == sequence

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key)
        self._bytes -= len(entry.data)
        self._buckets.drop(key)
        if len(self._gone) >= self._kept.gone_max:
            del self._gone[next(iter(self._gone))]
        self._gone[key] = (entry.generation, entry.latest)
        set, slash, index = key[2].partition("/")
        if key[1] == KIND_CHUNK and slash:
            self._sets.drop(set, int(index))

    def _leave(self, key: Key, out: list[Effect]) -> None:
        """Drop a record that has expired or is no longer believed, and say so."""
        empty = self._entries[key].empty
        self._drop(key)
        if key[1] == KIND_MANIFEST:
            self._sets.expire(key[2])
        elif key[1] != KIND_CHUNK and not empty:
            out.append(RecordGone(*key))

    def _expire(self, unix_s: int, out: list[Effect]) -> None:
        expiries = self._expiries
        while expiries and expiries[0][0] <= unix_s:
            _, key, generation = heapq.heappop(expiries)
            if key[1] == _IN_FORCE and self._in_force(key, generation):
                out.append(SetGone(key[2]))
            entry = self._entries.get(key)
            if entry is not None and entry.generation == generation:
                self._leave(key, out)

    def _rejudge(self, unix_s: int, out: list[Effect]) -> None:
        for _ in range(min(_SLICE, len(self._doubtful))):
            key = self._doubtful.pop()
            entry = self._entries.get(key)
            if entry is None or key[0] in (AUTHORITY, self._me):
                continue
            if self._judge(self._decode(entry.data), unix_s) is not None:
                self._leave(key, out)

    # -------------------------------------------------------------------------- authority
    def _on_authority(self, now: Instant, record: Record, out: list[Effect]) -> None:
        changed = self._sets.take(record)
        if changed is None:
            return
        set = changed.set
        key = (AUTHORITY, _IN_FORCE, set)
        heapq.heappush(self._expiries, (changed.expires_unix_s, key, changed.sequence))
        for index in self._sets.surplus(set):
            self._drop((AUTHORITY, KIND_CHUNK, f"{set}/{index}"))
        if set == "bundle":
            try:
                bundle = decode_bundle(changed.body)
            except BadMessage as error:
                out.append(RecordRefused(AUTHORITY, error.what))
                return
            self._believe(bundle)
            self._chain.append(self._records_of("bundle"))
            del self._chain[: -self._kept.chain_max]
        elif set == "heartbeat":
            try:
                self._clock.raise_floor(now, decode_heartbeat(changed.body).unix_us)
            except BadMessage as error:
                out.append(RecordRefused(AUTHORITY, error.what))
                return
        out.append(changed)

    def _believe(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._points = {key.id: key.point for key in bundle.record_keys}

    def _records_of(self, set: str) -> tuple[bytes, ...]:
        """The records that make up a set in force: its manifest, then its chunks."""
        found = [self._entries[(AUTHORITY, KIND_MANIFEST, set)].data]
        at = 0
        while (entry := self._entries.get((AUTHORITY, KIND_CHUNK, f"{set}/{at}"))) is not None:
            found.append(entry.data)
            at += 1
        return tuple(found)

    def _body_of(self, set: str, index: int) -> bytes:
        return self._decode(self._entries[(AUTHORITY, KIND_CHUNK, f"{set}/{index}")].data).body

    # -------------------------------------------------------------------------- oneself
    def _on_publish(self, now: Instant, event: Publish, out: list[Effect]) -> None:
        key = (self._me, event.kind, event.name)
        if key not in self._wanted and len(self._wanted) >= NODE_RECORDS_MAX:
            out.append(RecordRefused(self._me, "too many records of one's own"))
            return
        self._wanted[key] = (event.body, event.expires_unix_s)
        if self._due.get(key, now) <= now or key not in self._fights:
            self._publish(now, key, out)

    def _on_withdraw(self, now: Instant, event: Withdraw, out: list[Effect]) -> None:
        key = (self._me, event.kind, event.name)
        self._wanted.pop(key, None)
        if key in self._entries:
            self._publish(now, key, out)

    def _publish(self, now: Instant, key: Key, out: list[Effect]) -> None:
        """Say what is wanted under a key, or that there is nothing any more."""
        self._due.pop(key, None)
        unix_s = self.unix_s(now)
        entry = self._entries.get(key)
        if unix_s is None:
            self._due[key] = now
            return
        body, expires = self._wanted.get(key) or (b"", entry.latest if entry else 0)
        if expires <= unix_s or (not body and (entry is None or entry.empty)):
            return
        gone = self._gone.get(key)
        stored = max(entry.generation if entry else 0, gone[0] if gone else 0, self._generation)
        generation = next_generation(stored, unix_s)
        if generation > unix_s + AHEAD_MAX_S:
            wait = (generation - unix_s - AHEAD_MAX_S) * SECOND
            self._due[key] = Instant(now + wait)
            return
        record = self._sign(Record(*key, generation, expires, body, (), b""))
        if record is None:
            return
        try:
            data = encode_record(record)
        except BadMessage as error:
            out.append(RecordRefused(self._me, error.what))
            return
        self._generation = generation
        self._put(record, data)
        out.append(RecordChanged(record) if body else RecordGone(*key))
        self._peers.flood([data], self._me, out)

    def _on_own(self, now: Instant, record: Record, data: bytes, out: list[Effect]) -> None:
        """A record of one's own, validly signed and not made in this life: jump above it."""
        key = (record.writer, record.kind, record.name)
        self._generation = max(self._generation, record.generation)
        if key not in self._wanted:
            # From before a restart: nobody has said yet whether it is still true.
            self._put(record, data)
            self._due.setdefault(key, Instant(now + _UNCLAIMED))
            return
        jumps = [at for at in self._fights.get(key, []) if at > now - _FIGHT_WINDOW][-7:]
        if len(jumps) >= 2 and now - self._named_at >= _FIGHT_WINDOW:
            self._named_at = now
            out.append(DuplicateName(self._me))
        wait = SECOND * 2 ** (len(jumps) - 1) if jumps else 0
        jumps.append(now)
        self._fights[key] = jumps
        if wait:
            self._due.setdefault(key, Instant(now + min(wait, 32 * SECOND)))
        else:
            self._publish(now, key, out)

    def _on_restore(self, now: Instant, held: Held, out: list[Effect]) -> None:
        self._generation = max(self._generation, held.generation)
        self._clock.raise_floor(now, held.floor_unix_us)
        for data in (*held.own, *held.authority):
            try:
                record = self._decode(data)
            except BadMessage as error:
                out.append(RecordRefused("disk", error.what))
                continue
            if misplaced(record) is not None:
                continue
            self._put(record, data)
            if record.writer == AUTHORITY:
                if self._sets.out_of_place(record) is None:
                    self._on_authority(now, record, out)
            else:
                self._due[self._me, record.kind, record.name] = Instant(now + _UNCLAIMED)
        if held.chain:
            self._chain = list(held.chain[-self._kept.chain_max :])
        if held.bundle is not None and held.bundle.sequence > self._sets.sequence("bundle"):
            self._sets.start_at("bundle", held.bundle.sequence)
            self._believe(held.bundle)
            body = msgspec.msgpack.encode(held.bundle)
            out.append(SetChanged("bundle", held.bundle.sequence, body, 0))

    def _data_of(self, key: Key) -> Sequence[bytes]:
        entry = self._entries.get(key)
        if entry is not None:
            return (entry.data,)
        return self.chain() if key == CHAIN else ()

    # -------------------------------------------------------------------------- time
    def _on_tick(self, now: Instant, out: list[Effect]) -> None:
        if now >= self._peers.round_at:
            self._peers.round(now, len(self._entries), out)
        unix_s = self.unix_s(now)
        if unix_s is None:
            return
        self._expire(unix_s, out)
        if self._doubtful:
            self._rejudge(unix_s, out)
        self._unpark(now, out)
        for key in [key for key, at in self._due.items() if at <= now]:
            self._publish(now, key, out)

    def _next(self, now: Instant) -> Instant:
        at: int = self._peers.round_at
        if self._clock.unix_s(now) is not None:
            if self._expiries:
                at = min(at, self._clock.instant(self._expiries[0][0]))
            at = min(at, self._parked.deadline)
            if self._due:
                at = min(at, *self._due.values())
            if self._doubtful:
                at = min(at, now)
        return Instant(max(at, now + 1))


_UNKNOWN_KEY: Final = Denied("record key is not in the bundle held")
