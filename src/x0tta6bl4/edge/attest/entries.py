"""Entries against what attestation found: who a caller is, and whether a listener is its service.

The kernel is asked for the uid first; only entries that this uid does not rule out can make us
look further, so an entry with a hash costs nothing to the callers of other users.
"""

from __future__ import annotations

import socket
from typing import Final, final

from x0tta6bl4.core.identity.selectors import (
    Attributes,
    Matches,
    Selector,
    match,
    parse_all,
)
from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.attest.listener import Attestor, ListenerId, needs
from x0tta6bl4.edge.attest.process import Needs
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import CallerItem, ServiceItem

ENTRIES_MAX: Final = 4096
_UID: Final = Needs()


@final
class Callers:
    """Which workload a local socket belongs to.

    Args:
        attestor: finds out about sockets.
    """

    __slots__ = ("_attestor", "_entries")

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self._entries: dict[tuple[str, tuple[str, ...]], tuple[Selector, ...]] = {}

    def put(self, item: CallerItem) -> None:
        """Take an entry in; beyond ENTRIES_MAX it is refused.

        Raises:
            BadInput: a bad selector, or none.
        """
        selectors = parse_all(item.selectors)
        if len(self._entries) < ENTRIES_MAX:
            self._entries[item.id, item.selectors] = selectors

    def drop(self, item: CallerItem) -> None:
        """Forget an entry; unknown ones are ignored."""
        self._entries.pop((item.id, item.selectors), None)

    def identify(self, sock: socket.socket) -> Verdict:
        """The one workload to which an accepted connection belongs.

        The entry with most selectors wins; two different IDs with equally many are refused, since
        nobody could say which was meant.
        """
        base = self._attestor.caller(sock, _UID)
        if isinstance(base, Denied):
            return base
        looks: dict[Needs, Attributes | Denied] = {_UID: base}
        best, ids, why = 0, set[str](), f"no entry for uid {base.uid}"
        for (id, _), selectors in self._entries.items():
            by_uid = [selector for selector in selectors if selector.kind == "unix:uid"]
            if len(selectors) < best or (by_uid and type(match(by_uid, base)) is not Matches):
                continue
            wanted = needs(selectors)
            found = looks.get(wanted)
            if found is None:
                found = looks[wanted] = self._attestor.caller(sock, wanted)
            if isinstance(found, Denied):
                why = found.reason
                continue
            if type(match(selectors, found)) is Matches:
                if len(selectors) > best:
                    best, ids = len(selectors), set()
                ids.add(id)
        if len(ids) > 1:
            return Denied(f"several identities for uid {base.uid}")
        return Allowed(SpiffeId(ids.pop())) if ids else Denied(why)


@final
class Services:
    """Whether what listens at a service's address is that service.

    Args:
        attestor: finds out about sockets.
    """

    __slots__ = ("_attestor", "_parsed")

    def __init__(self, attestor: Attestor) -> None:
        self._attestor = attestor
        self._parsed: dict[tuple[str, ...], tuple[Selector, ...]] = {}

    def before(self, item: ServiceItem) -> ListenerId | Denied:
        """Look before the connect; Denied means: don't connect."""
        selectors = self._selectors(item)
        found = self._attestor.listener(item.address, needs(selectors))
        if isinstance(found, Denied) or item.address.startswith("unix:"):
            return found  # A Unix listener is known only once connected.
        return self._judge(selectors, found.attributes) or found

    def after(self, item: ServiceItem, before: ListenerId, sock: socket.socket) -> Verdict:
        """Look again after the connect; Denied means: close without a byte."""
        selectors = self._selectors(item)
        found = self._attestor.confirmed(before, sock, needs(selectors))
        if isinstance(found, Denied):
            return found
        return self._judge(selectors, found) or Allowed(SpiffeId(item.id))

    def _judge(self, selectors: tuple[Selector, ...], found: Attributes) -> Denied | None:
        matched = match(selectors, found)
        return None if type(matched) is Matches else Denied(f"listener is not {matched.reason}")

    def _selectors(self, item: ServiceItem) -> tuple[Selector, ...]:
        known = self._parsed.get(item.selectors)
        if known is None:
            if len(self._parsed) >= ENTRIES_MAX:
                self._parsed.clear()
            known = self._parsed[item.selectors] = parse_all(item.selectors)
        return known
