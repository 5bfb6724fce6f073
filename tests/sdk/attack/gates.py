"""Every place that says whether a token is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from tests.sdk.attack.bearers import AUDIENCE, BEARERS, ODD, Mint
from tests.sdk.attack.carry import Count
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.bundle.document import parse
from x0tta6bl4.edge.jwt.svid import judge_token
from x0tta6bl4.sdk.identity import BundleSource, JWTSource, blocking, validate_jwt
from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import TrustDomain

Ask = Callable[[str], Awaitable[object]]
"""Raises X0Error, or answers Denied, for a token that is not believed."""


class Court:
    """A Workload API that serves the bundles of a mint; a context."""

    def __init__(self) -> None:
        self.mint = Mint()
        self.api = WorkloadApi(self.mint.domain)

    def __enter__(self) -> Court:
        self.api.__enter__()
        self.api.issue("/web")
        self.api.federate(self.mint.other)
        self.api.write_bundle("example.org", jwks=self.mint.jwks())
        return self

    def __exit__(self, *_: object) -> None:
        self.api.__exit__()


@asynccontextmanager
async def _judge(court: Court) -> AsyncIterator[Ask]:
    names = TrustDomain(court.mint.domain.name), TrustDomain(court.mint.other.name)
    data = court.mint.jwks(), court.mint.other.document()
    documents = {name: parse(one, name) for name, one in zip(names, data, strict=True)}

    async def ask(token: str) -> object:
        return judge_token(token, AUDIENCE, documents, court.mint.domain.now_unix_s * 1_000_000)

    yield ask


@asynccontextmanager
async def _bundle_source(court: Court) -> AsyncIterator[Ask]:
    async with BundleSource(court.api.endpoint, x509=False) as source:
        await source.wait(5)

        async def ask(token: str) -> object:
            return validate_jwt(token, AUDIENCE, source)

        yield ask


@asynccontextmanager
async def _jwt_source(court: Court) -> AsyncIterator[Ask]:
    async with JWTSource(court.api.endpoint) as source:
        await source.wait(5)

        async def ask(token: str) -> object:
            return source.validate(token, AUDIENCE)

        yield ask


@asynccontextmanager
async def _blocking(court: Court) -> AsyncIterator[Ask]:
    source = await asyncio.to_thread(blocking.BundleSource, court.api.endpoint, x509=False)
    try:
        await asyncio.to_thread(source.wait, 5)

        async def ask(token: str) -> object:
            return blocking.validate_jwt(token, AUDIENCE, source)

        yield ask
    finally:
        await asyncio.to_thread(source.close)


@asynccontextmanager
async def _workload_api(court: Court) -> AsyncIterator[Ask]:
    async with WorkloadClient(court.api.endpoint) as client:
        yield lambda token: client.ask_validity(token, AUDIENCE)


GATES: Final[dict[str, Callable[[Court], AbstractAsyncContextManager[Ask]]]] = {
    "judge": _judge,
    "BundleSource": _bundle_source,
    "JWTSource": _jwt_source,
    "blocking": _blocking,
    "ValidateJWTSVID": _workload_api,
}


async def _answer(ask: Ask, token: str) -> str:
    """Why a token is not believed; empty: it is."""
    try:
        found = await ask(token)
    except X0Error as error:
        return error.what
    return found.reason if isinstance(found, Denied) else ""


async def _carry(court: Court, gate: str, count: Count) -> None:
    mint = court.mint
    async with GATES[gate](court) as ask:
        for case in BEARERS:
            said = await _answer(ask, case.wrong(mint))
            count.refused += 1
            if said != case.reason and not said.endswith(f": {case.reason}"):
                count.wrong.append(f"{gate}: {case.name}: not {case.reason!r}: {said!r}")
            count.twins += 1
            if said := await _answer(ask, case.right(mint)):
                count.wrong.append(f"{gate}: twin of {case.name}: {said}")
        for odd in ODD:
            count.unusual += 1
            if said := await _answer(ask, odd.make(mint)):
                count.wrong.append(f"{gate}: {odd.name}: {said}")


def carry_tokens(court: Court, gate: str) -> Count:
    """Show all tokens at one gate."""
    count = Count()
    asyncio.run(_carry(court, gate, count))
    return count
