"""SPIFFE IDs, trust domains and node names.

Source: SPIFFE-ID.md sections 2.1 to 2.4 (SP-001 to SP-016).  The scheme and the trust domain
compare without regard to case and are normalised here; nothing in upper case is ever emitted.
"""

from __future__ import annotations

import re
from typing import NewType

from x0tta6bl4.wire.errors import BadId

SpiffeId = NewType("SpiffeId", str)
"""A valid, normalised SPIFFE ID: `spiffe://trust.domain/path`; the path may be missing."""

TrustDomain = NewType("TrustDomain", str)
NodeName = NewType("NodeName", str)

ID_BYTES_MAX = 2048
TRUST_DOMAIN_BYTES_MAX = 255
NODE_NAME_BYTES_MAX = 63

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+\Z")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+\Z")
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")


def trust_domain(text: str) -> TrustDomain:
    """Parse a trust domain name.

    Raises:
        BadId: empty, too long, or with a character outside `[a-z0-9._-]`.
    """
    name = text.lower()
    if not text.isascii() or not _TRUST_DOMAIN.match(name):
        raise BadId("X0-ID-001", f"{text[:80]!r} is no trust domain", "use [a-z0-9._-] only")
    if len(name) > TRUST_DOMAIN_BYTES_MAX:
        raise BadId("X0-ID-001", "trust domain is longer than 255 bytes")
    return TrustDomain(name)


def spiffe_id(text: str) -> SpiffeId:
    """Parse and normalise a SPIFFE ID.

    Raises:
        BadId: not a SPIFFE ID in the sense of SPIFFE-ID.md section 2.
    """
    if len(text) > ID_BYTES_MAX or not text.isascii():
        raise BadId("X0-ID-002", f"{text[:80]!r} is no SPIFFE ID", "at most 2048 ASCII bytes")
    if text[:9].lower() != "spiffe://":
        raise BadId("X0-ID-002", f"{text[:80]!r} is no SPIFFE ID", "it starts with spiffe://")
    host, slash, path = text[9:].partition("/")
    domain = trust_domain(host)
    if slash:
        for segment in path.split("/"):
            if not _SEGMENT.match(segment) or segment in (".", ".."):
                raise BadId(
                    "X0-ID-003",
                    f"{text[:80]!r} has a bad path segment",
                    "segments are [a-zA-Z0-9._-]+ and neither '.' nor '..'",
                )
    return SpiffeId(f"spiffe://{domain}{slash}{path}")


def node_name(text: str) -> NodeName:
    """Parse a node name: a DNS label in lower case, so that it can stand in an ID and a name.

    Raises:
        BadId: anything else.
    """
    if len(text) > NODE_NAME_BYTES_MAX or not text.isascii() or not _NODE.match(text):
        raise BadId(
            "X0-ID-004",
            f"{text[:80]!r} is no node name",
            "use 1 to 63 of [a-z0-9-], no '-' at either end",
        )
    return NodeName(text)


def domain_of(id: SpiffeId) -> TrustDomain:
    """Trust domain of a parsed SPIFFE ID."""
    return TrustDomain(id[9:].partition("/")[0])


def path_of(id: SpiffeId) -> str:
    """Path of a parsed SPIFFE ID, without the leading slash; empty where it has none."""
    return id[9:].partition("/")[2]


def node_id(domain: TrustDomain, name: NodeName) -> SpiffeId:
    """SPIFFE ID of a node."""
    return SpiffeId(f"spiffe://{domain}/node/{name}")


def node_of(id: SpiffeId) -> NodeName | None:
    """Node name of a node's ID; None for every other ID."""
    first, slash, rest = path_of(id).partition("/")
    return NodeName(rest) if first == "node" and slash and _NODE.match(rest) else None


def is_authority(id: SpiffeId) -> bool:
    """Whether the ID is reserved for an authority (`/authority/...`)."""
    return path_of(id).startswith("authority/")


def is_reserved(id: SpiffeId) -> bool:
    """Whether no registration entry may name this ID: `/node/...`, `/authority/...`, no path."""
    return path_of(id).partition("/")[0] in ("", "node", "authority")
