"""Addresses as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x0tta6bl4.wire.address import join_address, split_address
from x0tta6bl4.wire.errors import BadConfig


@pytest.mark.parametrize(
    "text",
    ["", "x", ":1", "h:", "h:x", "h:65536", "[::1]", "::1:7", "[::1:7", "::1]:7", "[h]:7", "[]:7",
     "[[::1]]:7", "h:²", "h:-1", "h:" + "0" * 5000],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadConfig, match="X0-NET-002"):
        split_address(text)


def test_addresses() -> None:
    assert split_address("h.example:7") == ("h.example", 7)
    assert split_address("192.0.2.1:0") == ("192.0.2.1", 0)
    assert split_address("[::1]:7") == ("::1", 7)
    assert join_address("::1", 7) == "[::1]:7"


@given(st.text(max_size=30), st.integers(0, 65535))
def test_an_address_is_split_or_refused(host: str, port: int) -> None:
    try:
        found = split_address(f"{host}:{port}")
    except BadConfig:
        assert not host or set("[]:") & set(host)
    else:
        assert found[1] == port
        assert split_address(join_address(*found)) == found
