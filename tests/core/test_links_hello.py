"""The hello's form on the wire: what is packed comes back, and nothing else gets in."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hello import (
    HELLO_BYTES,
    INTERVAL_US_MAX,
    INTERVAL_US_MIN,
    MULTIPLIER_MAX,
    UP,
    Hello,
    link_of,
    pack,
    unpack,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
HELLOS = st.builds(
    Hello,
    link=U32,
    incarnation=U64,
    sequence=st.integers(1, 2**64 - 1),
    state=st.integers(0, UP),
    flags=st.integers(0, 7),
    interval_us=st.integers(INTERVAL_US_MIN, INTERVAL_US_MAX),
    multiplier=st.integers(1, MULTIPLIER_MAX),
    sent_us=U64,
    echo_us=U64,
    dwell_us=U32,
    good=U32,
    lost=U32,
)


def mac(body: bytes) -> bytes:
    return hashlib.blake2b(body, key=b"one direction", digest_size=16).digest()


def other(body: bytes) -> bytes:
    return hashlib.blake2b(body, key=b"the other one", digest_size=16).digest()


@given(HELLOS)
def test_what_is_packed_comes_back(hello: Hello) -> None:
    data = pack(hello, mac)
    assert len(data) == HELLO_BYTES == 76
    assert link_of(data) == hello.link
    assert unpack(data, mac) == hello


@given(HELLOS, st.integers(0, HELLO_BYTES * 8 - 1))
def test_no_flipped_bit_gets_in(hello: Hello, bit: int) -> None:
    data = bytearray(pack(hello, mac))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadMessage):
        unpack(bytes(data), mac)


@given(st.binary(max_size=200))
@example(b"")
@example(b"X0\x01\x10" + bytes(72))
def test_noise_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack(data, mac)


@given(st.binary(min_size=56, max_size=56))
def test_a_tagged_hello_out_of_range_is_refused(rest: bytes) -> None:
    """Somebody with the key may be mad: it decodes to a hello in range or not at all."""
    body = b"X0\x01\x10" + rest
    refusal = ""
    try:
        assert pack(unpack(body + mac(body), mac), mac) == body + mac(body)
    except BadMessage as error:
        refusal = error.id
    assert refusal in ("", "X0-HEL-003")


def test_the_key_of_the_other_direction_is_refused() -> None:
    data = pack(Hello(1, 2, 3, UP, 0, 100_000, 3, 4), other)
    with pytest.raises(BadMessage) as caught:
        unpack(data, mac)
    assert caught.value.id == "X0-HEL-002"
