"""What the Workload API says, believed only after a look at it.

A message is taken whole or not at all: one SVID that is not what it says (an incomplete one, a key
that does not fit, a chain that its own bundle does not verify) discards the message, for to leave
it out could silently make another identity the default one.  A federated bundle that is malformed
only makes its trust domain unknown.

Source: SPIFFE_Workload_API.md sections 4 to 7 (SP-105, SP-108, SP-110, SP-112 to SP-115, SP-124).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from x0tta6bl4.core.identity.rules import ANYBODY, SPIFFE
from x0tta6bl4.core.machine import Allowed, Denied, Value
from x0tta6bl4.edge.tls.judge import Clock, Judge, allow_all
from x0tta6bl4.edge.tls.x509 import CHAIN_MAX, Svid, load_any_key, parse, public_bytes
from x0tta6bl4.wire.errors import BadId, BadInput, BadMessage
from x0tta6bl4.wire.ids import TrustDomain, domain_of, path_of, spiffe_id, trust_domain

SVIDS_MAX: Final = 4_096
DOMAINS_MAX: Final = 1_024
ANCHORS_MAX: Final = 64
"""CA certificates of one trust domain."""
HINT_BYTES_MAX: Final = 1_024

Bundles = Mapping[TrustDomain, tuple[bytes, ...]]
"""CA certificates, DER, of each trust domain; never merged."""


@final
class X509Set(Value, frozen=True):
    """The full set of one message: it replaces all that came before."""

    svids: tuple[Svid, ...]
    """The default identity first (SP-124)."""
    bundles: Bundles
    crls: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = ()
    """What in the message was left out, and why."""


@final
class BundleSet(Value, frozen=True):
    """X.509 bundles without an identity."""

    bundles: Bundles
    crls: tuple[bytes, ...] = ()
    problems: tuple[str, ...] = ()


Seen = dict[tuple[bytes, bytes, bytes], Svid]
"""(chain, key, bundle) as they came -> the SVID: what has not changed is not judged again."""


def read_x509(message: Any, clock: Clock, seen: Seen) -> X509Set:
    """Read an X509SVIDResponse.

    Args:
        message: parsed protobuf.
        clock: wall time, microseconds.
        seen: what the last message had; replaced by what this one has.
    Raises:
        BadMessage: a mandatory field is missing or an SVID is not good; the message is to be
            discarded.
    """
    if not message.svids:
        raise _bad("it has no SVID")
    if len(message.svids) > SVIDS_MAX:
        raise _bad(f"it has more than {SVIDS_MAX} SVIDs")
    judges: dict[bytes, tuple[tuple[bytes, ...], Judge]] = {}
    bundles: dict[TrustDomain, tuple[bytes, ...]] = {}
    now: Seen = {}
    svids: list[Svid] = []
    problems: list[str] = []
    hints: set[str] = set()
    for given in message.svids:
        for field in ("spiffe_id", "x509_svid", "x509_svid_key", "bundle"):
            if not getattr(given, field):
                raise _bad(f"an SVID has no {field}")
        key = (given.x509_svid, given.x509_svid_key, given.bundle)
        svid = seen.get(key)
        if svid is None or svid.id != given.spiffe_id or svid.hint != given.hint:
            svid = _svid(given, judges, clock)
        now[key] = svid
        anchors, _ = _own(given.bundle, domain_of(svid.id), judges, clock)
        bundles.setdefault(domain_of(svid.id), anchors)
        if svid.hint and svid.hint in hints:
            problems.append(f"hint {svid.hint[:80]!r} twice: the first one counts")
            continue
        hints.add(svid.hint)
        svids.append(svid)
    seen.clear()
    seen.update(now)
    _federated(message.federated_bundles, bundles, problems)
    return X509Set(tuple(svids), bundles, tuple(message.crl), tuple(problems))


def read_x509_bundles(message: Any) -> BundleSet:
    """Read an X509BundlesResponse.

    Raises:
        BadMessage: it has no bundle at all.
    """
    bundles: dict[TrustDomain, tuple[bytes, ...]] = {}
    problems: list[str] = []
    if not message.bundles:
        raise _bad("it has no bundle")
    _federated(message.bundles, bundles, problems)
    return BundleSet(bundles, tuple(message.crl), tuple(problems))


def split(data: bytes, count_max: int) -> tuple[bytes, ...]:
    """Certificates that stand one behind the other, DER (SP-112).

    Raises:
        BadMessage: not a row of DER elements, or too many.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data):
        end = _element_end(data, at)
        if end > len(data) or len(found) >= count_max:
            raise _bad(f"it has something else than at most {count_max} DER certificates")
        found.append(data[at:end])
        at = end
    return tuple(found)


def domain_name(text: str) -> TrustDomain:
    """Trust domain from the key of a map: its name or its ID.

    Raises:
        BadId: neither, or an ID with a path.
    """
    if "://" not in text:
        return trust_domain(text)
    id = spiffe_id(text)
    if path_of(id):
        raise BadId("X0-SDK-003", f"{text[:80]!r} is no ID of a trust domain", "it has no path")
    return domain_of(id)


# ---------------------------------------------------------------------------------------- details
_Judges = dict[bytes, tuple[tuple[bytes, ...], Judge]]


def _svid(given: Any, judges: _Judges, clock: Clock) -> Svid:
    try:
        id = spiffe_id(given.spiffe_id)
        chain = split(given.x509_svid, CHAIN_MAX)
        leaf = parse(chain[0])
        key = load_any_key(given.x509_svid_key)
    except BadInput as error:
        raise _bad(f"SVID {given.spiffe_id[:80]!r}: {error.what}") from None
    if public_bytes(key) != public_bytes(leaf):
        raise _bad(f"the key of {id} is not that of its certificate")
    if len(given.hint.encode()) > HINT_BYTES_MAX:
        raise _bad(f"the hint of {id} is longer than {HINT_BYTES_MAX} bytes")
    _, judge = _own(given.bundle, domain_of(id), judges, clock)
    judgement = judge.judge(chain, ANYBODY)
    if type(judgement.verdict) is Denied:
        raise _bad(f"the SVID of {id} is refused: {judgement.verdict.reason}")
    if judgement.verdict != Allowed(id):
        raise _bad(f"the SVID of {id} is that of somebody else")
    return Svid(id, chain, given.x509_svid_key, judgement.not_after_unix_s, given.hint)


def _own(
    bundle: bytes, domain: TrustDomain, judges: _Judges, clock: Clock
) -> tuple[tuple[bytes, ...], Judge]:
    """The CAs in the bundle that came with an SVID, and their judge; once per message."""
    key = domain.encode() + b"\0" + bundle
    made = judges.get(key)
    if made is None:
        try:
            anchors = split(bundle, ANCHORS_MAX)
            made = judges[key] = anchors, Judge(domain, anchors, allow_all, clock, SPIFFE)
        except BadInput as error:
            raise _bad(f"the bundle of {domain}: {error.what}") from None
    return made


def _federated(
    given: Mapping[str, bytes], into: dict[TrustDomain, tuple[bytes, ...]], problems: list[str]
) -> None:
    """Add bundles of other trust domains; what is malformed is left out: unknown is untrusted."""
    for name in sorted(given):
        try:
            domain = domain_name(name)
            anchors = split(given[name], ANCHORS_MAX)
            for anchor in anchors:
                parse(anchor)
        except BadInput as error:
            problems.append(f"bundle of {name[:80]!r} left out: {error.what}")
            continue
        if domain in into:
            problems.append(f"bundle of {domain} twice: the first one counts")
        elif len(into) >= DOMAINS_MAX:
            problems.append(f"bundle of {domain} left out: more than {DOMAINS_MAX}")
        else:
            into[domain] = anchors


def _element_end(data: bytes, at: int) -> int:
    """Where the DER SEQUENCE that starts here ends; beyond the data if it is none."""
    beyond = len(data) + 1
    if len(data) < at + 2 or data[at] != 0x30:
        return beyond
    length = data[at + 1]
    if length < 0x80:
        return at + 2 + length
    count = length & 0x7F
    if not 0 < count <= 4 or len(data) < at + 2 + count:
        return beyond
    return at + 2 + count + int.from_bytes(data[at + 2 : at + 2 + count], "big")


def _bad(what: str) -> BadMessage:
    return BadMessage(
        "X0-SDK-014", f"message of the Workload API discarded: {what}", "see the log of the agent"
    )
