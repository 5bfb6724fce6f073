"""What a Workload API server can do wrong.

A `Fault` is about one answer: the first of a call, or one that is pushed later.  The functions
below spoil a message and go into `Fault(change=...)`; what they return may also be bytes, which
are then sent as the message.

Source: SPIFFE Workload API sections 4.3 to 5.2 (SP-108 to SP-117); gRPC status codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from x0tta6bl4.sdk.testing.domain import Domain

Change: TypeAlias = Callable[[Any], Any]
"""Message (of `edge.workload_api.schema`) -> message or bytes."""


@final
class Fault(msgspec.Struct, frozen=True):
    """What happens instead of a proper answer.  Parts combine; they happen in this order."""

    delay_s: float = 0.0
    hang: bool = False
    """Never answer; the call stays open."""
    disconnect: bool = False
    """Cut the connection."""
    reset: bool = False
    """RST_STREAM."""
    code: str = ""
    """Name of a gRPC status, for example `UNAVAILABLE`, with which the call ends."""
    message: str = "injected"
    """Goes with `code`."""
    change: Change | None = None
    """Spoils the answer."""
    end: bool = False
    """End the stream after this answer as if all were well."""


# -------------------------------------------------------------------------------- X509SVIDResponse
def pem(answer: Any) -> Any:
    """Certificates as PEM instead of DER (SP-112)."""
    for svid in answer.svids:
        certificate = x509.load_der_x509_certificate(bytes(svid.x509_svid))
        svid.x509_svid = certificate.public_bytes(Encoding.PEM)
    return answer


def trailing(answer: Any) -> Any:
    """Bytes after the last certificate."""
    for svid in answer.svids:
        svid.x509_svid += b"\x00trailing"
    return answer


def foreign_key(answer: Any) -> Any:
    """A private key that belongs to another certificate."""
    key = Domain("elsewhere.test").svid().key
    for svid in answer.svids:
        svid.x509_svid_key = key
    return answer


def empty(field: str) -> Change:
    """Leave a field of every SVID empty, for example `bundle` (SP-110)."""

    def change(answer: Any) -> Any:
        for svid in answer.svids:
            svid.ClearField(field)
        return answer

    return change


def other_id(id: str) -> Change:
    """Say another ID than the certificate does."""

    def change(answer: Any) -> Any:
        for svid in answer.svids:
            svid.spiffe_id = id
        return answer

    return change


def no_svids(answer: Any) -> Any:
    """An answer without a single SVID (SP-114)."""
    answer.ClearField("svids")
    return answer


def same_hints(answer: Any) -> Any:
    """Every SVID with the same hint (SP-115)."""
    for svid in answer.svids:
        svid.hint = "twice"
    return answer


def foreign_bundle(answer: Any) -> Any:
    """The CA of another trust domain where the own one has to be."""
    (anchor,) = Domain("elsewhere.test").anchors
    for svid in answer.svids:
        svid.bundle = anchor
    return answer


def huge(size_bytes: int) -> Change:
    """An answer so large, most of it federated bundles that are none."""

    def change(answer: Any) -> Any:
        answer.federated_bundles["huge.test"] = bytes(size_bytes)
        return answer

    return change


def garbage(answer: Any) -> bytes:
    """Bytes that are no message."""
    return b"\xff\xff\xff\xff not protobuf"
