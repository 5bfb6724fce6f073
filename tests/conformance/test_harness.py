"""The harness keeps its contract, v1, and the attack set meets it as a process."""

from __future__ import annotations

import re
import socket
import time

import pytest

from tests.conformance.conftest import Hall
from tests.conformance.driver import Harness
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.edge.tls.impostors import IMPOSTORS, Impostor
from x0tta6bl4.edge.tls.x509 import Issuer
from x0tta6bl4.sdk.testing.domain import Svid
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.ids import TrustDomain


def test_it_prints_what_the_contract_says(api: WorkloadApi, harness: Harness) -> None:
    assert harness.lines[0] == "SPIFFE_HARNESS_VERSION=1"
    assert re.fullmatch(r"SPIFFE_X509_PORT=\d+", harness.lines[1])
    assert re.fullmatch(r"SPIFFE_CONTROL_PORT=\d+", harness.lines[2])
    assert harness.lines[3:] == ["READY"]


def test_ready_waits_for_the_first_svid_and_no_longer(api: WorkloadApi) -> None:
    api.inject("FetchX509SVID", Fault(delay_s=1.0), times=1)
    with Harness(api.endpoint, wait=False) as harness:
        assert not harness.read_until("READY", 0.8)
        harness.ready(5)
        assert len(harness.lines) == 4


def test_the_control_port_says_what_it_can_not_do(harness: Harness) -> None:
    for method, path, body in (
        ("GET", "/v1/unknown", None),
        ("POST", "/v1/unknown", {}),
        ("GET", "/v1/jwt/validate", None),
        ("POST", "/v1/jwt/validate", b"{"),
        ("POST", "/v1/jwt/validate", {"audience": "web"}),
        ("POST", "/v1/jwt/validate", ["web"]),
        ("POST", "/v1/x509/dial", {}),
    ):
        answer = harness.ask(method, path, body)
        assert (answer.code, answer.body["status"]) == (500, "error"), path
    info = harness.ask("GET", "/v1/info")
    assert info.code == 200
    assert {"sdk", "sdk_version", "language"} <= info.body.keys()


def test_a_dial_to_nobody_is_an_error_and_to_an_impostor_a_refusal(hall: Hall) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert hall.harness.dial(f"127.0.0.1:{port}").code == 500
    assert hall.harness.dial("not an address").code in (422, 500)
    answer, _ = hall.harness.dials(hall.domain.svid("/peer", ca=True))
    assert (answer.code, answer.body["status"]) == (422, "rejected")


def test_it_ends_within_its_time_whatever_goes_on(api: WorkloadApi, harness: Harness) -> None:
    with (
        socket.create_connection(("127.0.0.1", harness.port("X509"))),
        socket.create_connection(("127.0.0.1", harness.port("CONTROL"))),
    ):
        api.inject("FetchJWTSVID", Fault(hang=True))
        start = time.monotonic()
        assert harness.stop() == 0
        assert time.monotonic() - start < 5
        assert "Traceback" not in harness.log()


def test_strangers_at_its_ports_do_no_harm(hall: Hall) -> None:
    for name in ("X509", "CONTROL"):
        for data in (b"", b"\x16\x03\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", bytes(4_096)):
            with socket.create_connection(("127.0.0.1", hall.harness.port(name))) as sock:
                sock.sendall(data)
    assert hall.harness.meet(hall.domain.svid("/peer")).accepted
    assert hall.harness.ask("GET", "/v1/info").code == 200


@pytest.mark.night  # By day tests/sdk does it without a process.
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize(
    "case",
    [case for case in IMPOSTORS if case.expect is ANYBODY and case.presentable and not case.ours],
    ids=lambda case: case.name,
)
def test_SP_032_the_attack_set_is_refused_and_each_twin_accepted(
    hall: Hall, role: str, case: Impostor
) -> None:
    key, certificate = hall.domain._anchors[0]
    issuer = Issuer(TrustDomain(hall.domain.name), key, certificate)
    now = hall.domain.now_unix_s
    right, wrong = case.twin(issuer, now), case.make(issuer, now)
    assert hall.harness.accepts(role, Svid("", right.chain, right.key))
    assert hall.harness.accepts(role, Svid("", wrong.chain, wrong.key)) == ""


def test_SP_032_the_list_of_what_only_the_mesh_refuses_is_true(hall: Hall) -> None:
    key, certificate = hall.domain._anchors[0]
    issuer = Issuer(TrustDomain(hall.domain.name), key, certificate)
    for case in IMPOSTORS:
        if case.ours and case.name != "in its last second":
            made = case.make(issuer, hall.domain.now_unix_s)
            assert hall.harness.accepts("server", Svid("", made.chain, made.key)), case.name
