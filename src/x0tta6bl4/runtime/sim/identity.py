"""Identities of the simulator: cheap, but a forger has no key.

A leaf is its fields and a tag under the CA's secret; the private key of a leaf is another tag over
it, so that whoever knows the CA's secret (only the functions of this module) can verify.  SVIDs,
records and endpoints are judged by the same rules as the real ones: tag of the CA, validity, who
signed, and no record may outlive its signer.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.wire.ids import NodeName, SpiffeId, TrustDomain, node_id
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import Endpoint, Record, RecordKey, endpoint_signed_part, signed_part

DOMAIN: Final = TrustDomain("sim.test")
_TAG: Final = 16
_KNOWN_MAX: Final = 100_000


@final
class Leaf(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a simulated certificate says."""

    id: SpiffeId
    via: str
    """The node it was issued to."""
    issued_unix_s: int
    not_after_unix_s: int
    serial: int


class Realm:
    """The CA and the record key of a simulated trust domain.

    Args:
        seed: makes its secrets.
    """

    __slots__ = ("_known", "_leaves", "_secret", "_serial", "record_key")

    def __init__(self, seed: object) -> None:
        self._secret = blake2b(f"{seed}/ca".encode(), digest_size=32).digest()
        self._serial = 0
        self._known: dict[Record, Verdict] = {}
        self._leaves: dict[bytes, Leaf | None] = {}
        self.record_key = RecordKey("key-1", blake2b(b"point", key=self._secret).digest())

    # ------------------------------------------------------------------------------ the authority
    def svid(self, id: SpiffeId, via: str, issued_unix_s: int, ttl_s: int) -> SvidItem:
        """Issue an SVID to a node."""
        self._serial += 1
        leaf = Leaf(id, via, issued_unix_s, issued_unix_s + ttl_s, self._serial)
        body = msgspec.msgpack.encode(leaf)
        data = body + self._tag(body)
        return SvidItem(id, (data,), self._key(data), leaf.not_after_unix_s)

    def node_svid(self, node: str, issued_unix_s: int, ttl_s: int) -> SvidItem:
        """Issue a node's own SVID."""
        return self.svid(node_id(DOMAIN, NodeName(node)), node, issued_unix_s, ttl_s)

    def sign_authority(self, record: Record) -> Record:
        """Sign a record of the authority with its record key."""
        named = msgspec.structs.replace(record, signer=(self.record_key.id.encode(),))
        signature = self.sign(self._key(self.record_key.point), signed_part(named))
        return msgspec.structs.replace(named, signature=signature)

    # ------------------------------------------------------------------------------ everybody
    def sign(self, key: bytes, data: bytes) -> bytes:
        """Sign with a private key."""
        return blake2b(data, key=key[:32], digest_size=_TAG).digest()

    def leaf(self, data: bytes) -> Leaf | None:
        """Fields of a leaf that the CA has issued; None for any other."""
        if data in self._leaves:
            return self._leaves[data]
        if len(self._leaves) >= _KNOWN_MAX:
            self._leaves.clear()
        body = data[:-_TAG]
        good = len(data) > _TAG and self._tag(body) == data[-_TAG:]
        leaf = msgspec.msgpack.decode(body, type=Leaf) if good else None
        self._leaves[data] = leaf
        return leaf

    def verify(self, record: Record, unix_s: int) -> Verdict:
        """Judge a node record: chain, signature, and not beyond the leaf's notAfter."""
        verdict = self._known.get(record)
        if verdict is None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            verdict = self._known[record] = self._verified(record)
        leaf = self.leaf(record.signer[0]) if type(verdict) is Allowed else None
        if leaf is not None and leaf.not_after_unix_s <= unix_s:
            return Denied("expired")
        return verdict

    def _verified(self, record: Record) -> Verdict:
        leaf = self.leaf(record.signer[0]) if record.signer else None
        if leaf is None:
            return Denied("unknown issuer")
        if record.expires_unix_s > leaf.not_after_unix_s:
            return Denied("outlives its signer")
        signature = self.sign(self._key(record.signer[0]), signed_part(record))
        return Allowed(leaf.id) if signature == record.signature else Denied("signature")

    def verify_key(self, record: Record, point: bytes) -> Verdict:
        """Judge an authority record by the point of a record key."""
        signature = self.sign(self._key(point), signed_part(record))
        if signature != record.signature:
            return Denied("signature")
        return Allowed(SpiffeId(f"spiffe://{DOMAIN}/authority/sim"))

    def verify_endpoint(self, node: str, endpoint: Endpoint, unix_s: int) -> Verdict:
        """Judge an endpoint: chain and signature."""
        leaf = self.leaf(endpoint.chain[0]) if endpoint.chain else None
        if leaf is None:
            return Denied("unknown issuer")
        if leaf.not_after_unix_s <= unix_s or endpoint.expires_unix_s > leaf.not_after_unix_s:
            return Denied("expired")
        signed = self.sign(self._key(endpoint.chain[0]), endpoint_signed_part(node, endpoint))
        return Allowed(leaf.id) if signed == endpoint.signature else Denied("signature")

    def _tag(self, body: bytes) -> bytes:
        return blake2b(body, key=self._secret, digest_size=_TAG, person=b"leaf").digest()

    def _key(self, public: bytes) -> bytes:
        return blake2b(public, key=self._secret, digest_size=32, person=b"private").digest()
