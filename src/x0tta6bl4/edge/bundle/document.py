"""The SPIFFE bundle: a JSON Web Key Set that says which keys a trust domain signs with.

Source: SPIFFE_Trust_Domain_and_Bundle.md sections 4 and 5, X509-SVID.md section 6, JWT-SVID.md
section 6, WIT-SVID.md section 6 (SP-037 to SP-041, SP-054, SP-055, SP-072, SP-073, SP-076 to
SP-087).

What nobody here knows is ignored, element by element: another `kty`, another or no `use`, an
`x509-svid` without a certificate, a `jwt-svid` without a `kid`.  What is known but broken refuses
the document: who holds an older one keeps it, rather than lose the keys that can't be read.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any, Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.edge.bundle import jwk
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.wire.authority import DOCUMENT_BYTES_MAX
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.ids import TrustDomain, trust_domain
from x0tta6bl4.wire.records import Bundle

MAP_BYTES_MAX: Final = 4 * 1024 * 1024
KEYS_MAX: Final = 1024
"""Most elements of `keys`."""
DOMAINS_MAX: Final = 1024
"""Most bundles of a map."""
SEQUENCE_MAX: Final = 2**64 - 1
KID_CHARS_MAX: Final = 1024

_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"
_WIT: Final = "wit-svid"
_KINDS: Final = frozenset({"RSA", "EC", "OKP", "AKP"})


@final
class JwtAuthority(Value, frozen=True):
    """A key that signs tokens."""

    kid: str
    public: bytes
    """SubjectPublicKeyInfo, DER: RSA of 2048 bits and more, P-256, P-384 or P-521."""


@final
class Document(Value, frozen=True):
    """The bundle of one trust domain; the domain always travels with it (SP-140).

    Without keys for a kind of SVID every SVID of that kind is invalid (SP-082).
    """

    trust_domain: TrustDomain
    x509: tuple[bytes, ...] = ()
    """CA certificates, DER."""
    jwt: tuple[JwtAuthority, ...] = ()
    wit: tuple[JwtAuthority, ...] = ()
    sequence: int | None = None
    refresh_hint_s: int | None = None


def parse(data: bytes, domain: TrustDomain) -> Document:
    """Read the bundle of a trust domain; the document itself does not say of which.

    Args:
        data: JSON, at most DOCUMENT_BYTES_MAX.
        domain: as configured, never inferred (SP-132).
    Raises:
        BadInput: X0-BUN-001 to X0-BUN-006.
    """
    if len(data) > DOCUMENT_BYTES_MAX:
        raise BadInput("X0-BUN-005", "bundle too large", f"at most {DOCUMENT_BYTES_MAX} bytes")
    return _document(jwk.load(data, "the bundle"), domain)


def parse_map(data: bytes) -> dict[TrustDomain, Document]:
    """Read a bundle map: the bundles of many trust domains (section 5.1).

    The documents carry no refresh hint: one bundle's must not change how often the map is read
    (SP-087).

    Raises:
        BadInput: no map, a name twice (SP-086) or malformed, or a bundle that `parse` refuses.
    """
    if len(data) > MAP_BYTES_MAX:
        raise BadInput("X0-BUN-005", "bundle map too large", f"at most {MAP_BYTES_MAX} bytes")
    found = jwk.load(data, "the bundle map")
    bundles = found.get("trust_domains") if isinstance(found, dict) else None
    if not isinstance(bundles, dict) or len(bundles) > DOMAINS_MAX:
        raise BadInput(
            "X0-BUN-006", "not a bundle map", "`trust_domains` has each trust domain once"
        )
    documents: dict[TrustDomain, Document] = {}
    for name, bundle in bundles.items():
        domain = trust_domain(name)
        if domain in documents:
            raise BadInput("X0-BUN-006", f"{domain} stands twice in the bundle map")
        whole = _document(bundle, domain)
        documents[domain] = Document(domain, whole.x509, whole.jwt, whole.wit, whole.sequence)
    return documents


def encode(document: Document) -> bytes:
    """Write a bundle as JSON.

    Raises:
        BadInput: a key for which there is no JWK.
    """
    found: dict[str, Any] = {
        "keys": [
            *(_x509_key(der) for der in document.x509),
            *_token_keys(document.jwt, _JWT),
            *_token_keys(document.wit, _WIT),
        ]
    }
    if document.sequence is not None:
        found["spiffe_sequence"] = document.sequence
    if document.refresh_hint_s is not None:
        found["spiffe_refresh_hint"] = document.refresh_hint_s
    return json.dumps(found, separators=(",", ":")).encode()


def encode_jwks(document: Document) -> bytes:
    """Write the keys that sign JWT-SVIDs and nothing else, for the Workload API (SP-120)."""
    keys = list(_token_keys(document.jwt, _JWT))
    return json.dumps({"keys": keys}, separators=(",", ":")).encode()


def of_bundle(bundle: Bundle) -> Document:
    """The bundle of our own trust domain, as the authority publishes it to nodes."""
    return Document(
        trust_domain(bundle.trust_domain),
        bundle.anchors,
        tuple(JwtAuthority(key.kid, key.public) for key in bundle.jwt_keys),
        (),
        bundle.sequence,
        bundle.refresh_hint_s,
    )


# ------------------------------------------------------------------ reading
def _document(found: Any, domain: TrustDomain) -> Document:
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list) or len(keys) > KEYS_MAX:  # SP-080
        raise BadInput("X0-BUN-006", "not a SPIFFE bundle", f"`keys` is a list of <= {KEYS_MAX}")
    cas: dict[bytes, None] = {}
    tokens: dict[str, dict[JwtAuthority, None]] = {_JWT: {}, _WIT: {}}
    for element in keys:
        if not isinstance(element, dict):
            continue
        kind, use = element.get("kty"), element.get("use")
        if not isinstance(kind, str) or kind not in _KINDS or not isinstance(use, str):
            continue  # SP-081, SP-083, SP-084
        if use == _X509:
            certificate = _certificate(element.get("x5c"))
            if certificate is not None:
                cas[certificate] = None
        elif use in tokens:
            authority = _authority(element)
            if authority is not None:
                tokens[use][authority] = None
    return Document(
        domain,
        tuple(cas),
        tuple(tokens[_JWT]),
        tuple(tokens[_WIT]),
        _integer(found, "spiffe_sequence", SEQUENCE_MAX),
        _integer(found, "spiffe_refresh_hint", 2**31 - 1),
    )


def _certificate(x5c: Any) -> bytes | None:
    if not isinstance(x5c, list) or not x5c or x5c[0] == "":
        return None  # SP-040
    try:
        der = b64decode(x5c[0], validate=True)  # SP-041: the others are not looked at.
    except (TypeError, ValueError):
        raise BadInput("X0-BUN-002", "x5c is not base64") from None
    x509.parse(der)
    return der


def _authority(element: dict[str, Any]) -> JwtAuthority | None:
    kid = element.get("kid")
    if not isinstance(kid, str) or not kid or len(kid) > KID_CHARS_MAX:
        return None
    key = jwk.public_of(element)
    return None if key is None else JwtAuthority(kid, jwk.public_bytes(key))


def _integer(found: dict[str, Any], name: str, most: int) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= most:
        raise BadInput("X0-BUN-006", f"{name} is no integer from 0 to {most}")
    return value


# ------------------------------------------------------------------ writing
def _x509_key(der: bytes) -> dict[str, Any]:
    certificate = x509.parse(der).certificate
    return {  # No kid (SP-038), exactly one certificate (SP-039).
        "use": _X509,
        **jwk.members(certificate.public_key()),
        "x5c": [b64encode(der).decode()],
    }


def _token_keys(keys: Iterable[JwtAuthority], use: str) -> Iterable[dict[str, Any]]:
    for key in keys:
        yield {"use": use, "kid": key.kid, **jwk.members(jwk.load_public(key.public))}
