"""The chain of bundles: each is signed by a record key of the one before.

Whoever holds any bundle of the chain, or only the digest of one, can walk to the newest without
trusting who hands the steps over.  The authority gives the shortest walk that it has: from each
bundle straight to the newest one that a key of it has signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from x0tta6bl4.core.authority.rows import BundleRow
from x0tta6bl4.core.records.sets import cut
from x0tta6bl4.wire.errors import NotFound
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_CHUNK,
    KIND_MANIFEST,
    Record,
    decode_manifest,
    decode_record,
    encode_body,
    encode_record,
    signed_part,
)

STEPS_MAX: Final = 64

Sign = Callable[[bytes], bytes]


def steps(rows: Iterable[BundleRow], held: bytes) -> tuple[bytes, tuple[tuple[bytes, ...], ...]]:
    """The walk from the bundle with this digest to the newest.

    Returns:
        Body of the bundle held, and for each step its records, manifest first.
    Raises:
        NotFound: no such bundle is known.
    """
    chain = sorted(rows, key=lambda row: row.sequence)
    at = next((i for i, row in enumerate(chain) if row.digest == held), None)
    if at is None:
        raise NotFound(
            "X0-AUT-021",
            "this trust bundle is not known here",
            "the token or the node's state is of another trust domain, or too old: "
            "enrol with a new token",
        )
    first = chain[at].body
    walked: list[tuple[bytes, ...]] = []
    while at < len(chain) - 1:
        keys = chain[at].keys
        later = [i for i in range(at + 1, len(chain)) if chain[i].signer in keys]
        if not later or len(walked) >= STEPS_MAX:
            raise NotFound(
                "X0-AUT-021",
                "there is no way from this trust bundle to the newest",
                "enrol with a new token",
            )
        at = later[-1]
        walked.append(chain[at].records)
    return first, tuple(walked)


def sign_set(
    name: str,
    sequence: int,
    generation: int,
    expires_unix_s: int,
    body: bytes,
    key: str,
    sign: Sign,
    old: Sequence[bytes] = (),
) -> tuple[bytes, ...]:
    """Sign a set: its manifest and, where it is large, chunks.

    Args:
        name: one of `wire.records.SETS`.
        sequence: greater than any before.
        generation: greater than any before; unix seconds or a little more.
        expires_unix_s: of all its records.
        body: encoded set.
        key: id of the record key that signs.
        sign: signs with it.
        old: records of the last publication; a chunk that did not change and was signed by the
            same key for at least three quarters as long stays as it is.
    Returns:
        Encoded records, manifest first.
    """
    manifest, chunks = cut(name, sequence, body)
    kept = {
        record.body: data
        for data in old
        for record in (decode_record(data),)
        if record.kind == KIND_CHUNK
    }
    long_enough = (expires_unix_s - generation) * 3 // 4
    records = [
        _signed(KIND_MANIFEST, name, generation, expires_unix_s, encode_body(manifest), key, sign)
    ]
    for at, chunk in enumerate(chunks):
        data = kept.get(chunk)
        if data is not None:
            record = decode_record(data)
            if (
                record.name == f"{name}/{at}"
                and record.signer == (key.encode(),)
                and record.expires_unix_s >= generation + long_enough
            ):
                records.append(data)
                continue
        records.append(
            _signed(KIND_CHUNK, f"{name}/{at}", generation, expires_unix_s, chunk, key, sign)
        )
    return tuple(records)


def signed_body(records: Sequence[bytes]) -> bytes:
    """The set that `sign_set` was given, from the records that it made."""
    manifest, *chunks = (decode_record(data).body for data in records)
    return decode_manifest(manifest).inline or b"".join(chunks)


def _signed(
    kind: str, name: str, generation: int, expires_unix_s: int, body: bytes, key: str, sign: Sign
) -> bytes:
    record = Record(AUTHORITY, kind, name, generation, expires_unix_s, body, (key.encode(),), b"")
    return encode_record(
        Record(
            AUTHORITY,
            kind,
            name,
            generation,
            expires_unix_s,
            body,
            record.signer,
            sign(signed_part(record)),
        )
    )
