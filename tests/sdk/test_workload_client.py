"""The client of the Workload API: what it sends, how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from x0tta6bl4.sdk.identity.client import MESSAGE_BYTES_MAX, WorkloadClient
from x0tta6bl4.sdk.testing import faults
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput, BadMessage, NotFound, Refused, Unavailable, X0Error

WEB = "spiffe://example.org/web"
X509 = "FetchX509SVID"
FETCHED: tuple[tuple[str, Callable[[WorkloadClient], Any]], ...] = (
    (X509, lambda client: client.fetch_x509()),
    ("FetchX509Bundles", lambda client: client.fetch_x509_bundles()),
    ("FetchJWTBundles", lambda client: client.fetch_jwt_bundles()),
    ("FetchJWTSVID", lambda client: client.fetch_tokens(["db"])),
    ("ValidateJWTSVID", lambda client: client.ask_validity("x", "db")),
)
each_call = pytest.mark.parametrize(("method", "call"), FETCHED, ids=[m for m, _ in FETCHED])


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


# -------------------------------------------------------------------------------------- the call
@each_call
def test_SP_091_every_call_carries_the_metadata_client(
    served: WorkloadApi, method: str, call: Callable[[WorkloadClient], Any]
) -> None:
    async def story() -> None:
        async with WorkloadClient() as client:
            try:
                await call(client)
            except (BadInput, NotFound):
                assert method == "ValidateJWTSVID"  # Its token is none.

    run(story)
    assert served.calls[-1].method == method
    assert served.calls[-1].metadata["workload.spiffe.io"] == "true"


@each_call
def test_a_call_that_is_not_answered_ends_at_its_deadline(
    served: WorkloadApi, method: str, call: Callable[[WorkloadClient], Any]
) -> None:
    served.inject(method, Fault(hang=True))

    async def story() -> None:
        async with WorkloadClient(deadline_s=0.1) as client:
            with pytest.raises(Unavailable) as error:
                await call(client)
            assert error.value.id == "X0-SDK-017"

    run(story)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", BadInput),
        ("PERMISSION_DENIED", Refused),
        ("UNIMPLEMENTED", NotFound),
        ("UNAVAILABLE", Unavailable),
        ("INTERNAL", Unavailable),
        ("DEADLINE_EXCEEDED", Unavailable),
    ],
)
@each_call
def test_SP_098_a_status_is_told_in_our_words_client(
    served: WorkloadApi,
    method: str,
    call: Callable[[WorkloadClient], Any],
    code: str,
    kind: type[X0Error],
) -> None:
    served.inject(method, Fault(code=code))

    async def story() -> None:
        async with WorkloadClient() as client:
            with pytest.raises(X0Error) as error:
                await call(client)
            assert type(error.value) is kind

    run(story)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(disconnect=True),
        Fault(reset=True),
        Fault(change=faults.garbage),
        Fault(change=faults.huge(MESSAGE_BYTES_MAX)),
    ],
    ids=["disconnect", "reset", "garbage", "huge"],
)
def test_a_broken_answer_is_an_error_of_ours_and_the_next_call_works(
    served: WorkloadApi, fault: Fault
) -> None:
    served.inject(X509, fault, times=1)

    async def story() -> None:
        async with WorkloadClient() as client:
            with pytest.raises((Unavailable, BadMessage)):
                await client.fetch_x509()
            assert (await client.fetch_x509()).svids[0].id == WEB

    run(story)


def test_nobody_there_is_said_at_once() -> None:
    async def story() -> None:
        async with WorkloadClient("unix:///nobody/there.sock") as client:
            with pytest.raises(Unavailable) as error:
                await client.fetch_x509()
            assert error.value.id == "X0-SDK-018"

    run(story)
