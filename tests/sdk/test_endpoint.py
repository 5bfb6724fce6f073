"""Addresses of the Workload API, and what a client sends there."""

from __future__ import annotations

import pytest

from x0tta6bl4.sdk.identity.client import WorkloadClient
from x0tta6bl4.sdk.identity.endpoint import Endpoint, endpoint
from x0tta6bl4.wire.errors import BadInput


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("unix:///run/a.sock", Endpoint(path="/run/a.sock")),
        ("unix:/run/a.sock", Endpoint(path="/run/a.sock")),
        ("unix:///run/a%20b.sock", Endpoint(path="/run/a b.sock")),
        ("tcp://127.0.0.1:8000", Endpoint(host="127.0.0.1", port=8000)),
        ("tcp://[::1]:8000", Endpoint(host="::1", port=8000)),
    ],
)
def test_SP_095_an_address_of_the_specification_is_taken_client(text: str, found: Endpoint) -> None:
    assert endpoint(text) == found
    assert endpoint(str(found)) == found or "%20" in text


@pytest.mark.parametrize(
    "text",
    [
        "unix://host/run/a.sock",
        "unix:run/a.sock",
        "unix://",
        "unix:///",
        "unix:///a?b=c",
        "unix:///a#b",
        "unix:///a%00b",
        "unix:///" + "a" * 108,
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:80/",
        "tcp://127.0.0.1:80?a",
        "tcp://me@127.0.0.1:80",
        "tcp://localhost:80",
        "tcp://1.2.3:80",
        "tcp://999.0.0.1:80",
        "tcp:127.0.0.1:80",
        "http://127.0.0.1:80",
        "/run/a.sock",
        "",
    ],
)
def test_SP_095_anything_else_is_refused_client(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        endpoint(text)
    assert refused.value.id == "X0-SDK-002"


def test_SP_094_the_environment_is_asked_where_nothing_is_given_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/a.sock")
    assert WorkloadClient().endpoint == Endpoint(path="/run/a.sock")
    assert WorkloadClient("unix:///b").endpoint == Endpoint(path="/b")
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET")
    with pytest.raises(BadInput) as refused:
        WorkloadClient()
    assert refused.value.id == "X0-SDK-001"
