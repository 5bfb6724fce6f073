"""The life of CAs with their record and JWT keys, and the publication of signed sets.

    (none) --1/2 of the active one's life--> prepared --5/6--> active
           --successor active--> retired --expired--> (none)

A prepared CA and its keys stand in the bundle before anything is signed with them, so who follows
the bundle knows them in time (SP-126); a retired one stays until it has expired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from x0tta6bl4.core.authority.desk import AuthorityConfig, Desk
from x0tta6bl4.core.authority.rows import (
    ACTIVE,
    PREPARED,
    RETIRED,
    BundleRow,
    Caller,
    CaRow,
    Crypto,
    DomainRow,
    Published,
    Put,
    Row,
    SetRow,
    Withdrawn,
)
from x0tta6bl4.core.authority.state import State
from x0tta6bl4.core.authority.trust import sign_set, signed_body
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadInput, Conflict
from x0tta6bl4.wire.ids import TrustDomain
from x0tta6bl4.wire.records import (
    SETS,
    Bundle,
    Federated,
    Heartbeat,
    JwtKey,
    RecordKey,
    encode_body,
)

BUNDLE: Final = "bundle"
HEARTBEAT: Final = "heartbeat"
FEDERATED: Final = "federated"
CRLS: Final = "crls"
CRL_S: Final = 86_400
"""From thisUpdate to nextUpdate; the driver has them made anew much more often."""
AHEAD_S_MAX: Final = 30
"""Generations may run ahead of the clock by this (nodes refuse 60 s); then changes coalesce."""
_BUNDLES_MAX: Final = 256
_HEARTBEAT_TTL_S: Final = 3600


# ------------------------------------------------------------------ sets
def publishable_unix_s(state: State, name: str) -> int:
    """When the next publication of a set is allowed."""
    old = state.sets.get(name)
    return old.generation + 1 - AHEAD_S_MAX if old is not None else 0


def publish(desk: Desk, name: str) -> None:
    """Sign a set anew and tell it."""
    state, ca, old = desk.state, desk.state.active(), desk.state.sets.get(name)
    floor_s = state.the_domain().floor_unix_us // 1_000_000
    generation = max(old.generation if old else 0, floor_s if name == HEARTBEAT else 0) + 1
    generation = max(generation, desk.unix_s)
    sequence = generation if name == HEARTBEAT else (old.sequence + 1 if old else 1)
    ttl_s = _HEARTBEAT_TTL_S if name == HEARTBEAT else desk.config.set_ttl_s
    body = _body(desk, name, sequence)
    records = sign_set(
        name,
        sequence,
        generation,
        desk.unix_s + ttl_s,
        body,
        ca.record_key,
        lambda data: desk.crypto.sign(ca, data),
        old.records if old else (),
    )
    row = SetRow(name, sequence, generation, desk.unix_s + ttl_s, records)
    if name == HEARTBEAT:  # Good without being on the disk where there is but one authority: its
        state.sets[HEARTBEAT] = row  # sequence is the clock's.  It is written for the others.
        desk.changes.append(Put(row))
    else:
        desk.put(row)
    if name == BUNDLE:
        keys = tuple(c.record_key for c in state.cas.values())
        desk.put(
            BundleRow(sequence, hashlib.sha256(body).digest(), body, ca.record_key, keys, records)
        )
        for extra in sorted(state.bundles.values(), key=lambda b: b.sequence)[:-_BUNDLES_MAX]:
            desk.drop("BundleRow", str(extra.sequence))
    desk.tell(Published(name, records))


def stale(desk: Desk) -> set[str]:
    """Sets that were never signed, or are past half of their time."""
    half_s = desk.config.set_ttl_s // 2
    rows = desk.state.sets
    return {
        name
        for name in SETS
        if name != HEARTBEAT
        and (name not in rows or rows[name].expires_unix_s - half_s <= desk.unix_s)
    }


def unsigned(desk: Desk, names: Iterable[str]) -> set[str]:
    """Those of these sets that say something else than what was signed of them.

    An authority that was killed may have changed more than it was allowed to publish just then.
    """
    rows = desk.state.sets
    return {
        name
        for name in names
        if name in rows
        and _body(desk, name, rows[name].sequence) != signed_body(rows[name].records)
    }


def _body(desk: Desk, name: str, sequence: int) -> bytes:
    state = desk.state
    if name == BUNDLE:
        return encode_body(bundle_of(state, sequence))
    if name == HEARTBEAT:
        revocations = state.sets.get("revocations")
        return encode_body(Heartbeat(desk.unix_us, revocations.sequence if revocations else 0))
    if name == FEDERATED:
        held = (state.federations[key] for key in sorted(state.federations))
        return encode_body(
            tuple(Federated(f.trust_domain, f.bundle, f.sequence) for f in held if f.bundle)
        )
    if name == CRLS:
        return encode_body(state.crls)
    tables: dict[str, dict[str, Any]] = {
        "revocations": state.revocations,
        "names": state.names,
        "policy": state.rules,
    }
    table = tables[name]
    return encode_body(tuple(table[key] for key in sorted(table)))


def bundle_of(state: State, sequence: int) -> Bundle:
    """The bundle that the CAs of now make."""
    order = (ACTIVE, PREPARED, RETIRED)
    cas = sorted(state.cas.values(), key=lambda ca: (order.index(ca.state), ca.id))
    return Bundle(
        state.the_domain().trust_domain,
        sequence,
        tuple(ca.certificate for ca in cas),
        tuple(RecordKey(ca.record_key, ca.record_point) for ca in cas),
        jwt_keys=tuple(
            JwtKey(ca.jwt_key, "ES256", ca.jwt_public, ca.not_after_unix_s)
            for ca in cas
            if ca.jwt_key
        ),
    )


# ------------------------------------------------------------------ CAs
def genesis(
    trust_domain: TrustDomain, authority: str, unix_us: int, crypto: Crypto, config: AuthorityConfig
) -> tuple[Row, ...]:
    """Rows of a new trust domain: itself, its first CA, its first bundle."""
    unix_s = unix_us // 1_000_000
    domain = DomainRow(trust_domain, authority, unix_s, floor_unix_us=unix_us)
    desk = Desk(State((domain,)), unix_us, crypto, config)
    _prepare(desk, ACTIVE)
    publish(desk, BUNDLE)
    return (
        domain,
        *desk.state.cas.values(),
        *desk.state.sets.values(),
        *desk.state.bundles.values(),
    )


def turn(desk: Desk) -> None:
    """Move CAs on as time passes."""
    state, now = desk.state, desk.unix_s
    active, prepared = state.active(), state.prepared()
    life = active.not_after_unix_s - active.not_before_unix_s
    if prepared is None:
        if now >= active.not_before_unix_s + life // 2:
            _prepare(desk, PREPARED)
    elif prepared.record_key not in state.newest_bundle().keys:
        desk.dirty.add(BUNDLE)
    elif now >= active.not_after_unix_s or (
        now >= active.not_before_unix_s + life * 5 // 6
        and now >= prepared.prepared_unix_s + desk.config.ca_advance_s
    ):
        _activate(desk, active, prepared)
    for ca in list(state.cas.values()):
        if not ca.jwt_key:  # Made by a release that knew no JWT-SVIDs.
            desk.put(_with_jwt_key(desk, ca))
            desk.dirty.add(BUNDLE)
        if ca.state == RETIRED and ca.not_after_unix_s <= now:
            _retire(desk, ca)


def rotate(desk: Desk, caller: Caller, request: words.BundleRotate) -> words.BundleInfo:
    """Move CAs on by an operator's hand."""
    state = desk.state
    active, prepared = state.active(), state.prepared()
    retired = [ca for ca in state.cas.values() if ca.state == RETIRED]
    step = request.step
    if step == "next":
        step = (
            "prepare"
            if prepared is None and not retired
            else ("activate" if prepared is not None else "retire")
        )
    if step == "prepare":
        if prepared is not None:
            raise Conflict("X0-AUT-070", "a CA is prepared already", "activate it")
        _prepare(desk, PREPARED)
    elif step == "activate":
        if prepared is None:
            raise Conflict("X0-AUT-071", "no CA is prepared", "prepare one")
        if prepared.record_key not in state.newest_bundle().keys:
            raise Conflict(
                "X0-AUT-072", "the prepared CA is not in the bundle yet", "try again in a second"
            )
        wait = prepared.prepared_unix_s + desk.config.ca_advance_s - desk.unix_s
        if wait > 0 and not request.force:
            raise Conflict(
                "X0-AUT-072",
                "nodes may not have learnt the prepared CA yet",
                f"wait {wait} s, or force it",
            )
        _activate(desk, active, prepared)
    elif step == "retire":
        if not retired:
            raise Conflict("X0-AUT-073", "no CA waits to be retired", "activate a new one first")
        wait = active.not_before_unix_s + words.BACKDATE_S + words.TTL_S_MAX - desk.unix_s
        if wait > 0 and not request.force:
            raise Conflict(
                "X0-AUT-074",
                "SVIDs of the old CA may still live",
                f"wait {wait} s, or force it: their circuits end at once",
            )
        for ca in retired:
            _retire(desk, ca)
    else:
        raise BadInput(
            "X0-AUT-075", f"{step[:40]!r} is no step", "prepare, activate, retire or next"
        )
    return show(desk, caller, words.Nothing())


def show(desk: Desk, caller: Caller, request: words.Nothing) -> words.BundleInfo:
    """The bundle of now (as last published) and the life of its CAs."""
    row = desk.state.newest_bundle()
    cas = tuple(
        words.CaInfo(
            id=ca.id,
            state=ca.state,
            not_before_unix_s=ca.not_before_unix_s,
            not_after_unix_s=ca.not_after_unix_s,
            sha256=hashlib.sha256(ca.certificate).hexdigest(),
            record_key=ca.record_key,
        )
        for ca in desk.state.cas.values()
    )
    return words.BundleInfo(
        bundle=bundle_of(desk.state, row.sequence), sha256=row.digest.hex(), cas=cas
    )


def withdrawn(desk: Desk, caller: Caller, request: Withdrawn) -> words.Nothing:
    """Make the revocation list of each CA.

    Who issued a certificate is not kept, and serial numbers are drawn from 159 bits: every list
    has all of them.
    """
    now, out = desk.unix_s, desk.state.sets.get(CRLS)
    number = max(desk.state.crl_number, out.generation if out else 0) + 1
    number = desk.state.crl_number = max(number, now)
    desk.state.crls = tuple(
        desk.crypto.crl(ca, request.serials, number, now, now + CRL_S)
        for ca in sorted(desk.state.cas.values(), key=lambda ca: ca.id)
    )
    desk.dirty.add(CRLS)
    return words.Nothing()


def crl_show(desk: Desk, caller: Caller, request: words.Nothing) -> words.Crls:
    """The revocation lists of now."""
    return words.Crls(lists=desk.state.crls)


def _prepare(desk: Desk, state: str) -> None:
    now = desk.unix_s
    start, end = now - words.BACKDATE_S, now - words.BACKDATE_S + desk.config.ca_ttl_s
    made = desk.crypto.new_ca(desk.domain, start, end)
    row = CaRow(
        id=hashlib.sha256(made.certificate).hexdigest()[:16],
        state=state,
        certificate=made.certificate,
        private=made.private,
        record_key="r-" + hashlib.sha256(made.record_point).hexdigest()[:16],
        record_point=made.record_point,
        record_private=made.record_private,
        not_before_unix_s=start,
        not_after_unix_s=end,
        prepared_unix_s=now,
    )
    desk.put(_with_jwt_key(desk, row))
    desk.dirty.add(BUNDLE)


def _with_jwt_key(desk: Desk, ca: CaRow) -> CaRow:
    made = desk.crypto.new_jwt_key()
    return msgspec.structs.replace(
        ca,
        jwt_key="j-" + hashlib.sha256(made.public).hexdigest()[:16],
        jwt_public=made.public,
        jwt_private=made.private,
    )


def _activate(desk: Desk, active: CaRow, prepared: CaRow) -> None:
    for ca, state in ((active, RETIRED), (prepared, ACTIVE)):
        desk.put(msgspec.structs.replace(ca, state=state))
    desk.dirty.add(BUNDLE)


def _retire(desk: Desk, ca: CaRow) -> None:
    desk.drop("CaRow", ca.id)
    desk.dirty.add(BUNDLE)
