"""B4: servers staple what their CA says of them, and who dials believes the CA and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from tests.fakes.ca import DOMAIN, FakeClock, new_svid
from tests.fakes.workload import hold, listening, to
from tests.fakes.workload_directory import Told, socket_path
from x0tta6bl4.core.identity.rules import SPIFFE
from x0tta6bl4.core.machine import SECOND, Denied
from x0tta6bl4.edge.attest.peer import PeerAttestor
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.judge import Judge, Judges, allow_all
from x0tta6bl4.edge.tls.ocsp import ANSWER_S, OcspCache, Responder
from x0tta6bl4.edge.workload_api.server import WorkloadServer
from x0tta6bl4.edge.workload_api.words import Svid as Given
from x0tta6bl4.edge.workload_api.words import TrustBundle
from x0tta6bl4.sdk.identity import X509Source, anyone, dial
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.ocsp import LEFT_S_MIN, REPEAT_S, Staples
from x0tta6bl4.wire.errors import Refused, Unavailable
from x0tta6bl4.wire.ids import SpiffeId

NOW = 1_800_000_000
URL = "http://ocsp.mesh.test/"
KEY = x509.new_key()
ISSUER = x509.Issuer(DOMAIN, KEY, x509.new_anchor(DOMAIN, NOW, key=KEY).certificate, ocsp_url=URL)
OTHER = x509.new_anchor(DOMAIN, NOW, kind="P-256")
WEB = SpiffeId("spiffe://mesh.test/web")
Mode = Literal["soft", "hard", "off"]


class World:
    """A CA with a responder, a Workload API for one workload, and what the server staples."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.svid = new_svid(ISSUER, WEB, NOW)
        self.revoked: set[int] = set()
        self.asked: list[str] = []
        self.responder = Responder(
            lambda: [ISSUER, OTHER], lambda: frozenset(self.revoked), lambda _: True, self.clock
        )

    @property
    def serial(self) -> int:
        return x509.parse(self.svid.chain[0]).certificate.serial_number

    @property
    def judges(self) -> Judges:
        judge = Judge(DOMAIN, (ISSUER.certificate,), allow_all, self.clock, SPIFFE)
        return Judges({DOMAIN: judge})

    async def fetch(self, url: str, request: bytes) -> bytes:
        self.asked.append(url)
        return self.responder.answer(request)

    @asynccontextmanager
    async def source(
        self, mode: Mode, staple: Callable[[], bytes] | None = None
    ) -> AsyncIterator[X509Source]:
        """A source on a real Workload API; what it hands out may be a lie."""
        bundle = TrustBundle(DOMAIN, (ISSUER.certificate,), b'{"keys":[]}')
        directory, attestor = Told(), PeerAttestor()
        directory.say(Given(self.svid.id, self.svid.chain, self.svid.key, ""), own=bundle)
        server = WorkloadServer(directory, attestor, 1.0)
        with socket_path() as path:
            await server.start(path)
            try:
                async with WorkloadClient(f"unix://{path}", clock=self.clock) as client:
                    source = X509Source(client, ocsp=mode)
                    source.staples = Staples(self.clock, self.fetch)
                    if staple is not None:
                        source.staples.of = lambda _: staple()  # type: ignore[assignment,method-assign]
                    async with source:
                        await source.wait(5)
                        while not (staple or self.asked):  # noqa: ASYNC110
                            await asyncio.sleep(0)
                        yield source
            finally:
                await server.stop()
                attestor.close()


async def outcome(world: World, mode: Mode, staple: Callable[[], bytes] | None = None) -> str:
    """Dial: `ok`, or why not; and the server hears of it."""
    async with world.source(mode, staple) as source, listening(source, hold) as listener:
        try:
            async with await dial(to(listener), source, authorize=anyone, first_byte=True) as made:
                assert not made.stapled or mode != "off"
                return "ok"
        except Refused as error:
            return error.what.removeprefix("TLS connection refused: ")


def told(
    about: x509.Svid, key: Any, certificate: Any = None, start_s: int = 0, end_s: int = ANSWER_S,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
) -> bytes:  # fmt: skip
    """A response signed by whoever has this key."""

    def at(seconds: int) -> datetime:
        return datetime.fromtimestamp(NOW + seconds, UTC)

    ca = x509.parse(ISSUER.certificate).certificate
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        x509.parse(about.chain[0]).certificate, ca, hashes.SHA256(), status,
        at(start_s), at(end_s), at(start_s) if revoked else None, None,
    )  # fmt: skip
    if key is OTHER.key:
        ca = OTHER.parsed.certificate
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, certificate or ca)
    if certificate is not None:
        builder = builder.certificates([certificate])
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _delegated(world: World) -> bytes:
    key = x509.new_key()
    certificate, _ = x509.issue_ocsp_delegate(ISSUER, key, NOW, 600)
    return told(world.svid, key, certificate)


def _foreign_delegate(world: World) -> bytes:
    key = x509.new_key()
    certificate, _ = x509.issue_ocsp_delegate(OTHER, key, NOW, 600)
    return told(world.svid, key, certificate)


def _workload_as_delegate(world: World) -> bytes:
    key = x509.load_key(world.svid.key)
    return told(world.svid, key, x509.parse(world.svid.chain[0]).certificate)


def _bent(world: World) -> bytes:
    good = told(world.svid, KEY)
    return good[:-1] + bytes((good[-1] ^ 1,))


def _of_another(world: World) -> bytes:
    return told(new_svid(ISSUER, WEB, NOW), KEY)


def _refusing(world: World) -> bytes:
    return world.responder.answer(b"\x30\x00")


GOOD: dict[str, Callable[[World], bytes]] = {
    "of the CA": lambda world: told(world.svid, KEY),
    "of a delegate": _delegated,
    "of yesterday, until tomorrow": lambda w: told(w.svid, KEY, None, -86_400, 86_400),
}
BAD: dict[str, tuple[Callable[[World], bytes], str]] = {
    "none": (lambda world: b"", "no OCSP response"),
    "garbage": (lambda world: b"garbage", "malformed OCSP response"),
    "too large": (lambda world: b"\x30" + bytes(65_536), "OCSP response too large"),
    "a refusal": (_refusing, "OCSP responder refuses"),
    "of another CA": (
        lambda world: told(world.svid, OTHER.key), "OCSP response not signed by the CA",
    ),
    "of a delegate of another CA": (_foreign_delegate, "OCSP response not signed by the CA"),
    "of the workload itself": (_workload_as_delegate, "OCSP response not signed by the CA"),
    "bent": (_bent, "OCSP response not signed by the CA"),
    "of another serial": (_of_another, "OCSP response of another certificate"),
    "replayed after its end": (
        lambda world: told(world.svid, KEY, None, -1200, -600), "OCSP response not of now",
    ),
    "of tomorrow": (
        lambda world: told(world.svid, KEY, None, 86_400, 90_000), "OCSP response not of now",
    ),
    "unknown": (
        lambda world: told(world.svid, KEY, status=ocsp.OCSPCertStatus.UNKNOWN),
        "unknown to its CA",
    ),
}  # fmt: skip


NOT_SENT = ("garbage", "too large", "of another serial")
"""OpenSSL's server keeps them to itself; another one would not."""


@pytest.mark.parametrize("what", GOOD)
def test_B4_a_good_response_is_enough_for_hard_fail(what: str) -> None:
    world = World()
    assert asyncio.run(outcome(world, "hard", lambda: GOOD[what](world))) == "ok"


@pytest.mark.parametrize("what", BAD)
def test_B4_hard_fail_takes_nothing_else_and_soft_fail_goes_on(what: str) -> None:
    make, reason = BAD[what]
    world = World()
    cache = OcspCache(True, world.clock)
    assert cache.judge(world.svid.chain[0], ISSUER.certificate, make(world)) == Denied(reason)
    if what in NOT_SENT:
        reason = "no OCSP response"
    assert asyncio.run(outcome(world, "hard", lambda: make(world))) == reason
    assert asyncio.run(outcome(world, "soft", lambda: make(world))) == "ok"


@pytest.mark.parametrize(
    ("mode", "found"), [("hard", "revoked"), ("soft", "revoked"), ("off", "ok")]
)
def test_B4_what_the_ca_calls_revoked_is_refused_even_softly(mode: Mode, found: str) -> None:
    world = World()
    said = told(world.svid, KEY, status=ocsp.OCSPCertStatus.REVOKED)
    assert asyncio.run(outcome(world, mode, lambda: said)) == found


def test_B4_a_listener_staples_by_itself_what_its_responder_says() -> None:
    world = World()
    assert asyncio.run(outcome(world, "hard")) == "ok"
    assert world.asked == [URL]


def test_B4_an_answer_counts_until_its_end_for_who_has_it() -> None:
    async def story() -> None:
        world, said = World(), [told(World().svid, KEY)]
        said[0] = told(world.svid, KEY)
        async with (
            world.source("hard", lambda: said[0]) as source,
            listening(source, hold) as listener,
        ):

            async def dialled() -> str:
                try:
                    async with await dial(to(listener), source, authorize=anyone):
                        return "ok"
                except Refused as error:
                    return error.what.rpartition(": ")[2]

            assert await dialled() == "ok"
            said[0] = b""
            assert await dialled() == "ok"  # It is known already.
            world.clock.unix_us += (ANSWER_S + 1) * SECOND
            assert await dialled() == "no OCSP response"
            assert source.status is not None
            assert source.status.doubts == {"no OCSP response": 1}

    asyncio.run(story())


# ------------------------------------------------------------------ what is kept to be handed out
def test_B4_a_response_is_renewed_at_half_of_its_time_and_never_handed_out_at_its_end() -> None:
    async def story() -> None:
        world = World()
        staples = Staples(world.clock, world.fetch)
        assert staples.of(world.svid) == b""
        assert await staples.refresh([world.svid], world.judges) == ANSWER_S / 2
        first = staples.of(world.svid)
        assert first
        world.clock.unix_us += (ANSWER_S // 2 - 1) * SECOND
        assert await staples.refresh([world.svid], world.judges) == 1
        assert staples.of(world.svid) == first
        world.clock.unix_us += SECOND
        await staples.refresh([world.svid], world.judges)
        assert staples.of(world.svid) not in (first, b"")
        assert len(world.asked) == 2
        world.clock.unix_us += (ANSWER_S - LEFT_S_MIN) * SECOND
        assert staples.of(world.svid) == b""
        assert await staples.refresh([], world.judges) > ANSWER_S
        assert staples.of(world.svid) == b""

    asyncio.run(story())


@pytest.mark.parametrize("what", [*(name for name in BAD if name != "none"), "revoked", "away"])
def test_B4_what_is_not_good_is_never_stapled_and_asked_for_again(what: str) -> None:
    world = World()

    async def fetch(url: str, request: bytes) -> bytes:
        if what == "away":
            raise Unavailable("X0-NET-021", "away")
        if what == "revoked":
            world.revoked.add(world.serial)
            return await world.fetch(url, request)
        return BAD[what][0](world)

    async def story() -> None:
        staples = Staples(world.clock, fetch)
        assert await staples.refresh([world.svid], world.judges) == REPEAT_S
        assert staples.of(world.svid) == b""
        reason = BAD[what][1] if what in BAD else what
        assert staples.problem.endswith(reason)
        staples = Staples(world.clock, fetch)
        assert await staples.refresh([world.svid], Judges({})) == REPEAT_S
        assert staples.problem == "our own SVID would be refused"

    asyncio.run(story())


def test_B4_an_svid_that_names_no_responder_costs_nothing() -> None:
    async def story() -> None:
        world = World()
        plain = new_svid(x509.Issuer(DOMAIN, KEY, ISSUER.certificate), WEB, NOW)
        staples = Staples(world.clock, world.fetch)
        assert await staples.refresh([plain], world.judges) > ANSWER_S
        assert (staples.of(plain), world.asked, staples.problem) == (b"", [], "")

    asyncio.run(story())
