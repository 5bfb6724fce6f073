"""What a writer and a peer may cost: keys, counts, rates.

Rates are kept by the generic cell rate algorithm (ITU-T I.371, annex A): one instant per key, the
time at which the key would have used up everything it had.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from x0tta6bl4.core.machine import NEVER, Denied, Instant
from x0tta6bl4.core.records.flood import Key
from x0tta6bl4.wire.records import (
    AUTHORITY,
    CHUNKS_MAX,
    KIND_CHUNK,
    KIND_MANIFEST,
    KIND_NODE,
    SETS,
    Record,
)

NODE_RECORDS_MAX: Final = 32
"""Records of kind `node` per writer: its own and 31 further pages of endpoints."""

_MANY: Final = 64
_PAGES: Final = frozenset(("", *(f"e{page}" for page in range(NODE_RECORDS_MAX - 1))))


def misplaced(record: Record) -> Denied | None:
    """Whether the key of a record is one that its writer can have at all.

    Returns:
        None where it is: nodes write `node` records of up to 32 names, the authority manifests of
        the known sets and up to 4,096 chunks for each.  The names are fixed, so they are also the
        quota per writer and kind.
    """
    kind = record.kind
    if record.generation <= 0:
        return Denied("generation is not positive")
    if record.writer != AUTHORITY:
        if kind != KIND_NODE or record.name not in _PAGES:
            return Denied("no node writes such a record")
        return None
    if kind == KIND_MANIFEST:
        return None if record.name in SETS else Denied("unknown set")
    if kind == KIND_CHUNK:
        set, _, index = record.name.partition("/")
        fits = set in SETS and index.isdecimal() and index.isascii() and len(index) <= 4
        if fits and str(int(index)) == index and int(index) < CHUNKS_MAX:
            return None
        return Denied("unknown chunk")
    return Denied("the authority writes no such record")


class Pace:
    """Rates of many keys, each `burst` at once and then one every `interval`.

    Args:
        interval: microseconds between two in the long run.
        burst: how many may come at once.
        keys_max: at most this many keys are remembered; if none of them is idle, the one that
            has been known longest is forgotten.  Idle ones are whenever there are many.
    """

    __slots__ = ("_full", "_interval", "_keys_max", "_many", "_slack")

    def __init__(self, interval: int, burst: int, keys_max: int) -> None:
        self._interval = interval
        self._slack = interval * (burst - 1)
        self._keys_max = keys_max
        self._many = min(_MANY, keys_max)
        self._full: dict[str, int] = {}

    def take(self, now: Instant, key: str) -> Instant:
        """Take one from the key's store.

        Returns:
            `now` where it was there; else the instant at which it will be, and nothing is taken.
        """
        full = max(self._full.get(key, 0), now)
        if full - now > self._slack:
            return Instant(full - self._slack)
        if key not in self._full and len(self._full) >= self._many:
            self._forget(now)
        self._full[key] = full + self._interval
        return now

    def give_back(self, key: str) -> None:
        """Undo one `take`: it turned out not to be the key's own doing."""
        if key in self._full:
            self._full[key] -= self._interval

    def _forget(self, now: Instant) -> None:
        """Forget who has used up nothing, which is as good as never having come."""
        self._full = {key: full for key, full in self._full.items() if full > now}
        self._many = min(max(2 * len(self._full), _MANY), self._keys_max)
        if len(self._full) >= self._keys_max:
            del self._full[next(iter(self._full))]


class Parking:
    """Records of writers over their rate, waiting: per key the newest of each source.

    By source, because nothing in here is verified yet: a forger takes only its own place.

    Args:
        keys_max: beyond it nothing more is taken in; anti-entropy will bring it again.
        generation_of: reads the generation of an encoded record.
    """

    __slots__ = ("_generation_of", "_keys_max", "_parked", "_times")

    def __init__(self, keys_max: int, generation_of: Callable[[bytes], int]) -> None:
        self._keys_max = keys_max
        self._generation_of = generation_of
        self._parked: dict[Key, dict[str, bytes]] = {}
        self._times: list[tuple[Instant, Key]] = []

    def __len__(self) -> int:
        return len(self._parked)

    @property
    def deadline(self) -> Instant:
        """When the first of them may go on."""
        return self._times[0][0] if self._times else NEVER

    def put(self, when: Instant, key: Key, src: str, data: bytes) -> None:
        """Keep a record until `when`, in place of an older one of the same source."""
        slots = self._parked.get(key)
        if slots is None:
            if len(self._parked) >= self._keys_max:
                return
            slots = self._parked[key] = {}
            heapq.heappush(self._times, (when, key))
        before = slots.get(src)
        if before is None or self._generation_of(before) < self._generation_of(data):
            slots[src] = data

    def take(self, now: Instant) -> list[tuple[str, bytes]]:
        """All copies of one record whose time has come, newest first; empty when there is none."""
        if not self._times or self._times[0][0] > now:
            return []
        slots = self._parked.pop(heapq.heappop(self._times)[1])
        return sorted(slots.items(), key=lambda item: (-self._generation_of(item[1]), item[0]))
