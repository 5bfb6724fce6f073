"""Sets of the authority: a signed manifest and, where the set is large, chunks beside it.

A set is swapped when its manifest and all chunks that the manifest names by hash are there, so
nobody ever sees half of one.  Its sequence strictly grows.  Chunks that did not change keep their
record; a chunk newer than the manifest held belongs to one that is still on its way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.records import (
    CHUNK_BYTES_MAX,
    CHUNKS_MAX,
    SET_BYTES_MAX,
    SETS,
    Manifest,
    Record,
    decode_manifest,
)

INLINE_BYTES_MAX: Final = CHUNK_BYTES_MAX


@final
class SetChanged(Value, frozen=True):
    """The authority's set is now this; `body` as encoded by `wire.records.encode_body`."""

    set: str
    sequence: int
    body: bytes
    expires_unix_s: int
    """0: not known (the bundle of an enrolment)."""


@final
class SetGone(Value, frozen=True):
    """The set has expired without a successor."""

    set: str


def cut(set: str, sequence: int, body: bytes) -> tuple[Manifest, tuple[bytes, ...]]:
    """Cut a set into a manifest and chunk bodies; small ones go into the manifest itself.

    Publish the chunks that changed and then the manifest, with no chunk's generation above the
    manifest's.

    Args:
        set: one of SETS.
        sequence: greater than any this set had before.
        body: the encoded set.
    Returns:
        The manifest, and the body of chunk record `<set>/<index>` for each index.
    Raises:
        BadMessage: longer than 4,096 chunks of 12 KiB.
    """
    if len(body) > SET_BYTES_MAX:
        raise BadMessage("X0-REC-004", f"set {set} of {len(body)} bytes", "at most 48 MiB")
    if len(body) <= INLINE_BYTES_MAX:
        return Manifest(set, sequence, (), body), ()
    chunks = tuple(body[at : at + CHUNK_BYTES_MAX] for at in range(0, len(body), CHUNK_BYTES_MAX))
    return Manifest(set, sequence, tuple(hashlib.sha256(c).digest() for c in chunks)), chunks


class _Set:
    """One set: what is in force, the newest manifest, which chunks are held."""

    __slots__ = ("expires_unix_s", "generation", "held", "manifest", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        self.generation = 0
        self.expires_unix_s = 0
        self.manifest: Manifest | None = None
        self.held: dict[int, tuple[bytes, int]] = {}


class Sets:
    """Knows of each set what is in force and what is still missing; the store holds the bytes.

    Bounded by the number of sets times 4,096 chunks.

    Args:
        body_of: (set, index) -> body of the chunk record held by the store.
    """

    __slots__ = ("_body_of", "_sets")

    def __init__(self, body_of: Callable[[str, int], bytes]) -> None:
        self._body_of = body_of
        self._sets = {set: _Set() for set in SETS}

    def sequence(self, set: str) -> int:
        """Sequence of the set in force, 0 before the first."""
        return self._sets[set].sequence

    def start_at(self, set: str, sequence: int) -> None:
        """A set came by another way (enrolment): only a greater sequence replaces it."""
        self._sets[set].sequence = max(self._sets[set].sequence, sequence)

    def out_of_place(self, record: Record) -> Denied | None:
        """Whether a manifest or chunk can be no part of what is in force or comes next."""
        set, slash, index = record.name.partition("/")
        state = self._sets[set]
        if slash:
            return _bad_chunk(record, int(index), state)
        try:
            manifest = decode_manifest(record.body)
        except BadMessage:
            return Denied("not a manifest")
        if manifest.set != record.name:
            return Denied("manifest of another set")
        if manifest.sequence <= state.sequence:
            return Denied("sequence of a set did not grow")
        if len(manifest.chunks) > CHUNKS_MAX or len(manifest.inline) > INLINE_BYTES_MAX:
            return Denied("set is too large")
        if (manifest.chunks and manifest.inline) or any(len(h) != 32 for h in manifest.chunks):
            return Denied("not a manifest")
        return None

    def take(self, record: Record) -> SetChanged | None:
        """Note a manifest or chunk that the store has accepted.

        Returns:
            The set, if this completed it.
        """
        set, slash, index = record.name.partition("/")
        state = self._sets[set]
        if slash:
            state.held[int(index)] = (hashlib.sha256(record.body).digest(), record.generation)
        else:
            state.manifest = decode_manifest(record.body)
            state.generation = record.generation
            state.expires_unix_s = record.expires_unix_s
        return self._swap(set, state)

    def drop(self, set: str, index: int) -> None:
        """A chunk is no longer held."""
        self._sets[set].held.pop(index, None)

    def expire(self, set: str) -> None:
        """The newest manifest is no longer held; the set in force stays until its own expiry."""
        self._sets[set].manifest = None

    def surplus(self, set: str) -> tuple[int, ...]:
        """Chunks held that the set in force does not have any more, because it became shorter."""
        state = self._sets[set]
        if state.manifest is None or state.manifest.sequence > state.sequence:
            return ()
        length = len(state.manifest.chunks)
        if len(state.held) <= length:
            return ()
        newest = state.generation
        return tuple(at for at, (_, gen) in state.held.items() if at >= length and gen <= newest)

    def _swap(self, set: str, state: _Set) -> SetChanged | None:
        manifest = state.manifest
        if manifest is None or manifest.sequence <= state.sequence:
            return None
        held = state.held
        for at, hash in enumerate(manifest.chunks):
            if at not in held or held[at][0] != hash:
                return None
        body = manifest.inline
        if manifest.chunks:
            body = b"".join([self._body_of(set, at) for at in range(len(manifest.chunks))])
        state.sequence = manifest.sequence
        return SetChanged(set, manifest.sequence, body, state.expires_unix_s)


def _bad_chunk(record: Record, index: int, state: _Set) -> Denied | None:
    if len(record.body) > CHUNK_BYTES_MAX:
        return Denied("chunk is too large")
    if record.generation > state.generation:
        return None
    wanted = state.manifest.chunks if state.manifest else ()
    if index < len(wanted) and wanted[index] == hashlib.sha256(record.body).digest():
        return None
    return Denied("chunk of an older set")


def key_id(record: Record) -> str:
    """Id of the record key that an authority record says it was signed with; empty: none."""
    if len(record.signer) != 1 or len(record.signer[0]) > 64:
        return ""
    return record.signer[0].decode("ascii", "replace")
