"""Messages and methods of the SPIFFE Workload API.

Numbers and names are those of the specification's `workloadapi.proto`; `proto/workload.proto` says
the same for other languages (a test compares them).

Source: SPIFFE Workload API, sections 5 to 7 and appendix A; WIT-SVID profile as of 2026-07.
"""

from __future__ import annotations

from typing import Any, Final

from x0tta6bl4.edge.workload_api.pool import STRUCT, Pool

SERVICE: Final = "SpiffeWorkloadAPI"
FILE: Final = "workload.proto"
METADATA: Final = ("workload.spiffe.io", "true")
"""Must stand on every call (SPIFFE Workload Endpoint, section 3)."""
HINT_BYTES_MAX: Final = 1024

MESSAGES: Final[dict[str, tuple[str, ...]]] = {
    "X509SVIDRequest": (),
    "X509SVIDResponse": (
        "repeated X509SVID svids = 1",
        "repeated bytes crl = 2",
        "map<string, bytes> federated_bundles = 3",
    ),
    "X509SVID": (
        "string spiffe_id = 1",
        "bytes x509_svid = 2",
        "bytes x509_svid_key = 3",
        "bytes bundle = 4",
        "string hint = 5",
    ),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (
        "repeated bytes crl = 1",
        "map<string, bytes> bundles = 2",
    ),
    "JWTSVIDRequest": (
        "repeated string audience = 1",
        "string spiffe_id = 2",
    ),
    "JWTSVIDResponse": ("repeated JWTSVID svids = 1",),
    "JWTSVID": (
        "string spiffe_id = 1",
        "string svid = 2",
        "string hint = 3",
    ),
    "JWTBundlesRequest": (),
    "JWTBundlesResponse": ("map<string, bytes> bundles = 1",),
    "ValidateJWTSVIDRequest": (
        "string audience = 1",
        "string svid = 2",
    ),
    "ValidateJWTSVIDResponse": (
        "string spiffe_id = 1",
        f"{STRUCT} claims = 2",
    ),
    "WITSVIDRequest": ("string spiffe_id = 1",),
    "WITSVIDResponse": ("repeated WITSVID svids = 1",),
    "WITSVID": (
        "string spiffe_id = 1",
        "string wit_svid = 2",
        "string wit_svid_key = 3",
        "string hint = 4",
    ),
    "WITBundlesRequest": (),
    "WITBundlesResponse": ("map<string, string> bundles = 1",),
}
RPCS: Final[dict[str, tuple[str, str]]] = {
    "FetchX509SVID": ("X509SVIDRequest", "stream X509SVIDResponse"),
    "FetchX509Bundles": ("X509BundlesRequest", "stream X509BundlesResponse"),
    "FetchJWTSVID": ("JWTSVIDRequest", "JWTSVIDResponse"),
    "FetchJWTBundles": ("JWTBundlesRequest", "stream JWTBundlesResponse"),
    "ValidateJWTSVID": ("ValidateJWTSVIDRequest", "ValidateJWTSVIDResponse"),
    "FetchWITSVID": ("WITSVIDRequest", "stream WITSVIDResponse"),
    "FetchWITBundles": ("WITBundlesRequest", "stream WITBundlesResponse"),
}

POOL: Final = Pool()
_MADE: Final = POOL.add(FILE, "", MESSAGES, {SERVICE: RPCS})

X509SVIDRequest: Any = _MADE["X509SVIDRequest"]
X509SVIDResponse: Any = _MADE["X509SVIDResponse"]
X509SVID: Any = _MADE["X509SVID"]
X509BundlesRequest: Any = _MADE["X509BundlesRequest"]
X509BundlesResponse: Any = _MADE["X509BundlesResponse"]
JWTSVIDRequest: Any = _MADE["JWTSVIDRequest"]
JWTSVIDResponse: Any = _MADE["JWTSVIDResponse"]
JWTSVID: Any = _MADE["JWTSVID"]
JWTBundlesRequest: Any = _MADE["JWTBundlesRequest"]
JWTBundlesResponse: Any = _MADE["JWTBundlesResponse"]
ValidateJWTSVIDRequest: Any = _MADE["ValidateJWTSVIDRequest"]
ValidateJWTSVIDResponse: Any = _MADE["ValidateJWTSVIDResponse"]
WITSVIDRequest: Any = _MADE["WITSVIDRequest"]
WITSVIDResponse: Any = _MADE["WITSVIDResponse"]
WITSVID: Any = _MADE["WITSVID"]
WITBundlesRequest: Any = _MADE["WITBundlesRequest"]
WITBundlesResponse: Any = _MADE["WITBundlesResponse"]

METHODS: Final[dict[str, tuple[Any, Any, bool]]] = {
    name: (_MADE[request], _MADE[response.removeprefix("stream ")], response.startswith("stream "))
    for name, (request, response) in RPCS.items()
}
"""Method -> request class, response class, whether responses are a stream."""


def path(method: str) -> str:
    """HTTP/2 path of a method."""
    return f"/{SERVICE}/{method}"
