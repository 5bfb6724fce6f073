"""Identities for services: SVIDs from the Workload API, always the newest, and TLS over them.

    async with X509Source() as source:
        await source.wait()
        async with await dial("127.0.0.1:8443", source, authorize=member_of("example.org")) as peer:
            peer.writer.write(b"hello")

Everything is asyncio first; `sdk.identity.blocking` has the same names for threads.  Names are
loaded when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x0tta6bl4.edge.jwt.svid import JwtSvid
    from x0tta6bl4.edge.tls.x509 import Svid
    from x0tta6bl4.sdk.identity.authorize import Authorizer, anyone, exact, matching, member_of
    from x0tta6bl4.sdk.identity.auto_renew import enable_auto_renew
    from x0tta6bl4.sdk.identity.client import WorkloadClient
    from x0tta6bl4.sdk.identity.jwt import JWTSource, fetch_jwt_svids, validate_jwt
    from x0tta6bl4.sdk.identity.lifetime import validate_certificate
    from x0tta6bl4.sdk.identity.source import BundleSource, X509Source
    from x0tta6bl4.sdk.identity.tls import (
        Connection,
        Listener,
        dial,
        listen,
        register,
        ssl_context,
        stdlib_context,
        verify_peer,
    )

__all__ = [
    "WorkloadClient",
    "X509Source",
    "JWTSource",
    "BundleSource",
    "Svid",
    "JwtSvid",
    "listen",
    "dial",
    "verify_peer",
    "register",
    "ssl_context",
    "stdlib_context",
    "Connection",
    "Listener",
    "Authorizer",
    "exact",
    "member_of",
    "matching",
    "anyone",
    "fetch_jwt_svids",
    "validate_jwt",
    "enable_auto_renew",
    "validate_certificate",
]

_IDENTITY = "x0tta6bl4.sdk.identity."
_WHERE = {
    "WorkloadClient": _IDENTITY + "client",
    "X509Source": _IDENTITY + "source",
    "BundleSource": _IDENTITY + "source",
    "JWTSource": _IDENTITY + "jwt",
    "fetch_jwt_svids": _IDENTITY + "jwt",
    "validate_jwt": _IDENTITY + "jwt",
    "Svid": "x0tta6bl4.edge.tls.x509",
    "JwtSvid": "x0tta6bl4.edge.jwt.svid",
    "listen": _IDENTITY + "tls",
    "dial": _IDENTITY + "tls",
    "verify_peer": _IDENTITY + "tls",
    "register": _IDENTITY + "tls",
    "ssl_context": _IDENTITY + "tls",
    "stdlib_context": _IDENTITY + "tls",
    "Connection": _IDENTITY + "tls",
    "Listener": _IDENTITY + "tls",
    "Authorizer": _IDENTITY + "authorize",
    "exact": _IDENTITY + "authorize",
    "member_of": _IDENTITY + "authorize",
    "matching": _IDENTITY + "authorize",
    "anyone": _IDENTITY + "authorize",
    "enable_auto_renew": _IDENTITY + "auto_renew",
    "validate_certificate": _IDENTITY + "lifetime",
}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used."""
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(where), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
