"""Which links the kernel forwards over, which nodes it reaches, and what the proxy hears of that.

    KernelLinks --> the table's map --> WaysChanged --> DirectItem
                --> own record (`Adjacency.kernel`), once the table is complete --> TableComplete

The kernel's table knows only links that both ends call its own: in a mesh of both kinds of nodes it
leads along those, and userspace paths lead everywhere.

A node that returns must not be sent data before it knows where that goes; its record of before may
still be about, and says otherwise.  So it does not call links the kernel's before its table is
complete, which is a while after the first of them is up; with the table of an earlier life at work
it does at once, and that table stands for a while instead.  And a link that was lost is the
kernel's again only when the other end has said something since: before, what names it was said
before it was lost.  So who hears that the other end alone has lost a link says its own once more.

Source: RFC 6987 section 2 (a starting router is sent nothing in transit), RFC 4724 section 4.2
(until then a table of before stands).
"""

from __future__ import annotations

from typing import Final

import msgspec

from x0tta6bl4.core.agent.own import Own
from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.words import KernelLinks, TableComplete
from x0tta6bl4.core.machine import NEVER, NOTHING, SECOND, Effects, Event, Instant, Tick
from x0tta6bl4.core.routing.forwarding import Forwarding, WaysChanged
from x0tta6bl4.core.routing.words import AdjacencyWanted, MemberChanged, MemberGone
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address
from x0tta6bl4.wire.messages import DirectItem
from x0tta6bl4.wire.records import Adjacency

DIRECT_MAX: Final = 65_536
"""As many as records hold nodes; beyond it circuits go by userspace paths."""
COMPLETE_AFTER: Final = 1 * SECOND
"""From the first link on: what neighbours know is told in that time, and the table is written."""
HELD_AFTER: Final = 3 * SECOND
"""The same with a table of an earlier life, which there is no hurry to replace ..."""
HELD_MAX: Final = 15 * SECOND
"""... nor to take away where no link comes up."""


class Planes:
    """The forwarding machine, and what goes in and out of it.

    Args:
        me: this node's name.
        domain: trust domain.
        own: its record says which links are the kernel's.
        snapshot: of the proxy.
        forwards: whether the kernel is to have a table; without, nothing comes of anything.

    Attributes:
        deadline: see `core.machine.Machine`.
    """

    __slots__ = (
        "_adjacency", "_complete", "_complete_at", "_domain", "_forwarding", "_held", "_links",
        "_me", "_naming", "_own", "_silent", "_snapshot", "deadline",
    )  # fmt: skip

    def __init__(
        self, me: NodeName, domain: TrustDomain, own: Own, snapshot: Snapshot, *, forwards: bool
    ) -> None:
        self._me, self._domain = me, domain
        self._own, self._snapshot = own, snapshot
        self._forwarding = Forwarding(me) if forwards else None
        self._adjacency: tuple[Adjacency, ...] = ()
        self._links: frozenset[str] = frozenset()
        """Neighbours over whose links the kernel forwards."""
        self._naming: set[str] = set()
        """Nodes whose records call a link to this one the kernel's; as bounded as records are."""
        self._silent: set[str] = set()
        """Those of them to which the link was lost, and that have said nothing since."""
        self._held = False
        self._complete = False
        self._complete_at: Instant = NEVER
        self.deadline: Instant = NEVER

    def handle(self, now: Instant, event: Event) -> Effects:
        """Take one event in: those of `core.routing.forwarding`."""
        if self._forwarding is None:
            return NOTHING
        effects: Effects = NOTHING
        if type(event) is MemberChanged:
            body = msgspec.structs.replace(event.body, links=_kernel(event.body.links))
            event = msgspec.structs.replace(event, body=body)
            effects = self._hear(now, event.node, body.links)
        elif type(event) is MemberGone:
            effects = self._hear(now, event.node, ())
        effects += self._forward(now, event)
        if type(event) is Tick and now >= self._complete_at:
            effects += self._finish(now)
        return effects

    def use(self, now: Instant, event: KernelLinks) -> Effects:
        """The kernel forwards over the links to these neighbours now."""
        if self._forwarding is None:
            return NOTHING
        if event.held and not (self._held or self._complete):
            self._held = True
            self._complete_at = Instant(now + HELD_MAX)
            self._wake()
        if event.nodes == self._links:
            return NOTHING
        self._links = event.nodes
        return NOTHING if self._own.adjacency is None else self.publish(now, self._adjacency)

    def publish(self, now: Instant, links: tuple[Adjacency, ...]) -> Effects:
        """This node publishes these links, those of the kernel marked."""
        if self._forwarding is None:
            self._own.adjacency, self._own.stale = links, True
            return NOTHING
        gone = {link.node for link in self._adjacency}.difference(link.node for link in links)
        self._silent |= gone & self._naming
        self._adjacency = links
        if self._links:
            links = tuple(
                msgspec.structs.replace(
                    link, kernel=link.node in self._links and link.node not in self._silent
                )
                for link in links
            )
        ours = _kernel(links)
        if ours and not self._complete:
            after = HELD_AFTER if self._held else COMPLETE_AFTER
            self._complete_at = Instant(min(self._complete_at, now + after))
        told = self._complete or self._held
        self._own.adjacency, self._own.stale = links if told else self._adjacency, True
        return self._forward(now, AdjacencyWanted(ours))

    def _hear(self, now: Instant, node: str, links: tuple[Adjacency, ...]) -> Effects:
        """A node has said something new; that it has lost a link which is good here is answered."""
        if any(link.node == self._me for link in links):
            self._naming.add(node)
        elif node in self._naming:
            self._naming.discard(node)
            if any(link.node == node and link.kernel for link in self._own.adjacency or ()):
                self._own.repeat()
        if node not in self._silent:
            return NOTHING
        self._silent.discard(node)
        here = any(link.node == node for link in self._adjacency)
        return self.publish(now, self._adjacency) if here else NOTHING

    def _finish(self, now: Instant) -> Effects:
        """The table is complete, unless ways wait for their turn."""
        assert self._forwarding is not None
        if not self._forwarding.idle:
            self._complete_at = Instant(max(self._forwarding.deadline, now + 1))
            self._wake()
            return NOTHING
        self._complete, self._complete_at = True, NEVER
        self._forwarding.in_force = True
        effects: Effects = (TableComplete(),)
        if self._own.adjacency is not None and not self._held:
            effects += self.publish(now, self._adjacency)
        self._wake()
        return effects

    def _forward(self, now: Instant, event: Event) -> Effects:
        assert self._forwarding is not None
        effects = self._forwarding.handle(now, event)
        for effect in effects:
            if type(effect) is WaysChanged:
                self._say(effect)
        self._wake()
        return effects

    def _wake(self) -> None:
        assert self._forwarding is not None
        self.deadline = min(self._forwarding.deadline, self._complete_at)

    def _say(self, fact: WaysChanged) -> None:
        direct = len(self._snapshot.of(DirectItem))
        for node, way in fact.ways:
            if way is None or way.kept:
                self._snapshot.drop(f"DirectItem/{node}")
            elif direct < DIRECT_MAX:
                address = mesh_address(self._domain, NodeName(node))
                self._snapshot.put(DirectItem(node, str(address), way.hop))
                direct += 1


def _kernel(links: tuple[Adjacency, ...]) -> tuple[Adjacency, ...]:
    return tuple(link for link in links if link.kernel)
