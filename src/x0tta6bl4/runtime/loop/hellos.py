"""Hellos on the wire: one UDP socket for all neighbours, and the channel where UDP fails.

Each side says with every hello in the channel whether it is deaf, which means that nothing of the
other came by UDP lately.  A hello goes over the channel too while either of the two is deaf, and
by UDP always, so that a way that opens again is noticed.  So a wall in one direction only, or a
NAT that forgot us, costs nothing but duplicates, which the hellos' replay window drops.  Who has
asked for few hellos waits for them longer.

A neighbour is answered where its newest genuine hello came from (so a NAT's mapping is used),
else at its endpoints in turn.  One that replays an older hello from elsewhere changes nothing.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.runtime.loop.connect import parse_address
from x0tta6bl4.runtime.loop.hops import Hops
from x0tta6bl4.runtime.loop.neighbours import Neighbour
from x0tta6bl4.runtime.loop.poll import READ, Loop
from x0tta6bl4.wire import hello as words
from x0tta6bl4.wire.errors import BadConfig, BadMessage
from x0tta6bl4.wire.hello import Hello
from x0tta6bl4.wire.hop import DEAF
from x0tta6bl4.wire.hop import HELLO as CHANNEL_HELLO
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import NeighbourItem

BATCH_MAX: Final = 256
"""Datagrams taken before a tick; the rest waits in the socket's buffer for the next wake-up."""
DEAF_US_MIN: Final = SECOND // 2
DEAF_HELLOS: Final = 8
"""Hello intervals without one by UDP after which a neighbour counts as not heard."""
DEAF_EASY: Final = 3
"""The same where one each `EASY_US` was asked for."""
_DATAGRAM_MAX: Final = 512

SocketAddress = tuple[str, int]


@final
class HelloStatistics(msgspec.Struct, frozen=True, gc=False):
    """Sums since the start."""

    sent_udp: int
    sent_channel: int
    received_udp: int
    received_channel: int
    foreign: int
    """Datagrams under no key of ours."""
    forged: int
    """Known key id, wrong tag or form."""
    unsent: int
    """Refused by the kernel."""


class _Way:
    """How one neighbour is reached by UDP."""

    __slots__ = ("address", "easy", "heard", "newest", "peer_deaf_until", "silent_since", "turn")

    def __init__(self, now: Instant) -> None:
        self.address: SocketAddress | None = None
        """Where its newest genuine hello came from."""
        self.easy = False
        """Whether our newest hello asked for few."""
        self.heard = Instant(-SECOND * 3600)
        self.silent_since = now
        self.newest = (0, 0)
        self.peer_deaf_until = Instant(0)
        self.turn = 0


@final
class Hellos:
    """Sends and receives the hellos of all links of a proxy.

    Args:
        loop: the proxy's loop.
        sock: bound UDP socket, non-blocking, owned from here on; an IPv6 one takes IPv4 too.
        hops: its table of neighbours and its channels.
        on_hello: takes the neighbour and its hello, tag verified; duplicates are not removed.
    """

    __slots__ = (
        "_forged",
        "_foreign",
        "_hops",
        "_loop",
        "_on_hello",
        "_received_channel",
        "_received_udp",
        "_sent_channel",
        "_sent_udp",
        "_sock",
        "_unsent",
        "_ways",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        hops: Hops,
        on_hello: Callable[[NodeName, Hello], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._hops = hops
        self._on_hello = on_hello
        self._ways: dict[NodeName, _Way] = {}
        self._sent_udp = self._sent_channel = self._received_udp = self._received_channel = 0
        self._foreign = self._forged = self._unsent = 0
        hops.on_hello = self._from_channel
        sock.setblocking(False)
        loop.add(sock.fileno(), READ, self._ready)

    def send(self, node: NodeName, hello: Hello) -> None:
        """Send a hello; it may be lost.

        Args:
            node: a neighbour; others are ignored.
            hello: with `link` of its newest keys, or of those before.
        """
        neighbour = self._hops.neighbours.get(node)
        if neighbour is None:
            return
        data = words.pack(hello, _mac(_item(neighbour, hello.link).tx_hello))
        now, way = self._loop.now, self._way(node)
        way.easy = hello.flags & words.EASY != 0
        deaf = now - way.heard > _deaf_us(neighbour.item, way)
        if neighbour.item.udp:
            address = self._address(neighbour, way, deaf)
            if address is not None:
                try:
                    self._sock.sendto(data, address)
                    self._sent_udp += 1
                except OSError:
                    self._unsent += 1
        if deaf or now < way.peer_deaf_until:
            flag = bytes((DEAF if deaf else 0,))
            if self._hops.channels.send(node, CHANNEL_HELLO, flag + data):
                self._sent_channel += 1

    def deaf(self, node: NodeName) -> bool:
        """Whether nothing of a neighbour comes by UDP."""
        neighbour = self._hops.neighbours.get(node)
        way = self._ways.get(node)
        if neighbour is None or way is None:
            return True
        return self._loop.now - way.heard > _deaf_us(neighbour.item, way)

    def statistics(self) -> HelloStatistics:
        """Snapshot for metrics."""
        return HelloStatistics(
            self._sent_udp,
            self._sent_channel,
            self._received_udp,
            self._received_channel,
            self._foreign,
            self._forged,
            self._unsent,
        )

    def close(self) -> None:
        """Close the socket."""
        self._loop.drop(self._sock.fileno())
        self._sock.close()

    def _ready(self, mask: int) -> None:
        # Hellos come one by one: to ask for a second is in vain, and epoll tells of it anyway.  But
        # all that is there is heard before a tick, which judges who was silent.
        for _ in range(BATCH_MAX if self._loop.rings() else 1):
            try:
                data, address = self._sock.recvfrom(_DATAGRAM_MAX)
            except BlockingIOError:
                return
            except OSError:
                continue  # An ICMP error of something sent earlier.
            found = self._open(data)
            if found is not None:
                neighbour, hello = found
                self._received_udp += 1
                self._heard(neighbour, hello, address)
                self._on_hello(neighbour.node, hello)

    def _from_channel(self, node: NodeName, body: bytes) -> None:
        """A HELLO message of a neighbour's channel."""
        found = self._open(body[1:])
        if found is None or found[0].node != node:
            return
        neighbour, hello = found
        if body[0] & DEAF:
            way = self._way(node)
            way.peer_deaf_until = Instant(self._loop.now + _deaf_us(neighbour.item, way))
        self._received_channel += 1
        self._on_hello(node, hello)

    def _open(self, data: bytes) -> tuple[Neighbour, Hello] | None:
        """Whose hello this is, if it is one."""
        try:
            link = words.link_of(data)
        except BadMessage:
            self._foreign += 1
            return None
        found = self._hops.neighbours.find(link)
        if found is None:
            self._foreign += 1
            return None
        neighbour = found[0]
        try:
            hello = words.unpack(data, _mac(_item(neighbour, link).rx_hello))
        except BadMessage:
            self._forged += 1
            return None
        return neighbour, hello

    def _heard(self, neighbour: Neighbour, hello: Hello, address: SocketAddress) -> None:
        way = self._way(neighbour.node)
        way.heard = self._loop.now
        incarnation, sequence = hello.incarnation, hello.sequence
        if incarnation != neighbour.item.incarnation:
            return  # Of a start before or after the one we know: no reason to answer elsewhere.
        if incarnation != way.newest[0] or sequence > way.newest[1]:
            way.newest = incarnation, sequence
            way.address = address

    def _address(self, neighbour: Neighbour, way: _Way, deaf: bool) -> SocketAddress | None:
        """Where to send: to where it was heard, else to each endpoint for a second in turn."""
        if way.address is not None and not deaf:
            return way.address
        endpoints = neighbour.item.endpoints
        if not endpoints:
            return way.address
        if self._loop.now - way.silent_since > SECOND:
            way.silent_since = self._loop.now
            way.turn += 1
        return self._literal(endpoints[way.turn % len(endpoints)])

    def _literal(self, endpoint: str) -> SocketAddress | None:
        """An endpoint as this socket's family writes it; None if it can't."""
        try:
            family, address = parse_address(endpoint)
        except BadConfig:
            return None
        if isinstance(address, str):
            return None
        if family == self._sock.family:
            return address
        if family == socket.AF_INET:
            return f"::ffff:{address[0]}", address[1]
        return None

    def _way(self, node: NodeName) -> _Way:
        way = self._ways.get(node)
        if way is None:
            for gone in [n for n in self._ways if self._hops.neighbours.get(n) is None]:
                del self._ways[gone]  # So there are never more than neighbours.
            way = self._ways[node] = _Way(self._loop.now)
        return way


def _deaf_us(item: NeighbourItem, way: _Way) -> int:
    few_us = DEAF_EASY * words.EASY_US if way.easy else 0
    return max(DEAF_US_MIN, DEAF_HELLOS * item.hello_us, few_us)


def _item(neighbour: Neighbour, link: int) -> NeighbourItem:
    """What was said of a neighbour together with this key id."""
    return neighbour.older_item if neighbour.older_item.link == link else neighbour.item


def _mac(key: bytes) -> words.Mac:
    """Keyed BLAKE2b-128 (RFC 7693)."""
    return lambda data: hashlib.blake2b(data, digest_size=words.TAG_BYTES, key=key).digest()
