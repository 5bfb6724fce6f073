"""Whom this node's agent believes, and as whom it appears: SVID, bundle, revocations, contexts.

Each is a snapshot that is replaced as a whole; connections pick the newest when they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from x0tta6bl4.core.agent.words import Crypto
from x0tta6bl4.core.identity.revocation import Revocations
from x0tta6bl4.core.identity.rules import AUTHORITY, NODE, WORKLOAD
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import (
    ALPN_AUTHORITY,
    ALPN_LINK,
    GROUPS,
    GROUPS_PQ,
    TlsContext,
)
from x0tta6bl4.edge.tls.judge import Judge
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.errors import BadInput, Unavailable
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import (
    Endpoint,
    Record,
    decode_bundle,
    decode_revocations,
    endpoint_signed_part,
    signed_part,
)


class Trusts:
    """Trust of one agent.

    Args:
        domain: trust domain.
        require_pq: refuse key exchanges that are not post-quantum.

    Attributes:
        on_new_svid: called when this node's SVID was replaced by another.
        key_kind: what keys SVIDs are to have, as the bundle tells.
    """

    def __init__(self, domain: TrustDomain, require_pq: bool) -> None:
        self._domain = domain
        self._groups = GROUPS_PQ if require_pq else GROUPS
        self._revocations = Revocations()
        self._judge = Judge(domain, (), self._revoked, unix_us)
        self.svid: Svid | None = None
        self.key_kind = x509.svid_kind(())
        self.on_new_svid: Callable[[], None] = lambda: None
        self._contexts: dict[str, TlsContext] = {}

    def present(self, svid: Svid) -> None:
        """Appear with this SVID from now on."""
        replaced = self.svid is not None and self.svid.chain != svid.chain
        self.svid = svid
        self._contexts.clear()
        if replaced:
            self.on_new_svid()

    def believe(self, anchors: Sequence[bytes]) -> None:
        """Judge by these trust anchors from now on."""
        self._judge = Judge(self._domain, anchors, self._revoked, unix_us)
        self.key_kind = x509.svid_kind(anchors)
        self._contexts.clear()

    def set_changed(self, set: str, body: bytes) -> bool:
        """Take in a set of the authority, already verified; True if it was a new bundle."""
        if set == "bundle":
            self.believe(decode_bundle(body).anchors)
            return True
        if set == "revocations":
            self._revocations.replace(
                (r.subject, r.until_unix_s, r.issued_before_unix_s)
                for r in decode_revocations(body)
            )
        return False

    def _revoked(self, id: SpiffeId, issued_unix_s: int, via: NodeName | None) -> Verdict:
        return self._revocations.check(id, issued_unix_s, via)

    def counts(self, id: SpiffeId, issued_unix_s: int, via: NodeName) -> Verdict:
        """Whether an SVID that was judged before is revoked by now."""
        return self._revocations.check(id, issued_unix_s, via)

    def judge_kept(self, item: SvidItem) -> Verdict:
        """Whether a workload's SVID from the disk still counts, with the key beside it."""
        verdict = self._judge.judge(item.chain, WORKLOAD).verdict
        if type(verdict) is not Allowed:
            return verdict
        if verdict.peer != item.id:
            return Denied("SVID of another ID")
        try:
            key = x509.load_key(item.key)
        except BadInput:
            return Denied("no key")
        if x509.parse(item.chain[0]).certificate.public_key() != key.public_key():
            return Denied("key of another SVID")
        return verdict

    # -------------------------------------------------------------- TLS
    def link_client(self) -> SslContext:
        """For dialling neighbours' agents."""
        return SslContext(lambda: self._context(ALPN_LINK))

    def link_server(self, on_refused: Callable[[str], None]) -> SslContext:
        """For neighbours' agents that dial us."""
        return SslContext(lambda: self._context(ALPN_LINK), on_refused)

    def authority_client(self) -> SslContext:
        """For the authority."""
        return SslContext(lambda: self._context(ALPN_AUTHORITY))

    def _context(self, alpn: str) -> TlsContext:
        context = self._contexts.get(alpn)
        if context is None:
            if self.svid is None:
                raise Unavailable("X0-RUN-043", "this node has no SVID yet")
            expect = AUTHORITY if alpn == ALPN_AUTHORITY else NODE
            context = TlsContext(self.svid, self._judge, (alpn,), expect, self._groups)
            self._contexts[alpn] = context
        return context

    # -------------------------------------------------------------- records
    def crypto(self) -> Crypto:
        """What the agent's machine needs of cryptography, by the judge of now."""
        return Crypto(
            verify=self._verify,
            verify_key=_verify_key,
            verify_endpoint=self._verify_endpoint,
            sign=_sign,
        )

    def _verify(self, record: Record, unix_s: int) -> Verdict:
        found = self._judge.judge_signed(
            record.signer, signed_part(record), record.signature, NODE, unix_s * 1_000_000
        )
        if type(found.verdict) is Allowed and record.expires_unix_s > found.not_after_unix_s:
            return Denied("record outlives its SVID")
        return found.verdict

    def _verify_endpoint(self, node: str, endpoint: Endpoint, unix_s: int) -> Verdict:
        found = self._judge.judge_signed(
            endpoint.chain,
            endpoint_signed_part(node, endpoint),
            endpoint.signature,
            WORKLOAD,
            unix_s * 1_000_000,
        )
        if type(found.verdict) is not Allowed:
            return found.verdict
        if endpoint.expires_unix_s > found.not_after_unix_s:
            return Denied("endpoint outlives its SVID")
        if found.via != node:  # Who steals a workload's key must not draw its callers elsewhere.
            return Denied("endpoint of an SVID of another node")
        return found.verdict


def _verify_key(record: Record, point: bytes) -> Verdict:
    if x509.verify(point, signed_part(record), record.signature):
        return Allowed(SpiffeId(""))
    return Denied("bad signature")


def _sign(key: bytes, data: bytes) -> bytes:
    return x509.sign(x509.load_key(key), data)
