"""A Workload API that says what it must not: the SDK keeps what it had, and goes on.

After each bad message a good one is pushed.  The stream is in order, so once that one is served the
bad one has been read; what was presented meanwhile was never anything of it.

Source: SPIFFE_Workload_API.md sections 4.5 and 5.2.1 (SP-110, SP-112 to SP-114), X509-SVID.md
section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conformance.driver import Harness, until
from x0tta6bl4.sdk.testing import faults
from x0tta6bl4.sdk.testing.domain import Domain, Svid
from x0tta6bl4.sdk.testing.faults import Change, Fault
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

X509 = "FetchX509SVID"
SAMPLES = 8
"""Connections between a bad message and the next good one: many times what its delivery takes."""


@pytest.fixture(scope="module")
def api() -> Iterator[WorkloadApi]:
    with WorkloadApi() as made:
        made.issue("/web")
        yield made


@pytest.fixture(scope="module")
def harness(api: WorkloadApi) -> Iterator[Harness]:
    with Harness(api.endpoint) as made:
        yield made


@contextmanager
def watched(api: WorkloadApi, harness: Harness) -> Iterator[list[tuple[bytes, ...]]]:
    """What the X.509 port presents all the while; an empty chain stands for nothing at all."""
    seen: list[tuple[bytes, ...]] = []
    over = threading.Event()
    peer = api.domain.svid("/watcher")

    def watch() -> None:
        while not over.is_set():
            seen.append(harness.meet(peer).chain)
            over.wait(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def is_ignored(api: WorkloadApi, harness: Harness, spoil: Callable[[], None]) -> None:
    """`spoil` pushes something bad; nothing of it is ever served."""
    before = api.domain.svid("/web")
    after = api.domain.svid("/web")
    peer = api.domain.svid("/peer")
    api.serve(before)
    assert until(lambda: harness.meet(peer).chain == before.chain)
    with watched(api, harness) as seen:
        spoil()
        sampled = len(seen)
        assert until(lambda: len(seen) > sampled + SAMPLES)
        api.clear()
        api.serve(after)
        assert until(lambda: harness.meet(peer).chain == after.chain)
    assert set(seen) <= {before.chain, after.chain}


@pytest.mark.parametrize(
    "change",
    [faults.no_svids, faults.empty("spiffe_id"), faults.empty("x509_svid"),
     faults.empty("x509_svid_key"), faults.empty("bundle")],
    ids=["svids", "spiffe_id", "x509_svid", "x509_svid_key", "bundle"],
)  # fmt: skip
def test_SP_110_114_a_mandatory_field_is_missing(
    api: WorkloadApi, harness: Harness, change: Change
) -> None:
    def spoil() -> None:
        api.inject(X509, Fault(change=change))
        api.serve(api.domain.svid("/web"))

    is_ignored(api, harness, spoil)


@pytest.mark.parametrize(
    "change",
    [faults.pem, faults.trailing, faults.foreign_key, faults.foreign_bundle, faults.garbage,
     faults.other_id("spiffe://example.org/other"), faults.other_id("spiffe://other.test/web"),
     faults.other_id("not an id"), faults.huge(20_000_000)],
    ids=["pem", "trailing", "foreign key", "foreign bundle", "garbage", "other id", "other domain",
         "no id", "huge"],
)  # fmt: skip
def test_SP_110_112_a_message_that_is_not_what_it_says(
    api: WorkloadApi, harness: Harness, change: Change
) -> None:
    def spoil() -> None:
        api.inject(X509, Fault(change=change))
        api.serve(api.domain.svid("/web"), api.domain.svid("/second"))

    is_ignored(api, harness, spoil)


def _keys(answer: Any) -> Any:
    for svid in answer.svids:
        svid.x509_svid_key = b"\x30\x03\x02\x01\x00"
    return answer


def _truncated(answer: Any) -> Any:
    for svid in answer.svids:
        svid.x509_svid = svid.x509_svid[:-5]
    return answer


def _pem_key(answer: Any) -> Any:
    for svid in answer.svids:
        svid.x509_svid_key = b"-----BEGIN PRIVATE " + b"KEY-----\nAAAA\n"
    return answer


def _no_certificate(answer: Any) -> Any:
    for svid in answer.svids:
        svid.x509_svid = b"\x30\x00"
    return answer


def _not_pkcs8(answer: Any) -> Any:
    from cryptography.hazmat.primitives import serialization as form

    for svid in answer.svids:
        key = form.load_der_private_key(svid.x509_svid_key, None)
        svid.x509_svid_key = key.private_bytes(
            form.Encoding.DER,
            form.PrivateFormat.PKCS8,
            form.BestAvailableEncryption(b"secret"),
        )
    return answer


@pytest.mark.parametrize("change", [_keys, _truncated, _pem_key, _no_certificate, _not_pkcs8])
def test_SP_112_bytes_that_are_no_key_and_no_certificate(
    api: WorkloadApi, harness: Harness, change: Change
) -> None:
    def spoil() -> None:
        api.inject(X509, Fault(change=change))
        api.serve(api.domain.svid("/web"))

    is_ignored(api, harness, spoil)


def _made(api: WorkloadApi, **shape: Any) -> Svid:
    return api.domain.svid("/web", **shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda api: _made(api, spoilt=True),
        lambda api: Domain("example.org").svid("/web"),
        lambda api: _made(api, start_s=-7_200),
        lambda api: _made(api, start_s=3_600),
        lambda api: _made(api, ca=True),
        lambda api: _made(api, usages=("digital_signature", "key_cert_sign")),
        lambda api: _made(api, usages=("digital_signature", "crl_sign")),
        lambda api: _made(api, usages=None),
        lambda api: _made(api, uris=("spiffe://example.org/web", "spiffe://example.org/b")),
        lambda api: _made(api, uris=("https://example.org/web",)),
        lambda api: _made(api, uris=("spiffe://example.org",)),
        lambda api: _made(api, uris=()),
        lambda api: api.domain.anchor_as_svid(),
    ],
    ids=["signature", "other CA", "expired", "not yet valid", "CA", "keyCertSign", "cRLSign",
         "no usage", "two URIs", "https", "no path", "no URI", "anchor"],
)  # fmt: skip
def test_SP_026_032_033_034_110_an_svid_that_no_peer_would_accept(
    api: WorkloadApi, harness: Harness, make: Callable[[WorkloadApi], Svid]
) -> None:
    is_ignored(api, harness, lambda: api.serve(make(api)))


def test_SP_110_one_bad_svid_makes_no_other_the_default(api: WorkloadApi, harness: Harness) -> None:
    """To leave out the bad one would silently make the second one the default identity."""
    bad, second = api.domain.svid("/web", spoilt=True), api.domain.svid("/second")
    is_ignored(api, harness, lambda: api.serve(bad, second))


def test_SP_104_110_storms_of_bad_messages(api: WorkloadApi, harness: Harness) -> None:
    def spoil() -> None:
        api.inject(X509, Fault(change=faults.garbage))
        for _ in range(50):
            api.push()

    is_ignored(api, harness, spoil)
    assert harness.process.poll() is None
    assert "Traceback" not in harness.log()


def test_SP_110_bad_from_the_beginning_is_never_ready() -> None:
    with WorkloadApi() as api:
        api.issue("/web", spoilt=True)
        with Harness(api.endpoint, wait=False) as harness:
            api.wait_for_calls(X509)
            assert not harness.read_until("READY", 1.0)
            assert any(line.startswith("SPIFFE_X509_PORT=") for line in harness.lines)
            assert harness.meet(api.domain.svid("/peer")).chain == ()
            api.serve(api.domain.svid("/web"))
            harness.ready()
            assert harness.meet(api.domain.svid("/peer")).accepted


def test_SP_082_a_bundle_of_nothing_but_a_leaf_trusts_nobody(
    api: WorkloadApi, harness: Harness
) -> None:
    other = Domain("leaf.test")
    api.write_bundle("leaf.test", x509=other.svid("/x").chain[0])
    api.federate(other)
    barrier = Domain("barrier.test")
    api.federate(other, barrier)
    assert until(lambda: harness.meet(barrier.svid("/a")).accepted)
    for role in ("server", "client"):
        assert harness.accepts(role, other.svid("/x")) == ""
        assert harness.accepts(role, barrier.svid("/a"))
    api.federate()
