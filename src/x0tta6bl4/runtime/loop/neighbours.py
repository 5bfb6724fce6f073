"""The neighbours of this proxy and the seals of their links, two generations of keys at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, final

from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.ports import SealMaker, SetupSeal
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import NeighbourItem

NEIGHBOURS_MAX: Final = 256
OVERLAP_US: Final = 2 * SECOND
"""How long the keys before the newest are still accepted: the other end may be a bit behind."""
RETIRED_MAX: Final = 512
"""Seals kept after their link was withdrawn, lest their frames open again if it comes back."""


@final
class Neighbour:
    """One neighbour.

    Attributes:
        node: its name.
        item: what the agent said of it last.
        seal: under which everything is sent.
        older: the seal before, and `older_item` what was said then; good until `older_until`.
    """

    __slots__ = ("item", "node", "older", "older_item", "older_until", "seal")

    def __init__(self, item: NeighbourItem, seal: SetupSeal) -> None:
        self.node = NodeName(item.node)
        self.item = item
        self.seal = seal
        self.older: SetupSeal | None = None
        self.older_item = item
        self.older_until = Instant(0)


@final
class Neighbours:
    """Table of neighbours, by name and by key id.

    Args:
        loop: for the clock.
        maker: makes a link's seal from its keys.
    """

    __slots__ = ("_by_link", "_by_name", "_loop", "_maker", "_retired")

    def __init__(self, loop: Loop, maker: SealMaker) -> None:
        self._loop = loop
        self._maker = maker
        self._by_name: dict[NodeName, Neighbour] = {}
        self._by_link: dict[int, Neighbour] = {}
        self._retired: OrderedDict[tuple[int, bytes, bytes], SetupSeal] = OrderedDict()

    def set(self, item: NeighbourItem) -> Neighbour | None:
        """Take a neighbour in, or its new endpoints or keys.

        Returns:
            The neighbour; None if there are NEIGHBOURS_MAX already.
        Raises:
            BadMessage: keys of a wrong form.
        """
        name = NodeName(item.node)
        known = self._by_name.get(name)
        if known is None:
            if len(self._by_name) >= NEIGHBOURS_MAX:
                return None
            known = self._by_name[name] = Neighbour(item, self._seal(item))
        elif _keys(item) != _keys(known.item):
            seal = self._seal(item)
            if known.older is not None and known.older.link != seal.link:
                self._by_link.pop(known.older.link, None)
            known.older, known.older_item, known.seal = known.seal, known.item, seal
            known.older_until = Instant(self._loop.now + OVERLAP_US)
        known.item = item
        self._by_link[item.link] = known
        return known

    def gone(self, node: NodeName) -> Neighbour | None:
        """Forget a neighbour and its keys."""
        known = self._by_name.pop(node, None)
        if known is not None:
            for seal in (known.seal, known.older):
                if seal is not None and self._by_link.get(seal.link) is known:
                    del self._by_link[seal.link]
        return known

    def get(self, node: NodeName) -> Neighbour | None:
        """The neighbour of that name."""
        return self._by_name.get(node)

    def find(self, link: int) -> tuple[Neighbour, SetupSeal] | None:
        """Whose key id this is, and the seal that belongs to it; the older one for 2 s only."""
        known = self._by_link.get(link)
        if known is None:
            return None
        if known.seal.link == link:
            return known, known.seal
        older = known.older
        if older is None or older.link != link or self._loop.now >= known.older_until:
            return None
        return known, older

    def __iter__(self) -> Iterator[Neighbour]:
        """All of them, in the order in which they came."""
        return iter(tuple(self._by_name.values()))

    def _seal(self, item: NeighbourItem) -> SetupSeal:
        """Make the seal of these keys, or find it again with its counters and window."""
        key = _keys(item)
        seal = self._retired.pop(key, None)
        if seal is None:
            seal = self._maker(item.link, item.tx_setup, item.rx_setup, self._loop.now)
        self._retired[key] = seal
        if len(self._retired) > RETIRED_MAX:
            self._retired.popitem(last=False)
        return seal


def _keys(item: NeighbourItem) -> tuple[int, bytes, bytes]:
    return item.link, item.tx_setup, item.rx_setup
