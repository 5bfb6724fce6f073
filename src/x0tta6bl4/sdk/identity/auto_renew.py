"""Keep an X.509-SVID or a JWT-SVID fresh, in the background, and tell of it.

At half of its life, ten percent sooner or later, a new one is fetched; a failure is repeated with
growing pauses while the old one is still good; PermissionDenied takes it away at once.  When to do
what is `core.identity.renewal`'s business: here are the fetching, the files and the clock.

`X509Source` hears of new SVIDs without asking; this is for JWT-SVIDs, and for SVIDs in files.

Source: SPIFFE_Workload_API.md sections 4.4 and 6; SP-098, SP-116.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Protocol, Self

from x0tta6bl4.core.identity.renewal import Renewal, RenewWanted, SvidExpired, SvidHeld
from x0tta6bl4.core.machine import MS, NEVER, SECOND, ClockSet, Done, Effects, Failed, Instant, Tick
from x0tta6bl4.edge.jwt.svid import JwtSvid
from x0tta6bl4.edge.tls.x509 import parse
from x0tta6bl4.runtime.clocks import clock, unix_us
from x0tta6bl4.sdk.identity.answers import X509Set
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.files import write_token, write_x509
from x0tta6bl4.sdk.identity.jwt import fetch_jwt_svids
from x0tta6bl4.wire.errors import BadInput, BadMessage, NotFound, Refused, X0Error
from x0tta6bl4.wire.ids import SpiffeId, domain_of

Held = X509Set | JwtSvid
OnRenewed = Callable[[Held], None]
OnFailed = Callable[[X0Error | OSError], None]
OnLost = Callable[[str], None]

_STEP_US: Final = 500 * MS
"""A wall clock that is off by more has been set."""
_SLICE_S: Final = 1.0
_ME: Final = SpiffeId("spiffe://auto.renew/held")
"""Name of the one thing that the renewal machine looks after here."""


class Time(Protocol):
    """The clocks of a host, or a fake one."""

    def instant(self) -> Instant:
        """Microseconds that only go forward."""
        ...

    def unix_us(self) -> int:
        """Wall time; it may step."""
        ...

    async def sleep(self, until: Instant) -> None:
        """Sleep; not longer than a second beyond a step of the wall clock."""
        ...


class HostTime:
    """The clocks of this host."""

    def instant(self) -> Instant:
        """CLOCK_BOOTTIME."""
        return clock()

    def unix_us(self) -> int:
        """CLOCK_REALTIME."""
        return unix_us()

    async def sleep(self, until: Instant) -> None:
        """In slices of a second, and less when the wall clock was set."""
        offset = self.unix_us() - self.instant()
        while (left := until - self.instant()) > 0:
            await asyncio.sleep(min(left / SECOND, _SLICE_S))
            if abs(self.unix_us() - self.instant() - offset) > _STEP_US:
                return


def enable_auto_renew(
    client: WorkloadClient,
    *,
    audience: str | tuple[str, ...] | None = None,
    id: str | None = None,
    folder: Path | str | None = None,
    on_renewed: OnRenewed | None = None,
    on_failed: OnFailed | None = None,
    on_lost: OnLost | None = None,
    time: Time | None = None,
    random: Random | None = None,
) -> AutoRenew:
    """Start to keep something fresh, in the running loop.

    Args:
        client: the Workload API.
        audience: of a JWT-SVID; None: the X.509-SVIDs of this workload.
        id: whose JWT-SVID; None: the default identity's.
        folder: where it is written, too (see `sdk.identity.files`).
        on_renewed: hears of each new one, after it was written.
        on_failed: hears why it could not be renewed or written; it is tried again.
        on_lost: hears `expired` or `withdrawn`: nothing is held any more.
        time: clocks; a fake one in tests.
        random: for the spread of times.
    """

    async def fetch() -> Held:
        if audience is None:
            return await client.fetch_x509()
        return (await fetch_jwt_svids(audience, id=id, client=client))[0]

    renewal = AutoRenew(
        fetch,
        Path(folder) if folder is not None else None,
        on_renewed or _ignore,
        on_failed or _ignore,
        on_lost or _ignore,
        time or HostTime(),
        random or Random(secrets.randbits(64)),
    )
    renewal.start()
    return renewal


class AutoRenew:
    """Something that is kept fresh; as a context it stops at its end.

    Attributes:
        error: what went wrong last; None after a success.
        renewed: how often it was.
    """

    def __init__(
        self,
        fetch: Callable[[], Coroutine[Any, Any, Held]],
        folder: Path | None,
        on_renewed: OnRenewed,
        on_failed: OnFailed,
        on_lost: OnLost,
        time: Time,
        random: Random,
    ) -> None:
        self._fetch = fetch
        self._folder = folder
        self._on_renewed = on_renewed
        self._on_failed = on_failed
        self._on_lost = on_lost
        self._time = time
        self._machine = Renewal(random)
        self._held: Held | None = None
        self._ends_us = 0
        self._task: asyncio.Task[None] | None = None
        self._under_way: tuple[int, asyncio.Future[Held]] | None = None
        self.error: X0Error | OSError | None = None
        self.renewed = 0

    @property
    def current(self) -> Held | None:
        """What is held; None where it is missing, withdrawn or expired."""
        return self._held if self._time.unix_us() < self._ends_us else None

    @property
    def running(self) -> bool:
        """Whether it goes on; not after InvalidArgument or Unimplemented (SP-098)."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin, in the running loop."""
        assert self._task is None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; what is held stays readable until it expires."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def __aenter__(self) -> Self:
        """Use as a context: stops at its end."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    # --------------------------------------------------------------------------------- driver
    async def _run(self) -> None:
        machine, time = self._machine, self._time
        # Nothing is held yet: to the machine that is something that expired long ago.
        machine.handle(time.instant(), SvidHeld(_ME, 0, 2))
        try:
            while not self._hopeless():
                self._carry_out(machine.handle(time.instant(), ClockSet(time.unix_us())))
                self._carry_out(machine.handle(time.instant(), Tick()))
                await self._pause(machine.deadline)
                self._collect()
        finally:
            if self._under_way is not None:
                self._under_way[1].cancel()

    def _hopeless(self) -> bool:
        error = self.error
        final = isinstance(error, BadInput) and not isinstance(error, BadMessage)
        return final or isinstance(error, NotFound)

    def _carry_out(self, effects: Effects) -> None:
        for effect in effects:
            if type(effect) is RenewWanted:
                work = asyncio.get_running_loop().create_task(self._fetch())
                self._under_way = (effect.token, work)
            elif type(effect) is SvidExpired:
                self._lose("expired")

    async def _pause(self, deadline: Instant) -> None:
        """Sleep until the machine wants something or the answer is there."""
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[Any]] = []
        if deadline != NEVER:
            waiting.append(loop.create_task(self._time.sleep(deadline)))
        if self._under_way is not None:
            waiting.append(self._under_way[1])
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if deadline != NEVER:
                waiting[0].cancel()

    def _collect(self) -> None:
        """Take the answer of a fetch that is done, and tell the machine."""
        if self._under_way is None or not self._under_way[1].done():
            return
        (token, work), self._under_way = self._under_way, None
        try:
            held = work.result()
            start, end = _times(held)
            self._held, self._ends_us = held, end * SECOND  # Even if it can't be written.
            self._write(held)
        except (X0Error, OSError) as error:
            self.error = error
            if isinstance(error, Refused):
                self._lose("withdrawn")
            self._on_failed(error)
            answer: Done | Failed = Failed(token, str(error))
        else:
            self.error = None
            self.renewed += 1
            self._on_renewed(held)
            answer = Done(token, SvidHeld(_ME, start, end))
        self._carry_out(self._machine.handle(self._time.instant(), answer))

    def _write(self, held: Held) -> None:
        if self._folder is None:
            return
        if isinstance(held, X509Set):
            svid = held.svids[0]
            write_x509(self._folder, svid, held.bundles[domain_of(svid.id)])
        else:
            write_token(self._folder, held.token)

    def _lose(self, reason: str) -> None:
        if self._held is not None:
            self._held = None
            self._on_lost(reason)


def _times(held: Held) -> tuple[int, int]:
    """When it begins and ends, unix seconds; of several SVIDs the one that ends first."""
    if isinstance(held, JwtSvid):
        return held.issued_unix_s, held.expires_unix_s
    fields = [parse(svid.chain[0]).fields for svid in held.svids]
    end = min(svid.not_after_unix_s for svid in held.svids)
    return max(one.not_before_unix_s for one in fields), end


def _ignore(_: object) -> None:
    """The callback of who wants none."""
