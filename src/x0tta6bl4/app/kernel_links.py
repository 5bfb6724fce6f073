"""What a node knows of its links in kernel mode: where neighbours are, and what was agreed on."""

from __future__ import annotations

import contextlib
from asyncio import TimerHandle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.app.kernel_keys import Keys
from x0tta6bl4.app.wallet import read_private, write_private
from x0tta6bl4.core.links.verdicts import Judged, Verdicts
from x0tta6bl4.edge.kernel.detector import Detector
from x0tta6bl4.edge.kernel.layout import LINKS_MAX
from x0tta6bl4.edge.kernel.plane import Adjacent
from x0tta6bl4.edge.kernel.sysctl import here, written_where
from x0tta6bl4.runtime.aio.links import Offers
from x0tta6bl4.wire.errors import Refused, X0Error
from x0tta6bl4.wire.ids import NodeName

KEPT: Final = "kernel-links"
CLAIM_S: Final = 3.0
"""How long a neighbour that has not answered where it says it is keeps others from there."""


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


@final
class _File(msgspec.Struct, frozen=True):
    """What the next agent is to know."""

    where: str
    """Boot and network namespace: links are in no other."""
    links: list[Kept]


class KernelLink:
    """One link.

    Attributes:
        kept: what was agreed on; None: the neighbour has not offered its kernel yet.
        keys: of its hellos.
        rests: its interface has no IPv6, and both ends leave it.
        eases: the neighbour's proxy can be asked for few hellos.
        left: it loses packets, and data goes other ways until this timer ends.
        offers: what was said last, to be tried again; None: the kernel did not take it.
        answered: by the neighbour, from where it says it is.
    """

    __slots__ = (
        "_answers", "_since", "_verdicts", "answered", "eases", "kept", "keys", "left", "node",
        "number", "offers", "rests",
    )  # fmt: skip

    def __init__(self, node: NodeName, number: int, keys: Keys, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self.node = node
        self.number = number
        self.kept: Kept | None = None
        self.keys = keys
        self.rests = self.eases = False
        self.left: TimerHandle | None = None
        self.offers: Offers | None = None
        self.answered = False
        self._since, self._answers = float("-inf"), 0

    def moved(self, now: float, answers: int) -> None:
        """The neighbour says that it is somewhere else, from these monotonic seconds on.

        Args:
            now: monotonic seconds.
            answers: that were counted before.
        """
        self.answered, self._since, self._answers = False, now, answers

    def heard(self, answers: int) -> None:
        """So many answers were counted in all."""
        self.answered = self.answered or answers > self._answers

    def holds(self, now: float) -> bool:
        """Whether nobody else can be where it is: a word alone counts for a while only."""
        return self.answered or now < self._since + CLAIM_S

    def leave(self, timer: TimerHandle | None) -> None:
        """Data goes other ways until this timer ends, and the one before it no longer does that."""
        if self.left is not None:
            self.left.cancel()
        self.left = timer

    @property
    def judged(self) -> Judged:
        """How it stands by the kernel's word."""
        return self._verdicts.judged(self.node)

    @property
    def proven(self) -> bool:
        """Hellos were answered over it."""
        return self.judged.proven

    @property
    def adjacent(self) -> Adjacent | None:
        """For the routes."""
        kept = self.kept
        return Adjacent(self.node, kept.index, kept.peer, kept.peer_mac) if kept else None


class Links:
    """The links of a node, with numbers that a restart keeps.

    Args:
        me: this node.
        state_dir: of it.
        nodes: configured neighbours, at most LINKS_MAX.
        verdicts: how links stand.
    """

    __slots__ = ("_by_node", "_by_number", "_path")

    def __init__(
        self, me: NodeName, state_dir: Path, nodes: Iterable[str], verdicts: Verdicts
    ) -> None:
        self._path = state_dir / KEPT
        found = _read(self._path)
        kept = {one.node: one for one in found.links} if found and found.where == here() else {}
        wanted = list(nodes)[:LINKS_MAX]
        free = [n for n in range(LINKS_MAX) if n not in {one.number for one in kept.values()}]
        self._by_node: dict[str, KernelLink] = {}
        for node in wanted:
            one = kept.get(node)
            if one is None and not free:
                continue  # As many as there are numbers have gone since: none for this one.
            number = one.number if one else free.pop(0)
            link = KernelLink(NodeName(node), number, Keys(number, me < node), verdicts)
            link.kept = one
            self._by_node[node] = link
        self._by_number = {link.number: link for link in self._by_node.values()}

    def __iter__(self) -> Iterator[KernelLink]:
        return iter(self._by_node.values())

    def get(self, node: str) -> KernelLink | None:
        """The link to a neighbour."""
        return self._by_node.get(node)

    def __getitem__(self, node: str) -> KernelLink:
        """The link to one that is a neighbour."""
        return self._by_node[node]

    def numbered(self, number: int) -> KernelLink | None:
        """The link of a number."""
        return self._by_number.get(number)

    def heard(self, detector: Detector) -> frozenset[str]:
        """Neighbours that answer over links that are up."""
        up = [link for link in self if link.kept is not None and link.judged.up]
        return frozenset(link.node for link in up if not detector.report(link.number).suspect)

    def agreed(self, link: KernelLink, offers: Offers, now: float) -> Kept:
        """What both ends have said, as one; those who are `beside` it give way.

        Args:
            link: to the neighbour.
            offers: of both.
            now: monotonic seconds.
        Raises:
            Refused: X0-KRN-147 the neighbour says that it is where this node or another one is:
                whose data would go there?
        """
        mine, theirs = offers.mine, offers.theirs
        beside = self.beside(link, offers)
        here = theirs.local == mine.local or theirs.mac == mine.mac
        for whose in ["this node"] * here + [other.node for other in beside if other.answered]:
            raise Refused(
                "X0-KRN-147",
                f"{link.node} says that it is at the address of {whose}",
                "each node on an interface has an address and a hardware address of its own",
            )
        for other in beside:
            if other.holds(now):
                raise Refused(
                    "X0-KRN-147",
                    f"{other.node} and {link.node} say that they are at one address,"
                    " and neither has answered there yet",
                    "the one that answers has it; look at the addresses of the other",
                )
        return Kept(
            link.node, link.number, offers.index, mine.local, mine.mac, theirs.local, theirs.mac,
            theirs.link, min(mine.mtu, theirs.mtu),
        )  # fmt: skip

    def beside(self, link: KernelLink, offers: Offers) -> list[KernelLink]:
        """Links to others who say that they are where this neighbour says it is."""
        theirs = offers.theirs
        return [
            other
            for other in self
            if other is not link and other.kept and other.kept.index == offers.index
            if theirs.local == other.kept.peer or theirs.mac == other.kept.peer_mac
        ]

    def save(self) -> None:
        """Write down what was agreed on.

        Raises:
            X0Error: the disk does not take it.
        """
        kept = [link.kept for link in self if link.kept is not None]
        write_private(self._path, msgspec.msgpack.encode(_File(here(), kept)))

    def forget(self) -> None:
        """Nothing is at work any more."""
        self._path.unlink(missing_ok=True)


def where_left(links: Path, switches: Path) -> str:
    """Boot and network namespace in which files of a life in kernel mode were written.

    Args:
        links: `KEPT` of its state_dir.
        switches: of `edge.kernel.sysctl`; both are written where the other may not fit any more.
    Returns:
        Empty: that is not known.
    """
    found = _read(links)
    return found.where if found else written_where(switches)


def _read(path: Path) -> _File | None:
    with contextlib.suppress(X0Error, OSError, msgspec.DecodeError):
        if path.exists():
            return msgspec.msgpack.decode(read_private(path), type=_File)
    return None
