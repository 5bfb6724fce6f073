"""Agents whose kernels forward: which table the kernel gets, and who hears of it."""

from __future__ import annotations

import pytest

from tests.fakes.agents import Mesh, Node
from x0tta6bl4.core.agent import words
from x0tta6bl4.core.agent.own import Own
from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.core.routing.alternates import Guard, Way
from x0tta6bl4.core.routing.forwarding import KEEP, WaysChanged
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


def kernels(mesh: Mesh, *, held: bool = False) -> None:
    """The kernel of each node forwards over all its links."""
    for name, node in mesh.nodes.items():
        others = frozenset({one for link in mesh.links if name in link for one in link} - {name})
        node.give(words.KernelLinks(others, held))


def test_the_kernel_keeps_the_last_way_for_a_while_and_the_proxy_does_not() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    kernels(mesh)
    mesh.run(3)
    a = mesh["a"]
    mesh.cut("b", "d")
    mesh.cut("c", "d")
    mesh.run(0.5)
    assert table(a)["d"].kept
    told = a.proxy.items(DirectItem)
    assert {item.node for item in told if isinstance(item, DirectItem)} == {"b", "c"}
    mesh.run(KEEP / SECOND)
    assert "d" not in table(a)


def reborn(mesh: Mesh, name: str, *, held: bool) -> None:
    """A node's processes are killed, and started again with what is on the disk."""
    node, links = mesh[name], [link for link in DIAMOND if name in link]
    kept = node.agent.held()
    for link in links:
        mesh.cut(*link)
    node.said.clear()
    mesh.run(3)
    node.said.clear()
    node.proxy = type(node.proxy)(2)
    node.born(kept)
    node.meet_proxy()
    node.give(words.KernelLinks(frozenset("ad"), held))
    for link in links:
        mesh.connect(*link)


def test_a_relay_that_returns_gets_data_only_when_it_knows_where_that_goes() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    kernels(mesh)
    mesh.run(3)
    assert table(mesh["a"])["d"].hop == table(mesh["d"])["a"].hop == "b"
    reborn(mesh, "b", held=False)
    back_at = 0.0
    for at in range(600):  # Steps of 5 ms.
        for here, there in (("a", "d"), ("d", "a")):
            if table(mesh[here])[there].hop == "b":
                assert table(mesh["b"]).get(there, Way("")).hop == there, at
                back_at = back_at or at * 0.005
        mesh.run(0.005)
    assert 1.0 <= back_at < 2.0
    assert table(mesh["a"])["d"].hop == table(mesh["d"])["a"].hop == "b"
    assert [e for e in mesh["b"].said if type(e) is words.TableComplete] == [words.TableComplete()]


def test_what_a_relay_said_before_it_died_is_not_taken_for_news() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    kernels(mesh)
    mesh.run(3)
    mesh.cut("a", "b")
    mesh.cut("b", "d")
    mesh.run(3)
    assert table(mesh["a"])["d"].hop == "c"
    for here in "ad":  # Its proxy answers, its agent has not begun.
        mesh[here].link_state("b")
    mesh.run(3)
    assert "b" not in table(mesh["a"])
    assert table(mesh["a"])["d"].hop == "c"
    mesh.connect("a", "b")
    mesh.connect("b", "d")
    mesh.run(1)
    assert table(mesh["a"])["d"].hop == table(mesh["d"])["a"].hop == "b"


def test_a_link_that_one_end_alone_has_lost_for_a_moment_is_the_kernels_again() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    kernels(mesh)
    mesh.run(3)
    mesh["a"].link_state("b", "down")
    mesh.run(0.5)
    assert table(mesh["a"])["d"].hop == table(mesh["d"])["a"].hop == "c"
    mesh["a"].link_state("b")
    mesh.run(1)
    assert table(mesh["a"])["d"].hop == table(mesh["d"])["a"].hop == "b"


@pytest.mark.parametrize("names", ["", "b"])
def test_who_calls_a_link_the_kernels_says_so_again_when_the_other_end_does_no_more(
    monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    repeated: list[Own] = []
    monkeypatch.setattr(Own, "repeat", lambda own: repeated.append(own))
    mesh = Mesh("ab", [("a", "b")], forwards=True)
    mesh["a"].give(words.KernelLinks(frozenset(names)))
    mesh["b"].give(words.KernelLinks(frozenset("a")))
    mesh.run(3)
    assert repeated == []
    mesh["b"].give(words.KernelLinks(frozenset()))
    mesh.run(3)
    assert len(repeated) == len(names), "it has nothing to say where it never did"


def test_a_node_whose_table_of_before_is_at_work_says_so_at_once_and_replaces_it_later() -> None:
    mesh = Mesh("abcd", DIAMOND, forwards=True)
    kernels(mesh)
    mesh.run(3)
    reborn(mesh, "b", held=True)
    mesh.run(1)
    assert table(mesh["a"])["d"].hop == "b"
    assert words.TableComplete() not in mesh["b"].said
    mesh.run(3)
    assert mesh["b"].said.count(words.TableComplete()) == 1
    alone = Mesh("a", [], forwards=True)
    alone["a"].give(words.KernelLinks(frozenset("b"), held=True))
    alone.run(14)
    assert words.TableComplete() not in alone["a"].said
    alone.run(2)
    assert words.TableComplete() in alone["a"].said, "no link came up"
