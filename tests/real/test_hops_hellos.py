"""Hellos by UDP and, where that fails, over the channel."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

from tests.fakes.hop_mesh import HopMesh
from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.hellos import Hellos
from x0tta6bl4.wire.hello import EASY, UP, Hello, pack
from x0tta6bl4.wire.ids import NodeName

A, B = NodeName("a"), NodeName("b")


class Two:
    """Nodes a and b; each says a hello to the other whenever `beat` is called."""

    def __init__(self, mesh: HopMesh) -> None:
        self.mesh = mesh
        self.heard: dict[str, list[tuple[NodeName, Hello]]] = {"a": [], "b": []}
        self.hellos: dict[str, Hellos] = {}
        self.sequence = 0
        for name in "ab":
            mesh.node(name)
        for name in "ab":
            node = mesh.nodes[name]
            heard = self.heard[name]
            self.hellos[name] = Hellos(
                mesh.loop,
                node.udp,
                node.hops,
                lambda n, hello, heard=heard: heard.append((n, hello)),  # type: ignore[misc]
            )

    def hello(self, me: str, other: str, generation: int = 0) -> Hello:
        self.sequence += 1
        item = self.mesh.item(me, other, generation)
        return Hello(
            item.link, self.mesh.nodes[me].incarnation, self.sequence, UP, 0, 100_000, 3, clock()
        )

    def beat(self, times: int = 1, generation: int = 0, gap: float = 0.01) -> None:
        for _ in range(times):
            self.hellos["a"].send(B, self.hello("a", "b", generation))
            self.hellos["b"].send(A, self.hello("b", "a", generation))
            self.mesh.settle(gap)

    def clear(self) -> None:
        for heard in self.heard.values():
            heard.clear()

    def channels(self) -> None:
        self.mesh.run(
            lambda: (
                self.mesh.nodes["a"].hops.channels.has(B)
                and self.mesh.nodes["b"].hops.channels.has(A)
            )
        )


@pytest.fixture
def two() -> Iterator[Two]:
    mesh = HopMesh()
    yield Two(mesh)
    mesh.close()


def wall(two: Two, name: str) -> None:
    """Drop everything that comes to a node by UDP, as a firewall would."""
    hellos = two.hellos[name]
    two.mesh.loop.drop(hellos._sock.fileno())


def test_hellos_go_by_udp_alone_once_both_are_heard(two: Two) -> None:
    two.mesh.link("a", "b")
    two.channels()
    two.beat(3)
    two.beat(20, gap=0.05)
    sent = two.hellos["a"].statistics().sent_channel
    two.clear()
    two.beat(10)
    assert [h.sequence for _, h in two.heard["b"]] == sorted(
        {h.sequence for _, h in two.heard["b"]}
    )
    assert len(two.heard["a"]) == len(two.heard["b"]) == 10
    assert two.hellos["a"].statistics().sent_channel == sent
    assert not two.hellos["a"].deaf(B)


@pytest.mark.parametrize("walls", ["b", "ab"])
def test_where_udp_is_blocked_one_way_or_both_the_channel_carries_them(
    two: Two, walls: str
) -> None:
    two.mesh.link("a", "b")
    two.channels()
    two.beat(3)
    for name in walls:
        wall(two, name)
    two.mesh.settle(0.9)
    two.beat(3)
    two.clear()
    two.beat(10)
    for name in "ab":
        assert len({h.sequence for _, h in two.heard[name]}) == 10, name
    assert two.hellos["b"].deaf(A)
    assert two.hellos["a"].deaf(B) == ("a" in walls)


def test_udp_is_used_again_when_it_comes_back(two: Two) -> None:
    two.mesh.link("a", "b")
    two.channels()
    wall(two, "b")
    two.beat(5)
    assert two.hellos["b"].deaf(A)
    udp = two.hellos["b"]
    two.mesh.loop.add(udp._sock.fileno(), 1, udp._ready)
    two.beat(3)
    assert not two.hellos["b"].deaf(A)
    two.beat(20, gap=0.05)
    before = two.hellos["a"].statistics().sent_channel
    two.beat(10)
    assert two.hellos["a"].statistics().sent_channel == before


def test_who_asks_for_few_hellos_is_not_deaf_between_them(two: Two) -> None:
    two.mesh.link("a", "b")
    two.channels()
    two.beat(3)
    few = msgspec.structs.replace(two.hello("a", "b"), flags=EASY)
    two.hellos["a"].send(B, few)
    two.mesh.settle(1.1)
    assert not two.hellos["a"].deaf(B)
    two.hellos["a"].send(B, two.hello("a", "b"))
    assert two.hellos["a"].deaf(B)


def test_a_neighbour_behind_a_nat_is_answered_where_it_was_heard(two: Two) -> None:
    two.mesh.link("a", "b", one_dials=False)
    two.beat(10)
    assert len(two.heard["b"]) >= 9, "a has no endpoint of b, but heard it"


def test_no_udp_for_a_link_that_forbids_it(two: Two) -> None:
    two.mesh.nodes["a"].hops.neighbour_set(two.mesh.item("a", "b", udp=False))
    two.mesh.nodes["b"].hops.neighbour_set(two.mesh.item("b", "a", udp=False))
    two.channels()
    two.beat(5)
    assert two.hellos["a"].statistics().sent_udp == 0
    assert len(two.heard["b"]) == len(two.heard["a"]) == 5


def test_forged_foreign_and_replayed_datagrams_change_nothing(two: Two) -> None:
    two.mesh.link("a", "b")
    two.beat(3)
    two.clear()
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port = two.mesh.nodes["b"].port
    item = two.mesh.item("a", "b")
    good = two.hello("a", "b")

    def mac(key: bytes) -> bytes:
        from hashlib import blake2b

        return pack(good, lambda body: blake2b(body, digest_size=16, key=key).digest())

    foreign = msgspec.structs.replace(good, link=good.link ^ 2)
    for data in (
        b"",
        b"x" * 76,
        mac(b"wrong" * 6),
        mac(item.rx_hello),
        mac(item.tx_hello)[:-1],
        pack(foreign, lambda body: bytes(16)),
        bytes(2000),
    ):
        stranger.sendto(data, ("127.0.0.1", port))
    two.mesh.settle(0.05)
    assert two.heard["b"] == []
    statistics = two.hellos["b"].statistics()
    assert (statistics.forged, statistics.foreign) == (2, 5)
    # A genuine hello replayed from elsewhere is passed on as the duplicate it is, but the answer
    # does not go there.
    two.beat()
    newest = two.heard["b"][-1][1]
    good = newest
    stranger.sendto(mac(item.tx_hello), ("127.0.0.1", port))
    two.beat(3)
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(100)
    stranger.close()


def test_hellos_of_the_keys_before_hold_for_two_seconds(two: Two) -> None:
    two.mesh.link("a", "b")
    two.beat(2)
    two.mesh.nodes["b"].hops.neighbour_set(two.mesh.item("b", "a", generation=1))
    two.clear()
    two.beat(2)
    assert len(two.heard["b"]) >= 2, "a still speaks under the old keys"
    two.mesh.nodes["a"].hops.neighbour_set(two.mesh.item("a", "b", generation=1))
    two.clear()
    two.beat(2, generation=1)
    assert len({h.sequence for _, h in two.heard["b"]}) == 2
    two.mesh.nodes["b"].hops.neighbour_gone(A)
    two.clear()
    two.beat(2, generation=1)
    assert two.heard["b"] == []


def test_a_burst_is_drained_in_batches_and_cheaply(two: Two) -> None:
    two.mesh.link("a", "b")
    two.beat(3)
    two.clear()
    began = time.process_time()
    for _ in range(5):
        for _ in range(100):
            two.hellos["a"].send(B, two.hello("a", "b"))
        two.mesh.loop.once(Instant(0))
        while len(two.heard["b"]) % 100:
            two.mesh.loop.once(Instant(0))
    each = (time.process_time() - began) / 500 * 1e6
    print(f"a hello sent and received: {each:.1f} us")
    assert len(two.heard["b"]) == 500


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_one_data_port_takes_both_families(host: str) -> None:
    try:
        mesh = HopMesh("::", host)
        both = Two(mesh)
    except OSError:
        pytest.skip("needs IPv6")
    mesh.link("a", "b")
    both.beat(5)
    assert len(both.heard["a"]) >= 4
    assert both.hellos["a"].statistics().received_udp >= 4
    end = mesh.open("ab")
    end.send(b"x")
    mesh.run(lambda: end.received == b"x")
    mesh.close()


def test_all_that_has_come_is_heard_before_a_tick(two: Two) -> None:
    two.mesh.link("a", "b")
    two.beat(3)
    two.clear()
    loop, heard = two.mesh.loop, two.heard["b"]
    loop.drop(two.hellos["a"]._sock.fileno())
    at_tick: list[int] = []
    alarm = loop.alarm(lambda: at_tick.append(len(heard)))
    for _ in range(9):
        two.hellos["a"].send(B, two.hello("a", "b"))
    while len(heard) < 2:
        loop.once(Instant(clock() + 100_000))
    assert len(heard) == 2  # One a wake-up while nobody is judged ...
    alarm.at = clock()
    loop.once(Instant(clock() + 100_000))
    assert at_tick == [9]  # ... but all before somebody is.
    alarm.at = NEVER
