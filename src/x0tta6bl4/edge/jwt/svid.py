"""JWT-SVIDs: mint them, judge them.

Source: JWT-SVID.md sections 2 to 5 (SP-043 to SP-052), SPIFFE_Workload_API.md section 6.3
(SP-122); RFC 7519 section 7.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from joserfc.jwk import ECKey

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.bundle.document import Document
from x0tta6bl4.edge.jwt import compact
from x0tta6bl4.wire.errors import BadId
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain, domain_of, path_of, spiffe_id

ALGORITHM: Final = "ES256"
AUDIENCES_MAX: Final = 64
"""Most audiences that a token may name."""
_KINDS: Final = (None, "JWT", "JOSE")


@final
class JwtSvid(Value, frozen=True):
    """A JWT-SVID.  `repr` says nothing of the token."""

    id: SpiffeId
    audience: tuple[str, ...]
    issued_unix_s: int
    """0 where the token does not say."""
    expires_unix_s: int
    claims: dict[str, object]
    token: str
    hint: str = ""

    def __repr__(self) -> str:
        return f"JwtSvid({self.id!r}, {self.audience!r}, expires_unix_s={self.expires_unix_s})"


@final
class Signer:
    """Signs JWT-SVIDs with ES256.

    Args:
        key: P-256, PKCS#8 DER or PEM.
        kid: as it stands in the bundle.
    """

    __slots__ = ("_key", "kid")

    def __init__(self, key: bytes, kid: str) -> None:
        self._key = ECKey.import_key(key)
        self.kid = kid

    def mint(self, id: SpiffeId, audience: Sequence[str], ttl_s: int, now_unix_s: int) -> str:
        """Write a token about `id` for `audience`; whoever calls has checked that it may be."""
        claims = {
            "sub": id,
            "aud": list(audience),
            "iat": now_unix_s,
            "exp": now_unix_s + ttl_s,
        }
        header = {"alg": ALGORITHM, "kid": self.kid, "typ": "JWT"}
        return compact.sign(header, claims, self._key)


def judge_token(
    token: str,
    audience: str,
    documents: Mapping[TrustDomain, Document],
    now_unix_us: int,
    leeway_s: int = 0,
) -> JwtSvid | Denied:
    """Judge a token that somebody presents.

    Args:
        token: as it came, without `Bearer`.
        audience: who is asked; has to be one of the token's own.
        documents: bundles by trust domain; only that of the token's subject counts (SP-122), and
            of it only the keys for JWT-SVIDs (SP-055).
        now_unix_us: wall time.
        leeway_s: by how much clocks may differ.
    Returns:
        The SVID, or Denied with the first reason found.
    """
    found = compact.read(token, _KINDS)
    if isinstance(found, Denied):
        return found
    read = _read(found)
    if isinstance(read, Denied):
        return read
    svid, times = read
    if not audience or audience not in svid.audience:
        return Denied("meant for another audience")  # SP-049
    document = documents.get(domain_of(svid.id))
    if document is None:
        return Denied("no bundle of the trust domain")
    if not document.jwt:
        return Denied("no JWT key in the bundle")  # SP-082
    wrong = times.judge(now_unix_us, leeway_s) or compact.judge_signature(found, document.jwt)
    return wrong or svid


def read_unverified(token: str) -> JwtSvid | Denied:
    """Read a token that came from one's own Workload API; the signature is not looked at.

    Shape, algorithm, subject, audience and expiry have to be there all the same.
    """
    found = compact.read(token, _KINDS)
    if isinstance(found, Denied):
        return found
    read = _read(found)
    return read if isinstance(read, Denied) else read[0]


def subject_of(claims: Mapping[str, Any]) -> SpiffeId | Denied:
    """The workload that a token is about (SP-048), in normal form (SP-016)."""
    subject = claims.get("sub")
    if not isinstance(subject, str):
        return Denied("no subject")
    try:
        id = spiffe_id(subject)
    except BadId:
        return Denied("subject is no SPIFFE ID")
    return id if path_of(id) else Denied("subject without a path")


def _read(found: compact.Compact) -> tuple[JwtSvid, compact.Times] | Denied:
    id = subject_of(found.claims)
    if isinstance(id, Denied):
        return id
    audience = _audience(found.claims)
    if not audience:
        return Denied("no audience")  # SP-049
    times = compact.times_of(found.claims)
    if isinstance(times, Denied):
        return times
    issued = int(times.issued_unix_s or times.starts_unix_s)
    ends = int(times.ends_unix_s)
    return JwtSvid(id, audience, issued, ends, dict(found.claims), found.token), times


def _audience(claims: Mapping[str, Any]) -> tuple[str, ...]:
    found = claims.get("aud")
    if isinstance(found, str):
        return (found,) if found else ()
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        return ()
    return tuple(found) if len(found) <= AUDIENCES_MAX else ()
