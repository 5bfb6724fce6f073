"""WIT-SVIDs: a token about a workload and its key, worth nothing without a proof of that key.

A WIT is bound to the key in its `cnf`; whoever presents it signs a workload proof token (WPT) with
that key for this one audience and a short time.  There is no function here that accepts a WIT
alone (SP-069), and neither of the two is a bearer token (SP-070).

Source: WIT-SVID.md sections 2 to 7 (SP-056 to SP-075, incubating); proof as in
draft-ietf-wimse-wpt section 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, final

from joserfc.jwk import ECKey

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.bundle import jwk
from x0tta6bl4.edge.bundle.document import Document
from x0tta6bl4.edge.jwt import compact
from x0tta6bl4.edge.jwt.svid import ALGORITHM, subject_of
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain, domain_of

WIT: Final = "wit+jwt"
WPT: Final = "wpt+jwt"
PROOF_S_MAX: Final = 300
"""A proof that is good for longer is refused (SP-074)."""
ID_CHARS_MAX: Final = 256


@final
class WitSvid(Value, frozen=True):
    """A WIT-SVID whose holder has proven its key.  `repr` says nothing of the token."""

    id: SpiffeId
    expires_unix_s: int
    claims: dict[str, object]
    proof_id: str
    """`jti` of the proof: who wants to see each proof once keeps it until the proof's end."""
    proof_expires_unix_s: int
    token: str

    def __repr__(self) -> str:
        return f"WitSvid({self.id!r}, expires_unix_s={self.expires_unix_s})"


@final
class WitSigner:
    """Signs WIT-SVIDs with ES256.

    Args:
        key: P-256, PKCS#8 DER or PEM.
        kid: as it stands in the bundle, where no other key has it (SP-056).
    """

    __slots__ = ("_key", "kid")

    def __init__(self, key: bytes, kid: str) -> None:
        self._key = ECKey.import_key(key)
        self.kid = kid

    def mint(self, id: SpiffeId, public: bytes, ttl_s: int, now_unix_s: int, jti: str) -> str:
        """Write a token about `id` and its key.

        Args:
            id: whoever calls has checked that it may be.
            public: P-256 key of the workload, SubjectPublicKeyInfo DER, whose possession is proven.
            ttl_s: seconds.
            now_unix_s: wall time.
            jti: unlike that of any other token (SP-063).
        """
        bound = {**jwk.members(jwk.load_public(public)), "alg": ALGORITHM}
        claims = {
            "sub": id,
            "iat": now_unix_s,
            "exp": now_unix_s + ttl_s,
            "jti": jti,
            "cnf": {"jwk": bound},
        }
        return compact.sign({"alg": ALGORITHM, "kid": self.kid, "typ": WIT}, claims, self._key)


def prove(token: str, key: bytes, audience: str, ttl_s: int, now_unix_s: int, jti: str) -> str:
    """Write a proof that one holds the key of a WIT.

    Args:
        token: the WIT.
        key: P-256, PKCS#8 DER or PEM, to which it is bound.
        audience: who is to believe it.
        ttl_s: at most PROOF_S_MAX.
        now_unix_s: wall time.
        jti: unlike that of any other proof.
    """
    claims = {"aud": audience, "exp": now_unix_s + ttl_s, "jti": jti, "wth": _hash(token)}
    return compact.sign({"alg": ALGORITHM, "typ": WPT}, claims, ECKey.import_key(key))


def judge_wit(
    token: str,
    proof: str,
    audience: str,
    documents: Mapping[TrustDomain, Document],
    now_unix_us: int,
    leeway_s: int = 0,
) -> WitSvid | Denied:
    """Judge a WIT and the proof that came with it.

    Args:
        token: the WIT.
        proof: the WPT.
        audience: who is asked, as the proof has to name it.
        documents: bundles by trust domain; only the `wit-svid` keys of the subject's count
            (SP-073).
        now_unix_us: wall time.
        leeway_s: by how much clocks may differ.
    """
    found = compact.read(token, (WIT,), ignore_unknown=True)  # SP-058, SP-060
    if isinstance(found, Denied):
        return found
    if found.kid is None:
        return Denied("no key id")  # SP-056
    id = subject_of(found.claims)
    if isinstance(id, Denied):
        return id
    if "aud" in found.claims:
        return Denied("a WIT with an audience")  # SP-068
    times = compact.times_of(found.claims)
    if isinstance(times, Denied):
        return times
    key = _bound(found.claims)
    if isinstance(key, Denied):
        return key
    document = documents.get(domain_of(id))
    if document is None:
        return Denied("no bundle of the trust domain")
    wrong = times.judge(now_unix_us, leeway_s) or compact.judge_signature(found, document.wit)
    if wrong is not None:
        return wrong
    proven = _proven(proof, token, key, audience, now_unix_us, leeway_s)
    if isinstance(proven, Denied):
        return proven
    ends = int(times.ends_unix_s)
    return WitSvid(id, ends, dict(found.claims), *proven, token)


def _proven(
    proof: str,
    token: str,
    key: tuple[jwk.PublicKey, str],
    audience: str,
    now_us: int,
    leeway_s: int,
) -> tuple[str, int] | Denied:
    found = compact.read(proof, (WPT,), ignore_unknown=True)
    if isinstance(found, Denied):
        return Denied(f"proof: {found.reason}")
    if found.algorithm != key[1]:
        return Denied("proof: another algorithm than the key's")
    claims, times = found.claims, compact.times_of(found.claims)
    if isinstance(times, Denied):
        return Denied(f"proof: {times.reason}")
    if times.ends_unix_s - now_us / 1e6 > PROOF_S_MAX + leeway_s:
        return Denied("proof: good for too long")
    if not audience or claims.get("aud") != audience:
        return Denied("proof: meant for another audience")
    if claims.get("wth") != _hash(token):
        return Denied("proof: of another token")
    id = claims.get("jti")
    if not isinstance(id, str) or not 0 < len(id) <= ID_CHARS_MAX:
        return Denied("proof: no id")
    wrong = times.judge(now_us, leeway_s) or compact.judge_jwk_signature(found, key[0])
    return Denied(f"proof: {wrong.reason}") if wrong is not None else (id, int(times.ends_unix_s))


def _bound(claims: dict[str, Any]) -> tuple[jwk.PublicKey, str] | Denied:
    cnf = claims.get("cnf")
    bound = cnf.get("jwk") if isinstance(cnf, dict) else None
    if not isinstance(bound, dict):
        return Denied("bound to no key")  # SP-062
    algorithm = bound.get("alg")
    if algorithm not in compact.ALGORITHMS:
        return Denied("bound to a key of no known algorithm")
    try:
        key = jwk.public_of(bound)
    except BadInput:
        key = None
    return Denied("bound to a broken key") if key is None else (key, str(algorithm))


def _hash(token: str) -> str:
    return jwk.base64url(hashlib.sha256(token.encode()).digest())
