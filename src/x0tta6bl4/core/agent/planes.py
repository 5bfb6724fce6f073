"""Which links the kernel forwards over, which nodes it reaches, and what the proxy hears of that.

    KernelLinks --> own record (`Adjacency.kernel`)
                --> the table's map --> WaysChanged --> DirectItem

The kernel's table knows only links that both ends call its own: in a mesh of both kinds of nodes it
leads along those, and userspace paths lead everywhere.
"""

from __future__ import annotations

from typing import Final

import msgspec

from x0tta6bl4.core.agent.own import Own
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.machine import NEVER, NOTHING, Effects, Event, Instant
from x0tta6bl4.core.routing.forwarding import Forwarding, WaysChanged
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address
from x0tta6bl4.wire.messages import DirectItem
from x0tta6bl4.wire.records import Adjacency

DIRECT_MAX: Final = 65_536
"""As many as records hold nodes; beyond it circuits go by userspace paths."""


class Planes:
    """The forwarding machine, and what goes in and out of it.

    Args:
        me: this node's name.
        domain: trust domain.
        snapshot: of the proxy.
        forwards: whether the kernel is to have a table; without, nothing comes of anything.

    Attributes:
        deadline: see `core.machine.Machine`.
    """

    __slots__ = ("_adjacency", "_domain", "_forwarding", "_links", "_snapshot", "deadline")

    def __init__(
        self, me: NodeName, domain: TrustDomain, snapshot: Snapshot, *, forwards: bool
    ) -> None:
        self._domain = domain
        self._snapshot = snapshot
        self._forwarding = Forwarding(me) if forwards else None
        self._adjacency: tuple[Adjacency, ...] = ()
        self._links: frozenset[str] = frozenset()
        """Neighbours over whose links the kernel forwards."""
        self.deadline: Instant = NEVER

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in: those of `core.routing.forwarding`."""
        if self._forwarding is None:
            return NOTHING
        if type(event) is MemberChanged:
            body = msgspec.structs.replace(event.body, links=_kernel(event.body.links))
            event = msgspec.structs.replace(event, body=body)
        effects = self._forwarding.handle(now, event)
        self.deadline = self._forwarding.deadline
        for effect in effects:
            if type(effect) is WaysChanged:
                self._say(effect)
        return effects

    def use(self, now: Instant, own: Own, links: frozenset[str]) -> Effects:
        """The kernel forwards over the links to these neighbours now."""
        if self._forwarding is None or links == self._links:
            return NOTHING
        self._links = links
        return NOTHING if own.adjacency is None else self.publish(now, own, self._adjacency)

    def publish(self, now: Instant, own: Own, links: tuple[Adjacency, ...]) -> Effects:
        """This node publishes these links, those of the kernel marked."""
        self._adjacency = links
        if self._links:
            links = tuple(
                msgspec.structs.replace(link, kernel=link.node in self._links) for link in links
            )
        own.adjacency, own.stale = links, True
        return self.handle(now, AdjacencyWanted(_kernel(links)))

    def _say(self, fact: WaysChanged) -> None:
        direct = len(self._snapshot.of(DirectItem))
        for node, way in fact.ways:
            if way is None:
                self._snapshot.drop(f"DirectItem/{node}")
            elif direct < DIRECT_MAX:
                address = mesh_address(self._domain, NodeName(node))
                self._snapshot.put(DirectItem(node, str(address), way.hop))
                direct += 1


def _kernel(links: tuple[Adjacency, ...]) -> tuple[Adjacency, ...]:
    return tuple(link for link in links if link.kernel)
