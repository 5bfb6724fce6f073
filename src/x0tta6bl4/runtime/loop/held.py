"""Which hops there are to and from each neighbour, so that they can be counted, shared and cut."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol, final

from x0tta6bl4.runtime.loop.connect import RESET_ON_CLOSE
from x0tta6bl4.wire.ids import NodeName


class Resettable(Protocol):
    """A hop, in whatever state."""

    def reset(self, reason: str) -> None:
        """End it now."""
        ...


@final
class HopSocket(socket.socket):
    """A circuit's socket; closing it gives its place at the neighbour back."""

    __slots__ = ("_on_close",)

    _on_close: Callable[[HopSocket], None] | None

    def __init__(self, sock: socket.socket, on_close: Callable[[HopSocket], None]) -> None:
        family, kind, protocol = sock.family, sock.type, sock.proto
        super().__init__(family, kind, protocol, fileno=sock.detach())
        self.setblocking(False)
        self._on_close = on_close

    def close(self) -> None:
        """Close; further calls do nothing."""
        super().close()
        call, self._on_close = self._on_close, None
        if call is not None:
            call(self)

    def reset(self, reason: str) -> None:
        """End it under its owner's hands: the owner's epoll says so, and its close resets."""
        try:
            if self.family != socket.AF_UNIX:
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It has ended already.


@final
class Held:
    """Hops by neighbour.

    Args:
        per_neighbour_max: bound that `room` tells of.
    """

    __slots__ = ("_by_node", "_max", "sockets")

    def __init__(self, per_neighbour_max: int) -> None:
        self._max = per_neighbour_max
        self._by_node: dict[NodeName, dict[Resettable, None]] = {}
        self.sockets = 0

    def room(self, node: NodeName) -> bool:
        """Whether the neighbour may have one more."""
        return len(self._by_node.get(node, ())) < self._max

    def add(self, hop: Resettable, nodes: tuple[NodeName, ...]) -> None:
        """Count a hop at each of these neighbours."""
        for node in nodes:
            self._by_node.setdefault(node, {})[hop] = None

    def drop(self, hop: Resettable, nodes: tuple[NodeName, ...]) -> None:
        """Forget it; what is not there is ignored."""
        for node in nodes:
            hops = self._by_node.get(node)
            if hops is not None:
                hops.pop(hop, None)
                if not hops:
                    del self._by_node[node]

    def own(self, sock: socket.socket, node: NodeName) -> HopSocket:
        """Wrap a circuit's socket, counted until it is closed."""
        nodes = (node,)

        def closed(hop: HopSocket) -> None:
            self.sockets -= 1
            self.drop(hop, nodes)

        hop = HopSocket(sock, closed)
        self.sockets += 1
        self.add(hop, nodes)
        return hop

    def cut(self, node: NodeName, reason: str) -> int:
        """Reset all hops of a neighbour; returns how many there were."""
        hops = tuple(self._by_node.get(node, ()))
        for hop in hops:
            hop.reset(reason)
        return len(hops)


@final
class Shares:
    """Places for which neighbours compete: each may take as many as it leaves free for others.

    One neighbour alone gets half of them; `n` greedy ones leave one in n + 1, so that one more
    always gets in.

    Source: Choudhury and Hahne, Dynamic Queue Length Thresholds (1998), with alpha = 1.

    Args:
        places: how many there are.
    """

    __slots__ = ("_by_node", "_free")

    def __init__(self, places: int) -> None:
        self._free = places
        self._by_node: dict[str, int] = {}

    def take(self, node: str) -> bool:
        """Take a place for a neighbour; False if it has its share."""
        held = self._by_node.get(node, 0)
        if held >= self._free:
            return False
        self._by_node[node] = held + 1
        self._free -= 1
        return True

    def give_back(self, node: str) -> None:
        """A place that was taken is free again."""
        held = self._by_node.pop(node)
        if held > 1:
            self._by_node[node] = held - 1
        self._free += 1
