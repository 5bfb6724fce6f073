"""The links of this node as the agent knows them: connections of agents, states told by the proxy.

A link is up when the proxy says so.  Over one whose hellos say that the agent at the other end is
dead it is still published for the restart time, in the manner of RFC 4724; then it is withdrawn,
so that the node over there gets no new paths while its circuits go on.

A link that the kernel judges needs few hellos of the proxies, as long as the agents are connected:
whose agent is gone, and its proxy perhaps with it, is watched as if there were no kernel.
"""

from __future__ import annotations

from typing import Final

import msgspec

from x0tta6bl4.core.agent.snapshot import Snapshot
from x0tta6bl4.core.agent.words import HangUp, LinkView
from x0tta6bl4.core.machine import NEVER, NOTHING, SECOND, Effects, Instant
from x0tta6bl4.core.records.store import Records
from x0tta6bl4.core.records.words import PeerDown, PeerUp
from x0tta6bl4.core.routing.routing import Routing
from x0tta6bl4.core.routing.words import LinkDown, LinkSuspected, LinkUp
from x0tta6bl4.wire.messages import LinkState, NeighbourItem

RESTART_TIME: Final = 120 * SECOND
NEIGHBOURS_MAX: Final = 256


class _Link:
    """One link."""

    __slots__ = ("connected", "orphan_at", "orphaned", "state")

    def __init__(self) -> None:
        self.connected = False
        self.state: LinkState | None = None
        self.orphan_at: Instant = NEVER
        """When it is withdrawn because the agent over there has been silent for too long."""
        self.orphaned = False


class Neighbours:
    """Tells records who is connected, routing which links are up, the proxy the links' keys.

    Bounded by NEIGHBOURS_MAX; further ones are hung up on.

    Attributes:
        deadline: when the next link is to be withdrawn; `withdraw` sets it anew.
    """

    __slots__ = ("_links", "_records", "_routing", "_snapshot", "_watched", "deadline")

    def __init__(self, records: Records, routing: Routing, snapshot: Snapshot) -> None:
        self._records = records
        self._routing = routing
        self._snapshot = snapshot
        self._links: dict[str, _Link] = {}
        self._watched: frozenset[str] = frozenset()
        """Those that the kernel finds good."""
        self.deadline: Instant = NEVER

    def connected(self, now: Instant, item: NeighbourItem) -> Effects:
        """The agents are connected and have new keys for their proxies."""
        if item.node not in self._links and len(self._links) >= NEIGHBOURS_MAX:
            return (HangUp(item.node, "too many neighbours"),)
        self._links.setdefault(item.node, _Link()).connected = True
        self._put(item)
        return self._records.handle(now, PeerUp(item.node))

    def disconnected(self, now: Instant, node: str) -> Effects:
        """The agents' connection is gone; the proxies go on."""
        link = self._links.get(node)
        if link is not None:
            link.connected = False
        self._say(node)
        return self._records.handle(now, PeerDown(node))

    def watch(self, nodes: frozenset[str]) -> Effects:
        """The kernel finds the links to these neighbours good, and to no others."""
        changed, self._watched = self._watched ^ nodes, nodes
        for node in sorted(changed):
            self._say(node)
        return NOTHING

    def _say(self, node: str) -> None:
        item = self._snapshot.get(f"NeighbourItem/{node}")
        if type(item) is NeighbourItem:
            self._put(item)

    def _put(self, item: NeighbourItem) -> None:
        link = self._links.get(item.node)
        watched = link is not None and link.connected and item.node in self._watched
        self._snapshot.put(msgspec.structs.replace(item, watched=watched))

    def hang_up(self, now: Instant, node: str, reason: str) -> Effects:
        """Have nothing to do with a neighbour any more."""
        self._snapshot.drop(f"NeighbourItem/{node}")
        self._links.pop(node, None)
        effects = self._records.handle(now, PeerDown(node))
        effects += self._routing.handle(now, LinkDown(node))
        return (*effects, HangUp(node, reason))

    def told(self, now: Instant, state: LinkState) -> Effects:
        """The proxy says how a link is."""
        link = self._links.get(state.node)
        if link is None:
            if len(self._links) >= NEIGHBOURS_MAX:
                return NOTHING
            link = self._links[state.node] = _Link()
        link.state = state
        if state.state == "suspected":
            return self._routing.handle(now, LinkSuspected(state.node))
        if state.state == "down":
            link.orphan_at, link.orphaned = NEVER, False
            return self._routing.handle(now, LinkDown(state.node))
        if state.agent_alive:
            link.orphan_at, link.orphaned = NEVER, False
        elif link.orphaned:
            return NOTHING
        elif link.orphan_at == NEVER:
            link.orphan_at = Instant(now + RESTART_TIME)
            self.deadline = min(self.deadline, link.orphan_at)
        figures = (state.node, state.rtt_us, state.loss_ppm, state.gray, state.dials)
        return self._routing.handle(now, LinkUp(*figures))

    def withdraw(self, now: Instant) -> Effects:
        """Take back links whose other agent did not return in time."""
        effects: Effects = NOTHING
        if now < self.deadline:
            return effects
        for node, link in self._links.items():
            if link.orphan_at <= now:
                link.orphan_at, link.orphaned = NEVER, True
                effects += self._routing.handle(now, LinkDown(node))
        self.deadline = min((link.orphan_at for link in self._links.values()), default=NEVER)
        return effects

    def new_proxy(self, now: Instant) -> Effects:
        """The proxy has started anew: no link is up before it says so."""
        effects: Effects = NOTHING
        for node, link in self._links.items():
            link.state, link.orphan_at, link.orphaned = None, NEVER, False
            effects += self._routing.handle(now, LinkDown(node))
        return effects

    def views(self) -> tuple[LinkView, ...]:
        """All links by name."""
        return tuple(self._view(node, self._links[node]) for node in sorted(self._links))

    def _view(self, node: str, link: _Link) -> LinkView:
        cost, state = self._routing.published(node), link.state
        if state is None:
            return LinkView(node, "unknown", link.connected, 0, 0, cost)
        figures = (state.rtt_us, state.loss_ppm, cost, state.reason)
        return LinkView(node, state.state, link.connected, *figures)
