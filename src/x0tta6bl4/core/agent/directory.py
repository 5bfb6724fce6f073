"""Where workloads can be reached: endpoints that nodes publish, each proved by its own SVID.

An endpoint says where, never who has a name: it counts only if the chain in it belongs to its ID
and signed node, generation and expiry.  One that came unchanged in a newer record is not judged
again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.wire.messages import ReplicasItem
from x0tta6bl4.wire.records import Endpoint


class Directory:
    """Endpoints by node and page, replicas by ID; bounded by the records held.

    Args:
        judge: (node, endpoint, unix seconds) -> verdict with the ID of its chain.
    """

    __slots__ = ("_expiries", "_judge", "_pages", "_replicas")

    def __init__(self, judge: Callable[[str, Endpoint, int], Verdict]) -> None:
        self._judge = judge
        self._pages: dict[str, dict[str, tuple[Endpoint, ...]]] = {}
        self._replicas: dict[str, dict[str, Endpoint]] = {}
        self._expiries: list[tuple[int, str, str]] = []

    def say(
        self, node: str, page: str, endpoints: Iterable[Endpoint], unix_s: int
    ) -> tuple[list[str], list[str]]:
        """A node publishes these endpoints on this page.

        Returns:
            IDs whose replicas changed, and reasons why endpoints were refused.
        """
        pages = self._pages.setdefault(node, {})
        before = {endpoint.signature: endpoint for endpoint in pages.get(page, ())}
        good: list[Endpoint] = []
        refused: list[str] = []
        for endpoint in endpoints:
            if endpoint.expires_unix_s <= unix_s:
                continue
            if not _same(before.get(endpoint.signature), endpoint):
                verdict = self._judge(node, endpoint, unix_s)
                if type(verdict) is Denied:
                    refused.append(verdict.reason)
                    continue
                if verdict.peer != endpoint.id:
                    refused.append("endpoint of another ID")
                    continue
                heapq.heappush(self._expiries, (endpoint.expires_unix_s, endpoint.id, node))
            good.append(endpoint)
        old = pages.get(page, ())
        if good:
            pages[page] = tuple(good)
        else:
            pages.pop(page, None)
            if not pages:
                del self._pages[node]
        return self._refresh(node, [endpoint.id for endpoint in (*old, *good)]), refused

    def gone(self, node: str, page: str) -> list[str]:
        """A page is gone.

        Returns:
            IDs whose replicas changed.
        """
        return self.say(node, page, (), 0)[0]

    def forget(self, id: str) -> list[str]:
        """An ID is revoked: nobody has it any more.

        Returns:
            The ID, if it had replicas.
        """
        for node in list(self._replicas.get(id, ())):
            self._strike(node, id)
        return [id] if self._replicas.pop(id, None) is not None else []

    def expire(self, unix_s: int) -> list[str]:
        """Take out what has expired.

        Returns:
            IDs whose replicas changed.
        """
        changed: dict[str, None] = {}
        while self._expiries and self._expiries[0][0] <= unix_s:
            _, id, node = heapq.heappop(self._expiries)
            endpoint = self._replicas.get(id, {}).get(node)
            if endpoint is not None and endpoint.expires_unix_s <= unix_s:
                self._strike(node, id)
                for one in self._refresh(node, [id]):
                    changed[one] = None
        return list(changed)

    def next_expiry_unix_s(self) -> int | None:
        """When `expire` has something to do."""
        return self._expiries[0][0] if self._expiries else None

    def nodes(self) -> list[str]:
        """Nodes with at least one endpoint."""
        return list(self._pages)

    def ids(self) -> list[str]:
        """IDs with at least one replica."""
        return list(self._replicas)

    def ids_at(self, node: str) -> list[str]:
        """IDs that a node offers."""
        pages = self._pages.get(node, {})
        return list(dict.fromkeys(e.id for page in pages.values() for e in page))

    def replicas(self, id: str, reachable: Callable[[str], bool]) -> ReplicasItem:
        """Nodes at which an ID can be reached now, by name."""
        found = self._replicas.get(id, {})
        return ReplicasItem(
            id, tuple((node, found[node].load) for node in sorted(found) if reachable(node))
        )

    def _strike(self, node: str, id: str) -> None:
        pages = self._pages[node]
        for page, endpoints in list(pages.items()):
            kept = tuple(endpoint for endpoint in endpoints if endpoint.id != id)
            if kept:
                pages[page] = kept
            else:
                del pages[page]
        if not pages:
            del self._pages[node]

    def _refresh(self, node: str, ids: list[str]) -> list[str]:
        changed = []
        offered = {e.id: e for page in self._pages.get(node, {}).values() for e in page}
        for id in dict.fromkeys(ids):
            replicas = self._replicas.setdefault(id, {})
            before, now = replicas.get(node), offered.get(id)
            if now is None:
                replicas.pop(node, None)
            else:
                replicas[node] = now
            if not replicas:
                del self._replicas[id]
            if (before is None) != (now is None) or (before and now and before.load != now.load):
                changed.append(id)
        return changed


def _same(before: Endpoint | None, now: Endpoint) -> bool:
    """Whether everything that was judged is as it was."""
    return before is not None and (
        before.id == now.id
        and before.chain == now.chain
        and before.generation == now.generation
        and before.expires_unix_s == now.expires_unix_s
    )
