"""Who hears what: flooding to link peers, and anti-entropy by bucket digests.

Flooding passes each new record once to every link peer but its source.  What a lost connection
swallowed, anti-entropy repairs: of each two peers the one with the lower name sends the sums of
its 64 buckets when the link comes up and every 10 s; the other answers with the contents of the
buckets that differ; the first then sends what it holds newer and asks for what it lacks.

    A --Digest--> B,  B --Bucket ...--> A,  A --Flood, Want--> B,  B --Flood--> A

A bucket's sum is the sum modulo 2^64 of an 8-byte hash of each (writer, kind, name,
generation): O(1) per change.  A writer that makes its own records collide hides only those.

Source: flooding and database exchange of OSPF, RFC 2328 sections 10.8 and 13; bucket digests as
in Demers et al., Epidemic Algorithms, PODC 1987.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from x0tta6bl4.core.machine import SECOND, Denied, Effect, Instant, Send
from x0tta6bl4.wire.messages import Bucket, Digest, Flood, Want, hash64
from x0tta6bl4.wire.records import AUTHORITY

BUCKETS: Final = 64
FLOOD_RECORDS_MAX: Final = 64
WANT_MAX: Final = 4096
DIGEST_BYTES: Final = BUCKETS * 8
ROUND: Final = 10 * SECOND

Key = tuple[str, str, str]
"""Writer, kind, name."""

CHAIN: Final[Key] = (AUTHORITY, "chain", "")
"""Asked for with `Want`: the bundles from the oldest remembered on, each signed under the last."""

_NEWEST: Final = 64
"""Hashes remembered: a flood asks for those of one record again and again where many nodes share a
process, and no node needs more."""
_SUMS = struct.Struct(f"<{BUCKETS}Q")
_MASK: Final = 2**64 - 1


class Buckets:
    """Contents and sums of the 64 buckets of one store; bounded by the store's records."""

    __slots__ = ("_digest", "_keys", "_sums")

    def __init__(self) -> None:
        self._keys: list[dict[Key, int]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS
        self._digest: bytes | None = None

    def put(self, key: Key, generation: int) -> None:
        """The store now holds this generation of a record."""
        index = bucket_of(key)
        keys = self._keys[index]
        before = keys.get(key)
        add = _hash(key, generation)
        if before is not None:
            add -= _hash(key, before)
        keys[key] = generation
        self._sums[index] = (self._sums[index] + add) & _MASK
        self._digest = None

    def drop(self, key: Key) -> None:
        """The store no longer holds the record."""
        index = bucket_of(key)
        before = self._keys[index].pop(key, None)
        if before is not None:
            self._sums[index] = (self._sums[index] - _hash(key, before)) & _MASK
            self._digest = None

    def digest(self) -> bytes:
        """Sums of all buckets, 512 bytes."""
        if self._digest is None:
            self._digest = _SUMS.pack(*self._sums)
        return self._digest

    def differing(self, digest: bytes) -> tuple[int, ...]:
        """Indexes of the buckets whose sums are others in a peer's digest (of 512 bytes)."""
        if digest == self.digest():
            return ()
        theirs = _SUMS.unpack(digest)
        return tuple(i for i, ours in enumerate(self._sums) if ours != theirs[i])

    def contents(self, index: int) -> tuple[tuple[str, str, str, int], ...]:
        """(writer, kind, name, generation) of everything in a bucket."""
        return tuple([(*key, generation) for key, generation in self._keys[index].items()])

    def compare(
        self, index: int, theirs: Iterable[tuple[str, str, str, int]]
    ) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
        """Compare a bucket with a peer's.

        Returns:
            Keys that the peer holds newer than we, and keys that we hold newer.
        """
        ours = dict(self._keys[index])
        want: list[Key] = []
        for writer, kind, name, generation in theirs:
            key = (writer, kind, name)
            mine = ours.pop(key, 0)
            if generation > mine:
                if bucket_of(key) == index:
                    want.append(key)
            elif mine > generation:
                ours[key] = mine
        return tuple(want), tuple(ours)


class Peer:
    """A link peer, and what it may still ask of us before the next round begins."""

    __slots__ = ("answers", "buckets", "heard_at", "muted_until", "serves", "sins", "walk_at")

    def __init__(self, now: Instant, records: int) -> None:
        self.heard_at: int = now
        self.muted_until: int = 0
        self.walk_at: int = 0
        self.renew(records)

    def renew(self, records: int) -> None:
        """A new round has begun: answer 4 digests, 128 buckets, and each record twice."""
        self.answers = 4
        self.buckets = 2 * BUCKETS
        self.serves = 2 * records + 1024
        self.sins = 0


class Peers:
    """All link peers: passes new records on and keeps up the exchanges with each.

    Args:
        me: this node.
        peers_max: more are refused.
        sins_max: bad records of one peer in a round before it is muted until the next.
        round_at: when the first round begins.
        buckets: of the store.
        data_of: the store's encoded records under a key; empty where it has none.
    """

    __slots__ = ("_buckets", "_data_of", "_me", "_peers", "_peers_max", "_sins_max", "round_at")

    def __init__(
        self, me: str, *, peers_max: int, sins_max: int, round_at: Instant, buckets: Buckets,
        data_of: Callable[[Key], Sequence[bytes]],
    ) -> None:  # fmt: skip
        self._me = me
        self._peers: dict[str, Peer] = {}
        self._peers_max, self._sins_max = peers_max, sins_max
        self.round_at = round_at
        self._buckets = buckets
        self._data_of = data_of

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, node: str) -> bool:
        return node in self._peers

    def up(self, now: Instant, node: str, records: int, out: list[Effect]) -> Denied | None:
        """A link peer is there; whoever of the two has the lower name begins the exchange."""
        if node not in self._peers and len(self._peers) >= self._peers_max:
            return Denied("too many link peers")
        self._peers[node] = Peer(now, records)
        if self._me < node:
            out.append(Send(node, Digest(self._buckets.digest())))
        return None

    def down(self, node: str) -> None:
        """It is gone."""
        self._peers.pop(node, None)

    def flood(self, fresh: Sequence[bytes], src: str, out: list[Effect]) -> None:
        """Pass new records on to everybody but the peer they came from."""
        for message in _batches(fresh):
            for node in self._peers:
                if node != src:
                    out.append(Send(node, message))

    def listens(self, now: Instant, src: str) -> Denied | None:
        """Why floods of a peer are not looked at now; None where they are."""
        if now < self._peers[src].muted_until:
            return Denied("too many bad records")
        return None

    def charge(self, src: str) -> Denied | None:
        """A peer sent a bad record; says so when it will not be listened to until the round."""
        peer = self._peers.get(src)
        if peer is None:
            return None
        peer.sins += 1
        if peer.sins <= self._sins_max:
            return None
        peer.muted_until = self.round_at
        return Denied("too many bad records")

    def ask(self, now: Instant, src: str, key: Key, out: list[Effect]) -> None:
        """Ask a peer for something out of the order, at most once a round."""
        peer = self._peers.get(src)
        if peer is not None and now >= peer.walk_at:
            peer.walk_at = now + ROUND
            out.append(Send(src, Want((key,))))

    def round(self, now: Instant, records: int, out: list[Effect]) -> None:
        """Begin a round."""
        self.round_at = Instant(now + ROUND)
        digest = Digest(self._buckets.digest())
        for node, peer in self._peers.items():
            peer.renew(records)
            # The other one begins; if it does not, somebody has to.
            if self._me < node or now - peer.heard_at > 2 * ROUND:
                out.append(Send(node, digest))

    def on_digest(self, now: Instant, src: str, digest: bytes, out: list[Effect]) -> None:
        """Answer with the buckets that differ."""
        peer = self._peers[src]
        if peer.answers <= 0 or len(digest) != DIGEST_BYTES:
            return
        peer.answers -= 1
        peer.heard_at = now
        for index in self._buckets.differing(digest):
            out.append(Send(src, Bucket(index, self._buckets.contents(index))))

    def on_bucket(self, src: str, message: Bucket, out: list[Effect]) -> None:
        """Send what is newer here, ask for what is newer there."""
        peer = self._peers[src]
        if peer.buckets <= 0 or not 0 <= message.index < BUCKETS:
            return
        peer.buckets -= 1
        want, newer = self._buckets.compare(message.index, message.held)
        self.on_want(src, newer, out)
        if want:
            out.append(Send(src, Want(want[:WANT_MAX])))

    def on_want(self, src: str, keys: Sequence[Key], out: list[Effect]) -> None:
        """Send what a peer lacks."""
        peer = self._peers[src]
        found: list[bytes] = []
        for key in keys[: max(peer.serves, 0)]:
            found += self._data_of(key)
        peer.serves -= len(found)
        for message in _batches(found):
            out.append(Send(src, message))


@functools.lru_cache(_NEWEST)
def bucket_of(key: Key) -> int:
    """Bucket of a record, the same everywhere."""
    return zlib.crc32("\0".join(key).encode()) % BUCKETS


def _batches(records: Sequence[bytes]) -> list[Flood]:
    """Messages of at most 64 records, hence of at most 1 MiB."""
    if not records:
        return []
    most = FLOOD_RECORDS_MAX
    return [Flood(tuple(records[at : at + most])) for at in range(0, len(records), most)]


@functools.lru_cache(_NEWEST)
def _hash(key: Key, generation: int) -> int:
    data = f"{key[0]}\0{key[1]}\0{key[2]}\0{generation}".encode()
    return hash64(data)
