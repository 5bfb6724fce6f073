"""Trust domains, CAs and revocations that the cases are about, and the Workload API that tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives import serialization

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.tls.impostors import SIGNER
from x0tta6bl4.edge.tls.recipes import Presented, Recipe, bake, bake_chain
from x0tta6bl4.edge.tls.x509 import Issuer
from x0tta6bl4.sdk.testing.domain import Domain, Svid
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.ids import SpiffeId, TrustDomain, domain_of

Key = tuple[Any, bytes]
"""A private key, and the certificate that goes with it, DER."""

FRESH_S = 30
"""What has just begun, or is about to end, is not what its name says for longer."""
ROOTS: dict[str, dict[str, Any]] = {
    "bare": {"uris": None, "identifiers": False},
    "namesake": {"uris": None, "identifiers": False, "subject": "root bare"},
    "with its ID": {},
    "twin": {"subject": "root with its ID"},
    "no cRLSign": {"usages": ("key_cert_sign",)},
    "also digitalSignature": {"usages": ("key_cert_sign", "digital_signature")},
    "key usage not critical": {"usage_critical": False},
    "path length 0": {"path_length": 0},
    "path length 1": {"path_length": 1},
    "P-384": {"key": "P-384", "hash": "sha384"},
    "P-521": {"key": "P-521", "hash": "sha512"},
    "RSA-2048": {"key": "RSA-2048"},
    "RSA-3072": {"key": "RSA-3072", "hash": "sha384"},
    "RSA-4096": {"key": "RSA-4096", "hash": "sha512", "pss": True},
    "ML-DSA-65": {"key": "ML-DSA-65"},
    "long life": {"life_s": 20_000 * 86_400},
    "serial 1": {"serial": 1},
    "younger than its leaves": {"start_s": -30},
    "printable name": {"printable": True},
    # Those below never help anybody.
    "expired": {"start_s": -90_000},
    "no keyCertSign": {"usages": ("crl_sign",)},
    "RSA-1024": {"key": "RSA-1024"},
    "no CA": {"ca": False},
}
"""Further CAs in the bundle of our trust domain, by what is different about each."""


class World:
    """What all doors share; a context.

    Attributes:
        api: serves `spiffe://example.org/web`, every bundle, and a CRL.
        domain: ours.
        friend: federated, and authorised.
        other: federated, and not authorised.
        long: federated and authorised, with a name of 255 bytes.
    """

    def __init__(self) -> None:
        self.domain = Domain()
        self.retired: Key = self.domain._anchors[0]
        self.domain.rotate_anchor()
        self.domain.retire_anchors()
        self.friend, self.other = Domain("friend.test"), Domain("other.test")
        self.long = Domain(".".join(["a" * 63] * 4))
        self.anchor: Key = self.domain._anchors[0]
        self.issuer = Issuer(TrustDomain(self.domain.name), *self.anchor)
        self.roots = {kind: self._root(kind, changes) for kind, changes in ROOTS.items()}
        old = self.roots["bare"]
        self.crossed: Key = (old[0], self._crossed(old))
        self.middle = self._signer("revoked")
        self.revoked = self.make({})
        self.api = WorkloadApi(self.domain)
        self._made: dict[tuple[str, Callable[[World], Presented]], tuple[int, Presented]] = {}

    def __enter__(self) -> Self:
        self.api.__enter__()
        self.api.issue("/web")
        self.api.federate(self.friend, self.other, self.long)
        roots = [der for _, der in self.roots.values()]
        self.api.write_bundle("example.org", x509=b"".join((*self.domain.anchors, *roots)))
        self.api.revoke(Svid("", self.revoked.chain, b""), Svid("", (self.middle[1],), b""))
        return self

    def __exit__(self, *_: object) -> None:
        self.api.__exit__()

    @property
    def now(self) -> int:
        """Unix seconds."""
        return self.domain.now_unix_s

    def authorize(self, id: SpiffeId) -> Verdict:
        """Everybody but those of `other`."""
        return Denied("not authorised") if domain_of(id) == self.other.name else Allowed(id)

    def make(
        self, *changes: dict[str, Any], by: Key | None = None, domain: str | None = None
    ) -> Presented:
        """A chain: signers, highest first, then the leaf.

        Args:
            changes: to a proper one.
            by: what signs the first; our CA if left out.
            domain: in whose name; ours if left out.
        """
        *signers, leaf = changes
        recipes = [
            msgspec.structs.replace(SIGNER, **{"subject": f"signer {n}", **one})
            for n, one in enumerate(signers)
        ]
        recipes.append(msgspec.structs.replace(Recipe(), **leaf))
        return bake_chain(by or self.anchor, domain or self.domain.name, self.now, recipes)

    def presented(self, name: str, make: Callable[[World], Presented]) -> Presented:
        """What a case makes; the same one at each door, for a while."""
        made = self._made.get((name, make))
        if made is None or self.now - made[0] > FRESH_S:
            made = self._made[name, make] = self.now, make(self)
        return made[1]

    def _root(self, kind: str, changes: dict[str, Any]) -> Key:
        recipe = msgspec.structs.replace(SIGNER, **{"subject": f"root {kind}", **changes})
        return _key(bake(msgspec.structs.replace(recipe, pss=False), self.domain.name, self.now))

    def _signer(self, subject: str) -> Key:
        recipe = msgspec.structs.replace(SIGNER, subject=subject)
        return _key(bake(recipe, self.domain.name, self.now, self.anchor))

    def _crossed(self, old: Key) -> bytes:
        """The key and name of a root that is in the bundle, certified by another one."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        found = x509.load_der_x509_certificate(old[1])
        key, above = self.roots["P-384"]
        builder = (
            x509.CertificateBuilder()
            .subject_name(found.subject)
            .issuer_name(x509.load_der_x509_certificate(above).subject)
            .public_key(found.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(found.not_valid_before_utc)
            .not_valid_after(found.not_valid_after_utc)
        )
        for extension in found.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def _key(made: Presented) -> Key:
    return serialization.load_der_private_key(made.key, None), made.chain[0]
