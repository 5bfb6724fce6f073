"""Foreign trust domains: where their bundles come from, and which one is held.

What is held of a domain is one bundle, replaced as a whole by a newer one, never merged with that
of another domain (SP-128); its URL, profile and name are given by an operator, never inferred
(SP-132).  A poll that fails changes nothing and is repeated when the next one is due (SP-139).

Source: SPIFFE_Federation.md sections 4 to 6 (SP-127 to SP-140).
"""

from __future__ import annotations

import re
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.authority.desk import Desk
from x0tta6bl4.core.authority.operating import found, page_of
from x0tta6bl4.core.authority.rows import Caller, PollWanted
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput, Conflict, X0Error
from x0tta6bl4.wire.ids import TrustDomain, domain_of, path_of, spiffe_id, trust_domain

SET: Final = "federated"
WEB: Final = "https_web"
SPIFFE: Final = "https_spiffe"
POLL_S: Final = 300
"""Between two polls where the bundle gives no hint (SP-127)."""
POLL_S_MIN: Final = 10
POLL_S_MAX: Final = 86_400
URL_CHARS_MAX: Final = 2_048
FAILED_CHARS_MAX: Final = 200
_URL: Final = re.compile(
    r"https://(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-\"$-~]*)?\Z",
    re.IGNORECASE,
)


@final
class Polled(msgspec.Struct, frozen=True, gc=False):
    """Request of the authority's own process: how a poll ended."""

    trust_domain: str
    document: bytes = b""
    failed: str = ""


def endpoint_of(url: str) -> tuple[str, int, str]:
    """Host, port and request target of a bundle endpoint.

    Raises:
        BadInput: X0-FED-001 not https, with userinfo or a fragment, or malformed (SP-133).
    """
    match = _URL.match(url) if len(url) <= URL_CHARS_MAX else None
    port = int(match["port"] or 443) if match else 0
    if match is None or not 0 < port < 65_536:
        raise BadInput(
            "X0-FED-001",
            f"{url[:80]!r} is no URL of a bundle endpoint",
            "write https://HOST[:PORT]/PATH, without user or fragment",
        )
    target = match["target"] or "/"
    return match["host"].strip("[]"), port, target if target[0] == "/" else "/" + target


# ------------------------------------------------------------------ operators
def federation_list(desk: Desk, caller: Caller, page: words.Page) -> words.Federations:
    """A page of foreign trust domains, without their bundles."""
    rows, more = page_of(desk.state.federations, page, lambda row: row.url)
    bare = tuple(msgspec.structs.replace(row, bundle=b"") for row in rows)
    return words.Federations(federations=bare, more=more)


def federation_show(desk: Desk, caller: Caller, request: words.Key) -> words.Federation:
    """One foreign trust domain, with the bundle held of it."""
    row: words.Federation = found(desk.state.federations, request.key, "federation")
    return row


def federation_create(desk: Desk, caller: Caller, wanted: words.Federation) -> words.Federation:
    """Begin to hold the bundle of a foreign trust domain."""
    if wanted.trust_domain in desk.state.federations:
        raise Conflict(
            "X0-AUT-050", f"federation {wanted.trust_domain!r} exists", "update or delete it"
        )
    return _put(desk, wanted, None)


def federation_update(desk: Desk, caller: Caller, wanted: words.Federation) -> words.Federation:
    """Change where a bundle comes from; the one held stays unless another is given."""
    old = found(desk.state.federations, wanted.trust_domain, "federation")
    return _put(desk, wanted, old)


def federation_delete(desk: Desk, caller: Caller, request: words.Key) -> words.Federation:
    """Forget a foreign trust domain: nobody is given its bundle any more."""
    old: words.Federation = found(desk.state.federations, request.key, "federation")
    desk.drop("Federation", old.trust_domain)
    desk.dirty.add(SET)
    desk.tell(PollWanted())
    return old


def federation_refresh(desk: Desk, caller: Caller, request: words.Key) -> words.Federation:
    """Poll now."""
    old: words.Federation = found(desk.state.federations, request.key, "federation")
    row = msgspec.structs.replace(old, next_unix_s=desk.unix_s)
    desk.put(row)
    desk.tell(PollWanted())
    return row


def _put(desk: Desk, wanted: words.Federation, old: words.Federation | None) -> words.Federation:
    domain = trust_domain(wanted.trust_domain)
    if domain == desk.domain or domain != wanted.trust_domain:
        raise BadInput(
            "X0-FED-002",
            f"{wanted.trust_domain[:80]!r} is no foreign trust domain",
            "write its name in lower case, without spiffe://",
        )
    endpoint_of(wanted.url)
    bundle = wanted.bundle or (old.bundle if old is not None else b"")
    sequence = desk.crypto.read_bundle(bundle, domain).sequence if bundle else 0
    _check_profile(desk, wanted, domain, bool(bundle))
    row = words.Federation(
        trust_domain=domain,
        url=wanted.url,
        profile=wanted.profile,
        endpoint_id=wanted.endpoint_id,
        bundle=bundle,
        sequence=sequence,
        fetched_unix_s=old.fetched_unix_s if old is not None else 0,
        next_unix_s=desk.unix_s,
    )
    desk.put(row)
    desk.dirty.add(SET)
    desk.tell(PollWanted())
    return row


def _check_profile(
    desk: Desk, wanted: words.Federation, domain: TrustDomain, has_bundle: bool
) -> None:
    if wanted.profile == WEB and not wanted.endpoint_id:
        return
    if wanted.profile != SPIFFE or not wanted.endpoint_id:
        raise BadInput(
            "X0-FED-003",
            f"profile {wanted.profile[:20]!r} with endpoint ID {wanted.endpoint_id[:80]!r}",
            "https_web has none, https_spiffe needs one",
        )
    id = spiffe_id(wanted.endpoint_id)
    if id != wanted.endpoint_id or not path_of(id):
        raise BadInput("X0-FED-003", f"{id!r} is no ID of an endpoint", "it has a path")
    of = domain_of(id)  # SP-137: whose bundle the endpoint is judged by.
    known = of == desk.domain or (has_bundle if of == domain else of in desk.state.federations)
    if not known:
        raise BadInput(
            "X0-FED-004",
            f"nothing is known of {of}, by which the endpoint is to be judged",
            "give its bundle to begin with" if of == domain else f"federate with {of} first",
        )


# ------------------------------------------------------------------ polls
def due(federations: Any, unix_s: int) -> tuple[words.Federation, ...]:
    """Those whose poll is due, the longest overdue first."""
    rows = [row for row in federations if row.next_unix_s <= unix_s]
    return tuple(sorted(rows, key=lambda row: (row.next_unix_s, row.trust_domain)))


def polled(desk: Desk, caller: Caller, request: Polled) -> words.Federation | None:
    """Take in how a poll ended.

    Returns:
        The row as it is now; None if an operator has deleted it meanwhile.
    """
    old = desk.state.federations.get(request.trust_domain)
    if old is None:
        return None
    row, failed = old, request.failed
    if not failed:
        try:
            row = _newer(desk, old, request.document)
        except X0Error as error:
            failed = str(error)
    if row.bundle != old.bundle:
        desk.dirty.add(SET)
    row = msgspec.structs.replace(
        row,
        failed="".join(c if c.isprintable() else " " for c in failed)[:FAILED_CHARS_MAX],
        fetched_unix_s=old.fetched_unix_s if failed else desk.unix_s,
        next_unix_s=desk.unix_s + _interval_s(desk, row),
    )
    desk.put(row)
    return row


def _newer(desk: Desk, old: words.Federation, document: bytes) -> words.Federation:
    read = desk.crypto.read_bundle(document, TrustDomain(old.trust_domain))
    if old.bundle and read.sequence < old.sequence:  # SP-129
        raise Conflict(
            "X0-FED-005",
            f"the endpoint has an older bundle (sequence {read.sequence} < {old.sequence})",
            "if that is meant, give the bundle by hand: `x0 federation update --bundle`",
        )
    return msgspec.structs.replace(old, bundle=document, sequence=read.sequence)


def _interval_s(desk: Desk, row: words.Federation) -> int:
    if not row.bundle:
        return POLL_S
    hint = desk.crypto.read_bundle(row.bundle, TrustDomain(row.trust_domain)).refresh_hint_s
    return min(max(hint or POLL_S, POLL_S_MIN), POLL_S_MAX)
