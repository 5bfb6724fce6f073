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


class Moving:
    """Tells connections to move, each once.

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
        self._held: dict[object, tuple[Svid | None, Callable[[], None]]] = {}
        self._remove = source.on_change(self._changed)

    def add(
        self, own: Svid | None, not_after_unix_s: int, move: Callable[[], None]
    ) -> Callable[[], None]:
        """Watch one connection; as many as `Connections` holds.

        Args:
            own: what it presents.
            not_after_unix_s: its end.
            move: called once when the time has come, in the loop.
        Returns:
            What forgets it again; does nothing the second time.
        """
        key = object()
        self._held[key] = (own, move)
        left_s = not_after_unix_s - self._source.clock() / SECOND
        wait_s = 0 if self._is_old(own) else max(left_s * (1 - self._share), 0)
        timer = asyncio.get_running_loop().call_later(wait_s, self._move, key)

        def forget() -> None:
            timer.cancel()
            self._held.pop(key, None)

        return forget

    def _is_old(self, own: Svid | None) -> bool:
        """Whether it was replaced; what was withdrawn is ended by the registry."""
        held = self._source.svids
        return self._rotation and bool(held) and own not in held

    def _changed(self) -> None:
        for key in [key for key, (own, _) in self._held.items() if self._is_old(own)]:
            self._move(key)

    def _move(self, key: object) -> None:
        found = self._held.pop(key, None)
        if found is not None:
            found[1]()

    def close(self) -> None:
        """Watch no more."""
        self._remove()
        self._held.clear()
