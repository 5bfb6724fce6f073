"""K10: a trust domain whose CA and SVIDs have keys of ML-DSA-65, from real processes to a page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.fakes.workload import hold
from tests.real.lab import Lab, Service, Shape, scratch, spiffe
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.crl import withdrawn
from x0tta6bl4.sdk.identity import X509Source, dial, exact, listen
from x0tta6bl4.wire import authority as words

SHAPE = Shape(
    services=(Service("web", ("n2",), ("app",)), Service("db", ("n2",), ("app",))),
    callers=(("n1", "app"),),
    nodes=("n1", "n2"),
    links=(("n1", "n2"),),
    keys="ml-dsa-65",
)
GROUP = "X25519MLKEM768"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with scratch("pq") as root, Lab(root, SHAPE) as lab:
        lab.start()
        yield lab


def test_K10_links_circuits_and_sessions_stand_on_ml_dsa_and_tell_so(lab: Lab) -> None:
    assert lab.gets_page("n1", "db")
    for node in SHAPE.nodes:
        status = lab.status(node)
        assert {svid.key for svid in status.svids} == {"ML-DSA-65"}
        assert [(link.group, link.signature) for link in status.links] == [(GROUP, "mldsa65")]
        groups = {k: n for k, n in status.counters.items() if k.startswith("handshake_groups")}
        assert list(groups) == [f"handshake_groups_total|{GROUP}"]

    def told() -> bool:
        sessions = lab.status("n1").sessions
        return bool(sessions) and {(s.group, s.signature) for s in sessions} == {(GROUP, "mldsa65")}

    wait_for(told, "sessions to be told")


def test_K10_all_that_the_authority_signs_certificates_and_records_with_is_ml_dsa(
    lab: Lab,
) -> None:
    info = lab.operator.call("BundleShow", words.Nothing())
    (ca,) = info.bundle.anchors
    assert x509.parse(ca).fields.key == "ML-DSA-65"
    assert x509.parse(ca).fields.signature == "ML-DSA"
    assert [len(key.point) for key in info.bundle.record_keys] == [1952]


def test_K10_the_sdk_proves_itself_with_ml_dsa(lab: Lab) -> None:
    async def story() -> None:
        client = lab.status("n1").workload_api
        server = lab.status("n2").workload_api
        async with X509Source(client) as app, X509Source(server) as web:
            await app.wait(10)
            await web.wait(10)
            made = await listen(
                "127.0.0.1:0", web, hold, authorize=exact(spiffe("app")), id=spiffe("web"),
                require_pq=True,
            )  # fmt: skip
            async with made as listener:
                connection = await dial(
                    f"127.0.0.1:{listener.port}", app, authorize=exact(spiffe("web")),
                    require_pq=True, first_byte=True,
                )  # fmt: skip
                assert (connection.group, connection.signature) == (GROUP, "mldsa65")
                assert connection.peer_id == spiffe("web")
                await connection.close()

    asyncio.run(story())


def test_K10_revocation_works_with_ml_dsa(lab: Lab) -> None:
    lab.operator.revoke(spiffe("db"), "test")
    wait_for(lambda: not _serves(lab, "db"), "db to be refused", 5)
    assert lab.gets_page("n1", "web")
    anchors = lab.operator.call("BundleShow", words.Nothing()).bundle.anchors

    def listed() -> bool:
        lists = lab.operator.call("CrlShow", words.Nothing()).lists
        found, believed = withdrawn(lists, anchors)
        return all(believed) and len(lists) == len(anchors) and bool(found)

    wait_for(listed, "the serials on a list that a CA has signed", 5)


def _cas(lab: Lab, node: str) -> int:
    async def count() -> int:
        async with X509Source(lab.status(node).workload_api) as source:
            await source.wait(10)
            return sum(map(len, source.bundles.values()))

    return asyncio.run(count())


def _serves(lab: Lab, service: str) -> bool:
    try:
        return lab.gets_page("n1", service)
    except OSError:
        return False


def test_K10_a_node_comes_back_svids_rotate_and_so_does_the_ca() -> None:
    with scratch("pq2") as root, Lab(root, SHAPE) as lab:
        lab.start()
        assert lab.renew("n1") == 2
        assert lab.gets_page("n1", "db")
        lab.operator.call("BundleRotate", words.BundleRotate(step="prepare"))
        wait_for(lambda: all(_cas(lab, node) == 2 for node in SHAPE.nodes), "both CAs to be known")
        lab.operator.call("BundleRotate", words.BundleRotate(step="activate", force=True))
        anchors = lab.operator.call("BundleShow", words.Nothing()).bundle.anchors
        assert len(anchors) == 2
        wait_for(lambda: lab.renew() == 5, "everybody to have SVIDs of the new CA")
        lab.mesh.kill("n1")
        lab.revive("n1")
        lab.wait_page("n1", "db")
        assert {svid.key for svid in lab.status("n1").svids} == {"ML-DSA-65"}
