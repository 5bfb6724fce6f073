"""Mesh addresses: the same for everybody, and never one that means something else."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.authority_desk import AuthorityDesk
from x0tta6bl4.core.authority import issuing, state
from x0tta6bl4.core.authority.rows import Refusal
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.ids import NodeName, node_name, trust_domain
from x0tta6bl4.wire.mesh_address import link_address, mesh_address, mesh_host, mesh_prefix

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("domain", "name", "address"),
    # By hand: printf 'x0tta6bl4 mesh prefix 1\0example.org' | sha256sum, and so on.
    [
        ("example.org", "alpha", "fd88:fc26:7b5f:0:cc87:a86b:65cf:4da7"),
        ("Example.ORG", "alpha", "fd88:fc26:7b5f:0:cc87:a86b:65cf:4da7"),
        ("example.org", "node-1", "fd88:fc26:7b5f:0:74bc:c03c:3961:8acf"),
        ("x0.mesh", "alpha", "fd12:dbb0:733d:0:cc87:a86b:65cf:4da7"),
    ],
)
def test_vectors(domain: str, name: str, address: str) -> None:
    assert mesh_address(trust_domain(domain), node_name(name)) == IPv6Address(address)


def test_a_link_has_an_address_at_one_end() -> None:
    # printf 'x0tta6bl4 mesh link 1\0alpha' | sha256sum
    link = link_address(trust_domain("example.org"), node_name("node-1"), node_name("alpha"))
    assert link == IPv6Address("fd88:fc26:7b5f:e5da:74bc:c03c:3961:8acf")


@given(LABELS, LABELS)
def test_an_address_is_local_and_nobody_elses(domain: str, name: str) -> None:
    td, node = trust_domain(domain), node_name(name)
    address = mesh_address(td, node)
    assert address in IPv6Network("fd00::/8")
    assert address.packed == mesh_prefix(td) + b"\0\0" + mesh_host(node)
    first = address.packed[8]
    assert first & 0b111 == 0b100  # Not the subnet router, not of RFC 5453, not from a MAC.


def test_a_second_node_with_the_address_of_another_is_not_enrolled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(name: NodeName) -> bytes:
        return name[:1].encode()

    monkeypatch.setattr(issuing, "mesh_host", short)
    monkeypatch.setattr(state, "mesh_host", short)
    desk = AuthorityDesk()
    assert desk.enrol("alpha").id
    answer = desk.enrol("amber")
    assert type(answer) is Refusal
    assert answer.id == "X0-AUT-028"
    assert "'alpha'" in answer.what
    assert desk.enrol("beta").id
    assert desk.enrol("alpha").id  # It may come back.
    desk.ask("NodeEvict", words.NodeEvict(node="alpha"))
    assert type(desk.enrol("amber")) is Refusal
    desk.ask("NodeDelete", words.Key("alpha"))
    assert desk.enrol("amber").id
