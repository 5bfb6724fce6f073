"""How the SDK finds the Workload API, speaks to it, and behaves when it is refused.

Source: SPIFFE_Workload_Endpoint.md sections 3 to 6 and appendix A.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tests.conformance.driver import Harness
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

TCP_PORTS = range(28_300, 28_340)


def test_SP_089_094_the_variable_is_all_that_is_needed(api: WorkloadApi, harness: Harness) -> None:
    assert harness.meet(api.domain.svid("/peer")).id == "spiffe://example.org/web"
    assert harness.ask("GET", "/v1/info").body["language"] == "python"


def test_SP_091_every_call_carries_the_header(api: WorkloadApi, harness: Harness) -> None:
    assert harness.fetch("db").code == 200
    assert harness.validate(api.domain.token("/peer")).code == 200
    api.disconnect()
    api.wait_for_calls("FetchX509SVID", 2)
    name, value = schema.METADATA
    methods = {call.method for call in api.calls}
    assert {"FetchX509SVID", "FetchJWTSVID", "FetchJWTBundles"} <= methods
    assert [call for call in api.calls if call.metadata.get(name) != value] == []


def _free_port() -> int:
    for port in TCP_PORTS:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def test_SP_095_a_tcp_address(request: pytest.FixtureRequest) -> None:
    with WorkloadApi(endpoint=f"tcp://127.0.0.1:{_free_port()}") as api:
        api.issue("/web")
        with Harness(api.endpoint) as harness:
            assert harness.meet(api.domain.svid("/peer")).accepted


@pytest.mark.parametrize("form", ["unix:{path}", "unix://{path}"])
def test_SP_095_a_path_with_or_without_an_empty_authority(tmp_path: Path, form: str) -> None:
    path = tmp_path / "api.sock"
    with WorkloadApi(endpoint=f"unix://{path}") as api:
        api.issue("/web")
        with Harness(form.format(path=path)) as harness:
            assert harness.meet(api.domain.svid("/peer")).accepted


@pytest.mark.parametrize(
    "form", ["unix://host{path}", "unix://{path}?x=1", "unix://{path}#x", "unix:.{path}", "{path}",
             "tcp://localhost:{port}", "tcp://127.0.0.1:{port}/", "tcp://127.0.0.1",
             "tcp://user@127.0.0.1:{port}", "tcp://127.0.0.1:{port}?x", "http://127.0.0.1:{port}",
             ""],
)  # fmt: skip
def test_SP_095_addresses_that_are_none(tmp_path: Path, form: str) -> None:
    """The socket is there and serves: whoever reads the address loosely would find it."""
    path, port = tmp_path / "api.sock", _free_port()
    endpoint = f"unix://{path}" if "{path}" in form else f"tcp://127.0.0.1:{port}"
    with (
        WorkloadApi(endpoint=endpoint) as api,
        Harness(form.format(path=path, port=port), wait=False) as harness,
    ):
        api.issue("/web")
        assert harness.process.wait(10) != 0  # An address that is none will never be one.
        assert not harness.read_until("READY", 0.1)
        assert api.calls == ()


@pytest.mark.parametrize(
    "code",
    [
        "UNAVAILABLE",
        "PERMISSION_DENIED",
        *(
            pytest.param(code, marks=pytest.mark.night)
            for code in ("RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED")
        ),
    ],
)
def test_SP_098_retries_with_pauses(code: str) -> None:
    with WorkloadApi() as api:
        api.issue("/web")
        api.inject("FetchX509SVID", Fault(code=code), times=3)
        with Harness(api.endpoint) as harness:
            assert harness.meet(api.domain.svid("/peer")).accepted
        at = [call.at_s for call in api.calls if call.method == "FetchX509SVID"]
        assert len(at) == 4
        assert (at[-1] - at[0]) / 3 >= 0.05


def test_SP_098_the_pauses_grow() -> None:
    with WorkloadApi() as api:
        api.inject("FetchX509SVID", Fault(code="UNAVAILABLE"))
        with Harness(api.endpoint, wait=False):
            api.wait_for_calls("FetchX509SVID", 6)
        at = [call.at_s for call in api.calls if call.method == "FetchX509SVID"]
        assert at[5] - at[4] > 2 * (at[1] - at[0])


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_SP_098_123_what_would_be_refused_again_is_not_asked_again(code: str) -> None:
    with WorkloadApi() as api:
        api.issue("/web")
        for method in ("FetchX509SVID", "FetchJWTBundles"):
            api.inject(method, Fault(code=code))
        with Harness(api.endpoint, wait=False) as harness:
            api.wait_for_calls("FetchX509SVID")
            assert not harness.read_until("READY", 1.5)
        for method in ("FetchX509SVID", "FetchJWTBundles"):
            assert sum(call.method == method for call in api.calls) <= 2


def test_SP_098_without_the_jwt_profile_x509_goes_on(api: WorkloadApi) -> None:
    for method in ("FetchJWTBundles", "FetchJWTSVID"):
        api.inject(method, Fault(code="UNIMPLEMENTED"))
    with Harness(api.endpoint) as harness:
        assert harness.meet(api.domain.svid("/peer")).accepted
        assert harness.fetch("db").code == 501
        assert harness.validate(api.domain.token("/peer")).code == 501


def test_SP_098_an_endpoint_that_comes_late(tmp_path: Path) -> None:
    api = WorkloadApi(endpoint=f"unix://{tmp_path}/api.sock")
    api.issue("/web")
    with Harness(api.endpoint, wait=False) as harness:
        assert not harness.read_until("READY", 0.5)
        with api:
            harness.ready()
            assert harness.meet(api.domain.svid("/peer")).accepted


def test_SP_104_the_harness_ends_when_it_is_told(api: WorkloadApi, harness: Harness) -> None:
    start = time.monotonic()
    assert harness.stop() == 0
    assert time.monotonic() - start < 5
    api.wait_for_streams("FetchX509SVID", 0)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAVAILABLE"])
def test_SP_098_it_ends_too_while_it_waits_for_an_identity(code: str) -> None:
    with WorkloadApi() as api:
        api.inject("FetchX509SVID", Fault(code=code))
        with Harness(api.endpoint, wait=False) as harness:
            api.wait_for_calls("FetchX509SVID")
            assert not harness.read_until("READY", 0.3)
            assert len(harness.lines) == 3
            assert harness.stop() == 0
