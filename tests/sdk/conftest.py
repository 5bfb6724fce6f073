"""A Workload API for each test that asks for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkloadApi]:
    """Serves `spiffe://example.org/web`; SPIFFE_ENDPOINT_SOCKET leads there."""
    with WorkloadApi() as api:
        api.issue("/web")
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.endpoint)
        yield api


@pytest.fixture
def other() -> Iterator[WorkloadApi]:
    """A workload of another trust domain, not federated yet."""
    with WorkloadApi(Domain("other.test")) as api:
        api.issue("/shop")
        yield api


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "uvloop":
        return lambda story: uvloop.run(story())
    return lambda story: asyncio.run(story())
