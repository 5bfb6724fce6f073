"""How much agents say: where few hellos are enough, and which links are told together."""

from __future__ import annotations

from tests.fakes.agents import Mesh, Node, neighbour
from x0tta6bl4.core.agent import words
from x0tta6bl4.wire.messages import NeighbourItem


def watched(node: Node) -> set[str]:
    items = node.proxy.items(NeighbourItem)
    return {item.node for item in items if isinstance(item, NeighbourItem) and item.watched}


def test_a_proxy_wants_few_hellos_where_the_kernel_finds_a_link_good_and_agents_talk() -> None:
    mesh = Mesh("abc", [("a", "b"), ("a", "c")], forwards=True)
    mesh.run(3)
    a = mesh["a"]
    assert watched(a) == set()
    a.give(words.KernelPace(frozenset("bc")))
    assert watched(a) == {"b", "c"}
    a.give(words.NeighbourUp(neighbour("b", incarnation=2)))  # Its proxy has started anew.
    assert watched(a) == {"b", "c"}
    a.give(words.KernelPace(frozenset("b")))
    assert watched(a) == {"b"}
    a.give(words.NeighbourDown("b"))
    assert watched(a) == set()
    a.give(words.NeighbourUp(neighbour("b", incarnation=2)))
    assert watched(a) == {"b"}
    assert watched(mesh["b"]) == set()


def test_an_agent_that_starts_wants_all_hellos_until_its_kernel_has_told_it() -> None:
    mesh = Mesh("ab", [("a", "b")], forwards=True)
    mesh.run(3)
    a = mesh["a"]
    a.give(words.KernelPace(frozenset("b")))
    assert watched(a) == {"b"}
    a.born(a.agent.held())
    a.meet_proxy()
    assert watched(a) == set()
    a.give(words.NeighbourUp(neighbour("b")), words.KernelPace(frozenset("b")))
    assert watched(a) == {"b"}


def test_links_that_come_are_told_together_and_one_that_goes_at_once() -> None:
    mesh = Mesh(["a", "b", "c", "d", "e"], [("a", "b")])
    mesh.run(3)

    def heard() -> int:
        return mesh["b"].agent.statistics()["records_accepted_total"]

    before = heard()
    for node in ("c", "d", "e"):
        mesh.connect("a", node)
        mesh.run(0.25)
    mesh.run(2)
    of_others = 3
    assert heard() - before == of_others + 2, "the first of them, and the two that followed"
    mesh.cut("a", "c")
    mesh.cut("a", "d")
    mesh.run(0.1)
    assert heard() - before > of_others + 2
