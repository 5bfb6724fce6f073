"""What neighbours say of where they are, and what a node believes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from x0tta6bl4.app.kernel_links import CLAIM_S, Links
from x0tta6bl4.core.links.verdicts import Verdicts
from x0tta6bl4.runtime.aio.links import Offers
from x0tta6bl4.wire.errors import Refused
from x0tta6bl4.wire.ids import NodeName
from x0tta6bl4.wire.messages import KernelOffer


def at(last: int, mtu: int = 1500) -> KernelOffer:
    """The offer of a host whose addresses end so."""
    return KernelOffer(
        last, b"\xfe\x80" + bytes(13) + bytes([last]), bytes(5) + bytes([last]), mtu, -1
    )


def offers(theirs: KernelOffer, index: int = 4) -> Offers:
    return Offers(index, at(1), theirs, b"s" * 32)


@pytest.fixture
def links(tmp_path: Path) -> Links:
    """To b and c; b is agreed on."""
    made = Links(NodeName("a"), tmp_path, ["b", "c"], Verdicts())
    b = made.get("b")
    assert b is not None
    b.kept = made.agreed(b, offers(at(2, 1400)), 0)
    b.moved(0, 5)
    b.heard(6)
    assert b.kept.mtu == 1400
    assert b.kept.peer_number == 2
    return made


@pytest.mark.parametrize(
    ("local", "mac", "whose"), [(2, 3, "b"), (3, 2, "b"), (1, 3, "this node"), (3, 1, "this node")]
)
def test_a_neighbour_can_not_be_where_another_one_or_this_node_is(
    links: Links, local: int, mac: int, whose: str
) -> None:
    c = links.get("c")
    assert c is not None
    theirs = KernelOffer(3, at(local).local, at(mac).mac, 1500, -1)
    with pytest.raises(Refused, match=f"X0-KRN-147.*c says that it is at the address of {whose}"):
        links.agreed(c, offers(theirs), 1e9)


def test_who_moves_or_is_on_another_interface_is_believed(links: Links) -> None:
    b, c = links.get("b"), links.get("c")
    assert b is not None
    assert c is not None
    assert links.agreed(b, offers(at(5)), 0).peer == at(5).local
    assert links.agreed(b, offers(at(2)), 0) != b.kept  # Another MTU.
    assert links.agreed(c, offers(at(2), index=5), 0).index == 5


@pytest.mark.parametrize("theirs", [at(2), KernelOffer(3, at(3).local, at(2).mac, 1500, -1)])
def test_who_has_not_answered_where_it_says_it_is_gives_way_after_a_while(
    links: Links, theirs: KernelOffer
) -> None:
    b, c = links.get("b"), links.get("c")
    assert b is not None
    assert c is not None
    b.moved(10, 6)
    b.heard(6)  # All of them from where it was before.
    assert links.beside(c, offers(theirs)) == [b]
    with pytest.raises(Refused, match="X0-KRN-147: b and c say.*neither has answered there yet"):
        links.agreed(c, offers(theirs), 10 + CLAIM_S - 0.1)
    assert links.agreed(c, offers(theirs), 10 + CLAIM_S).node == "c"
    b.heard(7)
    with pytest.raises(Refused, match="c says that it is at the address of b"):
        links.agreed(c, offers(theirs), 10 + CLAIM_S)
