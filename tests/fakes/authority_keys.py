"""Crypto of an authority without cryptography: signatures are keyed digests, keys are names."""

from __future__ import annotations

import hashlib
from random import Random

from x0tta6bl4.core.authority.rows import CaRow, Leaf, NewCa, NewJwtKey, ReadBundle
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain


class FakeKeys:
    """A CSR is `csr <name>`, a chain one text that says what was issued; draws from one seed."""

    def __init__(self, seed: str = "authority") -> None:
        self._random = Random(seed)
        self._serial = 0

    def issue(
        self,
        ca: CaRow,
        csr: bytes,
        id: SpiffeId,
        not_before_unix_s: int,
        not_after_unix_s: int,
        via: NodeName | None,
    ) -> Leaf:
        if not csr.startswith(b"csr "):
            raise BadInput("X0-TLS-008", "CSR without proof of possession")
        self._serial += 1
        text = f"{id} {not_before_unix_s} {not_after_unix_s} via {via} by {ca.id}"
        return Leaf((text.encode(),), f"{self._serial:x}")

    def new_ca(self, trust_domain: str, not_before_unix_s: int, not_after_unix_s: int) -> NewCa:
        name = self.random(8).hex()
        return NewCa(
            f"anchor {trust_domain} {name}".encode(),
            f"ca key {name}".encode(),
            point(name.encode()),
            name.encode(),
        )

    def crl(
        self,
        ca: CaRow,
        serials: tuple[str, ...],
        number: int,
        this_unix_s: int,
        next_unix_s: int,
    ) -> bytes:
        return f"{ca.id} {number} {this_unix_s} {next_unix_s} {' '.join(serials)}".encode()

    def new_jwt_key(self) -> NewJwtKey:
        name = self.random(8)
        return NewJwtKey(point(name), name)

    def mint(
        self,
        ca: CaRow,
        id: SpiffeId,
        audience: tuple[str, ...],
        issued_unix_s: int,
        end_unix_s: int,
    ) -> str:
        said = f"{id} {','.join(audience)} {issued_unix_s} {end_unix_s} {ca.jwt_key}"
        return f"{said} {sign(ca.jwt_private, said.encode()).hex()}"

    def read_bundle(self, document: bytes, trust_domain: TrustDomain) -> ReadBundle:
        """A bundle is `bundle <domain> <sequence> <hint>`."""
        word, domain, sequence, hint = (*document.decode().split(), "", "", "", "")[:4]
        if word != "bundle" or domain != trust_domain:
            raise BadInput("X0-BUN-006", "not a SPIFFE bundle")
        return ReadBundle(int(sequence), int(hint))

    def sign(self, ca: CaRow, data: bytes) -> bytes:
        return sign(ca.record_private, data)

    def verify(self, point: bytes, data: bytes, signature: bytes) -> bool:
        return verify(point, data, signature)

    def random(self, size_bytes: int) -> bytes:
        return self._random.randbytes(size_bytes)


def point(private: bytes) -> bytes:
    """65 bytes that stand for the public half."""
    return private.ljust(65, b"\x04")


def sign(private: bytes, data: bytes) -> bytes:
    """Good for `verify` with `point(private)`."""
    return hashlib.blake2b(data, key=private.ljust(65, b"\x04")[:64], digest_size=16).digest()


def verify(point: bytes, data: bytes, signature: bytes) -> bool:
    return hashlib.blake2b(data, key=point[:64], digest_size=16).digest() == signature
