"""Connections of clients that move to newer SVIDs while the old ones are still good.

A connection ends when its certificates do, whatever it is doing.  So whoever can open another one
does it in time: when its own SVID has been replaced, or when only a share of its time is left.

Source: decided here; the share of a client is larger than that of a server, so that the one who
can open connections acts first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity.source import X509Source

CLIENT_SHARE: Final = 1 / 4
"""A client moves when so much of a connection's time is left."""
SERVER_SHARE: Final = 1 / 8
"""A server asks its client to, where the protocol has words for it."""
AGAIN_S: Final = 1.0
"""Whoever has not moved by then is told again, each time after twice the time: a pool does not see
connections that are just being made."""


class _Held:
    """One connection."""

    __slots__ = ("move", "own", "timer", "told")

    def __init__(self, own: Svid | None, move: Callable[[], None]) -> None:
        self.own = own
        self.move = move
        self.timer: asyncio.TimerHandle | None = None
        self.told = False


class Moving:
    """Tells connections to move.

    Args:
        source: of the identity that they present.
        share: of a connection's time, at its end, in which it should not be in use any more.
        rotation: whether a newer SVID is a reason.
    """

    __slots__ = ("_held", "_remove", "_rotation", "_share", "_source")

    def __init__(self, source: X509Source, share: float, *, rotation: bool = True) -> None:
        self._source = source
        self._share = share
        self._rotation = rotation
        self._held: dict[_Held, None] = {}
        self._remove = source.on_change(self._changed)

    def add(
        self, own: Svid | None, not_after_unix_s: int, move: Callable[[], None]
    ) -> Callable[[], None]:
        """Watch one connection; as many as `Connections` holds.

        Args:
            own: what it presents.
            not_after_unix_s: its end.
            move: called in the loop when the time has come, and again until it is forgotten.
        Returns:
            What forgets it; does nothing the second time.
        """
        held = _Held(own, move)
        self._held[held] = None
        left_s = not_after_unix_s - self._source.clock() / SECOND
        self._later(held, 0 if self._is_old(own) else max(left_s * (1 - self._share), 0), AGAIN_S)

        def forget() -> None:
            if self._held.pop(held, held) is None and held.timer is not None:
                held.timer.cancel()

        return forget

    def _is_old(self, own: Svid | None) -> bool:
        """Whether it was replaced; what was withdrawn is ended by the registry."""
        held = self._source.svids
        return self._rotation and bool(held) and own not in held

    def _changed(self) -> None:
        for held in [one for one in self._held if not one.told and self._is_old(one.own)]:
            self._later(held, 0, AGAIN_S)

    def _later(self, held: _Held, wait_s: float, again_s: float) -> None:
        if held.timer is not None:
            held.timer.cancel()
        held.timer = asyncio.get_running_loop().call_later(wait_s, self._tell, held, again_s)

    def _tell(self, held: _Held, again_s: float) -> None:
        held.told = True
        self._later(held, again_s, again_s * 2)
        held.move()

    def close(self) -> None:
        """Watch no more."""
        self._remove()
        for held in self._held:
            if held.timer is not None:
                held.timer.cancel()
        self._held.clear()
