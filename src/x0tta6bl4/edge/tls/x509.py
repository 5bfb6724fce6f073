"""Certificates: parse them for the rules, make keys and CSRs, issue SVIDs, sign and verify records.

Source: X509-SVID.md sections 2 to 4 (SP-020 to SP-031), RFC 5280, RFC 2986; RFC 9881 for ML-DSA.
Keys are P-256 (decisions: Ed25519 is refused by verifiers that others use), or all of them
ML-DSA-65, where a trust domain chooses so: the key of its CA tells.  A P-384 CA is understood, but
not made: no chain is stronger than its leaf, and P-384 takes nine times as long to sign and verify.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from x0tta6bl4.core.identity.rules import CertificateFields
from x0tta6bl4.edge.tls.leaf import Stamp
from x0tta6bl4.wire.errors import BadInput, Unavailable
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain

BACKDATE_S: Final = 35
"""notBefore lies this far in the past, inside the lifetime: clocks may differ by 30 s."""
CERTIFICATE_BYTES_MAX: Final = 16 * 1024
CSR_BYTES_MAX: Final = 16 * 1024
CHAIN_MAX: Final = 8
"""Certificates in a chain as sent, trust anchors included."""
SVID_TTL_S: Final = 3_600
ML_DSA: Final = "ML-DSA-65"
ANCHOR_TTL_S: Final = 365 * 86_400

_VIA: Final = "x0 node "
_BAD: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,
)
_ERROR: Final = (*_BAD, InvalidSignature)
_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)

PrivateKey = ec.EllipticCurvePrivateKey | mldsa.MLDSA65PrivateKey
AnyPrivateKey = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)
PublicKey = ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey


@final
class Svid(msgspec.Struct, frozen=True, gc=False):
    """An X.509-SVID with its key.  `repr` says nothing about the key."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    """DER, leaf first, no trust anchor."""
    key: bytes
    """PKCS#8 DER, unencrypted."""
    not_after_unix_s: int
    hint: str = ""
    """What the issuer says it is for (Workload API); empty: nothing."""

    def __repr__(self) -> str:
        return f"Svid({self.id!r}, not_after_unix_s={self.not_after_unix_s})"


@final
class Parsed:
    """One certificate: its DER, what cryptography made of it, and the fields for the rules.

    cryptography reads parts of a certificate only when they are asked for; all that the judge is
    going to ask for is read here, so that a broken part is noticed here.
    """

    __slots__ = ("certificate", "der", "fields", "issuer", "subject")

    def __init__(self, der: bytes) -> None:
        if len(der) > CERTIFICATE_BYTES_MAX:
            raise BadInput("X0-TLS-002", "certificate too large", "at most 16 KiB")
        self.der = der
        try:
            self.certificate = x509.load_der_x509_certificate(der)
            self.issuer = self.certificate.issuer
            self.subject = self.certificate.subject
            self.fields = _fields(self.certificate)
            unused_bits = der[-1 - len(self.certificate.signature)]
        except _BAD as error:
            raise BadInput("X0-TLS-001", f"not a certificate: {type(error).__name__}") from None
        if unused_bits:  # The one byte that no signature covers: one certificate, one encoding.
            raise BadInput("X0-TLS-001", "not a certificate: signature of a part of a byte")


@final
class Issuer:
    """A CA that can issue: its key, its certificate and what a verifier needs to reach an anchor.

    Args:
        domain: trust domain it signs for.
        key: its private key.
        certificate: DER; an anchor, or an intermediate.
        intermediates: DER, own certificate first, for every leaf's chain; empty for an anchor.
        ocsp_url: where it answers OCSP, which its leaves say; empty: nowhere.
    """

    __slots__ = ("certificate", "domain", "intermediates", "key", "parsed", "stamp")

    def __init__(
        self,
        domain: TrustDomain,
        key: PrivateKey,
        certificate: bytes,
        intermediates: Sequence[bytes] = (),
        ocsp_url: str = "",
    ) -> None:
        self.domain = domain
        self.key = key
        self.certificate = certificate
        self.intermediates = tuple(intermediates)
        self.parsed = Parsed(certificate)
        self.stamp = Stamp(self.parsed.certificate, self.parsed.fields.key, ocsp_url)


# ------------------------------------------------------------------------------------------ parse
def parse(der: bytes) -> Parsed:
    """Parse one certificate.

    Raises:
        BadInput: too large, or not a certificate; nothing else is raised.
    """
    return Parsed(der)


def parse_chain(chain: Sequence[bytes]) -> list[Parsed]:
    """Parse a chain, leaf first.

    Raises:
        BadInput: empty, longer than CHAIN_MAX, or a part that is not a certificate.
    """
    if not chain:
        raise BadInput("X0-TLS-003", "no certificate")
    if len(chain) > CHAIN_MAX:
        raise BadInput("X0-TLS-004", "chain too long", f"at most {CHAIN_MAX} certificates")
    return [Parsed(der) for der in chain]


# ------------------------------------------------------------------------------------------- keys
def new_key(kind: str = "P-256") -> PrivateKey:
    """Make a private key: `P-256`, `P-384` or `ML-DSA-65`.

    Raises:
        BadInput: any other kind.
    """
    if kind == ML_DSA:
        return mldsa.MLDSA65PrivateKey.generate()
    curve = _CURVES.get(kind)
    if curve is None:
        raise BadInput("X0-TLS-005", f"{kind!r} is no kind of key", "use P-256, P-384 or ML-DSA-65")
    return ec.generate_private_key(curve())


def svid_kind(anchors: Sequence[bytes]) -> str:
    """Kind of the keys that SVIDs of a trust domain are to have, as its CA's tells.

    Args:
        anchors: of its bundle, DER, the CA that issues now first.
    Raises:
        BadInput: the first is not a certificate.
    """
    post_quantum = bool(anchors) and Parsed(anchors[0]).fields.key == ML_DSA
    return ML_DSA if post_quantum else "P-256"


def key_bytes(key: PrivateKey) -> bytes:
    """PKCS#8 DER, unencrypted (SP-112)."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(data: bytes) -> PrivateKey:
    """Read what `key_bytes` wrote.

    Raises:
        BadInput: not a P-256, P-384 or ML-DSA-65 key in PKCS#8 DER.
    """
    key = load_any_key(data)
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return key
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _NAMES:
        raise BadInput("X0-TLS-006", "not a P-256, P-384 or ML-DSA-65 key")
    return key


def load_any_key(data: bytes) -> AnyPrivateKey:
    """Read a private key of any kind that TLS 1.3 can present an SVID with.

    Raises:
        BadInput: not an RSA, NIST curve or ML-DSA key in unencrypted PKCS#8 DER (SP-112).
    """
    try:
        key = serialization.load_der_private_key(data, None)
    except _BAD:
        raise BadInput("X0-TLS-006", "not a private key in PKCS#8 DER") from None
    if not isinstance(key, _ANY):
        raise BadInput("X0-TLS-006", "not an RSA, NIST curve or ML-DSA key")
    return key


def public_bytes(holder: AnyPrivateKey | Parsed) -> bytes:
    """Public key as SubjectPublicKeyInfo, DER; of a private key, or of a certificate."""
    key = holder.certificate if isinstance(holder, Parsed) else holder
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_point(key: PrivateKey) -> bytes:
    """Public key, bare: an uncompressed point (65 bytes for P-256), or 1952 bytes of ML-DSA-65."""
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return key.public_key().public_bytes_raw()
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


# ----------------------------------------------------------------------------------- CSR and issue
def new_csr(key: PrivateKey) -> bytes:
    """Certificate signing request, DER: says nothing but the key, proves its possession."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hash_for(key)).public_bytes(serialization.Encoding.DER)


def read_csr(csr: bytes) -> PublicKey:
    """Key of a CSR whose sender has proven that it holds the private half.

    Subject and extensions of the request are ignored: the issuer decides what a certificate says.

    Raises:
        BadInput: not a CSR, a signature that does not fit, or a key that is no P-256, P-384 or
            ML-DSA-65.
    """
    if len(csr) > CSR_BYTES_MAX:
        raise BadInput("X0-TLS-007", "CSR too large", "at most 16 KiB")
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        proven = _is_proven(request, key)
    except _ERROR:
        raise BadInput("X0-TLS-007", "not a certificate signing request") from None
    if not proven:
        raise BadInput("X0-TLS-008", "CSR without proof of possession")
    if isinstance(key, mldsa.MLDSA65PublicKey):
        return key
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _NAMES:
        raise BadInput("X0-TLS-009", "CSR with a weak or unknown key", "use P-256 or ML-DSA-65")
    return key


def _is_proven(request: x509.CertificateSigningRequest, key: object) -> bool:
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or request.signature_algorithm_oid != x509.SignatureAlgorithmOID.ECDSA_WITH_SHA256
    ):
        return request.is_signature_valid
    try:  # The same, but `is_signature_valid` reads the key a second time.
        key.verify(request.signature, request.tbs_certrequest_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def new_anchor(
    domain: TrustDomain,
    now_unix_s: int,
    *,
    key: PrivateKey | None = None,
    kind: str = "P-256",
    ttl_s: int = ANCHOR_TTL_S,
) -> Issuer:
    """Make a trust anchor: a self-signed CA whose ID is the trust domain (SP-025, SP-029)."""
    key = key or new_key(kind)
    builder = _ca_builder(domain, key.public_key(), "x0tta6bl4 " + domain)
    builder = builder.issuer_name(_ca_name("x0tta6bl4 " + domain))
    certificate = (
        builder.not_valid_before(_time(now_unix_s - BACKDATE_S))
        .not_valid_after(_time(now_unix_s - BACKDATE_S + ttl_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hash_for(key))
    )
    return Issuer(domain, key, certificate.public_bytes(serialization.Encoding.DER))


def issue_leaf(
    issuer: Issuer,
    csr: bytes,
    id: SpiffeId,
    now_unix_s: int,
    *,
    ttl_s: int = SVID_TTL_S,
    via: NodeName | None = None,
    backdate_s: int = BACKDATE_S,
) -> tuple[bytes, ...]:
    """Issue an SVID for a CSR.

    Args:
        issuer: never outlived: notAfter is bounded by the issuer's own.
        csr: see `read_csr`.
        id: who the holder is; the caller has checked that it may be.
        now_unix_s: wall time; notBefore is `backdate_s` earlier, inside the lifetime.
        ttl_s: notAfter - notBefore, seconds.
        via: node through which it is issued (revoking that node revokes it).
        backdate_s: less than the default only for lifetimes of seconds.
    Returns:
        Chain, DER, leaf first, without the trust anchor.
    Raises:
        BadInput: a bad CSR.
        Unavailable: the issuer's certificate has expired.
    """
    return issue_leaf_for(
        issuer, read_csr(csr), id, now_unix_s, ttl_s=ttl_s, via=via, backdate_s=backdate_s
    )


def issue_leaf_for(
    issuer: Issuer,
    key: PublicKey,
    id: SpiffeId,
    now_unix_s: int,
    *,
    ttl_s: int = SVID_TTL_S,
    via: NodeName | None = None,
    backdate_s: int = BACKDATE_S,
) -> tuple[bytes, ...]:
    """As `issue_leaf`, for a key whose possession is proven already."""
    start_s, end_s = _period(issuer, now_unix_s, ttl_s, backdate_s)
    unit = "" if via is None else _VIA + via  # SP-024: the name is critical without a subject.
    serial = x509.random_serial_number()
    body = issuer.stamp.body(key, id, unit, start_s, end_s, serial)
    return (issuer.stamp.signed(body, _sign_as_ca(issuer.key, body)), *issuer.intermediates)


def issue_ocsp_delegate(
    issuer: Issuer, key: PrivateKey, now_unix_s: int, ttl_s: int
) -> tuple[x509.Certificate, int]:
    """Certificate with which somebody may answer OCSP for a CA, and nothing else.

    It has no SPIFFE ID and no use in TLS, and is itself not to be asked about (RFC 6960 section
    4.2.2.2.1).

    Returns:
        The certificate and its end, unix seconds.
    Raises:
        Unavailable: the CA has expired.
    """
    start_s, end_s = _period(issuer, now_unix_s, ttl_s, BACKDATE_S)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_ca_name("OCSP of " + issuer.domain))
        .issuer_name(issuer.parsed.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(start_s))
        .not_valid_after(_time(end_s))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), critical=True)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .add_extension(authority_key(issuer), critical=False)
        .sign(issuer.key, hash_for(issuer.key))
    )
    return certificate, end_s


# ---------------------------------------------------------------------------------------- records
def sign(key: PrivateKey, data: bytes) -> bytes:
    """Sign a record: ECDSA with SHA-256, DER; or ML-DSA-65, with no context."""
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def signer(key: bytes) -> Callable[[bytes], bytes]:
    """`sign` bound to a PKCS#8 key, for a constructor.

    Raises:
        BadInput: not such a key.
    """
    private = load_key(key)
    return lambda data: sign(private, data)


def verify(signer: bytes | Sequence[bytes], data: bytes, signature: bytes) -> bool:
    """Whether the signature over `data` was made by this key; says nothing about who that is.

    Args:
        signer: a key as `public_point` writes it, or a chain whose leaf has the key.
        data: what was signed, context string included.
        signature: as `sign` makes it.
    """
    try:
        if isinstance(signer, bytes):
            key = _bare_key(signer)
        else:
            key = x509.load_der_x509_certificate(signer[0]).public_key()
        if isinstance(key, mldsa.MLDSA65PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except (*_ERROR, BadInput, IndexError):
        return False
    return True


# ---------------------------------------------------------------------------------------- details
_ML_DSA_BYTES: Final = 1952


def _bare_key(data: bytes) -> object:
    if len(data) == _ML_DSA_BYTES:
        return mldsa.MLDSA65PublicKey.from_public_bytes(data)
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)


_CURVES: Final[dict[str, type[ec.SECP256R1] | type[ec.SECP384R1]]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
}
_NAMES: Final = {"secp256r1": "P-256", "secp384r1": "P-384"}
_ANY: Final = (
    ec.EllipticCurvePrivateKey,
    rsa.RSAPrivateKey,
    mldsa.MLDSA44PrivateKey,
    mldsa.MLDSA65PrivateKey,
    mldsa.MLDSA87PrivateKey,
)
_NAME_CONSTRAINTS: Final = "2.5.29.30"


def _fields(certificate: x509.Certificate) -> CertificateFields:
    uris: tuple[str, ...] = ()
    san_critical = ca = usage_critical = False
    path_length: int | None = None
    usage: tuple[str, ...] | None = None
    extended: tuple[str, ...] | None = None
    unknown: list[str] = []
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            san_critical = extension.critical
            uris = tuple(value.get_values_for_type(x509.UniformResourceIdentifier))
        elif isinstance(value, x509.BasicConstraints):
            ca, path_length = value.ca, value.path_length
        elif isinstance(value, x509.KeyUsage):
            usage = tuple(name for name in _USAGES if getattr(value, name))
            usage_critical = extension.critical
        elif isinstance(value, x509.ExtendedKeyUsage):
            extended = tuple(oid.dotted_string for oid in value)
        elif extension.critical:
            unknown.append(extension.oid.dotted_string)
    if ca and _NAME_CONSTRAINTS in unknown:
        unknown.remove(_NAME_CONSTRAINTS)  # The path validator understands them (SP-042).
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    vias = [str(unit.value)[len(_VIA) :] for unit in units if str(unit.value).startswith(_VIA)]
    return CertificateFields(
        uris=uris,
        san_critical=san_critical,
        subject_empty=not len(certificate.subject.rdns),
        ca=ca,
        path_length=path_length,
        key_usage=usage,
        key_usage_critical=usage_critical,
        extended_key_usage=extended,
        unknown_critical=tuple(unknown),
        not_before_unix_s=int(certificate.not_valid_before_utc.timestamp()),
        not_after_unix_s=int(certificate.not_valid_after_utc.timestamp()),
        key=_key_kind(certificate.public_key()),
        signature=_signature_kind(certificate),
        via=vias[0] if len(vias) == 1 else "",
    )


def _key_kind(key: object) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {**_NAMES, "secp521r1": "P-521"}.get(key.curve.name, key.curve.name)
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    for kind, name in _MLDSA:
        if isinstance(key, kind):
            return name
    return type(key).__name__


def _signature_kind(certificate: x509.Certificate) -> str:
    digest = certificate.signature_hash_algorithm
    if digest is not None:
        return digest.name
    return "ML-DSA" if certificate.signature_algorithm_oid.dotted_string in _MLDSA_OIDS else ""


_MLDSA: Final = (
    (mldsa.MLDSA44PublicKey, "ML-DSA-44"),
    (mldsa.MLDSA65PublicKey, "ML-DSA-65"),
    (mldsa.MLDSA87PublicKey, "ML-DSA-87"),
)
_MLDSA_OIDS: Final = frozenset(f"2.16.840.1.101.3.4.3.{n}" for n in (17, 18, 19))


def _ca_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _ca_builder(domain: TrustDomain, key: PublicKey, name: str) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_ca_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{domain}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*names: str) -> x509.KeyUsage:
    on = {name: name in names for name in _USAGES}
    return x509.KeyUsage(**on, encipher_only=False, decipher_only=False)


def authority_key(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    """Extension that names the CA's key."""
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.parsed.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
    )


def _period(
    issuer: Issuer, now_unix_s: int, ttl_s: int, backdate_s: int = BACKDATE_S
) -> tuple[int, int]:
    start = now_unix_s - backdate_s
    end = min(start + ttl_s, issuer.parsed.fields.not_after_unix_s)
    if end <= now_unix_s:
        raise Unavailable(
            "X0-TLS-010", "the CA certificate has expired or the lifetime is nil", "rotate the CA"
        )
    return start, end


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)


def hash_for(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Hash that a key of this kind signs certificates and lists with."""
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return None  # It has its own.
    return hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()


def _sign_as_ca(key: PrivateKey, data: bytes) -> bytes:
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return key.sign(data)
    hash = hashes.SHA384() if key.curve.name == "secp384r1" else hashes.SHA256()
    return key.sign(data, ec.ECDSA(hash))
