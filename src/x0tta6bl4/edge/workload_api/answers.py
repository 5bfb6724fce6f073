"""Answers of the Workload API, made of a snapshot.

Source: SPIFFE Workload API, sections 5.2, 6.2 and 7.1: full sets in every message (SP-105), keys of
bundles are the IDs of trust domains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.edge.workload_api.words import Snapshot, TrustBundle


def x509_svids(snapshot: Snapshot) -> bytes:
    """X509SVIDResponse."""
    bundle = b"".join(snapshot.own.x509)
    made = schema.X509SVIDResponse(
        svids=[
            schema.X509SVID(
                spiffe_id=svid.id,
                x509_svid=b"".join(svid.chain),
                x509_svid_key=svid.key,
                bundle=bundle,
                hint=svid.hint,
            )
            for svid in snapshot.svids
        ],
        crl=snapshot.crl,
        federated_bundles={_id(b): b"".join(b.x509) for b in snapshot.federated if b.x509},
    )
    return _bytes(made)


def x509_bundles(snapshot: Snapshot) -> bytes:
    """X509BundlesResponse; our own is always there (SP-117)."""
    bundles = {_id(b): b"".join(b.x509) for b in snapshot.federated if b.x509}
    bundles[_id(snapshot.own)] = b"".join(snapshot.own.x509)
    return _bytes(schema.X509BundlesResponse(crl=snapshot.crl, bundles=bundles))


def jwt_bundles(snapshot: Snapshot) -> bytes:
    """JWTBundlesResponse; our own is always there (SP-120)."""
    bundles = {_id(b): b.jwks for b in snapshot.federated if b.jwks}
    bundles[_id(snapshot.own)] = snapshot.own.jwks or b'{"keys":[]}'
    return _bytes(schema.JWTBundlesResponse(bundles=bundles))


def wit_svids(snapshot: Snapshot, id: str = "") -> bytes:
    """WITSVIDResponse, of one ID or of all."""
    made = schema.WITSVIDResponse(
        svids=[
            schema.WITSVID(
                spiffe_id=svid.id, wit_svid=svid.token, wit_svid_key=svid.key, hint=svid.hint
            )
            for svid in snapshot.wit or ()
            if id in ("", svid.id)
        ]
    )
    return _bytes(made)


def wit_bundles(snapshot: Snapshot) -> bytes:
    """WITBundlesResponse; our own is always there."""
    bundles = {_id(b): b.wit for b in snapshot.federated if b.wit}
    bundles[_id(snapshot.own)] = snapshot.own.wit or '{"keys":[]}'
    return _bytes(schema.WITBundlesResponse(bundles=bundles))


STREAMS: Final[dict[str, Callable[[Snapshot], bytes]]] = {
    "FetchX509SVID": x509_svids,
    "FetchX509Bundles": x509_bundles,
    "FetchJWTBundles": jwt_bundles,
    "FetchWITSVID": wit_svids,
    "FetchWITBundles": wit_bundles,
}
"""Method -> what its streams say of a snapshot."""


def _id(bundle: TrustBundle) -> str:
    return f"spiffe://{bundle.trust_domain}"


def _bytes(made: object) -> bytes:
    # In a fixed order, so that the same set is the same bytes and is not sent again.
    return bytes(made.SerializeToString(deterministic=True))  # type: ignore[attr-defined]
