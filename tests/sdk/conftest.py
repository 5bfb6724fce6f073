"""A Workload API for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkloadApi]:
    """Serves `spiffe://example.org/web`; SPIFFE_ENDPOINT_SOCKET leads there."""
    with WorkloadApi() as api:
        api.issue("/web")
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.endpoint)
        yield api
