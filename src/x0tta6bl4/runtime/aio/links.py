"""The agent's side of links: one mutual-TLS connection to each neighbour's agent.

Either end may dial.  Of two connections dialled at once by both ends the one that the node with
the higher name dialled survives (in the manner of RFC 4271 section 6.8); of two dialled by the
same end the newer does, which is how a link changes to a new SVID without going down.

    idle --dial or accept--> greeting --Intro--> up --EOF, silence, bad message, cut--> idle
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol, cast, final

import msgspec

from x0tta6bl4.runtime.aio.beat import beat
from x0tta6bl4.runtime.ports import TlsPeer
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.ids import NodeName, node_of
from x0tta6bl4.wire.messages import LINK_VERSION, Alive, Intro, KernelOffer, LinkMessage, Redial

HANDSHAKE_S: Final = 5.0
ALIVE_EVERY_S: Final = 1.0
SILENCE_S: Final = 5.0
DIAL_FIRST_S: Final = 0.05
DIAL_LAST_S: Final = 2.0
ACCEPTING_MAX: Final = 64
OUTBOX_BYTES_MAX: Final = 8 * 1024 * 1024
OLD_CONNECTION_S: Final = 1.0
NEWS_AT_ONCE, NEWS_EVERY_S = 8, 0.1
"""Greetings that follow the first one: so many are heard at once, then the newest each so often."""


@final
class LinkKeys(msgspec.Struct, frozen=True, gc=False):
    """What both ends export for their proxies; `tx` here is `rx` there."""

    link: int
    tx_hello: bytes
    rx_hello: bytes
    tx_setup: bytes
    rx_setup: bytes


@final
class Offers(msgspec.Struct, frozen=True, gc=False):
    """What both ends of a connection have said of their kernels, and keys for these."""

    index: int
    """Of the interface here."""
    mine: KernelOffer
    """As was said last."""
    theirs: KernelOffer
    """The neighbour's, as it is now."""
    secret: bytes
    """32 bytes of this connection: the first half is for hellos of the lower name."""


class LinkOwner(Protocol):
    """Who hears of links: the agent."""

    def link_up(self, node: NodeName, intro: Intro, keys: LinkKeys) -> None:
        """A link came up, or its keys or the neighbour's greeting changed."""

    def link_down(self, node: NodeName, reason: str) -> None:
        """The last connection to this neighbour is gone."""

    def link_message(self, node: NodeName, message: LinkMessage) -> None:
        """A neighbour said something (never an Intro, an Alive or a Redial)."""

    def link_refused(self, who: str, reason: str) -> None:
        """A connection was refused or failed, for the events log."""


class KernelSide(Protocol):
    """Who forwards in the kernel: `app.kernel_plane`."""

    def place(self, node: NodeName, here: str, there: str) -> tuple[int, KernelOffer] | None:
        """What to offer on a connection between two addresses, and its interface."""

    def offered(self, node: NodeName, offers: Offers) -> None:
        """The connection counts, both ends have made their offers, or one says more."""

    def withdrawn(self, node: NodeName) -> None:
        """One of the ends makes no offer."""


class _Connection:
    """One TLS connection to a neighbour."""

    __slots__ = (
        "_outbox", "dialled", "heard_at", "intro", "news", "news_at", "node", "not_after", "place",
        "tls", "waits", "writer",
    )  # fmt: skip

    def __init__(self, writer: asyncio.StreamWriter, dialled: bool) -> None:
        self.writer = writer
        self.dialled = dialled
        self.tls = cast(TlsPeer, writer.get_extra_info("ssl_object"))
        node = node_of(self.tls.peer_id)
        if node is None:
            raise BadMessage("X0-LNK-001", f"{self.tls.peer_id} is no node")
        self.node = node
        self.intro: Intro | None = None
        self.place: tuple[int, KernelOffer] | None = None
        self.heard_at = 0.0
        self.news, self.news_at = float(NEWS_AT_ONCE), 0.0
        self.waits = False
        """A greeting is heard a little later, or a newer one in its place."""
        self._outbox = bytearray()
        self.not_after = min(self.tls.peer_not_after_unix_s, self.tls.own_not_after_unix_s)

    def send(self, message: LinkMessage) -> bool:
        """Queue a message; False when the neighbour does not read and the bound is met.

        What is said at one turn of the loop leaves in one piece: where many records come, there is
        much of it, and a TLS record, a system call and a neighbour's wake-up for each cost more
        than all that is decided.
        """
        transport = self.writer.transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(self._outbox) > OUTBOX_BYTES_MAX:
            transport.abort()
            return False
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox += codec.encode(message)
        return True

    def _flush(self) -> None:
        data, self._outbox = self._outbox, bytearray()
        if not self.writer.transport.is_closing():
            self.writer.write(data)


class LinkConnections:
    """All link connections of one agent.

    Args:
        me: this node.
        owner: hears what happens.
        client: TLS for dialling; picks the current SVID at each connection.
        server: TLS for accepting.
        unix_s: wall clock, seconds; used to end connections with their SVIDs.
        draw: random stream of this node, for back-off.
        kernel: makes offers of the kernel; None: data goes through user space.
    """

    def __init__(
        self,
        me: NodeName,
        owner: LinkOwner,
        client: ssl.SSLContext,
        server: ssl.SSLContext,
        unix_s: Callable[[], float],
        draw: random.Random,
        kernel: KernelSide | None = None,
    ) -> None:
        self._kernel = kernel
        self._me = me
        self._owner = owner
        self._client = client
        self._server = server
        self._unix_s = unix_s
        self._draw = draw
        self._intro: Intro | None = None
        self._up: dict[NodeName, _Connection] = {}
        self._addresses: dict[NodeName, str] = {}
        self._known: set[NodeName] = set()
        self._wake: dict[NodeName, asyncio.Event] = {}
        self._accepting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_not_after = 0.0
        self.counts = {"dialled": 0, "accepted": 0, "refused": 0, "lost": 0}
        self.groups: Counter[str] = Counter()
        """Key exchange -> connections; bounded by the number of groups."""

    def tls(self, node: str) -> tuple[str, str]:
        """Key exchange and the neighbour's signature of the connection to it; empty: none is up."""
        connection = self._up.get(NodeName(node))
        return (connection.tls.group, connection.tls.signature) if connection else ("", "")

    # -------------------------------------------------------------- what the agent asks for
    def greet(self, intro: Intro, own_not_after_unix_s: float) -> None:
        """Set what this node says of itself; neighbours hear it at once.

        Args:
            intro: with the proxy's incarnation and endpoints.
            own_not_after_unix_s: end of this node's SVID; its links end 1 to 2 s before.
        """
        self._own_not_after = own_not_after_unix_s
        if intro == self._intro:
            return
        self._intro = intro
        for connection in list(self._up.values()):
            connection.send(self._stamped(intro, connection))
            self._announce(connection)

    def _stamped(self, intro: Intro, connection: _Connection) -> Intro:
        """The greeting with the time of now, by which neighbours compare clocks, and an offer."""
        offer = connection.place[1] if connection.place else None
        return msgspec.structs.replace(intro, unix_us=int(self._unix_s() * 1e6), kernel=offer)

    def offer(self, node: NodeName, **changed: int) -> None:
        """Tell a neighbour that these fields of the kernel's offer are others now."""
        connection = self._up.get(node)
        if connection is not None and connection.place is not None and self._intro is not None:
            index, offer = connection.place
            connection.place = index, msgspec.structs.replace(offer, **changed)
            connection.send(self._stamped(self._intro, connection))

    def redial(self) -> None:
        """The SVID has changed: replace every connection, keeping the old until the new is up."""
        for node, connection in list(self._up.items()):
            if connection.dialled:
                self._wake_dialler(node)
            else:
                connection.send(Redial())

    def send(self, node: NodeName, message: LinkMessage) -> None:
        """Send to a neighbour; lost if its link is down."""
        connection = self._up.get(node)
        if connection is not None:
            connection.send(message)

    def cut(self, node: NodeName, reason: str) -> None:
        """Close a neighbour's link at once, e.g. because its node was revoked."""
        connection = self._up.get(node)
        if connection is not None:
            connection.writer.transport.abort()
            self._lost(connection, reason)

    def peers(self) -> list[NodeName]:
        """Neighbours whose link connection is up."""
        return sorted(self._up)

    # -------------------------------------------------------------- life
    @contextlib.asynccontextmanager
    async def running(
        self, listen: list[tuple[str, int]], neighbours: dict[NodeName, str]
    ) -> AsyncIterator[list[int]]:
        """Accept and dial until the block ends.

        Args:
            listen: addresses for neighbours that dial us.
            neighbours: node -> `host:port` of its agent; empty: it dials us.
        Yields:
            Ports in use, one per listen address.
        """
        self._known = set(neighbours)
        self._addresses = {n: a for n, a in neighbours.items() if a}
        async with contextlib.AsyncExitStack() as stack:
            ports = []
            for host, port in listen:
                server = await asyncio.start_server(
                    self._accept,
                    host,
                    port,
                    ssl=self._server,
                    backlog=64,
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1.0,
                )
                stack.push_async_callback(_close, server)
                ports.append(server.sockets[0].getsockname()[1])
            for node in self._addresses:
                self._wake[node] = asyncio.Event()
                self._spawn(self._dial_forever(node))
            self._spawn(self._keep_alive())
            try:
                yield ports
            finally:
                for task in list(self._tasks):
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                for connection in list(self._up.values()):
                    connection.writer.transport.abort()
                self._up.clear()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_alive(self) -> None:
        sequence = 0
        while True:
            await beat(ALIVE_EVERY_S)
            sequence += 1
            now = asyncio.get_running_loop().time()
            wall = self._unix_s()
            for connection in list(self._up.values()):
                if now - connection.heard_at > SILENCE_S:
                    connection.writer.transport.abort()
                    self._lost(connection, "silent")
                elif wall > min(connection.not_after, self._own_not_after) - 1.0 - ALIVE_EVERY_S:
                    connection.writer.transport.abort()
                    self._lost(connection, "expired")
                else:
                    connection.send(Alive(sequence))

    # -------------------------------------------------------------- dialling and accepting
    def _wake_dialler(self, node: NodeName) -> None:
        event = self._wake.get(node)
        if event is not None:
            event.set()

    async def _dial_forever(self, node: NodeName) -> None:
        wait = DIAL_FIRST_S
        wake = self._wake[node]
        now = asyncio.get_running_loop().time
        while True:
            wake.clear()
            began = now()
            reason = await self._dial(node)
            current = self._up.get(node)
            if reason is None or (current is not None and not current.dialled):
                await wake.wait()  # Up, by us or by the neighbour, until lost or to be replaced.
                if now() - began > SILENCE_S:
                    wait = DIAL_FIRST_S
                    continue
                reason = None  # It did not last: no faster than a dial that fails.
            if reason is not None:
                self._owner.link_refused(node, reason)
            with contextlib.suppress(TimeoutError):
                wake.clear()
                await asyncio.wait_for(wake.wait(), wait * self._draw.uniform(0.75, 1.25))
            wait = min(wait * 2, DIAL_LAST_S)

    async def _dial(self, node: NodeName) -> str | None:
        """Dial once; None when the connection is up and being read."""
        host, _, port = self._addresses[node].rpartition(":")
        self.counts["dialled"] += 1
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(
                    host.strip("[]"),
                    int(port),
                    ssl=self._client,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=1.0,
                ),
                HANDSHAKE_S,
            )
        except (OSError, TimeoutError, ValueError) as error:
            return _reason(error)
        started: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._spawn(self._converse(reader, writer, node, started))
        return await started

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._accepting >= ACCEPTING_MAX:
            writer.transport.abort()
            return
        self.counts["accepted"] += 1
        self._accepting += 1
        started: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        started.add_done_callback(self._accepted)
        with contextlib.suppress(asyncio.CancelledError):
            await self._converse(reader, writer, None, started)

    def _accepted(self, started: asyncio.Future[str | None]) -> None:
        self._accepting -= 1
        if not started.cancelled() and started.result() is not None:
            self.counts["refused"] += 1
            self._owner.link_refused("neighbour", started.result() or "")

    async def _converse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        wanted: NodeName | None,
        started: asyncio.Future[str | None],
    ) -> None:
        """Greet, then read until the connection ends; `started` says whether it came up."""
        connection: _Connection | None = None
        reason = "closed"
        try:
            connection = _Connection(writer, wanted is not None)
            self.groups[connection.tls.group] += 1
            messages = codec.link_reader()
            await self._greeting(connection, reader, messages, wanted)
            if not self._adopt(connection):
                reason = "collision"
                return
            started.set_result(None)
            reason = await self._read(connection, reader, messages)
        except (OSError, TimeoutError, BadMessage) as error:
            reason = _reason(error)
        except asyncio.CancelledError:
            reason = "stopped"
            raise
        finally:
            if not started.done():
                started.set_result(reason)
            writer.transport.abort()
            if connection is not None:
                self._lost(connection, reason)

    async def _greeting(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        messages: codec.Reader[LinkMessage],
        wanted: NodeName | None,
    ) -> None:
        if self._intro is None:
            raise BadMessage("X0-LNK-002", "this node is not ready for links yet")
        if wanted is not None and connection.node != wanted:
            raise BadMessage("X0-LNK-003", f"{wanted} dialled, {connection.node} answered")
        if connection.node not in self._known:
            raise BadMessage("X0-LNK-004", f"{connection.node} is not configured as a neighbour")
        here, there = (_end_of(connection.writer, name) for name in ("sockname", "peername"))
        if self._kernel is not None:
            connection.place = self._kernel.place(connection.node, here, there)
        connection.send(self._stamped(self._intro, connection))
        async with asyncio.timeout(HANDSHAKE_S):
            while connection.intro is None:
                data = await reader.read(65536)
                if not data:
                    raise BadMessage("X0-LNK-005", "closed before its greeting")
                with contextlib.closing(messages.feed(data)) as heard:
                    for message in heard:
                        self._heard(connection, message)
                        break  # What comes with it is for a link that is up: see `_read`.

    async def _read(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        messages: codec.Reader[LinkMessage],
    ) -> str:
        data = b""  # First what came along with the greeting.
        while True:
            for message in messages.feed(data):
                self._heard(connection, message)
            data = await reader.read(262144)
            if not data:
                return "closed by the neighbour"
            connection.heard_at = asyncio.get_running_loop().time()

    def _heard(self, connection: _Connection, message: LinkMessage) -> None:
        kind = type(message)
        if kind is Intro:
            intro = cast(Intro, message)
            if intro.version != LINK_VERSION:
                raise BadMessage(
                    "X0-LNK-006",
                    f"link version {intro.version}",
                    f"this node speaks {LINK_VERSION}",
                )
            if intro.node != connection.node:
                raise BadMessage("X0-LNK-007", f"{connection.node} greets as {intro.node}")
            skew = abs(intro.unix_us / 1e6 - self._unix_s())
            if connection.intro is None and skew > 30:
                raise BadMessage(
                    "X0-LNK-008",
                    f"clock of {intro.node} differs by {skew:.0f} s",
                    "set both clocks by NTP",
                )
            connection.intro = intro
            if self._up.get(connection.node) is connection:
                self._announce_news(connection)
        elif connection.intro is None:
            raise BadMessage("X0-LNK-009", "a message before the greeting")
        elif kind is Redial:
            self._wake_dialler(connection.node)
        elif kind is not Alive:
            self._owner.link_message(connection.node, message)

    # -------------------------------------------------------------- which connection counts
    def _adopt(self, new: _Connection) -> bool:
        """Let a greeted connection be the neighbour's; False if an older one has precedence."""
        old = self._up.get(new.node)
        if old is not None and old.dialled != new.dialled and not old.writer.is_closing():
            new_wins = (self._me > new.node) == new.dialled
            if not new_wins and old.heard_at > asyncio.get_running_loop().time() - SILENCE_S:
                return False
        new.heard_at = asyncio.get_running_loop().time()
        self._up[new.node] = new
        if old is not None:
            asyncio.get_running_loop().call_later(OLD_CONNECTION_S, old.writer.transport.abort)
        self._announce(new)
        return True

    def _announce_news(self, connection: _Connection) -> None:
        """A neighbour greets again; what it costs to hear that is bounded."""
        loop = asyncio.get_running_loop()
        since, connection.news_at = loop.time() - connection.news_at, loop.time()
        connection.news = min(NEWS_AT_ONCE, connection.news + since / NEWS_EVERY_S)
        if connection.news >= 1 and not connection.waits:
            connection.news -= 1
            self._announce(connection)
        elif not connection.waits:
            connection.waits = True
            loop.call_later(NEWS_EVERY_S, self._announce_newest, connection)

    def _announce_newest(self, connection: _Connection) -> None:
        connection.waits = False
        if self._up.get(connection.node) is connection:
            self._announce_news(connection)

    def _announce(self, connection: _Connection) -> None:
        if connection.intro is not None and self._intro is not None:
            keys = derive_keys(connection.tls, self._intro, connection.intro)
            self._owner.link_up(connection.node, connection.intro, keys)
            place, theirs = connection.place, connection.intro.kernel
            if self._kernel is None:
                return
            if not (place and theirs):
                self._kernel.withdrawn(connection.node)
                return
            secret = connection.tls.exporter(b"EXPERIMENTAL x0 kernel hello", b"", 32)
            self._kernel.offered(connection.node, Offers(*place, theirs, secret))

    def _lost(self, connection: _Connection, reason: str) -> None:
        if self._up.get(connection.node) is connection:
            del self._up[connection.node]
            self.counts["lost"] += 1
            self._owner.link_down(connection.node, reason)
            self._wake_dialler(connection.node)


def derive_keys(tls: TlsPeer, mine: Intro, theirs: Intro) -> LinkKeys:
    """Keys for the two proxies, from the link's TLS connection (RFC 5705 exporter).

    The context names the direction and both proxies' incarnations, so a proxy that starts anew
    never meets a counter of its former life.
    """
    low, high = sorted((mine, theirs), key=lambda intro: intro.node)
    both = b"%d/%d" % (low.proxy_incarnation, high.proxy_incarnation)

    def key(label: bytes, sender: str) -> bytes:
        return tls.exporter(label, sender.encode() + b"/" + both, 32)

    return LinkKeys(
        link=int.from_bytes(tls.exporter(b"EXPERIMENTAL x0 link id", both, 4), "little"),
        tx_hello=key(b"EXPERIMENTAL x0 hello", mine.node),
        rx_hello=key(b"EXPERIMENTAL x0 hello", theirs.node),
        tx_setup=key(b"EXPERIMENTAL x0 setup", mine.node),
        rx_setup=key(b"EXPERIMENTAL x0 setup", theirs.node),
    )


def _end_of(writer: asyncio.StreamWriter, which: str) -> str:
    """IP address of one end of a connection, without its zone."""
    found = writer.get_extra_info(which)
    return str(found[0]).partition("%")[0] if found else ""


def _reason(error: BaseException) -> str:
    if isinstance(error, BadMessage):
        return str(error)
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__


async def _close(server: asyncio.Server) -> None:
    server.close()
