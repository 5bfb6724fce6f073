"""The one judge of certificates: every TLS connection and every signed record asks it.

It joins RFC 5280 path validation (cryptography's verifier under an extension policy of our own),
the SPIFFE rules of `core.identity.rules`, revocation, and what the caller expects.  There is one
judge per trust domain and snapshot of its bundle; bundles are never merged (SP-076, SP-128).

Source: X509-SVID.md section 5; RFC 5280 section 6.  OpenSSL alone accepts a leaf with cA=true, two
URIs, or none (measured), hence this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification

from x0tta6bl4.core.identity.rules import (
    MESH,
    CertificateFields,
    Expect,
    Rules,
    judge_expected,
    judge_leaf,
    judge_signer,
    judge_time,
)
from x0tta6bl4.core.machine import Allowed, Denied, Value, Verdict
from x0tta6bl4.edge.tls.x509 import CHAIN_MAX, Parsed, parse, parse_chain, public_bytes, verify
from x0tta6bl4.wire.errors import BadId, BadInput
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, domain_of, node_of, spiffe_id

CACHE_MAX: Final = 1024
"""Chains whose path was validated, kept per judge; the oldest goes first."""

Revoked = Callable[[SpiffeId, int, NodeName | None], Verdict]
"""(ID, notBefore in unix seconds, node through which it was issued) -> verdict."""
Clock = Callable[[], int]
"""Wall time in microseconds since 1970."""


@final
class Judgement(Value, frozen=True):
    """A verdict, and until when it can be used at most."""

    verdict: Verdict
    not_after_unix_s: int = 0
    """Earliest notAfter on the path, anchor included; 0 if denied."""
    issued_unix_s: int = 0
    """notBefore of the leaf; 0 if denied."""
    via: str = ""
    """Node through which it was issued; the node itself for a node's SVID; else empty."""
    key: str = ""
    """Kind of the leaf's key, e.g. `P-256`; empty if denied."""
    issuer: bytes = b""
    """Certificate of the CA that has signed the leaf, DER; empty if denied."""


class Judging(Protocol):
    """What a TLS connection needs of a judge."""

    def judge(
        self, chain: Sequence[bytes], expect: Expect, now_unix_us: int | None = None
    ) -> Judgement:
        """Judge a peer's chain, leaf first; never raises for what a peer sends."""
        ...


@final
class _Path(Value, frozen=True):
    """What path validation found for one exact chain; true until `not_after_unix_s`.

    It is kept, so it keeps no parsed certificate: that would be ten times as large (measured).
    """

    leaf: CertificateFields
    not_before_unix_s: int
    not_after_unix_s: int
    serials: tuple[tuple[bytes, int], ...]
    """(issuer's public key, serial number) of each certificate below the anchor, leaf first."""
    issuer: bytes
    """DER, of the leaf's."""


def allow_all(id: SpiffeId, issued_unix_s: int, via: NodeName | None) -> Verdict:
    """Revocation check of somebody who has no revocations yet."""
    return Allowed(id)


class Judge:
    """Judge of one trust domain.

    Args:
        trust_domain: the only one whose SVIDs are allowed.
        anchors: its CA certificates, DER; with none everybody is denied (SP-082).
        revoked: asked for every allowed leaf, each time.
        clock: wall time, microseconds.
        rules: how strict.
        withdrawn: (issuer's public key, serial number) of revoked certificates (`edge.tls.crl`).
    Raises:
        BadInput: an anchor that is not a certificate.
    """

    __slots__ = (
        "_anchors",
        "_cache",
        "_parsed",
        "_revoked",
        "_rules",
        "_store",
        "_withdrawn",
        "clock",
        "trust_domain",
    )

    def __init__(
        self,
        trust_domain: TrustDomain,
        anchors: Sequence[bytes],
        revoked: Revoked,
        clock: Clock,
        rules: Rules = MESH,
        withdrawn: AbstractSet[tuple[bytes, int]] = frozenset(),
    ) -> None:
        self.trust_domain = trust_domain
        self.clock = clock
        self._revoked = revoked
        self._rules = rules
        self._withdrawn = withdrawn
        self._anchors = tuple(anchors)
        self._parsed = [parse(anchor) for anchor in anchors]
        usable = [
            anchor.certificate
            for anchor in self._parsed
            if type(judge_signer(anchor.fields, trust_domain, rules)) is Allowed
        ]
        self._store = verification.Store(usable) if usable else None
        self._cache: dict[tuple[bytes, ...], _Path] = {}

    def judge(
        self, chain: Sequence[bytes], expect: Expect, now_unix_us: int | None = None
    ) -> Judgement:
        """Judge a chain as a peer sent it.

        The leaf comes first; the others may stand in any order, and self-signed ones are ignored:
        trust comes from the bundle alone.

        Args:
            chain: DER.
            expect: who it has to be.
            now_unix_us: wall time; the judge's clock if left out.
        Returns:
            Allowed with the leaf's ID, or Denied with a stable reason.
        """
        now = self.clock() if now_unix_us is None else now_unix_us
        path = self._path(tuple(chain), now)
        if type(path) is Denied:
            return Judgement(path)
        assert type(path) is _Path
        return self._judge_validated(path, expect, now)

    def judge_signed(
        self,
        chain: Sequence[bytes],
        data: bytes,
        signature: bytes,
        expect: Expect,
        now_unix_us: int | None = None,
    ) -> Judgement:
        """As `judge`, and the leaf's key must have signed `data` (for records)."""
        now = self.clock() if now_unix_us is None else now_unix_us
        path = self._path(tuple(chain), now)
        if type(path) is Denied:
            return Judgement(path)
        assert type(path) is _Path
        judgement = self._judge_validated(path, expect, now)
        if type(judgement.verdict) is Allowed and not verify(chain, data, signature):
            return Judgement(Denied("bad record signature"))
        return judgement

    # ------------------------------------------------------------------------------- details
    def _path(self, chain: tuple[bytes, ...], now: int) -> _Path | Denied:
        path = self._cache.get(chain)
        if path is None or self._judge_time(path.not_before_unix_s, path.not_after_unix_s, now):
            return self._validate(chain, now)
        return path

    def _judge_time(self, not_before_unix_s: int, not_after_unix_s: int, now: int) -> str:
        return judge_time(not_before_unix_s, not_after_unix_s, now, self._rules.left_us_min)

    def _judge_validated(self, path: _Path, expect: Expect, now: int) -> Judgement:
        fields = path.leaf
        verdict = judge_leaf(fields, self.trust_domain, now, self._rules)
        if type(verdict) is not Allowed:
            return Judgement(verdict)
        id = verdict.peer
        verdict = judge_expected(id, expect)
        if type(verdict) is not Allowed:
            return Judgement(verdict)
        via = node_of(id) or (NodeName(fields.via) if fields.via else None)
        verdict = self._revoked(id, fields.not_before_unix_s, via)
        if type(verdict) is not Allowed:
            return Judgement(verdict)
        if self._withdrawn and not self._withdrawn.isdisjoint(path.serials):
            return Judgement(Denied("revoked"))
        return Judgement(
            Allowed(id),
            path.not_after_unix_s,
            fields.not_before_unix_s,
            via or "",
            fields.key,
            path.issuer,
        )

    def _validate(self, chain: tuple[bytes, ...], now: int) -> _Path | Denied:
        try:
            leaf, *others = parse_chain(chain)
        except BadInput as error:
            return Denied(_PARSE_REASONS.get(error.id, "malformed certificate"))
        verdict = judge_leaf(leaf.fields, self.trust_domain, now, self._rules)
        if type(verdict) is Denied:
            return verdict
        if self._store is None:
            return Denied("no trust anchor")  # SP-082
        others = [other for other in others if not _self_signed(other)]
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(_EPOCH + timedelta(microseconds=now))
            .max_chain_depth(self._rules.intermediates_max)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()  # For both directions: names are judged by our rules.
        )
        try:
            verified = verifier.verify(leaf.certificate, [other.certificate for other in others])
        except (verification.VerificationError, ValueError):
            return Denied(self._why(leaf, others, now))
        above = [self._signer(signer.public_bytes(_DER)) for signer in verified.chain[1:]]
        signers = [signer.fields for signer in above]
        for signer in signers:
            verdict = judge_signer(signer, self.trust_domain, self._rules)
            if type(verdict) is Denied:
                return verdict
        path = _Path(
            leaf.fields,
            max([leaf.fields.not_before_unix_s, *(s.not_before_unix_s for s in signers)]),
            min([leaf.fields.not_after_unix_s, *(s.not_after_unix_s for s in signers)]),
            tuple(
                (public_bytes(upper), lower.certificate.serial_number)
                for lower, upper in zip([leaf, *above], above, strict=False)
            ),
            above[0].der,
        )
        if self._judge_time(path.not_before_unix_s, path.not_after_unix_s, now):
            return Denied("issuer expired")
        self._cache[chain] = path
        if len(self._cache) > CACHE_MAX:
            del self._cache[next(iter(self._cache))]
        return path

    def _signer(self, der: bytes) -> Parsed:
        """A verified certificate above the leaf; an anchor is there already."""
        return next((anchor for anchor in self._parsed if anchor.der == der), None) or Parsed(der)

    def _why(self, leaf: Parsed, others: list[Parsed], now: int) -> str:
        """Stable reason for a path that did not validate; only ever asked after it was refused."""
        below = leaf
        for depth in range(CHAIN_MAX):
            issuers = [
                c for c in (*self._parsed, *others) if c.subject == below.issuer and c is not below
            ]
            if not issuers:
                return "untrusted issuer"
            signed = [c for c in issuers if _signed_by(below, c)]
            if not signed:
                named = any(_names_key(below, c) for c in issuers)
                return "bad signature" if named else "untrusted issuer"
            above = signed[0]
            verdict = judge_signer(above.fields, self.trust_domain, self._rules)
            if type(verdict) is Denied:
                return verdict.reason
            if self._judge_time(above.fields.not_before_unix_s, above.fields.not_after_unix_s, now):
                return "issuer expired"
            length = above.fields.path_length
            if length is not None and depth > length:
                return "path length exceeded"
            if _constrained(above):
                return "name constraints"
            if above.der in self._anchors:
                break
            below = above
        return "chain too long" if depth > self._rules.intermediates_max else "path not valid"


@final
class Judges:
    """The judges of several trust domains: a peer goes to that of its own, never to another's.

    Bundles are not merged (SP-076, SP-128): who says that it is of a trust domain is judged by
    that domain's bundle alone, and by nobody where there is none (SP-111).

    Args:
        judges: one per trust domain.
    """

    __slots__ = ("_judges",)

    def __init__(self, judges: Mapping[TrustDomain, Judge]) -> None:
        self._judges = dict(judges)

    def judge(
        self, chain: Sequence[bytes], expect: Expect, now_unix_us: int | None = None
    ) -> Judgement:
        """See `Judge.judge`; a trust domain without a judge is Denied("foreign trust domain")."""
        try:
            leaf = parse_chain(chain)[0]
        except BadInput as error:
            return Judgement(Denied(_PARSE_REASONS.get(error.id, "malformed certificate")))
        if not leaf.fields.uris:
            return Judgement(Denied("no URI"))
        try:
            domain = domain_of(spiffe_id(leaf.fields.uris[0]))
        except BadId:
            return Judgement(Denied("not a SPIFFE ID"))
        judge = self._judges.get(domain)
        if judge is None:
            return Judgement(Denied("foreign trust domain"))
        return judge.judge(chain, expect, now_unix_us)


def _self_signed(certificate: Parsed) -> bool:
    return certificate.issuer == certificate.subject and certificate.fields.ca


def _signed_by(below: Parsed, above: Parsed) -> bool:
    try:
        below.certificate.verify_directly_issued_by(above.certificate)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _names_key(below: Parsed, above: Parsed) -> bool:
    """Whether the lower certificate says that this very key has signed it."""
    try:
        wanted = below.certificate.extensions.get_extension_for_class(
            x509.AuthorityKeyIdentifier
        ).value.key_identifier
        has = above.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value.digest
    except x509.ExtensionNotFound:
        return True
    return wanted == has


def _constrained(certificate: Parsed) -> bool:
    try:
        certificate.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return False
    return True


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DER: Final = Encoding.DER
_PARSE_REASONS: Final = {
    "X0-TLS-002": "certificate too large",
    "X0-TLS-003": "no certificate",
    "X0-TLS-004": "chain too long",
}
_AGNOSTIC: Final = verification.Criticality.AGNOSTIC
_CA_POLICY: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _AGNOSTIC, None)
    .require_present(x509.KeyUsage, _AGNOSTIC, None)
)
_LEAF_POLICY: Final = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, _AGNOSTIC, None)
    .require_present(x509.KeyUsage, _AGNOSTIC, None)
)
