"""What a node knows of its links in kernel mode: where neighbours are, and what was agreed on.

Source: rtnetlink(7) for the look-up of a route.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.app.wallet import read_private, write_private
from x0tta6bl4.core.links.quality import Loss
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.layout import LINKS_MAX
from x0tta6bl4.edge.kernel.netlink import Netlink, attribute, attributes
from x0tta6bl4.edge.kernel.plane import Adjacent
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import LinkState

KEPT: Final = "kernel-links"
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_LINK: Final = struct.Struct("=BxHiII")
_TO, _OUT, _GATEWAY, _VIA = 1, 4, 5, 18
_UNICAST: Final = 1


@final
class Interface(msgspec.Struct, frozen=True):
    """An interface over which a neighbour is adjacent."""

    index: int
    name: str
    local: bytes
    """Its link-local address."""
    mac: bytes
    mtu: int


@final
class Kept(msgspec.Struct, frozen=True):
    """What both ends have said of a link."""

    node: str
    number: int
    index: int
    """Of the interface."""
    local: bytes = b""
    mac: bytes = b""
    peer: bytes = b""
    peer_mac: bytes = b""
    peer_number: int = 0
    mtu: int = 1500


class KernelLink:
    """One link.

    Attributes:
        kept: what was agreed on; None: the neighbour has not offered its kernel yet.
        proven: hellos were answered over it: the kernel forwards over it, and its verdict counts.
        alive: no verdict stands against it.
        down_at: monotonic seconds of the last verdict.
        said: what the proxy said last.
        secret: of the connection whose keys are in `slot`.
        used: hellos are sent under them.
        into, out: what is lost of what comes and goes, packets and hellos.
        heard: requests of ours that the neighbour has heard, as it said last.
        lost: packets and hellos that were lost on it, both directions.
    """

    __slots__ = (
        "alive", "down_at", "heard", "into", "kept", "lost", "node", "number", "out", "proven",
        "said", "secret", "slot", "used",
    )  # fmt: skip

    def __init__(self, node: NodeName, number: int) -> None:
        self.node = node
        self.number = number
        self.kept: Kept | None = None
        self.proven = self.alive = self.used = False
        self.down_at = 0.0
        self.heard = self.lost = 0
        self.into, self.out = Loss(), Loss()
        self.said: LinkState | None = None
        self.secret = b""
        self.slot = -1

    @property
    def gray(self) -> bool:
        """Whether it loses too much to be trusted."""
        return self.into.gray or self.out.gray

    @property
    def adjacent(self) -> Adjacent | None:
        """For the routes."""
        kept = self.kept
        return Adjacent(self.node, kept.index, kept.peer, kept.peer_mac) if kept else None


class Links:
    """The links of a node, with numbers that a restart keeps.

    Args:
        state_dir: of the node.
        nodes: configured neighbours, at most LINKS_MAX.
    """

    __slots__ = ("_by_node", "_by_number", "_path", "gone")

    def __init__(self, state_dir: Path, nodes: Iterable[str]) -> None:
        self._path = state_dir / KEPT
        kept = {one.node: one for one in self._read()}
        wanted = list(nodes)[:LINKS_MAX]
        free = [n for n in range(LINKS_MAX) if n not in {one.number for one in kept.values()}]
        self._by_node: dict[str, KernelLink] = {}
        for node in wanted:
            one = kept.get(node)
            if one is None and not free:
                continue  # As many as there are numbers have gone since: none for this one.
            link = KernelLink(NodeName(node), one.number if one else free.pop(0))
            link.kept = one
            self._by_node[node] = link
        self._by_number = {link.number: link for link in self._by_node.values()}
        self.gone = [one.number for node, one in kept.items() if node not in self._by_node]
        """Numbers of links to nodes that are neighbours no longer."""

    def __iter__(self) -> Iterator[KernelLink]:
        return iter(self._by_node.values())

    def get(self, node: str) -> KernelLink | None:
        """The link to a neighbour."""
        return self._by_node.get(node)

    def numbered(self, number: int) -> KernelLink | None:
        """The link of a number."""
        return self._by_number.get(number)

    def save(self) -> None:
        """Write down what was agreed on.

        Raises:
            X0Error: the disk does not take it.
        """
        kept = [link.kept for link in self if link.kept is not None]
        write_private(self._path, msgspec.msgpack.encode(kept))

    def forget(self) -> None:
        """Nothing is at work any more."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> list[Kept]:
        with contextlib.suppress(X0Error, OSError, msgspec.DecodeError):
            if self._path.exists():
                return msgspec.msgpack.decode(read_private(self._path), type=list[Kept])
        return []


def towards(netlink: Netlink, there: str) -> Interface | None:
    """The interface on which an address is adjacent; None: it is this host, or behind a router.

    Raises:
        Unavailable: the kernel does not answer.
    """
    address = ip_address(there)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = _ROUTE.pack(family, len(address.packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    said = netlink.get("a route", rt.GET_ROUTE, head + attribute(_TO, address.packed))
    if said is None or said.kind != rt.NEW_ROUTE or len(said.body) < _ROUTE.size:
        return None
    found = attributes(said.body, _ROUTE.size)
    if said.body[7] != _UNICAST or _GATEWAY in found or _VIA in found or _OUT not in found:
        return None
    index = int.from_bytes(found[_OUT], "little")
    told = netlink.get("an interface", rt.GET_LINK, _LINK.pack(0, 0, index, 0, 0))
    link = rt.read_link(told) if told is not None else None
    if link is None or len(link.mac) != 6:
        return None
    for one in netlink.dump("addresses", rt.GET_ADDRESS, rt.addresses(index)):
        at = rt.read_address(one)
        if at is not None and at.index == index and IPv6Address(at.address).is_link_local:
            return Interface(index, link.name, at.address, link.mac, link.mtu)
    return None
