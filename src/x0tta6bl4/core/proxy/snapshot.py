"""What the agent has told this proxy: items under keys, one version.

An SVID leaves by its expiry or by being named in `Delta.drops`, never by being absent from a
`Full`; everything else a `Full` replaces.  No lower version is taken: an agent that starts reads
the snapshot back and goes on from its version.
"""

from __future__ import annotations

from typing import Final

from x0tta6bl4.wire.messages import Delta, Full, Item, NeighbourItem, SvidItem, item_key

ITEMS_MAX: Final = 262_144
"""Beyond this the whole message is refused."""


class Snapshot:
    """Items by key.

    Attributes:
        version: of the last message taken; 0 before the first.
        items: by `wire.messages.item_key`.
    """

    __slots__ = ("items", "version")

    def __init__(self) -> None:
        self.version = 0
        self.items: dict[str, Item] = {}

    def full(self) -> Full:
        """Everything held, for an agent that reads back."""
        return Full(self.version, tuple(self.items.values()))

    def take_full(self, message: Full) -> tuple[tuple[Item, ...], tuple[str, ...]] | None:
        """Take a whole snapshot in.

        Returns:
            What is new or different, and the keys that are gone; None if it is refused.
        """
        if message.version < self.version or len(message.items) > ITEMS_MAX:
            return None
        new = {item_key(item): item for item in message.items}
        old = self.items
        gone = tuple(
            key for key, item in old.items() if key not in new and type(item) is not SvidItem
        )
        return self._change(message.version, new, gone)

    def take_delta(self, message: Delta) -> tuple[tuple[Item, ...], tuple[str, ...]] | None:
        """Take changes in; None if they are for another base."""
        if message.base != self.version or message.version < self.version:
            return None
        if len(self.items) + len(message.puts) > ITEMS_MAX:
            return None
        new = {item_key(item): item for item in message.puts}
        gone = tuple(key for key in message.drops if key in self.items and key not in new)
        return self._change(message.version, new, gone)

    def drop(self, key: str) -> bool:
        """Forget one item (an SVID that has expired)."""
        return self.items.pop(key, None) is not None

    def svids(self) -> tuple[SvidItem, ...]:
        """All SVIDs held."""
        return tuple([item for item in self.items.values() if type(item) is SvidItem])

    def dials(self, node: str) -> bool:
        """Whether a neighbour can be dialled from here."""
        item = self.items.get(f"NeighbourItem/{node}")
        return type(item) is NeighbourItem and bool(item.endpoints)

    def _change(
        self, version: int, new: dict[str, Item], gone: tuple[str, ...]
    ) -> tuple[tuple[Item, ...], tuple[str, ...]]:
        items = self.items
        puts = tuple(item for key, item in new.items() if items.get(key) != item)
        items.update(new)
        for key in gone:
            del items[key]
        self.version = version
        return puts, gone
