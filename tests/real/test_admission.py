"""How a node gets in, against a real authority: token, key, and those who only play authority."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from x0tta6bl4.app import admission
from x0tta6bl4.app.admission import Admission, Admitted, walk
from x0tta6bl4.app.mesh import Mesh, Plan
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.authority_api.client import AuthorityClient
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import ALPN_AUTHORITY, TlsContext
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.records import decode_bundle, decode_record, encode_record
from x0tta6bl4.wire.token import Token, read_token

DOMAIN = TrustDomain("t.mesh")
T = TypeVar("T")


async def settled(work: Awaitable[T]) -> T:
    """Let the connections close that `work` has left to themselves."""
    try:
        return await work
    finally:
        await asyncio.sleep(0.1)


class House:
    """One authority, and nodes that want in."""

    def __init__(self, root: Path) -> None:
        self.mesh = Mesh(root, Plan(DOMAIN, ("a", "b"), ()))
        self.mesh.lay_out()
        self.mesh.start("authority")
        self.operator = Operator(self.mesh.state("authority"))
        self.mesh.wait("authority", self.operator.is_serving, "the authority")
        self.address = self.mesh.settings("a").authority.address

    def token(self, node: str) -> Token:
        made: words.TokenMade = self.operator.call("TokenCreate", words.TokenCreate(node=node))
        return read_token(made.token)

    def admit(self, node: str, wallet: Wallet, token: Token | None, where: str = "") -> Admitted:
        way = Admission(
            DOMAIN, NodeName(node), wallet, [where or self.address], [], self.mesh.state(node)
        )
        return asyncio.run(settled(way.admit(token)))

    def trust(self, held: bytes) -> words.TrustReply:
        async def ask() -> words.TrustReply:
            tls = TlsContext(None, admission.Unjudged(), (ALPN_AUTHORITY,), ANYBODY)
            async with AuthorityClient(self.address, SslContext(tls), unix_us) as client:
                return await client.trust(held)

        return asyncio.run(settled(ask()))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        made = House(Path(name))
        yield made
        made.mesh.stop()


def test_a_token_enrols_once_and_the_key_comes_back_without_it(
    house: House, tmp_path: Path
) -> None:
    token = house.token("a")
    wallet = Wallet(tmp_path / "a")
    first = house.admit("a", wallet, token)
    assert (first.how, first.svid.id) == ("enrolled", "spiffe://t.mesh/node/a")
    assert decode_bundle(first.bundle).trust_domain == DOMAIN
    assert house.admit("a", Wallet(tmp_path / "a"), None).how == "kept"

    wallet.svid = None  # Away for longer than an SVID lives.
    assert house.admit("a", wallet, None).how == "attested"

    thief = Wallet(tmp_path / "thief")
    with pytest.raises(Refused, match="X0-AUT-"):
        house.admit("a", thief, token)
    assert thief.svid is None


def test_a_node_that_was_never_enrolled_is_told_what_to_do(house: House, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="X0-RUN-030: b has not been enrolled. make a token"):
        house.admit("b", Wallet(tmp_path / "b"), None)


def test_an_evicted_node_does_not_come_back(house: House, tmp_path: Path) -> None:
    wallet = Wallet(tmp_path / "b")
    house.admit("b", wallet, house.token("b"))
    house.operator.call("NodeEvict", words.NodeEvict(node="b"))
    wallet.svid = None
    with pytest.raises(X0Error, match="evicted|banned"):
        house.admit("b", wallet, None)


def test_a_second_address_is_tried_and_none_at_all_is_unavailable(
    house: House, tmp_path: Path
) -> None:
    token = house.token("c")
    lost = msgspec.structs.replace(token, authorities=("127.0.0.1:2",))
    with pytest.raises(Unavailable, match="X0-AUT-"):
        house.admit("c", Wallet(tmp_path / "c"), lost, "127.0.0.1:1")
    assert house.admit("c", Wallet(tmp_path / "c"), token, "127.0.0.1:1").how == "enrolled"


def test_another_authority_cannot_answer_for_the_one_in_the_token(
    house: House, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        other = House(Path(name))
        try:
            wallet = Wallet(tmp_path / "d")
            with pytest.raises(X0Error, match=r"X0-(RUN-033|AUT-|TRU)"):
                house.admit("d", wallet, house.token("d"), other.address)
            assert wallet.svid is None
            reply = other.trust(other.token("d").bundle_sha256)
            with pytest.raises(Refused, match="X0-RUN-033"):
                walk(reply, house.token("d").bundle_sha256)
        finally:
            other.mesh.stop()


def test_the_way_to_a_newer_bundle_is_signed_step_by_step(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = house.token("e").bundle_sha256
    house.operator.call("BundleRotate", words.BundleRotate(step="prepare"))
    reply = house.trust(held)
    assert len(reply.steps) >= 1
    newest = decode_bundle(walk(reply, held))
    assert newest.sequence > decode_bundle(reply.first).sequence
    assert len(newest.anchors) == 2

    def with_record(**changes: object) -> words.TrustReply:
        record = msgspec.structs.replace(decode_record(reply.steps[-1][0]), **changes)
        steps = (*reply.steps[:-1], (encode_record(record), *reply.steps[-1][1:]))
        return msgspec.structs.replace(reply, steps=steps)

    for forged in (
        with_record(generation=2**40),
        with_record(signature=b"\x30\x06\x02\x01\x01\x02\x01\x01"),
        with_record(signer=(b"somebody",)),
        with_record(signer=()),
        msgspec.structs.replace(reply, steps=(*reply.steps, reply.steps[-1])),
        msgspec.structs.replace(reply, steps=((),)),
    ):
        with pytest.raises(Refused, match="X0-RUN-034: a bundle is not signed"):
            walk(forged, held)
    with pytest.raises(Refused, match="X0-RUN-033"):
        walk(reply, hashlib.sha256(b"another").digest())
    monkeypatch.setattr(admission, "unix_us", lambda: 2**53)
    with pytest.raises(Refused, match="X0-RUN-035: the newest bundle of the authority has expired"):
        walk(reply, held)
