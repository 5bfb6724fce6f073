"""Agents without processes: fake SVIDs, proxies that only hold, links that only deliver."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tests.fakes import signing
from tests.fakes.signing import DOMAIN, mac
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.agent.composite import Agent
from x0tta6bl4.core.identity.renewal import RenewWanted
from x0tta6bl4.core.machine import (
    SECOND,
    Allowed,
    ClockSet,
    Denied,
    Done,
    Effect,
    Effects,
    Event,
    Instant,
    Received,
    Send,
    Tick,
    Verdict,
)
from x0tta6bl4.core.proxy.snapshot import Snapshot
from x0tta6bl4.core.records.words import Held, Restore, Trust
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.ids import NodeName, SpiffeId, node_id
from x0tta6bl4.wire.messages import (
    Delta,
    Full,
    Item,
    LinkState,
    NeighbourItem,
    Ready,
    SvidItem,
    item_key,
)
from x0tta6bl4.wire.records import Endpoint, Record, endpoint_signed_part, signed_part

UNIX = 1_800_000_000
TTL_S = 3600


def svid(id: str, not_after_unix_s: int) -> SvidItem:
    """The fake's certificate is the ID and its end; whoever has `key` signs for the ID."""
    leaf = f"{id} {not_after_unix_s}".encode()
    return SvidItem(id, (leaf,), key_of(id), not_after_unix_s)


def key_of(id: str) -> bytes:
    return b"key " + id.encode()[-56:]


def _judge(chain: tuple[bytes, ...], signature: bytes, data: bytes, expires: int) -> Verdict:
    if len(chain) != 1:
        return Denied("no chain")
    id, _, not_after = chain[0].decode().partition(" ")
    if signature != mac(key_of(id), data):
        return Denied("bad signature")
    if expires > int(not_after):
        return Denied("outlives its SVID")
    return Allowed(SpiffeId(id))


def _verify(record: Record, unix_s: int) -> Verdict:
    return _judge(record.signer, record.signature, signed_part(record), record.expires_unix_s)


def _verify_endpoint(node: str, endpoint: Endpoint, unix_s: int) -> Verdict:
    part = endpoint_signed_part(node, endpoint)
    return _judge(endpoint.chain, endpoint.signature, part, endpoint.expires_unix_s)


CRYPTO = words.Crypto(
    verify=_verify,
    verify_key=signing.verify_key,
    verify_endpoint=_verify_endpoint,
    sign=mac,
)


class FakeProxy:
    """Holds a snapshot by the proxy's own rules, and notes what changed."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.snapshot = Snapshot()
        self.orders: list[Full | Delta] = []

    def take(self, message: Full | Delta) -> None:
        self.orders.append(message)
        if type(message) is Full:
            taken = self.snapshot.take_full(message)
        else:
            assert type(message) is Delta
            taken = self.snapshot.take_delta(message)
            assert taken is not None
            puts, drops = taken
            # A delta says only what changed.
            assert set(map(item_key, puts)) == set(map(item_key, message.puts))
            assert set(drops) <= set(message.drops)
        assert taken is not None

    def items(self, kind: type) -> list[Item]:
        return [item for item in self.snapshot.items.values() if type(item) is kind]

    def item(self, key: str) -> Item | None:
        return self.snapshot.items.get(key)


class Node:
    """An agent with its proxy."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        self.mesh = mesh
        self.name = name
        self.id = node_id(DOMAIN, NodeName(name))
        self.proxy = FakeProxy(1)
        self.said: list[Effect] = []
        self.issue = True
        self.agent: Agent
        self.born(Held())

    def born(self, held: Held) -> None:
        name, forwards = NodeName(self.name), self.mesh.forwards
        self.agent = Agent(name, DOMAIN, crypto=CRYPTO, seed="1", forwards=forwards)
        now = self.mesh.now
        self.give(Restore(held), ClockSet(UNIX * SECOND + now))
        self.give(Trust(signing.bundle(1, "k1"), UNIX * 2))
        self.give(words.SvidHeld(svid(self.id, UNIX + now // SECOND + TTL_S)))

    def meet_proxy(self) -> None:
        held = self.proxy.snapshot
        self.give(words.ProxySaid(Ready(1, self.proxy.incarnation, held.version, 1, 1)))
        self.give(words.ProxySaid(held.full()))
        for link in sorted(self.mesh.links):
            if self.name in link:
                self.link_state(link[0] if link[1] == self.name else link[1])

    def link_state(self, node: str, state: str = "up", alive: bool = True) -> Effects:
        return self.give(words.ProxySaid(LinkState(node, state, 2000, 0, True, alive)))

    def entries(self, *entries: Entry) -> Effects:
        update = Update(self.mesh.now + UNIX * SECOND, full=True, entries=entries)
        return self.give(words.AuthoritySaid(update))

    def records(self, *records: bytes) -> Effects:
        return self.give(words.AuthoritySaid(Update(0, records=records)))

    def give(self, *events: Event) -> Effects:
        found: Effects = ()
        for event in events:
            effects = self.agent.handle(self.mesh.now, event)
            assert type(event) is not Tick or self.agent.deadline > self.mesh.now
            found += effects
            for effect in effects:
                if type(effect) is Send:
                    self.mesh.flying.append((self.name, effect.dst, effect.message))
                elif type(effect) is words.Order:
                    self.proxy.take(effect.message)
                elif type(effect) is RenewWanted and self.issue:
                    end = UNIX + self.mesh.now // SECOND + TTL_S
                    self.mesh.answers.append((self, Done(effect.token, svid(effect.id, end))))
        self.said += found
        return found


class Mesh:
    """Agents, the links between them, and virtual time."""

    def __init__(
        self, names: Iterable[str], links: Iterable[tuple[str, str]], *, forwards: bool = False
    ) -> None:
        self.now = Instant(0)
        self.forwards = forwards
        self.links: set[tuple[str, str]] = set()
        self.flying: deque[tuple[str, str, object]] = deque()
        self.answers: list[tuple[Node, Done]] = []
        self.nodes = {name: Node(self, name) for name in names}
        for node in self.nodes.values():
            node.meet_proxy()
        for a, b in links:
            self.connect(a, b)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def connect(self, a: str, b: str) -> None:
        self.links.add((min(a, b), max(a, b)))
        for here, there in ((a, b), (b, a)):
            self.nodes[here].give(words.NeighbourUp(neighbour(there)))
            self.nodes[here].link_state(there)

    def cut(self, a: str, b: str, *, proxies: bool = True) -> None:
        """The agents' connection breaks, and the hellos too unless `proxies` go on."""
        self.links.discard((min(a, b), max(a, b)))
        self.flying = deque(f for f in self.flying if {f[0], f[1]} != {a, b})
        for here, there in ((a, b), (b, a)):
            self.nodes[here].give(words.NeighbourDown(there))
            if proxies:
                self.nodes[here].link_state(there, "down")

    def run(self, seconds: float) -> None:
        """Let virtual time pass; everything in the air arrives at once."""
        until = self.now + int(seconds * SECOND)
        while True:
            while self.flying or self.answers:
                if self.flying:
                    src, dst, message = self.flying.popleft()
                    if (min(src, dst), max(src, dst)) in self.links:
                        self.nodes[dst].give(Received(src, message))
                else:
                    node, answer = self.answers.pop(0)
                    node.give(answer)
            at = min(node.agent.deadline for node in self.nodes.values())
            if at > until:
                break
            self.now = Instant(max(self.now, at))
            for node in self.nodes.values():
                early = node.agent.deadline
                effects = node.give(Tick())
                assert early <= self.now or not effects
        self.now = Instant(until)


def neighbour(node: str, incarnation: int = 1) -> NeighbourItem:
    keys = (b"1" * 32, b"2" * 32, b"3" * 32, b"4" * 32)
    return NeighbourItem(node, 7, ("127.0.0.1:1",), incarnation, 100_000, *keys)
