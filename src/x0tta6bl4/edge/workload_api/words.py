"""What the server of the Workload API asks for, and what it is answered with.

A `Snapshot` is everything that a caller has now.  Callers that have the same share one object, and
with it the bytes that go to them: encoded once per method, however many streams there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol, final

from x0tta6bl4.core.identity.selectors import Attributes
from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.process import Needs


class Caller(Protocol):
    """Who has called, as the kernel knows it (`edge.attest.peer.Peer`)."""

    pid: int
    """0 where it has no number here."""
    uid: int
    gid: int

    def attributes(self, wanted: Needs) -> Attributes | Denied:
        """What the process is now."""
        ...


@final
class Svid(Value, frozen=True):
    """One X509-SVID with its key.  `repr` says nothing of the key."""

    id: str
    chain: tuple[bytes, ...]
    """DER, leaf first."""
    key: bytes
    """PKCS#8, DER."""
    hint: str = ""
    """At most `schema.HINT_BYTES_MAX` bytes."""

    def __repr__(self) -> str:
        return f"Svid({self.id!r}, hint={self.hint!r})"


@final
class WitSvid(Value, frozen=True):
    """One WIT-SVID with its key.  `repr` says nothing of either."""

    id: str
    token: str
    key: str
    """Private key, JWK."""
    hint: str = ""

    def __repr__(self) -> str:
        return f"WitSvid({self.id!r}, hint={self.hint!r})"


@final
class TrustBundle(Value, frozen=True):
    """What is needed to verify SVIDs of one trust domain."""

    trust_domain: str
    x509: tuple[bytes, ...]
    """DER of the CAs."""
    jwks: bytes = b""
    """JWKS of JWT authorities alone (SP-120)."""
    wit: str = ""
    """JWKS of WIT authorities alone."""


class Snapshot:
    """All that a caller has now; never changed.

    Args:
        svids: the default first (SP-124); no ID and no hint but "" twice (SP-115).
        own: bundle of this trust domain.
        federated: bundles of others, for this caller.
        crl: DER revocation lists of all these trust domains.
        wit: WIT-SVIDs; None: this endpoint has no WIT profile (SP-123).
    """

    __slots__ = ("_encoded", "crl", "federated", "own", "svids", "wit")

    def __init__(
        self,
        svids: tuple[Svid, ...],
        own: TrustBundle,
        federated: tuple[TrustBundle, ...] = (),
        crl: tuple[bytes, ...] = (),
        wit: tuple[WitSvid, ...] | None = None,
    ) -> None:
        self.svids = svids
        self.own = own
        self.federated = federated
        self.crl = crl
        self.wit = wit
        self._encoded: dict[str, bytes] = {}

    def encoded(self, what: str, encode: Callable[[Snapshot], bytes]) -> bytes:
        """The bytes of one kind of answer, made at the first question.

        Args:
            what: names the kind; one per method.
            encode: makes them.
        """
        made = self._encoded.get(what)
        if made is None:
            made = self._encoded[what] = encode(self)
        return made


@final
class Validated(Value, frozen=True):
    """A JWT-SVID that is good for an audience."""

    id: str
    claims: dict[str, object]


class Directory(Protocol):
    """Who has which identities, and what they are made of."""

    def subscribe(self, caller: Caller) -> AsyncIterator[Snapshot]:
        """What a caller has: at once, and again after each change that may concern it.

        The newest only: whoever reads slowly misses what was replaced meanwhile.  Without an
        identity `svids` is empty.  Never ends by itself; who stops reading closes it.
        """
        ...

    async def mint(
        self, caller: Caller, svids: tuple[Svid, ...], audience: tuple[str, ...]
    ) -> tuple[str, ...]:
        """JWT-SVIDs for identities that the caller was just found to have, in their order.

        Raises:
            X0Error: Unavailable, or Refused by the authority.
        """
        ...

    def validate(self, snapshot: Snapshot, token: str, audience: str) -> Validated | Denied:
        """Whether a JWT-SVID is good, by the bundles that the caller has (SP-122)."""
        ...
