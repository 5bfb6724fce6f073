"""What a workload holds: its SVIDs and the bundles of those it talks to, always the newest.

    starting --first good message--> held --message--> held (the full set is replaced, SP-105)
       held --PermissionDenied, redacted--> withdrawn (SP-109, SP-116) --message--> held
       held --unreachable--> held: what is valid stays in use, what has expired is never given out

Source: SPIFFE_Workload_API.md sections 4.2 to 4.4, 5 and 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from types import TracebackType
from typing import Any, Final, Literal, Self

from x0tta6bl4.core.identity.rules import SPIFFE
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.edge.bundle.document import Document, parse
from x0tta6bl4.edge.tls.crl import withdrawn
from x0tta6bl4.edge.tls.judge import Clock, Judge, Judges, allow_all
from x0tta6bl4.edge.tls.ocsp import OcspCache
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity.answers import Bundles, BundleSet, X509Set
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.connections import Connections
from x0tta6bl4.sdk.identity.follow import Follow
from x0tta6bl4.sdk.identity.ocsp import Staples
from x0tta6bl4.wire.errors import BadInput, NotFound, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import TrustDomain, spiffe_id

LISTENERS_MAX: Final = 1_024
PROBLEMS_MAX: Final = 64
"""Kept for whoever asks what went wrong; the oldest goes first."""
TICK_S: Final = 0.25
"""How often expiry is looked at; wall time may step."""
WAIT_S: Final = 30.0

Listener = Callable[[], None]


class Source:
    """What all sources have in common: tasks, listeners, waiting, problems.

    Args:
        client: the Workload API, or its address; None: SPIFFE_ENDPOINT_SOCKET.  A client that is
            given stays its owner's; one made here is closed with the source.
    """

    def __init__(self, client: WorkloadClient | str | None = None) -> None:
        self._owned = not isinstance(client, WorkloadClient)
        self.client = client if isinstance(client, WorkloadClient) else WorkloadClient(client)
        self.clock: Clock = self.client.clock
        self.version = 0
        """Grows with every change."""
        self.error: X0Error | None = None
        """What went wrong last; None after a good message."""
        self.problems: deque[str] = deque(maxlen=PROBLEMS_MAX)
        self._random = Random(secrets.randbits(64))
        self._listeners: dict[object, Listener] = {}
        self._was_ready = False
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------------------ its life
    async def __aenter__(self) -> Self:
        """Start; closes at the end."""
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    def start(self) -> None:
        """Begin to follow the Workload API, in the running loop; nothing the second time."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(work) for work in self._work()]

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        raise NotImplementedError

    async def close(self) -> None:
        """Stop; nothing is given out any more, and connections under it end."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        self._forget()
        if self._owned:
            self.client.close()

    def _forget(self) -> None:
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether there is something to give out now."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------- changes
    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call a function after every change, in the loop; returns what takes it back.

        Raises:
            Unavailable: LISTENERS_MAX are there.
        """
        if len(self._listeners) >= LISTENERS_MAX:
            raise Unavailable("X0-SDK-022", "too many listeners", f"at most {LISTENERS_MAX}")
        key = object()
        self._listeners[key] = listener

        def remove() -> None:
            self._listeners.pop(key, None)

        return remove

    async def changed(self, since: int, timeout_s: float = WAIT_S) -> int:
        """Wait until `version` is greater than `since`; returns it.

        Raises:
            Unavailable: nothing changed within the time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.version <= since:
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable("X0-SDK-023", "no change within the time") from None
        return self.version

    async def wait(self, timeout_s: float = WAIT_S) -> None:
        """Wait until there is something to give out.

        Raises:
            X0Error: what went wrong last, if the time is over or it will never come.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready:
                    if self._tasks and self._hopeless():
                        break
                    await self._changed.wait()
        except TimeoutError:
            pass
        if not self.ready:
            raise self.error or Unavailable(
                "X0-SDK-024", "the Workload API has not answered yet", "is the agent running?"
            )

    def _hopeless(self) -> bool:
        """Whether the last answer says that it makes no sense to ask again (SP-098)."""
        return isinstance(self.error, NotFound) or type(self.error) is BadInput

    def _tell(self) -> None:
        """Something is different: wake all who wait, call all who listen."""
        self.version += 1
        self._was_ready = self.ready
        self._wake()
        loop = asyncio.get_running_loop()
        for listener in tuple(self._listeners.values()):
            loop.call_soon(listener)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _failed(self, error: X0Error) -> None:
        self.error = error
        self.problems.append(str(error))
        if isinstance(error, Refused):
            self._forget()
        self._wake()


def judges_of(
    bundles: Bundles, crls: tuple[bytes, ...], clock: Clock, problems: deque[str]
) -> Judges:
    """One judge per trust domain, by the rules of the specification, with its own revocations."""
    made: dict[TrustDomain, Judge] = {}
    believed = [False] * len(crls)
    for domain, anchors in bundles.items():
        revoked: set[tuple[bytes, int]] = set()
        for at, crl in enumerate(crls):  # One by one: a broken list takes no other with it.
            try:
                found, signed = withdrawn((crl,), anchors)
            except BadInput as error:
                problems.append(f"revocation list for {domain}: {error.what}")
                continue
            revoked |= found
            believed[at] |= signed[0]
        made[domain] = Judge(domain, anchors, allow_all, clock, SPIFFE, revoked)
    if not all(believed):
        problems.append("a revocation list was ignored: no CA of a bundle has signed it")
    return Judges(made)


def documents_of(
    given: Mapping[TrustDomain, bytes], problems: deque[str]
) -> dict[TrustDomain, Document]:
    """Parse JWKS documents; one that is malformed makes its trust domain unknown."""
    found: dict[TrustDomain, Document] = {}
    for domain, data in given.items():
        try:
            found[domain] = parse(data, domain)
        except BadInput as error:
            problems.append(f"JWT bundle of {domain} left out: {error.what}")
    return found


class X509Source(Source):
    """X.509-SVIDs of this workload and the bundles to judge its peers by.

    Args:
        client: see `Source`.
        pick: chooses the identity that is presented by default; None: the first one (SP-124).
        ocsp: `soft`: `dial` asks the server for an OCSP response, and refuses what its CA says is
            revoked; `hard`: it refuses a server without a good one, too; `off`: it does not ask.

    Attributes:
        connections: registry of live connections.
        status: OCSP answers of servers that we have dialled; None: `off`.
        staples: OCSP responses about our own SVIDs, for those who dial us.
    """

    def __init__(
        self,
        client: WorkloadClient | str | None = None,
        *,
        pick: Callable[[tuple[Svid, ...]], Svid] | None = None,
        ocsp: Literal["soft", "hard", "off"] = "soft",
    ) -> None:
        super().__init__(client)
        self._pick = pick
        self.status = OcspCache(ocsp == "hard", self.clock) if ocsp != "off" else None
        self.staples = Staples(self.clock)
        self._set: X509Set | None = None
        self._judges = Judges({})
        self.connections = Connections(self.clock)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        follow = Follow(self.client.stream_x509, self._take, self._failed, self._random)
        return [follow.run(), self._tend(), self._staple()]

    @property
    def ready(self) -> bool:
        """Whether the default identity is there and valid."""
        try:
            self.current()
        except Unavailable:
            return False
        return True

    @property
    def svids(self) -> tuple[Svid, ...]:
        """All identities that are valid now, the default one first."""
        now = self.clock()
        held = self._set.svids if self._set is not None else ()
        return tuple(svid for svid in held if now < svid.not_after_unix_s * SECOND)

    @property
    def bundles(self) -> Bundles:
        """CA certificates by trust domain; empty after they were withdrawn."""
        return self._set.bundles if self._set is not None else {}

    @property
    def judges(self) -> Judges:
        """The judge of each trust domain that we have a bundle of."""
        return self._judges

    def current(self, id: str | None = None, *, hint: str | None = None) -> Svid:
        """The identity to present now.

        Args:
            id: this one.
            hint: the one with this hint; None and no `id`: the default one.
        Raises:
            Unavailable: there is none: withdrawn, expired, never had.
        """
        held = self._set.svids if self._set is not None else ()
        if id is not None:
            wanted = spiffe_id(id)
            held = tuple(svid for svid in held if svid.id == wanted)
        if hint is not None:
            held = tuple(svid for svid in held if svid.hint == hint)
        if not held:
            raise Unavailable("X0-SDK-025", "no such SVID", _why(self.error))
        svid = self._pick(held) if self._pick is not None else held[0]
        if self.clock() >= svid.not_after_unix_s * SECOND:
            raise Unavailable("X0-SDK-026", f"the SVID of {svid.id} has expired", _why(self.error))
        return svid

    def _take(self, given: X509Set) -> None:
        self.error = None
        self.problems.extend(given.problems)
        held, self._set = self._set, given
        self.connections.withdraw({svid.id for svid in given.svids})
        if held is None or (held.bundles, held.crls) != (given.bundles, given.crls):
            self._judges = judges_of(given.bundles, given.crls, self.clock, self.problems)
            self.connections.judge(self._judges)
        self._tell()

    def _forget(self) -> None:
        if self._set is not None:
            self._set = None
            self._judges = Judges({})
            self.connections.withdraw(())
            self.connections.judge(self._judges)
            self._tell()

    async def _tend(self) -> None:
        """End connections whose time has come, and tell when the identity has."""
        while True:
            await asyncio.sleep(TICK_S)
            self.connections.expire()
            if self._was_ready != self.ready:
                self._tell()

    async def _staple(self) -> None:
        """Keep OCSP responses about our own SVIDs."""
        while True:
            version = self.version
            wait_s = await self.staples.refresh(self.svids, self._judges)
            if self.staples.problem:
                self.problems.append(f"no OCSP response to hand out: {self.staples.problem}")
            with contextlib.suppress(Unavailable):
                await self.changed(version, wait_s)


class BundleSource(Source):
    """X.509 and JWT bundles, for who validates and has no identity of its own to show.

    Args:
        client: see `Source`.
        x509: whether to follow X.509 bundles.
        jwt: whether to follow JWT bundles.
    """

    def __init__(
        self, client: WorkloadClient | str | None = None, *, x509: bool = True, jwt: bool = True
    ) -> None:
        super().__init__(client)
        assert x509 or jwt
        self._wanted = (x509, jwt)
        self._x509: BundleSet | None = None
        self._judges = Judges({})
        self._jwt: Mapping[TrustDomain, Document] | None = None

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        client, work = self.client, []
        if self._wanted[0]:
            x509 = Follow(client.stream_x509_bundles, self._take, self._failed, self._random)
            work.append(x509.run())
        if self._wanted[1]:
            jwt = Follow(client.stream_jwt_bundles, self._take_jwt, self._failed, self._random)
            work.append(jwt.run())
        return work

    @property
    def ready(self) -> bool:
        """Whether all kinds of bundles that were asked for are there."""
        held = (self._x509 is not None, self._jwt is not None)
        return all(has or not on for has, on in zip(held, self._wanted, strict=True))

    @property
    def bundles(self) -> Bundles:
        """CA certificates by trust domain."""
        return self._x509.bundles if self._x509 is not None else {}

    @property
    def judges(self) -> Judges:
        """The judge of X.509-SVIDs of each trust domain that we have a bundle of."""
        return self._judges

    def _take(self, given: BundleSet) -> None:
        self.error = None
        self.problems.extend(given.problems)
        self._judges = judges_of(given.bundles, given.crls, self.clock, self.problems)
        self._x509 = given
        self._tell()

    @property
    def documents(self) -> Mapping[TrustDomain, Document]:
        """Keys of JWT-SVIDs by trust domain (SP-122)."""
        return self._jwt or {}

    def _take_jwt(self, given: Mapping[TrustDomain, bytes]) -> None:
        self.error = None
        self._jwt = documents_of(given, self.problems)
        self._tell()

    def _forget(self) -> None:
        if self._x509 is not None or self._jwt is not None:
            self._x509 = self._jwt = None
            self._judges = Judges({})
            self._tell()


def _why(error: X0Error | None) -> str:
    return error.what if error is not None else "wait() for it"
