"""The agent's connection to the authority: one watch, and SVIDs in batches.

It is tried directly where the configuration names addresses, one after the other, else (and next)
through `authority.sock`, whose bytes this node's proxy carries along the mesh.  Where there are
several authorities, those that it does not need now are knocked at now and then.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

from x0tta6bl4.core.agent import words
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.authority import ISSUE_MAX, Minted, Wanted
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId

if TYPE_CHECKING:
    from x0tta6bl4.app.agent import AgentProcess

RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 5.0
SILENT: Final = "X0-AUT-006"
"""What the client raises when nobody answers in time."""
ENDED: Final = ("X0-AUT-007", "X0-AUT-008")
"""What it raises when its connection has ended."""
ENDED_S: Final = 1.0
"""How soon the watch notices that, too."""
ASK_EVERY_S: Final = 30.0
"""Least time between two attestations of a node whose SVID is not taken."""
OFFSETS: Final = 5
KNOCK_EVERY_S: Final = 60.0
KNOCK_S: Final = 3.0
"""Deadline of a connection to an authority that is not needed now."""
WAITING_MAX: Final = 8192


class AuthorityLink:
    """Watches and renews over one client at a time.

    Attributes:
        via: `direct` or `mesh`, how it is connected now; empty: it is not.
        address: of the authority that was connected directly last; empty: none was.
        away: addresses of authorities that did not answer when they were tried last.
    """

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._client: AuthorityClient | None = None
        self._waiting: dict[int, SpiffeId] = {}
        self._wake = asyncio.Event()
        self.via = ""
        self.address = ""
        self.away: set[str] = set()
        self._hoping = False
        """The connection is lost just now: what is asked for waits for the next."""
        self._ask_at = 0.0
        self._refusal = ""
        self._offsets_ms: deque[int] = deque(maxlen=OFFSETS)

    @property
    def offset_ms(self) -> int:
        """The authority's clock minus ours; what was told late only looks like an offset."""
        return min(self._offsets_ms, key=abs, default=0)

    def renew(self, token: int, id: SpiffeId) -> None:
        """Ask for an SVID; answered by `renewed` or `not_renewed` of the agent."""
        if len(self._waiting) >= WAITING_MAX:
            self._refuse_soon(token, id, "too many renewals wait")
        elif self._client is None and not self._hoping:
            self._refuse_soon(token, id, "authority not connected")
        else:
            self._waiting[token] = id
            self._wake.set()

    async def mint(self, entry: str, audience: tuple[str, ...]) -> Minted:
        """Have a JWT-SVID signed.

        Raises:
            X0Error: Unavailable while there is no connection.
        """
        if self._client is None:
            raise Unavailable("X0-WLA-013", "the authority is not connected", "see `x0 status`")
        return await self._client.mint(entry, audience)

    def _refuse_soon(self, token: int, id: SpiffeId, reason: str) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self._agent.not_renewed, token, id, reason)

    async def watch(self) -> None:
        """Keep a watch open, for ever; every loss is told to the machine."""
        wait = RETRY_FIRST_S
        at = self._agent.settings.authority
        ways = [("direct", address) for address in (at.address, *at.also) if address]
        ways.append(("mesh", f"unix:{self._agent.state_dir / 'authority.sock'}"))
        turn = 0
        while True:
            via, target = ways[turn % len(ways)]
            turn += 1
            reason = "closed"
            tls = self._agent.trusts.authority_client()
            try:
                async with AuthorityClient(target, tls, unix_us) as client:
                    issuing = asyncio.create_task(self._issue_for_ever(client))
                    try:
                        async for update in client.watch():
                            if self._client is None:
                                self._connected(client, via, target)
                                wait, turn = RETRY_FIRST_S, turn - 1
                            self._offsets_ms.append((update.unix_us - unix_us()) // 1000)
                            self._agent.driver.post(words.AuthoritySaid(update))
                            self._agent.desk.authority_said(update)
                    finally:
                        issuing.cancel()
                        await asyncio.gather(issuing, return_exceptions=True)
            except X0Error as error:
                reason = str(error)
                if via == "direct" and isinstance(error, Unavailable):
                    self.away.add(target)
                if self._client is None and error.id != SILENT:
                    reason = await self._ask_why(target) or reason
            self._lost(reason)
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_LAST_S)

    async def _ask_why(self, target: str) -> str:
        """An SVID that has ended or is revoked is refused without a word: attest by the key.

        Returns:
            Why the authority wants nothing of this node; empty if it has a new SVID now, or
            nobody is there to say.
        """
        now = asyncio.get_running_loop().time()
        if now < self._ask_at:
            return self._refusal
        self._ask_at, self._refusal = now + ASK_EVERY_S, ""
        try:
            await self._agent.attest_again(target)
        except Refused as error:
            self._refusal = str(error)
            self._agent.desk.event("authority", self._refusal)
        except X0Error:
            pass  # The watch has told as much.
        return self._refusal

    async def knock(self) -> None:
        """Find out which authorities can't be reached, for ever; there are several."""
        at = self._agent.settings.authority
        while at.also:
            await asyncio.sleep(KNOCK_EVERY_S)
            for address in (at.address, *at.also):
                if self.via != "direct" or address != self.address:
                    await self._knock(address)

    async def _knock(self, address: str) -> None:
        self.away.discard(address)
        try:
            async with asyncio.timeout(KNOCK_S):
                _, writer = await asyncio.open_connection(*split_address(address))
        except (OSError, TimeoutError):
            self.away.add(address)
        else:
            writer.transport.abort()

    def _connected(self, client: AuthorityClient, via: str, target: str) -> None:
        self._client = client
        self.via = via
        self.away.discard(target)
        if via == "direct" and target != self.address:
            self.address = target
            self._agent.reconfigure()  # Neighbours are carried there, too.
        self._hoping = False
        if self._waiting:
            self._wake.set()
        self._agent.desk.authority_error = ""
        self._agent.desk.event("authority", f"connected, {via}")
        self._agent.driver.post(words.AuthorityState(True))

    def _lost(self, reason: str) -> None:
        was, self._client, self.via = self._client, None, ""
        self._agent.resolver.wake()  # It may have moved.
        self._agent.desk.authority_error = reason
        if was is not None:
            self._agent.desk.event("authority", f"connection lost: {reason}")
        self._agent.driver.post(words.AuthorityState(False, reason))
        self._hoping = was is not None
        if self._hoping:
            return  # The authority ends each connection with the SVID that opened it.
        waiting, self._waiting = self._waiting, {}
        for token, id in waiting.items():
            self._agent.not_renewed(token, id, reason)

    async def _issue_for_ever(self, client: AuthorityClient) -> None:
        """Collect what is wanted now, ask for it together, hand the answers out."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and self._client is client:
                batch = dict(list(self._waiting.items())[:ISSUE_MAX])
                for token in batch:
                    del self._waiting[token]
                await self._issue(client, batch)

    async def _issue(self, client: AuthorityClient, batch: dict[int, SpiffeId]) -> None:
        agent = self._agent
        entries = {entry.id: entry.key for entry in agent.machine.view().entries}
        kind = agent.trusts.key_kind
        keys = {token: x509.new_key(kind) for token in batch}
        wanted = []
        for token, id in list(batch.items()):
            if id != agent.id and id not in entries:
                del batch[token]
                agent.not_renewed(token, id, "no entry names this node for it")
                continue
            entry = "" if id == agent.id else entries[id]
            wanted.append(Wanted(entry=entry, csr=x509.new_csr(keys[token])))
        if not wanted:
            return
        try:
            try:
                answers = await client.issue(tuple(wanted))
            except X0Error as error:
                if error.id in ENDED:
                    await asyncio.sleep(ENDED_S)  # Who asks is cancelled meanwhile.
                for token, id in batch.items():
                    agent.not_renewed(token, id, str(error))
                return
        except asyncio.CancelledError:
            self._waiting = {**batch, **self._waiting}  # For the next connection.
            raise
        for (token, id), issued in itertools.zip_longest(batch.items(), answers[: len(batch)]):
            if issued is None:
                agent.not_renewed(token, id, "the authority left it out of its answer")
            elif issued.refused or issued.id != id:
                agent.not_renewed(token, id, issued.refused or "another ID was issued")
            else:
                agent.renewed(
                    token,
                    Svid(
                        SpiffeId(id),
                        issued.chain,
                        x509.key_bytes(keys[token]),
                        issued.not_after_unix_s,
                    ),
                )
