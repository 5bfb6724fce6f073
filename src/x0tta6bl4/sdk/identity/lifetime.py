"""Expiration checks for those who want them strict: one hour of life, one hour of age.

The specification allows an SVID any life; who wants short ones asks here as well.  Chains are
judged by `verify_peer`: this looks at times alone.

Source: RFC 5280 section 4.1.2.5; one hour is the mesh's own limit.
"""

from __future__ import annotations

from typing import Final, final

from x0tta6bl4.core.machine import SECOND, Value
from x0tta6bl4.edge.tls.judge import Clock
from x0tta6bl4.edge.tls.x509 import parse
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.errors import Refused

LIFETIME_S_MAX: Final = 3_600
AGE_S_MAX: Final = 3_600
SKEW_S: Final = 60
"""By how much the issuer's clock and ours may differ."""


@final
class Lifetime(Value, frozen=True):
    """Times of a certificate, seconds."""

    not_before_unix_s: int
    not_after_unix_s: int
    age_s: int
    """Since notBefore; negative while our clock is behind the issuer's."""
    left_s: int
    """Until notAfter; negative while our clock is ahead of the issuer's."""


def validate_certificate(
    certificate: bytes,
    *,
    clock: Clock = unix_us,
    lifetime_s_max: int = LIFETIME_S_MAX,
    age_s_max: int = AGE_S_MAX,
    skew_s: int = SKEW_S,
) -> Lifetime:
    """Check that a certificate is young, short-lived and in its time.

    Args:
        certificate: DER.
        clock: wall time, microseconds.
        lifetime_s_max: longest notAfter - notBefore.
        age_s_max: longest time since notBefore.
        skew_s: tolerated at both ends of the validity, and added to both limits.
    Raises:
        BadInput: not a certificate.
        Refused: `not yet valid`, `expired`, `lifetime too long` or `too old`.
    """
    fields = parse(certificate).fields
    start, end = fields.not_before_unix_s, fields.not_after_unix_s
    now = clock() // SECOND
    if now < start - skew_s:
        raise _refused("not yet valid")
    if now > end + skew_s:
        raise _refused("expired")
    if end - start > lifetime_s_max + skew_s:
        raise _refused("lifetime too long")
    if now - start > age_s_max + skew_s:
        raise _refused("too old")
    return Lifetime(start, end, now - start, end - now)


def _refused(reason: str) -> Refused:
    return Refused("X0-SDK-050", f"certificate refused: {reason}")
