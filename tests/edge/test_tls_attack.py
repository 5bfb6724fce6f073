"""The attack set against the real engine and the real asyncio adapter: nothing gets through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tests.edge.attack import cases
from tests.edge.attack.__main__ import main
from tests.edge.attack.attacker import Attacker
from tests.edge.attack.cases import ROLES, SECRET, Outcome
from tests.fakes.ca import ALPN, FakeCa
from x0tta6bl4.core.identity.rules import WORKLOAD
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import TlsRefused
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor
from x0tta6bl4.edge.tls.recipes import Presented

each_impostor = pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda i: i.name)
each_role = pytest.mark.parametrize("role", ROLES)


@pytest.fixture(scope="module")
def ca() -> FakeCa:
    return FakeCa()


def test_the_list_is_long_and_its_names_are_its_own() -> None:
    assert len({impostor.name for impostor in IMPOSTORS}) == len(IMPOSTORS) >= 60
    assert sum(impostor.presentable for impostor in IMPOSTORS) >= 60


@each_impostor
def test_the_judge_refuses_an_impostor_and_allows_its_twin(ca: FakeCa, impostor: Impostor) -> None:
    judge = ca.judge()
    wrong = impostor.make(ca.issuer, ca.now_unix_s)
    assert judge.judge(wrong.chain, impostor.expect).verdict == Denied(impostor.reason)
    right = impostor.twin(ca.issuer, ca.now_unix_s)
    assert type(judge.judge(right.chain, impostor.expect).verdict) is Allowed
    assert judge.judge(wrong.chain, impostor.expect).verdict == Denied(impostor.reason)


@each_role
@each_impostor
def test_an_impostor_is_refused_in_the_handshake(ca: FakeCa, impostor: Impostor, role: str) -> None:
    outcome = cases.present(ca, impostor, role)
    assert not outcome.accepted
    assert outcome.reason in outcome.wanted
    assert cases.present(ca, impostor, role, right=True).accepted


@each_role
@pytest.mark.parametrize("attack", cases.PROTOCOL, ids=lambda a: a.__name__)
def test_a_trick_of_protocol_is_refused(
    ca: FakeCa, attack: Callable[[FakeCa, str], Outcome], role: str
) -> None:
    outcome = attack(ca, role)
    assert outcome.right, outcome


@each_role
def test_a_valid_peer_gets_through(ca: FakeCa, role: str) -> None:
    attacker = Attacker(role == "server", cases.good(ca))
    outcome = cases.meet(cases.victim(ca, role, WORKLOAD), attacker, role, "valid", ())
    assert outcome.accepted
    assert outcome.reason == ""
    assert cases.carry(ca, role, None)[0].reason == "ignored by TLS"


def test_the_ticket_of_the_resumption_attack_is_good_elsewhere(ca: FakeCa) -> None:
    """Control: a server that keeps sessions would have let it in without judging it again."""
    first = Attacker(True, cases.good(ca)), Attacker(False, cases.good(ca))
    meet(*first)
    assert not first[1].resumed
    second = Attacker(True, None, like=first[0]), Attacker(False, None, like=first[1])
    meet(*second)
    assert second[1].complete
    assert second[1].resumed


def meet(server: Attacker, client: Attacker) -> None:
    buffer = bytearray(1 << 18)
    for _ in range(4):
        client.shake()
        server.feed(memoryview(buffer)[: client.take(buffer)])
        server.shake()
        client.feed(memoryview(buffer)[: server.take(buffer)])
        client.read()


@each_role
@pytest.mark.parametrize("attack", [cases.garbage, cases.truncated, cases.flipped])
def test_changed_bytes_never_get_through(
    ca: FakeCa, attack: Callable[[FakeCa, str], Any], role: str
) -> None:
    outcomes = list(attack(ca, role))
    assert len(outcomes) >= 15
    assert [outcome for outcome in outcomes if outcome.accepted] == []


@each_role
def test_a_connection_can_not_be_replayed(ca: FakeCa, role: str) -> None:
    assert not cases.replayed(ca, role).accepted


def test_the_command_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tried"] > 300
    assert found["accepted"] == 0
    assert found["refused_for_another_reason"] == []
    assert found["twins_tried"] == 2 * len(IMPOSTORS)
    assert found["twins_refused"] == []
    assert sum(found["reasons"].values()) == found["tried"]


# ---------------------------------------------------------------------------------------- asyncio
async def pump(
    attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    """Drive an attacker over a socket until either end has had enough; what it could read."""
    buffer, leaked = bytearray(1 << 17), b""
    try:
        data = b""
        while True:
            attacker.feed(data)
            if attacker.shake():
                attacker.write(SECRET)
                leaked += attacker.read()
            while n := attacker.take(buffer):
                writer.write(buffer[:n])
            await writer.drain()
            if attacker.dead:
                break
            data = await reader.read(1 << 16)
            if not data:
                break
    except ConnectionError:
        pass
    writer.close()
    return leaked


async def at_a_server(ca: FakeCa, impostor: Impostor, presented: Presented) -> tuple[str, bytes]:
    """What a server that is attacked says, and what got through in either direction."""
    reasons: list[str] = []
    through = bytearray()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SECRET)
        through.extend(await reader.read(100))
        writer.close()

    context = TlsContext(ca.svid("web"), ca.judge(), [ALPN], impostor.expect)
    server = await asyncio.start_server(
        handler, "127.0.0.1", 0, ssl=SslContext(context, reasons.append)
    )
    port = server.sockets[0].getsockname()[1]
    leaked = await pump(
        Attacker(False, presented), *await asyncio.open_connection("127.0.0.1", port)
    )
    server.close()
    await server.wait_closed()
    return (reasons or [""])[0], bytes(through) + leaked


async def at_a_client(ca: FakeCa, impostor: Impostor, presented: Presented) -> tuple[str, bytes]:
    """What a client that is attacked says, and what got through in either direction."""
    leaked: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        leaked.put_nowait(await pump(Attacker(True, presented), reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    context = TlsContext(ca.svid("web"), ca.judge(), [ALPN], impostor.expect)
    reason, through = "", b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=SslContext(context))
        writer.write(SECRET)
        through = await reader.read(100)
        writer.close()
    except TlsRefused as refused:
        reason = refused.reason
    through += await leaked.get()
    server.close()
    await server.wait_closed()
    return reason, through


@pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
@pytest.mark.parametrize("attacked", [at_a_server, at_a_client])
def test_the_same_impostors_over_sockets(ca: FakeCa, attacked: Any, loop: Any) -> None:
    async def story() -> None:
        async with asyncio.timeout(30):
            for impostor in IMPOSTORS:
                presented = impostor.make(ca.issuer, ca.now_unix_s)
                reason, through = await attacked(ca, impostor, presented)
                assert through == b"", impostor.name
                assert reason == impostor.reason or not impostor.presentable, impostor.name
                assert reason, impostor.name
            for impostor in IMPOSTORS[::10]:
                presented = impostor.twin(ca.issuer, ca.now_unix_s)
                reason, through = await attacked(ca, impostor, presented)
                assert reason == ""
                assert through == SECRET * 2, impostor.name

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())
