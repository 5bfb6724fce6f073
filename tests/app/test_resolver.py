"""Names in addresses: looked up away from the byte path, kept when nobody answers."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import pytest

from x0tta6bl4.app import resolver
from x0tta6bl4.app.resolver import Resolver


class NameServer:
    """Answers of now, and how often it was asked."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.ask = asyncio.Event()

    async def __call__(self, name: str) -> list[str]:
        self.asked.append(name)
        self.ask.set()
        if name not in self.hosts:
            raise OSError("no such name")
        return self.hosts[name]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "PAUSE_S", 0.0)


def play(story: Callable[[Resolver, NameServer, asyncio.Queue[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        server = NameServer()
        changes: asyncio.Queue[None] = asyncio.Queue()
        names = Resolver(lambda: changes.put_nowait(None), server)
        task = asyncio.create_task(names.run())
        async with asyncio.timeout(10):
            await story(names, server, changes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_literals_pass_and_are_never_asked_for() -> None:
    async def story(names: Resolver, server: NameServer, changes: asyncio.Queue[None]) -> None:
        texts = ("192.0.2.1:7100", "[2001:db8::1]:7100", "unix:/run/x", "192.0.2.1:7100")
        assert names.literals(texts) == texts[:3]
        await asyncio.sleep(0)
        assert not server.asked

    play(story)


def test_a_name_is_told_once_it_is_known_and_again_when_it_moves() -> None:
    async def story(names: Resolver, server: NameServer, changes: asyncio.Queue[None]) -> None:
        server.hosts["b.example"] = ["192.0.2.7", "2001:db8::7"]
        assert names.literals(("b.example:7100",)) == ()
        await changes.get()
        assert names.literals(("b.example:7100", "192.0.2.9:1")) == (
            "192.0.2.7:7100", "[2001:db8::7]:7100", "192.0.2.9:1")  # fmt: skip
        server.hosts["b.example"] = ["192.0.2.8"]
        names.wake()
        await changes.get()
        assert names.literals(("b.example:7100",)) == ("192.0.2.8:7100",)

    play(story)


def test_a_name_server_that_is_away_takes_nothing_away() -> None:
    async def story(names: Resolver, server: NameServer, changes: asyncio.Queue[None]) -> None:
        server.hosts["b.example"] = ["192.0.2.7"]
        names.literals(("b.example:7100",))
        await changes.get()
        server.hosts.clear()
        server.ask.clear()
        names.wake()
        await server.ask.wait()
        server.hosts["c.example"] = ["192.0.2.9"]
        names.literals(("c.example:1",))
        await changes.get()
        assert changes.empty()
        assert names.literals(("b.example:7100",)) == ("192.0.2.7:7100",)

    play(story)


def test_only_so_many_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "NAMES_MAX", 2)

    async def story(names: Resolver, server: NameServer, changes: asyncio.Queue[None]) -> None:
        server.hosts = {name: ["192.0.2.7"] for name in "xyz"}
        names.literals(("x:1", "y:1", "z:1"))
        await changes.get()
        assert sorted(server.asked) == ["x", "y"]
        assert names.literals(("z:1",)) == ()

    play(story)


def test_this_hosts_own_name_server_is_asked_in_a_thread() -> None:
    found = asyncio.run(resolver.ask_host("localhost"))
    assert found
    assert all(ipaddress.ip_address(each).is_loopback for each in found)
