"""The one writer between the API and the authority's machine.

Requests wait in one bounded queue.  Up to BATCH_MAX of them are decided one after the other, share
one commit, and are answered when it is on the disk; so are the facts that watchers hear.  When the
disk refuses, everything in the batch that wanted to change something is undone and refused, and
writing is tried again at most once per second: reading goes on.

Other authorities may write to the same store.  What was decided without knowing their changes is
undone and decided again with them, at most twice: after that the store waits for this one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Protocol

import msgspec

from x0tta6bl4.core.authority.machine import Authority
from x0tta6bl4.core.authority.rows import (
    Answer,
    Asked,
    Caller,
    Change,
    EntriesChanged,
    Leading,
    Learnt,
    NodeCut,
    NodeTold,
    NotPersisted,
    Persist,
    Persisted,
    PollWanted,
    Published,
    Refusal,
    RenewWanted,
    Superseded,
)
from x0tta6bl4.core.machine import ClockSet, Effect, Effects, Instant, Tick
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire import errors
from x0tta6bl4.wire.errors import Unavailable, X0Error

BATCH_MAX: Final = 64
QUEUE_MAX: Final = 4096
WATCHERS_MAX: Final = 16_384
PENDING_MAX: Final = 1024
"""Entry changes that wait for a slow watcher; with more it gets the full set again."""
LOOK_S: Final = 0.5
"""The clock is compared so often."""
STEP_US: Final = 200_000
RETRY_S: Final = 1.0
DECIDE_S: Final = 0.02
"""After so long at a stretch of deciding the event loop gets its turn."""


ROUNDS_MAX: Final = 3
"""A batch is decided so often at most: before and after questions, and with the store reserved."""


class Store(Protocol):
    """Where changes are written, as `edge.store` does; `commit` to `missed` block."""

    def commit(self, changes: Sequence[Change]) -> Learnt | None:
        """Write; or say what was missed, and let nobody else write until `commit` or `release`."""
        ...

    def release(self) -> None:
        """Nothing is to be written after all."""
        ...

    def missed(self) -> Learnt | None:
        """What others have written meanwhile."""
        ...

    def is_current(self) -> bool:
        """Whether nobody else has changed rows."""
        ...

    def leads(self) -> bool:
        """Whether this authority is to do what only time asks for."""
        ...

    def is_alone(self) -> bool:
        """Whether no other authority runs that could lead."""
        ...


class Watcher:
    """What one Watch stream has still to say: bounded, newest values only."""

    __slots__ = ("_draining", "_entries", "_gone", "_renew", "_sets", "event", "full", "node")

    def __init__(self, node: str) -> None:
        self.node = node
        self.event = asyncio.Event()
        self.reset()
        self.full = True

    def reset(self) -> None:
        """Everything up to now has been said."""
        self._entries: dict[str, words.Entry] = {}
        self._gone: dict[str, None] = {}
        self._sets: dict[str, tuple[bytes, ...]] = {}
        self._renew = 0
        self._draining: bool | None = None
        self.full = False
        self.event.clear()

    def resync(self) -> None:
        """Too much waits, or something was missed: say everything again."""
        self.reset()
        self.full = True
        self.event.set()

    def hear(self, effect: Effect) -> None:
        """Take a fact in."""
        if self.full:
            return
        if type(effect) is EntriesChanged:
            for entry in effect.entries:
                self._entries[entry.key] = entry
                self._gone.pop(entry.key, None)
            for key in effect.gone:
                self._entries.pop(key, None)
                self._gone[key] = None
            if len(self._entries) + len(self._gone) > PENDING_MAX:
                self.resync()
                return
        elif type(effect) is Published:
            self._sets[effect.set] = effect.records
        elif type(effect) is RenewWanted:
            self._renew = effect.before_unix_s
        elif type(effect) is NodeTold:
            self._draining = effect.draining
        self.event.set()

    def take(self, unix_us: int, draining: bool) -> words.Update:
        """What waits, as one update; afterwards nothing waits."""
        order = ("bundle", "revocations", "policy", "names", "federated", "crls", "heartbeat")
        update = words.Update(
            unix_us=unix_us,
            entries=tuple(self._entries.values()),
            gone=tuple(self._gone),
            records=tuple(data for name in order for data in self._sets.get(name, ())),
            renew_issued_before_unix_s=self._renew,
            draining=draining if self._draining is None else self._draining,
        )
        self.reset()
        return update


class _Waiting:
    """One request in the queue."""

    __slots__ = ("asked", "answer", "then")

    def __init__(self, asked: Asked, then: Callable[[], None] | None) -> None:
        self.asked = asked
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.then = then


class Service:
    """The authority as the servers see it.

    Args:
        machine: decides.
        store: writes changes; raises Unavailable.
        executor: one thread in which it does.
        clock: CLOCK_BOOTTIME, microseconds.
        unix_us: wall time, microseconds.
        on_fact: told NodeCut (close its connections), Published and PollWanted, after the commit.
        on_state: told a line for the log: writing has stopped or goes on again.
        on_lead: told whether this authority leads, when that changes.
    """

    def __init__(
        self,
        machine: Authority,
        store: Store,
        executor: Executor,
        clock: Callable[[], Instant],
        unix_us: Callable[[], int],
        on_fact: Callable[[Effect], None],
        on_state: Callable[[str], None],
        on_lead: Callable[[bool], None],
    ) -> None:
        self._machine = machine
        self._store = store
        self._executor = executor
        self._clock = clock
        self._unix_us = unix_us
        self._on_fact = on_fact
        self._on_state = on_state
        self._on_lead = on_lead
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._token = 0
        self._offset_us: int | None = None
        self._retry_at = 0.0
        self._watchers: dict[str, list[Watcher]] = {}
        self._closed = False
        self._look_at = 0.0
        self.leading = False
        self.read_only = ""
        self.counts = {
            "commits": 0,
            "commit_us": 0,
            "commits_failed": 0,
            "changes": 0,
            "issued": 0,
            "issue_cpu_us": 0,
            "minted": 0,
            "batches": 0,
            "resyncs": 0,
            "superseded": 0,
            "learnt": 0,
        }

    # -------------------------------------------------------------- for the servers
    async def ask(
        self, caller: Caller, method: str, request: Any, then: Callable[[], None] | None = None
    ) -> Any:
        """Have a request decided, and its changes written.

        Args:
            caller: who asks.
            method: name in `wire.authority.METHODS` or `ADMIN_METHODS`.
            request: its struct.
            then: called in the instant of the answer, before anything that came later is told.
        Raises:
            X0Error: as the machine refused; Unavailable too when nothing can be written.
        """
        if self._closed:
            raise Unavailable("X0-AUT-081", "the authority is stopping", "try again in a moment")
        if len(self._queue) >= QUEUE_MAX:
            raise Unavailable(
                "X0-AUT-080", "the authority has too much to do", "try again in a moment"
            )
        self._token += 1
        waiting = _Waiting(Asked(self._token, caller, method, request), then)
        self._queue.append(waiting)
        self._wake.set()
        return await waiting.answer

    def watch(self, node: str) -> Watcher:
        """Let a stream of this node hear facts from now on."""
        if self.watchers() >= WATCHERS_MAX:
            raise Unavailable("X0-AUT-080", "too many nodes watch", "add an authority")
        watcher = Watcher(node)
        self._watchers.setdefault(node, []).append(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """The stream has ended."""
        of_node = self._watchers[watcher.node]
        of_node.remove(watcher)
        if not of_node:
            del self._watchers[watcher.node]

    async def next_update(self, watcher: Watcher, caller: Caller) -> words.Update:
        """Wait for something to say to a watcher.

        Raises:
            X0Error: the node may not watch (any more).
        """
        if not watcher.full:
            await watcher.event.wait()
        if watcher.full:
            self.counts["resyncs"] += 1
            request = words.WatchRequest(unix_us=self._unix_us())
            update: words.Update = await self.ask(caller, "Watch", request, watcher.reset)
            return update
        row = self._machine.state.nodes.get(watcher.node)
        return watcher.take(self._unix_us(), row is not None and row.draining)

    def watchers(self) -> int:
        """How many streams are open."""
        return sum(map(len, self._watchers.values()))

    def is_watching(self, node: str) -> bool:
        """Whether a node has a stream open."""
        return node in self._watchers

    def wake(self) -> None:
        """Others have changed something."""
        self._look_at = 0.0
        self._wake.set()

    # -------------------------------------------------------------- the writer
    async def run(self) -> None:
        """Decide, write, answer; until cancelled."""
        try:
            while True:
                self._look_at_clock()
                await self._look_at_store()
                await self._batch()
                if not self._queue:
                    await self._sleep()
        finally:
            self._closed = True
            for waiting in self._queue:
                if not waiting.answer.done():
                    waiting.answer.set_exception(
                        Unavailable(
                            "X0-AUT-081", "the authority is stopping", "try again in a moment"
                        )
                    )
            self._queue.clear()

    async def _sleep(self) -> None:
        self._wake.clear()
        wait_s = min(LOOK_S, (self._machine.deadline - self._clock()) / 1e6)
        if wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _look_at_clock(self) -> None:
        offset = self._unix_us() - self._clock()
        if self._offset_us is None or abs(offset - self._offset_us) > STEP_US:
            self._offset_us = offset
            now = self._clock()
            self._machine.handle(now, ClockSet(now + offset))

    async def _look_at_store(self) -> None:
        """Who leads, and what others have changed: when they ring, and now and then."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        if self._store.leads() != self.leading:
            self.leading = not self.leading
            self._machine.handle(self._clock(), Leading(self.leading))
            self._on_lead(self.leading)
        try:
            missed = None if self._store.is_current() else await self._missed()
        except Unavailable as error:
            self._say_read_only(error)
        else:
            self._learn(missed)

    async def _batch(self) -> None:
        batch: list[_Waiting] = []
        while self._queue and len(batch) < BATCH_MAX:
            waiting = self._queue.popleft()
            if not waiting.answer.done():  # Else its caller has gone.
                batch.append(waiting)
        self.counts["batches"] += bool(batch)
        for number in range(ROUNDS_MAX):
            decided = await self._decide_all(batch)
            now = self._clock()
            ticked = self._machine.handle(now, _TICK) if now >= self._machine.deadline else ()
            changes = [change for _, effects in decided for change in _changes(effects)]
            changes += _changes(ticked)
            try:
                missed = await self._settle(changes, bool(batch) and not number)
            except Unavailable as error:
                self._machine.handle(self._clock(), NotPersisted(error.id))
                self._refuse(decided, ticked, error)
                return
            if missed is None:
                break
            self.counts["superseded"] += 1
            self._machine.handle(self._clock(), Superseded())
            self._learn(missed)
        assert missed is None
        if changes:
            self._machine.handle(self._clock(), Persisted())
        for waiting, effects in decided:
            self._deliver(waiting, effects)
        self._deliver(None, ticked)

    async def _decide_all(self, batch: list[_Waiting]) -> list[tuple[_Waiting, Effects]]:
        decided = []
        started = time.monotonic()
        for waiting in batch:
            decided.append((waiting, self._decide(waiting)))
            if time.monotonic() - started > DECIDE_S:
                await asyncio.sleep(0)
                started = time.monotonic()
        return decided

    def _decide(self, waiting: _Waiting) -> Effects:
        if waiting.asked.method != "Issue":
            return self._machine.handle(self._clock(), waiting.asked)
        started = time.thread_time_ns()
        effects = self._machine.handle(self._clock(), waiting.asked)
        self.counts["issue_cpu_us"] += (time.thread_time_ns() - started) // 1000
        return effects

    async def _settle(self, changes: list[Change], fresh: bool) -> Learnt | None:
        """Write what was decided; None when it holds.

        Args:
            changes: all of it; none if only questions were asked.
            fresh: answers have to be looked at: they may be older than their questions.
        Returns:
            What others have changed, with which everything has to be decided again.
        Raises:
            Unavailable: the store can't be written, or not even read.
        """
        if changes:
            return await self._write(changes)
        self._store.release()  # It may be reserved for what is wanted no more.
        if fresh and not self._store.is_current():
            return await self._missed()
        return None

    async def _missed(self) -> Learnt | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._store.missed)

    def _learn(self, missed: Learnt | None) -> None:
        if missed is None:
            return
        self.counts["learnt"] += len(missed.changes)
        self._deliver(None, self._machine.handle(self._clock(), missed))
        if missed.whole:  # Of what came and went meanwhile nobody can tell.
            for watchers in self._watchers.values():
                for watcher in watchers:
                    watcher.resync()

    async def _write(self, changes: list[Change]) -> Learnt | None:
        if self.read_only and time.monotonic() < self._retry_at:
            raise _read_only(self.read_only)
        started = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._executor, self._store.commit, changes)
        try:
            missed = await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing  # Never leave while the disk is written: the machine has to hear of it.
            raise
        except Unavailable as error:
            self.counts["commits_failed"] += 1
            self._say_read_only(error)
            raise
        if missed is not None:
            return missed
        if self.read_only:
            self.read_only = ""
            self._on_state("writing again")
        self.counts["commits"] += 1
        self.counts["changes"] += len(changes)
        self.counts["commit_us"] += (time.monotonic_ns() - started) // 1000
        return None

    def _say_read_only(self, error: Unavailable) -> None:
        self._retry_at = time.monotonic() + RETRY_S
        if not self.read_only:
            self._on_state(f"read-only: {error}")
        self.read_only = str(error)

    def _refuse(
        self, batch: list[tuple[_Waiting, Effects]], ticked: Effects, error: X0Error
    ) -> None:
        blind = self.is_behind()
        for waiting, effects in batch:
            again = effects
            if not blind and not _changes(effects):  # A question; what it saw was undone.
                again = self._machine.handle(self._clock(), waiting.asked)
            if blind or _changes(again):
                if not waiting.answer.done():
                    waiting.answer.set_exception(type(error)(error.id, error.what, error.hint))
            else:
                self._deliver(waiting, again)
        if self._store.is_alone():  # Else another one could sign the same number.
            for effect in ticked:
                if type(effect) is Published and effect.set == "heartbeat":
                    self._tell_all(effect)

    def is_behind(self) -> bool:
        """Whether others may have changed what is known here: then nothing is said."""
        try:
            return not self._store.is_current()
        except Unavailable:
            return True

    # -------------------------------------------------------------- what follows a commit
    def _deliver(self, waiting: _Waiting | None, effects: Effects) -> None:
        for effect in effects:
            if type(effect) is Answer or type(effect) is Refusal:
                assert waiting is not None
                self._answer(waiting, effect)
            elif type(effect) is EntriesChanged or type(effect) is NodeTold:
                for watcher in self._watchers.get(effect.node, ()):
                    watcher.hear(effect)
            elif type(effect) is Published or type(effect) is RenewWanted:
                self._tell_all(effect)
            if type(effect) in (NodeCut, Published, PollWanted):
                self._on_fact(effect)

    def _answer(self, waiting: _Waiting, effect: Any) -> None:
        if waiting.answer.done():
            return
        if type(effect) is Refusal:
            kind: type[X0Error] = getattr(errors, effect.kind)
            waiting.answer.set_exception(kind(effect.id, effect.what, effect.hint))
            return
        if type(effect.value) is words.IssueReply:
            self.counts["issued"] += sum(bool(one.chain) for one in effect.value.issued)
        if type(effect.value) is words.Minted:
            self.counts["minted"] += bool(effect.value.token)
        if waiting.then is not None:
            waiting.then()
        waiting.answer.set_result(effect.value)

    def _tell_all(self, effect: Effect) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.hear(effect)


def with_connections(service: Service, view: Any) -> Any:
    """Fill in which nodes are connected, in what the machine says of nodes."""
    if type(view) is words.Node:
        return msgspec.structs.replace(view, connected=service.is_watching(view.name))
    if type(view) is words.Nodes:
        return msgspec.structs.replace(
            view, nodes=tuple(with_connections(service, node) for node in view.nodes)
        )
    return view


def _changes(effects: Effects) -> list[Change]:
    return [change for effect in effects if type(effect) is Persist for change in effect.changes]


def _read_only(reason: str) -> Unavailable:
    return Unavailable(
        "X0-AUT-082", "the authority can only be read now", f"the last write failed: {reason}"
    )


_TICK: Final = Tick()
