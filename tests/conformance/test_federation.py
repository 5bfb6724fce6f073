"""Trust domains beside our own: as long as the Workload API names them, and never mixed up.

Source: SPIFFE_Federation.md sections 4.2 and 7, SPIFFE_Workload_API.md sections 4.4 to 5.2.
"""

from __future__ import annotations

import pytest

from tests.conformance.driver import Harness, until
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

both_roles = pytest.mark.parametrize("role", ["server", "client"])


@both_roles
def test_SP_109_111_a_federated_domain_comes_and_goes(
    api: WorkloadApi, harness: Harness, role: str
) -> None:
    other = Domain("fed.test")
    peer = other.svid("/peer")
    assert harness.accepts(role, api.domain.svid("/peer"))
    assert harness.accepts(role, peer) == ""
    api.federate(other)
    assert until(lambda: harness.accepts(role, peer) == "spiffe://fed.test/peer")
    api.federate()
    assert until(lambda: harness.accepts(role, peer) == "")
    assert harness.accepts(role, api.domain.svid("/peer"))


def test_SP_076_128_each_domain_is_judged_by_its_own_bundle(
    api: WorkloadApi, harness: Harness
) -> None:
    first, second = Domain("one.test"), Domain("two.test")
    api.federate(first, second)
    assert until(lambda: bool(harness.accepts("server", second.svid("/a"))))
    for signer in (api.domain, first, second):
        for domain in (api.domain, first, second):
            id = domain.id("/a")
            for role in ("server", "client"):
                got = harness.accepts(role, signer.svid("/a", uris=(id,)))
                assert got == (id if signer is domain else ""), (signer.name, id, role)


def test_SP_126_several_cas_of_a_domain_count_until_they_are_gone(
    api: WorkloadApi, harness: Harness
) -> None:
    other = Domain("fed.test")
    old = other.svid("/peer")
    other.rotate_anchor()
    new = other.svid("/peer")
    api.federate(other)
    for role in ("server", "client"):
        assert until(lambda role=role: bool(harness.accepts(role, new)))  # type: ignore[misc]
        assert harness.accepts(role, old)
    other.retire_anchors()
    api.federate(other)
    for role in ("server", "client"):
        assert until(lambda role=role: harness.accepts(role, old) == "")  # type: ignore[misc]
        assert harness.accepts(role, new)


def test_SP_128_a_broken_bundle_breaks_no_other(api: WorkloadApi, harness: Harness) -> None:
    broken, whole = Domain("broken.test"), Domain("whole.test")
    for wrong in (b"", b"\x30", b"\x30\x82\xff\xff", b"not der", whole.anchors[0][:-1]):
        api.write_bundle("broken.test", x509=wrong)
        api.federate(broken, whole)
        assert until(lambda: bool(harness.accepts("server", whole.svid("/a")))), wrong
        assert harness.accepts("server", broken.svid("/a")) == ""
        assert harness.accepts("server", api.domain.svid("/a"))
        api.federate()
        assert until(lambda: harness.accepts("server", whole.svid("/a")) == "")


def test_SP_005_016_140_a_domain_is_named_by_its_id(api: WorkloadApi, harness: Harness) -> None:
    other = Domain("fed.test")
    for name in ("spiffe://fed.test", "fed.test", "SPIFFE://FED.TEST"):

        def rename(answer: object, name: str = name) -> object:
            answer.federated_bundles[name] = other.anchors[0]  # type: ignore[attr-defined]
            return answer

        from x0tta6bl4.sdk.testing.faults import Fault

        api.inject("FetchX509SVID", Fault(change=rename))
        api.push()
        assert until(lambda: bool(harness.accepts("server", other.svid("/a")))), name
        api.clear()
        api.push()
        assert until(lambda: harness.accepts("server", other.svid("/a")) == "")


def test_SP_109_every_bundle_goes_with_permission_denied(
    api: WorkloadApi, harness: Harness
) -> None:
    other = Domain("fed.test")
    api.federate(other)
    assert until(lambda: bool(harness.accepts("server", other.svid("/a"))))
    api.withdraw()
    assert until(lambda: not harness.meet(other.svid("/a")).accepted)
    assert harness.validate(other.token("/a")).code == 422
