"""What the SDK reads in the JWT bundles that the Workload API pushes.

Source: JWT-SVID.md section 6, SPIFFE_Trust_Domain_and_Bundle.md section 4, SPIFFE_Workload_API.md
sections 4.4 and 6.2.2.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.driver import Harness, until
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.tokens import SigningKey, jwk, new_key
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi


class Bundles:
    """A harness, and bundles whose arrival can be waited for.

    The stream is in order: when a token of the newest barrier key is accepted, all that was pushed
    with or before it has been read.
    """

    def __init__(self, api: WorkloadApi, harness: Harness) -> None:
        self.api = api
        self.harness = harness

    def write(self, *keys: Any, **members: Any) -> None:
        """Push these keys, and wait until they have arrived."""
        barrier = new_key()
        mark = jwk(barrier, kid="barrier", use="jwt-svid")
        document = {"keys": [*keys, mark], **members}
        self.api.write_bundle("example.org", jwks=json.dumps(document).encode())
        token = self.api.domain.token("/barrier", key=barrier, header={"kid": "barrier"})
        assert until(lambda: self.harness.validate(token).code == 200), "never arrived"

    def accepts(self, key: SigningKey, kid: str | None = None) -> bool:
        answer = self.harness.validate(self.api.domain.token("/p", key=key, header={"kid": kid}))
        assert answer.code in (200, 422), answer.body
        return answer.code == 200


@pytest.fixture(scope="module")
def bundles() -> Any:
    with WorkloadApi() as api:
        api.issue("/web")
        with Harness(api.endpoint) as harness:
            yield Bundles(api, harness)


def test_SP_105_108_keys_come_and_go_with_the_stream(bundles: Bundles) -> None:
    first, second = new_key(), new_key()
    bundles.write(jwk(first, kid="1", use="jwt-svid"))
    assert bundles.accepts(first, "1")
    bundles.write(jwk(first, kid="1", use="jwt-svid"), jwk(second, kid="2", use="jwt-svid"))
    assert bundles.accepts(first, "1")
    assert bundles.accepts(second, "2")
    bundles.write(jwk(second, kid="2", use="jwt-svid"))
    assert not bundles.accepts(first, "1")
    assert not bundles.accepts(first)
    assert bundles.accepts(second, "2")


def test_SP_046_054_the_key_is_found_by_its_kid_or_by_trying(bundles: Bundles) -> None:
    keys = [new_key() for _ in range(3)]
    bundles.write(*(jwk(key, kid=str(n), use="jwt-svid") for n, key in enumerate(keys)))
    for n, key in enumerate(keys):
        assert bundles.accepts(key, str(n))
        assert bundles.accepts(key)
        assert not bundles.accepts(key, str(n + 1))


def test_SP_055_084_keys_for_other_uses_sign_no_token(bundles: Bundles) -> None:
    right = new_key()
    for use in ("x509-svid", "wit-svid", "sig", "JWT-SVID", "jwt-svid ", "", None, 1, ["jwt-svid"]):
        wrong = new_key()
        bundles.write(jwk(wrong, kid="w", use=use), jwk(right, kid="r", use="jwt-svid"))
        assert not bundles.accepts(wrong, "w"), use
        assert not bundles.accepts(wrong), use
        assert bundles.accepts(right, "r")


def test_SP_055_the_ca_of_the_domain_signs_no_token(bundles: Bundles) -> None:
    domain = bundles.api.domain
    ca = domain._anchors[0][0]
    bundles.write(*domain.x509_keys())
    assert not bundles.accepts(ca)
    bundles.write({**domain.x509_keys()[0], "kid": "x"})
    assert not bundles.accepts(ca, "x")


def test_SP_081_083_unknown_kinds_leave_the_others_alone(bundles: Bundles) -> None:
    right = new_key()
    good = jwk(right, kid="r", use="jwt-svid")
    strange: list[Any] = [
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AAAA", "kid": "a", "use": "jwt-svid"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "b", "use": "jwt-svid"},
        {"kty": "oct", "k": "AAAA", "kid": "c", "use": "jwt-svid"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "d", "use": "jwt-svid"},
        {"kty": "future", "kid": "e", "use": "jwt-svid", "stuff": {"deep": []}},
        {"kty": "ec", "kid": "f", "use": "jwt-svid"},
        {"kid": "g", "use": "jwt-svid"},
        {"kty": None, "kid": "h", "use": "jwt-svid"},
    ]
    bundles.write(*strange, good)
    assert bundles.accepts(right, "r")
    for one in strange:
        bundles.write(one, good)
        assert bundles.accepts(right, "r"), one


def test_SP_079_members_that_nobody_knows_are_ignored(bundles: Bundles) -> None:
    right = new_key()
    key = jwk(right, kid="r", use="jwt-svid", alg="ES256", key_ops=["verify"], own={"a": 1})
    bundles.write(key, spiffe_sequence=1, spiffe_refresh_hint=60, spiffe_future=[{}], own=None)
    assert bundles.accepts(right, "r")


def test_SP_079_nothing_but_keys_is_needed(bundles: Bundles) -> None:
    right = new_key()
    bundles.write(jwk(right, kid="r", use="jwt-svid"))
    assert bundles.accepts(right, "r")


def test_SP_077_sequences_beyond_32_bits(bundles: Bundles) -> None:
    right = new_key()
    for sequence in (0, 2**33, 2**63 - 1):
        bundles.write(jwk(right, kid="r", use="jwt-svid"), spiffe_sequence=sequence)
        assert bundles.accepts(right, "r")


def test_SP_082_a_bundle_without_keys_trusts_nobody(api: WorkloadApi, harness: Harness) -> None:
    token = api.domain.token("/peer")
    assert harness.validate(token).code == 200
    api.write_bundle("example.org", jwks=b'{"keys":[]}')
    assert until(lambda: harness.validate(token).code == 422)
    assert harness.validate(api.domain.token("/peer", header={"kid": None})).code == 422
    api.write_bundle("example.org", jwks=api.domain.jwks())
    assert until(lambda: harness.validate(token).code == 200)
    unusable = {"keys": api.domain.x509_keys()}
    api.write_bundle("example.org", jwks=json.dumps(unusable).encode())
    assert until(lambda: harness.validate(token).code == 422)


def test_SP_109_116_a_trust_domain_that_is_left_out_is_forgotten(
    api: WorkloadApi, harness: Harness
) -> None:
    other = Domain("other.test")
    token = other.token("/peer")
    assert harness.validate(token).code == 422
    api.federate(other)
    assert until(lambda: harness.validate(token).code == 200)
    api.federate()
    assert until(lambda: harness.validate(token).code == 422)
    assert harness.validate(api.domain.token("/peer")).code == 200


def test_SP_128_a_broken_bundle_breaks_no_other(api: WorkloadApi, harness: Harness) -> None:
    """Of the broken one nothing new is believed; of the others all stays as it is."""
    other = Domain("other.test")
    barrier = Domain("barrier.test")
    for wrong in (b"", b"{", b"[]", b'{"keys":{}}', b'{"other":[]}', b"\xff", b"null"):
        api.write_bundle("other.test", jwks=wrong)
        api.federate(other, barrier)
        assert until(lambda: harness.validate(barrier.token("/peer")).code == 200), wrong
        assert harness.validate(other.token("/peer")).code == 422
        assert harness.validate(api.domain.token("/peer")).code == 200
        api.federate()
        assert until(lambda: harness.validate(barrier.token("/peer")).code == 422)


def test_SP_116_after_permission_denied_no_token_is_valid(
    api: WorkloadApi, harness: Harness
) -> None:
    token = api.domain.token("/peer")
    assert harness.validate(token).code == 200
    api.withdraw()
    assert until(lambda: harness.validate(token).code == 422)
    api.issue("/web")
    assert until(lambda: harness.validate(token).code == 200)


def test_SP_104_bundles_go_on_over_a_restart_of_the_server(
    api: WorkloadApi, harness: Harness
) -> None:
    assert harness.validate(api.domain.token("/peer")).code == 200
    api.stop()
    assert harness.validate(api.domain.token("/peer")).code == 200  # What is held stays in use.
    api.domain.rotate_token_key()
    api.start()
    assert until(lambda: harness.validate(api.domain.token("/peer")).code == 200)
