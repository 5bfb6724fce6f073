"""Links between agents over real TLS: keys, collisions, rotation, strangers, expiry."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import pytest

from tests.fakes.ca import FakeCa
from x0tta6bl4.core.identity.rules import NODE
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_LINK, TlsContext
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.aio import links
from x0tta6bl4.runtime.aio.links import NEWS_AT_ONCE, NEWS_EVERY_S, LinkConnections, LinkKeys
from x0tta6bl4.wire import codec
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import LINK_VERSION, Flood, Intro, LinkMessage

FAR = 2**40


class Agent:
    """One end: hears links and notes what it hears."""

    def __init__(self, ca: FakeCa, name: str) -> None:
        self.ca = ca
        self.name = NodeName(name)
        self.svid: Svid = ca.svid(f"node/{name}")
        self.up: list[tuple[NodeName, Intro, LinkKeys]] = []
        self.down: list[tuple[NodeName, str]] = []
        self.said: list[tuple[NodeName, LinkMessage]] = []
        self.heard: list[str] = []
        """`up` and kinds of messages, in their order."""
        self.refused: list[str] = []
        self.changed = asyncio.Event()
        self.wall = float(ca.now_unix_s)
        self.links = LinkConnections(
            self.name, self, SslContext(self._context), SslContext(self._context),
            lambda: self.wall, random.Random(1),
        )  # fmt: skip

    def _context(self) -> TlsContext:
        return TlsContext(self.svid, self.ca.judge(), (ALPN_LINK,), NODE)

    def greet(self, incarnation: int = 1, not_after: float = FAR) -> None:
        self.links.greet(self.intro(incarnation), not_after)

    def intro(self, incarnation: int = 1) -> Intro:
        return Intro(
            LINK_VERSION, self.name, 1, incarnation, (f"{self.name}:1",), 100_000,
            int(self.wall * 1e6),
        )  # fmt: skip

    def link_up(self, node: NodeName, intro: Intro, keys: LinkKeys) -> None:
        self.up.append((node, intro, keys))
        self.heard.append("up")
        self.changed.set()

    def link_down(self, node: NodeName, reason: str) -> None:
        self.down.append((node, reason))
        self.changed.set()

    def link_message(self, node: NodeName, message: LinkMessage) -> None:
        self.said.append((node, message))
        self.heard.append(type(message).__name__)
        self.changed.set()

    def link_refused(self, who: str, reason: str) -> None:
        self.refused.append(f"{who}: {reason}")
        self.changed.set()

    async def until(self, what: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not what():
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def pair(a: Agent, b: Agent, both_dial: bool = False) -> AsyncIterator[None]:
    """`a` dials `b`; with `both_dial`, `b` dials `a` too, through a port taken beforehand."""
    async with contextlib.AsyncExitStack() as stack:
        (port,) = await stack.enter_async_context(b.links.running([("127.0.0.1", 0)], {a.name: ""}))
        (back,) = await stack.enter_async_context(
            a.links.running([("127.0.0.1", 0)], {b.name: f"127.0.0.1:{port}"})
        )
        if both_dial:
            b.links._addresses[a.name] = f"127.0.0.1:{back}"
            b.links._wake[a.name] = asyncio.Event()
            b.links._spawn(b.links._dial_forever(a.name))
        yield


@contextlib.asynccontextmanager
async def linked(
    one: int = 1, other: int = 1, *, both_dial: bool = False
) -> AsyncIterator[tuple[Agent, Agent]]:
    """Two agents that have greeted each other, with proxies of these incarnations."""
    ca = FakeCa()
    a, b = Agent(ca, "a"), Agent(ca, "b")
    a.greet(one)
    b.greet(other)
    async with pair(a, b, both_dial):
        await a.until(lambda: bool(a.up))
        await b.until(lambda: bool(b.up))
        yield a, b


def test_both_ends_hear_the_greeting_and_export_the_same_keys_crosswise() -> None:
    async def story() -> None:
        async with linked(11, 22) as (a, b):
            mine, theirs = a.up[-1][2], b.up[-1][2]
            assert a.up[-1][:2] == ("b", b.intro(22))
            assert (mine.link, mine.tx_hello, mine.tx_setup) == (
                theirs.link, theirs.rx_hello, theirs.rx_setup)  # fmt: skip
            assert (mine.rx_hello, mine.rx_setup) == (theirs.tx_hello, theirs.tx_setup)
            assert len({mine.tx_hello, mine.rx_hello, mine.tx_setup, mine.rx_setup}) == 4
            a.links.send(b.name, Flood((b"record",)))
            await b.until(lambda: bool(b.said))
            assert b.said == [("a", Flood((b"record",)))]

    asyncio.run(story())


def test_what_is_said_at_one_moment_leaves_in_one_piece_and_in_order() -> None:
    async def story() -> None:
        async with linked() as (a, b):
            writer = a.links._up[b.name].writer
            write, pieces = writer.write, list[int]()

            def counted(data: bytes) -> None:
                pieces.append(len(data))
                write(data)

            writer.write = counted  # type: ignore[method-assign, assignment]
            records = [b"record %d" % number for number in range(50)]
            for record in records:
                a.links.send(b.name, Flood((record,)))
            await b.until(lambda: len(b.said) == len(records))
            assert [said[1] for said in b.said] == [Flood((record,)) for record in records]
            assert len(pieces) == 1

    asyncio.run(story())


def test_what_comes_along_with_a_greeting_is_heard_once_the_link_is_up() -> None:
    async def story() -> None:
        ca = FakeCa()
        a, b = Agent(ca, "a"), Agent(ca, "b")
        b.greet()
        async with b.links.running([("127.0.0.1", 0)], {a.name: ""}) as (port,):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=SslContext(a._context), server_hostname=""
            )
            writer.write(codec.encode(a.intro()) + codec.encode(Flood((b"record",))))
            await b.until(lambda: bool(b.said))
            assert b.heard == ["up", "Flood"]
            writer.transport.abort()

    asyncio.run(story())


def test_a_proxy_that_starts_anew_gets_new_keys_over_the_same_connection() -> None:
    async def story() -> None:
        async with linked(11, 22) as (a, b):
            before = a.up[-1][2]
            b.greet(23)
            await a.until(lambda: a.up[-1][1].proxy_incarnation == 23)
            assert a.up[-1][2].tx_hello != before.tx_hello
            assert a.up[-1][2].tx_hello == b.up[-1][2].rx_hello
            assert a.links.counts["dialled"] == 1

    asyncio.run(story())


def test_a_neighbour_that_greets_without_end_is_heard_now_and_then_and_last() -> None:
    async def story() -> None:
        async with linked() as (a, b):
            loop = asyncio.get_running_loop()
            began = loop.time()
            for number in range(2, 600):
                a.greet(number)
            await b.until(lambda: b.up[-1][1].proxy_incarnation == 599)
            most = 2 + NEWS_AT_ONCE + (loop.time() - began) / NEWS_EVERY_S
            assert NEWS_AT_ONCE < len(b.up) <= most

    asyncio.run(story())


def test_a_new_svid_replaces_the_connection_without_a_down() -> None:
    async def story() -> None:
        async with linked() as (a, b):
            for renewed in (a, b):  # The one that dials, and the one that was dialled.
                count = len(a.up), len(b.up)
                renewed.svid = renewed.ca.svid(f"node/{renewed.name}")
                renewed.links.redial()
                await a.until(lambda n=count: len(a.up) > n[0])  # type: ignore[misc]
                await b.until(lambda n=count: len(b.up) > n[1])  # type: ignore[misc]
                assert a.up[-1][2].tx_hello == b.up[-1][2].rx_hello
            await asyncio.sleep(links.OLD_CONNECTION_S + 0.2)
            assert a.down == b.down == []
            a.links.send(b.name, Flood((b"x",)))
            await b.until(lambda: bool(b.said))

    asyncio.run(story())


def test_of_two_connections_dialled_at_once_one_survives_at_both_ends() -> None:
    async def story() -> None:
        async with linked(both_dial=True) as (a, b):
            await asyncio.sleep(links.OLD_CONNECTION_S + 0.3)
            assert a.links.peers() == ["b"]
            assert b.links.peers() == ["a"]
            assert a.up[-1][2].tx_hello == b.up[-1][2].rx_hello
            b.links.send(a.name, Flood((b"y",)))
            await a.until(lambda: bool(a.said))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("node/c", "b dialled, c answered"),
        ("shop", "unexpected peer|not a node"),
        ("authority/one", "not a node"),
    ],
)
def test_whoever_answers_must_be_the_neighbour_that_was_dialled(wrong: str, reason: str) -> None:
    async def story() -> None:
        ca = FakeCa()
        a, b = Agent(ca, "a"), Agent(ca, "b")
        b.svid = ca.svid(wrong)
        a.greet()
        b.greet()
        async with pair(a, b):
            await a.until(lambda: bool(a.refused))
            assert any(part in a.refused[0] for part in reason.split("|")), a.refused
            assert a.up == b.up == []

    asyncio.run(story())


def test_a_stranger_with_a_valid_svid_is_refused() -> None:
    async def story() -> None:
        ca = FakeCa()
        stranger, b = Agent(ca, "mallory"), Agent(ca, "b")
        stranger.greet()
        b.greet()
        async with (
            b.links.running([("127.0.0.1", 0)], {NodeName("a"): ""}) as (port,),
            stranger.links.running([], {b.name: f"127.0.0.1:{port}"}),
        ):
            await b.until(lambda: bool(b.refused))
            assert "mallory is not configured as a neighbour" in b.refused[0]
            assert b.up == stranger.up == []

    asyncio.run(story())


def test_a_clock_that_is_off_is_refused_with_the_difference() -> None:
    async def story() -> None:
        ca = FakeCa()
        a, b = Agent(ca, "a"), Agent(ca, "b")
        b.wall += 45
        a.greet()
        b.greet()
        async with pair(a, b):
            await a.until(lambda: bool(a.refused))
            assert "clock of b differs by 45 s" in a.refused[0]

    asyncio.run(story())


def test_no_connection_outlives_an_svid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ALIVE_EVERY_S", 0.02)

    async def story() -> None:
        ca = FakeCa()
        a, b = Agent(ca, "a"), Agent(ca, "b")
        a.greet()
        b.greet()
        async with pair(a, b):
            await a.until(lambda: bool(a.up))
            a.wall = a.svid.not_after_unix_s - 0.5
            await a.until(lambda: bool(a.down))
            assert a.down[0] == ("b", "expired")

    asyncio.run(story())


def test_a_neighbour_that_says_nothing_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ALIVE_EVERY_S", 0.02)
    monkeypatch.setattr(links, "SILENCE_S", 0.2)

    async def story() -> None:
        ca = FakeCa()
        a, b = Agent(ca, "a"), Agent(ca, "b")
        a.greet()
        b.greet()
        async with pair(a, b):
            await a.until(lambda: bool(a.up))
            monkeypatch.setattr(type(a.links._up[b.name]), "send", lambda *_: True)
            await a.until(lambda: bool(a.down))
            assert a.down[0] == ("b", "silent")

    asyncio.run(story())
