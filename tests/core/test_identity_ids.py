"""SPIFFE IDs, trust domains and node names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.wire.errors import BadId
from x0tta6bl4.wire.ids import (
    NodeName,
    SpiffeId,
    domain_of,
    is_authority,
    is_reserved,
    node_id,
    node_name,
    node_of,
    path_of,
    spiffe_id,
    trust_domain,
)


@pytest.mark.parametrize(
    ("text", "domain", "path"),
    [
        ("spiffe://mesh.test/web", "mesh.test", "web"),
        ("spiffe://mesh.test", "mesh.test", ""),
        ("SPIFFE://Mesh.Test/Web", "mesh.test", "Web"),  # SP-016: normalised, the path as it is.
        ("spiffe://1.2.3.4/a/b.c-d_e/9", "1.2.3.4", "a/b.c-d_e/9"),  # SP-008
        ("spiffe://" + "a" * 255 + "/" + "b" * 1783, "a" * 255, "b" * 1783),  # SP-013: 2,048 bytes
    ],
)
def test_what_is_a_spiffe_id(text: str, domain: str, path: str) -> None:
    id = spiffe_id(text)
    assert (domain_of(id), path_of(id)) == (domain, path)
    assert spiffe_id(id) == id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe:",
        "spiffe://",
        "spiffe:///web",
        "https://mesh.test/web",  # SP-001, SP-002
        "spiffe://mesh.test/web?x",
        "spiffe://mesh.test/web#x",  # SP-003
        "spiffe://me@mesh.test/web",
        "spiffe://mesh.test:443/web",  # SP-004
        "spiffe://mesh%2etest/web",
        "spiffe://mésh.test/web",  # SP-006, SP-007
        "spiffe://mesh.test/w%65b",
        "spiffe://mesh.test/a//b",
        "spiffe://mesh.test/./a",
        "spiffe://mesh.test/..",
        "spiffe://mesh.test/web/",
        "spiffe://mesh.test/",  # SP-009 to SP-011
        "spiffe://mesh.test/wéb",
        "spiffe://mesh.test/a b",
        "spiffe://mesh.test/a\n",  # SP-012
        "spiffe://mesh.test\n/a",
        "spiffe://mesh.test\n",
        "spiffe://" + "a" * 256 + "/b",  # SP-015
        "spiffe://a/" + "b" * 2038,  # SP-013
        " spiffe://mesh.test/web",
        "spiffe:/mesh.test/web",
        "spiffe//mesh.test/web",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(BadId):
        spiffe_id(text)


@pytest.mark.parametrize("text", ["", "A", "a_b", "-a", "a-", "a.b", "a" * 64, "ä", "a\n", "a/b"])
def test_what_is_no_node_name(text: str) -> None:
    with pytest.raises(BadId):
        node_name(text)


def test_reserved_names() -> None:
    domain = trust_domain("Mesh.Test")
    node = node_id(domain, node_name("node-a"))
    assert node == "spiffe://mesh.test/node/node-a"
    assert node_of(node) == "node-a"
    assert is_reserved(node)
    for path, reserved in (
        ("web", False),
        ("nodes/a", False),
        ("node", True),
        ("node/A", True),
        ("authority/1", True),
        ("authority", True),
    ):
        assert is_reserved(spiffe_id(f"spiffe://mesh.test/{path}")) == reserved
    assert node_of(spiffe_id("spiffe://mesh.test/node/A")) is None
    assert node_of(spiffe_id("spiffe://mesh.test/node/a/b")) is None
    assert is_authority(spiffe_id("spiffe://mesh.test/authority/1"))
    assert not is_authority(spiffe_id("spiffe://mesh.test/authority"))


TEXTS = st.text(max_size=60)


@given(
    TEXTS
    | TEXTS.map(lambda t: "spiffe://" + t)
    | TEXTS.map(lambda t: "spiffe://a.b/" + t)
    | st.from_regex(r"spiffe://[a-z0-9._-]+(/[a-zA-Z0-9._-]+)*", fullmatch=True)
)
def test_parsing_raises_only_bad_id_and_is_idempotent(text: str) -> None:
    try:
        id = spiffe_id(text)
    except BadId:
        return
    assert spiffe_id(id) == id
    assert text.isascii()
    assert id[:9] == "spiffe://"
    rebuilt = f"spiffe://{domain_of(id)}" + (f"/{path_of(id)}" if path_of(id) else "")
    assert SpiffeId(rebuilt) == id


@given(TEXTS)
def test_a_node_name_and_its_id_go_both_ways(text: str) -> None:
    try:
        name = node_name(text)
    except BadId:
        return
    id = node_id(trust_domain("mesh.test"), name)
    assert node_of(spiffe_id(id)) == NodeName(text)
