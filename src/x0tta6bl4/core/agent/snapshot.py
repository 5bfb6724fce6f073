"""What the proxy is to hold: items under keys, one version, told as one Full and then as changes.

An agent that starts takes over what the proxy holds, keys included, and continues its version.
What it took over and does not know to be wrong stays until `settle`, because a map or a set of
names that is just being learnt again is no reason to take paths away.  An SVID leaves only by
`drop` or by its expiry.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from x0tta6bl4.wire.messages import (
    AgentOrder,
    Delta,
    Full,
    Item,
    NeighbourItem,
    SvidItem,
    item_key,
)


class Snapshot:
    """Items by key, and what of it the proxy has not heard yet; bounded by those who put.

    Attributes:
        version: of the last order.
        connected: whether a proxy has been taken over and hears orders.
    """

    __slots__ = (
        "_complete",
        "_drops",
        "_inherited",
        "_items",
        "_kinds",
        "_puts",
        "connected",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        self.connected = False
        self._items: dict[str, Item] = {}
        self._kinds: dict[str, dict[str, None]] = {}
        self._inherited: dict[str, None] = {}
        self._complete: set[str] = set()
        self._puts: dict[str, Item] = {}
        self._drops: dict[str, Item | None] = {}
        """What the proxy has under a key that it is to drop, where that is known."""

    def put(self, item: Item) -> None:
        """The proxy is to hold this item."""
        key = item_key(item)
        self._inherited.pop(key, None)
        if self._items.get(key) == item:
            return
        self._keep(key, item)
        if self._drops.pop(key, None) != item:
            self._puts[key] = item

    def drop(self, key: str) -> None:
        """The proxy is not to hold what it has under this key."""
        self._inherited.pop(key, None)
        item = self._items.get(key)
        if item is not None:
            self._forget(key)
            self._drops[key] = item if self._puts.pop(key, None) is None else None

    def replace(self, kind: type, items: Sequence[Item]) -> None:
        """These are all items of a kind; others are dropped and from now on not taken over."""
        self._complete.add(kind.__name__)
        keep = {item_key(item) for item in items}
        for key in [key for key in self._kinds.get(kind.__name__, ()) if key not in keep]:
            self.drop(key)
        for item in items:
            self.put(item)

    def expire(self, key: str) -> None:
        """The proxy has dropped an item by itself: an SVID at its end."""
        if key in self._items:
            self._forget(key)
            self._puts.pop(key, None)

    def get(self, key: str) -> Item | None:
        """The item under a key."""
        return self._items.get(key)

    def inherited(self, key: str) -> Item | None:
        """The item under a key, if it was taken over and not put since."""
        return self._items.get(key) if key in self._inherited else None

    def has(self, kind: type) -> bool:
        """Whether there is any item of a kind."""
        return bool(self._kinds.get(kind.__name__))

    def of(self, kind: type) -> list[Item]:
        """All items of a kind."""
        return [self._items[key] for key in self._kinds.get(kind.__name__, ())]

    def take_over(self, held: Full) -> list[Item]:
        """A proxy has come and says what it holds; to be followed by `full`.

        Returns:
            Items taken over: those that were not known here.
        """
        taken = []
        for item in held.items:
            key = item_key(item)
            ours = self._items.get(key)
            if type(item).__name__ in self._complete:
                continue
            if ours is None and key not in self._drops:
                if type(item) is NeighbourItem:
                    item = msgspec.structs.replace(item, watched=False)  # Who watched is gone.
                self._keep(key, item)
                self._inherited[key] = None
                taken.append(item)
            elif _later(item, ours):
                self._keep(key, item)
                taken.append(item)
        self.connected = True
        return taken

    def new_proxy(self) -> None:
        """The proxy has started anew: keys made for the one before must not be used again."""
        self.connected = False
        for item in self.of(NeighbourItem):
            self._forget(item_key(item))
        self._puts, self._drops = {}, {}

    def settle(self) -> None:
        """Everything has been learnt again: what was taken over and not put since is dropped.

        SVIDs are withdrawn by name, and the keys of a link stay good while the agent at its other
        end is away.
        """
        for key in list(self._inherited):
            if not key.startswith(("SvidItem/", "NeighbourItem/")):
                self.drop(key)
        self._inherited = {}

    def full(self, holds: int) -> Full:
        """Everything, for a proxy that holds version `holds`.

        It takes everything away but SVIDs: those that were withdrawn are named in what follows.
        """
        self.version = max(self.version, holds) + 1
        self._puts = {}
        self._drops = {k: item for k, item in self._drops.items() if k.startswith("SvidItem/")}
        return Full(self.version, tuple(self._items.values()))

    def order(self) -> AgentOrder | None:
        """What changed since the last order; None if nothing did or nobody would hear it."""
        if not self.connected or not (self._puts or self._drops):
            return None
        base, self.version = self.version, self.version + 1
        message = Delta(base, self.version, tuple(self._puts.values()), tuple(self._drops))
        self._puts, self._drops = {}, {}
        return message

    def _keep(self, key: str, item: Item) -> None:
        self._items[key] = item
        self._kinds.setdefault(type(item).__name__, {})[key] = None

    def _forget(self, key: str) -> None:
        item = self._items.pop(key)
        del self._kinds[type(item).__name__][key]


def _later(item: Item, ours: Item | None) -> bool:
    if type(item) is not SvidItem or type(ours) is not SvidItem:
        return False
    return item.not_after_unix_s > ours.not_after_unix_s
