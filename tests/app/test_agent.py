"""The agent's process: what it makes of links and names before its machine hears of them."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from x0tta6bl4.app import agent as agents
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.agent import AgentProcess
from x0tta6bl4.app.proxy_child import ProxyChild
from x0tta6bl4.app.settings import AuthorityAt, Link, NodeSettings
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.machine import Event
from x0tta6bl4.runtime.aio.links import LinkKeys
from x0tta6bl4.runtime.local import listen_private
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import LINK_VERSION, Intro, NeighbourItem

B = NodeName("b")
KEYS = LinkKeys(7, b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32)


class Hearing:
    """In the place of the driver: what the machine would hear."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def post(self, event: Event) -> None:
        self.events.put_nowait(event)


def intro(*endpoints: str) -> Intro:
    return Intro(
        version=LINK_VERSION,
        node=B,
        agent_incarnation=1,
        proxy_incarnation=2,
        endpoints=endpoints,
        hello_us=100_000,
        unix_us=0,
    )


def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(
        trust_domain="mesh.test",
        node="a",
        state_dir=str(tmp_path),
        authority=AuthorityAt(address="authority.example:7200"),
        link=(Link(node="b"),),
    )


def test_the_proxy_gets_literals_and_again_when_a_name_moves(tmp_path: Path) -> None:
    async def story() -> None:
        hosts = {"b.example": ["192.0.2.7"], "authority.example": ["192.0.2.9"]}

        async def lookup(name: str) -> list[str]:
            return hosts[name]

        agent = AgentProcess(settings(tmp_path), tmp_path / "node.toml")
        agent.resolver._lookup = lookup
        hearing = agent.driver = Hearing()  # type: ignore[assignment]
        agent.link_up(B, intro("b.example:7100", "192.0.2.8:7100"), KEYS)
        agent.reconfigure()
        first, config = hearing.events.get_nowait(), hearing.events.get_nowait()
        assert type(first) is words.NeighbourUp
        assert first.item.endpoints == ("192.0.2.8:7100",)
        assert type(config) is words.Configured
        assert config.config.authority == ""
        task = asyncio.create_task(agent.resolver.run())
        config, again = await hearing.events.get(), await hearing.events.get()
        assert type(config) is words.Configured
        assert config.config.authority == "192.0.2.9:7200"
        assert again == words.NeighbourUp(
            msgspec.structs.replace(first.item, endpoints=("192.0.2.7:7100", "192.0.2.8:7100"))
        )
        assert isinstance(first.item, NeighbourItem)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        agent.link_down(B, "silent")
        assert hearing.events.get_nowait() == words.NeighbourDown(B)
        agent._names_changed()  # Whoever is gone is not told of again.
        assert type(hearing.events.get_nowait()) is words.Configured
        assert hearing.events.empty()

    asyncio.run(asyncio.wait_for(story(), 10))


class Counted(ProxyChild):
    """How often it was started."""

    starts = 0

    async def start(self) -> str:
        self.starts += 1
        return await super().start()

    async def end(self) -> None:
        if self._process is not None and self.pid:
            self._process.kill()
            await self._process.wait()


class Keeping:
    """An agent that does nothing but keep a proxy."""

    def __init__(self, state_dir: Path) -> None:
        config = state_dir / "node.toml"
        config.write_text(cfg.dump(msgspec.structs.replace(settings(state_dir), link=())))
        self.agent = AgentProcess(cfg.read_node(config), config)
        self.agent.driver = Hearing()  # type: ignore[assignment]
        self.child = self.agent._child = Counted(config, state_dir / "out.log")

    async def until(self, found: Callable[[], bool]) -> None:
        """Keep one until it is so; every process is gone afterwards."""
        task = asyncio.create_task(self.agent._keep_proxy())
        try:
            async with asyncio.timeout(30):
                while not found():
                    assert not task.done(), task
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.child.end()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        yield Path(name)


def test_one_proxy_is_started_where_a_dead_one_has_left_its_socket(state_dir: Path) -> None:
    async def story() -> None:
        listen_private(state_dir / "proxy.sock", "a proxy").close()
        keeping = Keeping(state_dir)
        await keeping.until(lambda: keeping.agent.ready is not None)
        assert keeping.child.starts == 1
        assert (state_dir / "out.log").read_text() == ""

    asyncio.run(story())


def test_a_proxy_that_does_not_come_up_is_ended_before_the_next(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = state_dir / "frozen"
    frozen.write_text("#!/bin/sh\nexec sleep 60\n")
    frozen.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(frozen))
    monkeypatch.setattr(agents, "PROXY_UP_S", 0.05)

    async def story() -> None:
        keeping = Keeping(state_dir)
        await keeping.until(lambda: keeping.child.starts == 3)
        told = [event.text for event in keeping.agent.desk._events]
        assert told[:1] == [f"the proxy ended, status -9; see {state_dir / 'out.log'}"]

    asyncio.run(story())
