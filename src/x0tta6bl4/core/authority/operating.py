"""What operators may do: entries, names, tokens, nodes, policy, revocations.

Every handler checks everything before it changes anything, and says what to do instead.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from typing import Any, Final

from x0tta6bl4.core.authority.desk import DAY_S, Desk
from x0tta6bl4.core.authority.rows import (
    Caller,
    EntriesChanged,
    NodeCut,
    NodeRow,
    NodeTold,
    RenewWanted,
    TokenRow,
)
from x0tta6bl4.core.authority.state import ENTRIES_PER_NODE_MAX
from x0tta6bl4.core.identity.selectors import parse_all
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput, Conflict, NotFound, Refused
from x0tta6bl4.wire.ids import SpiffeId, node_of, spiffe_id, trust_domain
from x0tta6bl4.wire.records import Name, Revocation, Rule
from x0tta6bl4.wire.token import Token, token_digest, write_token

_KEY: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
_REASON_CHARS_MAX: Final = 200
_HINT_BYTES_MAX: Final = 1024
_PATTERNS_MAX: Final = 64
REVOKED_S_MIN: Final = 60
"""A revocation stays at least so long: to be seen, even where nothing was issued."""


# ------------------------------------------------------------------ entries
def entry_list(desk: Desk, caller: Caller, page: words.Page) -> words.Entries:
    """A page of entries, by key."""
    table = desk.state.by_node.get(page.node, {}) if page.node else desk.state.entries
    entries, more = page_of(table, page, lambda e: e.id)
    return words.Entries(entries=entries, more=more)


def entry_show(desk: Desk, caller: Caller, request: words.Key) -> words.Entry:
    """One entry."""
    row: words.Entry = found(desk.state.entries, request.key, "entry")
    return row


def entry_create(desk: Desk, caller: Caller, entry: words.Entry) -> words.Entry:
    """Register who on which node may be what."""
    key = entry.key or f"e-{desk.crypto.random(8).hex()}"
    if key in desk.state.entries:
        raise Conflict("X0-AUT-050", f"entry {key!r} exists", "update it, or choose another key")
    if len(desk.state.by_node.get(entry.node, {})) >= ENTRIES_PER_NODE_MAX:
        raise Conflict("X0-AUT-051", f"node {entry.node!r} has {ENTRIES_PER_NODE_MAX} entries")
    new = _checked_entry(desk, entry, key, 1)
    desk.put(new)
    desk.tell(EntriesChanged(new.node, (new,)))
    return new


def entry_update(desk: Desk, caller: Caller, entry: words.Entry) -> words.Entry:
    """Replace an entry; `revision` 0 means: whatever is there."""
    old: words.Entry = found(desk.state.entries, entry.key, "entry")
    if entry.revision not in (0, old.revision):
        raise Conflict(
            "X0-AUT-052",
            f"entry {entry.key!r} was changed meanwhile",
            "look at it again, then repeat the change",
        )
    new = _checked_entry(desk, entry, entry.key, old.revision + 1)
    desk.put(new)
    if new.node != old.node:
        desk.tell(EntriesChanged(old.node, (), (old.key,)))
    desk.tell(EntriesChanged(new.node, (new,)))
    return new


def entry_delete(desk: Desk, caller: Caller, request: words.Key) -> words.Entry:
    """Delete an entry."""
    old: words.Entry = found(desk.state.entries, request.key, "entry")
    desk.drop("Entry", old.key)
    desk.tell(EntriesChanged(old.node, (), (old.key,)))
    return old


def _checked_entry(desk: Desk, entry: words.Entry, key: str, revision: int) -> words.Entry:
    if not _KEY.match(key):
        raise BadInput("X0-AUT-053", f"{key[:80]!r} is no key of an entry", "use [a-z0-9._-]")
    id = desk.a_workload_id(entry.id)
    node = desk.a_node_name(entry.node)
    if not 1 <= len(entry.selectors) <= words.SELECTORS_MAX:
        raise BadInput(
            "X0-AUT-054",
            f"an entry has {len(entry.selectors)} selectors",
            f"give 1 to {words.SELECTORS_MAX}, e.g. unix:uid:1000",
        )
    selectors = tuple(sorted({str(selector) for selector in parse_all(entry.selectors)}))
    ttl_s = entry.ttl_s or desk.config.svid_ttl_s
    if not words.TTL_S_MIN <= ttl_s <= words.TTL_S_MAX:
        raise BadInput(
            "X0-AUT-056",
            f"ttl_s is {ttl_s}",
            f"from {words.TTL_S_MIN} to {words.TTL_S_MAX} seconds",
        )
    if entry.address:
        _check_address(entry.address)
    elif entry.proxy_header:
        raise BadInput("X0-AUT-057", "proxy_header is set but there is no address")
    if len(entry.hint.encode()) > _HINT_BYTES_MAX:
        raise BadInput("X0-AUT-058", "hint is too long", f"at most {_HINT_BYTES_MAX} bytes")
    for other in desk.state.by_node.get(node, {}).values():
        if other.id == id and other.selectors == selectors and other.key != key:
            raise Conflict("X0-AUT-050", f"entry {other.key!r} says the same", "update that one")
    return words.Entry(
        id=id,
        node=node,
        selectors=selectors,
        ttl_s=ttl_s,
        address=entry.address,
        proxy_header=entry.proxy_header,
        hint=entry.hint,
        key=key,
        revision=revision,
        federates_with=_federates_with(desk, entry.federates_with),
    )


def _federates_with(desk: Desk, domains: tuple[str, ...]) -> tuple[str, ...]:
    if len(domains) > words.FEDERATIONS_MAX:
        raise BadInput(
            "X0-AUT-077",
            f"an entry federates with {len(domains)} trust domains",
            f"at most {words.FEDERATIONS_MAX}",
        )
    names = tuple(sorted({trust_domain(domain) for domain in domains}))
    if desk.domain in names:
        raise BadInput(
            "X0-AUT-077",
            f"{desk.domain} can't federate with itself",
            "name other trust domains",
        )
    return names


def _check_address(text: str) -> None:
    if text.startswith("unix:/"):
        if len(text) <= 5 + 107 and "\x00" not in text:
            return
    else:
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            ip = ipaddress.ip_address(bare)
            fits = ip.is_loopback and (ip.version == 6) == (bare != host)  # Plaintext stays here.
        except ValueError:
            fits = False
        if fits and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536:
            return
    raise BadInput(
        "X0-AUT-059",
        f"{text[:80]!r} is no address of a service",
        "write 127.0.0.1:PORT, [::1]:PORT or unix:/path (at most 107 bytes)",
    )


# ------------------------------------------------------------------ names
def name_list(desk: Desk, caller: Caller, page: words.Page) -> words.Names:
    """A page of service names."""
    names, more = page_of(desk.state.names, page, lambda n: n.id)
    return words.Names(names=names, more=more)


def name_show(desk: Desk, caller: Caller, request: words.Key) -> Name:
    """One service name."""
    row: Name = found(desk.state.names, request.key, "name")
    return row


def name_create(desk: Desk, caller: Caller, name: Name) -> Name:
    """Give a service name to an ID."""
    if name.name in desk.state.names:
        raise Conflict("X0-AUT-050", f"name {name.name!r} exists", "update it")
    return _put_name(desk, name)


def name_update(desk: Desk, caller: Caller, name: Name) -> Name:
    """Replace a service name."""
    found(desk.state.names, name.name, "name")
    return _put_name(desk, name)


def name_delete(desk: Desk, caller: Caller, request: words.Key) -> Name:
    """Delete a service name."""
    old: Name = found(desk.state.names, request.key, "name")
    desk.drop("Name", old.name)
    desk.dirty.add("names")
    return old


def _put_name(desk: Desk, name: Name) -> Name:
    if not _KEY.match(name.name):
        raise BadInput(
            "X0-AUT-060",
            f"{name.name[:80]!r} is no service name",
            "use [a-z0-9.-], at most 64, without .mesh at the end",
        )
    new = Name(name.name, desk.a_workload_id(name.id), _patterns(name.callers), name.proxy_header)
    desk.put(new)
    desk.dirty.add("names")
    return new


# ------------------------------------------------------------------ policy
def policy_show(desk: Desk, caller: Caller, request: words.Nothing) -> words.Policy:
    """All rules."""
    rules = desk.state.rules
    return words.Policy(
        rules=tuple(rules[id] for id in sorted(rules)),
        version=desk.state.the_domain().policy_version,
    )


def policy_apply(desk: Desk, caller: Caller, policy: words.Policy) -> words.Policy:
    """Replace all rules, if they are still those that the change was made from."""
    domain = desk.state.the_domain()
    if policy.version != domain.policy_version:
        raise Conflict(
            "X0-AUT-052",
            f"the policy is at version {domain.policy_version}, the "
            f"change was made from {policy.version}",
            "look at the plan again",
        )
    new: dict[str, Rule] = {}
    for rule in policy.rules:
        if not _KEY.match(rule.id) or rule.id in new:
            raise BadInput(
                "X0-AUT-061",
                f"{rule.id[:80]!r} is no id of a rule, or stands twice",
                "use [a-z0-9._-]",
            )
        if rule.effect not in ("allow", "deny"):
            raise BadInput(
                "X0-AUT-062", f"rule {rule.id!r} has effect {rule.effect[:80]!r}", "allow or deny"
            )
        new[rule.id] = Rule(
            rule.id, rule.effect, _patterns(rule.callers, 1), _patterns(rule.targets, 1)
        )
    for id in sorted(set(desk.state.rules) - set(new)):
        desk.drop("Rule", id)
    for id, rule in new.items():
        if desk.state.rules.get(id) != rule:
            desk.put(rule)
    desk.put(words_replace(domain, policy_version=domain.policy_version + 1))
    desk.dirty.add("policy")
    return policy_show(desk, caller, words.Nothing())


def _patterns(patterns: Iterable[str], least: int = 0) -> tuple[str, ...]:
    found = tuple(patterns)
    if not least <= len(found) <= _PATTERNS_MAX:
        raise BadInput(
            "X0-AUT-063", f"{len(found)} patterns in one list", f"{least} to {_PATTERNS_MAX}"
        )
    for pattern in found:
        id = pattern[:-2] if pattern.endswith("/*") else pattern
        if spiffe_id(id) != id:
            raise BadInput("X0-AUT-023", f"{pattern[:80]!r} is not in normal form")
    return found


# ------------------------------------------------------------------ tokens
def token_create(desk: Desk, caller: Caller, request: words.TokenCreate) -> words.TokenMade:
    """Make an enrolment token."""
    ttl_s = request.ttl_s or desk.config.token_ttl_s
    if not 1 <= ttl_s <= words.TOKEN_TTL_S_MAX:
        raise BadInput(
            "X0-AUT-064", f"a token cannot live {ttl_s} s", f"1 to {words.TOKEN_TTL_S_MAX} seconds"
        )
    if request.node:
        name = desk.a_node_name(request.node)
        node = desk.state.nodes.get(name)
        if (node is not None and node.evicted_unix_s) or desk.node_id(name) in desk.state.bans:
            raise Refused(
                "X0-AUT-042",
                f"node {name!r} is evicted or banned",
                f"`x0 node delete {name}` first, if it may come back",
            )
    authorities = request.authorities or desk.config.authorities
    if len(authorities) > 8 or any(len(a) > 260 for a in authorities):
        raise BadInput("X0-AUT-065", "too many or too long addresses", "at most 8")
    id, secret, now = desk.crypto.random(8), desk.crypto.random(32), desk.unix_s
    expires = now + ttl_s
    desk.put(TokenRow(id.hex(), token_digest(id, secret), request.node, now, expires))
    token = Token(
        desk.domain,
        authorities,
        desk.state.newest_bundle().digest,
        request.node,
        expires,
        id,
        secret,
    )
    return words.TokenMade(
        token=write_token(token), id=id.hex(), node=request.node, expires_unix_s=expires
    )


def token_list(desk: Desk, caller: Caller, page: words.Page) -> words.Tokens:
    """Tokens without their secrets."""
    table = {
        key: row for key, row in desk.state.tokens.items() if not page.node or row.node == page.node
    }
    rows, more = page_of(table, page, lambda t: t.node)
    return words.Tokens(tokens=tuple(_token_info(row) for row in rows), more=more)


def token_delete(desk: Desk, caller: Caller, request: words.Key) -> words.TokenInfo:
    """Make a token worthless."""
    old: TokenRow = found(desk.state.tokens, request.key, "token")
    desk.drop("TokenRow", old.id)
    return _token_info(old)


def purge_tokens(desk: Desk) -> None:
    """Forget tokens a day after their end."""
    for row in [t for t in desk.state.tokens.values() if t.expires_unix_s + DAY_S < desk.unix_s]:
        desk.drop("TokenRow", row.id)


def _token_info(row: TokenRow) -> words.TokenInfo:
    return words.TokenInfo(
        id=row.id,
        node=row.used_by or row.node,
        created_unix_s=row.created_unix_s,
        expires_unix_s=row.expires_unix_s,
        used_unix_s=row.used_unix_s,
    )


# ------------------------------------------------------------------ nodes
def node_list(desk: Desk, caller: Caller, page: words.Page) -> words.Nodes:
    """A page of nodes; whether one is connected is filled in by the edge."""
    rows, more = page_of(desk.state.nodes, page, lambda n: n.name)
    return words.Nodes(nodes=tuple(node_view(desk, row) for row in rows), more=more)


def node_show(desk: Desk, caller: Caller, request: words.Key) -> words.Node:
    """One node."""
    return node_view(desk, found(desk.state.nodes, request.key, "node"))


def node_evict(desk: Desk, caller: Caller, request: words.NodeEvict) -> words.Node:
    """Ban a node; revoke what was issued to it and through it; its key no longer counts."""
    old: NodeRow = found(desk.state.nodes, request.node, "node")
    reason = _reason(request.reason or "evicted")
    new = words_replace(old, evicted_unix_s=old.evicted_unix_s or desk.unix_s, reason=reason)
    desk.put(new)
    _revoke(desk, desk.node_id(old.name), reason)
    for token in [
        t for t in desk.state.tokens.values() if t.node == old.name and not t.used_unix_s
    ]:
        desk.drop("TokenRow", token.id)
    desk.tell(NodeCut(old.name, "node was evicted"))
    return node_view(desk, new)


def node_drain(desk: Desk, caller: Caller, request: words.NodeDrain) -> words.Node:
    """Ask a node to drain, or to stop draining."""
    old: NodeRow = found(desk.state.nodes, request.node, "node")
    new = words_replace(old, draining=request.on)
    desk.put(new)
    desk.tell(NodeTold(old.name, request.on))
    return node_view(desk, new)


def node_delete(desk: Desk, caller: Caller, request: words.Key) -> words.Node:
    """Forget an evicted node; its revocation stays until its last SVID has expired."""
    old: NodeRow = found(desk.state.nodes, request.key, "node")
    if not old.evicted_unix_s:
        raise Conflict(
            "X0-AUT-066", f"node {old.name!r} is not evicted", f"`x0 node evict {old.name}` first"
        )
    view = node_view(desk, old)
    id = desk.node_id(old.name)
    revocation = desk.state.revocations.get(f"{id} 0")
    if revocation is not None:
        end = revocation.until_unix_s
        raise Conflict(
            "X0-AUT-067",
            f"what node {old.name!r} was given is revoked until {end}",
            f"wait {end - desk.unix_s} s, or use another name",
        )
    desk.drop("NodeRow", old.name)
    return view


def node_view(desk: Desk, row: NodeRow) -> words.Node:
    """A node as operators see it."""
    id = desk.node_id(row.name)
    return words.Node(
        name=row.name,
        id=id,
        enrolled_unix_s=row.enrolled_unix_s,
        attested_unix_s=row.attested_unix_s,
        key_sha256=hashlib.sha256(row.point).hexdigest(),
        draining=row.draining,
        evicted_unix_s=row.evicted_unix_s,
        reason=row.reason,
        not_after_unix_s=desk.state.ends(id, row.name),
    )


# ------------------------------------------------------------------ revocations
def revoke(desk: Desk, caller: Caller, request: words.Revoke) -> Revocation:
    """Revoke what a subject has; ban it, or let it have new ones at once."""
    id = desk.a_subject(request.subject)
    reason = _reason(request.reason or "revoked")
    if request.ban:
        desk.put(words.Ban(subject=id, reason=reason, since_unix_s=desk.unix_s))
    name = node_of(id)
    if name is not None:
        desk.tell(NodeCut(name, "node was revoked"))
    return _revoke(desk, id, reason, rekey=not request.ban)


def revocation_list(desk: Desk, caller: Caller, request: words.Nothing) -> words.Revocations:
    """What is revoked, and who is banned."""
    state = desk.state
    return words.Revocations(
        revocations=tuple(state.revocations[key] for key in sorted(state.revocations)),
        bans=tuple(state.bans[key] for key in sorted(state.bans)),
    )


def unban(desk: Desk, caller: Caller, request: words.Key) -> words.Nothing:
    """Let a subject have SVIDs again; those revoked stay revoked, by their notBefore."""
    ban: words.Ban = found(desk.state.bans, request.key, "ban")
    desk.drop("Ban", ban.subject)
    key = f"{ban.subject} 0"
    total = desk.state.revocations.get(key)
    if total is not None:
        desk.drop("Revocation", key)
        _revoke(desk, SpiffeId(ban.subject), total.reason, rekey=True)
    return words.Nothing()


def expire_revocations(desk: Desk) -> None:
    """Forget revocations when everything that they revoke has expired."""
    for key, row in list(desk.state.revocations.items()):
        if row.until_unix_s <= desk.unix_s:
            desk.drop("Revocation", key)
            desk.dirty.add("revocations")


def renew_all(desk: Desk, caller: Caller, request: words.Nothing) -> words.Nothing:
    """Have every node renew every SVID now."""
    before = min(desk.state.span_all() + 1, desk.unix_s)
    desk.put(words_replace(desk.state.the_domain(), renew_before_unix_s=before))
    desk.tell(RenewWanted(before))
    return words.Nothing()


def _revoke(desk: Desk, id: SpiffeId, reason: str, rekey: bool = False) -> Revocation:
    newest_start, newest_end = desk.state.span(id, node_of(id) or "")
    until = max(newest_end, desk.unix_s + REVOKED_S_MIN)
    before = max(newest_start + 1, desk.state.floor(id)) if rekey else 0
    floor = desk.state.floor(id)
    if floor:  # The new one covers it.
        desk.drop("Revocation", f"{id} {floor}")
    revocation = Revocation(id, until, reason, before)
    desk.put(revocation)
    desk.dirty.add("revocations")
    return revocation


# ------------------------------------------------------------------ details
def words_replace(row: Any, **changes: Any) -> Any:
    """A row with some fields changed."""
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    return type(row)(**(fields | changes))


def _reason(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_REASON_CHARS_MAX]


def found(table: dict[str, Any], key: str, what: str) -> Any:
    """The row with this key.

    Raises:
        NotFound: X0-AUT-068.
    """
    row = table.get(key)
    if row is None:
        raise NotFound(
            "X0-AUT-068",
            f"there is no {what} {key[:80]!r}",
            f"`x0 {what} list` shows all" if what != "ban" else "nothing to lift",
        )
    return row


def page_of(table: dict[str, Any], page: words.Page, id: Any) -> tuple[tuple[Any, ...], bool]:
    """The rows of a page, and whether there are more after it.

    Args:
        table: rows by key.
        page: which part.
        id: gives of a row what else `match` may stand in.
    Raises:
        BadInput: X0-AUT-069.
    """
    if not 1 <= page.limit <= words.LIST_MAX:
        raise BadInput("X0-AUT-069", f"limit is {page.limit}", f"1 to {words.LIST_MAX}")
    keys = sorted(
        key
        for key in table
        if key > page.after
        and (not page.match or page.match in key or page.match in id(table[key]))
    )
    return tuple(table[key] for key in keys[: page.limit]), len(keys) > page.limit
