"""A harness of our own SDK, and the Workload API that it talks to.

`harness` is started afresh for a test; the `hall` of a module serves all tests that change nothing
in the Workload API.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.conformance.driver import Harness
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


class Hall(msgspec.Struct, frozen=True):
    """What the tests of one module share."""

    api: WorkloadApi
    harness: Harness
    other: Domain
    """A federated trust domain."""

    @property
    def domain(self) -> Domain:
        return self.api.domain


@pytest.fixture
def api() -> Iterator[WorkloadApi]:
    """A Workload API that serves `spiffe://example.org/web`."""
    with WorkloadApi() as made:
        made.issue("/web")
        yield made


@pytest.fixture
def harness(api: WorkloadApi) -> Iterator[Harness]:
    """A harness that is ready."""
    with Harness(api.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def hall() -> Iterator[Hall]:
    """One harness for all tests of a module, with `other.test` federated."""
    other = Domain("other.test")
    with WorkloadApi() as api:
        api.issue("/web")
        api.federate(other)
        with Harness(api.endpoint) as harness:
            yield Hall(api, harness, other)
