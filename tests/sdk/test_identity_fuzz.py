"""Whatever the Workload API sends: a good set, or a message that is discarded; nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.ca import FakeClock
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.sdk.identity.answers import read_x509, read_x509_bundles, split
from x0tta6bl4.sdk.identity.endpoint import endpoint
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput, BadMessage

NOW = 1_800_000_000


def good() -> Any:
    api = WorkloadApi(Domain(now_unix_s=lambda: NOW))
    api.issue("/web", hint="main")
    api.federate(Domain("other.test"))
    return api.answer("FetchX509SVID", None)


GOOD = good()
BYTES = GOOD.SerializeToString()
FIELDS = ("spiffe_id", "x509_svid", "x509_svid_key", "bundle", "hint")


def read(message: Any) -> bool:
    """Whether it was taken; what is taken is what was said."""
    try:
        found = read_x509(message, FakeClock(NOW), {})
    except BadMessage:
        return False
    assert [svid.id for svid in found.svids] == ["spiffe://example.org/web"]
    return True


def test_what_is_good_is_taken() -> None:
    assert read(GOOD)


@given(st.sampled_from(FIELDS[1:4]), st.integers(0), st.integers(1, 255))
def test_one_byte_of_a_field_is_changed(field: str, at: int, flip: int) -> None:
    message = schema.X509SVIDResponse.FromString(BYTES)
    data = bytearray(getattr(message.svids[0], field))
    data[at % len(data)] ^= flip
    setattr(message.svids[0], field, bytes(data))
    taken = read(message)
    # An anchor is trusted as it stands, and a key has parts that say nothing; a leaf has none.
    assert not taken or field != "x509_svid"


@given(st.sampled_from(FIELDS[1:4]), st.binary(max_size=300))
def test_a_field_is_anything(field: str, data: bytes) -> None:
    message = schema.X509SVIDResponse.FromString(BYTES)
    setattr(message.svids[0], field, data)
    assert not read(message)


@given(st.integers(0), st.binary(min_size=1, max_size=8))
def test_the_message_is_overwritten(at: int, data: bytes) -> None:
    at %= len(BYTES)
    try:
        message = schema.X509SVIDResponse.FromString(BYTES[:at] + data + BYTES[at + len(data) :])
    except (DecodeError, RecursionError):
        return
    read(message)


@given(st.dictionaries(st.text(max_size=30), st.binary(max_size=300), min_size=1, max_size=4))
def test_bundles_are_anything(bundles: dict[str, bytes]) -> None:
    found = read_x509_bundles(schema.X509BundlesResponse(bundles=bundles))
    assert len(found.bundles) + len(found.problems) == len(bundles)


@given(st.binary(max_size=400))
def test_a_row_of_certificates_is_whole_or_refused(data: bytes) -> None:
    try:
        assert b"".join(split(data, 8)) == data
    except BadMessage:
        pass


@given(st.text(max_size=60) | st.text(max_size=30).map("unix:{}".format))
def test_an_address_is_one_of_the_specification_or_refused(text: str) -> None:
    try:
        found = endpoint(text)
    except BadInput:
        return
    assert found.path.startswith("/") or (found.host and 0 < found.port < 65536)


def test_an_empty_message_is_discarded() -> None:
    with pytest.raises(BadMessage):
        read_x509(schema.X509SVIDResponse(), FakeClock(NOW), {})
    with pytest.raises(BadMessage):
        read_x509_bundles(schema.X509BundlesResponse())
