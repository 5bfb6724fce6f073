"""What nodes and authorities say about themselves and the trust domain: signed records.

A record has one writer and is replaced as a whole; the higher generation wins.  Nodes sign with
the key of their SVID and carry its chain; the authority signs with a record key that the bundle
lists.  The signature covers a context string and all fields but itself (`signed_part`).

Source: OSPF's rules for sequence numbers and ages, RFC 2328 section 13, in single-writer form.
"""

from __future__ import annotations

from typing import Final, TypeVar, final

import msgspec

from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import NodeName, SpiffeId

CONTEXT: Final = b"x0 record 1\x00"
RECORD_BYTES_MAX: Final = 16 * 1024
PQ_TIMES: Final = 8
"""A record with a post-quantum signature may be so many times as large, chain and endpoints too."""
PQ_SIGNATURE_BYTES_MIN: Final = 2048
AUTHORITY: Final = NodeName("authority")
"""Writer of authority records; no node can have this name (the authority refuses it)."""

T = TypeVar("T")

KIND_NODE: Final = "node"
KIND_MANIFEST: Final = "manifest"
KIND_CHUNK: Final = "chunk"


class Word(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Root of everything that is encoded: a frozen msgpack array."""


@final
class Record(Word, frozen=True):
    """One signed statement.  Key of a record: (writer, kind, name)."""

    writer: str
    kind: str
    name: str
    """Empty for a node's own record, `e0`, `e1`, … for further pages of its endpoints;
    `<set>` of a manifest, `<set>/<index>` of a chunk."""
    generation: int
    """Strictly growing; max(stored + 1, unix seconds) at the writer."""
    expires_unix_s: int
    body: bytes
    signer: tuple[bytes, ...]
    """Node records: SVID chain, leaf first, DER.  Authority records: one item, the key id."""
    signature: bytes


@final
class Adjacency(Word, frozen=True):
    """One confirmed link, as its writer measures it."""

    node: str
    cost: int
    """In 1/16 ms, >= 1: RTT/2 times ETX."""
    dials: bool
    """Whether the writer can dial this neighbour's proxy (else only the other way round)."""
    kernel: bool = False
    """Whether the writer's kernel forwards over it, watched by both ends."""


@final
class Endpoint(Word, frozen=True):
    """Where a workload can be reached: at the node whose record carries this.

    It says where, never who has a name.  `signature` is made by the key of `chain[0]` over
    `endpoint_signed_part(node, generation, expires_unix_s)`.
    """

    id: str
    chain: tuple[bytes, ...]
    generation: int
    expires_unix_s: int
    signature: bytes
    load: int = 0
    """Open streams, coarse: to choose the least loaded replica."""


@final
class NodeBody(Word, frozen=True):
    """Body of a node record."""

    links: tuple[Adjacency, ...]
    endpoints: tuple[Endpoint, ...]
    area: int = 0
    stub: bool = False
    """Draining or starting: no transit (RFC 6987)."""
    restarting_until_unix_s: int = 0
    """Set by an agent that goes down on purpose: after this time no path uses the node."""
    report: str = ""
    authority: bool = False
    """Whether this node's proxy reaches the authority itself, so that others may go through it."""


@final
class Manifest(Word, frozen=True):
    """Body of a manifest: a set of the authority is swapped when all its chunks are there."""

    set: str
    sequence: int
    chunks: tuple[bytes, ...]
    """SHA-256 of each chunk's body, in order; at most CHUNKS_MAX."""
    inline: bytes = b""
    """The whole set where it fits into one record; then `chunks` is empty."""


CHUNKS_MAX: Final = 4096
CHUNK_BYTES_MAX: Final = 12 * 1024
SET_BYTES_MAX: Final = CHUNKS_MAX * CHUNK_BYTES_MAX
SETS: Final = ("bundle", "revocations", "names", "policy", "heartbeat", "federated", "crls")


@final
class RecordKey(Word, frozen=True):
    """A key with which the authority signs records: a P-256 point, or an ML-DSA-65 key, bare."""

    id: str
    point: bytes


@final
class JwtKey(Word, frozen=True):
    """A key with which the authority signs JWT-SVIDs.  It is published before its first token."""

    kid: str
    algorithm: str
    """JOSE name: `ES256`."""
    public: bytes
    """SubjectPublicKeyInfo, DER."""
    not_after_unix_s: int
    """No token that it signed is good after this."""


@final
class Bundle(Word, frozen=True):
    """Set `bundle`: trust anchors, record keys and JWT keys of the trust domain."""

    trust_domain: str
    sequence: int
    anchors: tuple[bytes, ...]
    """CA certificates, DER."""
    record_keys: tuple[RecordKey, ...]
    refresh_hint_s: int = 300
    jwt_keys: tuple[JwtKey, ...] = ()


@final
class Federated(Word, frozen=True):
    """Set `federated` is a tuple of these: bundles of other trust domains, never merged (SP-128).

    The document is the SPIFFE bundle as the authority has verified it, of this domain and no other.
    """

    trust_domain: str
    document: bytes
    """SPIFFE bundle, JSON."""
    sequence: int
    """`spiffe_sequence` of the document; 0 where it has none."""


@final
class Revocation(Word, frozen=True):
    """Set `revocations` is a tuple of these.  Stays until every SVID of the subject has expired."""

    subject: str
    """A SPIFFE ID (workload or node): all its SVIDs, and those issued through a node."""
    until_unix_s: int
    reason: str = ""
    issued_before_unix_s: int = 0
    """0: the identity is banned; else only SVIDs whose notBefore is earlier are revoked."""


@final
class Name(Word, frozen=True):
    """Set `names` is a tuple of these: service name -> SPIFFE ID and allowed callers."""

    name: str
    """`web` is reached as `web.mesh`."""
    id: str
    callers: tuple[str, ...]
    """Patterns: a SPIFFE ID, or one with `/*` at its end for everything below."""
    proxy_header: bool = False
    """Whether the service wants PROXY protocol v2 in front of each connection."""


@final
class Rule(Word, frozen=True):
    """Set `policy` is a tuple of these.  A deny wins over every allow; no allow is a deny."""

    id: str
    effect: str
    """`allow` or `deny`."""
    callers: tuple[str, ...]
    targets: tuple[str, ...]


@final
class Heartbeat(Word, frozen=True):
    """Set `heartbeat`: the authority lives; its wall time is the floor for everybody's."""

    unix_us: int
    revocation_sequence: int


def signed_part(record: Record) -> bytes:
    """The bytes that a record's signature covers."""
    return CONTEXT + _ENCODER.encode(
        (
            record.writer,
            record.kind,
            record.name,
            record.generation,
            record.expires_unix_s,
            record.body,
            record.signer,
        )
    )


def endpoint_signed_part(node: str, endpoint: Endpoint) -> bytes:
    """The bytes that an endpoint's signature covers."""
    return b"x0 endpoint 1\x00" + _ENCODER.encode(
        (node, endpoint.id, endpoint.generation, endpoint.expires_unix_s)
    )


def encode_record(record: Record) -> bytes:
    """Encode for the wire and for the disk.

    Raises:
        BadMessage: larger than RECORD_BYTES_MAX, PQ_TIMES that with a post-quantum signature.
    """
    data = _ENCODER.encode(record)
    _bound(len(data), len(record.signature))
    return data


def decode_record(data: bytes) -> Record:
    """Decode one record; the signature is not looked at.

    Raises:
        BadMessage: not a record.
    """
    _bound(len(data), PQ_SIGNATURE_BYTES_MIN)
    try:
        record = _RECORD.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage("X0-REC-002", f"not a record: {error}") from None
    _bound(len(data), len(record.signature))
    return record


def _bound(size_bytes: int, signature_bytes: int) -> None:
    times = PQ_TIMES if signature_bytes >= PQ_SIGNATURE_BYTES_MIN else 1
    if size_bytes > times * RECORD_BYTES_MAX:
        limit = f"at most {times * RECORD_BYTES_MAX // 1024} KiB"
        raise BadMessage("X0-REC-001", f"record of {size_bytes} bytes", limit)


def encode_body(value: Word | tuple[Word, ...] | tuple[bytes, ...]) -> bytes:
    """Encode the body of a record or of an authority set."""
    return _ENCODER.encode(value)


def decode_node(body: bytes) -> NodeBody:
    """Decode the body of a node record.

    Raises:
        BadMessage: not a node body.
    """
    return _decoded(_NODE, body)


def decode_manifest(body: bytes) -> Manifest:
    """Decode the body of a manifest.

    Raises:
        BadMessage: not a manifest.
    """
    return _decoded(_MANIFEST, body)


def decode_bundle(body: bytes) -> Bundle:
    """Decode set `bundle`.

    Raises:
        BadMessage: not a bundle.
    """
    return _decoded(_BUNDLE, body)


def decode_revocations(body: bytes) -> tuple[Revocation, ...]:
    """Decode set `revocations`.

    Raises:
        BadMessage: not revocations.
    """
    return _decoded(_REVOCATIONS, body)


def decode_names(body: bytes) -> tuple[Name, ...]:
    """Decode set `names`.

    Raises:
        BadMessage: not names.
    """
    return _decoded(_NAMES, body)


def decode_policy(body: bytes) -> tuple[Rule, ...]:
    """Decode set `policy`.

    Raises:
        BadMessage: not rules.
    """
    return _decoded(_POLICY, body)


def decode_federated(body: bytes) -> tuple[Federated, ...]:
    """Decode set `federated`.

    Raises:
        BadMessage: not federated bundles.
    """
    return _decoded(_FEDERATED, body)


def decode_crls(body: bytes) -> tuple[bytes, ...]:
    """Decode set `crls`: a certificate revocation list of each CA, DER (RFC 5280 section 5).

    For programs that know certificates and not our revocations by subject.

    Raises:
        BadMessage: not a tuple of bytes.
    """
    return _decoded(_CRLS, body)


def decode_heartbeat(body: bytes) -> Heartbeat:
    """Decode set `heartbeat`.

    Raises:
        BadMessage: not a heartbeat.
    """
    return _decoded(_HEARTBEAT, body)


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage("X0-REC-003", f"not the body of a record: {error}") from None


def id_matches(pattern: str, id: SpiffeId | str) -> bool:
    """Whether a caller pattern covers an ID: equal, or below a pattern that ends in `/*`."""
    return (
        id.startswith(pattern[:-1]) and len(id) >= len(pattern)
        if pattern.endswith("/*")
        else pattern == id
    )


_ENCODER = msgspec.msgpack.Encoder()
_RECORD = msgspec.msgpack.Decoder(Record)
_NODE = msgspec.msgpack.Decoder(NodeBody)
_MANIFEST = msgspec.msgpack.Decoder(Manifest)
_BUNDLE = msgspec.msgpack.Decoder(Bundle)
_REVOCATIONS: msgspec.msgpack.Decoder[tuple[Revocation, ...]] = msgspec.msgpack.Decoder(
    tuple[Revocation, ...]
)
_NAMES: msgspec.msgpack.Decoder[tuple[Name, ...]] = msgspec.msgpack.Decoder(tuple[Name, ...])
_POLICY: msgspec.msgpack.Decoder[tuple[Rule, ...]] = msgspec.msgpack.Decoder(tuple[Rule, ...])
_FEDERATED: msgspec.msgpack.Decoder[tuple[Federated, ...]] = msgspec.msgpack.Decoder(
    tuple[Federated, ...]
)
_CRLS: msgspec.msgpack.Decoder[tuple[bytes, ...]] = msgspec.msgpack.Decoder(tuple[bytes, ...])
_HEARTBEAT = msgspec.msgpack.Decoder(Heartbeat)
