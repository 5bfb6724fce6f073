"""Who is revoked: a table that every judgement asks.

An entry bans an ID for good, or only the SVIDs that were issued before an instant; an entry for a
node covers every SVID that was issued through it (house rule, ARCHITECTURE: who may say what).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.wire.ids import NodeName, SpiffeId, domain_of, node_id

REVOCATIONS_MAX: Final = 262_144
"""At the bound everybody is denied: a table that forgets would be worse."""


class Revocations:
    """Table of revocations; answers `check` in constant time."""

    __slots__ = ("_bans", "_count", "_full")

    def __init__(self) -> None:
        # subject -> {issued before (0: ever): until}
        self._bans: dict[str, dict[int, int]] = {}
        self._count = 0
        self._full = False

    def __len__(self) -> int:
        return self._count

    def replace(self, items: Iterable[tuple[str, int, int]]) -> None:
        """Take a whole set: (subject, until in unix seconds, issued before in unix seconds)."""
        self._bans = {}
        self._count = 0
        self._full = False
        for subject, until_unix_s, issued_before_unix_s in items:
            self.put(subject, until_unix_s, issued_before_unix_s)

    def put(self, subject: str, until_unix_s: int, issued_before_unix_s: int = 0) -> None:
        """Add one, or move its end.

        Args:
            subject: SPIFFE ID of a workload or a node.
            until_unix_s: when the last SVID that it hits has expired.
            issued_before_unix_s: 0: the identity is banned; else only SVIDs whose notBefore is
                earlier are revoked.
        """
        bans = self._bans.setdefault(subject, {})
        if issued_before_unix_s not in bans:
            if self._count >= REVOCATIONS_MAX:
                self._full = True
                return
            self._count += 1
        bans[issued_before_unix_s] = until_unix_s

    def drop(self, subject: str, issued_before_unix_s: int = 0) -> None:
        """Take one back; unknown ones are ignored."""
        bans = self._bans.get(subject)
        if bans is not None and bans.pop(issued_before_unix_s, None) is not None:
            self._count -= 1
            if not bans:
                del self._bans[subject]

    def prune(self, now_unix_s: int) -> None:
        """Forget those whose every SVID has expired."""
        kept = [
            (subject, until, before)
            for subject, bans in self._bans.items()
            for before, until in bans.items()
            if until > now_unix_s
        ]
        full = self._full
        self.replace(kept)
        self._full = full  # What did not fit is not known; only a new set mends it.

    def check(self, id: SpiffeId, issued_unix_s: int, via_node: NodeName | None) -> Verdict:
        """Whether an SVID still counts.

        Args:
            id: who it names.
            issued_unix_s: its notBefore.
            via_node: node through which it was issued, if it says so.
        Returns:
            Allowed, or Denied with `revoked`, `node revoked`, `revocation table full`.
        """
        if self._full:
            return Denied("revocation table full")
        if self._hit(id, issued_unix_s):
            return Denied("revoked")
        if via_node is not None and self._hit(node_id(domain_of(id), via_node), issued_unix_s):
            return Denied("node revoked")
        return Allowed(id)

    def _hit(self, subject: str, issued_unix_s: int) -> bool:
        bans = self._bans.get(subject)
        return bans is not None and any(before == 0 or issued_unix_s < before for before in bans)
