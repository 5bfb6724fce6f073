"""Agent and proxy of a simulated host: what the real drivers do between machine and socket."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final, final

import msgspec

from x0tta6bl4.core.links.liveness import (
    AgentAlive,
    LinkDown,
    LinkQuality,
    Links,
    LinkSuspected,
    LinkUp,
    NeighbourGone,
    NeighbourSet,
)
from x0tta6bl4.core.machine import (
    MS,
    NEVER,
    NOTHING,
    SECOND,
    Effects,
    Event,
    Instant,
    Received,
    Send,
)
from x0tta6bl4.runtime.sim.mesh import LOCAL_US, Host, Keys, neighbour_item
from x0tta6bl4.runtime.sim.network import Wire
from x0tta6bl4.runtime.sim.world import LawBroken, Process
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hello import HELLO_BYTES, Hello, pack, unpack
from x0tta6bl4.wire.messages import Intro, LinkMessage, LinkState, NeighbourItem

_OVERLAP: Final = 2 * SECOND
"""How long a neighbour's keys before the newest are still accepted (runtime/loop/neighbours)."""

HELLO_US: Final = 100 * MS


@final
class Datagram(msgspec.Struct, frozen=True, gc=False):
    """A hello on its way, with the key it was tagged under in place of the tag."""

    key: bytes
    hello: Hello


class ProxySide:
    """A proxy that has links only.

    Args:
        host: where it runs.

    Attributes:
        told: what its agent, or an observer, has last been told of each neighbour.
        refused: datagrams refused for their tag.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.incarnation = host.incarnation()
        world = host.mesh.world
        self.machine = Links(
            self.incarnation, world.random(f"links/{host.name}/{self.incarnation}")
        )
        self.process = Process(world, f"{host.name}/proxy", host.clock, self.machine, self.perform)
        self.told: dict[str, str] = {}
        self.refused = 0
        self._routes: dict[str, tuple[Wire, bytes, Callable[[Datagram], None]]] = {}
        self._by_link: dict[int, tuple[str, bytes]] = {}
        self._links_of: dict[str, list[int]] = {}

    # ------------------------------------------------------------------------- towards the agent
    def agent_connected(self, connected: bool) -> None:
        """The agent has opened the local socket, or it was closed."""
        self.process.give(AgentAlive(connected))

    def put(self, item: NeighbourItem) -> None:
        """A neighbour, or its new keys."""
        mesh = self.host.mesh
        target = mesh.hosts[item.node]
        wire = mesh.network.wire(self.host.name, item.node)
        self._routes[item.node] = (wire, item.tx_hello, _door(target))
        links = self._links_of.setdefault(item.node, [])
        if item.link not in self._by_link:
            links.append(item.link)
            if len(links) > 1:
                mesh.world.after(_OVERLAP, self._retire, (item.node, links[-2]))
        self._by_link[item.link] = (item.node, item.rx_hello)
        self.process.give(
            NeighbourSet(item.node, item.incarnation, item.link, max(HELLO_US, item.hello_us))
        )

    def drop(self, node: str) -> None:
        """A neighbour is no longer configured or trusted."""
        self.process.give(NeighbourGone(node))
        self._routes.pop(node, None)
        for link in self._links_of.pop(node, []):
            del self._by_link[link]

    def _retire(self, what: tuple[str, int]) -> None:
        node, link = what
        if link in self._links_of.get(node, []):
            self._links_of[node].remove(link)
            del self._by_link[link]

    # --------------------------------------------------------------------------- towards the wire
    def perform(self, effects: Effects) -> None:
        """Carry effects out."""
        for effect in effects:
            if type(effect) is Send:
                route = self._routes.get(effect.dst)
                if route is not None:
                    wire, key, door = route
                    datagram = Datagram(key, effect.message)
                    wire.datagram(HELLO_BYTES, door, datagram, _spoil)
            else:
                self.tell(effect)

    def receive(self, datagram: Datagram) -> None:
        """A hello has come; it is heard if its tag is right."""
        found = self._by_link.get(datagram.hello.link)
        if found is None or found[1] != datagram.key:
            self.refused += 1
            return
        self.process.give(Received(found[0], datagram.hello))

    def tell(self, fact: Event) -> None:
        """Pass a fact on to the agent."""
        state: LinkState | None = None
        if type(fact) is LinkUp or type(fact) is LinkQuality:
            state = LinkState(
                fact.node,
                "up",
                fact.rtt_us,
                fact.loss_ppm,
                True,
                fact.agent_alive,
                gray=fact.gray,
            )
        elif type(fact) is LinkSuspected:
            state = LinkState(fact.node, "suspected", 0, 0, True, True)
        elif type(fact) is LinkDown:
            state = LinkState(fact.node, "down", 0, 0, True, False, fact.reason)
        assert state is not None, fact
        self.told[state.node] = state.state
        self.host.to_agent(state)

    def clock_set(self, _: object) -> None:
        """Wall time has jumped; nobody here minds."""

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def _door(host: Host) -> Callable[[Datagram], None]:
    def deliver(datagram: Datagram) -> None:
        proxy = host.proxy
        if proxy is not None:
            proxy.receive(datagram)

    return deliver


def _spoil(datagram: Datagram) -> None:
    """A bit flips under way: the real form on the wire must be refused."""

    def mac(body: bytes) -> bytes:
        return blake2b(body, key=datagram.key[:32], digest_size=16).digest()

    data = bytearray(pack(datagram.hello, mac))
    bit = datagram.hello.sequence * 131 % (len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    try:
        unpack(bytes(data), mac)
    except BadMessage:
        return
    raise LawBroken(f"a hello with bit {bit} flipped was accepted")


class _Idle:
    """Machine of an agent that decides nothing."""

    def __init__(self) -> None:
        self.deadline: Instant = NEVER

    def handle(self, now: Instant, event: Event) -> Effects:
        return NOTHING


class AgentSide:
    """An agent that only passes keys to its proxy: enough for worlds of links.

    Args:
        host: where it runs.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.incarnation = host.incarnation()
        self.process = Process(
            host.mesh.world, f"{host.name}/agent", host.clock, _Idle(), lambda _: None
        )
        self._proxy_incarnation = 0
        self._items: dict[str, NeighbourItem] = {}
        self._frozen_at: int | None = None

    # --------------------------------------------------------------------------- control links
    def intro(self) -> Intro | None:
        """What this node says of itself; None while it has no proxy."""
        if not self._proxy_incarnation:
            return None
        return Intro(
            1,
            self.host.name,
            self.incarnation,
            self._proxy_incarnation,
            (self.host.name,),
            HELLO_US,
            self.host.clock.unix_us(self.host.mesh.world.now),
        )

    def link_up(self, node: str, intro: Intro, keys: Keys) -> None:
        """A control link came up, or its keys have changed."""
        item = self._items[node] = neighbour_item(node, intro, keys)
        self.host.to_proxy(item)

    def link_down(self, node: str, reason: str) -> None:
        """A control link is gone; the proxy keeps the keys: a dead agent is no dead link."""

    def link_message(self, node: str, message: LinkMessage) -> None:
        """A neighbour's agent said something."""

    def silent_for(self) -> int:
        """How long the process has stood still."""
        if not self.process.frozen:
            self._frozen_at = None
            return 0
        if self._frozen_at is None:
            self._frozen_at = self.host.mesh.world.now
        return self.host.mesh.world.now - self._frozen_at

    # ----------------------------------------------------------------------------- its own proxy
    def proxy_ready(self, incarnation: int) -> None:
        """The proxy has said Ready on the local socket."""
        self._proxy_incarnation = incarnation
        intro = self.intro()
        assert intro is not None
        for item in self._items.values():
            self.host.to_proxy(item)
        for link in self.host.mesh.links_of(self.host.name):
            link.greet(self.host.name, intro)

    def proxy_gone(self) -> None:
        """The local socket was closed: there is nothing to tell neighbours of until it is back."""
        self._items.clear()

    def hear(self, state: LinkState) -> None:
        """A fact from the proxy."""

    def clock_set(self, _: object) -> None:
        """Wall time has jumped; nobody here minds."""

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def start_agent(host: Host, make: Callable[[Host], AgentSide] = AgentSide) -> None:
    """Start a host's agent; it connects to the proxy if there is one."""
    assert host.agent is None
    for link in host.mesh.links_of(host.name):
        link.lost("reset")
    host.agent = make(host)
    host.connect()


def start_proxy(host: Host, make: Callable[[Host], ProxySide] = ProxySide) -> None:
    """Start a host's proxy; the agent connects to it if there is one."""
    assert host.proxy is None
    host.proxy = make(host)
    host.connect()


__all__ = [
    "LOCAL_US",
    "AgentSide",
    "Datagram",
    "ProxySide",
    "start_agent",
    "start_proxy",
]
