"""Who may be at the other end: authorisers for `listen`, `dial` and `verify_peer`.

An authoriser is asked with an ID that is proven already, and says Allowed or Denied with a reason.
"""

from __future__ import annotations

from collections.abc import Callable

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.wire.ids import SpiffeId, domain_of, spiffe_id, trust_domain

Authorizer = Callable[[SpiffeId], Verdict]


def exact(*ids: str) -> Authorizer:
    """These IDs and no other.

    Args:
        ids: at least one.
    Raises:
        BadId: one of them is no SPIFFE ID.
    """
    assert ids, "an authoriser that allows nobody is a mistake"
    wanted = frozenset(map(spiffe_id, ids))

    def authorize(id: SpiffeId) -> Verdict:
        return Allowed(id) if id in wanted else Denied("unexpected peer")

    return authorize


def member_of(*domains: str) -> Authorizer:
    """Everybody of these trust domains.

    Args:
        domains: names, or IDs of trust domains; at least one.
    Raises:
        BadId: one of them is no trust domain.
    """
    assert domains, "an authoriser that allows nobody is a mistake"
    wanted = frozenset(trust_domain(name.removeprefix("spiffe://")) for name in domains)

    def authorize(id: SpiffeId) -> Verdict:
        return Allowed(id) if domain_of(id) in wanted else Denied("unexpected trust domain")

    return authorize


def matching(predicate: Callable[[SpiffeId], bool]) -> Authorizer:
    """Those for whom the predicate is true."""

    def authorize(id: SpiffeId) -> Verdict:
        return Allowed(id) if predicate(id) is True else Denied("not authorised")

    return authorize


def anyone(id: SpiffeId) -> Verdict:
    """Everybody whose SVID is valid in a trust domain that we have a bundle of."""
    return Allowed(id)
