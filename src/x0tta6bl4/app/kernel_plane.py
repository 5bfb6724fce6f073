"""The kernel's half of a node, driven by its agent: links, verdicts, routes, filter, lease.

    connection of a link --offers, keys--> detector --DOWN--> routes cut
    the detector's events and reports, the proxy's words --> `links.verdicts` --> agent's machine
    WaysChanged, TableComplete --> routes, the detector's alternates, members of the filter

What the kernel declares dead is cut from the routes first of all; what that means, and when a link
lives again, is decided by the machine.  What was agreed with each neighbour is written down, so
that the next agent goes on with the same numbers and slots; the programs never stop for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterable
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final, final

from x0tta6bl4.app.kernel_links import Kept, KernelLink, Links
from x0tta6bl4.app.kernel_members import Members
from x0tta6bl4.app.kernel_modes import Modes
from x0tta6bl4.app.kernel_views import (
    Passing,
    counters,
    dropped,
    explained,
    findings,
    unpinned,
    unwritten,
)
from x0tta6bl4.app.settings import Data
from x0tta6bl4.core.agent.told import Sets
from x0tta6bl4.core.agent.words import KernelLinks, KernelPace, ProxySaid
from x0tta6bl4.core.links import verdicts as said
from x0tta6bl4.core.machine import Effect, Event
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.edge.kernel.detector import Detector, Link
from x0tta6bl4.edge.kernel.layout import EventKind
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.edge.kernel.plane import LOOK_EVERY_S, Adjacent, Plane
from x0tta6bl4.edge.kernel.programs import Programs
from x0tta6bl4.runtime.aio.beat import until_beat
from x0tta6bl4.runtime.aio.links import LinkConnections, Offers
from x0tta6bl4.runtime.clocks import clock, unix_us
from x0tta6bl4.wire.admin import Finding, PlaneView
from x0tta6bl4.wire.errors import Conflict, Refused, X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_of
from x0tta6bl4.wire.mesh_address import mesh_prefix
from x0tta6bl4.wire.messages import MTU_MAX, KernelOffer, LinkState, ProxyFact, Ready

TICK_S: Final = 0.1
"""Between two looks at links while something happens, LEASE_S otherwise: verdicts are events."""
LEASE_S: Final = 1.0
MEND_S: Final = 0.05
"""After a verdict it is seen whether somebody took the programs off."""
LEAVE_S: Final = 1.5
"""After it everybody's table knows the cost of a link that loses packets."""
NOBODY: Final[frozenset[str]] = frozenset()
PINS: Final = "bpf"
SWITCHES: Final = "switches"
Post = Callable[[Event], None]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
Say = Callable[[str, str], None]
"""(kind, text) for the events log."""


@final
class KernelPlane:
    """Programs, routes and links of one node.

    Args:
        domain: trust domain.
        me: this node.
        state_dir: of the node; pins, switches and agreements are kept in it.
        neighbours: configured ones.
        say: a line for the events log.
        data: of node.toml: where programs are, and what the filter lets in.
    Raises:
        Unavailable: this host can't (X0-KRN-...); nothing is left behind.
    """

    def __init__(
        self,
        domain: TrustDomain,
        me: NodeName,
        state_dir: Path,
        neighbours: Iterable[str],
        say: Say,
        data: Data = Data(),  # noqa: B008
    ) -> None:
        self._domain, self._me = domain, me
        self._say = say
        self._post: Post = _nowhere
        self._findings: tuple[Finding, ...] = ()
        self._passing, self._unsaved = Passing(), ""
        self._refused: dict[str, str] = {}
        """Why a neighbour's link is not the kernel's; bounded by the neighbours."""
        self._stirred, self._often = asyncio.Event(), False
        self._good: frozenset[str] = frozenset()
        """Neighbours of whose proxies few hellos are wanted, as the agent was told."""
        self._connections: LinkConnections | None = None
        self._sets: Sets | None = None
        """While it runs."""
        self.routes = Plane(domain, me, state_dir / SWITCHES)
        try:
            self.routes.be_alone()  # Programs of another node would be replaced.
            self.programs = Programs.open(Libbpf(), state_dir / PINS)
        except BaseException:
            self.routes.close()
            raise
        self._verdicts = said.Verdicts(judges=not self.programs.without_verdicts)
        self._links = Links(me, state_dir, neighbours, self._verdicts)
        try:
            self._modes = Modes(self.programs, data.xdp)
            self.detector = Detector(self.programs)
            self._members = Members(self.programs, data)
            self._guarded(self._save)
            self._held = self._begin()
        except Conflict:  # Another one has begun meanwhile: what is there is its own.
            self.close()
            raise
        except BaseException:
            self.remove()
            raise

    def _begin(self) -> bool:
        """Go on with what an earlier agent has left; whether a table of it is at work."""
        at_work = self.detector.links()
        judged = [link for link in self._links if link.number in at_work and link.kept is not None]
        for number in at_work - {link.number for link in judged}:
            self.detector.remove_link(number)  # Of a neighbour that is none, or not written down.
        for link in self._links:
            if link in judged:
                report = self.detector.report(link.number)
                link.answered = not report.dead
                was = said.KernelWatches(link.node, "down" if report.dead else "up")
                self._decide(was if report.answers else said.KernelWatches(link.node))
                link.keys.used, link.keys.used_at = True, time.monotonic()
                link.rests = self.detector.rests(link.number)
            elif link.kept is not None and link.kept.index in self._modes:
                self._set_link(link, link.kept)  # The maps are new, what was agreed on is not.
                self._decide(said.KernelWatches(link.node, "unjudged"))
            else:
                link.kept = None
        held = self.routes.start(self._adjacent())
        self._members.adopt(self.routes.targets)
        for link in judged:
            if not link.judged.up:
                self.routes.cut(link.node, True)
        if held and judged and not any(link.judged.up for link in judged):
            held = False  # Cut off from all: detours of then would send packets back.
            self.routes.settle()
            self._set_alternates()
        self._members.filter.switch(IPv6Network((mesh_prefix(self._domain) + bytes(10), 48)))
        return held

    # ------------------------------------------------------------------ life
    def run(self, connections: LinkConnections, post: Post, sets: Sets, spawn: Spawn) -> None:
        """Begin to listen and to tick, in the running loop.

        Args:
            connections: tell neighbours when keys are in.
            post: gives an event to the agent's machine.
            sets: who is revoked.
            spawn: runs what has no end; the agent ends with it if it fails.
        """
        self._connections, self._post, self._sets = connections, post, sets
        loop = asyncio.get_running_loop()
        loop.add_reader(self.detector.fileno(), self._events)
        loop.add_reader(self.routes.fileno(), self._moved)
        spawn(self._tick())
        spawn(self._look())
        self._post(KernelLinks(self._verdicts.forwarding, self._held))

    def end(self, *, for_good: bool) -> None:
        """The agent ends; the kernel goes on unless the node ends with it."""
        if not for_good:
            self.close()
            return
        left = self.remove()
        if left:
            self._say("kernel", f"left behind: {'; '.join(left)}"[:1000])

    def close(self) -> None:
        """Let go; the kernel goes on, and the next agent takes over."""
        self._leave()
        self.detector.close()
        self.programs.close()
        self.routes.close()

    def remove(self) -> list[str]:
        """End it: programs, maps, pins, routes, addresses, switches.

        Returns:
            What could not be taken away.
        """
        self._leave()
        left: list[str] = []
        for work in (self._end_programs, self.routes.stop):
            try:
                left += work()
            except (X0Error, OSError) as error:
                left.append(str(error))
        self._links.forget()
        return left

    def _end_programs(self) -> list[str]:
        if hasattr(self, "detector"):
            self.detector.remove()
        self.programs.remove()
        return []

    def _leave(self) -> None:
        if self._sets is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.detector.fileno())
            loop.remove_reader(self.routes.fileno())
        self._sets = None

    async def _tick(self) -> None:
        """Lease, revivals, members: level, not edge."""
        now = asyncio.get_running_loop().time
        renewed = -TICK_S
        while True:
            if now() >= renewed + LEASE_S - TICK_S:
                renewed = now()
                self._guarded(self.detector.renew)
                self._guarded(self.routes.hold)
                self._guarded(self._rest)
                self._guarded(self._set_members)
                self._agree_again()
            heard = self._links.heard(self.detector)
            for link in self._links:
                self._guarded(self._show, link, heard)
            unproven = self._modes.unproven(self._links, time.monotonic())
            if unproven is not None:
                self._guarded(self._leave_driver, *unproven)
            self._pace()
            self._often = clock() < self._verdicts.often_until
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S if self._often else until_beat(now(), LEASE_S)):
                    await self._stirred.wait()

    def _pace(self) -> None:
        """Say where few hellos of proxies are enough."""
        nodes = self._verdicts.good
        good = frozenset(x.node for x in self._links if x.eases and x.kept and x.node in nodes)
        if good != self._good:
            self._good = good
            self._post(KernelPace(good))

    async def _look(self) -> None:
        while True:
            self._guarded(self._look_once)
            await asyncio.sleep(LOOK_EVERY_S)

    def _look_once(self) -> None:
        found = self.routes.look()
        self._guarded(self._mend)
        found += unpinned(self.programs)
        self._findings = self._passing.told(found, clock())
        if self._unsaved:
            self._save()

    def _mend(self) -> None:
        for what in self._modes.mend(self._links):
            self._say("kernel", what)

    def _save(self) -> None:  # A full disk keeps no link from working.
        try:
            self._links.save()
        except X0Error as error:
            self._unsaved = error.what
            raise
        self._unsaved = ""

    def _moved(self) -> None:
        self._guarded(self.routes.ready)
        self._guarded(self._rest)

    def _rest(self) -> None:  # Without IPv6 hellos go, but no data: both ends leave the link.
        for link in self._links:
            keys, kept = link.keys, link.kept
            if keys.used and kept and self._connections and self.routes.gone(kept.index):
                keys.used = False  # It is agreed on anew, over the interface that comes.
                self._connections.cut(link.node, "its interface is gone")
            if kept is None or self.routes.carries(kept.index) != link.rests:
                continue
            if link.rests:
                self._set_link(link, kept)
            else:
                self.detector.rest(link.number)
            link.rests = not link.rests  # Not before the kernel has taken it: it is tried again.
            if link.rests:
                self._show(link, NOBODY)

    def _guarded(self, work: Callable[..., object], *arguments: object) -> None:
        """What the kernel refuses now is told, and tried again at the next turn."""
        try:
            work(*arguments)
        except (X0Error, OSError) as error:
            self._say("kernel", str(error))

    # ------------------------------------------------------------------ links: agreeing
    def place(self, node: NodeName, here: str, there: str) -> tuple[int, KernelOffer] | None:
        """See `runtime.aio.links.KernelSide`."""
        link = self._links.get(node)
        if link is None or not here or not there:
            return None
        try:
            found = self.routes.towards(there)
            if found is None:
                self._refused[node] = f"{there} is not adjacent on an interface with IPv6"
                return None
            self._modes.put(found.index, found.name)
        except (X0Error, ValueError) as error:
            self._refused[node] = str(error)
            return None
        offer = KernelOffer(
            link.number, found.local, found.mac, min(found.mtu, MTU_MAX), -1,
            native=self._modes.native(found.index), eases=True,
        )  # fmt: skip
        return found.index, offer

    def offered(self, node: NodeName, offers: Offers) -> None:
        """See `runtime.aio.links.KernelSide`."""
        self._guarded(self._agree, node, offers)

    def withdrawn(self, node: NodeName) -> None:
        """A neighbour's data goes through user space, or is not adjacent any more."""
        link = self._links.get(node)
        if link is not None:
            self._refused.setdefault(node, "its data goes through user space")
            link.offers = None
            if link.kept is not None:
                self._let_go(link)

    def _let_go(self, link: KernelLink) -> None:
        self._guarded(self.detector.remove_link, link.number)
        link.keys.forget()
        link.kept = None
        told = self._verdicts.handle(clock(), said.KernelLeaves(link.node))
        self._pace()
        self._changed()
        self._guarded(self._save)
        self._carry_out(told)

    def _agree(self, node: NodeName, offers: Offers) -> None:
        link = self._links.get(node)
        if link is None:
            return
        link.offers = offers
        try:
            kept = self._links.agreed(link, offers, time.monotonic())
        except Refused as error:
            known, self._refused[node] = self._refused.get(node), error.what
            if known == error.what:
                return
            raise
        for other in self._links.beside(link, offers):
            why = f"{other.node} did not answer where {node} says that it is, too"
            self._refused[other.node] = why
            self._let_go(other)
            self._say("kernel", why)
        self._refused.pop(node, None)
        mine, theirs = offers.mine, offers.theirs
        link.eases = theirs.eases
        if kept != link.kept:
            link.offers = None  # What the kernel refuses is not tried every second.
            self._watch(link, kept)
            link.offers = offers
        say = link.keys.heard(self.detector, offers.secret, theirs)
        if say and self._connections is not None:
            self._connections.offer(node, **say)
        why = self._modes.stands_alone(offers.index, node, theirs)
        if why:
            self._leave_driver(offers.index, why)
        elif mine.native != self._modes.native(offers.index):
            self._offer_again(offers.index)

    def _agree_again(self) -> None:
        """Who was refused for another one's word may be where it says."""
        for link in self._links:
            if link.kept is None and link.offers is not None:
                self.offered(link.node, link.offers)

    def _leave_driver(self, index: int, why: str) -> None:
        self._modes.leave_driver(index, why)
        self._offer_again(index)

    def _offer_again(self, index: int) -> None:
        for link in self._links:
            if self._connections is not None and link.kept and link.kept.index == index:
                native = self._modes.native(index)
                unheard = link.keys.used and not native and not link.proven
                self._connections.offer(link.node, native=native, unheard=unheard)

    def _watch(self, link: KernelLink, kept: Kept) -> None:
        new, was = link.kept is None, link.adjacent
        self._set_link(link, kept)
        link.kept, link.rests = kept, False
        if link.adjacent != was:
            link.moved(time.monotonic(), self.detector.report(link.number).answers)
        if new:
            self._decide(said.KernelWatches(link.node))
            self._stirred.set()
        self._changed()
        self._guarded(self._save)

    def _set_link(self, link: KernelLink, kept: Kept) -> None:
        self.detector.set_link(
            Link(
                number=link.number,
                peer_number=kept.peer_number,
                ifindex=kept.index,
                local_mac=kept.mac,
                peer_mac=kept.peer_mac,
                local=IPv6Address(kept.local),
                peer=IPv6Address(kept.peer),
                incarnation=unix_us(),
                mtu=kept.mtu,
            )
        )

    def _changed(self) -> None:
        """Neighbours have changed: routes and alternates name others."""
        self._guarded(self.routes.neighbours, self._adjacent())
        if not self._held:
            self._set_alternates()
        self._post(KernelLinks(self._verdicts.forwarding))

    def _adjacent(self) -> list[Adjacent]:
        return [one for link in self._links if (one := link.adjacent) is not None]

    # ------------------------------------------------------------------ links: judging
    def _events(self) -> None:
        """What the kernel has said; routes come first, whatever it is."""
        events = [(self._links.numbered(event.number), event) for event in self.detector.events()]
        downs = [  # Those that were taken back meanwhile are void.
            (link, event.silent_us)
            for link, event in events
            if event.kind is EventKind.DOWN and link is not None and link.kept is not None
            if self.detector.report(link.number).dead
        ]
        goods = [link for link, event in events if event.kind is EventKind.GOOD and link]
        heard = self._links.heard(self.detector) if downs or goods else NOBODY  # As of now.
        for link, _ in downs:
            self._guarded(self.routes.cut, link.node, True)
        for link, silent_us in downs:
            self._decide(said.KernelDown(link.node, silent_us, deaf=heard <= {link.node}))
        for good in goods:
            self._guarded(self._show, good, heard)
        self._decide(said.KernelStirs())
        if not self._often or self._verdicts.doubts:
            self._stirred.set()
        self._pace()

    def _show(self, link: KernelLink, heard: frozenset[str]) -> None:
        """Show the machine how a link stands in the kernel, and who is heard."""
        if link.kept is None:
            return
        report = self.detector.report(link.number)
        link.heard(report.answers)
        moved = self.detector.traffic(link.number)
        self._decide(
            said.KernelShows(
                link.node, report.dead, report.silent_us, 0 if link.rests else report.good,
                report.peer_heard, moved.came_in, moved.lost_in, moved.came_out, moved.lost_out,
                deaf=not link.rests and heard <= {link.node},
            )
        )  # fmt: skip

    def _decide(self, event: Event) -> None:
        self._carry_out(self._verdicts.handle(clock(), event))

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is said.MeshHears:
                self._post(ProxySaid(effect.link))  # type: ignore[attr-defined]
            else:
                self._guarded(self._EFFECTS[kind], self, effect)

    def _lost(self, lost: said.KernelLost) -> None:
        self.routes.cut(lost.node, True)  # Of a verdict that was heard they are cut already.
        silent_ms = lost.silent_us / 1000
        self._say("link", f"{lost.node} is down: the kernel heard nothing for {silent_ms:.1f} ms")
        asyncio.get_running_loop().call_later(MEND_S, self._guarded, self._mend)

    def _loses(self, fact: said.KernelLoses) -> None:
        """Data leaves it at once if there is an alternate; later its cost counts, for everybody."""
        link = self._links[fact.node]
        if fact.gray:
            self.routes.cut(fact.node, True)
            loop = asyncio.get_running_loop()
            link.leave(loop.call_later(LEAVE_S, self._guarded, self._take_back, link))
        else:
            self._take_back(link)
        self._say("link", f"{fact.node} loses packets" + ("" if fact.gray else " no more"))

    def _take_back(self, link: KernelLink) -> None:
        link.leave(None)
        if link.judged.up and not self.detector.report(link.number).dead:
            self.routes.cut(link.node, False)

    def _revive(self, wanted: said.Revive) -> None:
        link = self._links[wanted.node]
        self.detector.revive(link.number)
        if link.left is None or not link.judged.gray:  # Else it is out of a doubt, and left yet.
            self._take_back(link)
        if wanted.first:
            self._post(KernelLinks(self._verdicts.forwarding))
        if not wanted.doubted:
            again = "" if wanted.first else " again"
            self._say("link", f"{wanted.node} answers the kernel{again}")

    def _declare_dead(self, wanted: said.DeclareDead) -> None:
        link = self._links[wanted.node]
        self.detector.declare_dead(link.number)

    _EFFECTS: Final[dict[type, Callable[..., None]]] = {
        said.KernelLost: _lost,
        said.KernelLoses: _loses,
        said.Revive: _revive,
        said.DeclareDead: _declare_dead,
    }

    def heard(self, fact: ProxyFact) -> bool:
        """The proxy says something; whether the agent is told in its place what the mesh hears."""
        if type(fact) is Ready:
            self._decide(said.ProxyStarts())
        if type(fact) is not LinkState:
            return False
        self._decide(said.ProxySays(fact))
        return True

    # ------------------------------------------------------------------ routes and members
    def ways(self, fact: WaysChanged) -> None:
        """The table has changed."""
        self._guarded(self.routes.table, dict(fact.ways))
        if not self._held:
            self._set_alternates()
        self._guarded(self._set_members)

    def complete(self) -> None:
        """All ways have been told: what an earlier agent has left and nobody told again goes."""
        if self._held:
            self._held = False
            self._guarded(self.routes.settle)
            self._set_alternates()
            self._guarded(self._set_members)

    def _set_alternates(self) -> None:
        """Where the kernel sends data of a link from its verdict on, before any table changes."""
        for node, alternates in self.routes.alternates().items():
            link = self._links.get(node)
            if link is not None:
                self._guarded(self.detector.set_alternates, link.number, alternates)

    def _set_members(self) -> None:
        address = self.routes.address
        self._members.reach(map(address, self.routes.nodes))
        if not self._held:
            ids = self._sets.banned if self._sets else ()
            self._members.set({address(name) for id in ids if (name := node_of(SpiffeId(id)))})

    # ------------------------------------------------------------------ what is told
    def look(self) -> None:
        """For `x0 check`: as it is now."""
        self._guarded(self._look_once)

    def view(self) -> PlaneView:
        """For `x0 status`."""
        on = self._modes.text(self._links) or "no neighbour is adjacent yet"
        text = f"kernel ({on}; {self.programs.library.about})"
        if self.programs.without_verdicts:
            text += f"; {self.programs.without_verdicts}"
        now, links = clock(), self._links
        found = [*findings(links, self._refused, now), *self._modes.findings(links)]
        found += unwritten(self._unsaved)
        why = explained(links, self.routes.works, now)
        return PlaneView("kernel", text, (*self._findings, *found), why)

    def counters(self) -> dict[str, int]:
        """Sums by `name|labels`, see `telemetry.catalogue`."""
        found: dict[str, int] = {}
        for link in self._links:
            if link.kept is not None:
                slot = self.detector.slot(link.number)
                found |= counters(link, self.detector.report(link.number), slot)
        return found | dropped(self.programs)


def _nowhere(event: Event) -> None:
    """Nobody listens before `run`, which says how all links are."""
