"""Which identities the workloads of this host have: what the agent knows, as a `Directory`.

Callers with one user and group are a cohort.  Where no entry that may concern them asks for more
than these, all of them have the same, and it is worked out once; else each is looked at again
whenever entries change.  Whoever has nothing new is not woken.

Changes are told at once; many in a row are gathered for GAP_FIRST_S, then twice as long, up to
GAP_LAST_S, so that a thousand new entries make ten messages and not a thousand.  A cohort is woken
in slices of SLICE, in an order drawn anew each time (SP-107).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, Protocol, final
from weakref import WeakValueDictionary

from x0tta6bl4.core.identity.selectors import (
    Attributes,
    Matches,
    Selector,
    match,
    parse_all,
)
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.attest.errands import PENDING
from x0tta6bl4.edge.attest.listener import needs
from x0tta6bl4.edge.attest.process import Needs
from x0tta6bl4.edge.bundle.document import Document, encode_jwks, of_bundle, parse
from x0tta6bl4.edge.workload_api.schema import HINT_BYTES_MAX
from x0tta6bl4.edge.workload_api.words import Caller, Snapshot, Svid, TrustBundle, Validated
from x0tta6bl4.wire.authority import Entry, Minted
from x0tta6bl4.wire.errors import BadInput, Refused
from x0tta6bl4.wire.ids import TrustDomain
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import Bundle, Federated

GAP_FIRST_S: Final = 0.02
GAP_LAST_S: Final = 0.4
QUIET_S: Final = 0.5
"""After so long without a change the next one is told at once."""
SLICE: Final = 256
"""Streams woken together; the event loop has its turn after each slice."""
COHORTS_MAX: Final = 4096
"""Beyond it those without open calls are worked out anew when they call again."""
TOKENS_MAX: Final = 4096
"""JWT-SVIDs kept; the one used longest ago is forgotten."""
MINTS_MAX: Final = 16
"""Asked of the authority at once."""
USER_MINTS_MAX: Final = 8
"""Of these, for one user: another one always gets a turn."""
LOOK_AGAIN_S: Final = (0.02, 0.5)
"""First and longest wait for a program that takes long to look at."""
CALLERS_MAX: Final = 32
"""Callers remembered for `x0 explain denied`, the newest."""
_UID: Final = Needs()


@final
class Seen:
    """A caller as it was when last looked at."""

    __slots__ = ("gid", "looks", "pid", "uid", "unix_us")

    def __init__(self, caller: Caller, unix_us: int) -> None:
        self.pid, self.uid, self.gid = caller.pid, caller.uid, caller.gid
        self.unix_us = unix_us
        self.looks: dict[Needs, Attributes | Denied] = {}

    @property
    def pending(self) -> bool:
        """Whether something is still being found out."""
        return PENDING in self.looks.values()


class World(Protocol):
    """What the agent knows."""

    def entries(self) -> Iterable[Entry]:
        """Those of this node."""
        ...

    def svid(self, id: str) -> SvidItem | None:
        """The SVID held for an ID."""
        ...

    def bundle(self) -> Bundle | None:
        """Of this trust domain; None before the first."""
        ...

    def federated(self) -> tuple[Federated, ...]:
        """Of the others."""
        ...

    def crls(self) -> tuple[bytes, ...]:
        """DER, of this trust domain."""
        ...

    def good(self, item: SvidItem) -> Verdict:
        """Whether an SVID of ours still counts: not revoked."""
        ...

    async def mint(self, entry: str, audience: tuple[str, ...]) -> Minted:
        """A JWT-SVID from the authority.

        Raises:
            X0Error: Unavailable.
        """
        ...

    def unix_us(self) -> int:
        """Wall time."""
        ...


@final
class _Candidate:
    """An entry, parsed."""

    __slots__ = ("entry", "needs", "selectors")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.selectors: tuple[Selector, ...] = parse_all(entry.selectors)
        self.needs = needs(self.selectors)

    def may_be(self, uid: int, gid: int) -> bool:
        """Whether user and group don't rule it out."""
        plain = [s for s in self.selectors if s.kind in ("unix:uid", "unix:gid")]
        return not plain or type(match(plain, Attributes(uid, (gid,)))) is Matches


@final
class _Cohort:
    """All open calls of one user and group.

    Attributes:
        candidates: entries that user and group don't rule out, the best first.
        generation: of the entries that it was worked out from.
        same: what all of them have; None: each has to be looked at.
        stamp: grows when there is something to look at.
    """

    __slots__ = ("_waiting", "candidates", "generation", "gid", "members", "same", "stamp", "uid")

    def __init__(self, uid: int, gid: int) -> None:
        self.uid, self.gid = uid, gid
        self.candidates: tuple[_Candidate, ...] = ()
        self.same: Snapshot | None = None
        self.generation = 0
        self.stamp = 0
        self.members = 0
        self._waiting: dict[asyncio.Future[None], None] = {}

    async def changed(self) -> None:
        """Wait for the next `ring`."""
        bell = asyncio.get_running_loop().create_future()
        self._waiting[bell] = None
        try:
            await bell
        finally:
            self._waiting.pop(bell, None)

    def ring(self) -> None:
        """Wake all, a slice at a time."""
        self.stamp += 1
        waiting = list(self._waiting)
        self._waiting.clear()
        random.SystemRandom().shuffle(waiting)
        self._ring_slice(waiting)

    def _ring_slice(self, waiting: list[asyncio.Future[None]]) -> None:
        for bell in waiting[-SLICE:]:
            if not bell.done():
                bell.set_result(None)
        del waiting[-SLICE:]
        if waiting:
            asyncio.get_running_loop().call_soon(self._ring_slice, waiting)


class Identities:
    """The `Directory` of the Workload API's server.

    Args:
        world: what the agent knows; it calls `changed` when that is something else.
        on_refused: told why a caller's attestation failed.
    """

    def __init__(self, world: World, on_refused: Callable[[str], None]) -> None:
        self._world = world
        self._on_refused = on_refused
        self._cohorts: dict[tuple[int, int], _Cohort] = {}
        self._candidates: dict[str, _Candidate] = {}
        self._of_uid: dict[str, list[_Candidate]] = {}
        self._of_any: list[_Candidate] = []
        self._shared: dict[tuple[object, ...], Snapshot] = {}
        self._own: tuple[Bundle | None, TrustBundle | None] = (None, None)
        self._foreign: dict[Federated, tuple[Document, TrustBundle] | None] = {}
        self._tokens: OrderedDict[tuple[str, tuple[str, ...]], Minted] = OrderedDict()
        self._minting = asyncio.Semaphore(MINTS_MAX)
        self._minting_of: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self._gap_s = 0.0
        self._told_at = -QUIET_S
        self._stale = False
        self._generation = 0
        self._seen: OrderedDict[tuple[int, int, int], Seen] = OrderedDict()
        self._look()

    # -------------------------------------------------------------- changes
    def changed(self) -> None:
        """Something that the world answers is different now."""
        self._stale = True
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._told_at >= QUIET_S:
            self._gap_s = 0.0
        self._timer = loop.call_at(max(now, self._told_at + self._gap_s), self._tell)

    def close(self) -> None:
        """No more changes are told."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        if self._stale:
            self._look()
        told = False
        for key, cohort in list(self._cohorts.items()):
            if cohort.members:
                told |= self._review(cohort)
            else:
                del self._cohorts[key]
        if told:  # An entry whose SVID is still to come is nothing to pause after.
            self._told_at = asyncio.get_running_loop().time()
            self._gap_s = min(max(2 * self._gap_s, GAP_FIRST_S), GAP_LAST_S)

    def _look(self) -> None:
        """Take in what the world is now."""
        self._stale = False
        self._generation += 1
        candidates: dict[str, _Candidate] = {}
        for entry in self._world.entries():
            known = self._candidates.get(entry.key)
            if known is not None and known.entry == entry:
                candidates[entry.key] = known
                continue
            try:
                candidates[entry.key] = _Candidate(entry)
            except BadInput as error:  # Of a newer authority: it is for nobody here.
                self._on_refused(error.what)
        self._candidates = candidates
        self._of_uid, self._of_any = {}, []
        for made in candidates.values():
            uids = {s.value for s in made.selectors if s.kind == "unix:uid"}
            (self._of_uid.setdefault(uids.pop(), []) if uids else self._of_any).append(made)
        self._shared = {}
        bundle = self._world.bundle()
        if bundle is not self._own[0]:
            self._own = (bundle, _bundle(of_bundle(bundle)) if bundle is not None else None)
        self._foreign = {
            item: self._foreign[item] if item in self._foreign else _parsed(item)
            for item in self._world.federated()
        }

    def _review(self, cohort: _Cohort) -> bool:
        """Find out what a cohort has now, and wake it if that is, or may be, something new.

        Returns:
            Whether it was woken.
        """
        if cohort.generation == self._generation:
            return False
        cohort.generation = self._generation
        found = [*self._of_uid.get(str(cohort.uid), ()), *self._of_any]
        found = [one for one in found if one.may_be(cohort.uid, cohort.gid)]
        found.sort(key=lambda one: (-len(one.selectors), one.entry.key))
        cohort.candidates = tuple(found)
        if any(one.needs.process for one in found):
            cohort.same = None
            cohort.ring()
            return True
        snapshot = self._snapshot(found)
        if cohort.same is not None and _equal(cohort.same, snapshot):
            return False
        cohort.same = snapshot
        cohort.ring()
        return True

    # -------------------------------------------------------------- for the server
    async def subscribe(self, caller: Caller) -> AsyncIterator[Snapshot]:
        """See `edge.workload_api.words.Directory`."""
        key = caller.uid, caller.gid
        if self._stale:  # Who calls anew hears nothing old; the others are told in a moment.
            self._look()
        cohort = self._cohorts.get(key)
        if cohort is None:
            if len(self._cohorts) >= COHORTS_MAX:
                self._cohorts = {k: x for k, x in self._cohorts.items() if x.members}
            cohort = self._cohorts[key] = _Cohort(*key)
        self._review(cohort)
        cohort.members += 1
        told, again_s = False, LOOK_AGAIN_S[0]
        try:
            while True:
                stamp = cohort.stamp
                seen = Seen(caller, self._world.unix_us())
                snapshot = self._of(cohort, caller, seen)
                self._remember(seen)
                if not seen.pending or not told:  # Nobody loses anything to a slow look.
                    told = True
                    yield snapshot
                if cohort.stamp != stamp:
                    continue
                if not seen.pending:
                    again_s = LOOK_AGAIN_S[0]
                    await cohort.changed()
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(cohort.changed(), again_s)
                again_s = min(2 * again_s, LOOK_AGAIN_S[1])
        finally:
            cohort.members -= 1

    def seen(self) -> tuple[Seen, ...]:
        """Callers of this endpoint, the last one first."""
        return tuple(reversed(self._seen.values()))

    def _remember(self, seen: Seen) -> None:
        key = seen.pid, seen.uid, seen.gid
        self._seen[key] = seen
        self._seen.move_to_end(key)
        if len(self._seen) > CALLERS_MAX:
            self._seen.popitem(last=False)

    def _of(self, cohort: _Cohort, caller: Caller, seen: Seen) -> Snapshot:
        """What one caller has: all entries whose selectors hold."""
        looks = seen.looks
        base = looks[_UID] = caller.attributes(_UID)
        if isinstance(base, Denied):
            self._on_refused(base.reason)
            return self._snapshot(())
        if cohort.same is not None:
            return cohort.same
        matched = []
        for one in cohort.candidates:
            found = looks.get(one.needs)
            if found is None:
                found = looks[one.needs] = caller.attributes(one.needs)
                if isinstance(found, Denied) and found != PENDING:
                    self._on_refused(found.reason)
            if not isinstance(found, Denied) and type(match(one.selectors, found)) is Matches:
                matched.append(one)
        return self._snapshot(matched)

    def _snapshot(self, matched: Iterable[_Candidate]) -> Snapshot:
        """The set for entries, in their order; shared by all that have the same."""
        own = self._own[1]
        if own is None:
            return _NOTHING
        chosen: dict[str, tuple[SvidItem, str]] = {}
        federated: set[str] = set()
        hints: set[str] = set()
        for one in matched:
            item = self._world.svid(one.entry.id)
            if item is None or type(self._world.good(item)) is not Allowed:
                continue
            federated.update(one.entry.federates_with)
            if item.id in chosen:
                continue
            hint = one.entry.hint
            if hint in hints or len(hint.encode()) > HINT_BYTES_MAX:
                hint = ""
            hints.add(hint)
            chosen[item.id] = item, hint
        what = (
            tuple((item.chain[0], hint) for item, hint in chosen.values()),
            frozenset(federated),
        )
        made = self._shared.get(what)
        if made is None:
            made = self._shared[what] = Snapshot(
                tuple(Svid(item.id, item.chain, item.key, hint) for item, hint in chosen.values()),
                own,
                tuple(
                    known[1]
                    for item, known in sorted(self._foreign.items(), key=_domain_of)
                    if known is not None and item.trust_domain in federated
                ),
                self._world.crls(),
            )
        return made

    # -------------------------------------------------------------- JWT-SVIDs
    async def mint(
        self, caller: Caller, svids: tuple[Svid, ...], audience: tuple[str, ...]
    ) -> tuple[str, ...]:
        """See `edge.workload_api.words.Directory`."""
        turns = self._minting_of.get(caller.uid)
        if turns is None:
            turns = self._minting_of[caller.uid] = asyncio.Semaphore(USER_MINTS_MAX)
        return tuple(
            await asyncio.gather(*(self._token(turns, svid.id, audience) for svid in svids))
        )

    async def _token(self, turns: asyncio.Semaphore, id: str, audience: tuple[str, ...]) -> str:
        kept = self._kept(id, audience)
        if kept is not None:
            return kept.token
        async with turns, self._minting:
            kept = self._kept(id, audience)  # Somebody else may have asked meanwhile.
            if kept is None:
                kept = await self._world.mint(self._entry_of(id), audience)
                if kept.refused or kept.id != id:
                    raise Refused("X0-WLA-010", kept.refused or "a token of another ID was minted")
                self._tokens[id, audience] = kept
                if len(self._tokens) > TOKENS_MAX:
                    self._tokens.popitem(last=False)
            return kept.token

    def _kept(self, id: str, audience: tuple[str, ...]) -> Minted | None:
        """A token with more than half of its life left."""
        kept = self._tokens.get((id, audience))
        now_s = self._world.unix_us() // 1_000_000
        if kept is None or 2 * now_s >= kept.issued_unix_s + kept.expires_unix_s:
            return None
        self._tokens.move_to_end((id, audience))
        return kept

    def _entry_of(self, id: str) -> str:
        for key, one in self._candidates.items():
            if one.entry.id == id:
                return key
        raise Refused("X0-WLA-011", "no entry of this node has the identity any more")

    def validate(self, snapshot: Snapshot, token: str, audience: str) -> Validated | Denied:
        """See `edge.workload_api.words.Directory`."""
        from x0tta6bl4.edge.jwt.svid import judge_token  # 10 ms of a start, and few ask for it.

        bundle = self._own[0]
        if bundle is None:
            return Denied("no bundle yet")
        domains = {one.trust_domain for one in snapshot.federated}
        documents = {
            TrustDomain(item.trust_domain): known[0]
            for item, known in self._foreign.items()
            if known is not None and item.trust_domain in domains
        }
        documents[TrustDomain(bundle.trust_domain)] = of_bundle(bundle)
        found = judge_token(token, audience, documents, self._world.unix_us())
        return found if isinstance(found, Denied) else Validated(found.id, found.claims)


_NOTHING: Final = Snapshot((), TrustBundle("", ()))


def _equal(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots say the same."""
    return one is other or (
        one.svids == other.svids
        and one.own == other.own
        and one.federated == other.federated
        and one.crl == other.crl
    )


def _bundle(document: Document) -> TrustBundle:
    return TrustBundle(document.trust_domain, document.x509, encode_jwks(document))


def _parsed(item: Federated) -> tuple[Document, TrustBundle] | None:
    """A foreign bundle; None where it can't be read: its SVIDs are not trusted then."""
    try:
        document = parse(item.document, TrustDomain(item.trust_domain))
    except BadInput:
        return None
    return document, _bundle(document)


def _domain_of(pair: tuple[Federated, object]) -> str:
    return pair[0].trust_domain
