"""What a genuine member may say, and what nobody believes it: names, links, endpoints, records."""

from __future__ import annotations

import time
from itertools import pairwise

import msgspec
import pytest

from tests.real.attacks import Attempt, attack, attempt
from tests.real.hostile import EVIL, NEIGHBOURS, Scene, end_of, evil, load
from tests.real.lab import spiffe
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire import admin, records
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.records import Adjacency, Endpoint, NodeBody

__all__ = ["attempt", "evil", "load"]
pytestmark = pytest.mark.usefixtures("load")


# ------------------------------------------------------------------ names
@attack(
    "links",
    tried="a member greets as another node",
    reason=f"{EVIL} greets as n3",
    twin="the same connection greets as itself",
)
def test_greets_as_another(attempt: Attempt, evil: Scene) -> None:
    since, before = evil.now_us(), evil.member.ups["n2"]
    evil.member.say("n2", evil.member.intro(node="n3"))
    attempt.refused(evil.says("n2", "greets as", since))
    wait_for(lambda: evil.member.ups["n2"] > before, "the link to come back", 10)
    attempt.accepted(evil.taken(evil.honest(), "n2"))


@attack(
    "records",
    tried="a member writes the record of another node, signed by itself",
    reason="record of another writer",
    twin="its own record, signed by itself",
)
def test_writes_for_another(attempt: Attempt, evil: Scene) -> None:
    since, before = evil.now_us(), evil.generation("n1", "n2")
    forged = evil.member.record(NodeBody((), ()), writer="n2", generation=before + 5)
    evil.member.flood("n1", forged)
    attempt.refused(evil.says("n1", "record of another writer", since))
    assert evil.generation("n1", "n2") == before
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="a record of another node with the name of its writer changed to our own",
    reason="bad record signature",
    twin="the same record as its writer signed it",
)
def test_takes_over_a_record(attempt: Attempt, evil: Scene) -> None:
    stolen = records.decode_record(evil.member.steal("n2", "n2", "node", ""))
    later = msgspec.structs.replace(stolen, generation=stolen.generation + 5)
    since = evil.now_us()
    evil.member.flood("n1", msgspec.msgpack.encode(later))
    attempt.refused(evil.says("n1", "bad record signature", since))
    attempt.accepted(evil.generation("n1", "n2") == stolen.generation)


@attack(
    "records",
    tried="a record signed by a workload's key",
    reason="not a node",
    twin="signed by the node's key",
)
def test_workload_signs_a_record(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    shop = evil.member.workloads[spiffe("shop")]
    evil.member.flood("n1", evil.member.record(NodeBody((), ()), svid=shop))
    attempt.refused(evil.says("n1", "not a node", since))
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="a record that lives longer than the SVID that signed it",
    reason="record outlives its SVID",
    twin="one that ends with it",
)
def test_outlives_its_svid(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    late = evil.member.svid.not_after_unix_s + 1
    evil.member.flood("n1", evil.member.record(NodeBody((), ()), expires_unix_s=late))
    attempt.refused(evil.says("n1", "record outlives its SVID", since))
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="a record from the future, to win for good",
    reason="generation is ahead of the clock",
    twin="one from now",
)
def test_from_the_future(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    ahead = since // 1_000_000 + 120
    evil.member.flood("n1", evil.member.record(NodeBody((), ()), generation=ahead))
    attempt.refused(evil.says("n1", "generation is ahead of the clock", since))
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="a record of 17 KiB",
    reason="record of 17",
    twin="one of 15 KiB",
)
def test_oversized(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    large = NodeBody(evil.links(), (), report="x" * 16_800)
    evil.member.flood("n1", evil.member.record(large))
    attempt.refused(evil.says("n1", "record of 17", since))
    fits = NodeBody(evil.links(), (), report="x" * 14_000)
    evil.member.flood("n1", evil.member.record(fits))
    attempt.accepted(evil.taken(evil.member.generation, "n1"))


@attack(
    "records",
    tried="names and policy of the authority, signed by a member",
    reason="the authority writes no such record",
    twin="the member's own",
)
def test_speaks_for_the_authority(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    evil.member.flood("n1", evil.member.record(NodeBody((), ()), writer="authority"))
    attempt.refused(evil.says("n1", "the authority writes no such record", since))
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="the authority's next set of names, complete but signed by a member's key",
    reason="bad signature",
    twin="the set of the authority stays in force",
)
def test_forges_names(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    true = records.decode_record(evil.member.steal("n1", "authority", "manifest", "names"))
    manifest = records.decode_manifest(true.body)
    next_one = msgspec.structs.replace(
        manifest, sequence=manifest.sequence + 1, chunks=(), inline=records.encode_body(())
    )
    forged = evil.member.record(
        records.encode_body(next_one),
        writer="authority",
        kind="manifest",
        name="names",
        generation=true.generation + 1,
        expires_unix_s=true.expires_unix_s,
        signer=true.signer,
    )
    evil.member.flood("n1", forged)
    attempt.refused(evil.says("n1", "bad signature", since))
    attempt.accepted("web" in {s.name for s in evil.lab.status("n1").services})


def _refused_after(evil: Scene) -> None:
    """Send a record that is counted as refused, and wait: what came before it was looked at."""
    refused = evil.counter("n1", "records_refused_total")
    later = evil.generation("n1", "n2") + 5
    forged = evil.member.record(NodeBody((), ()), writer="n2", generation=later)
    evil.member.flood("n1", forged)
    evil.counts("n1", "records_refused_total", refused)


@attack(
    "records",
    tried="records replayed and rolled back, with good signatures",
    reason="not even verified",
    twin="the next generation",
)
def test_rolled_back(attempt: Attempt, evil: Scene) -> None:
    old = evil.member.record(NodeBody((), (), report="old"))
    first = evil.member.generation
    evil.member.flood("n1", old)
    evil.taken(first, "n1")
    now = evil.honest()
    evil.taken(now, "n1")
    equal = evil.member.record(NodeBody((), (), report="equal"), generation=now)
    for _ in range(3):
        evil.member.flood("n1", old, equal)
    _refused_after(evil)
    until = time.monotonic() + 2.5
    while time.monotonic() < until:  # What is over its writer's rate waits for a second or two.
        held = records.decode_record(evil.member.steal("n1", EVIL, "node", ""))
        assert held.generation == now
        assert records.decode_node(held.body).report == "", "an equal or older one is in force"
        time.sleep(0.1)
    attempt.refused("not even verified: an equal or older generation is known already")
    attempt.accepted(evil.taken(evil.honest(), "n1"))


@attack(
    "records",
    tried="24 good records in one message",
    reason="at most 8 at once and one a second",
    twin="the newest of them, after a while",
)
def test_over_its_rate(attempt: Attempt, evil: Scene) -> None:
    began = time.monotonic()
    before = evil.counter("n1", "records_verified_total")
    storm = [evil.member.record(NodeBody(evil.links(), ())) for _ in range(24)]
    evil.member.flood("n1", *storm)
    newest = evil.member.generation
    evil.taken(newest, "n1", seconds=15)
    verified = evil.counter("n1", "records_verified_total") - before
    allowed = 8 + int(time.monotonic() - began) + 10  # Ten for all others.
    assert verified <= allowed, (verified, allowed)
    attempt.refused(f"at most 8 at once and one a second: {verified} of 24 were looked at")
    attempt.accepted(evil.generation("n1", EVIL) >= newest)


@attack(
    "records",
    tried="a record that has expired",
    reason="never shown",
    twin="the same with time left",
)
def test_expired(attempt: Attempt, evil: Scene) -> None:
    before = evil.generation("n1", EVIL)
    past = evil.now_us() // 1_000_000 - 1
    evil.member.flood("n1", evil.member.record(NodeBody((), ()), expires_unix_s=past))
    _refused_after(evil)
    assert evil.generation("n1", EVIL) == before
    attempt.refused("never shown in the map: it has ended")
    attempt.accepted(evil.taken(evil.honest(), "n1"))


# ------------------------------------------------------------------ links
def _paths(evil: Scene, source: str, target: str) -> tuple[tuple[str, ...], ...]:
    """Paths by the map of n1, best first."""
    with AdminClient(evil.lab.mesh.state("n1")) as client:
        try:
            return client.ask(admin.GetPath(source, target), admin.PathAnswer).paths
        except X0Error:
            return ()


def _sees(evil: Scene, node: str) -> bool:
    """Wait until the map of n1 has the link between the hostile member and another."""
    wait_for(lambda: (EVIL, node) in _paths(evil, EVIL, node), f"link {EVIL}-{node}", 10)
    return True


@attack(
    "routing",
    tried="a member announces a link to a node that does not report it, at the lowest cost",
    reason="only one end reports it",
    twin="a link that both ends report",
)
def test_one_sided_link(attempt: Attempt, evil: Scene) -> None:
    lie = (*evil.links(), Adjacency("n3", 1, True), Adjacency("n9", 1, True))
    evil.taken(evil.honest(*lie), "n1")
    assert _sees(evil, "n2")
    paths = _paths(evil, EVIL, "n3")
    assert paths
    assert (EVIL, "n3") not in paths
    for path in _paths(evil, "n1", "n3"):
        assert (EVIL, "n3") not in pairwise(path), "drawn to the liar"
    assert not _paths(evil, "n1", "n9")
    by = " ".join(paths[0])
    attempt.refused(f"only one end reports it: by the map of n1 {EVIL} reaches n3 by {by}")
    attempt.accepted((EVIL, "n2") in _paths(evil, EVIL, "n2"))


@attack(
    "routing",
    tried="a member announces its links at costs of 0 and -1000000",
    reason="the higher cost of both ends counts",
    twin="a cost of 5000, which keeps traffic away",
)
def test_costs_that_attract(attempt: Attempt, evil: Scene) -> None:
    for cost in (0, -1_000_000):
        lie = tuple(Adjacency(node, cost, True) for node in NEIGHBOURS)
        evil.taken(evil.honest(*lie), "n1")
        theirs = records.decode_record(evil.member.steal("n1", "n1", "node", ""))
        links = {a.node: a.cost for a in records.decode_node(theirs.body).links}
        assert _cost_to(evil, EVIL) >= links[EVIL] >= 1, (cost, links)
    said = f"{_cost_to(evil, EVIL)}/16 ms from n1 to {EVIL}, where n1 measures {links[EVIL]}"
    attempt.refused(f"the higher cost of both ends counts: {said}")
    dear = tuple(Adjacency(node, 5_000, True) for node in NEIGHBOURS)
    evil.taken(evil.honest(*dear), "n1")
    wait_for(lambda: _cost_to(evil, EVIL) >= 5_000, "the cost that it asks for", 5)
    attempt.accepted(evil.taken(evil.honest(), "n1"))


def _cost_to(evil: Scene, node: str) -> int:
    """Cost of the direct path from n1 by its map, or of the best if there is none."""
    with AdminClient(evil.lab.mesh.state("n1")) as client:
        answer = client.ask(admin.GetPath("n1", node), admin.PathAnswer)
    costs = dict(zip(answer.paths, answer.costs, strict=True))
    return costs.get(("n1", node), answer.costs[0])


# ------------------------------------------------------------------ endpoints
def _offers(evil: Scene, *endpoints: Endpoint) -> int:
    """Publish endpoints on a page of their own; an honest one goes along to be waited for."""
    den = evil.member.workloads[spiffe("den")]
    body = NodeBody((), (*endpoints, evil.member.endpoint(spiffe("den"), den)))
    evil.member.flood("n1", evil.member.record(body, name="e0"))
    return evil.member.generation


def _den_is_there(evil: Scene) -> bool:
    wait_for(lambda: EVIL in evil.replicas("n1", spiffe("den")), "the endpoint of den", 5)
    return True


@attack(
    "endpoints",
    tried="a member announces another workload's endpoint without a chain",
    reason="no certificate",
    twin="its own workload's endpoint in the same record",
)
def test_endpoint_without_chain(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    den = evil.member.workloads[spiffe("den")]
    bare = evil.member.endpoint(spiffe("web"), den, chain=())
    _offers(evil, bare)
    attempt.refused(evil.says("n1", f"endpoint at {EVIL}", since))
    assert evil.replicas("n1", spiffe("web")) == ("n3",)
    attempt.accepted(_den_is_there(evil))


@attack(
    "endpoints",
    tried="with the chain and signature stolen from another node's record",
    reason="bad record signature",
    twin="its own workload's endpoint in the same record",
)
def test_endpoint_with_stolen_chain(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    theirs = records.decode_record(evil.member.steal("n1", "n3", "node", "e0"))
    found = records.decode_node(theirs.body).endpoints
    web = next(e for e in found if e.id == spiffe("web"))
    _offers(evil, web)
    attempt.refused(evil.says("n1", f"endpoint at {EVIL}: bad", since))
    assert evil.replicas("n1", spiffe("web")) == ("n3",)
    attempt.accepted(_den_is_there(evil))


@attack(
    "endpoints",
    tried="for a workload of another node, with the SVID of one of its own",
    reason="endpoint of another ID",
    twin="its own workload's endpoint in the same record",
)
def test_endpoint_of_another_workload(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    den = evil.member.workloads[spiffe("den")]
    _offers(evil, evil.member.endpoint(spiffe("web"), den))
    attempt.refused(evil.says("n1", "endpoint of another ID", since))
    assert evil.replicas("n1", spiffe("web")) == ("n3",)
    attempt.accepted(_den_is_there(evil))


@attack(
    "endpoints",
    tried="an endpoint that lives longer than its SVID",
    reason="endpoint outlives its SVID",
    twin="its own workload's endpoint in the same record",
)
def test_endpoint_that_lives_too_long(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    den = evil.member.workloads[spiffe("den")]
    late = den.not_after_unix_s + 100
    _offers(evil, evil.member.endpoint(spiffe("shop"), den, expires_unix_s=late))
    attempt.refused(evil.says("n1", "endpoint outlives its SVID", since))
    attempt.accepted(_den_is_there(evil))


@attack(
    "endpoints",
    tried="for a workload of another node, with that workload's SVID and its stolen key",
    reason="endpoint of an SVID of another node",
    twin="its own workload's endpoint in the same record",
)
def test_endpoint_with_stolen_workload_key(attempt: Attempt, evil: Scene) -> None:
    since = evil.now_us()
    kept = Wallet(evil.lab.mesh.state("n3")).workloads()
    (web,) = [item for item in kept.svids if item.id == spiffe("web")]
    stolen = Svid(SpiffeId(web.id), web.chain, web.key, web.not_after_unix_s)
    _offers(evil, evil.member.endpoint(spiffe("web"), stolen))
    attempt.refused(evil.says("n1", "endpoint of an SVID of another node", since))
    assert evil.replicas("n1", spiffe("web")) == ("n3",)
    attempt.accepted(_den_is_there(evil))


def test_the_other_traffic_lost_nothing(evil: Scene) -> None:
    end_of(evil)
