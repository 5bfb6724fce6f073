"""The SPIFFE rules for X.509-SVIDs, over fields that somebody else has parsed.

Source: X509-SVID.md sections 2 to 5 (SP-020 to SP-036), SPIFFE-ID.md section 2, and the project's
own: short lives, strong keys, names in normal form, reserved names only in their roles.  `MESH` is
stricter than the specification, `SPIFFE` takes every SVID that the specification calls valid:
what differs are the fields of `Rules`, never the code.

Nothing here looks at a signature; `edge.tls.judge` does, and joins both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Value, Verdict
from x0tta6bl4.wire.errors import BadId
from x0tta6bl4.wire.ids import (
    SpiffeId,
    TrustDomain,
    domain_of,
    is_authority,
    is_reserved,
    node_of,
    path_of,
    spiffe_id,
)

LIFETIME_S_MAX: Final = 3_660
"""Longest life of an SVID that is accepted: one hour and the slack of a clock."""
LEFT_US_MIN: Final = 1 * SECOND
"""A certificate that ends sooner is refused: circuits close this long before their end."""

KEYS: Final = frozenset(
    {
        "P-256",
        "P-384",
        "P-521",
        "RSA-2048",
        "RSA-3072",
        "RSA-4096",
        "ML-DSA-44",
        "ML-DSA-65",
        "ML-DSA-87",
    }
)
RSA_BITS_MIN: Final = 2_048
HASHES: Final = frozenset({"sha256", "sha384", "sha512", "ML-DSA"})
SERVER_AUTH: Final = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH: Final = "1.3.6.1.5.5.7.3.2"


@final
class CertificateFields(Value, frozen=True):
    """What the rules look at in one certificate, leaf or signer."""

    uris: tuple[str, ...]
    """URIs of the subject alternative name, as they stand there."""
    san_critical: bool
    subject_empty: bool
    ca: bool
    """cA of the basic constraints; False where they are missing."""
    path_length: int | None
    key_usage: tuple[str, ...] | None
    """RFC 5280 names in snake case, e.g. `digital_signature`; None where it is missing."""
    key_usage_critical: bool
    extended_key_usage: tuple[str, ...] | None
    """Dotted OIDs; None where it is missing."""
    unknown_critical: tuple[str, ...]
    """OIDs of critical extensions that nobody here understands."""
    not_before_unix_s: int
    not_after_unix_s: int
    key: str
    """E.g. `P-256`, `RSA-2048`, `ML-DSA-65`."""
    signature: str
    """Hash of the signature algorithm, e.g. `sha256`; `ML-DSA`; empty where unknown."""
    via: str = ""
    """Node through which the SVID was issued; empty for node and foreign SVIDs."""


@final
class Rules(Value, frozen=True):
    """How strict the one judge is, where the specification leaves room."""

    lifetime_s_max: int = LIFETIME_S_MAX
    """Longest notAfter - notBefore of a leaf, seconds; 0: any."""
    left_us_min: int = LEFT_US_MIN
    """What a certificate must have left, microseconds; 0: valid up to notAfter itself."""
    normal_form: bool = True
    """Whether an ID must stand in lower case where case has no meaning (SP-005); if not, it is
    normalised (SP-016)."""
    own_signers: bool = True
    """Whether a signing certificate's URI must be its trust domain's own ID (SP-025: should)."""
    rsa_any: bool = False
    """RSA keys of 2048 bits and more, whatever their size; if not, those of `KEYS`."""
    intermediates_max: int = 3
    """Signing certificates between leaf and anchor."""


MESH: Final = Rules()
"""Between our own processes."""
SPIFFE: Final = Rules(0, 0, normal_form=False, own_signers=False, rsa_any=True, intermediates_max=6)
"""For services that meet SVIDs of any issuer."""


@final
class Expect(Value, frozen=True):
    """Who the peer has to be.  All that is set must hold."""

    role: str = ""
    """`node`, `workload`, `authority`; empty: any of them."""
    id: SpiffeId | None = None
    """Exactly this one."""
    accept: Callable[[SpiffeId], Verdict] | None = None
    """Asked last; what it denies is denied, with its reason."""


ANYBODY: Final = Expect()
NODE: Final = Expect(role="node")
WORKLOAD: Final = Expect(role="workload")
AUTHORITY: Final = Expect(role="authority")


def judge_leaf(
    fields: CertificateFields,
    domain: TrustDomain,
    now_unix_us: int,
    rules: Rules = MESH,
) -> Verdict:
    """Whether these fields make an X.509-SVID of this trust domain that is good now.

    Args:
        fields: the leaf, parsed.
        domain: the one trust domain whose bundle is in use (SP-076).
        now_unix_us: wall time, microseconds.
        rules: how strict.
    Returns:
        Allowed with the SVID's ID, in normal form, or Denied with the first reason found.
    """
    reason = _usage_wrong(fields, rules) or _name_wrong(fields)
    if reason:
        return Denied(reason)
    try:
        id = spiffe_id(fields.uris[0])
    except BadId:
        return Denied("not a SPIFFE ID")
    if rules.normal_form and id != fields.uris[0]:
        return Denied("ID not in normal form")  # SP-005
    if not path_of(id):
        return Denied("ID without a path")  # SP-023, SP-036
    if domain_of(id) != domain:
        return Denied("foreign trust domain")  # SP-076
    reason = judge_time(
        fields.not_before_unix_s, fields.not_after_unix_s, now_unix_us, rules.left_us_min
    )
    if reason:
        return Denied(reason)
    life_s = fields.not_after_unix_s - fields.not_before_unix_s
    if rules.lifetime_s_max and life_s > rules.lifetime_s_max:
        return Denied("lifetime too long")
    return Allowed(id)


def judge_signer(fields: CertificateFields, domain: TrustDomain, rules: Rules = MESH) -> Verdict:
    """Whether these fields make a signing certificate of this trust domain.

    A URI is not required of it (an upstream CA may have none); where there is one `rules` may ask
    that it be the trust domain's own ID (SP-025).

    Returns:
        Allowed with the trust domain's ID, or Denied with the first reason found.
    """
    if not _strong(fields.key, rules):
        return Denied("weak key")
    if fields.signature not in HASHES:
        return Denied("weak signature")
    if not fields.ca:
        return Denied("issuer is no CA")  # SP-027
    if fields.key_usage is None or "key_cert_sign" not in fields.key_usage:
        return Denied("issuer may not sign")  # SP-029
    if fields.unknown_critical:
        return Denied("unknown critical extension")
    own = SpiffeId(f"spiffe://{domain}")
    if rules.own_signers and fields.uris and fields.uris != (own,):
        return Denied("issuer of a foreign trust domain")
    return Allowed(own)


def judge_time(
    not_before_unix_s: int,
    not_after_unix_s: int,
    now_unix_us: int,
    left_us_min: int = LEFT_US_MIN,
) -> str:
    """Reason why a validity period is not good now; empty if it is."""
    if now_unix_us < not_before_unix_s * SECOND:
        return "not yet valid"
    if now_unix_us > not_after_unix_s * SECOND - left_us_min:
        return "expired"
    return ""


def judge_expected(id: SpiffeId, expect: Expect) -> Verdict:
    """Whether a peer that is proven to be `id` is the one that was expected."""
    role = expect.role
    if role == "workload":
        if is_reserved(id):
            return Denied("not a workload")
    elif role == "node":
        if node_of(id) is None:
            return Denied("not a node")
    elif role == "authority":
        if not is_authority(id):
            return Denied("not an authority")
    elif role:
        return Denied("unknown role expected")
    if expect.id is not None and expect.id != id:
        return Denied("unexpected peer")
    if expect.accept is not None:
        return expect.accept(id)
    return Allowed(id)


def _strong(key: str, rules: Rules) -> bool:
    if rules.rsa_any and key.startswith("RSA-"):
        return int(key[4:]) >= RSA_BITS_MIN
    return key in KEYS


def _usage_wrong(fields: CertificateFields, rules: Rules) -> str:
    if fields.ca:
        return "leaf is a CA"  # SP-027, SP-033
    usage = fields.key_usage
    if usage is None:
        return "no key usage"  # SP-028
    if "key_cert_sign" in usage or "crl_sign" in usage:
        return "leaf may sign certificates or CRLs"  # SP-030, SP-034
    if "digital_signature" not in usage:
        return "no digital signature usage"
    if not fields.key_usage_critical:
        return "key usage not critical"
    extended = fields.extended_key_usage
    if extended is not None and not (SERVER_AUTH in extended and CLIENT_AUTH in extended):
        return "wrong extended key usage"  # SP-031
    if fields.unknown_critical:
        return "unknown critical extension"  # RFC 5280 section 4.2
    if not _strong(fields.key, rules):
        return "weak key"
    if fields.signature not in HASHES:
        return "weak signature"
    return ""


def _name_wrong(fields: CertificateFields) -> str:
    if not fields.uris:
        return "no URI"  # SP-020
    if len(fields.uris) > 1:
        return "more than one URI"  # SP-021
    if fields.subject_empty and not fields.san_critical:
        return "SAN not critical"  # SP-024
    return ""
