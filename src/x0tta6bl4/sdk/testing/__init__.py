"""A pytest plug-in: a SPIFFE Workload API in the test process, with a throw-away trust domain.

Installed with the package; without its entry point, say in `conftest.py`::

    pytest_plugins = ["x0tta6bl4.sdk.testing"]

`docs/testing-with-workload-api.md` shows its use.  Nothing but pytest is imported until a test
asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


@pytest.fixture
def workload_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkloadApi]:
    """A Workload API that serves `spiffe://example.org/web`; SPIFFE_ENDPOINT_SOCKET leads there."""
    from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

    with WorkloadApi() as api:
        api.issue("/web")
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.endpoint)
        yield api
