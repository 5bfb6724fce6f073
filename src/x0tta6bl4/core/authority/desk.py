"""One decision in the making: what it reads, what it changes, whom it tells."""

from __future__ import annotations

from typing import Final, final

from x0tta6bl4.core.authority.rows import Change, Crypto, Drop, Put, Row
from x0tta6bl4.core.authority.state import State
from x0tta6bl4.core.machine import Effect, Value
from x0tta6bl4.wire.errors import BadId, BadInput, Refused
from x0tta6bl4.wire.ids import (
    NodeName,
    SpiffeId,
    TrustDomain,
    domain_of,
    is_reserved,
    node_id,
    node_name,
    spiffe_id,
)
from x0tta6bl4.wire.records import AUTHORITY

DAY_S: Final = 86_400


@final
class AuthorityConfig(Value, frozen=True):
    """How an authority lives; seconds.  The defaults are for production."""

    svid_ttl_s: int = 3600
    """Lifetime of a workload's SVID where its entry says nothing."""
    token_ttl_s: int = 600
    """Lifetime of an enrolment token where its maker says nothing."""
    node_ttl_s: int = 3600
    """Lifetime of node SVIDs: how long an evicted node's neighbours depend on the revocation."""
    ca_ttl_s: int = 30 * DAY_S
    """Lifetime of a CA: prepared anew at 1/2, activated at 5/6.  Long against SVIDs."""
    ca_advance_s: int = 300
    """A prepared CA must have been in the bundle so long before it issues: nodes learn it."""
    set_ttl_s: int = 7 * DAY_S
    """Signed sets are good so long when the authority is away; signed anew at half of it."""
    heartbeat_s: int = 30
    """Every so often: `x0 status` alarms at 120 s."""
    name: str = "main"
    """Of this authority, in its SPIFFE ID; each of several in a trust domain has its own."""
    authorities: tuple[str, ...] = ()
    """`host:port` at which nodes dial this authority: goes into tokens."""


class Desk:
    """What a handler of one request has before it.

    Attributes:
        state: tables; changed through `put` and `drop` only.
        unix_us: wall time.
        changes: made so far, in order.
        effects: to follow the changes.
        dirty: names of sets whose content has changed.
    """

    __slots__ = ("changes", "config", "crypto", "dirty", "effects", "state", "unix_us")

    def __init__(self, state: State, unix_us: int, crypto: Crypto, config: AuthorityConfig) -> None:
        self.state = state
        self.unix_us = unix_us
        self.crypto = crypto
        self.config = config
        self.changes: list[Change] = []
        self.effects: list[Effect] = []
        self.dirty: set[str] = set()

    @property
    def unix_s(self) -> int:
        """Wall time in whole seconds."""
        return self.unix_us // 1_000_000

    @property
    def domain(self) -> TrustDomain:
        """The trust domain."""
        return TrustDomain(self.state.the_domain().trust_domain)

    def put(self, row: Row) -> None:
        """Insert or replace a row."""
        self._change(Put(row))

    def drop(self, kind: str, key: str) -> None:
        """Delete a row."""
        self._change(Drop(kind, key))

    def _change(self, change: Change) -> None:
        self.state.change((change,))
        self.changes.append(change)

    def tell(self, effect: Effect) -> None:
        """Add an effect, carried out after the changes are on the disk."""
        self.effects.append(effect)

    def node_id(self, name: str) -> SpiffeId:
        """SPIFFE ID of a node of this trust domain."""
        return node_id(self.domain, NodeName(name))

    def a_node_name(self, text: str) -> NodeName:
        """Parse a node name that a node may have.

        Raises:
            BadId: malformed, or the name of the authority's records.
        """
        name = node_name(text)
        if name == AUTHORITY:
            raise BadId("X0-AUT-022", f"no node can be called {text!r}", "choose another name")
        return name

    def a_workload_id(self, text: str) -> SpiffeId:
        """Parse an ID that an entry or a name may carry.

        Raises:
            BadId: malformed, not in normal form.
            Refused: of another trust domain, or reserved.
        """
        id = spiffe_id(text)
        if id != text:
            raise BadId("X0-AUT-023", f"{text[:80]!r} is not in normal form", f"write {id}")
        if domain_of(id) != self.domain:
            raise Refused(
                "X0-AUT-024",
                f"{text[:80]!r} is of another trust domain",
                f"this authority names spiffe://{self.domain}/... only",
            )
        if is_reserved(id):
            raise Refused(
                "X0-AUT-025",
                f"{text[:80]!r} is reserved",
                "paths that start with /node or /authority, and no path, are not for "
                "entries and names",
            )
        return id

    def a_subject(self, text: str) -> SpiffeId:
        """Parse a subject to revoke: any ID of the trust domain but the authority's own.

        Raises:
            BadInput: something else.
        """
        id = spiffe_id(text)
        if domain_of(id) != self.domain or id.endswith(f"//{self.domain}"):
            raise BadInput(
                "X0-AUT-026",
                f"{text[:80]!r} is no subject of this trust domain",
                f"write spiffe://{self.domain}/...",
            )
        return id
