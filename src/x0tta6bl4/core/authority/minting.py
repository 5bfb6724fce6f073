"""JWT-SVIDs: the authority signs, nodes ask for their workloads, nobody else holds a key.

The key lives and dies with the CA (`life`): it stands in the bundle before its first token and
until its last one has expired, for no token outlives its CA.  A token can't be taken back: a ban
or a revocation ends it within its lifetime of minutes.
"""

from __future__ import annotations

from x0tta6bl4.core.authority.desk import Desk
from x0tta6bl4.core.authority.issuing import compare_clocks, may_have, the_node
from x0tta6bl4.core.authority.rows import Caller, CaRow
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.wire.authority import (
    AUDIENCE_BYTES_MAX,
    AUDIENCES_MAX,
    JWT_TTL_S,
    Minted,
    MintRequest,
)
from x0tta6bl4.wire.errors import BadInput, Unavailable
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.records import decode_bundle


def mint(desk: Desk, caller: Caller, request: MintRequest) -> Minted:
    """One token for one entry of the calling node.

    Raises:
        Refused: the node may not ask at all; its clock is off.
        BadInput: X0-AUT-048 no audience, too many, or one too long.
        Unavailable: X0-AUT-049 no key that is published, X0-AUT-047 the CA has expired.
    """
    compare_clocks(desk, request.unix_us)
    name = the_node(desk, caller)
    _check(request.audience)
    entry = desk.state.entries.get(request.entry)
    verdict = may_have(desk, name, entry)
    if entry is None or type(verdict) is Denied:
        reason = verdict.reason if type(verdict) is Denied else "no such entry"
        return Minted(unix_us=desk.unix_us, refused=reason)
    ca, now = _signing(desk), desk.unix_s
    end = min(now + min(JWT_TTL_S, entry.ttl_s), ca.not_after_unix_s)
    if end <= now:
        raise Unavailable("X0-AUT-047", "the CA has expired", "`x0 authority rotate-ca next`")
    id = SpiffeId(entry.id)
    return Minted(
        unix_us=desk.unix_us,
        token=desk.crypto.mint(ca, id, request.audience, now, end),
        id=id,
        issued_unix_s=now,
        expires_unix_s=end,
    )


def _signing(desk: Desk) -> CaRow:
    ca = desk.state.active()
    published = decode_bundle(desk.state.newest_bundle().body)
    if not any(key.kid == ca.jwt_key for key in published.jwt_keys):
        raise Unavailable(
            "X0-AUT-049", "the key for JWT-SVIDs is not in the bundle yet", "try again in a second"
        )
    return ca


def _check(audience: tuple[str, ...]) -> None:
    if not 1 <= len(audience) <= AUDIENCES_MAX or not all(
        0 < len(one.encode()) <= AUDIENCE_BYTES_MAX for one in audience
    ):
        raise BadInput(
            "X0-AUT-048",
            f"a token for {len(audience)} audiences, or one that is empty or too long",
            f"give 1 to {AUDIENCES_MAX}, of at most {AUDIENCE_BYTES_MAX} bytes",
        )
