"""A simulated mesh: hosts with an agent and a proxy each, and the connections between them.

    agent a <== control link (in order, keys exported) ==> agent b
      | local socket                                         |
    proxy a <-- hellos (datagrams, tagged) --------------> proxy b

Either process can be killed alone.  What the real drivers do between machine and socket, the
drivers here do between machine and wire; the words they pass are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.runtime.sim.network import Flow, Network, Shape
from x0tta6bl4.runtime.sim.world import Clock, Process, World
from x0tta6bl4.wire.messages import Intro, LinkMessage, NeighbourItem

HELLO_US: Final = 100 * MS
LOCAL_US: Final = 50
"""What a message takes between agent and proxy of one host."""
SILENCE: Final = 5 * SECOND
"""A control link without a sign of life for this long is lost."""
CLOCK_LOOK: Final = 500 * MS
"""How often drivers look for a step of wall time."""
_LOOK: Final = 1 * SECOND
_DIAL_FIRST: Final = 50 * MS
_DIAL_LAST: Final = 5 * SECOND


@final
class Keys(msgspec.Struct, frozen=True, gc=False):
    """What both ends of a control link export for their proxies; `tx` here is `rx` there."""

    link: int
    tx_hello: bytes
    rx_hello: bytes
    tx_setup: bytes
    rx_setup: bytes


class Host:
    """One machine with a clock, an agent and a proxy; either process may be missing.

    Attributes:
        started: how often each process was started, for names of random streams.
        isolated: powered off or suspended; nothing can be started on it.
    """

    def __init__(self, mesh: Mesh, name: str, clock: Clock) -> None:
        self.mesh = mesh
        self.name = name
        self.clock = clock
        self.agent: Any = None
        self.proxy: Any = None
        self.isolated = False
        self.started = 0
        self.disk: dict[str, Any] = {}
        """What processes find again: `held` (the agent's records) and `svid` (the node's own)."""

    def isolate(self) -> None:
        """Let nothing reach or leave it, nor be started on it."""
        self.isolated = True
        for wire in self.mesh.network.wires_of(self.name):
            wire.cut()

    def rejoin(self) -> None:
        """Undo `isolate`."""
        self.isolated = False
        for wire in self.mesh.network.wires_of(self.name):
            wire.mend()

    def incarnation(self) -> int:
        """A fresh incarnation for a process that starts: 63 bits, new each time."""
        self.started += 1
        text = f"{self.mesh.world.seed}/{self.name}/{self.started}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1

    # ----------------------------------------------------------------------- the local socket
    def connect(self) -> None:
        """Agent and proxy meet on the local socket, if both are there."""
        agent, proxy = self.agent, self.proxy
        if agent is not None and proxy is not None:
            self.mesh.world.after(LOCAL_US, self._met, (agent, proxy))

    def _met(self, pair: tuple[Any, Any]) -> None:
        agent, proxy = pair
        if self.agent is agent and self.proxy is proxy:
            proxy.agent_connected(True)

    def to_proxy(self, message: Any) -> None:
        """From the agent to the proxy of now; lost if that dies first."""
        if self.proxy is not None:
            self.mesh.world.after(LOCAL_US, self._put, (self.proxy, message))

    def _put(self, what: tuple[Any, Any]) -> None:
        proxy, message = what
        if self.proxy is proxy:
            proxy.put(message)

    def to_agent(self, message: Any) -> None:
        """From the proxy to the agent of now; lost if that dies first."""
        if self.agent is not None:
            self.mesh.world.after(LOCAL_US, self._hear, (self.agent, message))

    def _hear(self, what: tuple[Any, Any]) -> None:
        agent, message = what
        if self.agent is agent:
            agent.hear(message)

    # ------------------------------------------------------------------------------------ faults
    def kill_agent(self) -> None:
        """The agent dies; the proxy sees its socket closed, neighbours their connections."""
        agent, self.agent = self.agent, None
        if agent is None:
            return
        agent.kill()
        if not self.isolated:
            for link in self.mesh.links_of(self.name):
                link.lost("closed")
        if self.proxy is not None:
            self.mesh.world.after(LOCAL_US, self._agent_left, self.proxy)

    def _agent_left(self, proxy: Any) -> None:
        if self.proxy is proxy and self.agent is None:
            proxy.agent_connected(False)

    def kill_proxy(self) -> None:
        """The proxy dies; the agent sees its socket closed, neighbours hear nothing more."""
        proxy, self.proxy = self.proxy, None
        if proxy is not None:
            proxy.kill()
            if self.agent is not None:
                self.mesh.world.after(LOCAL_US, self._proxy_left, self.agent)

    def _proxy_left(self, agent: Any) -> None:
        if self.agent is agent and self.proxy is None:
            agent.proxy_gone()

    def clock_stepped(self) -> None:
        """Wall time has jumped: who minds is told within a second, as real drivers do."""
        for part in (self.agent, self.proxy):
            if part is not None:
                self.mesh.world.after(CLOCK_LOOK, part.clock_set, None)

    def processes(self) -> list[Process]:
        """What runs on it now."""
        return [part.process for part in (self.agent, self.proxy) if part is not None]


class ControlLink:
    """The mutual-TLS connection between two neighbours' agents, as runtime/aio/links keeps it."""

    def __init__(self, mesh: Mesh, a: str, b: str) -> None:
        self.mesh = mesh
        self.names = (a, b)
        self.wires = (mesh.network.wire(a, b), mesh.network.wire(b, a))
        self.up = False
        self.delivered = 0
        self._serial = 0
        self._flows: dict[str, Flow] = {}
        self._said: dict[str, Intro] = {}
        self._heard: dict[str, Intro] = {}
        self._wait = _DIAL_FIRST
        self._looked_at = 0
        self._looks = False
        for wire in self.wires:
            wire.hurt = self.watch
        self._random = mesh.world.random(f"control/{a}-{b}").random
        mesh.world.after(int(self._random() * _DIAL_FIRST), self._dial)

    def _ends(self) -> list[Any] | None:
        """Both agents, if both can talk now."""
        ends = [self.mesh.hosts[name].agent for name in self.names]
        if any(end is None or end.process.frozen or end.intro() is None for end in ends):
            return None
        return ends

    def _dial(self, _: Any) -> None:
        a, b = self.names
        if self.mesh.passes(a, b) and self.mesh.passes(b, a) and self._ends():
            there, back = self.mesh.network.wire(a, b), self.mesh.network.wire(b, a)
            took = 2 * (there.segment_delay() + back.segment_delay())
            self.mesh.world.after(took, self._shaken, None)
            return
        self._again()

    def _again(self) -> None:
        self.mesh.world.after(int(self._wait * (0.75 + self._random() / 2)), self._dial)
        self._wait = min(self._wait * 2, _DIAL_LAST)

    def _shaken(self, _: Any) -> None:
        """The handshake is done, unless somebody went away meanwhile."""
        a, b = self.names
        ends = self._ends()
        if not ends or not (self.mesh.passes(a, b) and self.mesh.passes(b, a)):
            self._again()
            return
        self.up = True
        self._serial += 1
        self._wait = _DIAL_FIRST
        for source, target in ((a, b), (b, a)):
            wire = self.mesh.network.wire(source, target)
            self._flows[source] = Flow(self.mesh.world, wire, self._deliver(target, source))
        self._said = {end.host.name: end.intro() for end in ends}
        self._heard = {a: self._said[b], b: self._said[a]}
        self._announce()
        self._looked_at = self.mesh.world.now
        self._looks = False
        self.watch()

    def _deliver(self, target: str, source: str) -> Callable[[Any], None]:
        def deliver(message: LinkMessage) -> None:
            self.delivered += 1
            agent = self.mesh.hosts[target].agent
            if agent is None:
                return
            if type(message) is Intro:
                self._heard[target] = message
                agent.link_up(source, message, self._keys(target))
            else:
                agent.link_message(source, message)

        return deliver

    def _announce(self) -> None:
        for me, other in (self.names, self.names[::-1]):
            agent = self.mesh.hosts[me].agent
            if agent is not None and self.up:
                agent.link_up(other, self._heard[me], self._keys(me))

    def _keys(self, me: str) -> Keys:
        a, b = self.names
        other = b if me == a else a
        low, high = self._said[me], self._heard[me]
        if me == b:
            low, high = high, low
        start = (
            f"{self.mesh.world.seed}/{a}/{b}/{self._serial}/"
            f"{low.proxy_incarnation}/{high.proxy_incarnation}"
        )

        def export(label: str) -> bytes:
            return blake2b(f"{start}/{label}".encode(), digest_size=32).digest()

        return Keys(
            link=int.from_bytes(export("link")[:4], "little"),
            tx_hello=export(f"hello/{me}"),
            rx_hello=export(f"hello/{other}"),
            tx_setup=export(f"setup/{me}"),
            rx_setup=export(f"setup/{other}"),
        )

    def send(self, source: str, message: LinkMessage, size: int) -> None:
        """Send from one end; lost if the link is not up."""
        if self.up:
            self._flows[source].send(message, size)

    def greet(self, source: str, intro: Intro) -> None:
        """One end's proxy has started anew: tell the other end, and change keys here."""
        if self.up and self._said.get(source) != intro:
            self._said[source] = intro
            self._flows[source].send(intro, 200)
            agent = self.mesh.hosts[source].agent
            target = self.names[1] if source == self.names[0] else self.names[0]
            agent.link_up(target, self._heard[source], self._keys(source))

    def watch(self) -> None:
        """Something has happened to a wire or an end: is the other end still heard of?

        It is asked once a second, from the handshake on, for as long as there is a reason to.
        """
        if not self.up or self._looks:
            return
        self._looks = True
        now = self.mesh.world.now
        self._looked_at += (now - self._looked_at) // _LOOK * _LOOK
        self.mesh.world.at(self._looked_at + _LOOK, self._look, self._serial)

    def _look(self, serial: int) -> None:
        if not self.up or serial != self._serial:
            return
        world, hosts = self.mesh.world, self.mesh.hosts
        self._looks = False
        self._looked_at = world.now
        for wire, source, target in zip(self.wires, self.names, self.names[::-1], strict=True):
            silent = wire.shape.cut and world.now - wire.cut_since >= SILENCE
            agent = hosts[source].agent
            if silent or (agent is not None and agent.silent_for() >= SILENCE):
                self.lost("silent", target)
                return
            if wire.shape.cut or (agent is not None and agent.process.frozen):
                self.watch()

    def lost(self, reason: str, noticed_by: str | None = None) -> None:
        """The connection is gone; who can be reached hears at once, the other by silence."""
        if not self.up:
            return
        self.up = False
        for flow in self._flows.values():
            flow.close()
        for me, other in (self.names, self.names[::-1]):
            agent = self.mesh.hosts[me].agent
            if agent is not None:
                delay = LOCAL_US
                if me != noticed_by:
                    delay = (
                        SECOND
                        if not self.mesh.passes(other, me)
                        else (self.mesh.network.wire(other, me).shape.latency_us)
                    )
                self.mesh.world.after(delay, self._tell_lost, (agent, other, reason, self._serial))
        self._again()

    def _tell_lost(self, what: tuple[Any, str, str, int]) -> None:
        agent, other, reason, serial = what
        if serial == self._serial and not self.up:
            agent.link_down(other, reason)


class Mesh:
    """All hosts, wires and control links of a simulated mesh.

    Args:
        world: where it lives.
        hello_us: calm interval of all links.
    """

    def __init__(self, world: World, hello_us: int = HELLO_US) -> None:
        self.world = world
        self.hello_us = hello_us
        self.network = Network(world)
        self.hosts: dict[str, Host] = {}
        self.links: dict[tuple[str, str], ControlLink] = {}
        self.elision: Any = None
        """Moves calm links on without hellos (elision.Elision); None: each hello is passed."""
        self.talks: dict[str, Any] = {}
        """Streams that applications have opened or will open, by name (sessions.Talk)."""
        self.served: dict[str, Any] = {}
        """Their other ends, as soon as there are any (sessions.App)."""
        self.byzantine: set[str] = set()
        """Hosts that have lied: what they pass on may be late or missing."""
        self.thefts: list[tuple[Any, int]] = []
        """Attempts to join sessions without their secret: proxy and circuit."""
        self._links_of: dict[str, list[ControlLink]] = {}

    def host(self, name: str, clock: Clock) -> Host:
        """Add a host."""
        host = self.hosts[name] = Host(self, name, clock)
        self._links_of[name] = []
        return host

    def link(self, a: str, b: str, shape: Shape) -> None:
        """Lay wires between two hosts and configure them as neighbours of each other."""
        a, b = sorted((a, b))
        self.network.join(a, b, shape)
        link = self.links[a, b] = ControlLink(self, a, b)
        self._links_of[a].append(link)
        self._links_of[b].append(link)

    def links_of(self, name: str) -> list[ControlLink]:
        """Configured links of a host."""
        return self._links_of[name]

    def between(self, a: str, b: str) -> ControlLink:
        """The configured link of two hosts."""
        return self.links[(a, b) if a < b else (b, a)]

    def neighbours(self, name: str) -> list[str]:
        """Configured neighbours of a host, sorted."""
        return sorted(
            other for link in self._links_of[name] for other in link.names if other != name
        )

    def passes(self, source: str, target: str) -> bool:
        """Whether packets get from one host to the other, now."""
        return not self.network.wire(source, target).shape.cut

    def reached(self, starts: list[str]) -> set[str]:
        """Hosts that are reached from some, over proxies that run and wires that pass."""
        hosts = self.hosts
        runs = {
            name
            for name, host in hosts.items()
            if host.proxy is not None and not host.proxy.process.frozen
        }
        reached = set(starts)
        todo = [name for name in starts if name in runs]
        while todo:
            here = todo.pop()
            for link in self._links_of[here]:
                a, b = link.names
                other = b if a == here else a
                if other in runs and other not in reached:
                    there, back = link.wires
                    if not (there.shape.cut or back.shape.cut):
                        reached.add(other)
                        todo.append(other)
        return reached


def neighbour_item(node: str, intro: Intro, keys: Keys) -> NeighbourItem:
    """What an agent tells its proxy of a neighbour whose control link is up."""
    return NeighbourItem(
        node=node,
        link=keys.link,
        endpoints=intro.endpoints,
        incarnation=intro.proxy_incarnation,
        hello_us=intro.hello_us,
        tx_hello=keys.tx_hello,
        rx_hello=keys.rx_hello,
        tx_setup=keys.tx_setup,
        rx_setup=keys.rx_setup,
    )
