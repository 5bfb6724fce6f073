"""What the SDK does when streams of the Workload API end, break, or say that there is nothing.

Source: SPIFFE_Workload_API.md sections 4.2 to 4.4 and 5.2.1.
"""

from __future__ import annotations

import time

import pytest

from tests.conformance.driver import Harness, Meeting, until
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

WITHDRAWN_S = 5.0


def shown(api: WorkloadApi, harness: Harness) -> Meeting:
    """What the X.509 port presents to a proper peer."""
    return harness.meet(api.domain.svid("/peer"))


def presents(api: WorkloadApi, harness: Harness, chain: tuple[bytes, ...]) -> bool:
    return until(lambda: shown(api, harness).chain[:1] == chain[:1])


# ------------------------------------------------------------------------------- streams that break
@pytest.mark.parametrize(
    "code",
    [
        "UNAVAILABLE",
        *(pytest.param(code, marks=pytest.mark.night) for code in ("INTERNAL", "CANCELLED")),
    ],
)
def test_SP_104_a_stream_that_ends_is_opened_again(
    api: WorkloadApi, harness: Harness, code: str
) -> None:
    api.inject("FetchX509SVID", Fault(code=code), times=1)
    api.push()
    (svid,) = api.rotate()
    assert presents(api, harness, svid.chain)


@pytest.mark.parametrize("fault", [Fault(reset=True), Fault(end=True), Fault(disconnect=True)])
def test_SP_104_a_stream_that_breaks_is_opened_again(
    api: WorkloadApi, harness: Harness, fault: Fault
) -> None:
    api.inject("FetchX509SVID", fault, times=1)
    api.push()
    (svid,) = api.rotate()
    assert presents(api, harness, svid.chain)


def test_SP_104_109_what_is_valid_stays_while_the_server_is_away(
    api: WorkloadApi, harness: Harness
) -> None:
    api.stop()
    for _ in range(3):
        assert shown(api, harness).id == "spiffe://example.org/web"
        assert harness.accepts("client", api.domain.svid("/peer"))
    api.start()
    (svid,) = api.rotate()
    assert presents(api, harness, svid.chain)


def test_SP_104_a_server_that_hangs_and_restarts(api: WorkloadApi, harness: Harness) -> None:
    api.inject("FetchX509SVID", Fault(hang=True), times=1)
    api.disconnect()
    api.wait_for_calls("FetchX509SVID", 2)
    assert shown(api, harness).id == "spiffe://example.org/web"
    api.restart()
    (svid,) = api.rotate()
    assert presents(api, harness, svid.chain)


def test_SP_104_many_restarts(api: WorkloadApi, harness: Harness) -> None:
    for _ in range(3):
        api.restart()
        assert shown(api, harness).accepted
    (svid,) = api.rotate()
    assert presents(api, harness, svid.chain)


# ------------------------------------------------------------------------------------- withdrawal
def test_SP_109_116_after_permission_denied_nothing_is_presented(
    api: WorkloadApi, harness: Harness
) -> None:
    peer = api.domain.svid("/peer")
    api.withdraw()
    start = time.monotonic()
    assert until(lambda: not harness.meet(peer).chain, WITHDRAWN_S)
    assert time.monotonic() - start < WITHDRAWN_S
    answer, seen = harness.dials(peer)
    assert answer.code in (422, 500)
    assert seen.chain == ()
    api.issue("/web")
    assert until(lambda: shown(api, harness).id == "spiffe://example.org/web")
    assert harness.dials(peer)[0].code == 200


def test_SP_109_an_svid_that_is_left_out_is_presented_no_more(
    api: WorkloadApi, harness: Harness
) -> None:
    api.issue("/second")
    api.redact("/web")
    assert until(lambda: shown(api, harness).id == "spiffe://example.org/second")
    for _ in range(3):
        assert shown(api, harness).id == "spiffe://example.org/second"


def test_SP_116_an_expired_svid_is_presented_no_more(api: WorkloadApi, harness: Harness) -> None:
    svid = api.domain.svid("/brief", start_s=-10, life_s=12)
    api.serve(svid)
    assert presents(api, harness, svid.chain)
    assert until(lambda: not shown(api, harness).chain, 4)
    api.serve(api.domain.svid("/web"))
    assert until(lambda: shown(api, harness).id == "spiffe://example.org/web")
