"""The chain of bundles: each is signed by a record key of the one before.

Whoever holds any bundle of the chain, or only the digest of one, can walk to the newest without
trusting who hands the steps over.  The authority gives the shortest walk that it has: from each
bundle straight to the newest one that a key of it has signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from x0tta6bl4.core.authority.rows import BundleRow
from x0tta6bl4.core.records.sets import cut
from x0tta6bl4.wire.errors import BadMessage, NotFound, Refused
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_CHUNK,
    KIND_MANIFEST,
    Bundle,
    Manifest,
    Record,
    decode_bundle,
    decode_manifest,
    decode_record,
    encode_body,
    encode_record,
    signed_part,
)

STEPS_MAX: Final = 64
BUNDLE: Final = "bundle"

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], bool]
"""(uncompressed point, data, signature) -> whether the key has signed the data."""


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


def walk(
    first: bytes,
    walked: Sequence[Sequence[bytes]],
    held: bytes,
    trust_domain: str,
    now_unix_s: int,
    verify: Verify,
) -> tuple[Bundle, bytes]:
    """Check each step of a walk.

    Args:
        first: body of the bundle to start from.
        walked: for each step its encoded records, manifest first.
        held: SHA-256 that `first` must have.
        trust_domain: of which all must be.
        now_unix_s: wall time; the last step must not have expired.
        verify: checks a signature.
    Returns:
        The newest bundle and its body.
    Raises:
        Refused: X0-AUT-030 a wrong start, X0-AUT-031 a step that the one before does not vouch for.
    """
    if hashlib.sha256(first).digest() != held:
        raise Refused(
            "X0-AUT-030",
            "whoever answered is not the authority of this trust domain",
            "its bundle has not the hash that the token or this node's state names",
        )
    bundle, body = decode_bundle(first), first
    if bundle.trust_domain != trust_domain or len(walked) > STEPS_MAX:
        raise Refused("X0-AUT-031", "the bundle is of another trust domain")
    expires = 0
    for step in walked:
        body, manifest, expires = open_set(step, BUNDLE, bundle, verify)
        newer = decode_bundle(body)
        if (
            newer.trust_domain != trust_domain
            or newer.sequence <= bundle.sequence
            or newer.sequence != manifest.sequence
        ):
            raise Refused("X0-AUT-031", "a step of the trust bundle leads astray")
        bundle = newer
    if walked and expires <= now_unix_s:
        raise Refused(
            "X0-AUT-032",
            "the newest trust bundle has expired",
            "is this the authority, and is the clock right?",
        )
    return bundle, body


def open_set(
    encoded: Sequence[bytes], name: str, bundle: Bundle, verify: Verify
) -> tuple[bytes, Manifest, int]:
    """Put a set together from its records, signed by a record key of a bundle.

    Returns:
        Body, manifest and expiry (unix seconds, not judged here).
    Raises:
        Refused: a signature, a hash or a place does not fit.
        BadMessage: not records.
    """
    points = {key.id.encode(): key.point for key in bundle.record_keys}
    records = [decode_record(data) for data in encoded]
    for record in records:
        point = points.get(record.signer[0]) if len(record.signer) == 1 else None
        if (
            record.writer != AUTHORITY
            or point is None
            or not verify(point, signed_part(record), record.signature)
        ):
            raise Refused("X0-AUT-031", f"a record of the set {name} has no good signature")
    if not records or (records[0].kind, records[0].name) != (KIND_MANIFEST, name):
        raise BadMessage("X0-AUT-033", f"no manifest of the set {name}")
    manifest = decode_manifest(records[0].body)
    chunks = [record.body for record in records[1:]]
    hashes = tuple(hashlib.sha256(chunk).digest() for chunk in chunks)
    if manifest.set != name or hashes != manifest.chunks:
        raise Refused("X0-AUT-031", f"the set {name} is not what its manifest says")
    return manifest.inline or b"".join(chunks), manifest, records[0].expires_unix_s


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
