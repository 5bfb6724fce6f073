"""OCSP: whether one certificate is revoked, said by its CA and believed for a while.

The responder answers for every CA of a trust domain with a certificate that the CA has issued for
that and nothing else (delegated, RFC 6960 section 4.2.2.2).  The verifier takes an answer of the
CA itself or of such a delegate; what it says counts until nextUpdate.

Source: RFC 6960; RFC 9654 for the nonce; RFC 5019 section 4 for times.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, final

from cryptography import x509 as cx509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.wire.errors import BadInput

REQUEST_BYTES_MAX: Final = 4 * 1024
RESPONSE_BYTES_MAX: Final = 64 * 1024
ANSWER_S: Final = 600
"""From thisUpdate to nextUpdate: so long may a revocation go unnoticed by who asks once."""
DELEGATE_S: Final = 86_400
SKEW_S: Final = 60
CACHE_MAX: Final = 4096
NONCE_BYTES_MAX: Final = 128

_HASHES: Final = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}
_SERIAL_BITS_MAX: Final = 160
"""RFC 5280 section 4.1.2.2; nobody can sign an answer about a negative one."""
_ERRORS: Final = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    UnsupportedAlgorithm,
    cx509.DuplicateExtension,
)


# ------------------------------------------------------------------ the responder
class Responder:
    """Answers for some CAs.

    Args:
        issuers: CAs of now, with their keys.
        withdrawn: serial numbers of what is revoked.
        issued: whether a serial number is one of a certificate that is out; of others nothing
            good is said (RFC 6960 section 2.2).
        unix_us: wall time.
    """

    def __init__(
        self,
        issuers: Callable[[], Sequence[x509.Issuer]],
        withdrawn: Callable[[], frozenset[int]],
        issued: Callable[[int], bool],
        unix_us: Callable[[], int],
    ) -> None:
        self._issuers = issuers
        self._withdrawn = withdrawn
        self._issued = issued
        self._unix_us = unix_us
        self._delegates: dict[bytes, tuple[x509.PrivateKey, cx509.Certificate, int]] = {}

    def answer(self, data: bytes) -> bytes:
        """The response to a request, DER; never raises for what a stranger sends."""
        if len(data) > REQUEST_BYTES_MAX:
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        try:
            request = ocsp.load_der_ocsp_request(data)
            algorithm = request.hash_algorithm.name
            asked = (request.issuer_name_hash, request.issuer_key_hash)
            serial, extensions = request.serial_number, request.extensions
        except _ERRORS:
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        if not 0 <= serial < 1 << _SERIAL_BITS_MAX:
            return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
        if algorithm not in _HASHES:
            return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
        for issuer in self._issuers():
            if _names(issuer.parsed.certificate, algorithm) == asked:
                return self._of(issuer, algorithm, asked, serial, extensions)
        return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)

    def _of(
        self,
        issuer: x509.Issuer,
        algorithm: str,
        asked: tuple[bytes, bytes],
        serial: int,
        extensions: cx509.Extensions,
    ) -> bytes:
        now_s = self._unix_us() // 1_000_000
        key, certificate = self._delegate(issuer, now_s)
        revoked = serial in self._withdrawn()
        if revoked:
            status = ocsp.OCSPCertStatus.REVOKED
        else:
            known = self._issued(serial)
            status = ocsp.OCSPCertStatus.GOOD if known else ocsp.OCSPCertStatus.UNKNOWN
        builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
            *asked,
            serial,
            _HASHES[algorithm],
            status,
            _time(now_s),
            _time(now_s + ANSWER_S),
            _time(now_s) if revoked else None,
            None,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, certificate)
        builder = builder.certificates([certificate])
        for extension in extensions:
            nonce = extension.value
            if isinstance(nonce, cx509.OCSPNonce) and 0 < len(nonce.nonce) <= NONCE_BYTES_MAX:
                builder = builder.add_extension(nonce, critical=False)
        hash = hashes.SHA256() if isinstance(key, ec.EllipticCurvePrivateKey) else None
        return builder.sign(key, hash).public_bytes(serialization.Encoding.DER)

    def _delegate(
        self, issuer: x509.Issuer, now_s: int
    ) -> tuple[x509.PrivateKey, cx509.Certificate]:
        held = self._delegates.get(issuer.certificate)
        if held is None or held[2] - now_s < DELEGATE_S // 2:
            if len(self._delegates) >= 8:  # As many as there can be CAs.
                self._delegates.clear()
            key = x509.new_key(x509.svid_kind((issuer.certificate,)))
            certificate, end_s = x509.issue_ocsp_delegate(issuer, key, now_s, DELEGATE_S)
            held = self._delegates[issuer.certificate] = (key, certificate, end_s)
        return held[0], held[1]


def request_for(leaf: bytes, issuer: bytes, nonce: bytes = b"") -> bytes:
    """A request about a leaf, DER.

    Raises:
        BadInput: not certificates.
    """
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        x509.parse(leaf).certificate, x509.parse(issuer).certificate, hashes.SHA256()
    )
    if nonce:
        builder = builder.add_extension(cx509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(serialization.Encoding.DER)


def responder_of(leaf: bytes) -> str:
    """Where a certificate's CA answers OCSP, as it says itself; empty: nowhere.

    Raises:
        BadInput: not a certificate.
    """
    try:
        places = (
            x509.parse(leaf)
            .certificate.extensions.get_extension_for_class(cx509.AuthorityInformationAccess)
            .value
        )
    except cx509.ExtensionNotFound:
        return ""
    for place in places:
        at = place.access_location
        if place.access_method == AuthorityInformationAccessOID.OCSP and isinstance(
            at, cx509.UniformResourceIdentifier
        ):
            return at.value
    return ""


# ------------------------------------------------------------------ the verifier
@final
class Answer(Value, frozen=True):
    """What a CA says of a certificate, and until when that counts."""

    revoked: bool
    next_unix_s: int


def judge_response(
    data: bytes, leaf: bytes, issuer: bytes, now_unix_us: int, nonce: bytes = b""
) -> Answer | Denied:
    """Whether a response is one of this leaf's CA, and what it says.

    Args:
        data: response, DER, stapled or fetched.
        leaf: DER.
        issuer: DER, as the path to the anchor has it; it, or a delegate of it, must have signed.
        now_unix_us: wall time.
        nonce: as sent in the request; empty: none was, or it is stapled.
    """
    if len(data) > RESPONSE_BYTES_MAX:
        return Denied("OCSP response too large")
    try:
        ca, subject = x509.parse(issuer).certificate, x509.parse(leaf).certificate
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return Denied("OCSP responder refuses")
        name = response.hash_algorithm.name
        about = (response.issuer_name_hash, response.issuer_key_hash, response.serial_number)
        if name not in _HASHES or about != (*_names(ca, name), subject.serial_number):
            return Denied("OCSP response of another certificate")
        if not _is_signed(response, ca, now_unix_us):
            return Denied("OCSP response not signed by the CA")
        found = [e.value.nonce for e in response.extensions if isinstance(e.value, cx509.OCSPNonce)]
        if nonce and found != [nonce]:
            return Denied("OCSP response to another request")
        start, end = response.this_update_utc, response.next_update_utc
        status = response.certificate_status
    except (*_ERRORS, BadInput):
        return Denied("malformed OCSP response")
    now_s = now_unix_us / 1e6
    if end is None or start.timestamp() > now_s + SKEW_S or end.timestamp() <= now_s - SKEW_S:
        return Denied("OCSP response not of now")
    if status is ocsp.OCSPCertStatus.UNKNOWN:
        return Denied("unknown to its CA")
    return Answer(status is ocsp.OCSPCertStatus.REVOKED, int(end.timestamp()))


class OcspCache:
    """Answers held until their nextUpdate.

    Bounded by CACHE_MAX; the oldest goes first.

    Args:
        hard_fail: whether a certificate without an answer is refused.
        unix_us: wall time.

    Attributes:
        doubts: reason -> responses that were not believed, or were missing; bounded by the number
            of reasons.
    """

    def __init__(self, hard_fail: bool, unix_us: Callable[[], int]) -> None:
        self._hard_fail = hard_fail
        self._unix_us = unix_us
        self._held: OrderedDict[tuple[bytes, bytes], Answer] = OrderedDict()
        self.doubts: Counter[str] = Counter()

    def judge(self, leaf: bytes, issuer: bytes, response: bytes = b"") -> Denied | None:
        """Whether a leaf may be used.

        A revocation that was once believed counts until the leaf's own end is of no interest any
        more: a later good answer does not lift it.

        Args:
            leaf: DER.
            issuer: DER.
            response: stapled or fetched just now; empty: none.
        Returns:
            None if it may.
        """
        now_us = self._unix_us()
        key = (hashlib.sha256(issuer).digest(), hashlib.sha256(leaf).digest())
        held, wrong = self._held.get(key), "no OCSP response"
        if held is not None and held.revoked:
            return Denied("revoked")
        if response:
            found = judge_response(response, leaf, issuer, now_us)
            if isinstance(found, Denied):
                wrong = found.reason
            else:
                held = self._held[key] = found
                self._held.move_to_end(key)
                if len(self._held) > CACHE_MAX:
                    self._held.popitem(last=False)
        if held is not None and held.revoked:
            return Denied("revoked")
        if held is not None and held.next_unix_s * 1_000_000 > now_us:
            return None
        self.doubts[wrong] += 1
        return Denied(wrong) if self._hard_fail else None


# ------------------------------------------------------------------ details
def _is_signed(response: ocsp.OCSPResponse, ca: cx509.Certificate, now_unix_us: int) -> bool:
    if _verifies(ca.public_key(), response):
        return True
    for delegate in response.certificates[:4]:
        try:
            delegate.verify_directly_issued_by(ca)
            usage = delegate.extensions.get_extension_for_class(cx509.ExtendedKeyUsage).value
        except (*_ERRORS, InvalidSignature, cx509.ExtensionNotFound):
            continue
        start, end = delegate.not_valid_before_utc, delegate.not_valid_after_utc
        now_s = now_unix_us / 1e6
        in_time = start.timestamp() - SKEW_S <= now_s < end.timestamp()
        may = in_time and ExtendedKeyUsageOID.OCSP_SIGNING in usage
        if may and _verifies(delegate.public_key(), response):
            return True
    return False


def _verifies(key: object, response: ocsp.OCSPResponse) -> bool:
    signature, said = response.signature, response.tbs_response_bytes
    try:
        if isinstance(
            key, mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
        ):
            key.verify(signature, said)
            return True
        hash = response.signature_hash_algorithm
        if hash is None or hash.name not in ("sha256", "sha384", "sha512"):
            return False
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, said, ec.ECDSA(hash))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, said, padding.PKCS1v15(), hash)
        else:
            return False
    except (*_ERRORS, InvalidSignature):
        return False
    return True


def _names(ca: cx509.Certificate, algorithm: str) -> tuple[bytes, bytes]:
    """Hashes of the CA's name and of its key (the bits, without tag and length)."""
    name, key = ca.subject.public_bytes(), _bits(ca)
    return hashlib.new(algorithm, name).digest(), hashlib.new(algorithm, key).digest()


def _bits(ca: cx509.Certificate) -> bytes:
    key = ca.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _unsuccessful(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(
        serialization.Encoding.DER
    )


def _time(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
