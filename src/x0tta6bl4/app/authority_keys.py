"""The authority's cryptography: what its machine asks for, on the real thing."""

from __future__ import annotations

import os
from typing import Any, Final

from cryptography.x509 import load_der_x509_certificate

from x0tta6bl4.app.settings import AuthoritySettings
from x0tta6bl4.core.authority.rows import CaRow, Leaf, NewCa, NewJwtKey, ReadBundle
from x0tta6bl4.edge.bundle.document import parse
from x0tta6bl4.edge.jwt.svid import Signer
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.crl import make_crl
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain

_KINDS: Final = {"p-256": "P-256", "ml-dsa-65": x509.ML_DSA}
"""`keys` of the settings -> kind of the CA's key and of its record key."""


class Keys:
    """The authority's cryptography, on `edge.tls.x509`; keys parsed once and kept by their CA.

    Args:
        domain: trust domain of all that is issued.
        settings: kind of the keys of new CAs, and what leaves say of OCSP.
    """

    def __init__(self, domain: TrustDomain, settings: AuthoritySettings) -> None:
        self._domain = domain
        self._kind = _KINDS[settings.keys]
        self._ocsp_url = settings.ocsp.url
        self._issuers: dict[str, x509.Issuer] = {}
        self._record_keys: dict[str, x509.PrivateKey] = {}
        self._signers: dict[str, Signer] = {}

    def issue(
        self,
        ca: CaRow,
        csr: bytes,
        id: SpiffeId,
        not_before_unix_s: int,
        not_after_unix_s: int,
        via: NodeName | None,
    ) -> Leaf:
        """Issue for the key in a CSR; raises BadInput for a CSR without proof of possession."""
        issuer = self.issuer(ca)
        chain = x509.issue_leaf(
            issuer,
            csr,
            id,
            not_before_unix_s,
            via=via,
            backdate_s=0,
            ttl_s=not_after_unix_s - not_before_unix_s,
        )
        return Leaf(chain, f"{load_der_x509_certificate(chain[0]).serial_number:x}")

    def issuer(self, ca: CaRow) -> x509.Issuer:
        """A CA that can issue."""
        issuer = self._issuers.get(ca.id)
        if issuer is None:
            _bound(self._issuers)
            issuer = x509.Issuer(
                self._domain, x509.load_key(ca.private), ca.certificate, ocsp_url=self._ocsp_url
            )
            self._issuers[ca.id] = issuer
        return issuer

    def crl(
        self,
        ca: CaRow,
        serials: tuple[str, ...],
        number: int,
        this_unix_s: int,
        next_unix_s: int,
    ) -> bytes:
        """Make the revocation list of a CA; `number` grows with each."""
        revoked = [int(serial, 16) for serial in serials]
        return make_crl(self.issuer(ca), revoked, number, this_unix_s, next_unix_s)

    def new_ca(self, trust_domain: str, not_before_unix_s: int, not_after_unix_s: int) -> NewCa:
        """Make a CA and a record key."""
        issuer = x509.new_anchor(
            self._domain,
            not_before_unix_s + x509.BACKDATE_S,
            kind=self._kind,
            ttl_s=not_after_unix_s - not_before_unix_s,
        )
        record = x509.new_key(self._kind)
        return NewCa(
            issuer.certificate,
            x509.key_bytes(issuer.key),
            x509.public_point(record),
            x509.key_bytes(record),
        )

    def new_jwt_key(self) -> NewJwtKey:
        """Make a key for ES256."""
        key = x509.new_key("P-256")
        return NewJwtKey(x509.public_bytes(key), x509.key_bytes(key))

    def mint(
        self,
        ca: CaRow,
        id: SpiffeId,
        audience: tuple[str, ...],
        issued_unix_s: int,
        end_unix_s: int,
    ) -> str:
        """Write a JWT-SVID, signed with the CA's JWT key."""
        signer = self._signers.get(ca.jwt_key)
        if signer is None:
            _bound(self._signers)
            signer = self._signers[ca.jwt_key] = Signer(ca.jwt_private, ca.jwt_key)
        return signer.mint(id, audience, end_unix_s - issued_unix_s, issued_unix_s)

    def read_bundle(self, document: bytes, trust_domain: TrustDomain) -> ReadBundle:
        """Read a SPIFFE bundle; raises BadInput."""
        found = parse(document, trust_domain)
        return ReadBundle(found.sequence or 0, found.refresh_hint_s or 0)

    def sign(self, ca: CaRow, data: bytes) -> bytes:
        """Sign with the CA's record key."""
        key = self._record_keys.get(ca.record_key)
        if key is None:
            _bound(self._record_keys)
            key = self._record_keys[ca.record_key] = x509.load_key(ca.record_private)
        return x509.sign(key, data)

    def verify(self, point: bytes, data: bytes, signature: bytes) -> bool:
        """Whether a record key signed this, or a node's long-lived one."""
        return x509.verify(point, data, signature)

    def random(self, size_bytes: int) -> bytes:
        """Bytes of the kernel's generator."""
        return os.urandom(size_bytes)


def _bound(keys: dict[str, Any]) -> None:
    if len(keys) >= 8:  # As many as there can be CAs; those of retired ones go.
        keys.clear()
