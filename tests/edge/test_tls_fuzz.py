"""Whatever bytes come: parsing raises BadInput or nothing; what was changed is never let in."""

from __future__ import annotations

from functools import cache

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fakes.ca import FakeCa
from x0tta6bl4.core.identity.rules import ANYBODY, Expect
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.impostors import IMPOSTORS
from x0tta6bl4.edge.tls.x509 import (
    load_key,
    new_csr,
    new_key,
    parse,
    read_csr,
    verify,
)
from x0tta6bl4.wire.errors import BadInput


@cache
def ca() -> FakeCa:
    return FakeCa()


@cache
def seeds() -> tuple[bytes, ...]:
    """Certificates of every shape that this project can make."""
    leaf = ca().svid("web", via="a").chain[0]
    found = [leaf, ca().issuer.certificate]
    for impostor in IMPOSTORS[::4]:
        found += impostor.twin(ca().issuer, ca().now_unix_s).chain
    return tuple(der for der in found if len(der) < 2_000)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A certificate with bytes changed, taken out, put in or moved."""
    data = bytearray(draw(st.sampled_from(seeds())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.integers(0, 4))
        if how == 0:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 1:
            data[at] = draw(st.sampled_from([0, 1, 0x30, 0x7F, 0x80, 0x82, 0xA0, 0xA3, 0xFF]))
        elif how == 2:
            del data[at : at + draw(st.integers(1, 20))]
        elif how == 3:
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            size = draw(st.integers(1, 40))
            data[at:at] = data[at : at + size]
        if not data:
            data = bytearray(b"\x30")
    return bytes(data)


@settings(max_examples=1_500)
@given(mutated() | st.binary(max_size=400))
@example(b"")
@example(b"\x30\x80\x00\x00")
def test_a_changed_certificate_is_never_allowed(der: bytes) -> None:
    try:
        parse(der)
    except BadInput:
        pass
    verdict = ca().judge().judge((der,), ANYBODY).verdict
    if der not in seeds():  # A change can undo itself.
        assert type(verdict) is Denied
    assert type(verdict) in (Allowed, Denied)


@settings(max_examples=300)
@given(mutated(), st.integers(0, 2))
def test_a_changed_certificate_anywhere_in_a_chain(der: bytes, place: int) -> None:
    leaf, anchor = ca().svid("web").chain[0], ca().issuer.certificate
    chain = [leaf, anchor]
    chain.insert(place, der)
    verdict = ca().judge().judge(chain, ANYBODY).verdict
    if place == 0 and der not in seeds():
        assert type(verdict) is Denied
    elif type(verdict) is Allowed:
        assert verdict.peer == ca().id("web")
    assert type(ca().judge().judge(chain, Expect(role="authority")).verdict) is Denied


@settings(max_examples=400)
@given(st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_csrs_keys_and_signatures(data: bytes, at: int, byte: int) -> None:
    request = bytearray(_csr())
    request[at % len(request)] = byte
    for parser, value in ((read_csr, bytes(request)), (read_csr, data), (load_key, data)):
        try:
            parser(value)
        except BadInput:
            pass
    assert not verify(data, b"data", data)
    assert not verify((data,), b"data", data)


@cache
def _csr() -> bytes:
    return new_csr(new_key())


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=600), max_size=4), st.booleans())
def test_an_engine_survives_any_bytes(parts: list[bytes], server: bool) -> None:
    engine = Engine(_context(), server)
    out = bytearray(1 << 16)
    try:
        for part in parts:
            engine.feed(part)
            assert not engine.shake()
            engine.take(out)
        engine.feed_eof()
        assert not engine.shake()
    except (TlsRefused, TlsClosed):
        pass


@cache
def _context() -> TlsContext:
    return ca().context("web")


def test_the_byte_that_no_signature_covers() -> None:
    """The number of unused bits in the signature: found by the test above, in a long run."""
    for der in seeds():
        at = len(der) - 1 - len(parse(der).certificate.signature)
        assert der[at] == 0
        for bits in range(1, 8):
            changed = der[:at] + bytes([bits]) + der[at + 1 :]
            assert type(ca().judge().judge((changed,), ANYBODY).verdict) is Denied


def test_fields_are_plain_data() -> None:
    """What the rules see can be compared, hashed and written down."""
    fields = parse(ca().svid("web").chain[0]).fields
    assert msgspec.json.decode(msgspec.json.encode(fields), type=type(fields)) == fields
