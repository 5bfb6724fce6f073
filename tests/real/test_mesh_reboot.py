"""Hosts that come up again while nobody can reach the authority: what they had, they offer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.lab import Lab, Service, Shape, get_page, scratch, spiffe
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.wallet import WORKLOADS, Wallet
from x0tta6bl4.wire.errors import X0Error

SHAPE = Shape(
    services=(Service("web", ("n3",), ("shop",)), Service("den", ("n3",), ("shop",))),
    callers=(("n1", "shop"),),
    nodes=("n1", "n2", "n3"),
    links=(("n1", "n2"), ("n2", "n3")),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with scratch("reboot") as root, Lab(root, SHAPE) as lab:
        lab.start()
        yield lab


def test_nodes_that_reboot_without_the_authority_have_their_workloads(lab: Lab) -> None:
    wait_for(lambda: _keeps(lab, "n1", "shop"), "n1 to have its workload on the disk")
    wait_for(lambda: _keeps(lab, "n3", "web", "den"), "n3 to have its workloads on the disk")
    assert (lab.mesh.state("n3") / WORKLOADS).stat().st_mode & 0o777 == 0o600
    lab.mesh.kill("n3")  # Agent and proxy: nobody has the snapshot any more.
    lab.operator.revoke(spiffe("den"), "while its node was off")
    wait_for(lambda: _offering(lab, "n1", "den") == (), "n1 to hear of it")
    lab.mesh.kill("authority")
    lab.mesh.kill("n1")
    lab.mesh.start("n1")
    lab.mesh.start("n3")
    lab.wait_page("n1", "web")
    # It offers what it has before it has heard from n2 how things are.
    wait_for(lambda: lab.status("n3").state == "ready", "n3 to be ready")
    status = lab.status("n3")
    assert not status.authority.connected
    # Who was revoked meanwhile is on the disk of its node, and stays out all the same.
    assert spiffe("den") in [svid.id for svid in status.svids]
    # What n1 had heard may have died with it: its disk is up to a second behind.
    wait_for(lambda: _offering(lab, "n1", "den") == (), "n1 to hear of it again, from n2")
    assert _offering(lab, "n1", "web") == ("n3",)
    assert not lab.gets_page("n1", "den")


def test_a_damaged_file_costs_the_workloads_and_says_so(lab: Lab) -> None:
    lab.revive(*lab.shape.nodes)
    kept = lab.mesh.state("n3") / WORKLOADS
    lab.mesh.kill("n3")
    lab.mesh.kill("authority")
    kept.write_bytes(kept.read_bytes()[:-7])
    lab.mesh.start("n3")
    wait_for(lambda: _told(lab, "n3", "X0-RUN-026"), "n3 to say what is wrong")
    found = [e.text for e in lab.status("n3").events if "X0-RUN-026" in e.text]
    assert len(found) == 1
    assert get_page(lab.plain("n1", "web"), 1) == b""
    lab.revive()
    lab.wait_page("n1", "web")


def _keeps(lab: Lab, node: str, *workloads: str) -> bool:
    """Whether a node would find these SVIDs again: it writes them down within a second."""
    kept = Wallet(lab.mesh.state(node)).workloads()
    return {svid.id for svid in kept.svids} == set(map(spiffe, workloads))


def _offering(lab: Lab, node: str, workload: str) -> tuple[str, ...]:
    """Where a workload can be reached, as a node sees it."""
    (found,) = [s.nodes for s in lab.status(node).services if s.id == spiffe(workload)]
    return found


def _told(lab: Lab, node: str, text: str) -> bool:
    try:
        return any(text in event.text for event in lab.status(node).events)
    except X0Error:
        return False
