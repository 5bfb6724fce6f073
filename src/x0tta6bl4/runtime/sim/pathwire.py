"""Circuits over the paths of a simulated mesh: TCP hop by hop, relays that die, stall or lie.

A `PathWire` is `circuit.Wire` whose bytes go through the network's wires in order: late where
packets are lost, standing still where a wire is cut or a process is frozen, reset where a relay's
process has died.  What corrupts on a wire is caught by TCP; what a relay corrupts is caught by TLS.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from x0tta6bl4.runtime.sim.circuit import End, Wire
from x0tta6bl4.runtime.sim.mesh import LOCAL_US, Mesh
from x0tta6bl4.runtime.sim.network import Flow

_HANG_UP: Final = b""
_RECORD: Final = 16 * 1024
"""A TLS record: what the receiver can use before the rest has come."""


class PathWire(Wire):
    """What lies between the two ends of a circuit.

    Args:
        mesh: with the hosts of the path.
        path: nodes from the client's to the server's, inclusive.
        name: makes the exported values of this wire its own.
    """

    __slots__ = ("_flows", "_mesh", "_proxies", "not_after_unix_s", "path")

    def __init__(self, mesh: Mesh, path: tuple[str, ...], name: str) -> None:
        super().__init__(mesh.world, LOCAL_US, mesh.world.random(f"wire/{name}"), name)
        self.path = path
        self.not_after_unix_s = 0
        """Earlier end of the two SVIDs; 0 before the handshake is done."""
        self._mesh = mesh
        self._proxies = {node: mesh.hosts[node].proxy for node in path}
        self._flows = (self._chain(path), self._chain(path[::-1]))
        for proxy in self._proxies.values():
            proxy.sessions.wires[self] = None

    def _chain(self, path: tuple[str, ...]) -> list[Flow]:
        flows: list[Flow] = []
        network, hosts = self._mesh.network, self._mesh.hosts
        last = len(path) - 2
        for hop in range(len(path) - 1):
            target = path[hop + 1]

            def deliver(message: Any, hop: int = hop, target: str = target) -> None:
                if hosts[target].proxy is not self._proxies[target]:
                    self._refuse(message[0])
                elif hop == last:
                    self._arrive(message)
                else:
                    flows[hop + 1].send(message, len(message[1]))

            def blocked(target: str = target) -> bool:
                proxy = hosts[target].proxy
                return proxy is not None and bool(proxy.process.frozen)

            wire = network.wire(path[hop], target)
            flows.append(Flow(self._mesh.world, wire, deliver, blocked))
        return flows

    # ------------------------------------------------------------------ called by ends
    def carry(self, end: End, data: bytes) -> None:
        """Take bytes from an end to the other."""
        end.flight += len(data)
        self.carried_bytes += len(data)
        flows = self._flows[end.side]
        if not flows:
            self._mesh.world.after(LOCAL_US, self._arrive, (end, data))
            return
        for at in range(0, len(data), _RECORD):
            piece = data[at : at + _RECORD]
            flows[0].send((end, piece), len(piece))

    def hang_up(self, end: End) -> None:
        """An end has closed: the other sees it behind the bytes under way."""
        flows = self._flows[end.side]
        if flows:
            flows[0].send((end, _HANG_UP), 0)
        else:
            self._mesh.world.after(LOCAL_US, self._arrive, (end, _HANG_UP))

    def _arrive(self, message: tuple[End, bytes]) -> None:
        end, data = message
        other = end.other
        if data == _HANG_UP:
            other.lose("reset")
            return
        end.flight -= len(data)
        if not other.open:
            self._refuse(end)
        elif self._corrupt[end.side]:
            self._corrupt[end.side] = False
            self.hang_up(other)
            other.lose("tls")
        else:
            other.arrive(data)
        end.pump()

    def _refuse(self, end: End) -> None:
        """Whoever would have to take these bytes knows of no such connection: RST."""
        self._mesh.world.after(self.latency(), end.lose, "reset")

    # ------------------------------------------------------------------ faults
    def relay_died(self, node: str) -> None:
        """A relay's process is gone while its host lives: both neighbours get RST or FIN."""
        at = self.path.index(node)
        for end, hops in (
            (self.dialled, self.path[at::-1]),
            (self.accepted, self.path[at:]),
        ):
            pairs = list(pairwise(hops))
            if all(self._mesh.passes(source, target) for source, target in pairs):
                delay = sum(self._mesh.network.wire(*p).shape.latency_us for p in pairs)
                self._mesh.world.after(delay, end.lose, "reset")

    def latency(self) -> int:
        """One way, without queues and loss."""
        wire = self._mesh.network.wire
        hops = pairwise(self.path)
        return LOCAL_US + sum(wire(*hop).shape.latency_us for hop in hops)

    def over(self) -> bool:
        """Whether both ends are closed."""
        return not (self.dialled.open or self.accepted.open)
