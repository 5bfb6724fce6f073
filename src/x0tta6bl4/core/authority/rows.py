"""What an authority keeps, row by row, and what it says to its driver.

Rows are what the store writes; `Persist` names the changes of one decision.  The driver carries
effects out only after the changes before them are on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, final

import msgspec

from x0tta6bl4.core.machine import Value
from x0tta6bl4.wire.authority import Ban, Entry, Federation
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain
from x0tta6bl4.wire.records import Name, Revocation, Rule

PREPARED: Final = "prepared"
ACTIVE: Final = "active"
RETIRED: Final = "retired"


# ------------------------------------------------------------------ rows
@final
class DomainRow(Value, frozen=True):
    """The trust domain and this authority in it; one row."""

    trust_domain: str
    authority: str
    created_unix_s: int
    policy_version: int = 0
    floor_unix_us: int = 0
    """Newest wall time that this authority has signed."""
    renew_before_unix_s: int = 0
    """No SVID is issued with an earlier notBefore; nodes renew those that have one."""


@final
class CaRow(Value, frozen=True):
    """A CA with the record key and the JWT key that live and die with it.

    `repr` says nothing of the keys.
    """

    id: str
    state: str
    certificate: bytes
    private: bytes
    """PKCS#8 DER."""
    record_key: str
    record_point: bytes
    record_private: bytes
    not_before_unix_s: int
    not_after_unix_s: int
    prepared_unix_s: int
    jwt_key: str = ""
    """`kid` of the key for JWT-SVIDs; empty in a CA of an older release, until it is given one."""
    jwt_public: bytes = b""
    """SubjectPublicKeyInfo, DER."""
    jwt_private: bytes = b""

    def __repr__(self) -> str:
        """Without the keys."""
        return f"CaRow({self.id!r}, {self.state})"


@final
class NodeRow(Value, frozen=True):
    """An enrolled node and its long-lived public key (uncompressed point)."""

    name: str
    point: bytes
    enrolled_unix_s: int
    attested_unix_s: int
    draining: bool = False
    evicted_unix_s: int = 0
    reason: str = ""


@final
class TokenRow(Value, frozen=True):
    """An enrolment token; `digest` is all that is known of its secret."""

    id: str
    digest: bytes
    node: str
    created_unix_s: int
    expires_unix_s: int
    used_unix_s: int = 0
    used_by: str = ""


@final
class IssuedRow(Value, frozen=True):
    """One SVID that is out."""

    serial: str
    """Hexadecimal."""
    subject: str
    node: str
    entry: str
    not_before_unix_s: int
    not_after_unix_s: int


@final
class SetRow(Value, frozen=True):
    """The newest publication of a set: encoded records, manifest first."""

    name: str
    sequence: int
    generation: int
    expires_unix_s: int
    records: tuple[bytes, ...]


@final
class BundleRow(Value, frozen=True):
    """One bundle of the chain that a returning node walks."""

    sequence: int
    digest: bytes
    body: bytes
    signer: str
    """Record key that signed it."""
    keys: tuple[str, ...]
    """Record keys that it lists."""
    records: tuple[bytes, ...]


Row = (
    DomainRow
    | CaRow
    | NodeRow
    | TokenRow
    | IssuedRow
    | SetRow
    | BundleRow
    | Entry
    | Federation
    | Name
    | Rule
    | Ban
    | Revocation
)


@final
class Put(Value, frozen=True):
    """Insert a row, or replace the one with its key."""

    row: Row


@final
class Drop(Value, frozen=True):
    """Delete a row by the name of its class and its key (`row_key`)."""

    kind: str
    key: str


@final
class Forget(Value, frozen=True):
    """Delete all IssuedRows that ended before this."""

    before_unix_s: int


Change = Put | Drop | Forget


def row_key(row: Row) -> str:
    """Key of a row among those of its class."""
    return _KEYS[type(row)](row)


_KEYS: Final[dict[type, Callable[[Any], str]]] = {
    DomainRow: lambda row: "",
    CaRow: lambda row: row.id,
    NodeRow: lambda row: row.name,
    TokenRow: lambda row: row.id,
    IssuedRow: lambda row: row.serial,
    SetRow: lambda row: row.name,
    BundleRow: lambda row: str(row.sequence),
    Entry: lambda row: row.key,
    Federation: lambda row: row.trust_domain,
    Name: lambda row: row.name,
    Rule: lambda row: row.id,
    Ban: lambda row: row.subject,
    Revocation: lambda row: f"{row.subject} {row.issued_before_unix_s}",
}


# ------------------------------------------------------------------ events
@final
class Caller(Value, frozen=True):
    """Who asks, as the edge has established it."""

    node: NodeName | None = None
    """Judged node of the connection; None: no SVID was presented."""
    not_before_unix_s: int = 0
    """Of the SVID it presented."""
    operator: bool = False
    """Peer credentials of the admin socket were right."""
    own: bool = False
    """The authority's own process."""
    nonce: bytes = b""
    """Challenge given on this connection and not used yet; empty: none."""


@final
class Asked(Value, frozen=True):
    """A request; answered by exactly one Answer or Refusal with the same token."""

    token: int
    caller: Caller
    method: str
    request: Any


@final
class OwnSvid(msgspec.Struct, frozen=True, gc=False):
    """Request of the authority's own process: an SVID for its `/authority/` ID."""

    csr: bytes


@final
class Withdrawn(msgspec.Struct, frozen=True, gc=False):
    """Request of the authority's own process: all certificates that are revoked and not expired.

    The store knows single certificates, the machine only subjects.
    """

    serials: tuple[str, ...]
    """Hexadecimal."""


@final
class Persisted(Value, frozen=True):
    """All changes handed out so far are on the disk."""


@final
class NotPersisted(Value, frozen=True):
    """The changes since the last Persisted are not on the disk: undo them."""

    reason: str


@final
class Superseded(Value, frozen=True):
    """Another authority has changed rows since the last Persisted: undo, to decide all again."""


@final
class Learnt(Value, frozen=True):
    """What other authorities of this trust domain have written; nothing is undone of it."""

    changes: tuple[Change, ...]
    whole: bool = False
    """These are all rows there are: what is not among them is gone."""


@final
class Leading(Value, frozen=True):
    """Whether this authority does what only time asks for; it doesn't until it is told to."""

    on: bool


# ------------------------------------------------------------------ effects
@final
class Persist(Value, frozen=True):
    """Write these together; nothing that follows may be seen before they are on the disk."""

    changes: tuple[Change, ...]


@final
class Answer(Value, frozen=True):
    """What was asked was done."""

    token: int
    value: Any


@final
class Refusal(Value, frozen=True):
    """What was asked was not done, and nothing was changed."""

    token: int
    kind: str
    """Class in `wire.errors`."""
    id: str
    what: str
    hint: str = ""


@final
class EntriesChanged(Value, frozen=True):
    """Entries of a node: new ones or new revisions, and those it no longer has."""

    node: str
    entries: tuple[Entry, ...]
    gone: tuple[str, ...] = ()


@final
class Published(Value, frozen=True):
    """A set was signed anew.

    A heartbeat of the only authority is good without its row being on the disk.
    """

    set: str
    records: tuple[bytes, ...]


@final
class NodeCut(Value, frozen=True):
    """This node may no longer talk: close its connections."""

    node: str
    reason: str


@final
class NodeTold(Value, frozen=True):
    """The operator's wish for a node has changed."""

    node: str
    draining: bool


@final
class PollWanted(Value, frozen=True):
    """Which bundles of foreign trust domains are due has changed."""


@final
class RenewWanted(Value, frozen=True):
    """All nodes are to renew SVIDs with an earlier notBefore."""

    before_unix_s: int


# ------------------------------------------------------------------ what the edge lends
@final
class Leaf(Value, frozen=True):
    """An issued certificate with its chain."""

    chain: tuple[bytes, ...]
    serial: str


@final
class NewCa(Value, frozen=True):
    """Keys and certificate of a new CA with its record key."""

    certificate: bytes
    private: bytes
    record_point: bytes
    record_private: bytes


@final
class NewJwtKey(Value, frozen=True):
    """A key for JWT-SVIDs.  `repr` says nothing of its private half."""

    public: bytes
    """SubjectPublicKeyInfo, DER."""
    private: bytes
    """PKCS#8 DER."""

    def __repr__(self) -> str:
        """Without the key."""
        return "NewJwtKey()"


@final
class ReadBundle(Value, frozen=True):
    """What there is to know of a SPIFFE bundle."""

    sequence: int
    """0 where it has none."""
    refresh_hint_s: int
    """0 where it has none."""


class Crypto(Protocol):
    """Keys, signatures and randomness."""

    def issue(
        self,
        ca: CaRow,
        csr: bytes,
        id: SpiffeId,
        not_before_unix_s: int,
        not_after_unix_s: int,
        via: NodeName | None,
    ) -> Leaf:
        """Issue for the key in a CSR; raises BadInput for a CSR without proof of possession."""
        ...

    def new_ca(self, trust_domain: str, not_before_unix_s: int, not_after_unix_s: int) -> NewCa:
        """Make a CA and a record key."""
        ...

    def sign(self, ca: CaRow, data: bytes) -> bytes:
        """Sign with the CA's record key."""
        ...

    def verify(self, point: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the P-256 key signed this."""
        ...

    def crl(
        self,
        ca: CaRow,
        serials: tuple[str, ...],
        number: int,
        this_unix_s: int,
        next_unix_s: int,
    ) -> bytes:
        """Make the revocation list of a CA; `number` grows with each."""
        ...

    def new_jwt_key(self) -> NewJwtKey:
        """Make a key for ES256."""
        ...

    def mint(
        self,
        ca: CaRow,
        id: SpiffeId,
        audience: tuple[str, ...],
        issued_unix_s: int,
        end_unix_s: int,
    ) -> str:
        """Write a JWT-SVID, signed with the CA's JWT key."""
        ...

    def read_bundle(self, document: bytes, trust_domain: TrustDomain) -> ReadBundle:
        """Read a SPIFFE bundle; raises BadInput."""
        ...

    def random(self, size_bytes: int) -> bytes:
        """Unpredictable bytes."""
        ...
