"""Our SDK and those of others on the wire: both roles, both of our backends, under one agent.

Each meeting: both prove their IDs and name the key exchange, bytes go there and back, both rotate
while connected and show the new SVIDs at the next connection, and each refuses a wrong ID.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cryptography import x509

from tests.interop.others import go, python
from tests.real.test_workload_api import DOMAIN, Node, entry
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.sdk.identity import (
    Connection,
    X509Source,
    dial,
    exact,
    listen,
    register,
    stdlib_context,
)
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.errors import Refused

pytestmark = [pytest.mark.night, pytest.mark.timeout(400)]
OURS, THEIRS, ELSE = (f"spiffe://{DOMAIN}/{name}" for name in ("ours", "theirs", "else"))
PEERS: Final = Path(__file__).parent / "peers"
PATIENCE_S: Final = 30.0
HYBRID: Final = "X25519MLKEM768"
STDLIB_GROUP: Final = HYBRID if ssl.OPENSSL_VERSION_INFO >= (3, 5) else "X25519"
"""What the standard library's OpenSSL can, at best."""
REFUSALS: Final = {
    "go": f'unexpected ID "{ELSE}"'.replace(ELSE, "{}"),
    "spiffe-tls": "certificate verify failed",
    "spiffe-defakto": "unexpected peer {}",
}
"""How they say that they don't want an ID."""


NEVER_ROTATES: Final = {"spiffe-tls"}
"""Listeners of theirs keep the SVID that they were opened with (0.4.0: pyOpenSSL lets nobody change
a context in use).  Who learns it has to leave this list."""


class Met(NamedTuple):
    """What one end says of the other."""

    peer: str
    group: str
    serial: int


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# ---------------------------------------------------------------------------------------- theirs
class Theirs:
    """A program of theirs: told what to do, it says what happens."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.lines: list[str] = []

    async def tell(self, *words: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        await self._child.stdin.drain()

    async def hear(self, *kinds: str) -> tuple[str, str]:
        """The next line of one of these kinds, as kind and the rest."""
        assert self._child.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while line := (await self._child.stdout.readline()).decode():
                    self.lines.append(line.strip())
                    kind, _, rest = line.strip().partition(" ")
                    if kind in kinds:
                        return kind, rest
        except TimeoutError:
            pass
        raise AssertionError(f"waiting for {kinds}; it said {self.lines}")

    async def met(self) -> Met:
        _, rest = await self.hear("met")
        peer, group, serial = rest.split()
        return Met(peer, _known(group), int(serial))

    async def ask(self, *words: object) -> tuple[str, str]:
        await self.tell(*words)
        return await self.hear("met", "heard", "refused")


@asynccontextmanager
async def running(command: list[str], socket: str) -> AsyncIterator[Theirs]:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{socket}", "X0_ID": THEIRS},
    )  # fmt: skip
    try:
        made = Theirs(child)
        await made.hear("ready")
        yield made
    finally:
        child.kill()
        await child.communicate()


# ------------------------------------------------------------------------------------------ ours
class Served(NamedTuple):
    """A listener of ours."""

    port: int
    met: list[Met]
    refused: Mapping[str, int]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)


class Native:
    """`listen` and `dial`: OpenSSL, by cffi."""

    group = HYBRID

    def __init__(self, source: X509Source) -> None:
        self.source = source

    @asynccontextmanager
    async def serving(self, whom: str) -> AsyncIterator[Served]:
        met: list[Met] = []

        async def serve(connection: Connection) -> None:
            met.append(_met(connection))
            await _echo(connection.reader, connection.writer)

        made = await listen("127.0.0.1:0", self.source, serve, authorize=exact(whom), id=OURS)
        async with made as listener:
            yield Served(listener.port, met, listener.refused)

    async def dial(self, port: str, whom: str) -> tuple[Met, Streams]:
        made = await dial(f"127.0.0.1:{port}", self.source, authorize=exact(whom), id=OURS)
        return _met(made), (made.reader, made.writer)


class Stdlib:
    """The `ssl` of the standard library, judged by us."""

    group = STDLIB_GROUP

    def __init__(self, source: X509Source) -> None:
        self.source = source

    @asynccontextmanager
    async def serving(self, whom: str) -> AsyncIterator[Served]:
        met: list[Met] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                met.append(self._met(writer, whom))
                await _echo(reader, writer)
            except (OSError, Refused):
                pass  # It left without a word.
            finally:
                writer.transport.abort()

        self.source.connections.refused.clear()  # Those of all listeners are counted there.
        context = stdlib_context(self.source, authorize=exact(whom), id=OURS)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        try:
            yield Served(server.sockets[0].getsockname()[1], met, self.source.connections.refused)
        finally:
            await stop_listening(server)

    async def dial(self, port: str, whom: str) -> tuple[Met, Streams]:
        context = stdlib_context(self.source, authorize=exact(whom), id=OURS)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(port), ssl=context, server_hostname=""
        )
        return self._met(writer, whom), (reader, writer)

    def _met(self, writer: asyncio.StreamWriter, whom: str) -> Met:
        peer = register(writer.transport, self.source, authorize=exact(whom))
        tls = writer.get_extra_info("ssl_object")
        return Met(peer, tls.group or "unknown", _serial(tls.peer_chain[0]))


def _met(connection: Connection) -> Met:
    return Met(connection.peer_id, connection.group, _serial(connection.peer_chain[0]))


def _serial(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def _known(group: str) -> str:
    """OpenSSL says `x25519`, Go `X25519`."""
    return group.upper() if group.startswith("x") else group


# ------------------------------------------------------------------------------------- the story
@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="x0wi"))
    made = Node(root)
    try:
        made.start()
        made.operator.create_entries([entry("ours"), entry("theirs")])
        yield made
    finally:
        made.mesh.stop()
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Kind -> how it is started; made once."""
    made: dict[str, list[str]] = {}

    def command(kind: str) -> list[str]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            if kind == "go":
                made[kind] = [go(root, "./wire")]
            elif kind == "spiffe-tls":
                made[kind] = [python(root, "spiffe", kind), str(PEERS / "tls_of_spiffe.py")]
            else:
                made[kind] = [python(root, kind), str(PEERS / "tls_of_defakto.py")]
        return made[kind]

    return command


class Meeting:
    """Ours and theirs, with identities of the same agent."""

    def __init__(self, node: Node, kind: str, ours: Native | Stdlib, theirs: Theirs) -> None:
        self.node, self.kind, self.ours, self.theirs = node, kind, ours, theirs
        both_can = HYBRID if kind != "spiffe-defakto" else STDLIB_GROUP
        self.group = both_can if ours.group == HYBRID else ours.group

    def serial(self, id: str) -> int:
        return _serial(self.ours.source.current(id).chain[0])

    def check(self, by_us: Met, by_them: Met) -> None:
        """Each has seen the other; all that can tell the key exchange tell the right one."""
        assert (by_us.peer, by_them.peer) == (THEIRS, OURS)
        if isinstance(self.ours, Native):
            assert by_us.group == self.group
        if self.kind != "spiffe-defakto":
            assert by_them.group == self.group

    async def rotate(self) -> None:
        """Both have new SVIDs, as far as our source knows."""
        before = {id: self.serial(id) for id in (OURS, THEIRS)}
        for id in before:
            with AdminClient(self.node.mesh.state("n1")) as desk:
                desk.ask(admin.Renew(id=id), admin.Fine)
        async with asyncio.timeout(PATIENCE_S):
            while any(self.serial(id) == serial for id, serial in before.items()):
                await self.ours.source.changed(self.ours.source.version, PATIENCE_S)

    async def until_new(self, meet: Callable[[], Awaitable[tuple[Met, Met]]]) -> None:
        """Theirs hears of the rotation in its own time; ours has."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                by_us, by_them = await meet()
                self.check(by_us, by_them)
                assert by_them.serial == self.serial(OURS)
                if by_us.serial == self.serial(THEIRS):
                    return

    def refuses(self, words: str, id: str) -> bool:
        """Whether these words of theirs are about an ID that is not wanted."""
        return REFUSALS[self.kind].format(id) in words


async def we_serve(m: Meeting) -> None:
    async with m.ours.serving(THEIRS) as served:

        async def meet() -> tuple[Met, Met]:
            await m.theirs.tell("dial", served.port, OURS)
            by_them = await m.theirs.met()
            assert await m.theirs.ask("say", "one") == ("heard", "one")
            return served.met[-1], by_them

        m.check(*await meet())
        await m.rotate()
        assert await m.theirs.ask("say", "two") == ("heard", "two")
        await m.theirs.tell("hang")
        await m.until_new(meet)
        assert served.refused == {}
        kind, words = await m.theirs.ask("dial", served.port, ELSE)
        assert kind == "refused"
        assert m.refuses(words, OURS), words
    async with m.ours.serving(ELSE) as served:
        # In TLS 1.3 a client is done before the server has judged it.
        kind, _ = await m.theirs.ask("dial", served.port, OURS)
        if kind == "met":
            kind, _ = await m.theirs.ask("say", "three")
        assert kind == "refused"
        assert served.met == []
        assert served.refused == {"unexpected peer": 1}


async def they_serve(m: Meeting) -> None:
    await m.theirs.tell("serve", OURS)
    _, port = await m.theirs.hear("port")
    by_us, first = await m.ours.dial(port, THEIRS)
    await talk(*first)
    m.check(by_us, await m.theirs.met())
    await m.rotate()
    await talk(*first)

    async def meet() -> tuple[Met, Met]:
        by_us, streams = await m.ours.dial(port, THEIRS)
        await talk(*streams)
        streams[1].close()
        return by_us, await m.theirs.met()

    if m.kind in NEVER_ROTATES:
        old, _ = await meet()
        assert old.serial == by_us.serial != m.serial(THEIRS)
        await m.theirs.tell("serve", OURS)  # From here on with the new one.
        _, port = await m.theirs.hear("port")
    await m.until_new(meet)
    first[1].close()
    with pytest.raises(Refused) as refused:
        await m.ours.dial(port, ELSE)
    assert "unexpected peer" in str(refused.value)
    await m.theirs.tell("serve", ELSE)
    _, port = await m.theirs.hear("port")
    with pytest.raises((OSError, EOFError, Refused)):  # Some say it in their handshake.
        await talk(*(await m.ours.dial(port, THEIRS))[1])
    while not m.refuses(words := (await m.theirs.hear("refused"))[1], OURS):
        assert words  # What it says of our refusal came first.


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Have a line repeated; hang up if it is not."""
    try:
        writer.write(b"hello\n")
        async with asyncio.timeout(PATIENCE_S):
            if await reader.readline() != b"hello\n":
                raise EOFError
    except BaseException:
        writer.transport.abort()
        raise


@pytest.mark.parametrize("story", [we_serve, they_serve], ids=["we serve", "they serve"])
@pytest.mark.parametrize("backend", [Native, Stdlib], ids=["native", "stdlib"])
@pytest.mark.parametrize("kind", ["go", "spiffe-tls", "spiffe-defakto"])
def test_SP_032_our_tls_and_theirs_agree_on_the_wire_client(
    node: Node,
    commands: Callable[[str], list[str]],
    kind: str,
    backend: type[Native | Stdlib],
    story: Callable[[Meeting], Awaitable[None]],
) -> None:
    async def main() -> None:
        async with X509Source(f"unix://{node.socket}") as source:
            async with asyncio.timeout(PATIENCE_S):
                await source.wait()
                while len(source.svids) < 2:
                    await source.changed(source.version, PATIENCE_S)
            async with running(commands(kind), node.socket) as theirs:
                await story(Meeting(node, kind, backend(source), theirs))

    asyncio.run(main())
