"""K10: known answers of ML-KEM-768 and ML-DSA-65 from the cryptography library in use.

Vectors with their provenance: `tests/vectors`.  And `require_pq`, wherever our processes listen and
dial: a classical key exchange is refused, a hybrid one with the same everything else is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from tests.edge.test_tls_engine import refusals
from tests.fakes.authority_world import World, play
from tests.fakes.ca import DOMAIN, FakeCa, FakeClock
from x0tta6bl4.app.admission import Admission, Unjudged
from x0tta6bl4.app.proxy import Contexts
from x0tta6bl4.app.trust import Trusts
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.tls.aio import SslContext
from x0tta6bl4.edge.tls.context import (
    ALPN_AUTHORITY,
    ALPN_CIRCUIT,
    ALPN_LINK,
    GROUPS,
    GROUPS_PQ,
    TlsContext,
)
from x0tta6bl4.edge.tls.engine import Engine, TlsRefused
from x0tta6bl4.runtime.clocks import unix_us

VECTORS = Path(__file__).parent.parent / "vectors"

Answers = dict[str, bytes]


def known(name: str) -> list[Answers]:
    """Blocks of `key = hex` lines, each after its `count`."""
    found: list[Answers] = []
    for line in (VECTORS / name).read_text().splitlines():
        key, _, value = line.partition(" = ")
        if key == "count":
            found.append({})
        elif value and not line.startswith("#"):
            found[-1][key] = bytes.fromhex(value)
    assert len(found) == 4
    return found


@pytest.mark.parametrize("answers", known("ml_kem_768.rsp"))
def test_K10_ml_kem_768_gives_the_published_secrets(answers: Answers) -> None:
    key = MLKEM768PrivateKey.from_seed_bytes(answers["d"] + answers["z"])
    assert key.public_key().public_bytes_raw() == answers["pk"]
    assert key.decapsulate(answers["ct"]) == answers["ss"]
    assert key.decapsulate(answers["ct_n"]) == answers["ss_n"]  # Rejected, and nobody is told.
    secret, text = MLKEM768PublicKey.from_public_bytes(answers["pk"]).encapsulate()
    assert key.decapsulate(text) == secret


@pytest.mark.parametrize("answers", known("ml_dsa_65.rsp"))
def test_K10_ml_dsa_65_verifies_the_published_signatures_and_no_others(answers: Answers) -> None:
    key = MLDSA65PrivateKey.from_seed_bytes(answers["xi"])
    public = MLDSA65PublicKey.from_public_bytes(answers["pk"])
    assert key.public_key() == public
    message, context = answers["msg"], answers["ctx"]
    signature = answers["sm"][: -len(message)]
    public.verify(signature, message, context)
    public.verify(key.sign(message, context), message, context)
    for bad in (
        (signature[:-1] + bytes((signature[-1] ^ 1,)), message, context),
        (signature, message + b"\0", context),
        (signature, message, context + b"\0"),
    ):
        with pytest.raises(InvalidSignature):
            public.verify(*bad)


# ------------------------------------------------------------------ require_pq
CLASSICAL = ("X25519",)


@pytest.fixture(scope="module")
def ca() -> FakeCa:
    return FakeCa(clock=FakeClock(unix_us() / 1e6))


def links(ca: FakeCa, require_pq: bool) -> TlsContext:
    trusts = Trusts(DOMAIN, require_pq)
    trusts.believe([ca.issuer.certificate])
    trusts.present(ca.svid("node/a"))
    return trusts._context(ALPN_LINK)


def circuits(ca: FakeCa, require_pq: bool) -> TlsContext:
    contexts = Contexts(require_pq, ca.clock)
    return TlsContext(ca.svid("web"), ca.judge(), (ALPN_CIRCUIT,), ANYBODY, contexts._groups)


@pytest.mark.parametrize(("of", "path", "alpn"), [
    (links, "node/b", ALPN_LINK), (circuits, "db", ALPN_CIRCUIT),
])  # fmt: skip
def test_K10_links_and_circuits_refuse_a_classical_key_exchange_where_asked(
    ca: FakeCa, of: Callable[[FakeCa, bool], TlsContext], path: str, alpn: str
) -> None:
    for groups, require_pq, both in (
        (CLASSICAL, True, "no common group"),
        (CLASSICAL, False, ""),
        (GROUPS, True, ""),
    ):
        other = ca.context(path, alpn=alpn, groups=groups)
        ours = of(ca, require_pq)
        _, reason = refusals(Engine(other, False), Engine(ours, True))
        assert reason == both
        reason, there = refusals(Engine(ours, False), Engine(other, True))
        assert bool(reason) == bool(both) == bool(there)


def test_K10_an_authority_refuses_a_classical_key_exchange_where_asked(tmp_path: Path) -> None:
    async def group(here: World, groups: tuple[str, ...]) -> str:
        context = TlsContext(None, Unjudged(), (ALPN_AUTHORITY,), ANYBODY, groups)
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", here.process.port, ssl=SslContext(context), server_hostname=""
            )
        except (OSError, TlsRefused):
            return "refused"
        found: str = writer.get_extra_info("ssl_object").group
        writer.transport.abort()
        return found

    async def strict(here: World) -> None:
        assert await group(here, CLASSICAL) == "refused"
        assert here.process.statistics()["handshakes_refused|no common group"] == 1
        assert await group(here, GROUPS_PQ) == "X25519MLKEM768"
        await here.enrol("alpha")

    async def open_to_all(here: World) -> None:
        assert await group(here, CLASSICAL) == "X25519"

    play(tmp_path / "a", strict, require_pq=True)
    play(tmp_path / "b", open_to_all)


def test_K10_a_node_enrols_over_no_classical_key_exchange_where_asked(tmp_path: Path) -> None:
    async def story(here: World) -> None:
        context = here.process._tls()
        here.process._context = TlsContext(
            context.svid, context.judge, (ALPN_AUTHORITY,), context.expect, CLASSICAL, demand=False
        )
        for require_pq in (True, False):
            name = f"n{require_pq:d}"
            admission = Admission(
                here.process._domain, name, Wallet(tmp_path / name), (here.address,), (),  # type: ignore[arg-type]
                tmp_path, require_pq,
            )  # fmt: skip
            token = await here.token(name)
            if require_pq:
                with pytest.raises(TlsRefused):
                    await admission.admit(token)
            else:
                assert (await admission.admit(token)).how == "enrolled"

    play(tmp_path, story)
