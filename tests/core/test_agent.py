"""Stories about the agent's composite: from records and links to what the proxy holds."""

from __future__ import annotations

import time

import pytest

from tests.fakes.agents import TTL_S, UNIX, FakeProxy, Mesh, Node, neighbour, svid
from tests.fakes.signing import DOMAIN, bundle, set_records
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.agent.neighbours import RESTART_TIME
from x0tta6bl4.core.identity.renewal import RenewWanted, SvidExpired
from x0tta6bl4.core.machine import SECOND, Done, Effects, Failed, Instant, Received
from x0tta6bl4.core.records.sets import SetChanged
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import (
    AuthorityPathItem,
    BundleItem,
    CallerItem,
    ClockItem,
    Delta,
    Flood,
    Full,
    ListenItem,
    NameItem,
    NeedFull,
    NeighbourItem,
    NodeItem,
    PathBad,
    PathsItem,
    Ready,
    ReplicasItem,
    RevokedItem,
    RuleItem,
    ServiceItem,
    SessionGone,
    SessionState,
    SvidItem,
)
from x0tta6bl4.wire.records import (
    Heartbeat,
    Name,
    Revocation,
    Rule,
    Word,
    encode_body,
)

WEB = f"spiffe://{DOMAIN}/web"
SHOP = f"spiffe://{DOMAIN}/shop"
LATER = UNIX + 10 * TTL_S

LINE = [("a", "b"), ("b", "c")]
DIAMOND = [("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")]


def entry(id: str, node: str, key: str = "", address: str = "") -> Entry:
    return Entry(id, node, ("unix:uid:1000",), address=address, key=key or id)


def a_set(set: str, sequence: int, value: Word | tuple[Word, ...]) -> tuple[bytes, ...]:
    return set_records(
        set, sequence, encode_body(value), key="k1", generation=UNIX + sequence,
        expires_unix_s=LATER,
    )  # fmt: skip


def shop_and_web(links: list[tuple[str, str]]) -> Mesh:
    """A caller on node a and a service on the last node."""
    names = sorted({name for link in links for name in link})
    mesh = Mesh(names, links)
    mesh[names[-1]].entries(entry(WEB, names[-1], address="127.0.0.1:80"))
    mesh["a"].entries(entry(SHOP, "a"))
    mesh.run(3)
    return mesh


def noticed(effects: Effects) -> list[tuple[str, str]]:
    return [(e.kind, e.text) for e in effects if type(e) is words.Noticed]


def test_a_caller_gets_replicas_and_paths_and_a_relay_gets_neither() -> None:
    mesh = shop_and_web(LINE)
    a, b = mesh["a"].proxy, mesh["b"].proxy
    assert a.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]
    assert a.item("PathsItem/c") == PathsItem("c", (("a", "b", "c"),))
    assert a.items(CallerItem) == [CallerItem(SHOP, ("unix:uid:1000",))]
    assert b.items(ReplicasItem) == []
    assert b.items(PathsItem) == [PathsItem("b", (("b",),))]
    c = mesh["c"].proxy
    assert c.items(ServiceItem) == [ServiceItem(WEB, "127.0.0.1:80", ("unix:uid:1000",))]
    assert {item.id for item in c.items(SvidItem) if type(item) is SvidItem} == {WEB}


def test_a_dead_link_moves_the_paths_and_only_them() -> None:
    mesh = shop_and_web(DIAMOND)
    proxy = mesh["a"].proxy
    over_b, over_c = ("a", "b", "d"), ("a", "c", "d")
    assert proxy.item("PathsItem/d") == PathsItem("d", (over_b, over_c))
    before = len(proxy.orders)
    mesh.cut("b", "d")
    mesh.run(0.5)
    (order,) = proxy.orders[before:]
    assert type(order) is Delta
    assert (order.puts, order.drops) == ((PathsItem("d", (over_c,)),), ())
    mesh.connect("b", "d")
    mesh.run(3)
    assert proxy.item("PathsItem/d") == PathsItem("d", (over_b, over_c))


def test_a_service_out_of_reach_has_no_replica_and_comes_back() -> None:
    mesh = shop_and_web(LINE)
    mesh.cut("b", "c")
    mesh.run(1)
    proxy = mesh["a"].proxy
    assert (proxy.items(ReplicasItem), proxy.item("PathsItem/c")) == ([], None)
    mesh.connect("b", "c")
    mesh.run(3)
    assert proxy.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]


def test_a_bad_path_is_avoided_by_this_node_alone() -> None:
    mesh = shop_and_web(DIAMOND)
    mesh["a"].give(words.ProxySaid(PathBad(("a", "b", "d"), "corrupted")))
    item = mesh["a"].proxy.item("PathsItem/d")
    assert item == PathsItem("d", (("a", "c", "d"), ("a", "b", "d")))


# ------------------------------------------------------------------ entries and SVIDs
def test_every_entry_gets_an_svid_and_one_that_is_withdrawn_is_dropped_by_name() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.entries(entry(WEB, "a"), entry(SHOP, "a"))
    mesh.run(1)
    assert {item.id for item in node.proxy.items(SvidItem) if type(item) is SvidItem} == {
        WEB,
        SHOP,
    }
    node.give(words.AuthoritySaid(Update(0, gone=(WEB,))))
    last = node.proxy.orders[-1]
    assert type(last) is Delta
    assert f"SvidItem/{WEB}" in last.drops
    assert [item.id for item in node.proxy.items(SvidItem) if type(item) is SvidItem] == [SHOP]


def test_renewals_that_fail_are_asked_again_and_late_answers_are_ignored() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.issue = False
    first = [e for e in node.entries(entry(WEB, "a")) if type(e) is RenewWanted]
    assert [wanted.id for wanted in first] == [WEB]
    token = first[0].token
    node.give(Failed(token, "authority not connected"))
    late = node.give(Done(token, svid(WEB, LATER)))
    assert late == ()
    mesh.run(2)
    again = [e for e in node.said if type(e) is RenewWanted and e.id == WEB]
    assert len(again) == 2
    assert node.give(Done(again[1].token, svid(SHOP, LATER))) == ()
    assert node.proxy.items(SvidItem) == []
    mesh.run(5)
    third = [e for e in node.said if type(e) is RenewWanted and e.id == WEB][2]
    node.give(Done(third.token, svid(WEB, LATER)))
    assert node.proxy.item(f"SvidItem/{WEB}") == svid(WEB, LATER)


def test_svids_are_renewed_at_half_life_and_records_follow() -> None:
    mesh = shop_and_web(LINE)
    mesh.run(TTL_S * 0.6)
    for name in "abc":
        view = mesh[name].agent.view(mesh.now)
        assert all(end > UNIX + TTL_S * 1.2 for _, end in view.svids)
        assert all(node.expires_unix_s > UNIX + TTL_S * 1.2 for node in view.nodes)
        assert [node.node for node in view.nodes] == ["a", "b", "c"]
    mesh.run(TTL_S)
    assert mesh["a"].proxy.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]


def test_an_svid_that_is_not_renewed_expires_with_its_endpoint_and_the_rest_goes_on() -> None:
    mesh = shop_and_web(LINE)
    mesh["c"].issue = False
    mesh["c"].give(words.SvidHeld(svid(mesh["c"].id, UNIX + 3 * TTL_S)))
    mesh.run(TTL_S + 5)
    expired = [e for e in mesh["c"].said if type(e) is SvidExpired]
    assert expired == [SvidExpired(SpiffeId(WEB))]
    assert mesh["a"].proxy.items(ReplicasItem) == []
    assert "c" in [node.node for node in mesh["a"].agent.view().nodes]


def test_an_operator_can_have_svids_renewed_at_once() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.entries(entry(WEB, "a"))
    mesh.run(1)
    before = len([e for e in node.said if type(e) is RenewWanted])
    node.give(words.RenewNow((WEB, node.id)))
    after = [e.id for e in node.said if type(e) is RenewWanted][before:]
    assert after == [WEB, node.id]


def test_the_authority_can_have_everything_renewed_once() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.entries(entry(WEB, "a"))
    mesh.run(1)
    before = len([e for e in node.said if type(e) is RenewWanted])
    for _ in range(3):
        node.give(words.AuthoritySaid(Update(0, renew_issued_before_unix_s=UNIX + 1)))
        mesh.run(3)
    after = [e.id for e in node.said if type(e) is RenewWanted][before:]
    assert sorted(after) == sorted([WEB, node.id])


def test_many_services_stand_on_several_pages_and_all_are_found() -> None:
    mesh = Mesh("ab", [("a", "b")])
    ids = [f"spiffe://{DOMAIN}/{'x' * 900}/{number}" for number in range(40)]
    mesh["b"].entries(*(entry(id, "b", address="127.0.0.1:80") for id in ids))
    mesh["a"].entries(entry(SHOP, "a"))
    mesh.run(9)
    found = {i.id for i in mesh["a"].proxy.items(ReplicasItem) if type(i) is ReplicasItem}
    assert found == set(ids)
    mesh["b"].entries(entry(ids[0], "b", address="127.0.0.1:80"))
    mesh.run(30)
    found = {i.id for i in mesh["a"].proxy.items(ReplicasItem) if type(i) is ReplicasItem}
    assert found == {ids[0]}


# ------------------------------------------------------------------ restarts
def restart(mesh: Mesh, name: str) -> Node:
    """The agent dies and a new one takes over; the proxy goes on."""
    node = mesh[name]
    links = [link for link in mesh.links if name in link]
    for a, b in links:
        mesh.cut(a, b, proxies=False)
        other = mesh[b if a == name else a]
        other.link_state(name, "up", alive=False)
    node.born(node.agent.held())
    mesh.links |= set(links)
    node.meet_proxy()
    return node


def reconnect(mesh: Mesh, name: str) -> None:
    for a, b in [link for link in mesh.links if name in link]:
        mesh.connect(a, b)


def test_a_new_agent_reads_the_snapshot_back_and_takes_nothing_away() -> None:
    mesh = shop_and_web(DIAMOND)
    mesh["a"].records(*a_set("names", 1, (Name("web", WEB, (SHOP,)),)))
    proxy = mesh["a"].proxy
    before = dict(proxy.snapshot.items)
    version = proxy.snapshot.version
    node = restart(mesh, "a")
    assert proxy.snapshot.items == before
    assert proxy.snapshot.version > version
    mesh.run(2)
    reconnect(mesh, "a")
    orders = len(proxy.orders)
    node.entries(entry(SHOP, "a"))
    mesh.run(30)
    assert proxy.snapshot.items == before
    # The SVID that it took over is used: none was asked for.
    assert [e for e in node.said if type(e) is RenewWanted and e.id == SHOP][1:] == []
    dropped = [key for o in proxy.orders[orders:] if type(o) is Delta for key in o.drops]
    assert dropped == []


def test_the_mesh_does_not_notice_that_an_agent_restarts() -> None:
    mesh = shop_and_web(LINE)
    proxy, orders = mesh["a"].proxy, len(mesh["a"].proxy.orders)
    restart(mesh, "b")
    mesh.run(1)
    reconnect(mesh, "b")
    mesh.run(10)
    restart(mesh, "c")
    mesh.run(1)
    reconnect(mesh, "c")
    mesh["c"].entries(entry(WEB, "c", address="127.0.0.1:80"))
    mesh.run(60)
    assert len(proxy.orders) == orders


def test_what_is_no_longer_true_after_a_restart_goes_when_everything_has_settled() -> None:
    mesh = shop_and_web(DIAMOND)
    proxy = mesh["a"].proxy
    restart(mesh, "a")
    mesh["d"].entries()
    mesh.run(1)
    reconnect(mesh, "a")
    mesh["a"].entries(entry(SHOP, "a"))
    mesh.run(5)
    mesh.run(30)
    assert proxy.items(ReplicasItem) == []
    assert proxy.item("PathsItem/d") is None
    assert len(proxy.items(NeighbourItem)) == 2


def test_svids_withdrawn_while_the_proxy_was_away_are_named_when_it_returns() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    node.give(words.ProxyGone())
    node.entries()
    assert node.proxy.item(f"SvidItem/{SHOP}") is not None
    node.meet_proxy()
    assert node.proxy.item(f"SvidItem/{SHOP}") is None
    assert node.proxy.items(CallerItem) == []


def test_a_new_proxy_never_gets_the_keys_of_the_one_before() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    node.give(words.ProxyGone())
    node.proxy = FakeProxy(2)
    mesh.links.clear()
    node.meet_proxy()
    assert node.proxy.items(NeighbourItem) == []
    assert node.proxy.item(f"SvidItem/{SHOP}") is not None
    node.give(words.NeighbourUp(neighbour("b", 1)))
    assert node.proxy.items(NeighbourItem) == [neighbour("b", 1)]


def test_a_delta_that_did_not_fit_is_followed_by_everything() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    before = dict(node.proxy.snapshot.items)
    node.proxy.snapshot.version += 5
    node.give(words.ProxySaid(NeedFull(node.proxy.snapshot.version)))
    assert type(node.proxy.orders[-1]) is Full
    assert node.proxy.snapshot.items == before


def test_a_dead_agent_keeps_its_links_for_the_restart_time() -> None:
    mesh = shop_and_web(LINE)
    mesh.cut("b", "c", proxies=False)
    mesh["b"].link_state("c", "up", alive=False)
    mesh["c"].issue = False
    paths = PathsItem("c", (("a", "b", "c"),))
    mesh.run(RESTART_TIME / SECOND - 1)
    assert mesh["a"].proxy.item("PathsItem/c") == paths
    mesh.run(2)
    assert mesh["a"].proxy.item("PathsItem/c") is None
    mesh["b"].link_state("c", "up", alive=False)
    mesh.run(2)
    assert mesh["a"].proxy.item("PathsItem/c") is None
    mesh.connect("b", "c")
    mesh.run(3)
    assert mesh["a"].proxy.item("PathsItem/c") == paths


def test_a_node_that_stops_says_for_how_long_it_may_be_used() -> None:
    mesh = shop_and_web(LINE)
    mesh["b"].give(words.Stopping())
    assert words.PersistWanted() in mesh["b"].said
    mesh.run(100)
    assert mesh["a"].proxy.item("PathsItem/c") is not None
    mesh.run(30)
    assert mesh["a"].proxy.item("PathsItem/c") is None


def test_a_draining_node_is_no_way_for_others() -> None:
    mesh = shop_and_web(DIAMOND)
    mesh["b"].give(words.AuthoritySaid(Update(0, draining=True)))
    mesh.run(2)
    assert mesh["a"].proxy.item("PathsItem/d") == PathsItem("d", (("a", "c", "d"),))
    mesh["c"].give(words.Configured(words.NodeConfig(stub=True)))
    mesh.run(2)
    assert mesh["a"].proxy.item("PathsItem/d") is None


def test_a_draining_node_offers_nothing_and_its_proxy_is_told_and_all_of_it_ends_again() -> None:
    mesh = shop_and_web(LINE)
    c = mesh["c"]
    assert not c.agent.draining
    mesh["c"].give(words.AuthoritySaid(Update(0, draining=True)))
    mesh.run(3)
    told = c.proxy.item("NodeItem")
    assert type(told) is NodeItem
    assert told.draining
    assert c.agent.draining
    assert mesh["a"].proxy.items(ReplicasItem) in ([], [ReplicasItem(WEB, ())])
    assert c.proxy.items(ServiceItem) != []  # Streams that are open go on.
    mesh["c"].give(words.AuthoritySaid(Update(0, draining=False)))
    mesh.run(3)
    told = c.proxy.item("NodeItem")
    assert type(told) is NodeItem
    assert not told.draining
    assert mesh["a"].proxy.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]


# ------------------------------------------------------------------ what the authority says
def test_sets_reach_every_proxy_through_the_mesh() -> None:
    mesh = shop_and_web(LINE)
    mesh["c"].records(
        *a_set("names", 1, (Name("web", WEB, (SHOP,), proxy_header=True),)),
        *a_set("policy", 1, (Rule("r1", "deny", (SHOP,), (WEB,)),)),
        *a_set("heartbeat", 1, Heartbeat((UNIX + 5) * SECOND, 1)),
        *a_set("revocations", 1, (Revocation(SHOP, LATER, "", UNIX - 5),)),
    )
    mesh.run(1)
    proxy = mesh["a"].proxy
    assert proxy.items(NameItem) == [NameItem("web", WEB, (SHOP,))]
    assert proxy.items(RuleItem) == [RuleItem("r1", "deny", (SHOP,), (WEB,))]
    assert proxy.items(ClockItem) == [ClockItem((UNIX + 5) * SECOND)]
    assert proxy.items(RevokedItem) == [RevokedItem(SHOP, LATER, UNIX - 5)]
    (service,) = mesh["c"].proxy.items(ServiceItem)
    assert type(service) is ServiceItem
    assert service.proxy_header
    found = {e.set for e in mesh["a"].said if type(e) is SetChanged}
    assert found == {"bundle", "names", "policy", "heartbeat", "revocations"}
    assert mesh["a"].agent.view().names == (("web", WEB),)


def test_the_gate_explains_itself() -> None:
    mesh = Mesh("a", [])
    agent = mesh["a"].agent
    mesh["a"].records(*a_set("names", 1, (Name("web", WEB, (SHOP,)),)))
    assert agent.explain(SHOP, "web.mesh").allowed
    assert agent.explain(SHOP, "web.mesh").rule == "web.mesh"
    assert agent.explain(SHOP, "wob").reason == "no such name"
    mesh["a"].records(*a_set("policy", 1, (Rule("r1", "deny", (SHOP,), (WEB,)),)))
    found = agent.explain(SHOP, "web")
    assert (found.allowed, found.rule, found.target) == (False, "r1", WEB)
    assert agent.explain(WEB, SHOP).rule == ""


def test_names_and_policy_that_expired_are_gone_and_the_bundle_stays() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.records(*a_set("names", 1, (Name("web", WEB, (SHOP,)),)))
    node.give(words.SvidHeld(svid(node.id, LATER + 999)))
    mesh.run(10 * TTL_S + 1)
    assert node.proxy.items(NameItem) == []
    assert len(node.proxy.items(BundleItem)) == 1
    assert noticed(tuple(node.said)) == [("authority", "set names has expired: nothing is allowed")]


def test_a_revoked_node_loses_its_links_its_record_and_its_services() -> None:
    mesh = shop_and_web(LINE)
    mesh["a"].records(*a_set("revocations", 1, (Revocation(mesh["c"].id, LATER),)))
    mesh.run(1)
    assert words.HangUp("c", "revoked") in mesh["b"].said
    assert [i.node for i in mesh["b"].proxy.items(NeighbourItem) if type(i) is NeighbourItem] == [
        "a"
    ]
    assert mesh["a"].proxy.items(ReplicasItem) == []
    again = mesh["b"].give(words.NeighbourUp(neighbour("c")))
    assert again == (words.HangUp("c", "revoked"),)


def test_a_revoked_workload_has_no_replica() -> None:
    mesh = shop_and_web(LINE)
    mesh["a"].records(*a_set("revocations", 1, (Revocation(WEB, LATER),)))
    mesh.run(1)
    assert mesh["a"].proxy.items(ReplicasItem) == []


def test_sets_and_bundle_are_there_again_after_a_restart_without_the_authority() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.records(*a_set("names", 1, (Name("web", WEB, (SHOP,)),)))
    mesh.run(2)
    assert words.PersistWanted() in node.said
    node.proxy = FakeProxy(1)
    node.born(node.agent.held())
    node.meet_proxy()
    assert node.proxy.items(NameItem) == [NameItem("web", WEB, (SHOP,))]
    assert len(node.proxy.items(BundleItem)) == 1


def test_an_endpoint_says_where_only_if_its_own_svid_says_so() -> None:
    mesh = shop_and_web(LINE)
    entries = entry(WEB, "b", address="127.0.0.1:80")
    node = mesh["b"]
    node.issue = False
    (wanted,) = [e for e in node.entries(entries) if type(e) is RenewWanted]
    stolen = svid(WEB, UNIX + TTL_S)
    node.give(Done(wanted.token, SvidItem(WEB, stolen.chain, b"not its key", UNIX + TTL_S)))
    mesh.run(2)
    assert mesh["a"].proxy.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]
    assert ("refused", "endpoint at b: bad signature") in noticed(tuple(mesh["a"].said))


def test_the_way_to_the_authority_leads_over_nodes_that_dial_it() -> None:
    mesh = Mesh("abc", LINE)
    mesh["c"].give(words.Configured(words.NodeConfig(authority="10.0.0.1:8443")))
    mesh.run(2)
    assert mesh["a"].proxy.items(AuthorityPathItem) == [AuthorityPathItem((("a", "b", "c"),))]
    (node,) = mesh["c"].proxy.items(NodeItem)
    assert node == NodeItem(DOMAIN, "c", "10.0.0.1:8443")


# ------------------------------------------------------------------ configuration, views, cost
def test_a_neighbour_that_is_configured_no_more_is_left() -> None:
    mesh = Mesh("abc", LINE)
    node = mesh["b"]
    listen = ListenItem("127.0.0.1:8080", "plain", "web")
    node.give(words.Configured(words.NodeConfig(neighbours=("a", "c"), listens=(listen,))))
    assert node.proxy.items(ListenItem) == [listen]
    effects = node.give(words.Configured(words.NodeConfig(neighbours=("a",))))
    assert words.HangUp("c", "no longer configured") in effects
    assert len(node.proxy.items(NeighbourItem)) == 1
    assert node.proxy.items(ListenItem) == []


def test_the_view_has_what_status_shows_and_no_key() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    session = SessionState(SHOP, WEB, "c", ("a", "b", "c"), (), 1, "active")
    node.give(words.ProxySaid(session))
    node.give(words.AuthorityState(True))
    view = node.agent.view(mesh.now)
    assert (view.node, view.authority_up, view.proxy_up) == ("a", True, True)
    assert [(link.node, link.state, link.cost) for link in view.links] == [("b", "up", 16)]
    assert [(n.node, n.cost, n.links, n.endpoints) for n in view.nodes] == [
        ("a", 0, 1, ()),
        ("b", 16, 2, ()),
        ("c", 32, 1, (WEB,)),
    ]
    assert view.nodes[2].paths == (("a", "b", "c"),)
    assert view.sessions == (session,)
    assert "key " not in repr(view)
    node.give(words.ProxySaid(SessionGone(SHOP, WEB, "c", "idle")))
    assert node.agent.view().sessions == ()
    assert node.agent.paths("a", "c") == ((("a", "b", "c"),), (32,))
    assert node.agent.paths("c", "a") == ((("c", "b", "a"),), (32,))
    assert node.agent.paths("c", "nobody") == ((), ())


def test_a_second_node_of_the_same_name_is_noticed() -> None:
    mesh = Mesh("ab", [("a", "b")])
    mesh.run(1)
    twin = Mesh("ab", [("a", "b")])
    twin.run(1)
    heard = 0
    for step in range(6):
        twin.now = mesh.now = Instant(mesh.now + SECOND)
        twin["a"].give(words.Configured(words.NodeConfig(area=step + 1)))
        record = twin["a"].agent.held().own[0]
        effects = mesh["a"].give(Received("b", Flood((record,))))
        heard += len([kind for kind, _ in noticed(effects) if kind == "duplicate"])
        theirs = mesh["a"].agent.held().own[0]
        twin["a"].give(Received("b", Flood((theirs,))))
    assert heard == 1


def test_an_unknown_incarnation_is_not_the_first() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    effects = node.give(words.ProxySaid(Ready(1, node.proxy.incarnation, 3, 1, 1)))
    assert effects == ()
    node.give(words.ProxySaid(node.proxy.snapshot.full()))
    assert len(node.proxy.items(NeighbourItem)) == 1


def test_a_bundle_of_enrolment_is_used_at_once() -> None:
    mesh = Mesh("a", [])
    assert mesh["a"].proxy.items(BundleItem) == [BundleItem(DOMAIN, bundle(1, "k1").anchors)]
    assert mesh["a"].agent.view().bundle_sequence == 1


def test_what_a_change_of_one_link_costs_an_agent_in_a_large_mesh(
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = 60
    names = [f"n{number:03}" for number in range(size)]
    links = [(names[n], names[(n + 1) % size]) for n in range(size)]
    links += [(names[n], names[(n * 7 + 3) % size]) for n in range(size) if n != (n * 7 + 3) % size]
    start = time.process_time()
    mesh = Mesh(names, links)
    mesh.run(3)
    born = time.process_time() - start
    start = time.process_time()
    mesh.cut(names[0], names[1])
    mesh.run(1)
    healed = time.process_time() - start
    with capsys.disabled():
        print(
            f"\n{size} agents: start {born:.2f} s; one link down {healed * 1e3:.0f} ms for all,"
            f" {healed / size * 1e6:.0f} us each"
        )
    views = mesh[names[5]].agent.view()
    assert len(views.nodes) == size
