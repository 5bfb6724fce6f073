"""OCSP responses about our own SVIDs, kept so that whoever dials us gets one at once.

An SVID that names a responder is asked about as soon as it is there, and again at half of the time
that an answer counts.  What is not good, or not proven to be of the CA, is never handed out: peers
then decide as without one.

Source: RFC 6960; RFC 8446 section 4.4.2.1 (stapling in TLS 1.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.core.machine import SECOND, Denied
from x0tta6bl4.edge.tls.judge import Clock, Judging
from x0tta6bl4.edge.tls.ocsp import RESPONSE_BYTES_MAX, judge_response, request_for, responder_of
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire.errors import Unavailable

REPEAT_S: Final = 5.0
"""After a failure."""
LEFT_S_MIN: Final = 5
"""A response that ends sooner is not handed out: the peer's clock may be ahead."""
IDLE_S: Final = 3600.0

Fetch = Callable[[str, bytes], Awaitable[bytes]]
"""(address of the responder, request) -> response; raises Unavailable."""


async def fetch(url: str, request: bytes) -> bytes:
    """Ask a responder over HTTP.

    Raises:
        Unavailable: no answer.
    """
    from x0tta6bl4.edge.http import post  # Few need it.

    return await post(url, "application/ocsp-request", request, RESPONSE_BYTES_MAX)


class Staples:
    """Responses about some SVIDs; as many as there are SVIDs.

    Args:
        clock: wall time, microseconds.
        fetch: asks a responder.

    Attributes:
        problem: why the last one that is missing is missing; empty: none is.
    """

    def __init__(self, clock: Clock, fetch: Fetch = fetch) -> None:
        self._clock = clock
        self._fetch = fetch
        self._held: dict[bytes, tuple[bytes, int, int]] = {}
        self.problem = ""

    def of(self, svid: Svid) -> bytes:
        """The response to hand out with an SVID, DER; empty: there is none."""
        held = self._held.get(_key(svid))
        if held is None or (held[2] - LEFT_S_MIN) * SECOND <= self._clock():
            return b""
        return held[0]

    async def refresh(self, svids: Sequence[Svid], judging: Judging) -> float:
        """Fetch what is missing or past half of its time; forget what nobody has any more.

        Returns:
            Seconds after which to call again.
        """
        self.problem = ""
        next_s = IDLE_S
        before, self._held = self._held, {}
        for svid in svids:
            url = responder_of(svid.chain[0])
            if not url:
                continue
            key = _key(svid)
            held = before.get(key)
            now_s = self._clock() // SECOND
            if held is not None:
                self._held[key] = held
            if held is None or now_s >= (held[1] + held[2]) // 2:
                got = await self._ask(url, svid, judging)
                if got is None:
                    next_s = min(next_s, REPEAT_S)
                    continue
                held = self._held[key] = got
            next_s = min(next_s, max(1.0, (held[1] + held[2]) / 2 - now_s))
        return next_s

    async def _ask(self, url: str, svid: Svid, judging: Judging) -> tuple[bytes, int, int] | None:
        leaf, issuer = svid.chain[0], judging.judge(svid.chain, ANYBODY).issuer
        if not issuer:
            self.problem = "our own SVID would be refused"
            return None
        try:
            response = await self._fetch(url, request_for(leaf, issuer))
        except Unavailable as error:
            self.problem = error.what
            return None
        now_us = self._clock()
        found = judge_response(response, leaf, issuer, now_us)
        if isinstance(found, Denied):
            self.problem = f"{url}: {found.reason}"
            return None
        if found.revoked:
            self.problem = f"{url}: revoked"
            return None
        return response, now_us // SECOND, found.next_unix_s


def _key(svid: Svid) -> bytes:
    return hashlib.sha256(svid.chain[0]).digest()
