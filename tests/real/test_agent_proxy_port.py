"""The socket between agent and proxy: greeting, read-back, deltas, and what a bad peer gets."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from x0tta6bl4.runtime.aio.proxy_port import ProxyPort
from x0tta6bl4.runtime.local import listen_private
from x0tta6bl4.runtime.loop.agent_port import AgentPort
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.messages import (
    PROXY_VERSION,
    Counters,
    Delta,
    Full,
    Item,
    NodeItem,
    PathsItem,
    ProxyFact,
    Ready,
    item_key,
)


class FakeProxy:
    """A proxy that only holds a snapshot, on its own loop in its own thread."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.held: dict[str, Item] = {"NodeItem": NodeItem("t.mesh", "a", "")}
        self.version = 7
        self.orders: list[Full | Delta] = []
        self.agents: list[bool] = []
        self.port = AgentPort(self.loop, str(path), self._order, self._greeting, self.agents.append)
        self._wake, self._woken = socket.socketpair()
        self._calls: deque[ProxyFact | None] = deque()  # None: stop.
        self.loop.add(self._woken.fileno(), 1, self._run_calls)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _greeting(self) -> tuple[ProxyFact, ...]:
        return (
            Ready(PROXY_VERSION, 99, self.version, 1, 2),
            Full(self.version, tuple(self.held.values())),
        )

    def _order(self, order: Full | Delta) -> None:
        self.orders.append(order)
        if type(order) is Full:
            self.held = {item_key(item): item for item in order.items}
        self.version = order.version
        self.port.tell(Counters({"orders": len(self.orders)}))

    def _run_calls(self, _mask: int) -> None:
        self._woken.recv(100)
        while self._calls:
            call = self._calls.popleft()
            if call is None:
                self.loop.stop()
            else:
                self.port.tell(call)

    def tell(self, *facts: ProxyFact | None) -> None:
        """In one turn of the loop, so that nobody reads between two of them."""
        self._calls.extend(facts)
        self._wake.send(b"x")

    def close(self) -> None:
        self.tell(None)
        self.thread.join(5)
        self.port.close()
        self.loop.close()
        self._wake.close()
        self._woken.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FakeProxy]:
    tmp_path.chmod(0o700)
    fake = FakeProxy(tmp_path / "proxy.sock")
    yield fake
    fake.close()


def test_an_agent_reads_back_what_the_proxy_holds_and_goes_on_from_its_version(
    proxy: FakeProxy, tmp_path: Path
) -> None:
    async def story() -> None:
        facts: list[ProxyFact] = []
        heard = asyncio.Event()

        def on_fact(fact: ProxyFact) -> None:
            facts.append(fact)
            heard.set()
            if type(fact) is Full:
                port.send(Full(8, fact.items))
                port.send(Delta(8, 9, (PathsItem("b", (("a", "b"),)),)))

        port = ProxyPort(str(tmp_path / "proxy.sock"), on_fact)
        running = asyncio.create_task(port.run())
        while not any(type(f) is Counters and f.values == {"orders": 2} for f in facts):
            heard.clear()
            await asyncio.wait_for(heard.wait(), 5)
        assert port.pid == os.getpid()
        assert type(facts[0]) is Ready
        assert facts[0].incarnation == 99
        assert facts[1] == Full(7, (NodeItem("t.mesh", "a", ""),))
        port.hang_up()
        await asyncio.wait_for(running, 5)

    asyncio.run(story())
    assert proxy.orders[0] == Full(8, (NodeItem("t.mesh", "a", ""),))
    assert proxy.orders[1] == Delta(8, 9, (PathsItem("b", (("a", "b"),)),))


def test_a_newer_agent_replaces_a_half_dead_one(proxy: FakeProxy, tmp_path: Path) -> None:
    async def story() -> None:
        greeted = asyncio.Event()
        first = ProxyPort(str(tmp_path / "proxy.sock"), lambda _fact: greeted.set())
        running = asyncio.create_task(first.run())
        await asyncio.wait_for(greeted.wait(), 5)
        again = asyncio.Event()
        second = ProxyPort(str(tmp_path / "proxy.sock"), lambda _fact: again.set())
        other = asyncio.create_task(second.run())
        await asyncio.wait_for(running, 5)  # Ends: it was hung up on.
        await asyncio.wait_for(again.wait(), 5)
        second.hang_up()
        await asyncio.wait_for(other, 5)

    asyncio.run(story())
    assert proxy.agents[:3] == [True, False, True]


def test_garbage_ends_the_connection_and_changes_nothing(proxy: FakeProxy, tmp_path: Path) -> None:
    for garbage in (b"\xff" * 64, codec.encode({"t": "Nonsense"}), b"\x05\0\0\0hello"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(tmp_path / "proxy.sock"))
            sock.sendall(garbage)
            while sock.recv(65536):
                pass
    assert proxy.orders == []
    assert proxy.port.refused == 3


def test_an_agent_that_does_not_read_is_cut_off_at_the_bound(
    proxy: FakeProxy, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(tmp_path / "proxy.sock"))
        got = len(sock.recv(1 << 20))  # The greeting: the proxy has taken the connection.
        big = Full(1, (PathsItem("b", (("n" * 63,) * 100,) * 100),))
        proxy.tell(*(big for _ in range(40)))
        while data := sock.recv(1 << 20):
            got += len(data)
    assert 0 < got < 20 * len(codec.encode(big))


def test_a_proxy_that_leaves_does_not_take_the_next_ones_socket_away(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "proxy.sock"
    next_ones: list[socket.socket] = []

    class Hasty(Loop):
        """The next proxy comes while this one is closing."""

        def drop(self, fd: int) -> None:
            super().drop(fd)
            next_ones.append(listen_private(path, "a proxy"))

    loop = Hasty()
    AgentPort(loop, str(path), lambda _order: None, lambda: (), lambda _alive: None).close()
    loop.close()
    (listener,) = next_ones
    with listener, socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(path))


def test_no_proxy_is_a_clear_error(tmp_path: Path) -> None:
    async def connect() -> None:
        await ProxyPort(str(tmp_path / "nobody.sock"), lambda _fact: None).run()

    with pytest.raises(Unavailable, match="X0-RUN-005: no proxy at"):
        asyncio.run(connect())
