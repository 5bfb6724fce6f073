"""Agents whose kernels forward: which table the kernel gets, and who hears of it."""

from __future__ import annotations

from tests.fakes.agents import Mesh, Node
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.routing.alternates import Guard, Way
from x0tta6bl4.core.routing.forwarding import WaysChanged
from x0tta6bl4.wire.messages import DirectItem

DIAMOND = [("a", "b"), ("b", "d"), ("a", "c"), ("c", "d")]


def table(node: Node) -> dict[str, Way]:
    """What the kernel of a node has been told, all in all."""
    told = [pair for e in node.said if type(e) is WaysChanged for pair in e.ways]
    return {name: way for name, way in dict(told).items() if way is not None}


def test_the_kernel_gets_a_table_where_it_forwards_and_none_elsewhere() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    mesh.run(3)
    assert not any(table(mesh[node]) for node in "abcd")  # No link is watched in the kernel.
    kernels = {node: [x for link in DIAMOND if node in link for x in link] for node in "abcd"}
    for node, links in kernels.items():
        mesh[node].give(words.KernelLinks(frozenset(links) - {node}))
    mesh.run(3)
    around = Way("b", "", Guard.NONE, ("c", "d", "b"))
    assert table(mesh["a"]) == {
        "b": around,
        "c": Way("c", "", Guard.NONE, ("b", "d", "c")),
        "d": Way("b", "c", Guard.NODE),
    }
    told = mesh["a"].proxy.items(DirectItem)
    assert {item.node for item in told if isinstance(item, DirectItem)} == {"b", "c", "d"}
    mesh["a"].give(words.KernelLinks(frozenset("b")))  # One end alone is not enough, either way.
    mesh.run(1)
    assert table(mesh["a"]) == dict.fromkeys("bcd", Way("b"))
    mesh["a"].give(words.KernelLinks(frozenset("bc")))
    mesh.run(1)
    mesh.cut("b", "d")
    mesh.run(0.5)
    assert table(mesh["a"]) == {"b": Way("b"), "c": Way("c"), "d": Way("c")}
    assert table(mesh["d"]) == dict.fromkeys("abc", Way("c"))
    mesh.connect("b", "d")
    mesh.run(3)
    assert table(mesh["a"])["b"] == around
    elsewhere = Mesh("abcd", DIAMOND)
    elsewhere.run(3)
    assert not any(type(e) is WaysChanged for node in "abcd" for e in elsewhere[node].said)
