"""The proxy's process on a loop of this thread, with an agent at its socket that only talks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from tests.fakes.ca import FakeCa
from x0tta6bl4.app.proxy import ProxyProcess
from x0tta6bl4.app.settings import Data, NodeSettings
from x0tta6bl4.core.machine import MS, Allowed, Denied, Instant, Verdict
from x0tta6bl4.edge.tls.engine import Engine
from x0tta6bl4.runtime.clocks import clock, unix_us
from x0tta6bl4.telemetry.catalogue import NODE
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import (
    BundleItem,
    CallerItem,
    ClockItem,
    Counters,
    Delta,
    Full,
    Item,
    ListenItem,
    ListenState,
    NeighbourItem,
    NodeItem,
    Notice,
    ProxyFact,
    Ready,
    RevokedItem,
    SvidItem,
    item_key,
)

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")
WEB = SpiffeId("spiffe://mesh.test/web")
NODE_A = NodeItem("mesh.test", "a", "")
HELLO_US = 50 * MS
F = TypeVar("F")


class House:
    """A proxy, and what an agent over its socket is told."""

    def __init__(self, state: Path) -> None:
        settings = NodeSettings("mesh.test", "a", str(state), data=Data(listen="127.0.0.1:0"))
        self.proxy = ProxyProcess(settings)
        self.agent = socket.socket(socket.AF_UNIX)
        self.agent.connect(str(state / "proxy.sock"))
        self.agent.setblocking(False)
        self.reader = codec.proxy_reader()
        self.heard: list[ProxyFact] = []
        self.version = 0

    def until(self, found: Callable[[], bool], seconds: float = 10) -> None:
        """Let the loop run until it is so."""
        end = clock() + seconds * 1_000_000
        while not found():
            assert clock() < end, self.heard
            self.proxy.loop.once(Instant(clock() + 10 * MS))
            try:
                while data := self.agent.recv(1 << 16):
                    self.heard += self.reader.feed(data)
            except BlockingIOError:
                pass

    def settle(self) -> None:
        """Let what was said be heard."""
        self.until(lambda: self.proxy.endpoint.proxy.snapshot.version == self.version)

    def full(self, *items: Item) -> None:
        self.version += 1
        self.agent.sendall(codec.encode(Full(self.version, (NODE_A, *items))))
        self.settle()

    def put(self, *items: Item) -> None:
        self._delta(Delta(self.version, self.version + 1, items))

    def drop(self, *items: Item) -> None:
        self._delta(Delta(self.version, self.version + 1, (), tuple(map(item_key, items))))

    def _delta(self, delta: Delta) -> None:
        self.version += 1
        self.agent.sendall(codec.encode(delta))
        self.settle()

    def facts(self, kind: type[F]) -> list[F]:
        return [fact for fact in self.heard if isinstance(fact, kind)]

    def notices(self) -> list[tuple[str, str]]:
        return [(fact.kind, fact.text) for fact in self.facts(Notice)]

    def close(self) -> None:
        self.agent.close()
        self.proxy.loop.stop()
        self.proxy.run()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.until(lambda: len(made.heard) >= 2)
    yield made
    made.close()
    assert not (tmp_path / "proxy.sock").exists()


def neighbour(node: str, **changes: object) -> NeighbourItem:
    item = NeighbourItem(
        node, sum(node.encode()), (), 7, HELLO_US, b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32
    )
    return msgspec.structs.replace(item, **changes)


# ------------------------------------------------------------------ snapshot
def test_it_greets_with_itself_and_what_it_holds(house: House) -> None:
    ready, held = house.heard[:2]
    assert type(ready) is Ready
    assert ready.tcp_port == house.proxy.tcp_port
    assert ready.incarnation == house.proxy.incarnation
    assert held == Full(0, ())
    house.full(neighbour("b"))
    house.agent.close()
    house.agent = socket.socket(socket.AF_UNIX)
    house.agent.connect(str(house.proxy.state_dir / "proxy.sock"))
    house.agent.setblocking(False)
    house.reader, house.heard = codec.proxy_reader(), []
    house.until(lambda: len(house.heard) >= 2)
    assert house.heard[1] == Full(1, (NODE_A, neighbour("b")))


def test_a_neighbour_is_there_until_it_is_dropped(house: House) -> None:
    house.full(neighbour("b"))
    assert house.proxy.hops.neighbours.get(B) is not None
    house.drop(neighbour("b"))
    assert house.proxy.hops.neighbours.get(B) is None


def test_keys_of_a_wrong_form_are_told_and_not_used(house: House) -> None:
    house.full(neighbour("b", tx_setup=b"short"))
    house.until(lambda: any(kind == "neighbours" for kind, _ in house.notices()))
    assert house.proxy.hops.neighbours.get(B) is None


def test_a_listener_is_told_where_it_is_and_gone_when_dropped(house: House) -> None:
    item = ListenItem("127.0.0.1:0", "plain", "web")
    house.full(item)
    house.until(lambda: bool(house.facts(ListenState)))
    (state,) = house.facts(ListenState)
    port = int(state.address.rpartition(":")[2])
    assert (state.asked, state.problem) == ("127.0.0.1:0", "")
    socket.create_connection(("127.0.0.1", port), 5).close()
    house.drop(item)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_an_error_of_a_listener_is_told(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        house.full(ListenItem(taken, "plain", "web"), ListenItem("nowhere", "plain", "web"))
        house.until(lambda: len(house.facts(ListenState)) == 2)
    problems = {state.asked: state.problem for state in house.facts(ListenState)}
    assert "in use" in problems[taken]
    assert "nowhere" in problems["nowhere"]


def test_selectors_that_nobody_can_read_are_told(house: House) -> None:
    house.full(CallerItem(WEB, ("unix:shoe-size:43",)))
    house.until(lambda: any(kind == "caller" for kind, _ in house.notices()))


def test_contexts_are_made_anew_with_svid_and_bundle(house: House) -> None:
    ca = FakeCa()
    house.full()
    contexts = house.proxy.contexts
    assert contexts.make(WEB, None, True) == Denied("no svid")
    svid = ca.svid("web")
    item = SvidItem(svid.id, svid.chain, svid.key, svid.not_after_unix_s)
    house.put(item)
    assert contexts.make(WEB, None, True) == Denied("no bundle")
    house.put(BundleItem("mesh.test", (ca.issuer.certificate,)))
    one, two = contexts.make(WEB, None, True), contexts.make(WEB, None, True)
    assert isinstance(one, Engine)
    assert isinstance(two, Engine)
    assert one.context is two.context
    house.put(SvidItem(ca.id("shop"), svid.chain, svid.key, svid.not_after_unix_s))
    again = contexts.make(WEB, None, True)
    assert isinstance(again, Engine)
    assert again.context is one.context, "another's SVID is no reason"
    house.put(msgspec.structs.replace(item, not_after_unix_s=item.not_after_unix_s + 1))
    three = contexts.make(WEB, None, True)
    assert isinstance(three, Engine)
    assert three.context is not one.context
    assert three.context.judge is one.context.judge, "with the chains that it knows"
    house.put(BundleItem("mesh.test", (ca.issuer.certificate, FakeCa().issuer.certificate)))
    four = contexts.make(WEB, None, True)
    assert isinstance(four, Engine)
    assert four.context.judge is not one.context.judge
    house.drop(item)
    assert contexts.make(WEB, None, True) == Denied("no svid")


def test_the_wall_clock_is_never_below_what_the_authority_signed(house: House) -> None:
    ahead = unix_us() + 3_600_000_000
    house.full(ClockItem(ahead))
    assert house.proxy.unix_us() == ahead
    house.put(ClockItem(ahead - 1))
    assert house.proxy.unix_us() == ahead


# ------------------------------------------------------------------ who may pass
def admit(house: House, previous: NodeName, following: NodeName) -> Verdict:
    return house.proxy._admit(previous, following)


@pytest.fixture
def linked(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """With links to b and c that are up, as hellos would have told."""
    house.full(neighbour("b"), neighbour("c"))
    up = {"b", "c"}
    monkeypatch.setattr(type(house.proxy.endpoint.proxy.links), "is_up", lambda _, node: node in up)
    return house


def test_a_hop_passes_over_confirmed_links_only(house: House) -> None:
    house.full(neighbour("b"), neighbour("c"))
    assert admit(house, B, C) == Denied("no link to b")
    assert admit(house, B, A) == Denied("no link to b")


def test_a_hop_passes_between_links_that_are_up_and_ends_here(linked: House) -> None:
    assert type(admit(linked, B, C)) is Allowed
    assert type(admit(linked, B, A)) is Allowed


def test_no_hop_of_a_banned_node_passes_or_ends_here(linked: House) -> None:
    until = unix_us() // 1_000_000 + 3600
    linked.put(RevokedItem("spiffe://mesh.test/node/b", until))
    for previous, following in ((B, C), (C, B), (B, A)):
        assert admit(linked, previous, following) == Denied("revoked")
    assert type(admit(linked, C, A)) is Allowed
    # Its keys are forgotten at once, before the agent takes the link back.
    assert linked.proxy.hops.neighbours.get(B) is None
    assert linked.proxy.hops.neighbours.get(C) is not None


def test_a_node_whose_older_svids_are_revoked_may_come_with_a_new_one(linked: House) -> None:
    now = unix_us() // 1_000_000
    linked.put(RevokedItem("spiffe://mesh.test/node/b", now + 3600, now))
    assert linked.proxy.hops.neighbours.get(B) is not None
    assert type(admit(linked, B, A)) is Allowed


def test_a_revoked_workload_is_no_node(linked: House) -> None:
    linked.put(RevokedItem(WEB, unix_us() // 1_000_000 + 3600))
    assert linked.proxy.hops.neighbours.get(B) is not None


# ------------------------------------------------------------------ sums
def test_every_sum_is_declared(linked: House) -> None:
    linked.until(lambda: bool(linked.facts(Counters)))
    declared = {metric.name: len(metric.labels) for metric in NODE}
    sums = linked.facts(Counters)[-1].values
    assert sums["proxy_snapshot_version"] == linked.version
    for key in sums:
        name, *labels = key.split("|")
        assert declared.get(name) == len(labels), key


def test_a_taken_data_port_is_a_clear_error(house: House, tmp_path: Path) -> None:
    state = tmp_path / "other"
    taken = f"127.0.0.1:{house.proxy.tcp_port}"
    with pytest.raises(Unavailable, match="X0-RUN-042: can't listen at"):
        ProxyProcess(NodeSettings("mesh.test", "b", str(state), data=Data(listen=taken)))
