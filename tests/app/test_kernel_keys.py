"""Keys of hellos through connections that follow each other faster than messages do.

Two detectors in the kernel, and between them what carries the agents' words: connections with a
queue for each direction, of which each end hears the newest that counts for it and no other.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path

import msgspec
import pytest

from tests.edge.kernel.triangle import NUMBERS, Node, Triangle, until
from x0tta6bl4.app.kernel_keys import Keys
from x0tta6bl4.edge.kernel.detector import Detector, Pace, keys_of
from x0tta6bl4.edge.kernel.detector import Link as DetectorLink
from x0tta6bl4.edge.kernel.libbpf import KernelRefused
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.messages import KernelOffer

pytestmark = pytest.mark.netns
AB, BA = NUMBERS["ab"], NUMBERS["ba"]
GREETING = KernelOffer(0, bytes(16), bytes(6), 1500, -1)
ZERO = (0, 0)


def secret(connection: int) -> bytes:
    """What both ends export from a connection."""
    return bytes([connection + 1]) * 32


class End:
    """One end of the link: its kernel, its agent's keys, the connection that counts for it."""

    def __init__(self, detector: Detector, number: int, lower: bool) -> None:
        self.detector, self.number, self.lower = detector, number, lower
        self.begin()

    def begin(self) -> None:
        """As its agent begins."""
        self.keys = Keys(self.number, self.lower)
        self.counts = -1
        self.offer = GREETING

    def hear(self, connection: int, theirs: KernelOffer) -> KernelOffer | None:
        """A message of a connection; what is answered."""
        if connection < self.counts:
            return None
        if connection > self.counts:
            self.counts, self.offer = connection, GREETING
        say = self.keys.heard(self.detector, secret(connection), theirs)
        self.offer = msgspec.structs.replace(self.offer, **say)
        return self.offer if say else None

    def sends(self) -> tuple[int, tuple[int, int]]:
        """Slot and key of its hellos."""
        values = self.detector._read(self.number)
        slot = values["send_slot"]
        return slot, values["send_key"][2 * slot :][:2]

    def takes(self, slot: int) -> tuple[int, int]:
        """The key in a slot for the other one's hellos."""
        found: tuple[int, int] = self.detector._read(self.number)["receive_key"][2 * slot :][:2]
        return found


class Link:
    """Both ends, and all connections between them."""

    def __init__(self, a: Detector, b: Detector) -> None:
        self.ends = End(a, AB, True), End(b, BA, False)
        self.queues: dict[tuple[int, int], deque[KernelOffer]] = {}
        """By connection and the end that it leads to."""
        self.made = 0

    def connect(self) -> None:
        """One more; either end greets."""
        for to in (0, 1):
            self.queues[self.made, to] = deque([GREETING])
        self.made += 1

    def deliver(self, connection: int, to: int) -> None:
        """The next message of a queue."""
        answer = self.ends[to].hear(connection, self.queues[connection, to].popleft())
        if answer is not None and (connection, 1 - to) in self.queues:
            self.queues[connection, 1 - to].append(answer)

    def restart(self, which: int) -> None:
        """An agent dies and its connections with it; the kernel goes on."""
        self.ends[which].begin()
        for connection in range(self.made):
            self.queues.pop((connection, which), None)

    def settle(self) -> None:
        """All that is under way arrives."""
        while waiting := [way for way, queue in self.queues.items() if queue]:
            self.deliver(*waiting[0])

    def check(self) -> None:
        """Whatever one end sends, the other one takes."""
        for one, other in (self.ends, self.ends[::-1]):
            slot, key = one.sends()
            assert key in (ZERO, other.takes(slot))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with Triangle() as triangle:
        path: Path = tmp_path_factory.mktemp("pins")
        try:
            a, b = (Node(triangle, name, path / name, Pace()) for name in "ab")
        except KernelRefused as error:
            pytest.skip(f"no programs in this kernel: {error}")
        a.watch(triangle, "b")
        b.watch(triangle, "a")
        yield a, b


@pytest.fixture
def link(nodes: tuple[Node, Node]) -> Link:
    """Without keys."""
    for node, number in zip(nodes, (AB, BA), strict=True):
        node.detector._write(
            number, node.detector._read(number)
            | {"send_key": (0,) * 4, "receive_key": (0,) * 4, "send_slot": 0},
        )  # fmt: skip
    return Link(*(node.detector for node in nodes))


def test_both_ends_come_to_the_keys_of_the_connection(link: Link) -> None:
    for made in range(3):
        link.connect()
        link.settle()
        link.check()
        low, high = keys_of(secret(made), True)
        assert [end.sends()[0] for end in link.ends] == [(made + 1) % 2] * 2
        assert [end.keys.used for end in link.ends] == [True, True]
        assert (low, high) == tuple(
            b"".join(half.to_bytes(8, "little") for half in end.sends()[1]) for end in link.ends
        )


def test_a_third_generation_within_a_round_trip_overwrites_nothing_in_use(link: Link) -> None:
    link.connect()
    link.settle()
    link.connect()
    for to in (0, 1, 1, 0, 0):  # a sends under the second already, b has not heard that it may ...
        link.deliver(1, to)
    assert [end.keys.used for end in link.ends] == [True, False]
    link.connect()
    for to in (1, 0, 1):  # ... when the third takes its place.
        link.deliver(2, to)
        link.check()
    link.settle()
    link.check()
    assert [end.counts for end in link.ends] == [2, 2]


@pytest.mark.parametrize("seed", range(40))
def test_however_fast_connections_follow_each_other_all_hellos_are_taken(
    link: Link, seed: int
) -> None:
    draw = random.Random(f"{seed}/keys")
    for _ in range(80):
        waiting = [way for way, queue in link.queues.items() if queue]
        if not waiting or draw.random() < 0.15:
            link.connect()
        elif draw.random() < 0.05:
            link.queues.pop(draw.choice(waiting))  # It breaks: what is under way is lost.
        elif draw.random() < 0.03:
            link.restart(draw.randrange(2))
        else:
            link.deliver(*draw.choice(waiting))
        link.check()
    link.connect()
    link.settle()
    link.check()
    assert [end.keys.used for end in link.ends] == [True, True]


def test_a_clock_that_was_set_back_makes_no_hello_a_replay(
    nodes: tuple[Node, Node], link: Link
) -> None:
    a, b = nodes
    values = b.detector._read(BA)

    def watch(incarnation: int) -> None:
        with b.space:
            b.detector.set_link(
                DetectorLink(
                    BA, AB, values["ifindex"], values["local_mac"], values["peer_mac"],
                    IPv6Address(values["local"]), IPv6Address(values["peer"]), incarnation,
                )
            )  # fmt: skip

    def hears(here: Detector, number: int) -> None:
        before = here.report(number).requests
        until(lambda: here.report(number).requests > before + 3)

    watch(unix_us() + 3600_000_000)  # Its clock is an hour ahead.
    link.connect()
    link.settle()
    hears(a.detector, AB)
    watch(unix_us())  # The same maps: it knows.
    hears(a.detector, AB)
    with b.space:
        b.detector.remove_link(BA)  # As a stop does; it knows nothing.
    watch(unix_us())
    link.restart(1)
    link.connect()
    link.settle()
    hears(a.detector, AB)
    hears(b.detector, BA)
