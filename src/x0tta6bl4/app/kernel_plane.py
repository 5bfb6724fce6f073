"""The kernel's half of a node, driven by its agent: links, verdicts, routes, filter, lease.

    connection of a link --offers, keys--> detector --DOWN--> agent's machine, routes cut
    WaysChanged ----------------------------> routes and the detector's alternates
    every second ---------------------------> lease, revivals, members of the filter

The kernel only declares dead; who revives is this: after ten answers in a row, and not before
REVIVE_S.  While a link is dead here, what the proxy says of it is kept back: its hellos are slower
and may not have noticed.  What was agreed with each neighbour is written down, so that the next
agent goes on with the same numbers and slots; the programs never stop for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.app.kernel_links import KEPT, Kept, KernelLink, Links, towards
from x0tta6bl4.app.kernel_views import counters, findings
from x0tta6bl4.app.settings import NodeSettings
from x0tta6bl4.core.agent.words import KernelLinks, ProxySaid
from x0tta6bl4.core.links.quality import Loss
from x0tta6bl4.core.machine import Event
from x0tta6bl4.core.routing.alternates import Way
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.edge.kernel.detector import Detector, Link, Traffic, keys_of
from x0tta6bl4.edge.kernel.filter import MEMBERS_MAX, Filter, Member
from x0tta6bl4.edge.kernel.layout import GOOD, EventKind, Reason
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.edge.kernel.plane import LOOK_EVERY_S, Adjacent, Plane
from x0tta6bl4.edge.kernel.programs import Mode, Programs
from x0tta6bl4.runtime.aio.links import LinkConnections, Offers
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.admin import Finding, PlaneView
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_of
from x0tta6bl4.wire.mesh_address import mesh_address, mesh_prefix
from x0tta6bl4.wire.messages import KernelOffer, LinkState, ProxyFact, Ready

TICK_S: Final = 0.1
LEASE_S: Final = 1.0
REVIVE_S: Final = 2.0
OLD_SLOT_S: Final = 5.0
"""Hellos under the keys before the last are taken for so long."""
PINS: Final = "bpf"
SWITCHES: Final = "switches"
FRESH_US: Final = 50_000
"""A link whose last answer is older is not revived."""
MEMBER_S: Final = 120.0
"""How long a node that the kernel reaches no more may go on sending: the restart time."""
Post = Callable[[Event], None]
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
    ) -> None:
        self._domain, self._me = domain, me
        self._say = say
        self._post: Post = _nowhere
        self._links = Links(state_dir, neighbours)
        self._ways: dict[str, Way] = {}
        self._addresses: dict[str, IPv6Address] = {}
        self._members: dict[str, float] = {}
        """By node, when it was last reachable by the kernel; bounded by the ways."""
        self._modes: dict[int, tuple[str, Mode]] = {}
        self._findings: tuple[Finding, ...] = ()
        self._refused: dict[str, str] = {}
        """Why a neighbour's link is not the kernel's; bounded by the neighbours."""
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: LinkConnections | None = None
        self._banned: Callable[[], frozenset[str]] = frozenset
        self.programs = Programs.open(Libbpf(), state_dir / PINS)
        try:
            self.detector = Detector(self.programs)
            self._filter = Filter(self.programs)
            self.routes = Plane(domain, me, state_dir / SWITCHES)
            self._held = self._begin()
        except BaseException:
            self.remove()
            raise

    def _begin(self) -> bool:
        """Go on with what an earlier agent has left; whether a table of it is at work."""
        at_work = self.detector.links()
        for number in self._links.gone:
            if number in at_work:
                self.detector.remove_link(number)
        for ifindex, mode in self.programs.attached().items():
            with contextlib.suppress(OSError):
                self._modes[ifindex] = socket.if_indextoname(ifindex), mode
        judged = [link for link in self._links if link.number in at_work and link.kept is not None]
        for link in self._links:
            if link in judged:
                link.proven, link.alive = True, not self.detector.report(link.number).dead
                link.slot = self.detector.slot(link.number)
                link.used = True
            elif link.kept is not None and link.kept.index in self._modes:
                self._set_link(link, link.kept)  # The maps are new, what was agreed on is not.
                link.proven = True
            else:
                link.kept = None
        held = self.routes.start(self._adjacent())
        for link in judged:
            if not link.alive:
                self.routes.cut(link.node, True)
        if held and judged and not any(link.alive for link in judged):
            held = False  # Cut off from all: detours of then would send packets back.
            self.routes.settle()
            self._set_alternates()
        if held and not judged:
            self._filter.set_members(dict.fromkeys(map(IPv6Address, self.routes.targets), Member()))
        prefix = IPv6Network((mesh_prefix(self._domain) + bytes(10), 48))
        self._filter.switch(prefix)
        return held

    # ------------------------------------------------------------------ life
    def run(
        self, connections: LinkConnections, post: Post, banned: Callable[[], frozenset[str]]
    ) -> None:
        """Begin to listen and to tick, in the running loop.

        Args:
            connections: tell neighbours when keys are in.
            post: gives an event to the agent's machine.
            banned: SPIFFE IDs that are revoked.
        """
        self._connections, self._post, self._banned = connections, post, banned
        loop = asyncio.get_running_loop()
        loop.add_reader(self.detector.fileno(), self._events)
        loop.add_reader(self.routes.fileno(), self._guarded, self.routes.ready)
        self._tasks = [loop.create_task(self._tick()), loop.create_task(self._look())]
        self._post(KernelLinks(self._forwarding(), self._held))

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
        for work in (self._end_programs, self._end_routes):
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

    def _end_routes(self) -> list[str]:
        return self.routes.stop() if hasattr(self, "routes") else []

    def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.detector.fileno())
            loop.remove_reader(self.routes.fileno())
        self._tasks = []

    async def _tick(self) -> None:
        """Lease, revivals, members: level, not edge."""
        now = asyncio.get_running_loop().time
        renewed = -TICK_S
        while True:
            if now() >= renewed + LEASE_S:
                renewed = now()
                self._guarded(self.detector.renew)
                self._guarded(self._set_members)
            for link in self._links:
                self._guarded(self._judge, link)
            await asyncio.sleep(TICK_S)

    async def _look(self) -> None:
        while True:
            self._guarded(self._look_once)
            await asyncio.sleep(LOOK_EVERY_S)

    def _look_once(self) -> None:
        self._findings = tuple(self.routes.look())
        on = self.programs.attached()
        for index, (name, mode) in list(self._modes.items()):
            if index not in on and any(x.kept and x.kept.index == index for x in self._links):
                self._say("kernel", f"somebody took the programs off {name}; they are put on again")
                self.programs.attach(index, mode)

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
            found = towards(self.routes.netlink, there)
            if found is None:
                self._refused[node] = f"{there} is not adjacent on an interface with IPv6"
                return None
            if found.index not in self._modes:
                self._modes[found.index] = found.name, self.programs.attach(found.index)
        except (X0Error, ValueError) as error:
            self._refused[node] = str(error)
            return None
        slot = link.slot if link.used else -1
        return found.index, KernelOffer(link.number, found.local, found.mac, found.mtu, slot)

    def offered(self, node: NodeName, offers: Offers) -> None:
        """See `runtime.aio.links.KernelSide`."""
        self._guarded(self._agree, node, offers)

    def withdrawn(self, node: NodeName) -> None:
        """A neighbour's data goes through user space, or is not adjacent any more."""
        link = self._links.get(node)
        if link is not None:
            self._refused.setdefault(node, "its data goes through user space")
        if link is None or link.kept is None:
            return
        self._guarded(self.detector.remove_link, link.number)
        said, dead = link.said, link.proven and not link.alive
        link.kept, link.secret, link.slot = None, b"", -1
        link.proven = link.alive = link.used = False
        self._changed()
        if dead and said is not None:
            self._post(ProxySaid(said))

    def _agree(self, node: NodeName, offers: Offers) -> None:
        link = self._links.get(node)
        if link is None:
            return
        self._refused.pop(node, None)
        mine, theirs = offers.mine, offers.theirs
        kept = Kept(
            node, link.number, offers.index, mine.local, mine.mac, theirs.local, theirs.mac,
            theirs.link, min(mine.mtu, theirs.mtu),
        )  # fmt: skip
        if kept != link.kept:
            self._watch(link, kept)
        if offers.secret != link.secret:
            ours, first = (mine, offers.first) if self._me > node else (offers.first, mine)
            slot = 1 - ours.slot if ours.slot >= 0 else 1 - first.slot if first.slot >= 0 else 0
            self.detector.set_keys(link.number, slot, *keys_of(offers.secret, self._me < node))
            link.secret, link.slot, link.used = offers.secret, slot, False
            if self._connections is not None:
                self._connections.ready(node)
        if theirs.ready and not link.used:
            self.detector.use_slot(link.number, link.slot)
            link.used = True
            asyncio.get_running_loop().call_later(OLD_SLOT_S, self._drop_old, link, link.secret)

    def _watch(self, link: KernelLink, kept: Kept) -> None:
        new = link.kept is None
        self._set_link(link, kept)
        link.kept = kept
        if new:
            link.proven = link.alive = False
        self._changed()
        self._links.save()

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

    def _drop_old(self, link: KernelLink, secret: bytes) -> None:
        if link.secret == secret and self._tasks:
            self._guarded(self.detector.drop_slot, link.number, 1 - link.slot)

    def _changed(self) -> None:
        """Neighbours have changed: routes and alternates name others."""
        self._guarded(self.routes.neighbours, self._adjacent())
        if not self._held:
            self._guarded(self._set_alternates)
        self._post(KernelLinks(self._forwarding()))

    def _adjacent(self) -> list[Adjacent]:
        return [one for link in self._links if (one := link.adjacent) is not None]

    def _forwarding(self) -> frozenset[str]:
        return frozenset(link.node for link in self._links if link.proven)

    # ------------------------------------------------------------------ links: judging
    def _events(self) -> None:
        for event in self.detector.events():
            link = self._links.numbered(event.number)
            if link is None or link.kept is None:
                continue
            if event.kind is EventKind.DOWN:
                self._guarded(self._judge, link)
            elif event.kind is EventKind.GOOD and not link.proven:
                self._guarded(self._revive, link)

    def _judge(self, link: KernelLink) -> None:
        """Compare what the kernel says of a link with what was made of it."""
        if link.kept is None:
            return
        report = self.detector.report(link.number)
        moved = self.detector.traffic(link.number)
        link.lost += moved.lost_in + moved.lost_out
        if link.alive:
            if report.dead:
                self._down(link, report.silent_us)
            else:
                self._grade(link, moved, report.peer_heard)
            return
        rested = time.monotonic() - link.down_at >= REVIVE_S or not link.proven
        if rested and report.good >= GOOD and report.silent_us < FRESH_US:
            self._revive(link)

    def _grade(self, link: KernelLink, moved: Traffic, heard: int) -> None:
        """A link that loses some of what it carries, either way, counts four times (CUSUM).

        Hellos that the neighbour has heard count as good: a link that is left carries no data.
        """
        was, hellos = link.gray, max(heard - link.heard, 0)
        link.heard = heard
        link.into.count(moved.came_in, moved.lost_in)
        link.out.count(moved.came_out + hellos, moved.lost_out)
        if link.gray == was:
            return
        self._say("link", f"{link.node} loses packets" + ("" if link.gray else " no more"))
        if link.said is not None:
            self._post(ProxySaid(self._graded(link, link.said)))

    def _graded(self, link: KernelLink, said: LinkState) -> LinkState:
        if not link.gray or said.state != "up":
            return said
        loss = max(said.loss_ppm, link.into.ppm, link.out.ppm)
        return msgspec.structs.replace(said, gray=True, loss_ppm=loss)

    def _down(self, link: KernelLink, silent_us: int) -> None:
        """The verdict: routes at once, then the mesh."""
        link.alive, link.down_at = False, time.monotonic()
        self.routes.cut(link.node, True)
        dials = link.said.dials if link.said else True
        reason = f"the kernel heard nothing for {silent_us / 1000:.1f} ms"
        self._post(ProxySaid(LinkState(link.node, "down", 0, 0, dials, False, reason)))
        self._say("link", f"{link.node} is down: {reason}")

    def _revive(self, link: KernelLink) -> None:
        """New before old: the kernel sends over it, then the map has it again."""
        first = not link.proven
        self.detector.revive(link.number)
        link.proven = link.alive = True
        link.into, link.out = Loss(), Loss()
        self.routes.cut(link.node, False)
        if first:
            self._post(KernelLinks(self._forwarding()))
        elif link.said is not None:
            self._post(ProxySaid(link.said))
        self._say("link", f"{link.node} answers the kernel" + ("" if first else " again"))

    def heard(self, fact: ProxyFact) -> ProxyFact | None:
        """What a fact of the proxy comes to: nothing where a link is up that is dead here."""
        if type(fact) is Ready:
            for link in self._links:
                link.said = None
        found = self._links.get(fact.node) if type(fact) is LinkState else None
        if found is None or type(fact) is not LinkState:
            return fact
        found.said = fact
        if fact.state == "down":
            if self.programs.without_verdicts and found.kept is not None:
                self._guarded(self.detector.declare_dead, found.number)
            return fact
        return self._graded(found, fact) if found.alive or not found.proven else None

    # ------------------------------------------------------------------ routes and members
    def ways(self, fact: WaysChanged) -> None:
        """The table has changed."""
        for node, way in fact.ways:
            if way is None:
                self._ways.pop(node, None)
            else:
                self._ways[node] = way
        self._guarded(self.routes.table, dict(fact.ways))
        if not self._held:
            self._guarded(self._set_alternates)
        self._guarded(self._set_members)

    def _address(self, node: str) -> IPv6Address:
        found = self._addresses.get(node)
        if found is None:
            if len(self._addresses) > MEMBERS_MAX:
                self._addresses.clear()
            found = self._addresses[node] = mesh_address(self._domain, NodeName(node))
        return found

    def complete(self) -> None:
        """All ways have been told: what an earlier agent has left and nobody told again goes."""
        if self._held:
            self._held = False
            self._guarded(self.routes.settle)
            self._guarded(self._set_alternates)
            self._guarded(self._set_members)

    def _set_alternates(self) -> None:
        """Where the kernel sends data of a link from its verdict on, before any table changes."""
        for node, alternates in self.routes.alternates().items():
            link = self._links.get(node)
            if link is not None:
                self.detector.set_alternates(link.number, alternates)

    def _set_members(self) -> None:
        """Who may send: nodes that the kernel reaches, and for a while those that it did."""
        now = time.monotonic()
        self._members |= dict.fromkeys(self._ways, now)
        if self._held:
            return
        self._members = {n: at for n, at in self._members.items() if now - at < MEMBER_S}
        banned = {node_of(SpiffeId(id)) for id in self._banned()}
        members = {
            self._address(node): Member(denied=node in banned)
            for node in list(self._members)[:MEMBERS_MAX]
        }
        self._filter.set_members(members)

    # ------------------------------------------------------------------ what is told
    def look(self) -> None:
        """Look at everything now, for `x0 check`."""
        self._guarded(self._look_once)

    def view(self) -> PlaneView:
        """For `x0 status`."""
        on = ", ".join(f"{mode.value} on {name}" for name, mode in sorted(self._named()))
        text = "kernel" + (f" ({on})" if on else " (no neighbour is adjacent yet)")
        if self.programs.without_verdicts:
            text += f"; {self.programs.without_verdicts}"
        return PlaneView(
            "kernel", text, self._findings + tuple(findings(self._links, self._refused))
        )

    def _named(self) -> list[tuple[str, Mode]]:
        used = {link.kept.index for link in self._links if link.kept is not None}
        return [self._modes[index] for index in used if index in self._modes]

    def counters(self) -> dict[str, int]:
        """Sums by `name|labels`, see `telemetry.catalogue`."""
        found: dict[str, int] = {}
        for link in self._links:
            if link.kept is not None:
                slot = self.detector.slot(link.number)
                found |= counters(link, self.detector.report(link.number), slot)
        for reason, count in self.programs.counters().items():
            name = reason.name.lower()
            if reason not in _FINE:
                found[f"kernel_dropped_total|{name}"] = count
        return found


_FINE: Final = (Reason.HELLO_ANSWERED, Reason.HELLO_ACCEPTED, Reason.FILTER_PASSED)


def _nowhere(event: Event) -> None:
    """Nobody listens before `run`, which says how all links are."""


def open_plane(settings: NodeSettings, say: Say) -> tuple[KernelPlane | None, PlaneView]:
    """The plane that node.toml asks for, as far as this host can.

    Args:
        settings: of the node.
        say: a line for the events log.
    Returns:
        The kernel's plane, or None; and what is in force without it, with the reason.
    Raises:
        Unavailable: `plane = "kernel"`, and this host can't; the reason is X0-KRN-...
    """
    wish, state_dir = settings.data.plane, Path(settings.state_dir)
    names = [link.node for link in settings.link]
    domain, me = TrustDomain(settings.trust_domain), NodeName(settings.node)
    if wish == "userspace":
        if (state_dir / KEPT).exists():  # Of a life in kernel mode that was killed.
            with contextlib.suppress(X0Error, OSError):
                KernelPlane(domain, me, state_dir, names, say).remove()
        return None, PlaneView()
    try:
        return KernelPlane(domain, me, state_dir, names, say), PlaneView()
    except X0Error as error:
        if wish == "kernel":
            raise
        why = f"{error.id}: {error.what}"
        say("kernel", f"data goes through user space: {why}")
        wrong = Finding(
            "X0-KRN-143", "warning", f"data goes through user space: {why}",
            error.hint or 'say plane = "userspace" if that is meant',
        )  # fmt: skip
        return None, PlaneView("userspace", f"userspace, because {why}", (wrong,))
