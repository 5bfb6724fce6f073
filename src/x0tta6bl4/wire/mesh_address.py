"""IPv6 addresses of nodes inside the mesh: made from trust domain and node name, given by nobody.

    fd || hash of the trust domain, 40 bits | subnet 0, 16 bits | hash of the node name, 64 bits

    hash of X = the first bits of SHA-256(LABEL || X), X in ASCII as `wire.ids` normalises it

Everybody computes the address of everybody, so nothing has to be looked up or believed.  A trust
domain is a site in the sense of RFC 4193: its prefix is random enough that two domains on one
network meet with a chance of 2^-40.  In the first octet of the hash of the name the lowest three
bits are 100: neither the anycast address of the subnet router (RFC 4291 section 2.6.1) nor an
interface identifier of RFC 5453 can come out.  Among 65,536 names two share the remaining 61 bits
with a chance of 2^-30; the authority refuses the second (X0-AUT-028).

Where the subnet is the hash of a node name instead (16 bits, 0 becomes 1), the address stands for a
link: it means something to one node only, which sends what arrives there on to that neighbour.

Source: RFC 4193 sections 3.1 and 3.2; End.X of RFC 8986 section 4.2 for addresses of links.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv6Address
from typing import Final

from x0tta6bl4.wire.ids import NodeName, TrustDomain

PREFIX_BYTES: Final = 6
MESH_PORT: Final = 8464
"""Where proxies take circuits at mesh addresses, by TCP; hellos of the kernel go to it by UDP."""
_PREFIX_LABEL: Final = b"x0tta6bl4 mesh prefix 1\0"
_HOST_LABEL: Final = b"x0tta6bl4 mesh host 1\0"
_LINK_LABEL: Final = b"x0tta6bl4 mesh link 1\0"


def mesh_prefix(domain: TrustDomain) -> bytes:
    """The first 48 bits of all mesh addresses of a trust domain."""
    return b"\xfd" + hashlib.sha256(_PREFIX_LABEL + domain.encode()).digest()[:5]


def mesh_host(name: NodeName) -> bytes:
    """The last 64 bits of a node's mesh address, the same in every trust domain."""
    found = hashlib.sha256(_HOST_LABEL + name.encode()).digest()
    return bytes([found[0] & 0xF8 | 0x04]) + found[1:8]


def mesh_address(domain: TrustDomain, name: NodeName) -> IPv6Address:
    """Mesh address of a node."""
    return IPv6Address(mesh_prefix(domain) + bytes(2) + mesh_host(name))


def is_node(address: bytes) -> bool:
    """Whether a mesh address, 16 bytes, is that of a node; else it is that of a link."""
    return address[PREFIX_BYTES:8] == bytes(2)


def link_address(domain: TrustDomain, node: NodeName, neighbour: NodeName) -> IPv6Address:
    """Address at `node` of its link to a neighbour; at the neighbour itself, of any link to it.

    Of a node's neighbours two may share the 16 bits: only one of them can be meant then.
    """
    subnet = hashlib.sha256(_LINK_LABEL + neighbour.encode()).digest()[:2]
    if subnet == b"\0\0":
        subnet = b"\0\1"
    return IPv6Address(mesh_prefix(domain) + subnet + mesh_host(node))
