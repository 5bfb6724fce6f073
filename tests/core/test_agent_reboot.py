"""Stories about a node that starts with what it had: proxy, disk and authority, who knows best."""

from __future__ import annotations

from tests.core.test_agent import LATER, LINE, SHOP, WEB, entry, shop_and_web
from tests.fakes.agents import UNIX, FakeProxy, Mesh, Node, svid
from tests.fakes.signing import DOMAIN
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.identity.renewal import SvidExpired
from x0tta6bl4.wire.messages import CallerItem, ReplicasItem, ServiceItem, SvidItem


def reboot(mesh: Mesh, name: str) -> Node:
    """Agent and proxy start anew; the authority is out of reach."""
    node = mesh[name]
    kept, held = node.agent.workloads(), node.agent.held()
    node.proxy = FakeProxy(2)
    node.issue = False
    node.born(held)
    node.give(kept)
    node.meet_proxy()
    return node


def test_a_node_that_reboots_without_the_authority_has_its_workloads() -> None:
    mesh = shop_and_web(LINE)
    asked = [e for e in mesh["c"].said if type(e) is words.KeepWanted]
    assert len(asked) in (1, 2)
    before = {kind: mesh["c"].proxy.items(kind) for kind in (ServiceItem, CallerItem, SvidItem)}
    node = reboot(mesh, "c")
    assert all(node.proxy.items(kind) == items and items for kind, items in before.items())
    mesh.cut("b", "c")
    mesh.connect("b", "c")
    mesh.run(3)
    assert mesh["a"].proxy.items(ReplicasItem) == [ReplicasItem(WEB, (("c", 0),))]
    # It is as if the authority had said so: what was not there has to come from it.
    node.entries(entry(SHOP, "c"))
    assert (node.proxy.items(ServiceItem), node.proxy.item(f"SvidItem/{WEB}")) == ([], None)


def test_what_is_kept_on_the_disk_counts_in_any_order_and_only_until_it_ends() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    kept = words.Workloads(
        (entry(WEB, "a", address="127.0.0.1:80"), entry(SHOP, "a")),
        (svid(WEB, UNIX + 60), svid(SHOP, UNIX)),
    )
    node.proxy = FakeProxy(2)
    node.born(node.agent.held())
    node.meet_proxy()
    node.give(kept)
    assert node.proxy.items(SvidItem) == [svid(WEB, UNIX + 60)]
    assert node.proxy.items(CallerItem) == [CallerItem(WEB, ("unix:uid:1000",))]
    node.issue = False
    mesh.run(90)
    assert [e.id for e in node.said if type(e) is SvidExpired] == [WEB]
    assert WEB not in dict(node.agent.view().svids)


def test_a_proxy_that_lives_on_knows_better_than_the_disk() -> None:
    mesh = shop_and_web(LINE)
    node = mesh["a"]
    kept = words.Workloads((*node.agent.workloads().entries, entry(WEB, "a")), (svid(WEB, LATER),))
    for first in (kept, None):  # The disk is read before the proxy is there, or after.
        node.give(words.ProxyGone())
        node.born(node.agent.held())
        if first is not None:
            node.give(first)
        node.meet_proxy()
        node.give(kept)
        assert node.proxy.item(f"SvidItem/{WEB}") is None
        assert node.proxy.items(CallerItem) == [CallerItem(SHOP, ("unix:uid:1000",))]


def test_many_svids_are_written_together_and_never_before_all_entries_are_known() -> None:
    mesh = Mesh("a", [])
    node = mesh["a"]
    node.give(words.SvidHeld(svid(WEB, LATER)))
    mesh.run(5)
    assert words.KeepWanted() not in node.said
    node.entries(*(entry(f"spiffe://{DOMAIN}/w{n}", "a") for n in range(50)))
    mesh.run(5)
    assert len([e for e in node.said if type(e) is words.KeepWanted]) == 1
    for n in range(50):
        node.give(words.SvidHeld(svid(f"spiffe://{DOMAIN}/w{n}", LATER)))
        mesh.run(0.1)
    mesh.run(1)
    assert 5 <= len([e for e in node.said if type(e) is words.KeepWanted]) <= 7
    assert len(node.agent.workloads().svids) == 50
    assert node.id not in [item.id for item in node.agent.workloads().svids]
