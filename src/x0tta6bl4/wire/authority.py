"""Words of the authority API: what nodes ask over mutual TLS and operators over a local socket.

Each method takes one struct and answers one struct (Watch: a stream of them), as msgpack maps in
gRPC frames (`x0-authority/1`).  Nodes may call SERVICE only, operators ADMIN too.  Before a node
has an SVID it may call Trust, Challenge, Enrol and Attest and nothing else.  `wire.token` has the
enrolment token.

    enrolling    Trust(held = hash in the token) -> walk to the newest bundle -> judge the server
                 by it on a new connection -> Enrol(token, long-lived key, CSR)
    returning    Trust(held = hash of the stored bundle) -> ... -> Challenge -> Attest(proof, CSR)
    working      Watch -> full set of entries and records, then changes; Issue(CSRs) as needed
"""

from __future__ import annotations

from typing import Final, final

import msgspec

from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.records import Bundle, Name, Revocation, Rule

ALPN: Final = "x0-authority/1"
SERVICE: Final = "x0.Authority"
ADMIN: Final = "x0.Admin"

ISSUE_MAX: Final = 64
"""Most CSRs in one Issue."""
CSR_BYTES_MAX: Final = 16 * 1024
REQUEST_BYTES_MAX: Final = 2 * 1024 * 1024
REPLY_BYTES_MAX: Final = 64 * 1024 * 1024
LIST_MAX: Final = 1000
"""Most items in one page of a list."""
SELECTORS_MAX: Final = 16
TTL_S_DEFAULT: Final = 3600
TTL_S_MIN: Final = 10
TTL_S_MAX: Final = 3600
TOKEN_TTL_S_MAX: Final = 600
JWT_TTL_S: Final = 300
"""Lifetime of a JWT-SVID; shorter where the entry's own is."""
AUDIENCES_MAX: Final = 16
AUDIENCE_BYTES_MAX: Final = 1024
FEDERATIONS_MAX: Final = 64
"""Most foreign trust domains, of an authority and of one entry."""
DOCUMENT_BYTES_MAX: Final = 512 * 1024
"""Longest SPIFFE bundle of a foreign trust domain."""
CLOCK_SKEW_US_MAX: Final = 30_000_000
"""More than this between the clocks of two ends is refused."""
BACKDATE_S: Final = 35
"""notBefore lies this far in the past, inside the lifetime; less where that is below 140 s."""


class Call(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    """Root of all requests and answers."""


# ------------------------------------------------------------------ things that are kept
@final
class Entry(Call, frozen=True):
    """Registration entry: who on which node may be what.  Replicas are entries with one `id`."""

    id: str
    """SPIFFE ID, of this trust domain and not reserved."""
    node: str
    """Name of the parent node, the only one that gets this SVID."""
    selectors: tuple[str, ...]
    """`unix:uid:1000`, ...; all must hold; at least one."""
    ttl_s: int = 0
    """Lifetime of the SVID, back-dating included; 0 at creation: the authority's default."""
    address: str = ""
    """Where the service listens: `127.0.0.1:80`, `[::1]:80`, `unix:/path`; empty: no service."""
    proxy_header: bool = False
    """Whether the service wants a PROXY protocol v2 header in front of each connection."""
    hint: str = ""
    """Operator's word that the Workload API passes on; at most 1024 bytes."""
    key: str = ""
    """Name of the entry itself; the authority chooses one when it is empty at creation."""
    revision: int = 0
    """Set by the authority, grows with each change; an update names the one it was made from."""
    federates_with: tuple[str, ...] = ()
    """Trust domains whose bundles this workload is given; at most FEDERATIONS_MAX."""


@final
class Node(Call, frozen=True):
    """An enrolled node as operators see it."""

    name: str
    id: str
    enrolled_unix_s: int
    attested_unix_s: int
    """Last enrolment or attestation by key."""
    key_sha256: str
    """Hex digest of its long-lived public key."""
    connected: bool = False
    draining: bool = False
    evicted_unix_s: int = 0
    reason: str = ""
    """Why it was evicted."""
    not_after_unix_s: int = 0
    """End of its newest SVID."""


@final
class TokenInfo(Call, frozen=True):
    """An enrolment token without its secret."""

    id: str
    node: str
    created_unix_s: int
    expires_unix_s: int
    used_unix_s: int = 0


@final
class Ban(Call, frozen=True):
    """A subject that gets no SVID until the ban is lifted."""

    subject: str
    reason: str
    since_unix_s: int


@final
class CaInfo(Call, frozen=True):
    """A CA of the trust domain and where it stands in its life."""

    id: str
    state: str
    """`prepared`, `active` or `retired`."""
    not_before_unix_s: int
    not_after_unix_s: int
    sha256: str
    record_key: str


@final
class Federation(Call, frozen=True):
    """A foreign trust domain and where its bundle comes from (SP-132).  Never inferred."""

    trust_domain: str
    url: str
    """https, without userinfo (SP-133)."""
    profile: str
    """`https_web` or `https_spiffe`."""
    endpoint_id: str = ""
    """SPIFFE ID of the endpoint; `https_spiffe` only, and needed there (SP-137)."""
    bundle: bytes = b""
    """SPIFFE bundle, JSON.  To create: the bootstrap bundle of `https_spiffe`; else as held."""
    sequence: int = 0
    """Of the bundle held."""
    fetched_unix_s: int = 0
    """Last poll that succeeded; 0: none has."""
    next_unix_s: int = 0
    """When the next poll is due."""
    failed: str = ""
    """Why the last poll failed; empty where it did not."""


# ------------------------------------------------------------------ before a node has an SVID
@final
class TrustRequest(Call, frozen=True):
    """The way from a bundle that the caller holds to the newest one."""

    held: bytes
    """SHA-256 of the body of that bundle."""


@final
class TrustReply(Call, frozen=True):
    """Bundles in order; each is signed by a record key of the one before.

    `first` is the body whose digest was asked for.  A caller checks that, then walks: each step is
    the encoded manifest record followed by its chunk records (`records.decode_record`).
    """

    first: bytes
    steps: tuple[tuple[bytes, ...], ...]
    unix_us: int


@final
class ChallengeRequest(Call, frozen=True):
    """A nonce for Attest on this connection."""

    unix_us: int


@final
class ChallengeReply(Call, frozen=True):
    """32 random bytes, good for one Attest on this connection within 30 s."""

    nonce: bytes
    unix_us: int


@final
class EnrolRequest(Call, frozen=True):
    """A new node registers its long-lived key and gets its first SVID."""

    token: bytes
    """`Token.id`."""
    secret: bytes
    node: str
    key: bytes
    """Long-lived P-256 public key, uncompressed point, 65 bytes."""
    csr: bytes
    """DER; only its key and proof of possession count."""
    proof: bytes
    """Signature of the long-lived key over `enrol_signed_part`."""
    unix_us: int


@final
class AttestRequest(Call, frozen=True):
    """A known node without a valid SVID proves that it holds its long-lived key."""

    node: str
    csr: bytes
    proof: bytes
    """Signature of the long-lived key over `attest_signed_part`."""
    unix_us: int


@final
class Admission(Call, frozen=True):
    """Answer to Enrol and Attest: the node's SVID and the bundle of now."""

    id: str
    chain: tuple[bytes, ...]
    """DER, leaf first."""
    not_after_unix_s: int
    bundle: bytes
    """Body of the newest bundle (`records.decode_bundle`)."""
    unix_us: int


def enrol_signed_part(request: EnrolRequest) -> bytes:
    """The bytes that the proof in an EnrolRequest covers."""
    return b"x0 enrol 1\x00" + _ENCODER.encode(
        (request.token, request.node, request.key, request.csr)
    )


def attest_signed_part(nonce: bytes, request: AttestRequest) -> bytes:
    """The bytes that the proof in an AttestRequest covers."""
    return b"x0 attest 1\x00" + _ENCODER.encode((nonce, request.node, request.csr))


# ------------------------------------------------------------------ a node with an SVID
@final
class Wanted(Call, frozen=True):
    """One SVID asked for."""

    entry: str
    """`Entry.key`; empty: the node's own SVID."""
    csr: bytes


@final
class IssueRequest(Call, frozen=True):
    """Up to ISSUE_MAX SVIDs, committed together."""

    wanted: tuple[Wanted, ...]
    unix_us: int


@final
class Issued(Call, frozen=True):
    """Answer to one `Wanted`: a chain, or the reason why not."""

    entry: str
    id: str = ""
    chain: tuple[bytes, ...] = ()
    not_after_unix_s: int = 0
    refused: str = ""
    """Stable lower-case phrase; empty where there is a chain."""


@final
class IssueReply(Call, frozen=True):
    """One answer per request, in order."""

    issued: tuple[Issued, ...]
    unix_us: int


@final
class MintRequest(Call, frozen=True):
    """One JWT-SVID asked for."""

    entry: str
    """`Entry.key`."""
    audience: tuple[str, ...]
    """1 to AUDIENCES_MAX, each at most AUDIENCE_BYTES_MAX."""
    unix_us: int


@final
class Minted(Call, frozen=True):
    """Answer to a MintRequest: a token, or why not.  `repr` says nothing of the token."""

    unix_us: int
    token: str = ""
    """JWT-SVID, compact."""
    id: str = ""
    issued_unix_s: int = 0
    expires_unix_s: int = 0
    refused: str = ""
    """Stable lower-case phrase; empty where there is a token."""

    def __repr__(self) -> str:
        return f"Minted({self.id!r}, expires_unix_s={self.expires_unix_s}, {self.refused!r})"


@final
class WatchRequest(Call, frozen=True):
    """Everything that concerns the caller, from now on."""

    unix_us: int


@final
class Update(Call, frozen=True):
    """Pushed by Watch.  The first one, and any after the caller was too slow, is full."""

    unix_us: int
    full: bool = False
    """Entries that are not named here are gone, and no `gone` is given."""
    entries: tuple[Entry, ...] = ()
    gone: tuple[str, ...] = ()
    """Keys of entries deleted or moved to another node."""
    records: tuple[bytes, ...] = ()
    """Encoded authority records: each manifest with all its chunks."""
    renew_issued_before_unix_s: int = 0
    """SVIDs with an earlier notBefore are to be renewed at once (new ones never have one)."""
    draining: bool = False
    """The operator wants this node drained."""


# ------------------------------------------------------------------ operators
@final
class Nothing(Call, frozen=True):
    """No arguments, or no answer but that it was done."""


@final
class Key(Call, frozen=True):
    """Names one thing: an entry's key, a service name, a node, a token id, a subject."""

    key: str


@final
class Page(Call, frozen=True):
    """Which part of a list: after this key, at most `limit` (LIST_MAX), `match` in key or ID."""

    after: str = ""
    limit: int = LIST_MAX
    match: str = ""
    node: str = ""
    """Entries and tokens of this node only."""


@final
class Entries(Call, frozen=True):
    """A page of entries, by key; `more`: there are others after the last."""

    entries: tuple[Entry, ...]
    more: bool = False


@final
class Names(Call, frozen=True):
    """A page of service names."""

    names: tuple[Name, ...]
    more: bool = False


@final
class Nodes(Call, frozen=True):
    """A page of nodes."""

    nodes: tuple[Node, ...]
    more: bool = False


@final
class Tokens(Call, frozen=True):
    """Tokens that have not been purged (a day after their end), by id."""

    tokens: tuple[TokenInfo, ...]
    more: bool = False


@final
class TokenCreate(Call, frozen=True):
    """Make an enrolment token."""

    node: str = ""
    """The only name it enrols; empty: any that is free."""
    ttl_s: int = 0
    """0: the authority's default."""
    authorities: tuple[str, ...] = ()
    """Where the node will dial; empty: as the authority's configuration says."""


@final
class TokenMade(Call, frozen=True):
    """The token, shown once."""

    token: str
    id: str
    node: str
    expires_unix_s: int


@final
class NodeEvict(Call, frozen=True):
    """Ban a node: its SVIDs and all issued through it are revoked, its key no longer counts."""

    node: str
    reason: str = ""


@final
class NodeDrain(Call, frozen=True):
    """Ask a node to drain, or to stop draining."""

    node: str
    on: bool = True


@final
class Policy(Call, frozen=True):
    """All rules.  To apply: `version` is the one the change was made from (else Conflict)."""

    rules: tuple[Rule, ...]
    version: int


@final
class Revoke(Call, frozen=True):
    """Revoke all SVIDs of a subject issued so far."""

    subject: str
    reason: str = ""
    ban: bool = True
    """Also refuse to issue new ones until `Unban`; else it is issued anew at once."""


@final
class Revocations(Call, frozen=True):
    """What is revoked, and who is banned."""

    revocations: tuple[Revocation, ...]
    bans: tuple[Ban, ...]


@final
class Federations(Call, frozen=True):
    """A page of federations, by trust domain; without their bundles."""

    federations: tuple[Federation, ...]
    more: bool = False


@final
class Crls(Call, frozen=True):
    """A certificate revocation list of each CA, DER."""

    lists: tuple[bytes, ...]


@final
class BundleInfo(Call, frozen=True):
    """The bundle of now with the life of its CAs."""

    bundle: Bundle
    sha256: str
    cas: tuple[CaInfo, ...]


@final
class BundleRotate(Call, frozen=True):
    """Move the CA life cycle on by hand."""

    step: str
    """`prepare` a new CA and record key, `activate` the prepared, `retire` the old, or `next`."""
    force: bool = False
    """Also when nodes have not had the time to learn it, or SVIDs of the old CA still live."""


@final
class Health(Call, frozen=True):
    """State of the authority, for status and metrics."""

    trust_domain: str
    id: str
    version: str
    wire: str
    unix_us: int
    started_unix_us: int
    listen: tuple[str, ...]
    read_only: str = ""
    """Why nothing can be written now (X0-STO-...); empty: all is well."""
    heartbeat_unix_us: int = 0
    bundle_sha256: str = ""
    ca_not_after_unix_s: int = 0
    watchers: int = 0
    counts: dict[str, int] = {}
    """Entries, names, rules, nodes, tokens, revocations, bans, issued (alive)."""
    sequences: dict[str, int] = {}
    """Set -> sequence of its newest manifest."""
    leading: bool = False
    """Whether it is the one of its trust domain that signs heartbeats and moves CAs on."""
    others: tuple[str, ...] = ()
    """Names of the other authorities of its store that run now."""


# ------------------------------------------------------------------ the two services
METHODS: Final[dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]]] = {
    "Trust": (TrustRequest, TrustReply),
    "Challenge": (ChallengeRequest, ChallengeReply),
    "Enrol": (EnrolRequest, Admission),
    "Attest": (AttestRequest, Admission),
    "Issue": (IssueRequest, IssueReply),
    "Mint": (MintRequest, Minted),
    "Watch": (WatchRequest, Update),
}
"""Methods of SERVICE: name -> request, reply.  Watch answers a stream."""

ADMIN_METHODS: Final[dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]]] = {
    "Health": (Nothing, Health),
    "EntryList": (Page, Entries),
    "EntryShow": (Key, Entry),
    "EntryCreate": (Entry, Entry),
    "EntryUpdate": (Entry, Entry),
    "EntryDelete": (Key, Entry),
    "NameList": (Page, Names),
    "NameShow": (Key, Name),
    "NameCreate": (Name, Name),
    "NameUpdate": (Name, Name),
    "NameDelete": (Key, Name),
    "TokenCreate": (TokenCreate, TokenMade),
    "TokenList": (Page, Tokens),
    "TokenDelete": (Key, TokenInfo),
    "NodeList": (Page, Nodes),
    "NodeShow": (Key, Node),
    "NodeEvict": (NodeEvict, Node),
    "NodeDrain": (NodeDrain, Node),
    "NodeDelete": (Key, Node),
    "PolicyShow": (Nothing, Policy),
    "PolicyApply": (Policy, Policy),
    "Revoke": (Revoke, Revocation),
    "RevocationList": (Nothing, Revocations),
    "Unban": (Key, Nothing),
    "CrlShow": (Nothing, Crls),
    "BundleShow": (Nothing, BundleInfo),
    "BundleRotate": (BundleRotate, BundleInfo),
    "RenewAll": (Nothing, Nothing),
    "FederationList": (Page, Federations),
    "FederationShow": (Key, Federation),
    "FederationCreate": (Federation, Federation),
    "FederationUpdate": (Federation, Federation),
    "FederationDelete": (Key, Federation),
    "FederationRefresh": (Key, Federation),
}
"""Methods of ADMIN: name -> request, reply."""


def authority_id(trust_domain: str, name: str) -> SpiffeId:
    """SPIFFE ID of an authority."""
    return SpiffeId(f"spiffe://{trust_domain}/authority/{name}")


_ENCODER = msgspec.msgpack.Encoder()
