"""Live connections, and when each has to end.

A handshake proves an identity for that moment.  A connection ends when the certificates of its
handshake expire, when its own identity is withdrawn, and when the peer would be refused if it came
now: revoked, or its bundle is gone.

Source: SPIFFE_Workload_API.md section 4.4 (SP-109, SP-116); RFC 5280 section 4.1.2.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final, final

from x0tta6bl4.core.identity.rules import Expect
from x0tta6bl4.core.machine import SECOND, Denied
from x0tta6bl4.edge.tls.judge import Clock, Judging
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

CONNECTIONS_MAX: Final = 65_536
RETIRE_S_MAX: Final = 30
"""A connection takes no new request in the last tenth of its life, or so many seconds of it."""


@final
class Live:
    """One connection, as the registry sees it.

    Args:
        own_id: whom we presented; None: nobody.
        own_not_after_unix_s: end of that certificate; 0: none was presented.
        peer_id: who the peer has proven to be.
        peer_chain: as it was judged, DER.
        peer_not_after_unix_s: end of the peer's certificates.
        expect: what was asked of the peer.
        group: key exchange, e.g. `X25519MLKEM768`.
        end: ends the connection at once, with a reason.
        gone: whether it was closed meanwhile, for those that nobody takes out again.
    """

    __slots__ = (
        "end",
        "expect",
        "gone",
        "group",
        "not_after_unix_s",
        "own_id",
        "own_is_first",
        "peer_chain",
        "peer_id",
        "retire_unix_us",
    )

    def __init__(
        self,
        own_id: SpiffeId | None,
        own_not_after_unix_s: int,
        peer_id: SpiffeId,
        peer_chain: tuple[bytes, ...],
        peer_not_after_unix_s: int,
        expect: Expect,
        group: str,
        end: Callable[[str], None],
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.own_id = own_id
        self.own_is_first = 0 < own_not_after_unix_s <= peer_not_after_unix_s
        """Whose certificate ends first: ours, or the peer's."""
        self.not_after_unix_s = own_not_after_unix_s if self.own_is_first else peer_not_after_unix_s
        self.retire_unix_us = self.not_after_unix_s * SECOND
        """From then on nothing new should begin on it, so that nothing is cut off at its end."""
        self.peer_id = peer_id
        self.peer_chain = peer_chain
        self.expect = expect
        self.group = group
        self.end = end
        self.gone = gone

    @property
    def expired_reason(self) -> str:
        """What to say when `not_after_unix_s` has come."""
        return "own SVID expired" if self.own_is_first else "SVID of the peer expired"


class Connections:
    """Registry of live connections.

    Args:
        clock: wall time, microseconds.
    """

    __slots__ = ("_clock", "_judging", "_live", "_own", "ended", "groups", "refused")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._live: dict[Live, None] = {}
        self._judging: Judging | None = None
        self._own: Collection[SpiffeId] = ()
        self.ended: Counter[str] = Counter()
        """Reason -> connections that were ended here; bounded by the number of reasons."""
        self.groups: Counter[str] = Counter()
        """Key exchange -> connections since the start."""
        self.refused: Counter[str] = Counter()
        """Reason -> peers that we have refused; bounded by the number of reasons."""

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Live]:
        return iter(tuple(self._live))

    def add(self, live: Live, judged_by: Judging | None = None) -> None:
        """Take a connection in; it is ended as soon as it must be.

        Args:
            live: the connection.
            judged_by: who has judged its peer.  A handshake takes as long as the peer likes: if
                there are newer judges by now, they are asked, too.
        Raises:
            Refused: it would be refused now; the connection has to be closed.
            Unavailable: there are too many; likewise.
        """
        if len(self._live) >= CONNECTIONS_MAX:
            raise Unavailable("X0-SDK-020", "too many connections", f"at most {CONNECTIONS_MAX}")
        reason = self._refusal(live, judged_by) if judged_by is not None else ""
        if reason:
            self.refuse(reason)
            raise Refused("X0-SDK-030", f"connection ended: {reason}")
        end_us = live.not_after_unix_s * SECOND
        live.retire_unix_us = end_us - min(RETIRE_S_MAX * SECOND, (end_us - self._clock()) // 10)
        self._live[live] = None
        self.groups[live.group] += 1

    def _refusal(self, live: Live, judged_by: Judging) -> str:
        """Why a connection is late; empty: it is not."""
        if live.own_id is not None and live.own_id not in self._own:
            return "own identity withdrawn"
        if self._judging is None or self._judging is judged_by:
            return ""
        verdict = self._judging.judge(live.peer_chain, live.expect).verdict
        return verdict.reason if type(verdict) is Denied else ""

    def retiring(self, live: Live) -> bool:
        """Whether nothing new should begin on it, as its end is near."""
        return self._clock() >= live.retire_unix_us

    def refuse(self, reason: str) -> None:
        """Count a peer that was refused."""
        self.refused[reason] += 1

    def remove(self, live: Live) -> None:
        """It was closed; unknown ones are ignored."""
        self._live.pop(live, None)

    def expire(self) -> None:
        """End those whose certificates have expired; forget those that were closed."""
        now = self._clock()
        for live in [one for one in self._live if one.gone()]:
            self.remove(live)
        for live in [one for one in self._live if one.not_after_unix_s * SECOND <= now]:
            self._end(live, live.expired_reason)

    def withdraw(self, own: Collection[SpiffeId]) -> None:
        """End those under an identity that is not ours any more.

        Args:
            own: the identities that are.
        """
        self._own = own
        for live in [one for one in self._live if one.own_id and one.own_id not in own]:
            self._end(live, "own identity withdrawn")

    def judge(self, judging: Judging) -> None:
        """End those whose peers would be refused by these judges."""
        self._judging = judging
        for live in tuple(self._live):
            verdict = judging.judge(live.peer_chain, live.expect).verdict
            if type(verdict) is Denied:
                self._end(live, f"peer refused: {verdict.reason}")

    def _end(self, live: Live, reason: str) -> None:
        self.remove(live)
        self.ended[reason] += 1
        live.end(reason)
