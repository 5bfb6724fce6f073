"""Who gets which SVID: enrolment, attestation by possession, and issue to the parent node alone.

The authority issues a workload's SVID only to the node that the entry names as parent, nothing to
a subject or node that is banned, and never with a notBefore that a revocation or a wish to renew
has already passed.
"""

from __future__ import annotations

import hmac
from typing import Final

from x0tta6bl4.core.authority.desk import Desk
from x0tta6bl4.core.authority.rows import Caller, IssuedRow, NodeRow, OwnSvid, TokenRow
from x0tta6bl4.core.authority.trust import steps
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.wire.authority import (
    BACKDATE_S,
    CLOCK_SKEW_US_MAX,
    CSR_BYTES_MAX,
    ISSUE_MAX,
    Admission,
    AttestRequest,
    ChallengeReply,
    ChallengeRequest,
    EnrolRequest,
    Entry,
    Issued,
    IssueReply,
    IssueRequest,
    TrustReply,
    TrustRequest,
    Update,
    Wanted,
    WatchRequest,
    attest_signed_part,
    authority_id,
    enrol_signed_part,
)
from x0tta6bl4.wire.errors import BadInput, Conflict, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.mesh_address import mesh_host
from x0tta6bl4.wire.token import token_digest

_POINT_BYTES: Final = 65


def backdate_s(ttl_s: int) -> int:
    """How far notBefore lies in the past: 35 s, a quarter of the lifetime where that is less."""
    return min(BACKDATE_S, ttl_s // 4)


# ------------------------------------------------------------------ before a node has an SVID
def trust(desk: Desk, caller: Caller, request: TrustRequest) -> TrustReply:
    """Anyone may walk the chain of bundles."""
    first, walked = steps(desk.state.bundles.values(), request.held)
    return TrustReply(first=first, steps=walked, unix_us=desk.unix_us)


def challenge(desk: Desk, caller: Caller, request: ChallengeRequest) -> ChallengeReply:
    """A nonce; the edge keeps it with the connection."""
    compare_clocks(desk, request.unix_us)
    return ChallengeReply(nonce=desk.crypto.random(32), unix_us=desk.unix_us)


def enrol(desk: Desk, caller: Caller, request: EnrolRequest) -> Admission:
    """Spend a token: register the long-lived key and issue the node's first SVID.

    Raises:
        Refused: X0-AUT-040 token, X0-AUT-041 proof, X0-AUT-042 banned, X0-AUT-010 clock.
        Conflict: X0-AUT-043 the name is taken and the token is not for it; X0-AUT-028 its mesh
            address is another node's.
        BadInput: key or CSR malformed.
    """
    compare_clocks(desk, request.unix_us)
    name = desk.a_node_name(request.node)
    token = desk.state.tokens.get(request.token.hex())
    if token is None or not hmac.compare_digest(
        token.digest, token_digest(request.token, request.secret)
    ):
        raise Refused(
            "X0-AUT-040", "the enrolment token is unknown", "make a new one with `x0 token create`"
        )
    if token.used_unix_s:
        raise Refused(
            "X0-AUT-040",
            "the enrolment token was used before",
            "tokens are good for one enrolment: make a new one with `x0 token create`",
        )
    if desk.unix_s >= token.expires_unix_s:
        raise Refused(
            "X0-AUT-040", "the enrolment token has expired", "make a new one with `x0 token create`"
        )
    if token.node and token.node != name:
        raise Refused(
            "X0-AUT-040",
            f"the enrolment token is for another node than {name!r}",
            f"use it on {token.node!r}, or make one for this node",
        )
    _refuse_denied(may_be_node(desk, name))
    known = desk.state.nodes.get(name)
    if known is not None and known.point != request.key and token.node != name:
        raise Conflict(
            "X0-AUT-043",
            f"a node called {name!r} is enrolled already",
            f"choose another name; to replace it: `x0 token create --node {name}`",
        )
    holder = desk.state.hosts.get(mesh_host(name), name)
    if holder != name:
        raise Conflict(
            "X0-AUT-028",
            f"{name!r} has the same mesh address as node {holder!r}",
            "choose another name: addresses are made from names, and two may meet",
        )
    if len(request.key) != _POINT_BYTES or not desk.crypto.verify(
        request.key, enrol_signed_part(request), request.proof
    ):
        raise Refused("X0-AUT-041", "the node has not proven that it holds its long-lived key")
    now = desk.unix_s
    draining = known.draining if known is not None else False
    desk.put(NodeRow(name, request.key, now, now, draining))
    desk.put(
        TokenRow(
            token.id,
            token.digest,
            token.node,
            token.created_unix_s,
            token.expires_unix_s,
            now,
            name,
        )
    )
    return _admit(desk, name, request.csr)


def attest(desk: Desk, caller: Caller, request: AttestRequest) -> Admission:
    """A node comes back by possession of its long-lived key, until it is evicted.

    Raises:
        Refused: X0-AUT-044 unknown node, X0-AUT-042 banned, X0-AUT-041 proof, X0-AUT-010 clock.
    """
    compare_clocks(desk, request.unix_us)
    name = desk.a_node_name(request.node)
    _refuse_denied(may_be_node(desk, name))
    node = desk.state.nodes.get(name)
    if node is None:
        raise Refused(
            "X0-AUT-044",
            f"no node called {name!r} is enrolled",
            "enrol it with a token from `x0 token create`",
        )
    if not caller.nonce:
        raise Refused(
            "X0-AUT-041",
            "no challenge was asked for on this connection",
            "ask for one, answer it once and within 30 s",
        )
    if not desk.crypto.verify(node.point, attest_signed_part(caller.nonce, request), request.proof):
        raise Refused(
            "X0-AUT-041",
            f"this is not the key with which {name!r} was enrolled",
            "another machine has the name; enrol with a token for it to replace it",
        )
    desk.put(NodeRow(node.name, node.point, node.enrolled_unix_s, desk.unix_s, node.draining))
    return _admit(desk, name, request.csr)


def _admit(desk: Desk, name: NodeName, csr: bytes) -> Admission:
    id = desk.node_id(name)
    issued = _issue(desk, csr, id, desk.config.node_ttl_s, "", name)
    return Admission(
        id=id,
        chain=issued.chain,
        not_after_unix_s=issued.not_after_unix_s,
        bundle=desk.state.newest_bundle().body,
        unix_us=desk.unix_us,
    )


# ------------------------------------------------------------------ a node with an SVID
def issue(desk: Desk, caller: Caller, request: IssueRequest) -> IssueReply:
    """Up to ISSUE_MAX SVIDs for one node; each is granted or refused by itself.

    Raises:
        Refused: the node may not ask at all.
        BadInput: too many at once.
    """
    compare_clocks(desk, request.unix_us)
    name = the_node(desk, caller)
    if len(request.wanted) > ISSUE_MAX:
        raise BadInput(
            "X0-AUT-045", f"{len(request.wanted)} SVIDs asked for at once", f"at most {ISSUE_MAX}"
        )
    return IssueReply(
        issued=tuple(_answer(desk, name, wanted) for wanted in request.wanted), unix_us=desk.unix_us
    )


def _answer(desk: Desk, node: NodeName, wanted: Wanted) -> Issued:
    if not wanted.entry:
        return _try(desk, wanted, desk.node_id(node), desk.config.node_ttl_s, node)
    entry = desk.state.entries.get(wanted.entry)
    verdict = may_have(desk, node, entry)
    if type(verdict) is Denied or entry is None:
        return Issued(entry=wanted.entry, refused=getattr(verdict, "reason", "no such entry"))
    return _try(desk, wanted, SpiffeId(entry.id), entry.ttl_s, node)


def _try(desk: Desk, wanted: Wanted, id: SpiffeId, ttl_s: int, node: NodeName) -> Issued:
    try:
        return _issue(desk, wanted.csr, id, ttl_s, wanted.entry, node)
    except X0Error as error:
        return Issued(entry=wanted.entry, id=id, refused=error.what)


def watch(desk: Desk, caller: Caller, request: WatchRequest) -> Update:
    """The full set for the calling node; changes follow as facts.

    Raises:
        Refused: the node may not watch; its clock is off.
    """
    compare_clocks(desk, request.unix_us)
    return full_update(desk, the_node(desk, caller))


def full_update(desk: Desk, name: str) -> Update:
    """Everything that a node is told, as of now."""
    state = desk.state
    node = state.nodes[name]
    entries = state.by_node.get(name, {})
    return Update(
        unix_us=desk.unix_us,
        full=True,
        entries=tuple(entries[key] for key in sorted(entries)),
        records=tuple(data for set in sorted(state.sets) for data in state.sets[set].records),
        renew_issued_before_unix_s=state.the_domain().renew_before_unix_s,
        draining=node.draining,
    )


def own_svid(desk: Desk, caller: Caller, request: OwnSvid) -> Issued:
    """The authority's own SVID, for its TLS."""
    id = authority_id(desk.domain, desk.config.name)
    return _issue(desk, request.csr, id, desk.config.node_ttl_s, "", None)


# ------------------------------------------------------------------ the rules
def may_be_node(desk: Desk, name: NodeName) -> Verdict:
    """Whether this node may have an SVID: not evicted, not banned."""
    node = desk.state.nodes.get(name)
    if node is not None and node.evicted_unix_s:
        return Denied("node was evicted")
    return not_banned(desk, desk.node_id(name))


def not_banned(desk: Desk, id: SpiffeId) -> Verdict:
    """Whether no operator has banned this subject."""
    return Denied("subject is banned") if id in desk.state.bans else Allowed(id)


def may_have(desk: Desk, node: NodeName, entry: Entry | None) -> Verdict:
    """Whether the node may have the SVID of an entry: only the entry's parent may."""
    if entry is None:
        return Denied("no such entry")
    if entry.node != node:
        return Denied("entry of another node")
    return not_banned(desk, SpiffeId(entry.id))


def may_talk(desk: Desk, caller: Caller) -> Verdict:
    """Whether the node with this judged SVID may use the API: it is neither banned nor revoked."""
    if caller.node is None:
        return Denied("no node SVID was presented")
    if caller.node not in desk.state.nodes:
        return Denied("node is not enrolled")
    verdict = may_be_node(desk, caller.node)
    floor = desk.state.floor(desk.node_id(caller.node))
    if type(verdict) is Allowed and caller.not_before_unix_s < floor:
        return Denied("SVID is revoked")
    return verdict


def compare_clocks(desk: Desk, peer_unix_us: int) -> None:
    """Refuse a peer whose clock is more than 30 s off.

    Raises:
        Refused: X0-AUT-010.
    """
    ahead_us = peer_unix_us - desk.unix_us
    if abs(ahead_us) > CLOCK_SKEW_US_MAX:
        raise Refused(
            "X0-AUT-010",
            f"this clock is {ahead_us / 1e6:+.0f} s off the authority's",
            "set the clock (NTP); at most 30 s are tolerated",
        )


def the_node(desk: Desk, caller: Caller) -> NodeName:
    """The node that asks.

    Raises:
        Refused: X0-AUT-042 it may not.
    """
    _refuse_denied(may_talk(desk, caller))
    assert caller.node is not None
    return caller.node


def _refuse_denied(verdict: Verdict) -> None:
    if type(verdict) is Denied:
        raise Refused(
            "X0-AUT-042",
            f"not allowed: {verdict.reason}",
            "`x0 node show` and `x0 authority revocations` on the authority say why",
        )


def _issue(
    desk: Desk, csr: bytes, id: SpiffeId, ttl_s: int, entry: str, via: NodeName | None
) -> Issued:
    if len(csr) > CSR_BYTES_MAX:
        raise BadInput("X0-AUT-046", "the CSR is too large", f"at most {CSR_BYTES_MAX} bytes")
    now, state = desk.unix_s, desk.state
    ca = state.active()
    floors = [now - backdate_s(ttl_s), state.the_domain().renew_before_unix_s]
    floors.append(state.floor(id))
    if via is not None:
        floors.append(state.floor(desk.node_id(via)))
    start = max(floors)
    end = min(now - backdate_s(ttl_s) + ttl_s, ca.not_after_unix_s)
    if end <= now:
        raise Unavailable("X0-AUT-047", "the CA has expired", "`x0 authority rotate-ca next`")
    leaf = desk.crypto.issue(ca, csr, id, start, end, via if entry else None)
    if via is not None:  # Its own SVID is not kept: it has to start with a full disk, too.
        desk.put(IssuedRow(leaf.serial, id, via, entry, start, end))
    return Issued(entry=entry, id=id, chain=leaf.chain, not_after_unix_s=end)
