"""A member that lies: a genuine enrolled node whose keys are in the hands of a test.

It speaks x0-link/1 with its real SVID, exports the link's keys, keeps its links up with real
hellos, and says whatever a test wants said.  It runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from x0tta6bl4.app.mesh import Mesh, wait_for
from x0tta6bl4.app.trust import Trusts
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.core.links.liveness import Links
from x0tta6bl4.core.links.words import AgentAlive, NeighbourSet
from x0tta6bl4.core.machine import NEVER, Effects, Event, Instant, Received, Send, Tick
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.hop.setup import LinkSeal
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.aio.links import LinkConnections, LinkKeys
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire import hello as hellos
from x0tta6bl4.wire import records
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hello import Hello
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain
from x0tta6bl4.wire.messages import LINK_VERSION, Flood, Intro, LinkMessage, Want

T = TypeVar("T")
HEARD_MAX = 4096
CALL_S = 15.0


class Background:
    """An event loop in a thread, for blocking tests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], seconds: float = CALL_S) -> T:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def do(self, call: Callable[[], T]) -> T:
        """Run a function there and wait for it."""

        async def work() -> T:
            return call()

        return self.call(work())

    def stop(self) -> None:
        """End it with all of its tasks."""

        async def cancel() -> None:
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.call(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class Member:
    """The attacker.

    Args:
        mesh: of which it is a member; its real processes have ended.
        node: its name.
        background: where its links live.

    Attributes:
        svid: of the node itself.
        workloads: SVIDs that the authority issued to it, by ID.
        entries: what the authority told it of entries.
        heard: records of others, encoded, by (writer, kind, name).
        refused: what its own connections said of refusals.
    """

    def __init__(self, mesh: Mesh, node: str, background: Background) -> None:
        self.node = node
        self.mesh = mesh
        self.settings = mesh.settings(node)
        self.domain = TrustDomain(mesh.plan.trust_domain)
        wallet = Wallet(mesh.state(node))
        bundle = wallet.known_bundle
        assert wallet.svid is not None
        assert bundle is not None
        self.svid: Svid = wallet.svid
        self.trusts = Trusts(self.domain, False)
        self.trusts.believe(bundle.anchors)
        self.trusts.present(self.svid)
        self.background = background
        self.workloads: dict[str, Svid] = {}
        self.entries: tuple[words.Entry, ...] = ()
        self.heard: dict[tuple[str, str, str], bytes] = {}
        self.refused: list[str] = []
        self.keys: dict[str, LinkKeys] = {}
        self.intros: dict[str, Intro] = {}
        self.ups: Counter[str] = Counter()
        self.incarnation = secrets.randbits(62)
        self.generation = 0
        """Of the newest record that it made."""
        self._generations: dict[str, int] = {}
        self._heard_at: dict[str, tuple[str, int]] = {}
        self._seals: dict[str, LinkSeal] = {}
        self._hellos = Links(self.incarnation, random.Random(7))
        self._wake: asyncio.TimerHandle | None = None
        self._links: LinkConnections
        self._stop: asyncio.Event
        self.data = split_address(self.settings.data.listen)
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self.data)
        self._udp.setblocking(False)

    # -------------------------------------------------------------- life
    def start(self) -> None:
        """Have links to all configured neighbours, and their hellos."""
        up = threading.Event()
        asyncio.run_coroutine_threadsafe(self._run(up), self.background.loop)
        assert up.wait(CALL_S)
        wanted = {link.node for link in self.settings.link}
        wait_for(lambda: set(self.keys) >= wanted, "the hostile member's links")

    def stop(self) -> None:
        """Leave."""
        self.background.do(lambda: self._stop.set())
        self.background.do(lambda: self.background.loop.remove_reader(self._udp))
        self._udp.close()

    async def _run(self, up: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._links = LinkConnections(
            NodeName(self.node),
            self,
            self.trusts.link_client(),
            self.trusts.link_server(self.refused.append),
            time.time,  # noqa: TID251 - of an attacker
            random.Random(7),
        )
        self._links.greet(self.intro(), self.svid.not_after_unix_s)
        self.background.loop.add_reader(self._udp, self._on_datagram)
        self.give(AgentAlive(True))
        neighbours = {link.node: link.address for link in self.settings.link}
        async with self._links.running(
            [split_address(self.settings.control.listen)],
            {NodeName(n): a for n, a in neighbours.items()},
        ):
            up.set()
            await self._stop.wait()

    def intro(self, **changes: Any) -> Intro:
        """What it says of itself; `changes` are lies."""
        honest = Intro(
            version=LINK_VERSION,
            node=self.node,
            agent_incarnation=unix_us(),
            proxy_incarnation=self.incarnation,
            endpoints=(f"{self.data[0]}:{self.data[1]}",),
            hello_us=100_000,
            unix_us=unix_us(),
        )
        return msgspec.structs.replace(honest, **changes)

    # -------------------------------------------------------------- links (LinkOwner)
    def link_up(self, node: NodeName, intro: Intro, keys: LinkKeys) -> None:
        """A link came up."""
        self.intros[node] = intro
        self.ups[node] += 1
        if self.keys.get(node) != keys:
            self.keys[node] = keys
            self._seals[node] = LinkSeal(keys.link, keys.tx_setup, keys.rx_setup, _now())
        self.give(NeighbourSet(node, intro.proxy_incarnation, keys.link, 100_000))

    def link_down(self, node: NodeName, reason: str) -> None:
        """A link is gone."""
        self.keys.pop(node, None)
        self.refused.append(f"{node}: {reason}")

    def link_message(self, node: NodeName, message: LinkMessage) -> None:
        """Keep the records of others: they can be stolen."""
        if type(message) is Flood:
            for data in message.records:
                with contextlib.suppress(BadMessage):
                    record = records.decode_record(data)
                    if len(self.heard) < HEARD_MAX:
                        self.heard[record.writer, record.kind, record.name] = data

    def link_refused(self, who: str, reason: str) -> None:
        """A connection was refused."""
        self.refused.append(f"{who}: {reason}")

    def say(self, node: str, message: LinkMessage) -> None:
        """Say something over a link."""
        self.background.do(lambda: self._links.send(NodeName(node), message))

    def flood(self, node: str, *data: bytes) -> None:
        """Hand encoded records to a neighbour."""
        self.say(node, Flood(data))

    def steal(self, node: str, *key: str) -> bytes:
        """A record that a neighbour holds, encoded, by (writer, kind, name)."""
        writer, kind, name = key
        self.heard.pop((writer, kind, name), None)
        self.say(node, Want(((writer, kind, name),)))
        wait_for(lambda: (writer, kind, name) in self.heard, f"{key} of {node}", 5)
        return self.heard[writer, kind, name]

    # -------------------------------------------------------------- hellos
    def give(self, event: Event) -> None:
        """Something for the machine of the hellos."""
        self._perform(self._hellos.handle(_now(), event))
        if self._wake is not None:
            self._wake.cancel()
        if self._hellos.deadline != NEVER:
            delay = max(0.0, (self._hellos.deadline - _now()) / 1e6)
            self._wake = self.background.loop.call_later(delay, self.give, Tick())

    def _perform(self, effects: Effects) -> None:
        for effect in effects:
            if type(effect) is Send and type(effect.message) is Hello:
                keys, intro = self.keys.get(effect.dst), self.intros.get(effect.dst)
                if keys is not None and intro is not None and intro.endpoints:
                    data = hellos.pack(effect.message, mac(keys.tx_hello))
                    heard_at = self._heard_at.get(effect.dst)
                    with contextlib.suppress(OSError):
                        self._udp.sendto(data, heard_at or split_address(intro.endpoints[0]))

    def _on_datagram(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = self._udp.recvfrom(512)
                for node, keys in self.keys.items():
                    with contextlib.suppress(BadMessage):
                        if hellos.link_of(data) == keys.link:
                            hello = hellos.unpack(data, mac(keys.rx_hello))
                            self._heard_at[node] = address
                            self.give(Received(node, hello))
                            break

    # -------------------------------------------------------------- setup frames
    def seal(self, node: str) -> LinkSeal:
        """Its end of the setup keys of a link."""
        return self._seals[node]

    def data_of(self, node: str) -> tuple[str, int]:
        """Data port of a neighbour, as that one said it."""
        return split_address(self.intros[node].endpoints[0])

    # -------------------------------------------------------------- what it signs
    def record(
        self,
        body: records.NodeBody | bytes,
        *,
        svid: Svid | None = None,
        key: bytes = b"",
        **changes: Any,
    ) -> bytes:
        """A signed record, newer than any before unless `changes` say otherwise.

        Args:
            body: of the record.
            svid: who signs; its own node SVID if left out.
            key: signs in place of the SVID's.
            changes: fields that are to be otherwise.
        """
        signer = svid or self.svid
        name = changes.get("name", "")
        self.generation = max(self._generations.get(name, 0) + 1, unix_us() // 1_000_000)
        self._generations[name] = self.generation
        record = records.Record(
            writer=self.node,
            kind=records.KIND_NODE,
            name="",
            generation=self.generation,
            expires_unix_s=signer.not_after_unix_s,
            body=body if isinstance(body, bytes) else records.encode_body(body),
            signer=signer.chain,
            signature=b"",
        )
        record = msgspec.structs.replace(record, **changes)
        private = x509.load_key(key or signer.key)
        signature = x509.sign(private, records.signed_part(record))
        return msgspec.msgpack.encode(msgspec.structs.replace(record, signature=signature))

    def endpoint(self, id: str, svid: Svid, node: str = "", **changes: Any) -> records.Endpoint:
        """An endpoint at this node (or another), signed with the key of some SVID."""
        bare = records.Endpoint(id, svid.chain, unix_us() // 1_000_000, svid.not_after_unix_s, b"")
        bare = msgspec.structs.replace(bare, **changes)
        part = records.endpoint_signed_part(node or self.node, bare)
        return msgspec.structs.replace(bare, signature=x509.sign(x509.load_key(svid.key), part))

    # -------------------------------------------------------------- the authority
    def ask(self, work: Callable[[AuthorityClient], Coroutine[Any, Any, T]]) -> T:
        """Ask the authority something, as this node."""

        async def call() -> T:
            address = self.settings.authority.address
            tls = self.trusts.authority_client()
            async with AuthorityClient(address, tls, unix_us) as client:
                return await work(client)

        return self.background.call(call())

    def fetch(self) -> None:
        """Fetch its entries and an SVID for each, as a node may."""

        async def entries(client: AuthorityClient) -> tuple[words.Entry, ...]:
            async for update in client.watch():
                return update.entries
            return ()

        self.entries = self.ask(entries)
        for entry in self.entries:
            key = x509.new_key()
            wanted = (words.Wanted(entry=entry.key, csr=x509.new_csr(key)),)
            (issued,) = self.ask(lambda client, wanted=wanted: client.issue(wanted))  # type: ignore[misc]
            assert issued.chain, issued
            self.workloads[entry.id] = Svid(
                SpiffeId(entry.id), issued.chain, x509.key_bytes(key), issued.not_after_unix_s
            )


def mac(key: bytes) -> hellos.Mac:
    """Keyed BLAKE2b-128, as the product tags hellos."""
    return lambda data: hashlib.blake2b(data, digest_size=hellos.TAG_BYTES, key=key).digest()


def _now() -> Instant:
    return Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000)
