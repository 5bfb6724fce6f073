"""One function per parser: it takes any bytes, and fails if they do what they must not.

Keys are derived from phrases and certificates are signed deterministically, so that a corpus stays
good: what it believed yesterday it believes today, and nothing else.  Each target may raise nothing
but AssertionError; `SEEDS` are the inputs that are believed, and where a search begins.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from google.protobuf.message import DecodeError

from x0tta6bl4.core.identity.rules import ANYBODY, SPIFFE
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.bundle.document import Document, encode, parse, parse_map
from x0tta6bl4.edge.jwt.svid import JwtSvid, judge_token, read_unverified
from x0tta6bl4.edge.kernel import rtnetlink as rt
from x0tta6bl4.edge.kernel.netlink import Said, attribute, messages, refusal
from x0tta6bl4.edge.tls.judge import Judge, Judges, allow_all
from x0tta6bl4.edge.tls.ocsp import Answer, Responder, judge_response, request_for
from x0tta6bl4.edge.tls.x509 import Issuer
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.sdk.identity.answers import read_x509, read_x509_bundles, split
from x0tta6bl4.sdk.identity.source import documents_of
from x0tta6bl4.sdk.testing.tokens import b64, forge, jwk
from x0tta6bl4.wire.errors import BadInput, BadMessage
from x0tta6bl4.wire.ids import TrustDomain

NOW_S: Final = 1_800_000_000
NOW_US: Final = NOW_S * 1_000_000
DOMAIN: Final = TrustDomain("example.org")
WEB: Final = "spiffe://example.org/web"
DEEP: Final = "spiffe://example.org/deep"


def _key(phrase: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha256(f"x0 fuzz {phrase}".encode()).digest(), "big")
    return ec.derive_private_key(number, ec.SECP256R1())


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


def _certificate(name: str, serial: int, uri: str, ca: bool, by: str = "") -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(by or name))
        .public_key(_key(name).public_key())
        .serial_number(serial)
        .not_valid_before(datetime.fromtimestamp(NOW_S - 60, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW_S + 3_600, UTC))
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(_usage(ca), True)
        .add_extension(san, False)
        .sign(_key(by or name), hashes.SHA256(), ecdsa_deterministic=True)
        .public_bytes(serialization.Encoding.DER)
    )


ANCHOR: Final = _certificate("ca", 1, "spiffe://example.org", True)
MIDDLE: Final = _certificate("middle", 2, "spiffe://example.org", True, "ca")
LEAF: Final = _certificate("web", 3, WEB, False, "ca")
BELOW: Final = _certificate("deep", 4, DEEP, False, "middle")
_GOOD: Final = {LEAF: WEB, BELOW: DEEP}
_PKCS8: Final = _key("web").private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
_KEYS: Final = json.dumps(
    {"keys": [jwk(_key("token"), kid="k", use="jwt-svid")], "spiffe_sequence": 1}
).encode()
_DOCUMENTS: Final = {DOMAIN: parse(_KEYS, DOMAIN)}


# --------------------------------------------------------------------------- certificate -> verdict
def certificate(data: bytes) -> None:
    """A chain, leaf first, one certificate after the other."""
    try:
        chain = split(data, 8)
    except BadMessage:
        chain = (data,)
    judge = Judge(DOMAIN, [ANCHOR], allow_all, lambda: NOW_US, SPIFFE)
    for judging in (judge, Judges({DOMAIN: judge})):
        verdict = judging.judge(chain, ANYBODY).verdict
        if type(verdict) is Allowed:
            assert _GOOD.get(chain[0]) == verdict.peer, verdict
        else:
            assert type(verdict) is Denied


# ------------------------------------------------------------------------------------------- token
_CLAIMS: Final = {"sub": WEB, "aud": ["web"], "exp": NOW_S + 300}
_TOKENS: Final = (
    forge({"alg": "ES256", "kid": "k", "typ": "JWT"}, _CLAIMS, _key("token")),
    forge({"alg": "ES256"}, _CLAIMS | {"nbf": NOW_S, "own": {"a": [1]}}, _key("token")),
)
_SIGNED: Final = {token.rpartition(".")[0] for token in _TOKENS}


def token(data: bytes) -> None:
    """A token as text; or, behind a 1, its parts before their encoding, with a 0 in between."""
    if data[:1] == b"\x01":
        text = ".".join(map(b64, data[1:].split(b"\0")))
    else:
        text = data.decode("latin-1")
    found = judge_token(text, "web", _DOCUMENTS, NOW_US)
    if isinstance(found, JwtSvid):
        assert text.rpartition(".")[0] in _SIGNED, text
        assert (found.id, found.audience) == (WEB, ("web",))
    assert isinstance(found, JwtSvid | Denied)
    assert isinstance(read_unverified(text), JwtSvid | Denied)


# ------------------------------------------------------------------------------------------ bundle
def bundle(data: bytes) -> None:
    """A SPIFFE bundle, or a map of them; what is read can be written, and says the same again."""
    try:
        found = parse(data, DOMAIN)
    except BadInput:
        pass
    else:
        _same(found)
        for der in found.x509:
            x509.load_der_x509_certificate(der)
    try:
        for document in parse_map(data).values():
            _same(document)
    except BadInput:
        pass


def _same(document: Document) -> None:
    again = parse(encode(document), document.trust_domain)
    assert (again.x509, again.sequence) == (document.x509, document.sequence)
    assert {(key.kid, key.public) for key in again.jwt} == {
        (key.kid, key.public) for key in document.jwt
    }


# ------------------------------------------------------------------------------------ Workload API
def workload(data: bytes) -> None:
    """A message of the Workload API; its first byte says of which kind."""
    kind, body = data[:1], data[1:]
    try:
        if kind == b"x":
            found = read_x509(schema.X509SVIDResponse.FromString(body), lambda: NOW_US, {})
            assert all(svid.chain[0] == LEAF and svid.id == WEB for svid in found.svids)
        elif kind == b"b":
            read_x509_bundles(schema.X509BundlesResponse.FromString(body))
        else:
            read = schema.JWTBundlesResponse.FromString(body)
            named = {TrustDomain(f"a{n}.test"): one for n, one in enumerate(read.bundles.values())}
            documents_of(named, deque(maxlen=8))
    except (BadMessage, BadInput, DecodeError, RecursionError):
        pass


def _messages() -> tuple[bytes, ...]:
    one: Any = {"spiffe_id": WEB, "x509_svid": LEAF, "x509_svid_key": _PKCS8, "bundle": ANCHOR}
    svids = schema.X509SVIDResponse(svids=[one], federated_bundles={"spiffe://a.test": ANCHOR})
    bundles = schema.X509BundlesResponse(bundles={"spiffe://example.org": ANCHOR})
    jwts = schema.JWTBundlesResponse(bundles={"spiffe://example.org": _KEYS})
    made = zip(b"xbj", (svids, bundles, jwts), strict=True)
    return tuple(bytes([kind]) + one.SerializeToString(deterministic=True) for kind, one in made)


# -------------------------------------------------------------------------------------------- OCSP
def _response(status: ocsp.OCSPCertStatus) -> bytes:
    now = datetime.fromtimestamp(NOW_S, UTC)
    ca, leaf = map(x509.load_der_x509_certificate, (ANCHOR, LEAF))
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=leaf,
            issuer=ca,
            algorithm=hashes.SHA256(),
            cert_status=status,
            this_update=now,
            next_update=datetime.fromtimestamp(NOW_S + 600, UTC),
            revocation_time=now if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, ca)
    )
    return builder.sign(_key("ca"), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


_RESPONSES: Final = tuple(map(_response, (ocsp.OCSPCertStatus.GOOD, ocsp.OCSPCertStatus.REVOKED)))


def status(data: bytes) -> None:
    """An OCSP response; behind a 1, a request to our responder."""
    if data[:1] == b"\x01":
        ocsp.load_der_ocsp_response(_RESPONDER.answer(data[1:]))
        return
    found = judge_response(data, LEAF, ANCHOR, NOW_US)
    if isinstance(found, Answer):
        said = ocsp.load_der_ocsp_response(data)  # When it was made stands in it, too.
        _key("ca").public_key().verify(
            said.signature, said.tbs_response_bytes, ec.ECDSA(hashes.SHA256())
        )
        assert found.revoked == (said.certificate_status is ocsp.OCSPCertStatus.REVOKED)
    else:
        assert type(found) is Denied


def _issuer() -> Issuer:
    named = x509.SubjectKeyIdentifier.from_public_key(_key("ca").public_key())
    found = x509.load_der_x509_certificate(ANCHOR)
    made = (
        x509.CertificateBuilder()
        .subject_name(found.subject)
        .issuer_name(found.subject)
        .public_key(found.public_key())
        .serial_number(1)
        .not_valid_before(found.not_valid_before_utc)
        .not_valid_after(found.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(_usage(True), True)
        .add_extension(named, False)
        .sign(_key("ca"), hashes.SHA256(), ecdsa_deterministic=True)
    )
    return Issuer(DOMAIN, _key("ca"), made.public_bytes(serialization.Encoding.DER))


_ISSUER: Final[Issuer] = _issuer()
_RESPONDER: Final = Responder(
    lambda: (_ISSUER,), lambda: frozenset({5}), lambda serial: serial == 3, lambda: NOW_US
)

# -------------------------------------------------------------------------------------- rtnetlink
_READERS: Final = (
    rt.read_link,
    rt.read_address,
    rt.read_neighbour,
    rt.read_next_hop,
    rt.read_route,
)


def rtnetlink(data: bytes) -> None:
    """A datagram of the kernel; what is read of routes and next hops can be written again."""
    try:
        for said in messages(data):
            refusal(said)
            for read in _READERS:
                found = read(said)
                if isinstance(found, rt.Route) and found.next_hop and found.table == rt.MAIN:
                    again = rt.put_route(found)
                    assert rt.read_route(Said(again[0], 0, 0, again[2])) == found
                if isinstance(found, rt.NextHop):
                    assert len(found.segments) * 16 + len(found.group) * 8 <= len(data)
    except BadMessage:
        pass


def _datagrams() -> tuple[bytes, ...]:
    here, there = bytes([0xFD, *bytes(15)]), bytes([0xFE, 0x80, *bytes(14)])
    written = (
        rt.put_route(rt.Route(here, 128, 64, 5, source=there, protocol=120)),
        rt.put_route(rt.Route(here, 48, 64, kind=rt.RouteKind.UNREACHABLE, protocol=120)),
        rt.put_next_hop(rt.NextHop(5, 2, there, (here, there), protocol=120)),
        rt.put_next_hop(rt.NextHop(6, group=((5, 1), (7, 256)))),
        rt.put_neighbour(rt.Neighbour(2, there, b"\2\0\0\0\0\1", True, 120)),
        rt.put_address(rt.Address(1, here, 128)),
        (rt.NEW_LINK, 0, rt.ALL_LINKS + attribute(3, b"eth0\0") + attribute(4, b"\0\6\0\0")),
        (2, 0x300, struct.pack("=i16x", -2) + attribute(1, b"Nexthop id does not exist\0")),
    )
    head = struct.Struct("=IHHII")
    each = [head.pack(16 + len(b), kind, flags, 1, 0) + b for kind, flags, b in written]
    return (*each, b"".join(each))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "certificate": certificate,
    "token": token,
    "bundle": bundle,
    "workload": workload,
    "status": status,
    "rtnetlink": rtnetlink,
}
SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "certificate": (LEAF, LEAF + ANCHOR, BELOW + MIDDLE, ANCHOR, b""),
    "token": (
        *(one.encode() for one in _TOKENS),
        b'\x01{"alg":"ES256","kid":"k"}\0' + json.dumps(_CLAIMS).encode() + b"\0" + b"x" * 64,
    ),
    "bundle": (_KEYS, json.dumps({"trust_domains": {"a.test": json.loads(_KEYS)}}).encode()),
    "workload": _messages(),
    "status": (
        *_RESPONSES,
        b"\x01" + request_for(LEAF, ANCHOR),
        b"\x01" + request_for(LEAF, ANCHOR, bytes(16)),
    ),
    "rtnetlink": _datagrams(),
}
