"""SPIFFE bundles: what is read, what is ignored, what refuses the whole document."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.edge.bundle import jwk
from x0tta6bl4.edge.bundle.document import (
    Document,
    JwtAuthority,
    encode,
    encode_jwks,
    of_bundle,
    parse,
    parse_map,
)
from x0tta6bl4.sdk.testing import tokens
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.wire.authority import DOCUMENT_BYTES_MAX
from x0tta6bl4.wire.errors import BadInput, X0Error
from x0tta6bl4.wire.ids import TrustDomain
from x0tta6bl4.wire.records import Bundle, JwtKey

OURS = TrustDomain("example.org")
DOMAIN = Domain(OURS)
OTHER = Domain("other.test")
EC_KEY = tokens.new_key("ES256")
RSA_KEY = tokens.new_key("RS256")


def bundle(*keys: Any, **members: Any) -> bytes:
    return json.dumps({"keys": list(keys)} | members).encode()


def read(*keys: Any, **members: Any) -> Document:
    return parse(bundle(*keys, **members), OURS)


def ca(**members: Any) -> dict[str, Any]:
    made = DOMAIN.x509_keys()[0] | members
    return {name: value for name, value in made.items() if value is not None}


def token_key(key: Any = EC_KEY, **members: Any) -> dict[str, Any]:
    return tokens.jwk(key, **({"use": "jwt-svid", "kid": "one"} | members))


def refused(data: bytes) -> str:
    with pytest.raises(BadInput) as caught:
        parse(data, OURS)
    return caught.value.id


# ------------------------------------------------------------------ reading
def test_SP_037_054_055_073_a_bundle_of_everything_is_read_by_its_uses() -> None:
    found = parse(DOMAIN.document(refresh_hint_s=60), OURS)
    assert found.x509 == DOMAIN.anchors
    assert [key.kid for key in found.jwt] == [kid for _, kid in DOMAIN.token_keys]
    assert (found.sequence, found.refresh_hint_s, found.trust_domain) == (2, 60, OURS)
    uses = ("x509-svid", "jwt-svid", "wit-svid")
    three = read(*(ca(use=use, kid=use) for use in uses))
    assert (len(three.x509), [k.kid for k in three.jwt], [k.kid for k in three.wit]) == (
        1, ["jwt-svid"], ["wit-svid"],
    )  # fmt: skip


def test_SP_081_083_an_unknown_kty_voids_its_element_and_no_other() -> None:
    strange = [{"kty": kty, "use": "jwt-svid", "kid": "s"} for kty in ("XYZ", "oct", "ec", "", 7)]
    found = read(*strange, {"use": "jwt-svid", "kid": "s"}, ca(), token_key(), None, "keys", [])
    assert (len(found.x509), [key.kid for key in found.jwt]) == (1, ["one"])


def test_SP_081_084_an_unknown_or_missing_use_voids_its_element() -> None:
    for use in ("sig", "JWT-SVID", "jwt-svid ", "", None, 7, ["jwt-svid"]):
        found = read(token_key(use=use), ca(use=use), token_key(kid="good"))
        assert (found.x509, [key.kid for key in found.jwt]) == ((), ["good"]), use


def test_SP_040_an_x509_key_without_x5c_is_ignored() -> None:
    for x5c in (None, [], [""]):
        assert read(ca(x5c=x5c), ca()).x509 == (DOMAIN.anchors[0],), x5c


def test_SP_041_only_the_first_x5c_value_counts() -> None:
    second = b64encode(OTHER.anchors[0]).decode()
    first = ca()["x5c"][0]
    assert read(ca(x5c=[first, second])).x509 == (DOMAIN.anchors[0],)
    assert read(ca(x5c=[first, "no base64", 7])).x509 == (DOMAIN.anchors[0],)


def test_SP_038_a_kid_on_an_x509_key_does_no_harm() -> None:
    assert read(ca(kid="x")).x509 == (DOMAIN.anchors[0],)


def test_SP_054_a_jwt_key_without_kid_is_no_authority() -> None:
    for kid in (None, "", 7, "k" * 1025):
        assert [key.kid for key in read(token_key(kid=kid), token_key(kid="b")).jwt] == ["b"]


def test_keys_that_no_token_algorithm_uses_are_ignored() -> None:
    weak = {"kty": "RSA", "n": tokens.b64(b"\xff" * 128), "e": "AQAB", "use": "jwt-svid"}
    bitcoin = token_key() | {"crv": "secp256k1"}
    found = read(token_key(tokens.new_key("EdDSA")), weak | {"kid": "w"}, bitcoin, token_key())
    assert [key.kid for key in found.jwt] == ["one"]


def test_SP_080_keys_have_to_be_there_and_may_be_none() -> None:
    empty = read()
    assert (empty.x509, empty.jwt, empty.wit) == ((), (), ())  # SP_082: then nothing is valid.
    for data in (b"{}", b'{"keys":null}', b'{"keys":{}}', b"[]", b"null", b'"keys"'):
        assert refused(data) == "X0-BUN-006"


def test_SP_077_the_sequence_has_64_bits() -> None:
    assert read(spiffe_sequence=2**64 - 1).sequence == 2**64 - 1
    assert read(spiffe_sequence=0).sequence == 0
    assert read().sequence is None
    for wrong in (2**64, -1, 1.0, "1", True, [1]):
        assert refused(bundle(spiffe_sequence=wrong)) == "X0-BUN-006", wrong


def test_SP_078_the_refresh_hint_is_an_integer() -> None:
    assert read(spiffe_refresh_hint=10).refresh_hint_s == 10
    for wrong in (1.5, "10", -1, False, 2**31):
        assert refused(bundle(spiffe_refresh_hint=wrong)) == "X0-BUN-006", wrong


def test_SP_079_members_that_are_not_defined_change_nothing() -> None:
    assert read(ca(alg="x", key_ops=["y"], z=1), other={"a": [1]}) == read(ca())


def test_what_is_known_but_broken_refuses_the_document() -> None:
    point = token_key()
    broken = (
        ca(x5c=["not base64!"]),
        ca(x5c=[7]),
        token_key() | {"x": point["y"]},  # Not on the curve.
        token_key() | {"x": point["x"] + "="},
        token_key() | {"x": 7},
        {name: value for name, value in point.items() if name != "y"},
    )
    for element in broken:
        assert refused(bundle(element, token_key())) == "X0-BUN-002", element
    assert refused(bundle(ca(x5c=[b64encode(b"certificate").decode()]))) == "X0-TLS-001"


def test_what_is_no_json_or_ambiguous_or_endless_is_refused() -> None:
    for data in (b"", b"{", b"\xff", b'{"keys":[NaN]}', b"[" * 100_000, b'{"keys":[]} x'):
        assert refused(data) == "X0-BUN-001", data[:20]
    assert refused(b'{"keys":[],"keys":[]}') == "X0-BUN-006"
    assert refused(b" " * (DOCUMENT_BYTES_MAX + 1)) == "X0-BUN-005"
    assert refused(bundle(*([None] * 1025))) == "X0-BUN-006"
    twice = json.dumps(token_key(kid="twice"))[:-1] + ',"kid":"other"}'
    assert parse(b'{"keys":[' + twice.encode() + b"]}", OURS).jwt == ()


# ------------------------------------------------------------------ maps
def test_SP_085_a_map_gives_each_domain_its_own_bundle() -> None:
    data = {"trust_domains": {d.name: json.loads(d.document()) for d in (DOMAIN, OTHER)}}
    found = parse_map(json.dumps(data).encode())
    assert {domain: doc.x509 for domain, doc in found.items()} == {
        OURS: DOMAIN.anchors, "other.test": OTHER.anchors,
    }  # fmt: skip
    assert parse_map(b'{"trust_domains":{}}') == {}


def test_SP_086_a_domain_that_stands_twice_refuses_the_map() -> None:
    for second in ("example.org", "Example.ORG"):
        text = '{"trust_domains":{"example.org":{"keys":[]},"%s":{"keys":[]}}}' % second  # noqa: UP031
        with pytest.raises(BadInput, match="X0-BUN-006"):
            parse_map(text.encode())


def test_SP_087_a_bundle_has_no_say_in_how_often_the_map_is_read() -> None:
    whole = {"keys": [], "spiffe_refresh_hint": 1, "spiffe_sequence": 4}
    (found,) = parse_map(json.dumps({"trust_domains": {OURS: whole}}).encode()).values()
    assert (found.refresh_hint_s, found.sequence) == (None, 4)


def test_a_map_that_is_none_is_refused() -> None:
    for data in (b"{}", b"[]", b'{"trust_domains":[]}', b'{"trust_domains":{"a b":{"keys":[]}}}',
                 b'{"trust_domains":{"a":{}}}'):  # fmt: skip
        with pytest.raises(BadInput):
            parse_map(data)


# ------------------------------------------------------------------ writing
def test_SP_037_038_039_054_072_what_is_written_is_read_back_and_has_the_form() -> None:
    one = JwtAuthority("one", jwk.public_bytes(_public(EC_KEY)))
    two = JwtAuthority("two", jwk.public_bytes(_public(RSA_KEY)))
    document = Document(OURS, DOMAIN.anchors, (one,), (two,), 2**64 - 1, 77)
    assert parse(encode(document), OURS) == document
    x509_key, jwt_key, wit_key = json.loads(encode(document))["keys"]
    assert (x509_key["use"], "kid" in x509_key, len(x509_key["x5c"])) == ("x509-svid", False, 1)
    assert (jwt_key["use"], jwt_key["kid"]) == ("jwt-svid", "one")
    assert (wit_key["use"], wit_key["kid"]) == ("wit-svid", "two")
    assert x509_key == DOMAIN.x509_keys()[0]
    assert jwt_key == token_key()


def test_SP_120_the_jwks_of_the_workload_api_has_jwt_keys_alone() -> None:
    document = parse(DOMAIN.document(), OURS)
    assert json.loads(encode_jwks(document)) == {"keys": DOMAIN.jwt_keys()}


def test_a_ca_of_every_kind_of_key_can_be_published() -> None:
    for kind in ("P-384", "RSA-2048", "ML-DSA-65"):
        document = Document(OURS, Domain(OURS, key=kind).anchors)
        assert parse(encode(document), OURS) == document


def test_our_own_bundle_becomes_a_document() -> None:
    key = JwtKey("one", "ES256", jwk.public_bytes(_public(EC_KEY)), 5)
    document = of_bundle(Bundle(OURS, 9, DOMAIN.anchors, (), 300, (key,)))
    assert document == Document(
        OURS, DOMAIN.anchors, (JwtAuthority("one", key.public),), (), 9, 300
    )
    assert parse(encode(document), OURS) == document


def _public(key: Any) -> Any:
    return key.public_key()


# ------------------------------------------------------------------ whatever comes
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
_ELEMENTS = st.fixed_dictionaries(
    {},
    optional={
        "kty": st.sampled_from(["RSA", "EC", "OKP", "AKP", "x"]) | _VALUES,
        "use": st.sampled_from(["x509-svid", "jwt-svid", "wit-svid"]) | _VALUES,
        "kid": st.just("k") | _VALUES,
        "x5c": st.just(ca()["x5c"]) | _VALUES,
        "crv": st.sampled_from(["P-256", "P-384"]) | _VALUES,
        "x": st.just(token_key()["x"]) | _VALUES,
        "y": st.just(token_key()["y"]) | _VALUES,
        "n": st.just(tokens.jwk(RSA_KEY)["n"]) | _VALUES,
        "e": st.sampled_from(["AQAB", "AA", "AQ"]) | _VALUES,
    },
)


@settings(max_examples=300, deadline=None)
@given(keys=st.lists(_ELEMENTS | _VALUES, max_size=4), members=st.dictionaries(
    st.sampled_from(["spiffe_sequence", "spiffe_refresh_hint", "other"]), _VALUES))  # fmt: skip
def test_fuzz_a_bundle_is_read_or_refused_and_what_is_read_can_be_written(
    keys: list[Any], members: dict[str, Any]
) -> None:
    try:
        found = parse(bundle(*keys, **members), OURS)
    except X0Error:
        return
    assert parse(encode(found), OURS) == found


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 2000), put=st.binary(max_size=3))
def test_fuzz_bytes_are_read_or_refused(data: bytes, at: int, put: bytes) -> None:
    whole = DOMAIN.document()
    for attempt in (data, whole[:at] + put + whole[at + len(put) :]):
        for reader in (lambda d: parse(d, OURS), parse_map):
            try:
                reader(attempt)
            except X0Error:
                continue
