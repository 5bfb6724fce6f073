"""JWT-SVIDs: the valid ones, the odd ones, and everything that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.bundle.document import Document, JwtAuthority, parse
from x0tta6bl4.edge.jwt import compact
from x0tta6bl4.edge.jwt.svid import JwtSvid, Signer, judge_token, read_unverified
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.tokens import b64, forge, jwk, new_key
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain

NOW = 1_800_000_000
OURS, THEIRS = TrustDomain("example.org"), TrustDomain("other.test")
WEB = SpiffeId("spiffe://example.org/web")
DOMAIN = Domain(OURS, now_unix_s=lambda: NOW)
OTHER = Domain(THEIRS, now_unix_s=lambda: NOW)
KEY, KID = DOMAIN.token_keys[0]
DOCUMENTS = {OURS: parse(DOMAIN.document(), OURS), THEIRS: parse(OTHER.document(), THEIRS)}


def judge(token: str, audience: str = "web", **options: Any) -> JwtSvid | Denied:
    documents = options.pop("documents", DOCUMENTS)
    return judge_token(token, audience, documents, options.pop("now", NOW) * 1_000_000, **options)


def reason(token: str, audience: str = "web", **options: Any) -> str:
    found = judge(token, audience, **options)
    assert isinstance(found, Denied), found
    return found.reason


def accepted(token: str, audience: str = "web", **options: Any) -> JwtSvid:
    found = judge(token, audience, **options)
    assert isinstance(found, JwtSvid), found
    return found


def token(**changes: Any) -> str:
    return DOMAIN.token(**changes)


def of(*keys: tuple[Any, str], **members: Any) -> dict[TrustDomain, Document]:
    """Documents of our domain with just these keys."""
    elements = [jwk(key, **({"kid": kid, "use": "jwt-svid"} | members)) for key, kid in keys]
    return {OURS: parse(json.dumps({"keys": elements}).encode(), OURS)}


def pkcs8(key: Any) -> bytes:
    return bytes(key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip


# ------------------------------------------------------------------ what is accepted
def test_SP_048_052_a_proper_token_says_who_and_until_when() -> None:
    made = token(claims={"role": "x"}, ttl_s=60)
    svid = accepted(made)
    assert (svid.id, svid.audience, svid.expires_unix_s) == (WEB, ("web",), NOW + 60)
    assert (svid.issued_unix_s, svid.claims["role"], svid.token) == (NOW, "x", made)
    assert made not in repr(svid)


def test_SP_046_a_token_without_kid_is_accepted_when_a_key_verifies_it() -> None:
    accepted(token(header={"kid": None}))
    many = of(*[(new_key(), f"k{n}") for n in range(3)], (new_key("RS256"), "r"), (KEY, KID))
    accepted(token(header={"kid": None}), documents=many)
    assert reason(token(header={"kid": None}, key=new_key())) == "bad signature"


def test_a_token_without_kid_is_tried_with_a_bounded_number_of_keys() -> None:
    authority = JwtAuthority("k", DOCUMENTS[OURS].jwt[0].public)
    strangers = tuple(
        JwtAuthority(f"{n}", x509.public_bytes(x509.new_key()))
        for n in range(compact.KEYS_TRIED_MAX)
    )
    late = {OURS: Document(OURS, jwt=(*strangers, authority))}
    in_time = {OURS: Document(OURS, jwt=(*strangers[1:], authority))}
    plain = token(header={"kid": None})
    assert reason(plain, documents=late) == "bad signature"
    accepted(plain, documents=in_time)


@pytest.mark.parametrize("algorithm", compact.ALGORITHMS)
def test_SP_045_every_algorithm_of_the_list_is_accepted(algorithm: str) -> None:
    key = new_key(algorithm)
    made = token(key=key, header={"alg": algorithm, "kid": "a"})
    accepted(made, documents=of((key, "a")))
    assert reason(made, documents=of((new_key(algorithm), "a"))) == "bad signature"


def test_SP_047_typ_is_jwt_or_jose_or_absent() -> None:
    for typ in ("JWT", "JOSE", None):
        accepted(token(header={"typ": typ}))
    odd: list[Any] = ["jwt", "at+jwt", "wit+jwt", "", 7, [], False]
    for wrong in odd:
        assert reason(token(header={"typ": wrong})) == "wrong type of token", wrong
    null = forge(b'{"alg":"ES256","typ":null}', {"sub": WEB, "aud": "web", "exp": NOW + 9}, KEY)
    assert reason(null) == "wrong type of token"


def test_SP_049_own_audience_may_be_one_of_many_or_a_plain_string() -> None:
    assert accepted(token(audience="web")).audience == ("web",)
    assert accepted(token(audience=["db", "web"])).audience == ("db", "web")


def test_SP_016_a_subject_is_normalised() -> None:
    assert accepted(token(claims={"sub": "SPIFFE://Example.ORG/Web"})).id == (
        "spiffe://example.org/Web"
    )


def test_SP_052_leeway_helps_at_both_ends() -> None:
    accepted(token(ttl_s=0), leeway_s=1)
    accepted(token(claims={"nbf": NOW + 1}), leeway_s=1)
    assert reason(token(ttl_s=0)) == "expired"
    assert reason(token(ttl_s=-1), leeway_s=1) == "expired"


def test_iat_never_limits_and_times_may_have_fractions() -> None:
    accepted(token(claims={"iat": NOW + 3600}))
    accepted(token(claims={"iat": None, "nbf": NOW - 0.5, "exp": NOW + 0.5}))


def test_a_long_kid_is_a_kid() -> None:
    kid = "k" * 1000
    accepted(token(header={"kid": kid}), documents=of((KEY, kid)))


# ------------------------------------------------------------------ what is not
def test_SP_043_only_the_compact_form_is_read() -> None:
    head, body, signature = token().split(".")
    whole = {"payload": body, "signatures": [{"protected": head, "signature": signature}]}
    flat = {"payload": body, "protected": head, "signature": signature}
    dots = ("a.b", "a.b.c.d.e", "", "...", f"{head}.{body}", f".{body}.{signature}")
    for wrong in (json.dumps(whole), json.dumps(flat), *dots, token() + ".", "é.é.é"):
        assert reason(wrong) == "not a compact token", wrong


def test_SP_044_a_header_with_anything_else_is_refused() -> None:
    stranger = jwk(KEY)
    for extra in ({"jku": "https://x"}, {"jwk": stranger}, {"x5c": ["x"]}, {"crit": ["exp"]},
                  {"cty": "JWT"}, {"b64": False, "crit": ["b64"]}, {"x5u": "u"}):  # fmt: skip
        assert reason(token(header=extra)) == "unknown header", extra


def test_SP_045_an_algorithm_outside_the_list_is_refused_before_anything_else() -> None:
    public = jwk(KEY)
    secret = json.dumps(public).encode()
    body = {"sub": WEB, "aud": ["web"], "exp": NOW + 60}
    for alg in ("HS256", "HS384", "HS512"):
        assert reason(forge({"alg": alg, "kid": KID}, body, secret)) == "algorithm not allowed"
    others: list[Any] = ["none", "None", "nOnE", "EdDSA", "ES256K", "es256", "", None, 7, ["ES256"]]
    for other in others:
        made = forge({"alg": other, "jku": "u", "typ": 7}, b"no json", KEY, algorithm="ES256")
        assert reason(made) == "algorithm not allowed", other
    assert reason(forge({"kid": KID}, body, KEY, algorithm="ES256")) == "algorithm not allowed"
    unsigned = forge({"alg": "none"}, body, None)
    assert reason(unsigned) == "algorithm not allowed"


def test_a_signature_that_is_missing_or_broken_or_another_is_refused() -> None:
    head, body, signature = token().split(".")
    assert reason(f"{head}.{body}.") == "malformed signature"
    assert reason(f"{head}.{body}.{signature}=") == "malformed signature"
    assert reason(f"{head}.{body}.{b64(bytes(63))}") == "bad signature"
    assert reason(f"{head}.{body}.{b64(bytes(64))}") == "bad signature"
    flipped = "B" if signature[0] == "A" else "A"
    assert reason(f"{head}.{body}.{flipped}{signature[1:]}") == "bad signature"
    other = token(claims={"sub": "spiffe://example.org/db"}).split(".")[1]
    assert reason(f"{head}.{other}.{signature}") == "bad signature"
    der = forge({"alg": "ES256", "kid": KID}, {"sub": WEB, "aud": "web", "exp": NOW + 9}, KEY)
    accepted(der)


def test_a_key_of_another_kind_or_curve_does_not_fit() -> None:
    rsa = new_key("RS256")
    for key, alg in ((rsa, "ES256"), (KEY, "RS256"), (KEY, "PS256"), (KEY, "ES384")):
        signer = KEY if alg == "ES256" else new_key(alg)
        made = token(key=signer, header={"alg": alg, "kid": "k"})
        assert reason(made, documents=of((key, "k"))) == "key does not fit the algorithm"


def test_SP_055_keys_for_anything_else_never_verify_a_token() -> None:
    ca, _ = DOMAIN._anchors[0]
    documents = {OURS: parse(DOMAIN.document(), OURS)}
    as_ca = token(key=ca, header={"alg": "ES256", "kid": None})
    assert reason(as_ca, documents=documents) == "bad signature"
    for use in ("x509-svid", "wit-svid", "sig", None):
        found = of((KEY, KID), use=use, x5c=None)
        assert reason(token(), documents=found) == "no JWT key in the bundle", use


def test_SP_122_only_the_keys_of_the_subjects_domain_count() -> None:
    theirs, kid = OTHER.token_keys[0]
    forged = token(key=theirs, header={"kid": kid})
    assert reason(forged) == "unknown key"
    assert reason(token(key=theirs, header={"kid": None})) == "bad signature"
    assert accepted(OTHER.token()).id == "spiffe://other.test/web"
    assert reason(OTHER.token(), documents={OURS: DOCUMENTS[OURS]}) == (
        "no bundle of the trust domain"
    )


def test_SP_082_without_keys_every_token_is_invalid() -> None:
    assert reason(token(), documents={OURS: Document(OURS)}) == "no JWT key in the bundle"


def test_SP_049_without_own_audience_it_is_refused() -> None:
    assert reason(token(), "db") == "meant for another audience"
    assert reason(token(), "") == "meant for another audience"
    assert reason(token(), "WEB") == "meant for another audience"
    nobody: list[Any] = [None, "", [], [""], ["web", 7], {"web": 1}, 7, ["web"] * 65]
    for none in nobody:
        assert reason(token(audience=none)) == "no audience", none


def test_SP_051_without_expiry_it_is_refused() -> None:
    assert reason(token(claims={"exp": None})) == "no expiry"
    odd: list[Any] = ["soon", True, [NOW + 9], {}, 10**400, 1e300]
    for wrong in odd:
        assert reason(token(claims={"exp": wrong})) == "malformed exp", wrong
    endless = forge({"alg": "ES256"}, b'{"sub":"%s","aud":"web","exp":1e999}' % WEB.encode(), KEY)
    assert reason(endless) == "malformed exp"


def test_SP_052_before_its_time_it_is_refused() -> None:
    assert reason(token(claims={"nbf": NOW + 1})) == "not yet valid"
    assert reason(token(claims={"nbf": "now"})) == "malformed nbf"
    assert reason(token(claims={"iat": "now"})) == "malformed iat"


def test_SP_048_a_subject_that_is_no_workload_is_refused() -> None:
    assert reason(token(claims={"sub": None})) == "no subject"
    assert reason(token(claims={"sub": [WEB]})) == "no subject"
    for wrong in ("", "web", "https://example.org/web", "spiffe://example.org/a//b",
                  "spiffe://example.org/web/", "spiffe://u@example.org/w",
                  "spiffe://example.org/%41", "spiffe://example.org:1/w",
                  "spiffe://example.org/web?a", "spiffe:///web"):  # fmt: skip
        assert reason(token(claims={"sub": wrong})) == "subject is no SPIFFE ID", wrong
    assert reason(token(claims={"sub": "spiffe://example.org"})) == "subject without a path"


def test_claims_and_headers_that_can_be_read_in_two_ways_are_refused() -> None:
    head = {"alg": "ES256", "kid": KID}
    said = b'{"sub":"%s","aud":"web","exp":%d' % (WEB.encode(), NOW + 60)
    accepted(forge(head, said + b"}", KEY))
    for more in (b',"sub":"spiffe://example.org/db"}', b',"aud":"web"}', b',"a":{"b":1,"b":2}}',
                 b',"a":[{"b":1,"b":2}]}'):  # fmt: skip
        assert reason(forge(head, said + more, KEY)) == "malformed claims", more
    twice = b'{"alg":"ES256","alg":"ES256"}'
    assert reason(forge(twice, said + b"}", KEY, algorithm="ES256")) == "malformed header"
    for wrong in (b"[]", b"null", b"{", b'"x"', b"\xff", b'{"exp":NaN}'):
        assert reason(forge(head, wrong, KEY)) == "malformed claims", wrong
        assert reason(forge(wrong, b"{}", KEY, algorithm="ES256")) == "malformed header", wrong


def test_base64_that_is_not_the_one_form_is_refused() -> None:
    head, body, signature = token().split(".")
    for wrong in (head + "=", head + "\n", " " + head, head.replace(head[5], "+", 1)):
        assert reason(f"{wrong}.{body}.{signature}") == "malformed header", wrong
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spare = alphabet[alphabet.index(signature[-1]) ^ 1]  # The same 64 bytes, written otherwise.
    assert reason(f"{head}.{body}.{signature[:-1]}{spare}") == "malformed signature"


def test_a_token_too_large_is_refused_unread() -> None:
    accepted(token(claims={"x": "a" * 8000}))
    assert reason(token(claims={"x": "a" * 16_384})) == "token too large"


def test_a_kid_that_is_unknown_or_no_text_is_refused() -> None:
    assert reason(token(header={"kid": "another"})) == "unknown key"
    assert reason(token(header={"kid": KID.swapcase()})) == "unknown key"
    odd: list[Any] = [7, [KID], {}, True]
    for wrong in odd:
        assert reason(token(header={"kid": wrong})) == "malformed header"


def test_two_keys_of_one_kid_are_both_tried() -> None:
    accepted(token(), documents=of((new_key(), KID), (KEY, KID)))


# ------------------------------------------------------------------ known answers
RFC7515_A3 = (
    "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv"
    "bS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQ"
    "xfKTUJqPP3-Kg6NU1Q"
)
RFC7515_A3_KEY = {
    "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0", "use": "jwt-svid", "kid": "a3",
}  # fmt: skip


def test_the_signature_of_rfc_7515_appendix_a3_is_found_good() -> None:
    found = compact.read(RFC7515_A3, (None,))
    assert isinstance(found, compact.Compact)
    keys = parse(json.dumps({"keys": [RFC7515_A3_KEY]}).encode(), OURS).jwt
    assert compact.judge_signature(found, keys) is None
    bent = compact.read(RFC7515_A3.replace("Dt", "Du"), (None,))
    assert isinstance(bent, compact.Compact)
    assert compact.judge_signature(bent, keys) == Denied("bad signature")


# ------------------------------------------------------------------ minting and reading
def test_SP_044_048_050_what_is_minted_has_the_form_and_is_accepted() -> None:
    key = x509.new_key()
    made = Signer(x509.key_bytes(key), "k1").mint(WEB, ("web",), 300, NOW)
    documents = {OURS: Document(OURS, jwt=(JwtAuthority("k1", x509.public_bytes(key)),))}
    svid = accepted(made, documents=documents)
    assert (svid.id, svid.audience, svid.issued_unix_s) == (WEB, ("web",), NOW)
    assert svid.expires_unix_s == NOW + 300
    found = compact.read(made, ("JWT",))
    assert isinstance(found, compact.Compact)
    assert found.header == {"alg": "ES256", "kid": "k1", "typ": "JWT"}
    assert set(found.claims) == {"sub", "aud", "iat", "exp"}


def test_a_token_of_ones_own_workload_api_is_read_without_keys() -> None:
    found = read_unverified(token(key=new_key()))
    assert isinstance(found, JwtSvid)
    assert (found.id, found.audience) == (WEB, ("web",))
    for wrong, why in (
        (token(claims={"sub": "x"}), "subject is no SPIFFE ID"),
        (token(claims={"exp": None}), "no expiry"),
        (token(audience=None), "no audience"),
        (forge({"alg": "none"}, {"sub": WEB}, None), "algorithm not allowed"),
        ("a.b", "not a compact token"),
    ):
        assert read_unverified(wrong) == Denied(why)


# ------------------------------------------------------------------ whatever comes
@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 600), put=st.text(max_size=3), junk=st.text(max_size=60))
def test_fuzz_nothing_but_the_token_itself_is_accepted(at: int, put: str, junk: str) -> None:
    good = token()
    bent = good[:at] + put + good[at + len(put) :]
    for attempt in (bent, junk, good + junk, junk + "." + good):
        found = judge(attempt)
        assert isinstance(found, Denied) or attempt == good
        read_unverified(attempt)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "x"]), _JSON),
    claims=st.dictionaries(st.sampled_from(["sub", "aud", "exp", "nbf", "iat"]), _JSON),
)
def test_fuzz_headers_and_claims_of_any_shape_never_raise(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    signed = {"alg": "ES256", "kid": KID}
    good = {"sub": WEB, "aud": ["web"], "exp": NOW + 60}
    judge(forge(header, claims, KEY, algorithm="ES256"))
    judge(forge(signed | header, good, KEY, algorithm="ES256"))
    judge(forge(signed, good | claims, KEY))
