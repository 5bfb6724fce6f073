"""Signatures without cryptography: a keyed hash where the real thing has P-256.

Whoever has `key` of a name signs for it; nobody else in a test knows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.core.records.sets import cut
from x0tta6bl4.wire.ids import NodeName, TrustDomain, node_id
from x0tta6bl4.wire.records import (
    AUTHORITY,
    KIND_CHUNK,
    KIND_MANIFEST,
    KIND_NODE,
    Bundle,
    Record,
    RecordKey,
    encode_body,
    encode_record,
    signed_part,
)

DOMAIN = TrustDomain("mesh.test")


def mac(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=16).digest()


def key_of(node: str) -> bytes:
    return b"secret of " + node.encode()


def signer(node: str) -> Callable[[Record], Record | None]:
    """What `sign` is for a node with an SVID."""

    def sign(record: Record) -> Record:
        record = msgspec.structs.replace(record, signer=(node.encode(),))
        signature = mac(key_of(node), signed_part(record))
        return msgspec.structs.replace(record, signature=signature)

    return sign


def verify(record: Record, now_unix_s: int) -> Verdict:
    """What the judge says of a node record: the ID that signed it."""
    assert record.expires_unix_s > now_unix_s
    if len(record.signer) != 1:
        return Denied("no chain")
    node = record.signer[0].decode("ascii", "replace")
    if record.signature != mac(key_of(node), signed_part(record)):
        return Denied("bad signature")
    return Allowed(node_id(DOMAIN, NodeName(node)))


def verify_key(record: Record, point: bytes) -> Verdict:
    if record.signature != mac(point, signed_part(record)):
        return Denied("bad signature")
    return Allowed(node_id(DOMAIN, AUTHORITY))


def node_record(
    node: str, generation: int, body: bytes, expires_unix_s: int, *, by: str = "", name: str = ""
) -> bytes:
    record = Record(node, KIND_NODE, name, generation, expires_unix_s, body, (), b"")
    signed = signer(by or node)(record)
    assert signed is not None
    return encode_record(signed)


def bundle(sequence: int, *keys: str) -> Bundle:
    """A bundle whose record keys are named and made from these words."""
    points = tuple(RecordKey(key, b"point " + key.encode()) for key in keys)
    return Bundle(DOMAIN, sequence, (), points)


def set_records(
    set: str, sequence: int, body: bytes, *, key: str, generation: int, expires_unix_s: int
) -> tuple[bytes, ...]:
    """Records of an authority set, chunks first, all of one generation."""
    manifest, chunks = cut(set, sequence, body)

    def made(kind: str, name: str, body: bytes) -> bytes:
        signer = (key.encode(),)
        record = Record(AUTHORITY, kind, name, generation, expires_unix_s, body, signer, b"")
        signature = mac(b"point " + key.encode(), signed_part(record))
        return encode_record(msgspec.structs.replace(record, signature=signature))

    return (
        *(made(KIND_CHUNK, f"{set}/{at}", chunk) for at, chunk in enumerate(chunks)),
        made(KIND_MANIFEST, set, encode_body(manifest)),
    )
