"""Every way into the SDK and out of it, in both roles.

An adapter of `sdk.frameworks` is found by its test: `serve(source, authorize)` and
`clients(source, authorize)` of `tests.sdk.frameworks.test_<name>` become doors by themselves.
What has none of them must stand on the relay, whose own doors are here, or in PARTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import pkgutil
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from tests.edge.attack.attacker import Attacker
from tests.fakes.workload import echo, listening, source_of
from tests.sdk.attack.peer import PATIENCE_S, as_client, trap
from tests.sdk.attack.world import World
from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.edge.tls.recipes import Presented
from x0tta6bl4.sdk import frameworks
from x0tta6bl4.sdk.frameworks.relay import Inbound, Outbound
from x0tta6bl4.sdk.identity import X509Source, blocking, dial, stdlib_context
from x0tta6bl4.sdk.identity.authorize import Authorizer
from x0tta6bl4.sdk.identity.connections import Connections
from x0tta6bl4.sdk.identity.tls import register
from x0tta6bl4.wire.errors import Refused

PARTS: Final = {
    "asgi": "what uvicorn and hypercorn tell an application",
    "http2": "frames, of grpcio",
    "moving": "when connections of the relay move",
    "relay": "has doors here",
    "starlette": "served by uvicorn and hypercorn",
}
TESTS: Final = {"asyncio_protocols": "asyncio"}
"""Adapter -> its test, where the names differ."""

Call = Callable[[int], Awaitable[object]]
SAY: Final = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n"


class Opened(msgspec.Struct, frozen=True):
    """A door that is in use."""

    connections: Connections
    """Registry of the victim: what was refused, and what was let in."""
    port: int = 0
    """Where a server listens."""
    call: Call | None = None
    """Lets a client call a port; an application's byte is said at once."""


class Door(msgspec.Struct, frozen=True):
    """One adapter in one role."""

    name: str
    role: str
    """What the victim is: `server` or `client`."""
    open: Callable[[World], AbstractAsyncContextManager[Opened]]
    backend: str = "pyopenssl"
    loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def __str__(self) -> str:
        return f"{self.name}, {self.role}"


class Seen(msgspec.Struct, frozen=True):
    """What came of one meeting."""

    accepted: bool
    """A byte of the application was heard, or the victim has registered the connection."""
    reasons: tuple[str, ...]
    """What the victim says of it: counted, or in the words of its error."""

    def refused_for(self, *wanted: str) -> bool:
        """Whether it was refused, and for one of these."""
        said = [text.rstrip("'\")]} ") for text in self.reasons]
        return not self.accepted and any(
            text == reason or text.endswith(f": {reason}") for text in said for reason in wanted
        )


async def meet(door: Door, opened: Opened, presented: Presented | None, **how: Any) -> Seen:
    """Let an attacker with this certificate meet the victim."""
    registry = opened.connections
    let_in, refused = sum(registry.groups.values()), Counter(registry.refused)
    reasons: list[str] = []
    if opened.call is None:
        heard = await as_client(opened.port, Attacker(False, presented, ("h2", "http/1.1"), **how))
    else:
        async with trap(lambda: Attacker(True, presented, ("*",), **how)) as waiting:
            calling = asyncio.ensure_future(opened.call(waiting.port))  # noqa: TID251
            sprung = asyncio.ensure_future(waiting.sprung.wait())  # noqa: TID251
            async with asyncio.timeout(2 * PATIENCE_S):
                await asyncio.wait({calling, sprung}, return_when=asyncio.FIRST_COMPLETED)
                calling.cancel()
                sprung.cancel()
                for found in await asyncio.gather(calling, sprung, return_exceptions=True):
                    reasons += _words(found)
            heard = waiting.heard
    for _ in range(400):  # A victim in a thread has its own time to say why.
        accepted = bool(heard) or sum(registry.groups.values()) > let_in
        if accepted or reasons or registry.refused != refused:
            break
        await asyncio.sleep(0.005)
    return Seen(accepted, (*(registry.refused - refused), *reasons))


def _words(error: object) -> list[str]:
    """All that an error and its causes say."""
    found: list[str] = []
    while isinstance(error, BaseException) and len(found) < 20:
        details = getattr(error, "details", None)
        found += [str(error), str(details() if callable(details) else ""),
                  str(getattr(error, "what", "")), str(getattr(error, "reason", ""))]  # fmt: skip
        error = error.__cause__ or error.__context__
    return [text for text in found if text]


# ----------------------------------------------------------------------- adapters by their shape
Serve = Callable[[X509Source, Authorizer], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def _server(serve: Serve, world: World) -> AsyncIterator[Opened]:
    async with source_of(world.api) as source, serve(source, world.authorize) as port:
        yield Opened(source.connections, port)


@asynccontextmanager
async def _client(clients: Serve, world: World) -> AsyncIterator[Opened]:
    async with source_of(world.api) as source:

        async def call(port: int) -> None:
            async with clients(source, world.authorize) as client:
                await client.get(port)

        yield Opened(source.connections, call=call)


# ------------------------------------------------------------------------------ the SDK's own
@asynccontextmanager
async def _listen(source: X509Source, authorize: Authorizer) -> AsyncIterator[int]:
    async with listening(source, echo, authorize) as listener:
        yield listener.port


class _Talk:
    """A client of something that makes a pair of streams."""

    def __init__(self, make: Callable[[int], Awaitable[Any]]) -> None:
        self._make = make

    async def get(self, port: int) -> None:
        reader, writer = await self._make(port)
        try:
            writer.write(SAY)
            await writer.drain()
            await reader.read(1)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def _dial(source: X509Source, authorize: Authorizer) -> AsyncIterator[_Talk]:
    yield _Talk(lambda port: dial(f"127.0.0.1:{port}", source, authorize=authorize))


@asynccontextmanager
async def _stdlib_streams(source: X509Source, authorize: Authorizer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(register(writer.transport, source, authorize=authorize).encode() + b"\n")
        await reader.read(1)
        writer.transport.abort()

    context = stdlib_context(source, authorize=authorize)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    await stop_listening(server)


@asynccontextmanager
async def _stdlib_call(source: X509Source, authorize: Authorizer) -> AsyncIterator[_Talk]:
    context = stdlib_context(source, authorize=authorize)

    async def make(port: int) -> Any:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=""
        )
        register(writer.transport, source, authorize=authorize)
        return reader, writer

    yield _Talk(make)


@asynccontextmanager
async def _relay_server(source: X509Source, authorize: Authorizer) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"!")
        writer.close()

    async with Outbound("127.0.0.1:1", source, authorize=authorize) as folder:
        path = f"{folder.folder}/server"
        server = await asyncio.start_unix_server(serve, path)
        async with Inbound("127.0.0.1:0", source, authorize=authorize, server=path) as relay:
            yield relay.port
        await stop_listening(server)


@asynccontextmanager
async def _relay_client(source: X509Source, authorize: Authorizer) -> AsyncIterator[Any]:
    class Client:
        async def get(self, port: int) -> None:
            address = f"127.0.0.1:{port}"
            async with Outbound(address, source, authorize=authorize) as relay:
                reader, writer = await asyncio.open_unix_connection(relay.path)
                try:
                    writer.write(SAY)
                    with contextlib.suppress(ConnectionError):
                        await reader.read(1)
                finally:
                    writer.transport.abort()
                raise Refused("X0-SDK-035", ": ".join(("relay", *relay.refused)))

    yield Client()


# ------------------------------------------------------------------------------- with threads
@contextmanager
def _blocking(world: World) -> Iterator[blocking.X509Source]:
    with blocking.X509Source(world.api.endpoint) as source:
        source.wait(5)
        yield source


@asynccontextmanager
async def _in_threads(
    make: Callable[[World, blocking.X509Source, contextlib.ExitStack], dict[str, Any]], world: World
) -> AsyncIterator[Opened]:
    with contextlib.ExitStack() as stack:
        source = await asyncio.to_thread(stack.enter_context, _blocking(world))
        yield Opened(source.connections, **make(world, source, stack))


def _blocking_listen(world: World, source: Any, stack: contextlib.ExitStack) -> dict[str, Any]:
    def handle(connection: blocking.Connection) -> None:
        connection.write(connection.peer_id.encode() + b"\n")

    made = blocking.listen("127.0.0.1:0", source, handle, authorize=world.authorize)
    return {"port": stack.enter_context(made).port}


def _blocking_dial(world: World, source: Any, stack: contextlib.ExitStack) -> dict[str, Any]:
    def talk(port: int) -> None:
        address = f"127.0.0.1:{port}"
        with blocking.dial(address, source, authorize=world.authorize) as connection:
            connection.write(SAY)
            connection.read(1, PATIENCE_S)

    return {"call": lambda port: asyncio.to_thread(talk, port)}


def _sockets_listen(world: World, source: Any, stack: contextlib.ExitStack) -> dict[str, Any]:
    plain = socket.create_server(("127.0.0.1", 0))
    context = stdlib_context(source.real, authorize=world.authorize)
    tls = context.wrap_socket(plain, server_side=True)

    def serve() -> None:
        while True:
            try:
                connection, _ = tls.accept()
                with connection:
                    connection.sendall(b"!")
            except Refused:
                pass
            except OSError:
                if tls.fileno() < 0 or over.is_set():
                    return

    over = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(tls, socket.SHUT_RDWR)
        thread.join(PATIENCE_S)
        tls.close()
        assert not thread.is_alive()

    stack.callback(end)
    return {"port": tls.getsockname()[1]}


def _sockets_call(world: World, source: Any, stack: contextlib.ExitStack) -> dict[str, Any]:
    context = stdlib_context(source.real, authorize=world.authorize)

    def talk(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
            context.wrap_socket(plain) as tls,
        ):
            tls.sendall(SAY)
            tls.recv(1)

    return {"call": lambda port: asyncio.to_thread(talk, port)}


# ------------------------------------------------------------------------------------ the list
def adapters() -> dict[str, tuple[dict[str, Serve], dict[str, Serve]]]:
    """Adapter -> its servers and its clients, by their names in its test."""
    found: dict[str, tuple[dict[str, Serve], dict[str, Serve]]] = {}
    for module in pkgutil.iter_modules(frameworks.__path__):
        if module.name in PARTS:
            continue
        try:
            test = importlib.import_module(
                f"tests.sdk.frameworks.test_{TESTS.get(module.name, module.name)}"
            )
        except ModuleNotFoundError:
            found[module.name] = {}, {}
            continue
        doors = {
            name: one
            for name, one in vars(test).items()
            if inspect.isasyncgenfunction(getattr(one, "__wrapped__", None))
            and list(inspect.signature(one).parameters)[:2] == ["source", "authorize"]
        }
        found[module.name] = (
            {name: one for name, one in doors.items() if name.endswith(("serve", "serving"))},
            {name: one for name, one in doors.items() if name.endswith("clients")},
        )
    return found


def rides_on_the_relay(adapter: str) -> bool:
    """Whether its connections are those of `frameworks.relay`."""
    text = (Path(frameworks.__path__[0]) / f"{adapter}.py").read_text()
    return "sdk.frameworks.relay import" in text


def _doors() -> Iterator[Door]:
    for loop, name in ((asyncio.new_event_loop, ""), (uvloop.new_event_loop, ", uvloop")):
        yield Door(f"listen{name}", "server", partial(_server, _listen), loop=loop)
        yield Door(f"dial{name}", "client", partial(_client, _dial), loop=loop)
        yield Door(f"stdlib streams{name}", "server", partial(_server, _stdlib_streams), "stdlib",
                   loop)  # fmt: skip
        yield Door(f"stdlib streams{name}", "client", partial(_client, _stdlib_call), "stdlib",
                   loop)  # fmt: skip
    yield Door("blocking", "server", partial(_in_threads, _blocking_listen))
    yield Door("blocking", "client", partial(_in_threads, _blocking_dial))
    yield Door("stdlib sockets", "server", partial(_in_threads, _sockets_listen), "stdlib")
    yield Door("stdlib sockets", "client", partial(_in_threads, _sockets_call), "stdlib")
    yield Door("relay", "server", partial(_server, _relay_server))
    yield Door("relay", "client", partial(_client, _relay_client))
    for adapter, (servers, clients) in adapters().items():
        for serve in servers.values():
            yield Door(adapter, "server", partial(_server, serve))
        for client in clients.values():
            yield Door(adapter, "client", partial(_client, client))


DOORS: Final = tuple(_doors())
