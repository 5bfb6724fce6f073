"""Each declared metric is moved by the code that is there for it, in real processes.

Three nodes in a row with a direct link, two services, one authority: requests through a relay, a
caller that is refused, a renewal, a link that is lost, forged datagrams and setup frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.real.lab import Lab, Service, Shape, get_page, scratch, spiffe, through_socks
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import free_ports, wait_for
from x0tta6bl4.sdk.identity import X509Source, fetch_jwt_svids
from x0tta6bl4.telemetry import catalogue
from x0tta6bl4.wire.admin import GetMetrics, Text
from x0tta6bl4.wire.authority import Key
from x0tta6bl4.wire.errors import X0Error

NODES = ("n1", "n2", "n3")
SHAPE = Shape(
    services=(Service("web", ("n3",), ("shop",)), Service("db", ("n3",), ("nobody",))),
    callers=(("n1", "shop"),),
    nodes=NODES,
    links=(("n1", "n2"), ("n2", "n3")),
    socks=("n1",),
    hello_ms=50,
)

STILL = {
    "undeclared": "it counts a bug",
    "hellos_refused_total": "forged ones need the key of a link; tests/real/test_hops_hellos.py",
    "link_suspected": "lasts some 100 ms; tests/core/test_links_liveness.py",
    "session_moves_total": "needs a second path; tests/real/test_mesh_failover.py",
    "resent_bytes_total": "needs a second path; tests/real/test_mesh_failover.py",
    "dial_backs_total": "needs a host behind a NAT; tests/real/test_mesh_hosts.py",
    "circuits_closed_total": "see the test: only the lost ones",
    "link_loss_ratio": "nothing is lost on loopback; tests/core/test_links_quality.py",
    "records_refused_total": "needs a forger; tests/core/test_records_laws.py",
    "svid_renewal_failures_total": "needs an authority away for half a life; "
    "tests/real/test_mesh_outages.py",
    "proxy_ticks_late_total": "needs a starved machine",
    "authority_anonymous": "lasts for one enrolment",
    "authority_read_only": "needs a full disk; tests/real/test_authority.py",
    "authority_handshakes_refused_total": "needs an impostor; tests/edge/test_authority_api.py",
    "authority_clock_offset_seconds": "may be zero on one machine",
    "authority_polls_total": "needs another trust domain; tests/edge/test_bundle_endpoint.py",
    "authority_polls_failed_total": "the same",
    "authority_bundles_served_total": "the same",
    "workload_api_refused_total": "needs a caller that execs; tests/edge/test_attest_callers.py",
    **dict.fromkeys(
        [x.name for x in catalogue.NODE if x.name.startswith(("kernel_", "direct_"))],
        "needs a kernel of its own; tests/real/test_kernel_plane.py",
    ),
    **dict.fromkeys(
        (
            "authority_others",
            "authority_behind",
            "authority_learnt_total",
            "authority_superseded_total",
        ),
        "needs two authorities; tests/edge/test_authority_pair.py",
    ),
    "authority_ocsp_answered_total": "needs a responder; tests/edge/test_ocsp.py",
}
"""Metrics that may rest at zero here, and where they are moved."""


def scraped(text: str, into: dict[str, float]) -> None:
    """Add up the absolute values of each metric."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("x0_")
            into[name] = into.get(name, 0.0) + abs(sample.value)


def http(address: str) -> str:
    """What a scraper gets."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def of_all(lab: Lab) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in NODES:
        with contextlib.suppress(X0Error), AdminClient(lab.mesh.state(node)) as client:
            scraped(client.ask(GetMetrics(), Text).text, found)
    return found


def knock(lab: Lab) -> None:
    """A stranger at the data port of the relay: a setup frame and a hello under no key of ours."""
    host, _, port = lab.status("n2").data_address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(bytes(120), (host, int(port)))
    with socket.create_connection((host, int(port)), timeout=5) as stranger:
        stranger.sendall(b"X0\x01\x01" + bytes(14) + bytes(64))
        stranger.settimeout(10)
        while stranger.recv(4096):
            pass


def settle(lab: Lab, done: Callable[[dict[str, float]], bool], what: str) -> None:
    wait_for(lambda: done(of_all(lab)), what, 20)


async def used_workload_api(lab: Lab) -> dict[str, float]:
    """Figures of all nodes while a workload holds a stream open and has had a token."""
    async with X509Source(lab.status("n1").workload_api) as source:
        await source.wait()
        await fetch_jwt_svids("metrics", client=source.client)
        return await asyncio.to_thread(of_all, lab)


def serve_authority_metrics(lab: Lab) -> str:
    """Settings as `lab` wrote them, with an address for metrics; the authority starts with it."""
    path = lab.mesh.config("authority")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    path.write_text(path.read_text() + f'\n[metrics]\nlisten = "{address}"\n')
    cfg.read_authority(path)
    return address


def test_every_declared_metric_is_moved() -> None:
    with scratch("metrics") as root, Lab(root, SHAPE) as lab:
        lab.start()
        lab.mesh.kill("authority")
        address = serve_authority_metrics(lab)
        lab.mesh.start("authority")
        lab.mesh.wait("authority", lab.operator.is_serving, "the authority")
        get_page(lab.plain("n1", "web"))
        with pytest.raises(ConnectionRefusedError):
            through_socks(lab.socks("n1"), "db.mesh", 80)
        with socket.create_connection(lab.socks("n1"), 5) as rude:
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            rude.recv(100)
        knock(lab)
        with contextlib.suppress(X0Error):
            lab.operator.call("NameShow", Key("nope"))
        assert lab.renew(*NODES) >= 4
        lab.operator.revoke(spiffe("nobody"), "test")
        with through_socks(lab.socks("n1"), "web.mesh", 80):
            settle(lab, lambda got: got.get("streams", 0) > 0, "an open stream to be told")
            moved = asyncio.run(used_workload_api(lab))
        scraped(http(address), moved)
        assert "x0_sessions" in http(lab.status("n1").metrics_address)
        lab.mesh.kill("n3")
        settle(lab, lambda got: got.get("link_downs_total", 0) > 0, "a lost link to be told")
        for name, value in of_all(lab).items():
            moved[name] = max(moved.get(name, 0.0), value)
        assert moved["undeclared"] == 0
        asleep = [
            m.name for m in catalogue.METRICS if not moved.get(m.name) and m.name not in STILL
        ]
        assert asleep == []
        unknown = set(STILL) - set(catalogue.BY_NAME)
        assert unknown == set()
        _is_in_the_access_log(lab)


def _is_in_the_access_log(lab: Lab) -> None:
    text = Path(lab.mesh.state("n1") / "access.log").read_text()
    assert f'"source":"{spiffe("shop")}","target":"{spiffe("web")}"' in text
    assert '"path":["n1","n2","n3"]' in text
