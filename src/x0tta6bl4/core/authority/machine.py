"""The authority: who may be issued what, what is published when, how CAs live.

A request comes in as Asked and is decided at once; the driver writes what Persist names, and only
then carries out what follows.  Several requests may share one write: the driver hands them in one
after the other, lets the machine tick, writes all changes, and says Persisted or NotPersisted
(then every change since the last Persisted is undone).

Several authorities may serve one trust domain from one store (`sharing`): what was decided while
another one changed rows is Superseded and asked again.  One of them is Leading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, final

from msgspec.structs import replace

from x0tta6bl4.core.authority import federating, issuing, life, minting, operating, sharing
from x0tta6bl4.core.authority.desk import AuthorityConfig, Desk
from x0tta6bl4.core.authority.rows import (
    Answer,
    Asked,
    Caller,
    Crypto,
    Forget,
    Leading,
    Learnt,
    NotPersisted,
    Persist,
    Persisted,
    Refusal,
    Row,
    SetRow,
    Superseded,
)
from x0tta6bl4.core.authority.state import State
from x0tta6bl4.core.machine import (
    NEVER,
    NOTHING,
    SECOND,
    ClockSet,
    Effect,
    Effects,
    Event,
    Instant,
    Tick,
    Value,
)
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import NotFound, Refused, Unavailable, X0Error
from x0tta6bl4.wire.records import SETS

CHORES_US: Final = 5 * SECOND
FLOOR_US: Final = 300 * SECOND
"""The newest wall time is written so often."""
RETRY_US: Final = SECOND
"""Pause of publications after a write that failed."""
STEP_BACK_US_MAX: Final = 30 * SECOND

_Handler = Callable[[Desk, Caller, Any], Any]


def _health(desk: Desk, caller: Caller, request: words.Nothing) -> words.Health:
    state, domain = desk.state, desk.state.the_domain()
    heartbeat = state.sets.get(life.HEARTBEAT)
    counts = {
        kind.__name__.removesuffix("Row").lower(): len(table)
        for kind, table in state.tables.items()
    }
    return words.Health(
        trust_domain=domain.trust_domain,
        id=words.authority_id(domain.trust_domain, desk.config.name),
        version="",
        wire=words.ALPN,
        unix_us=desk.unix_us,
        started_unix_us=0,
        listen=(),
        heartbeat_unix_us=heartbeat.generation * SECOND if heartbeat else 0,
        bundle_sha256=state.newest_bundle().digest.hex(),
        ca_not_after_unix_s=state.active().not_after_unix_s,
        counts={**counts, "subjects": state.subjects()},
        sequences={name: row.sequence for name, row in sorted(state.sets.items())},
    )


_NODES: Final[dict[str, _Handler]] = {
    "Trust": issuing.trust,
    "Challenge": issuing.challenge,
    "Enrol": issuing.enrol,
    "Attest": issuing.attest,
    "Issue": issuing.issue,
    "Mint": minting.mint,
    "Watch": issuing.watch,
}
_OPERATORS: Final[dict[str, _Handler]] = {
    "Health": _health,
    "EntryList": operating.entry_list,
    "EntryShow": operating.entry_show,
    "EntryCreate": operating.entry_create,
    "EntryUpdate": operating.entry_update,
    "EntryDelete": operating.entry_delete,
    "NameList": operating.name_list,
    "NameShow": operating.name_show,
    "NameCreate": operating.name_create,
    "NameUpdate": operating.name_update,
    "NameDelete": operating.name_delete,
    "TokenCreate": operating.token_create,
    "TokenList": operating.token_list,
    "TokenDelete": operating.token_delete,
    "NodeList": operating.node_list,
    "NodeShow": operating.node_show,
    "NodeEvict": operating.node_evict,
    "NodeDrain": operating.node_drain,
    "NodeDelete": operating.node_delete,
    "PolicyShow": operating.policy_show,
    "PolicyApply": operating.policy_apply,
    "Revoke": operating.revoke,
    "RevocationList": operating.revocation_list,
    "Unban": operating.unban,
    "CrlShow": life.crl_show,
    "BundleShow": life.show,
    "BundleRotate": life.rotate,
    "RenewAll": operating.renew_all,
    "FederationList": federating.federation_list,
    "FederationShow": federating.federation_show,
    "FederationCreate": federating.federation_create,
    "FederationUpdate": federating.federation_update,
    "FederationDelete": federating.federation_delete,
    "FederationRefresh": federating.federation_refresh,
}
_OWN: Final[dict[str, _Handler]] = {
    "OwnSvid": issuing.own_svid,
    "Polled": federating.polled,
    "Withdrawn": life.withdrawn,
}


@final
class _Plans(Value, frozen=True):
    """What a decision moves on and `State.undo` does not take back."""

    dirty: frozenset[str]
    suspect: frozenset[str]
    chores_at: Instant
    heartbeat_at: Instant
    floor_at: Instant
    told: SetRow | None
    """The heartbeat that watches were told."""


class Authority:
    """The machine of an authority.

    Args:
        rows: all rows of the store.
        crypto: keys, signatures and randomness.
        config: how it lives.
    """

    def __init__(self, rows: Iterable[Row], crypto: Crypto, config: AuthorityConfig) -> None:
        self.deadline: Instant = NEVER
        self.state = State(rows)
        self._crypto = crypto
        self._config = config
        self._offset_us: int | None = None
        self._leads = False
        self._dirty: set[str] = set()
        self._suspect: set[str] = set()
        """Sets whose tables others have changed: a leader looks whether they are signed."""
        self._chores_at = Instant(0)
        self._heartbeat_at = Instant(0)
        self._floor_at = Instant(0)
        self._publish_at = Instant(0)
        self._settled = self._plans()
        self.state.crls = sharing.lists(self.state)
        self._asked = {"done": 0, "refused": 0, "undone": 0}

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event; ClockSet has to be the first."""
        effects = NOTHING
        if type(event) is Asked:
            effects = self._on_asked(now, event)
        elif type(event) is Tick:
            effects = self._on_tick(now) if now >= self.deadline else NOTHING
            if not effects and not self.state.mark():  # Nothing waits to be written or undone.
                self._settled = self._plans()
        elif type(event) is Persisted:
            self.state.settle()
            self._settled = self._plans()
        elif type(event) is NotPersisted:
            self.state.undo()
            self._dirty = set(self._settled.dirty)
            self._publish_at = Instant(now + RETRY_US)
            self._settled = replace(self._settled, told=self.state.sets.get(life.HEARTBEAT))
            self._asked["undone"] += 1
        elif type(event) is Superseded:
            self.state.undo()
            self._go_back(self._settled)
        elif type(event) is Learnt:
            effects = sharing.learn(self.state, event.changes, event.whole)
            self._suspect |= sharing.signed_with(event.changes)
            self._settled = self._plans()
        elif type(event) is Leading:
            self._lead(now, event.on)
        elif type(event) is ClockSet:
            self._offset_us = event.unix_us - now
            self._heartbeat_at = min(
                self._heartbeat_at, Instant(now + self._config.heartbeat_s * SECOND)
            )
        if self._offset_us is not None:
            self.deadline = self._next(now)
        return effects

    def unix_us(self, now: Instant) -> int:
        """Wall time at an instant."""
        assert self._offset_us is not None, "ClockSet has to come first"
        return now + self._offset_us

    def is_clock_back(self, now: Instant) -> bool:
        """Whether the clock stands before the newest time that this authority has signed."""
        return self.unix_us(now) + STEP_BACK_US_MAX < self.state.the_domain().floor_unix_us

    def health(self, now: Instant) -> words.Health:
        """State of now, for metrics; what the edge knows better is left empty."""
        desk = Desk(self.state, self.unix_us(now), self._crypto, self._config)
        return _health(desk, Caller(operator=True), words.Nothing())

    def statistics(self) -> dict[str, int]:
        """Plain counts since the start: requests done, refused, and writes undone."""
        return dict(self._asked)

    # -------------------------------------------------------------- several authorities
    def _plans(self) -> _Plans:
        return _Plans(
            dirty=frozenset(self._dirty),
            suspect=frozenset(self._suspect),
            chores_at=self._chores_at,
            heartbeat_at=self._heartbeat_at,
            floor_at=self._floor_at,
            told=self.state.sets.get(life.HEARTBEAT),
        )

    def _go_back(self, plans: _Plans) -> None:
        self._dirty, self._suspect = set(plans.dirty), set(plans.suspect)
        self._chores_at, self._heartbeat_at = plans.chores_at, plans.heartbeat_at
        self._floor_at = plans.floor_at
        if plans.told is None:  # A heartbeat that nobody has heard may have another's number.
            self.state.sets.pop(life.HEARTBEAT, None)
        else:
            self.state.sets[life.HEARTBEAT] = plans.told

    def _lead(self, now: Instant, on: bool) -> None:
        if on and not self._leads:
            self._chores_at = self._heartbeat_at = now
            self._suspect = set(SETS) - {life.HEARTBEAT, life.CRLS}
        self._leads = on
        self._settled = self._plans()

    # -------------------------------------------------------------- requests
    def _on_asked(self, now: Instant, event: Asked) -> Effects:
        desk = Desk(self.state, self.unix_us(now), self._crypto, self._config)
        mark = self.state.mark()
        try:
            handler = self._handler(now, event)
            reply = handler(desk, event.caller, event.request)
        except X0Error as error:
            self.state.undo(mark)
            self._asked["refused"] += 1
            return (Refusal(event.token, type(error).__name__, error.id, error.what, error.hint),)
        self._asked["done"] += 1
        self._dirty |= desk.dirty
        return (*_persist(desk), Answer(event.token, reply), *desk.effects)

    def _handler(self, now: Instant, event: Asked) -> _Handler:
        caller, method = event.caller, event.method
        table = _NODES
        if caller.own:
            table = _OWN
        elif caller.operator:
            table = _OPERATORS
        handler = table.get(method)
        if handler is None:
            if method in _OPERATORS or method in _OWN:
                raise Refused(
                    "X0-AUT-042",
                    f"{method} is for operators",
                    "they use the admin socket on the authority's machine",
                )
            raise NotFound("X0-AUT-076", f"there is no method {method[:40]!r} here")
        if table is _NODES and self.is_clock_back(now):
            raise Unavailable(
                "X0-AUT-011", "the authority's clock has been set back", "set it right (NTP)"
            )
        return handler

    # -------------------------------------------------------------- time
    def _on_tick(self, now: Instant) -> Effects:
        desk = Desk(self.state, self.unix_us(now), self._crypto, self._config)
        if self.is_clock_back(now):  # Nothing is signed with a time that has been before.
            self._chores_at = self._heartbeat_at = Instant(now + CHORES_US)
            self._publish_at = self._chores_at
            return NOTHING
        if self._leads and now >= self._chores_at:
            self._chores(now, desk)
        self._dirty |= desk.dirty
        if now >= self._publish_at:
            for name in SETS:
                if name in self._dirty and (
                    life.publishable_unix_s(self.state, name) <= desk.unix_s
                ):
                    life.publish(desk, name)
                    self._dirty.discard(name)
        if self._leads and now >= self._heartbeat_at:
            self._heartbeat_at = Instant(now + self._config.heartbeat_s * SECOND)
            life.publish(desk, life.HEARTBEAT)
        return (*_persist(desk), *desk.effects)

    def _chores(self, now: Instant, desk: Desk) -> None:
        self._chores_at = Instant(now + CHORES_US)
        operating.expire_revocations(desk)
        operating.purge_tokens(desk)
        life.turn(desk)
        desk.dirty |= life.stale(desk) | life.unsigned(desk, self._suspect)
        self._suspect = set()
        if now >= self._floor_at:
            self._floor_at = Instant(now + FLOOR_US)
            desk.put(operating.words_replace(self.state.the_domain(), floor_unix_us=desk.unix_us))
            forget = Forget(desk.unix_s)
            self.state.change((forget,))
            desk.changes.append(forget)

    def _next(self, now: Instant) -> Instant:
        at = min(self._chores_at, self._heartbeat_at) if self._leads else NEVER
        for name in self._dirty:
            allowed_us = life.publishable_unix_s(self.state, name) * SECOND
            wait_us = max(0, allowed_us - self.unix_us(now))
            at = min(at, max(Instant(now + wait_us), self._publish_at))
        return Instant(at)


def _persist(desk: Desk) -> tuple[Effect, ...]:
    return (Persist(tuple(desk.changes)),) if desk.changes else ()
