"""A test authority that can issue every certificate, the valid ones and all the others."""

from __future__ import annotations

from x0tta6bl4.core.identity.rules import ANYBODY, Expect
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.edge.tls.context import GROUPS, TlsContext
from x0tta6bl4.edge.tls.judge import Judge, Revoked, allow_all
from x0tta6bl4.edge.tls.x509 import (
    Issuer,
    Svid,
    issue_leaf_for,
    key_bytes,
    new_anchor,
    new_key,
    parse,
)
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain

DOMAIN = TrustDomain("mesh.test")
NOW_UNIX_S = 1_800_000_000
ALPN = "x0-circuit/1"


def new_svid(
    issuer: Issuer,
    id: SpiffeId,
    now_unix_s: int,
    *,
    ttl_s: int = 3_600,
    via: NodeName | None = None,
) -> Svid:
    """Make a key and an SVID for it."""
    key = new_key()
    chain = issue_leaf_for(issuer, key.public_key(), id, now_unix_s, ttl_s=ttl_s, via=via)
    return Svid(id, chain, key_bytes(key), parse(chain[0]).fields.not_after_unix_s)


class FakeClock:
    """Wall time that stands until it is told."""

    def __init__(self, unix_s: float = NOW_UNIX_S) -> None:
        self.unix_us = int(unix_s * SECOND)

    def __call__(self) -> int:
        return self.unix_us


class FakeCa:
    """A trust domain in one object: anchor, clock, judges, SVIDs, contexts.

    Keys are P-256 throughout, so that tests are quick.
    """

    def __init__(self, domain: TrustDomain = DOMAIN, clock: FakeClock | None = None) -> None:
        self.domain = domain
        self.clock = clock or FakeClock()
        self.issuer: Issuer = new_anchor(domain, self.now_unix_s, kind="P-256")

    @property
    def now_unix_s(self) -> int:
        return self.clock.unix_us // SECOND

    def id(self, path: str) -> SpiffeId:
        return SpiffeId(f"spiffe://{self.domain}/{path}")

    def svid(self, path: str, ttl_s: int = 3_600, via: str | None = None) -> Svid:
        return new_svid(
            self.issuer,
            self.id(path),
            self.now_unix_s,
            ttl_s=ttl_s,
            via=NodeName(via) if via else None,
        )

    def judge(self, revoked: Revoked = allow_all) -> Judge:
        return Judge(self.domain, [self.issuer.certificate], revoked, self.clock)

    def context(
        self,
        path: str | None,
        expect: Expect = ANYBODY,
        alpn: str = ALPN,
        groups: tuple[str, ...] = GROUPS,
        demand: bool = True,
        revoked: Revoked = allow_all,
    ) -> TlsContext:
        svid = None if path is None else self.svid(path)
        return TlsContext(svid, self.judge(revoked), [alpn], expect, groups, demand=demand)
