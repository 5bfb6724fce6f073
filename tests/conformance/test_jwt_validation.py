"""Which tokens the SDK believes.

Each refusal goes with a twin that is accepted by the same harness from the same bundle.

Source: JWT-SVID.md sections 2 to 5, RFC 7515, RFC 7519, RFC 8725.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from tests.conformance.conftest import Hall
from tests.conformance.driver import Harness
from x0tta6bl4.sdk.testing.domain import Domain
from x0tta6bl4.sdk.testing.tokens import SigningKey, b64, forge, jwk, new_key, signature
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi

ID = "spiffe://example.org/peer"
ALGORITHMS = ("ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


def accepted(hall: Hall, token: str, audience: str = "web", id: str = ID) -> dict[str, Any]:
    answer = hall.harness.validate(token, audience)
    assert answer.code == 200, answer.body
    assert answer.body["status"] == "ok"
    assert answer.body["spiffe_id"] == id
    claims: dict[str, Any] = answer.body["claims"]
    return claims


def refused(hall: Hall, token: str, audience: str = "web", right: str = "") -> None:
    accepted(hall, right or hall.domain.token("/peer"), audience)
    answer = hall.harness.validate(token, audience)
    assert answer.code == 422, answer.body
    assert answer.body["status"] == "rejected"


def kid_of(domain: Domain) -> str:
    return domain.token_keys[0][1]


# ------------------------------------------------------------------------------------ what is valid
def test_SP_052_a_plain_token_is_accepted_and_its_claims_told(hall: Hall) -> None:
    claims = accepted(hall, hall.domain.token("/peer", claims={"own": {"deep": [1, None]}}))
    assert claims["sub"] == ID
    assert claims["aud"] == ["web"]
    assert claims["own"] == {"deep": [1, None]}


def test_SP_122_a_token_of_a_federated_trust_domain(hall: Hall) -> None:
    accepted(hall, hall.other.token("/peer"), id="spiffe://other.test/peer")


@pytest.mark.parametrize("typ", ["JWT", "JOSE", None])
def test_SP_047_types_that_are_right(hall: Hall, typ: str | None) -> None:
    accepted(hall, hall.domain.token("/peer", header={"typ": typ}))


def test_SP_046_a_token_without_kid_is_accepted(hall: Hall) -> None:
    accepted(hall, hall.domain.token("/peer", header={"kid": None}))
    accepted(hall, hall.domain.token("/peer", header={"kid": None, "typ": None}))


@pytest.mark.parametrize("aud", ["web", ["web"], ["other", "web"], ["web", "other", "web"]])
def test_SP_049_audiences_that_name_us(hall: Hall, aud: Any) -> None:
    accepted(hall, hall.domain.token("/peer", aud))


@pytest.mark.parametrize("nbf", [-3_600, -1, 0])
def test_SP_052_a_token_that_is_good_from_some_time_on(hall: Hall, nbf: int) -> None:
    now = hall.domain.now_unix_s
    accepted(hall, hall.domain.token("/peer", claims={"nbf": now + nbf}))
    accepted(hall, hall.domain.token("/peer", claims={"iat": None}))
    accepted(hall, hall.domain.token("/peer", claims={"iat": now + nbf, "nbf": now + nbf}))
    accepted(hall, hall.domain.token("/peer", claims={"exp": now + 300.5}))


def test_SP_052_claims_that_nobody_knows_are_no_fault(hall: Hall) -> None:
    claims = {"iss": "https://issuer.example", "jti": "1", "scope": "a b", "own": True}
    accepted(hall, hall.domain.token("/peer", claims=claims))


def test_SP_043_any_json_that_says_the_same(hall: Hall) -> None:
    key, kid = hall.domain.token_keys[0]
    end = hall.domain.now_unix_s + 300
    header = f' {{ "kid" : "{kid}" ,\n"alg":"ES\\u003256"}} '.encode()
    claims = f'{{"exp":{end},"aud":"web","sub":"{ID}"}}\r\n'.encode()
    accepted(hall, forge(header, claims, key, algorithm="ES256"))


# --------------------------------------------------------------------------------------- algorithms
@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    """One key of each kind; RSA keys serve all algorithms of RSA."""
    rsa = new_key("RS256")
    return {name: rsa if name[0] in "RP" else new_key(name) for name in (*ALGORITHMS, "EdDSA")}


@pytest.fixture(scope="module")
def many(keys: dict[str, SigningKey]) -> Iterator[Hall]:
    """A harness whose trust domain has a key for every algorithm, and one that no token may use."""
    with WorkloadApi() as api:
        api.issue("/web")
        set_of = [jwk(key, kid=name, use="jwt-svid") for name, key in keys.items()]
        set_of += api.domain.jwt_keys()
        api.write_bundle("example.org", jwks=json.dumps({"keys": set_of}).encode())
        with Harness(api.endpoint) as harness:
            yield Hall(api, harness, Domain("other.test"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_SP_045_every_algorithm_of_the_list(
    many: Hall, keys: dict[str, SigningKey], algorithm: str
) -> None:
    key = keys[algorithm]
    accepted(many, many.domain.token("/peer", header={"alg": algorithm, "kid": algorithm}, key=key))
    without = {"alg": algorithm, "kid": None}
    accepted(many, many.domain.token("/peer", header=without, key=key))


def test_SP_045_an_algorithm_that_is_not_in_the_list(
    many: Hall, keys: dict[str, SigningKey]
) -> None:
    for kid in ("EdDSA", None):
        refused(many, many.domain.token("/peer", header={"kid": kid}, key=keys["EdDSA"]))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
def test_SP_045_no_algorithm_at_all(hall: Hall, alg: str) -> None:
    claims = {"sub": ID, "aud": ["web"], "exp": hall.domain.now_unix_s + 300}
    kid = kid_of(hall.domain)
    refused(hall, forge({"alg": alg, "typ": "JWT", "kid": kid}, claims, None))
    # Nor with the signature of another token behind it.
    whole = hall.domain.token("/peer")
    refused(hall, forge({"alg": alg, "kid": kid}, claims, None) + whole.rpartition(".")[2])


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_SP_045_a_public_key_is_no_shared_secret(hall: Hall, alg: str) -> None:
    key, kid = hall.domain.token_keys[0]
    claims = {"sub": ID, "aud": ["web"], "exp": hall.domain.now_unix_s + 300}
    public = key.public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secrets = [
        public.public_bytes(serialization.Encoding.PEM, info),
        public.public_bytes(serialization.Encoding.PEM, info).strip(),
        public.public_bytes(serialization.Encoding.DER, info),
        json.dumps(jwk(key)).encode(),
        hall.domain.jwks(),
        b"secret",
    ]
    for secret in secrets:
        refused(hall, forge({"alg": alg, "kid": kid, "typ": "JWT"}, claims, secret))


def test_SP_045_052_an_algorithm_that_does_not_fit_the_key(
    many: Hall, keys: dict[str, SigningKey]
) -> None:
    claims = {"sub": ID, "aud": ["web"], "exp": many.domain.now_unix_s + 300}
    for said, kid, signed in (
        ("RS256", "ES256", "ES256"),
        ("ES384", "ES256", "ES256"),
        ("ES256", "ES384", "ES384"),
        ("ES256", "RS256", "RS256"),
        ("PS256", "ES256", "ES256"),
        ("PS256", "RS256", "RS256"),
        ("RS256", "RS256", "RS384"),
    ):
        key = keys[kid]
        header = {"alg": said, "kid": kid, "typ": "JWT"}
        refused(many, forge(header, claims, key, algorithm=signed))


# ------------------------------------------------------------------------------------------- header
@pytest.mark.parametrize("typ", ["jwt ", "at+jwt", "JWS", "", "wit+jwt", "JSON", 1, ["JWT"]])
def test_SP_047_other_types_are_refused(hall: Hall, typ: Any) -> None:
    refused(hall, hall.domain.token("/peer", header={"typ": typ}))


def test_SP_052_a_critical_header_is_refused(hall: Hall) -> None:
    headers: tuple[dict[str, Any], ...] = (
        {"crit": ["exp"], "exp": 1},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"crit": ["unknown"]},
    )
    for header in headers:
        refused(hall, hall.domain.token("/peer", header=header))


@pytest.mark.parametrize("name", ["jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "cty", "own"])
def test_SP_044_a_key_that_comes_with_the_token_is_not_believed(hall: Hall, name: str) -> None:
    mallory = new_key()
    values: dict[str, Any] = {"jwk": jwk(mallory), "jku": "https://evil.example/k", "x5c": ["AA=="]}
    token = hall.domain.token("/peer", header={name: values.get(name, "x")}, key=mallory)
    refused(hall, token)


def test_SP_045_a_header_without_algorithm_or_with_a_wrong_kid(hall: Hall) -> None:
    key, kid = hall.domain.token_keys[0]
    claims = {"sub": ID, "aud": ["web"], "exp": hall.domain.now_unix_s + 300}
    for header in ({"kid": kid}, {"alg": None, "kid": kid}, {"alg": ["ES256"], "kid": kid}):
        refused(hall, forge(header, claims, key, algorithm="ES256"))
    for wrong in ("unknown", "", kid.lower() + "x", 1, [kid]):
        refused(hall, hall.domain.token("/peer", header={"kid": wrong}))


# ------------------------------------------------------------------------------------------- claims
@pytest.mark.parametrize(
    "aud", [None, [], "", ["other"], "other", "we", "web ", ["Web"], "WEB", ["web2"], {"web": 1}, 1,
            [["web"]], [None], "webweb", ["*"]],
)  # fmt: skip
def test_SP_049_audiences_that_do_not_name_us(hall: Hall, aud: Any) -> None:
    refused(hall, hall.domain.token("/peer", None, claims={"aud": aud}))


def test_SP_049_an_audience_of_somebody_else_is_not_ours(hall: Hall) -> None:
    token = hall.domain.token("/peer", ["db"])
    accepted(hall, token, "db")
    refused(hall, token, "web")
    assert hall.harness.validate(token, "").code in (422, 500)


@pytest.mark.parametrize("exp", [None, -1, -300, "300", "soon", True, [300], {}, 1e300, -1e300])
def test_SP_051_expiry_has_to_be_there_and_ahead(hall: Hall, exp: Any) -> None:
    now = hall.domain.now_unix_s
    value = now + exp if type(exp) is int else str(now + 300) if exp == "300" else exp
    refused(hall, hall.domain.token("/peer", claims={"exp": value}))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "0x7fffffff", "null"])
def test_SP_051_expiry_that_is_no_number(hall: Hall, text: str) -> None:
    key, kid = hall.domain.token_keys[0]
    claims = f'{{"sub":"{ID}","aud":["web"],"exp":{text}}}'.encode()
    refused(hall, forge({"alg": "ES256", "kid": kid}, claims, key))


@pytest.mark.parametrize("nbf", [300, 86_400, "later", [0]])
def test_SP_052_before_its_time(hall: Hall, nbf: Any) -> None:
    value = hall.domain.now_unix_s + nbf if type(nbf) is int else nbf
    refused(hall, hall.domain.token("/peer", claims={"nbf": value}))


@pytest.mark.parametrize("sub", [None, "", 1, ["spiffe://example.org/peer"], {}, "peer",
                                 "https://example.org/peer"])  # fmt: skip
def test_SP_048_a_subject_that_is_no_spiffe_id(hall: Hall, sub: Any) -> None:
    refused(hall, hall.domain.token("/peer", claims={"sub": sub}))


def test_SP_122_the_bundle_is_that_of_the_subject(hall: Hall) -> None:
    ours, theirs = hall.domain, hall.other
    refused(hall, ours.token("spiffe://other.test/peer"))
    refused(hall, theirs.token("spiffe://example.org/peer"))
    refused(hall, theirs.token("spiffe://example.org/peer", header={"kid": None}))
    refused(hall, theirs.token("spiffe://example.org/peer", header={"kid": kid_of(ours)}))
    refused(hall, Domain("unknown.test").token("/peer"))
    refused(hall, ours.token("spiffe://unknown.test/peer"))


def test_SP_052_a_name_twice_in_the_claims_or_the_header(hall: Hall) -> None:
    key, kid = hall.domain.token_keys[0]
    end = hall.domain.now_unix_s + 300
    header = f'{{"alg":"ES256","kid":"{kid}"}}'.encode()
    twice = (
        f'{{"sub":"spiffe://example.org/admin","sub":"{ID}","aud":"web","exp":{end}}}',
        f'{{"sub":"{ID}","aud":"db","aud":"web","exp":{end}}}',
        f'{{"sub":"{ID}","aud":"web","exp":1,"exp":{end}}}',
        f'{{"sub":"{ID}","aud":"web","exp":{end},"own":1,"own":2}}',
        f'{{"sub":"{ID}","aud":"web","exp":{end},"own":{{"a":1,"a":2}}}}',
    )
    for claims in twice:
        refused(hall, forge(header, claims.encode(), key))
    good = f'{{"sub":"{ID}","aud":"web","exp":{end}}}'.encode()
    twice_alg = f'{{"alg":"none","alg":"ES256","kid":"{kid}"}}'.encode()
    refused(hall, forge(twice_alg, good, key, algorithm="ES256"), right=forge(header, good, key))


# ---------------------------------------------------------------------------------------- signature
def test_SP_052_a_bit_of_the_signature(hall: Hall) -> None:
    token = hall.domain.token("/peer")
    said, _, end = token.rpartition(".")
    for at in (0, len(end) // 2, len(end) - 3):
        other = "B" if end[at] != "B" else "C"
        refused(hall, f"{said}.{end[:at]}{other}{end[at + 1 :]}")
    for wrong in ("", end[:-4], end + "AAAA", b64(bytes(64)), b64(b"\xff" * 64), b64(bytes(0))):
        refused(hall, f"{said}.{wrong}")


def test_SP_052_other_claims_under_the_same_signature(hall: Hall) -> None:
    header, claims, end = hall.domain.token("/peer").split(".")
    admin = hall.domain.token("/admin").split(".")[1]
    refused(hall, f"{header}.{admin}.{end}")
    refused(hall, f"{b64(b'{}')}.{claims}.{end}")


def test_SP_052_a_key_that_is_not_in_the_bundle(hall: Hall) -> None:
    mallory = new_key()
    refused(hall, hall.domain.token("/peer", key=mallory))
    refused(hall, hall.domain.token("/peer", key=mallory, header={"kid": "unknown"}))
    refused(hall, hall.domain.token("/peer", key=mallory, header={"kid": None}))


def test_SP_052_a_signature_as_der_instead_of_two_numbers(hall: Hall) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key, _ = hall.domain.token_keys[0]
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    said = hall.domain.token("/peer").rpartition(".")[0]
    accepted(hall, f"{said}.{b64(signature('ES256', key, said.encode()))}")
    refused(hall, f"{said}.{b64(key.sign(said.encode(), ec.ECDSA(hashes.SHA256())))}")


# ------------------------------------------------------------------------------------ serialisation
def test_SP_043_json_serialisation_is_refused(hall: Hall) -> None:
    header, claims, end = hall.domain.token("/peer").split(".")
    flat = {"protected": header, "payload": claims, "signature": end}
    general = {"payload": claims, "signatures": [{"protected": header, "signature": end}]}
    refused(hall, json.dumps(flat))
    refused(hall, json.dumps(general))


def test_SP_043_what_is_no_compact_token(hall: Hall) -> None:
    token = hall.domain.token("/peer")
    header, claims, end = token.split(".")
    wrong = [
        "", ".", "..", "...", "a.b.c", header, f"{header}.{claims}", f"{token}.", f".{token}",
        f"{token}.{end}", f"{header}..{end}", f".{claims}.{end}", f"{header}.{claims}.",
        f" {token}", f"{token} ", f"{token}\n", f"Bearer {token}", f"{header}\n.{claims}.{end}",
        f"{header}=.{claims}.{end}", f"{header}.{claims}==.{end}", token.replace("-", "+") + "+",
        f"{b64(b'[]')}.{claims}.{end}", f"{b64(b'null')}.{claims}.{end}",
        f"{b64(b'{')}.{claims}.{end}", f"{header}.{b64(b'not json')}.{end}",
        f"{b64(bytes([0xFF, 0xFE]))}.{claims}.{end}", f"{header}.{claims}.{end}\u00e9",
    ]  # fmt: skip
    for text in wrong:
        refused(hall, text, right=token)


def test_SP_043_claims_that_are_no_object(hall: Hall) -> None:
    key, kid = hall.domain.token_keys[0]
    header = {"alg": "ES256", "kid": kid}
    for claims in (b"[]", b'"x"', b"null", b"{", b"\xff\xfe", b"", b"\xef\xbb\xbf{}"):
        refused(hall, forge(header, claims, key))


def test_SP_043_an_encrypted_token_is_none_of_ours(hall: Hall) -> None:
    head = b64(json.dumps({"alg": "dir", "enc": "A256GCM"}).encode())
    refused(hall, f"{head}..{b64(bytes(12))}.{b64(bytes(64))}.{b64(bytes(16))}")


def test_SP_043_a_huge_token_is_refused_at_once(hall: Hall) -> None:
    refused(hall, hall.domain.token("/peer", claims={"own": "x" * 300_000}))
    refused(hall, "a." * 200_000)
    deep = ("[" * 5_000 + "]" * 5_000).encode()
    key, kid = hall.domain.token_keys[0]
    refused(hall, forge({"alg": "ES256", "kid": kid}, deep, key))
