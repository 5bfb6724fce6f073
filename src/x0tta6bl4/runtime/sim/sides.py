"""Agent and proxy of a simulated host: what the real drivers do between machine and socket."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, final

import msgspec

from x0tta6bl4.core.agent import words as agent_words
from x0tta6bl4.core.identity.renewal import RenewWanted
from x0tta6bl4.core.links.words import AgentAlive
from x0tta6bl4.core.machine import (
    SECOND,
    ClockSet,
    Done,
    Effects,
    Failed,
    Received,
    Send,
)
from x0tta6bl4.core.proxy.composite import Proxy
from x0tta6bl4.core.proxy.words import AGENT, Changed
from x0tta6bl4.core.records.words import Restore, Trust
from x0tta6bl4.runtime.sim.authority import ANSWER_US, Authority, persisted
from x0tta6bl4.runtime.sim.identity import DOMAIN, Realm
from x0tta6bl4.runtime.sim.mesh import CLOCK_LOOK, Host, Keys, neighbour_item
from x0tta6bl4.runtime.sim.network import Wire
from x0tta6bl4.runtime.sim.sessions import SessionSide
from x0tta6bl4.runtime.sim.world import LawBroken, Process
from x0tta6bl4.wire.authority import Update
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hello import HELLO_BYTES, Hello, pack, unpack
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import (
    PROXY_VERSION,
    AgentOrder,
    Delta,
    Flood,
    Full,
    Intro,
    LinkMessage,
    LinkState,
    NeighbourItem,
    ProxyFact,
    Ready,
)

_OVERLAP: Final = 2 * SECOND
"""How long a neighbour's keys before the newest are still accepted (runtime/loop/neighbours)."""


@final
class Datagram(msgspec.Struct, frozen=True, gc=False):
    """A hello on its way, with the key it was tagged under in place of the tag."""

    key: bytes
    hello: Hello


@final
class Lane:
    """One way of hellos: over a wire, under a key, into the proxy of a host.

    Where nothing can happen to a hello on its way and nobody looks, it is one entry of the world,
    and no event at all to a machine that learns nothing from it.

    Args:
        wire: what it goes over.
        key: of the direction.
        host: where the wire ends.
    """

    __slots__ = ("_ahead_us", "_come", "_host", "_link", "_take", "_world", "key", "wire")

    def __init__(self, wire: Wire, key: bytes, host: Host) -> None:
        self.wire = wire
        self.key = key
        self._host = host
        self._world = host.mesh.world
        self._come = self._hear
        # Who hears at the end, from `_open` until `shut`: found once, not with each hello.
        self._take: Callable[[int, Hello], bool] = _untaken
        self._link = self._ahead_us = 0

    def send(self, hello: Hello) -> None:
        """Send a hello."""
        wire, world = self.wire, self._world
        took_us = wire.plain_us
        if took_us < 0 or not world.plain:
            wire.datagram(HELLO_BYTES, self.deliver, Datagram(self.key, hello), _spoil)
            return
        wire.sent = sent = wire.sent + 1
        world.at(world.now + took_us, self._come, hello, wire.order + sent)

    def deliver(self, datagram: Datagram) -> None:
        """A datagram arrives; it is lost where no proxy runs."""
        proxy = self._host.proxy
        if proxy is not None:
            proxy.receive(datagram)

    def shut(self) -> None:
        """What was found of the proxy at the end may be true no longer."""
        self._take = _untaken

    def _hear(self, hello: Hello) -> None:
        world = self._world
        if (
            hello.link == self._link
            and world.plain
            and self._take(world.now + self._ahead_us, hello)
        ):
            world.taken += 1  # The proxy's deadline may now be too early, never too late.
            return
        proxy = self._host.proxy
        if proxy is not None:
            if self._take is _untaken or hello.link != self._link:
                self._open(proxy, hello.link)
            proxy.receive(Datagram(self.key, hello))

    def _open(self, proxy: ProxySide, link: int) -> None:
        """Find out who hears what comes over a link, if nothing stands in the way."""
        process = proxy.process
        node, key = proxy.by_link.get(link, ("", b""))
        end = proxy.machine.links.end(node)
        if end is None or key != self.key or process.frozen or process.clock.drifts:
            return
        proxy.shut(node)
        proxy.opened[node] = self
        self._take, self._link = end.neighbour.take, link
        self._ahead_us = process.clock.boot_us


class ProxySide:
    """One proxy process.

    Args:
        host: where it runs.
        realm: keys of the trust domain.
        make: makes the machine, or a broken one that a law must catch.

    Attributes:
        told: what its agent, or an observer, has last been told of each neighbour.
        refused: datagrams refused for their tag.
        by_link: whose hellos are heard, and under which key, by their key id.
        opened: ways of hellos that have found out that they end here, by neighbour.
        sessions: its circuits, sessions and applications.
    """

    def __init__(self, host: Host, realm: Realm, make: Callable[..., Proxy] = Proxy) -> None:
        self.host = host
        self.realm = realm
        self.incarnation = host.incarnation()
        world = host.mesh.world
        self.sessions = SessionSide(self)
        now = host.clock.local(world.now)
        self.machine = make(
            incarnation=self.incarnation,
            make_pipe=self.sessions.make_pipe,
            mac=_hmac,
            seed=f"{world.seed}/{host.name}/{self.incarnation}",
            now=now,
            clock_us=host.clock.unix_us(world.now) - now,
        )
        self.process = Process(world, f"{host.name}/proxy", host.clock, self.machine, self.perform)
        self.told: dict[str, str] = {}
        self.refused = 0
        self._elision = host.mesh.elision
        self.process.wake = self._wake
        self._lanes: dict[str, Lane] = {}
        self.by_link: dict[int, tuple[str, bytes]] = {}
        self.opened: dict[str, Lane] = {}
        self._links_of: dict[str, list[int]] = {}

    def unix_s(self) -> int:
        """Wall time of its host."""
        return self.host.clock.unix_us(self.host.mesh.world.now) // SECOND

    def _wake(self) -> None:
        for lane in self.opened.values():
            lane.shut()
        if self._elision is not None:
            self._elision.wake(self.host.name)

    # ------------------------------------------------------------------------- towards the agent
    def agent_connected(self, connected: bool) -> None:
        """The agent has opened the local socket, or it was closed."""
        self._wake()
        self.process.give(AgentAlive(connected))
        if connected:
            machine = self.machine
            self.host.to_agent(
                Ready(PROXY_VERSION, self.incarnation, machine.snapshot.version, 1, 1)
            )
            self.host.to_agent(machine.snapshot.full())
            for link in machine.links.statistics():
                state = self.told.get(link.node, "down")
                self.host.to_agent(
                    LinkState(
                        link.node,
                        state,
                        link.rtt_us,
                        link.loss_ppm,
                        True,
                        link.agent_alive,
                        gray=link.gray,
                    )
                )

    def put(self, order: AgentOrder) -> None:
        """The agent has written a Full or a Delta."""
        if _rekeys(order):
            self._wake()
        self.process.give(Received(AGENT, order))

    def clock_set(self, _: object) -> None:
        """Wall time has jumped; a process that stands still looks at the clock when it goes on."""
        world = self.host.mesh.world
        if self.process.frozen:
            world.after(CLOCK_LOOK, self.clock_set, None)
            return
        self.process.give(ClockSet(self.host.clock.unix_us(world.now)))

    # --------------------------------------------------------------------------- towards the wire
    def perform(self, effects: Effects) -> None:
        """Carry effects out."""
        for effect in effects:
            if type(effect) is Send:
                if effect.dst == AGENT:
                    self._tell(effect.message)
                    continue
                lane = self._lanes.get(effect.dst)
                if lane is not None:
                    lane.send(effect.message)
            elif type(effect) is Changed:
                self._changed(effect)
            else:
                self.sessions.perform(effect)

    def receive(self, datagram: Datagram) -> None:
        """A hello has come; it is heard if its tag is right."""
        found = self.by_link.get(datagram.hello.link)
        if found is None or found[1] != datagram.key:
            self.refused += 1
            return
        self.process.give(Received(found[0], datagram.hello))

    def _tell(self, fact: ProxyFact) -> None:
        if type(fact) is LinkState:
            self.told[fact.node] = fact.state
        self.host.to_agent(fact)

    # ------------------------------------------------------------------------------- link keys
    def _changed(self, changed: Changed) -> None:
        for item in changed.puts:
            if type(item) is NeighbourItem:
                self._put_keys(item)
        for key in changed.drops:
            if key.startswith("NeighbourItem/"):
                node = key.partition("/")[2]
                self.shut(node)
                self._lanes.pop(node, None)
                for link in self._links_of.pop(node, []):
                    del self.by_link[link]

    def _put_keys(self, item: NeighbourItem) -> None:
        self.shut(item.node)
        mesh = self.host.mesh
        wire = mesh.network.wire(self.host.name, item.node)
        self._lanes[item.node] = Lane(wire, item.tx_hello, mesh.hosts[item.node])
        links = self._links_of.setdefault(item.node, [])
        if item.link not in self.by_link:
            links.append(item.link)
            if len(links) > 1:
                mesh.world.after(_OVERLAP, self._retire, (item.node, links[-2]))
        self.by_link[item.link] = (item.node, item.rx_hello)

    def shut(self, node: str) -> None:
        """What was found of a neighbour's hellos may be true no longer."""
        lane = self.opened.pop(node, None)
        if lane is not None:
            lane.shut()

    def lane(self, node: str) -> Lane | None:
        """How hellos for a neighbour go."""
        return self._lanes.get(node)

    def hears(self, link: int, node: str, key: bytes) -> bool:
        """Whether a hello of a neighbour under this key would be heard."""
        return self.by_link.get(link) == (node, key)

    def _retire(self, what: tuple[str, int]) -> None:
        self._wake()
        node, link = what
        if link in self._links_of.get(node, []):
            self._links_of[node].remove(link)
            del self.by_link[link]

    def kill(self) -> None:
        """SIGKILL, or the host's power is gone."""
        self._wake()
        self.process.kill()
        self.sessions.died(host_lives=not self.host.isolated)


def _rekeys(order: AgentOrder) -> bool:
    """Whether an order says something of neighbours."""
    items = order.items if type(order) is Full else order.puts
    return any(type(item) is NeighbourItem for item in items) or (
        type(order) is Delta and any(key.startswith("NeighbourItem/") for key in order.drops)
    )


def _untaken(now: int, hello: Hello) -> bool:
    return False


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


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


class AgentSide:
    """One agent process.

    Args:
        host: where it runs.
        authority: whom it asks for SVIDs.
        make: makes the machine, or a broken one that a law must catch.
    """

    def __init__(self, host: Host, authority: Authority, make: Callable[..., Any]) -> None:
        self.host = host
        self.authority = authority
        self.incarnation = host.incarnation()
        self.noticed: dict[str, int] = {}
        world = host.mesh.world
        realm = authority.realm
        crypto = agent_words.Crypto(
            realm.verify, realm.verify_key, realm.verify_endpoint, realm.sign
        )
        self.machine = make(
            NodeName(host.name),
            DOMAIN,
            crypto=crypto,
            seed=f"{world.seed}/{host.name}/{self.incarnation}",
        )
        self.process = Process(world, f"{host.name}/agent", host.clock, self.machine, self.perform)
        self.process.wake = self._watch
        self._proxy_incarnation = 0
        self._frozen_at: int | None = None
        world.after(0, self._begin)

    def _begin(self, _: object) -> None:
        """What app/agent does at a start: disk, clock, enrolment, configuration."""
        if self.host.agent is not self:
            return
        disk = self.host.disk
        give = self.process.give
        if "held" in disk:
            give(Restore(persisted(disk["held"])))
        self.clock_set(None)
        name = self.host.name
        if "held" not in disk:
            give(Trust(self.authority.bundle, self.authority.unix_s() + 24 * 3600))
        svid = disk.get("svid")
        if svid is None or svid.not_after_unix_s <= self.authority.unix_s():
            svid = disk["svid"] = self.authority.realm.node_svid(
                name, self.authority.not_before(), self.authority.ttl_s
            )
        give(agent_words.SvidHeld(svid))
        give(disk.get("workloads", agent_words.Workloads()))
        give(
            agent_words.Configured(
                agent_words.NodeConfig(
                    neighbours=tuple(self.host.mesh.neighbours(name)),
                    authority="authority:1" if name in self.authority.direct else "",
                )
            )
        )

    def perform(self, effects: Effects) -> None:
        """Carry effects out."""
        host = self.host
        for effect in effects:
            if type(effect) is Send:
                message = effect.message
                size = 600
                if type(message) is Flood:
                    size = 20 + sum(map(len, message.records))
                host.mesh.between(host.name, effect.dst).send(host.name, message, size)
            elif type(effect) is agent_words.Order:
                host.to_proxy(effect.message)
            elif type(effect) is RenewWanted:
                host.mesh.world.after(2 * ANSWER_US, self._issue, effect)
            elif type(effect) is agent_words.PersistWanted:
                host.disk["held"] = self.machine.held()
            elif type(effect) is agent_words.KeepWanted:
                host.disk["workloads"] = self.machine.workloads()
            elif type(effect) is agent_words.HangUp:
                host.mesh.between(host.name, effect.node).lost(effect.reason)
            elif type(effect) is agent_words.Noticed:
                self.noticed[effect.kind] = self.noticed.get(effect.kind, 0) + 1

    def _issue(self, wanted: RenewWanted) -> None:
        """The authority's answer to a renewal."""
        if not self.authority.reachable(self.host.name):
            self.process.give(Failed(wanted.token, "authority is out of reach"))
            return
        issued = self.authority.issue(self.host.name, wanted.id)
        if isinstance(issued, str):
            self.process.give(Failed(wanted.token, issued))
            return
        if issued.id.endswith(f"/node/{self.host.name}"):
            self.host.disk["svid"] = issued
        self.process.give(Done(wanted.token, issued))

    def authority_state(self, up: bool) -> None:
        """The connection to the authority came or went."""
        self.process.give(agent_words.AuthorityState(up, "" if up else "out of reach"))

    def authority_said(self, update: Update) -> None:
        """The authority has pushed something."""
        if self.host.agent is self:
            self.process.give(agent_words.AuthoritySaid(update))

    # --------------------------------------------------------------------------- control links
    def intro(self) -> Intro | None:
        """What this node says of itself; None while it has no proxy."""
        if not self._proxy_incarnation:
            return None
        return Intro(
            1, self.host.name, self.incarnation, self._proxy_incarnation, (self.host.name,),
            self.host.mesh.hello_us, self.host.clock.unix_us(self.host.mesh.world.now),
        )  # fmt: skip

    def link_up(self, node: str, intro: Intro, keys: Keys) -> None:
        """A control link came up, or its keys have changed."""
        self.process.give(agent_words.NeighbourUp(neighbour_item(node, intro, keys)))

    def link_down(self, node: str, reason: str) -> None:
        """A control link is gone."""
        self.process.give(agent_words.NeighbourDown(node))

    def link_message(self, node: str, message: LinkMessage) -> None:
        """A neighbour's agent said something."""
        self.process.give(Received(node, message))

    def _watch(self) -> None:
        for link in self.host.mesh.links_of(self.host.name):
            link.watch()

    def silent_for(self) -> int:
        """How long the process has stood still."""
        if not self.process.frozen:
            self._frozen_at = None
            return 0
        if self._frozen_at is None:
            self._frozen_at = self.host.mesh.world.now
        return self.host.mesh.world.now - self._frozen_at

    # ----------------------------------------------------------------------------- its own proxy
    def hear(self, fact: ProxyFact) -> None:
        """The proxy said something on the local socket."""
        self.process.give(agent_words.ProxySaid(fact))
        if type(fact) is Ready and fact.incarnation != self._proxy_incarnation:
            self._proxy_incarnation = fact.incarnation
            intro = self.intro()
            assert intro is not None
            for link in self.host.mesh.links_of(self.host.name):
                link.greet(self.host.name, intro)

    def proxy_gone(self) -> None:
        """The local socket was closed."""
        self.process.give(agent_words.ProxyGone())

    def clock_set(self, _: object) -> None:
        """Wall time has jumped; a process that stands still looks at the clock when it goes on."""
        world = self.host.mesh.world
        if self.process.frozen:
            world.after(CLOCK_LOOK, self.clock_set, None)
            return
        self.process.give(ClockSet(self.host.clock.unix_us(world.now)))

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def start_agent(host: Host, agent: AgentSide) -> None:
    """Start a host's agent; it connects to the proxy if there is one."""
    assert host.agent is None
    for link in host.mesh.links_of(host.name):
        link.lost("reset")
    host.agent = agent
    host.connect()


def start_proxy(host: Host, proxy: ProxySide) -> None:
    """Start a host's proxy; the agent connects to it if there is one."""
    assert host.proxy is None
    host.proxy = proxy
    host.connect()
