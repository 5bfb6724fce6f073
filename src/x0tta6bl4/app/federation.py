"""Federation of an authority: its own bundle served, those of other trust domains polled.

The machine says who is due and takes in what came; here is only the way there and back.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from x0tta6bl4.app.settings import BundleEndpointAt, FederationAt
from x0tta6bl4.core.authority.federating import SPIFFE, Polled, due
from x0tta6bl4.core.authority.state import State
from x0tta6bl4.edge.authority_api.server import bind_tcp
from x0tta6bl4.edge.bundle.document import encode, of_bundle, parse
from x0tta6bl4.edge.bundle.fetch import fetch, spiffe_tls, web_tls
from x0tta6bl4.edge.bundle.serve import BundleEndpoint
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.telemetry.log import Logger
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.authority import Federation
from x0tta6bl4.wire.errors import BadInput, X0Error
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain, domain_of
from x0tta6bl4.wire.records import decode_bundle

AT_ONCE_MAX: Final = 8
"""Polls at once."""
LOOK_S_MAX: Final = 60.0
HINT_PARTS: Final = 5
"""A new CA stands in the bundle for so many refresh hints before it signs (SP-126: 3 to 5)."""


def own_document(state: State, ca_advance_s: int) -> bytes:
    """The newest published bundle of our own trust domain, for others."""
    document = of_bundle(decode_bundle(state.newest_bundle().body))
    return encode(
        msgspec.structs.replace(document, refresh_hint_s=max(1, ca_advance_s // HINT_PARTS))
    )


class OwnEndpoint:
    """The bundle endpoint as the settings want it; closed and silent where they want none.

    Args:
        at: settings.
        document: the newest bundle.
    """

    def __init__(self, at: BundleEndpointAt, document: Callable[[], bytes]) -> None:
        self._at = at
        self._endpoint = BundleEndpoint(document)
        self.port = 0

    async def start(self, svid: Svid) -> None:
        """Serve.

        Raises:
            BadConfig, Conflict: the certificate or the address can't be used.
        """
        if not self._at.listen:
            return
        self.renew(svid)
        sock = bind_tcp(*split_address(self._at.listen))
        self.port = sock.getsockname()[1]
        try:
            await self._endpoint.serve(sock)
        except BaseException:
            sock.close()
            raise

    def renew(self, svid: Svid) -> None:
        """The authority has a new SVID; files of the web are read anew on the occasion."""
        if not self._at.listen:
            return
        if self._at.profile == SPIFFE:
            self._endpoint.present_svid(svid.chain, svid.key)
        else:
            self._endpoint.present_files(self._at.certificate, self._at.key)

    async def stop(self) -> None:
        """Close it."""
        await self._endpoint.stop()

    def statistics(self) -> dict[str, int]:
        """Plain sums."""
        return self._endpoint.counts


class Poller:
    """Polls what is due, for ever.

    Args:
        at: settings.
        state: of the machine.
        unix_us: wall time.
        leads: whether this authority is the one of its trust domain that polls.
        tell: hands over how a poll ended.
        log: for failures and changes.

    Attributes:
        wake: set it when what is due has changed.
    """

    def __init__(
        self,
        at: FederationAt,
        state: State,
        unix_us: Callable[[], int],
        leads: Callable[[], bool],
        tell: Callable[[Polled], Awaitable[Federation | None]],
        log: Logger,
    ) -> None:
        self._roots = at.roots
        self._state = state
        self._unix_us = unix_us
        self._leads = leads
        self._tell = tell
        self._log = log
        self.wake = asyncio.Event()
        self.counts = {"polls": 0, "polls_failed": 0}

    async def run(self) -> None:
        """Poll; until cancelled."""
        while True:
            self.wake.clear()
            rows = due(self._state.federations.values(), self._unix_us() // 1_000_000)
            rows = rows if self._leads() else ()
            async with asyncio.TaskGroup() as group:
                for row in rows[:AT_ONCE_MAX]:
                    group.create_task(self._poll(row))
            await self._sleep()

    async def _sleep(self) -> None:
        now_s = self._unix_us() / 1e6
        ends = [row.next_unix_s - now_s for row in self._state.federations.values()]
        ends = ends if self._leads() else []
        try:
            async with asyncio.timeout(max(0.2, min([LOOK_S_MAX, *ends]))):
                await self.wake.wait()
        except TimeoutError:
            pass

    async def _poll(self, row: Federation) -> None:
        polled = Polled(row.trust_domain)
        try:
            polled = Polled(row.trust_domain, await fetch(row.url, self._tls(row)))
        except X0Error as error:
            polled = Polled(row.trust_domain, failed=str(error))
        try:
            now = await self._tell(polled)
        except X0Error as error:  # It can't be written now; the poll stays due.
            self._log.warning("poll not kept", trust_domain=row.trust_domain, error=str(error))
            await asyncio.sleep(1.0)
            return
        self.counts["polls"] += 1
        if now is None:
            return
        if now.failed:
            self.counts["polls_failed"] += 1
            self._log.warning("poll failed", trust_domain=row.trust_domain, error=now.failed)
        elif now.bundle != row.bundle:
            self._log.info(
                "bundle of a foreign trust domain",
                trust_domain=row.trust_domain,
                sequence=now.sequence,
            )

    def _tls(self, row: Federation) -> ssl.SSLContext:
        if row.profile != SPIFFE:
            return web_tls(self._roots)
        endpoint = SpiffeId(row.endpoint_id)
        return spiffe_tls(endpoint, self._anchors(domain_of(endpoint)), self._unix_us)

    def _anchors(self, domain: TrustDomain) -> tuple[bytes, ...]:
        if domain == self._state.the_domain().trust_domain:
            return tuple(ca.certificate for ca in self._state.cas.values())
        held = self._state.federations.get(domain)
        if held is None or not held.bundle:
            raise BadInput(
                "X0-FED-004", f"no bundle of {domain}, by which the endpoint is to be judged"
            )
        return parse(held.bundle, domain).x509
