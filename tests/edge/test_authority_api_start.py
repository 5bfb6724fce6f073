"""The authority starting and stopping in one process, and the codec of its API."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.fakes.authority_world import (
    World,
    play,
    refusal,
    settings,
)
from x0tta6bl4.app.admission import Unjudged
from x0tta6bl4.app.authority import ADMIN_SOCKET, AuthorityProcess
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.authority_api.client import AdminClient, AuthorityClient
from x0tta6bl4.edge.authority_api.codec import Codec, from_grpc, to_grpc
from x0tta6bl4.edge.authority_api.server import bind_tcp
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire import errors
from x0tta6bl4.wire.errors import BadConfig, BadMessage, Conflict, Refused, Unavailable, X0Error


# ------------------------------------------------------------------ starting
def test_it_starts_again_with_all_it_had(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        me = await here.enrol("alpha")
        entry = await here.entry("alpha")
        kept.append((me, entry, (await here.admin.bundle_show()).sha256))

    async def after(here: World) -> None:
        me, entry, sha256 = kept[0]
        assert (await here.admin.bundle_show()).sha256 == sha256
        async with here.client(me) as connection:
            assert (await anext(connection.watch())).entries == (entry,)

    kept: list[Any] = []
    play(tmp_path, story)
    play(tmp_path, after)
    assert not (tmp_path / "authority" / ADMIN_SOCKET).exists()


@pytest.mark.logs_errors
def test_a_part_that_fails_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(federations: object, unix_s: int) -> object:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("x0tta6bl4.app.federation.due", broken)

    async def story() -> None:
        async with asyncio.timeout(10):
            await AuthorityProcess(settings(tmp_path)).run()

    asyncio.run(story())


def test_a_taken_port_and_a_running_authority_are_named(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        with pytest.raises(Conflict, match="X0-STO-003"):
            AuthorityProcess(settings(tmp_path))
        (tmp_path / "b").mkdir(mode=0o700)
        taken = AuthorityProcess(settings(tmp_path / "b", listen=here.address))
        with pytest.raises(Conflict, match="X0-AUT-088.*taken"):
            await taken.run()
        # What it had was given back.
        free = AuthorityProcess(settings(tmp_path / "b"))
        async with free.serving():
            pass

    play(tmp_path, story)


def test_an_address_of_nobody_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        process = AuthorityProcess(settings(tmp_path, listen="192.0.2.1:0"))
        with pytest.raises(BadConfig, match="X0-AUT-090"):
            await process.run()

    asyncio.run(run())


def test_settings_of_another_trust_domain_are_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with AuthorityProcess(settings(tmp_path)).serving():
            pass
        with pytest.raises(Conflict, match="X0-AUT-100"):
            AuthorityProcess(settings(tmp_path, trust_domain="other.org"))

    asyncio.run(run())


def test_something_in_the_way_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "authority").mkdir(mode=0o700)
        (tmp_path / "authority" / ADMIN_SOCKET).write_text("mine")
        with pytest.raises(BadConfig, match="X0-RUN-002"):
            await AuthorityProcess(settings(tmp_path)).run()
        assert (tmp_path / "authority" / ADMIN_SOCKET).read_text() == "mine"

    asyncio.run(run())


def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    async def run() -> None:
        async with AdminClient(str(tmp_path / "none.sock")) as admin:
            assert (await refusal(admin.health())).id == "X0-AUT-007"
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            unjudged = SslContext(TlsContext(None, Unjudged(), (ALPN_AUTHORITY,), ANYBODY))
            async with AuthorityClient(address, unjudged, unix_us, 0.2) as nobody:
                assert (await refusal(nobody.challenge())).id == "X0-AUT-006"

    asyncio.run(run())


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(BadConfig, match="X0-AUT-090"):
        bind_tcp("localhost.invalid", 1)


# ------------------------------------------------------------------ codec
@pytest.mark.parametrize("kind", [BadConfig, Refused, errors.NotFound, Conflict, Unavailable])
def test_errors_keep_id_sentence_and_hint_on_the_way(kind: type[X0Error]) -> None:
    error = kind("X0-AUT-999", "what: is\nwrong", "do that")
    back = from_grpc(to_grpc(error))
    assert (back.id, back.what, back.hint) == ("X0-AUT-999", "what: is wrong", "do that")
    assert isinstance(error, type(back))


def test_foreign_errors_are_unavailable() -> None:
    assert type(from_grpc(GRPCError(Status.INTERNAL, "x"))) is Unavailable
    assert type(from_grpc(GRPCError(Status.UNKNOWN))) is Unavailable


def test_the_codec_decodes_what_it_encodes_and_nothing_else() -> None:
    codec = Codec(1000)
    key = words.Key("x")
    assert codec.decode(codec.encode(key, words.Key), words.Key) == key
    for bad in (b"", b"\xc1", codec.encode(words.Page(), words.Page)[:0] + b"\x81\xa1x\x01"):
        with pytest.raises(BadMessage, match="X0-AUT-003"):
            codec.decode(bad, words.Key)
    with pytest.raises(BadMessage, match="X0-AUT-002"):
        codec.decode(bytes(1001), words.Key)
