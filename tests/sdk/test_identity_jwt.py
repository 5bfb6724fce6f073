"""JWT-SVIDs: what is fetched, kept and validated; and certificates that have to be young."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes.ca import FakeClock
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.jwt import TOKENS_MAX, JWTSource, fetch_jwt_svids, validate_jwt
from x0tta6bl4.sdk.identity.lifetime import validate_certificate
from x0tta6bl4.sdk.identity.source import BundleSource
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput, BadMessage, Refused, Unavailable

WEB = "spiffe://example.org/web"
JWT = "FetchJWTSVID"


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


@asynccontextmanager
async def source_of(clock: FakeClock | None = None) -> AsyncIterator[JWTSource]:
    client = WorkloadClient() if clock is None else WorkloadClient(clock=clock)
    async with client, JWTSource(client) as source:
        await source.wait(5)
        yield source


def host_clock() -> FakeClock:
    return FakeClock(time.clock_gettime(time.CLOCK_REALTIME))


# ------------------------------------------------------------------------------------------ fetch
def test_SP_118_tokens_of_all_identities_or_of_one_client(served: WorkloadApi) -> None:
    served.issue("/db", hint="database")

    async def story() -> None:
        found = await fetch_jwt_svids(["a", "b"])
        assert [one.id for one in found] == [WEB, "spiffe://example.org/db"]
        assert found[1].hint == "database"
        assert all(one.audience == ("a", "b") for one in found)
        (one,) = await fetch_jwt_svids("a", id="spiffe://EXAMPLE.org/db")
        assert one.id == "spiffe://example.org/db"
        assert one.token not in repr(one)

    run(story)
    assert list(served.calls[-1].request.audience) == ["a"]
    assert served.calls[-1].request.spiffe_id == "spiffe://example.org/db"


def change_token(domain: Domain, **options: Any) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        answer.svids[0].svid = domain.token(**options)
        return answer

    return change


def other_id(answer: Any) -> Any:
    answer.svids[0].spiffe_id = "spiffe://example.org/db"
    return answer


def no_token(answer: Any) -> Any:
    answer.svids[0].ClearField("svid")
    return answer


def nothing(answer: Any) -> Any:
    answer.ClearField("svids")
    return answer


_BAD: dict[str, Callable[[Domain], Callable[[Any], Any]]] = {
    "another ID": lambda d: other_id,
    "another subject": lambda d: change_token(d, path="/db", audience="a"),
    "another audience": lambda d: change_token(d, audience="b"),
    "SP_049 no audience": lambda d: change_token(d, audience=None),
    "SP_051 no expiry": lambda d: change_token(d, audience="a", claims={"exp": None}),
    "expired": lambda d: change_token(d, audience="a", ttl_s=-1),
    "SP_110 no token": lambda d: no_token,
    "SP_110 nothing": lambda d: nothing,
}


@pytest.mark.parametrize("make", _BAD.values(), ids=_BAD)
def test_SP_049_051_110_a_token_that_is_not_what_was_asked_for_is_not_used_client(
    served: WorkloadApi, make: Callable[[Domain], Callable[[Any], Any]]
) -> None:
    served.inject(JWT, Fault(change=make(served.domain)))

    async def story() -> None:
        with pytest.raises(BadMessage):
            await fetch_jwt_svids("a")

    run(story)


def test_SP_115_the_first_of_two_tokens_with_the_same_hint_counts_client(
    served: WorkloadApi,
) -> None:
    served.issue("/db")

    def same(answer: Any) -> Any:
        for one in answer.svids:
            one.hint = "twice"
        return answer

    served.inject(JWT, Fault(change=same))

    async def story() -> None:
        assert [one.id for one in await fetch_jwt_svids("a")] == [WEB]

    run(story)


def test_no_audience_is_the_callers_mistake(served: WorkloadApi) -> None:
    async def story() -> None:
        for audience in ([], [""], ["a"] * 65):
            with pytest.raises(BadInput) as error:
                await fetch_jwt_svids(audience)
            assert error.value.id == "X0-SDK-016"

    run(story)
    assert not served.calls


# ------------------------------------------------------------------------------------------- keep
def test_a_token_is_kept_for_half_its_life(served: WorkloadApi) -> None:
    clock = host_clock()

    async def story() -> None:
        async with source_of(clock) as source:
            first = await source.token("db")
            clock.unix_us = first.issued_unix_s * SECOND + 149 * SECOND
            assert await source.token(("db",)) is first
            assert (await source.token("other")).audience == ("other",)
            clock.unix_us += 2 * SECOND
            assert await source.token("db") is not first

    run(story)
    assert sum(call.method == JWT for call in served.calls) == 3


def test_a_valid_token_stays_while_the_workload_api_is_away(served: WorkloadApi) -> None:
    clock = host_clock()

    async def story() -> None:
        async with source_of(clock) as source:
            first = await source.token("db")
            served.inject(JWT, Fault(code="UNAVAILABLE"))
            clock.unix_us = first.expires_unix_s * SECOND - 1
            assert await source.token("db") is first
            clock.unix_us += 1
            with pytest.raises(Unavailable):
                await source.token("db")

    run(story)


def test_SP_116_permission_denied_takes_tokens_away_client(served: WorkloadApi) -> None:
    clock = host_clock()

    async def story() -> None:
        async with source_of(clock) as source:
            first = await source.token("db")
            served.inject(JWT, Fault(code="PERMISSION_DENIED"))
            clock.unix_us = first.expires_unix_s * SECOND - SECOND
            for _ in range(2):
                with pytest.raises(Refused):
                    await source.token("db")
            served.clear()
            clock.unix_us = host_clock().unix_us
            assert (await source.token("db")).id == WEB
            version = source.version
            served.withdraw()
            await source.changed(version, 5)
            assert not source.ready
            with pytest.raises(Refused):
                await source.token("db")

    run(story)


def test_the_number_of_kept_tokens_is_bounded(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of() as source:
            for n in range(TOKENS_MAX + 5):
                await source.token(f"a{n}")
            assert len(source._tokens) == TOKENS_MAX
            assert (("a0",), None) not in source._tokens

    run(story)


# --------------------------------------------------------------------------------------- validate
def test_SP_046_122_a_token_is_valid_by_the_bundle_of_its_own_domain_client(
    served: WorkloadApi,
) -> None:
    other = Domain("other.test")
    served.federate(other)

    async def story() -> None:
        async with source_of() as source, BundleSource(x509=False) as bundles:
            await bundles.wait(5)
            for domain in (served.domain, other):
                token = domain.token(audience=("me", "you"), claims={"role": "admin"})
                for documents in (source, bundles):
                    found = validate_jwt(token, "me", documents)
                    assert found.id == domain.id("/web")
                    assert found.claims["role"] == "admin"
            bare = served.domain.token(audience="me", header={"kid": None})
            assert source.validate(bare, "me").id == WEB
            forged = other.token(served.domain.id("/web"), "me")
            unknown = Domain("x.test").token(audience="me")
            for token, audience, reason in (
                (forged, "me", "unknown key"),
                (unknown, "me", "no bundle of the trust domain"),
                (served.domain.token(audience="me"), "you", "meant for another audience"),
                (served.domain.token(audience="me", ttl_s=-60), "me", "expired"),
                ("a.b", "me", "not a compact token"),
            ):
                with pytest.raises(Refused) as refused:
                    source.validate(token, audience)
                assert refused.value.id == "X0-SDK-041"
                assert refused.value.what == f"token refused: {reason}"

    run(story)


def test_a_leeway_is_given_where_it_is_asked_for(served: WorkloadApi) -> None:
    async def story() -> None:
        async with source_of() as source:
            token = served.domain.token(audience="me", ttl_s=-5)
            assert source.validate(token, "me", leeway_s=60).id == WEB
            with pytest.raises(Refused):
                source.validate(token, "me")

    run(story)


def test_keys_rotate_without_a_gap_and_a_broken_bundle_makes_its_domain_unknown(
    served: WorkloadApi,
) -> None:
    async def story() -> None:
        async with source_of() as source:
            old = served.domain.token(audience="me")
            version = source.version
            served.domain.rotate_token_key()
            served.push()
            version = await source.changed(version, 5)
            assert source.validate(old, "me").id == WEB
            assert source.validate(served.domain.token(audience="me"), "me").id == WEB
            served.domain.retire_token_keys()
            served.push()
            version = await source.changed(version, 5)
            with pytest.raises(Refused):
                source.validate(old, "me")
            served.federate(Domain("bad.test"))
            served.write_bundle("bad.test", jwks=b"{")
            while "bad.test" not in str(source.problems):
                version = await source.changed(version, 5)
            assert set(source.documents) == {"example.org"}

    run(story)


def test_SP_121_the_workload_api_can_be_asked_client(served: WorkloadApi) -> None:
    from x0tta6bl4.edge.workload_api import schema

    said = schema.ValidateJWTSVIDResponse(spiffe_id=WEB)
    said.claims.update({"sub": WEB, "n": 1})
    served.answer = lambda method, request: said  # type: ignore[method-assign]

    async def story() -> None:
        async with WorkloadClient() as client:
            assert await client.ask_validity("t", "me") == (WEB, {"sub": WEB, "n": 1.0})
            said.ClearField("spiffe_id")
            with pytest.raises(BadMessage):
                await client.ask_validity("t", "me")

    run(story)


# -------------------------------------------------------------------------------------- lifetimes
_NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("start_s", "life_s", "reason"),
    [
        (0, 3_600, ""),
        (-3_600, 3_600, ""),
        (-3_660, 3_600, ""),
        (60, 3_600, ""),
        (0, 3_660, ""),
        (61, 3_600, "not yet valid"),
        (-3_661, 3_600, "expired"),
        (0, 3_661, "lifetime too long"),
        (-3_661, 3_660, "too old"),
        (-7_200, 86_400, "lifetime too long"),
    ],
)
def test_a_certificate_is_an_hour_old_at_most(start_s: int, life_s: int, reason: str) -> None:
    made = Domain(now_unix_s=lambda: _NOW).svid(start_s=start_s, life_s=life_s).chain[0]
    clock = FakeClock(_NOW)
    if not reason:
        found = validate_certificate(made, clock=clock)
        assert found.age_s == -start_s
        assert found.left_s == start_s + life_s
        return
    with pytest.raises(Refused) as refused:
        validate_certificate(made, clock=clock)
    assert refused.value.what == f"certificate refused: {reason}"


def test_what_is_no_certificate_has_no_lifetime() -> None:
    with pytest.raises(BadInput):
        validate_certificate(b"no")
