"""WIT-SVIDs: bound to a key, and nothing without a proof of it."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.bundle.document import Document, JwtAuthority
from x0tta6bl4.edge.jwt.svid import Signer, judge_token
from x0tta6bl4.edge.jwt.wit import PROOF_S_MAX, WitSigner, WitSvid, judge_wit, prove
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.sdk.testing.tokens import forge, jwk, new_key
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain

NOW = 1_800_000_000
OURS = TrustDomain("example.org")
WEB = SpiffeId("spiffe://example.org/web")
CA_KEY, HOLDER = new_key(), new_key()
AUTHORITY = JwtAuthority("w1", x509.public_bytes(CA_KEY))  # type: ignore[arg-type]
DOCUMENTS = {OURS: Document(OURS, wit=(AUTHORITY,))}
TO = "https://db.example.org/"


def pkcs8(key: Any) -> bytes:
    return bytes(
        key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def wit(
    header: dict[str, Any] | None = None, key: Any = CA_KEY, holder: Any = HOLDER, **claims: Any
) -> str:
    head = {"alg": "ES256", "kid": "w1", "typ": "wit+jwt"} | (header or {})
    bound = {"jwk": jwk(holder, alg="ES256")}
    said = {"sub": WEB, "iat": NOW, "exp": NOW + 300, "jti": "t1", "cnf": bound} | claims
    return forge(
        {name: value for name, value in head.items() if value is not None},
        {name: value for name, value in said.items() if value is not None},
        key,
        algorithm="ES256",
    )


def proof_of(token: str, key: Any = HOLDER, to: str = TO, ttl_s: int = 60, at: int = NOW) -> str:
    return prove(token, pkcs8(key), to, ttl_s, at, "p1")


def judge(token: str, proof: str | None = None, **options: Any) -> WitSvid | Denied:
    return judge_wit(
        token,
        proof_of(token) if proof is None else proof,
        options.pop("to", TO),
        options.pop("documents", DOCUMENTS),
        options.pop("now", NOW) * 1_000_000,
        **options,
    )


def reason(token: str, proof: str | None = None, **options: Any) -> str:
    found = judge(token, proof, **options)
    assert isinstance(found, Denied), found
    return found.reason


def accepted(token: str, proof: str | None = None, **options: Any) -> WitSvid:
    found = judge(token, proof, **options)
    assert isinstance(found, WitSvid), found
    return found


# ------------------------------------------------------------------ the token
def test_SP_056_058_061_063_067_what_is_minted_and_proven_is_accepted() -> None:
    holder = x509.public_bytes(HOLDER)  # type: ignore[arg-type]
    made = WitSigner(pkcs8(CA_KEY), "w1").mint(WEB, holder, 300, NOW, "t9")
    svid = accepted(made)
    assert (svid.id, svid.expires_unix_s, svid.claims["jti"]) == (WEB, NOW + 300, "t9")
    assert (svid.proof_id, svid.proof_expires_unix_s) == ("p1", NOW + 60)
    assert "aud" not in svid.claims  # SP_068
    assert "iss" not in svid.claims  # SP_067
    assert made not in repr(svid)


def test_SP_060_unknown_headers_are_ignored_unless_they_are_critical() -> None:
    accepted(wit({"x": 1}))
    assert reason(wit({"crit": ["x"], "x": 1})) == "unknown header"


def test_SP_066_iat_never_limits() -> None:
    accepted(wit(iat=NOW + 999))
    accepted(wit(iat=None))


def test_SP_056_057_the_kid_is_needed_and_opaque() -> None:
    assert reason(wit({"kid": None})) == "no key id"
    assert reason(wit({"kid": "W1"})) == "unknown key"


def test_SP_058_059_another_type_or_algorithm_is_refused() -> None:
    for typ in ("JWT", "JOSE", "WIT+JWT", None, "wpt+jwt"):
        assert reason(wit({"typ": typ})) == "wrong type of token"
    for alg in ("none", "HS256", "EdDSA", None):
        assert reason(wit({"alg": alg})) == "algorithm not allowed"


def test_SP_061_the_subject_is_a_workload() -> None:
    assert reason(wit(sub=None)) == "no subject"
    assert reason(wit(sub="web")) == "subject is no SPIFFE ID"


def test_SP_062_it_is_bound_to_a_key_of_a_known_algorithm() -> None:
    odd: list[tuple[Any, str]] = [
        (None, "bound to no key"),
        ({}, "bound to no key"),
        ({"jkt": "x"}, "bound to no key"),
        ({"jwk": [1]}, "bound to no key"),
        ({"jwk": jwk(HOLDER)}, "bound to a key of no known algorithm"),
        ({"jwk": jwk(HOLDER, alg="HS256")}, "bound to a key of no known algorithm"),
        ({"jwk": jwk(HOLDER, alg="none")}, "bound to a key of no known algorithm"),
        ({"jwk": jwk(HOLDER, alg="ES256", x="AAAA")}, "bound to a broken key"),
        ({"jwk": {"kty": "oct", "k": "AAAA", "alg": "ES256"}}, "bound to a broken key"),
    ]
    for cnf, why in odd:
        token = wit(cnf=cnf)
        assert reason(token) == why, cnf


def test_SP_064_065_its_time_counts() -> None:
    assert reason(wit(exp=None)) == "no expiry"
    assert reason(wit(exp=NOW)) == "expired"
    assert reason(wit(nbf=NOW + 1)) == "not yet valid"


def test_SP_068_an_audience_makes_it_none() -> None:
    assert reason(wit(aud="web")) == "a WIT with an audience"


def test_SP_073_only_keys_for_wits_of_the_subjects_domain_sign_it() -> None:
    as_jwt = {OURS: Document(OURS, jwt=(AUTHORITY,))}
    assert reason(wit(), documents=as_jwt) == "unknown key"
    assert reason(wit(key=new_key())) == "bad signature"
    assert reason(wit(sub="spiffe://other.test/web")) == "no bundle of the trust domain"


def test_SP_070_a_wit_is_no_jwt_svid_nor_the_other_way_round() -> None:
    both = {OURS: Document(OURS, jwt=(AUTHORITY,), wit=(AUTHORITY,))}
    now = NOW * 1_000_000
    assert judge_token(wit(aud="web"), "web", both, now) == Denied("wrong type of token")
    jwt = Signer(pkcs8(CA_KEY), "w1").mint(WEB, ("web",), 60, NOW)
    assert reason(jwt, documents=both) == "wrong type of token"


# ------------------------------------------------------------------ the proof
def test_SP_069_071_without_a_proof_of_the_key_it_is_refused() -> None:
    token = wit()
    assert reason(token, "") == "proof: not a compact token"
    assert reason(token, token) == "proof: wrong type of token"
    assert reason(token, proof_of(token, new_key())) == "proof: bad signature"
    assert reason(token, proof_of(token, CA_KEY)) == "proof: bad signature"
    assert reason(token, proof_of(wit(jti="t2"))) == "proof: of another token"
    assert reason(token, proof_of(token, to="https://else/")) == "proof: meant for another audience"
    assert reason(token, to="") == "proof: meant for another audience"


def test_SP_069_the_proof_has_the_keys_own_algorithm_and_an_id() -> None:
    token = wit()
    said = {"aud": TO, "exp": NOW + 60, "jti": "p", "wth": "x"}
    other = forge({"alg": "ES384", "typ": "wpt+jwt"}, said, new_key("ES384"))
    assert reason(token, other) == "proof: another algorithm than the key's"
    for jti in ("", "p" * 257):
        proof = prove(token, pkcs8(HOLDER), TO, 60, NOW, jti)
        assert reason(token, proof) == "proof: no id"


def test_SP_074_a_proof_lives_for_minutes() -> None:
    token = wit(exp=NOW + 9999)
    accepted(token, proof_of(token, ttl_s=PROOF_S_MAX))
    assert reason(token, proof_of(token, ttl_s=PROOF_S_MAX + 1)) == "proof: good for too long"
    assert reason(token, proof_of(token, ttl_s=0)) == "proof: expired"


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 700), put=st.text(max_size=3), which=st.booleans())
def test_fuzz_nothing_but_the_two_themselves_is_accepted(at: int, put: str, which: bool) -> None:
    token = wit()
    proof = proof_of(token)
    bent = (token if which else proof)[:at] + put + (token if which else proof)[at + len(put) :]
    pair = (bent, proof) if which else (token, bent)
    assert isinstance(judge(*pair), Denied) or pair == (token, proof)
