"""A node in kernel mode with one neighbour on a cable, without an agent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.edge.kernel import kernel_world as kw
from tests.edge.kernel.space import Space, Spaces, link_local
from x0tta6bl4.app.kernel_plane import KernelPlane
from x0tta6bl4.app.settings import Data
from x0tta6bl4.edge.kernel.libbpf import KernelRefused
from x0tta6bl4.runtime.aio.links import Offers
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.messages import KernelOffer

DOMAIN: Final = TrustDomain("example.org")
B: Final = NodeName("b")


@contextmanager
def house_in(state: Path) -> Iterator[House]:
    """One with namespaces of its own; the test is skipped where no kernel takes programs."""
    with Spaces() as spaces:
        try:
            made = House(spaces.add(), spaces.add(), state)
        except KernelRefused as error:
            pytest.skip(f"no programs in this kernel: {error}")
        yield made


class House:
    """A node with one neighbour on a cable, agreed with it."""

    def __init__(self, here: Space, there: Space, state: Path) -> None:
        self.here, self.there, self.state, self.mac = here, there, state, there.mac
        here.wire("to-b", there, "to-a")
        here.run("ip", "addr", "add", "10.0.0.1/30", "dev", "to-b")
        self.said: list[str] = []
        self.begin()
        self.number, self.index = self.agree()

    def begin(self, neighbours: tuple[str, ...] = ("b", "c")) -> None:
        """An agent starts, perhaps where an earlier one has left something."""
        with self.here:
            self.plane = KernelPlane(
                DOMAIN, NodeName("a"), self.state, neighbours,
                lambda _, text: self.said.append(text),
                Data(member_pps=1, deny_from=("192.0.2.0/24",), allow_from=("192.0.2.7/32",)),
            )  # fmt: skip

    def agree(self, node: NodeName = B) -> tuple[int, int]:
        """A neighbour says that it is at the other end of the cable: its link, and interface."""
        with self.here:
            placed = self.plane.place(node, "10.0.0.1", "10.0.0.2")
            assert placed is not None
            mac = self.mac("to-a")
            theirs = KernelOffer(7, link_local(mac).packed, mac, 1500, 0)
            self.plane.offered(node, Offers(*placed, theirs, bytes(range(32))))
        return placed[1].link, placed[0]

    def at_work(self) -> tuple[str, ...]:
        """All that a node has in the kernel here: routes, next hops, programs, the clock."""
        commands = (
            "ip -6 route show proto 120", "ip nexthop show", "tc filter show dev to-b ingress",
            "ip -o link show x0clock0", "ip -6 -o addr show dev lo",
        )  # fmt: skip
        told = (self.here.run(*command.split(), check=False) for command in commands)
        return tuple(one for one in told if "x0" in one or "proto 120" in one or " fd" in one)

    def second(self) -> tuple[int, str]:
        """One more neighbour on the same cable: number of its link, and its address there."""
        placed = self.plane.place(NodeName("c"), "10.0.0.1", "10.0.0.2")
        assert placed is not None
        mac = bytes.fromhex("02000000000c")
        theirs = KernelOffer(9, link_local(mac).packed, mac, 1500, 0)
        self.plane.offered(NodeName("c"), Offers(*placed, theirs, bytes(range(32))))
        return placed[1].link, str(link_local(mac))

    def comes_in(self, packet: bytes) -> bool:
        """Whether the filter lets a packet from the neighbour in."""
        kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        context = bytearray(192)
        struct.pack_into("=I", context, 40, self.index)  # `ifindex` of struct __sk_buff
        with self.here:
            run = self.plane.programs.run(
                "x0_generic", bytes(6) + self.mac("to-a") + kind + packet, context=bytes(context)
            )
        assert run.verdict in (kw.OK, kw.SHOT)
        return run.verdict == kw.OK
