"""What a command says to a node's agent over `agent.sock`, and what it hears.

Frames are those of `codec`, at most ADMIN_FRAME_BYTES_MAX.  One request, one answer; only `Watch`
is answered by a stream, until the asker closes.  `Refusal` may answer anything.
"""

from __future__ import annotations

from typing import Final, final

import msgspec

from x0tta6bl4.wire.codec import Reader
from x0tta6bl4.wire.messages import Message

ADMIN_VERSION: Final = 1
ADMIN_FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
EVENTS_MAX: Final = 64
"""Events that a status carries, the newest last."""
SESSIONS_MAX: Final = 256
"""Sessions and paths that a status carries; `sessions_total` counts all."""
WATCH_MS_MIN: Final = 100


# ------------------------------------------------------------------ requests
@final
class GetStatus(Message, frozen=True):
    """How is this node?  Answer: `Status`."""


@final
class GetPath(Message, frozen=True):
    """Which way from node `source` to node, name or ID `target`?  Answer: `PathAnswer`."""

    source: str
    """Empty: this node."""
    target: str


@final
class GetCheck(Message, frozen=True):
    """What is wrong here?  Answer: `CheckAnswer`."""


@final
class GetMetrics(Message, frozen=True):
    """Prometheus text of agent and proxy.  Answer: `Text`."""


@final
class GetSupport(Message, frozen=True):
    """What a support bundle has of this node, redacted.  Answer: `Support`."""


@final
class Explain(Message, frozen=True):
    """Would this caller get through to this target?  Answer: `Explanation`."""

    source: str
    target: str
    """SPIFFE ID, or a service name."""


@final
class ExplainDenied(Message, frozen=True):
    """Why has no program here this identity?  Answer: `CheckAnswer`."""

    id: str


@final
class Renew(Message, frozen=True):
    """Renew SVIDs now, before half of their life is over.  Answer: `Fine`, once they are in use."""

    id: str = ""
    """One SPIFFE ID; empty: all of this node."""


@final
class Drain(Message, frozen=True):
    """No transit, no new streams; then `Fine` when the last stream has ended or time is up."""

    timeout_ms: int = 60_000


@final
class Stop(Message, frozen=True):
    """Stop agent and proxy.  Answer: `Fine`, then the socket closes."""


@final
class Watch(Message, frozen=True):
    """Send a `Status` now and then every `interval_ms`, until I close."""

    interval_ms: int = 1000


AdminRequest = (
    GetStatus
    | GetPath
    | GetCheck
    | GetMetrics
    | GetSupport
    | Explain
    | ExplainDenied
    | Renew
    | Drain
    | Stop
    | Watch
)


# ------------------------------------------------------------------ parts of a status
@final
class AuthorityView(Message, frozen=True):
    """The authority as this node sees it."""

    address: str = ""
    """Empty: reached only through other nodes."""
    connected: bool = False
    via: tuple[str, ...] = ()
    """Nodes that carry the connection; empty: direct."""
    heard_age_ms: int = -1
    """Age of its newest signed heartbeat; -1: none heard yet."""
    clock_offset_ms: int = 0
    """Its clock minus ours, as of the last connection."""
    revocation_sequence: int = 0
    error: str = ""
    """Why the last attempt failed; empty: it did not."""
    away: tuple[str, ...] = ()
    """Addresses of authorities that did not answer when they were tried last."""


@final
class LinkView(Message, frozen=True):
    """One configured neighbour."""

    node: str
    state: str
    """`up`, `suspected`, `down` or `connecting`."""
    rtt_us: int = 0
    loss_ppm: int = 0
    udp: bool = True
    """Hellos by UDP; false: over TCP, because UDP does not get through."""
    agent_alive: bool = True
    since_ms: int = 0
    reason: str = ""
    group: str = ""
    """Key exchange of the connection, e.g. `X25519MLKEM768`; empty: none is up."""
    signature: str = ""
    """How the neighbour has signed its handshake, e.g. `ecdsa_secp256r1_sha256`, `mldsa65`."""


@final
class MemberView(Message, frozen=True):
    """A node as this node's map has it."""

    node: str
    generation: int
    links: int
    """As it publishes them; one counts only if the other end says so, too."""
    endpoints: tuple[str, ...] = ()
    stub: bool = False
    expires_unix_s: int = 0


@final
class PathView(Message, frozen=True):
    """Best paths to one node, from this node to it inclusive, best first."""

    node: str
    paths: tuple[tuple[str, ...], ...]
    costs: tuple[int, ...] = ()
    """In 1/16 ms, one per path."""
    disjoint: bool = True
    """Whether the second path shares no relay and no link with the first."""


@final
class ServiceView(Message, frozen=True):
    """A workload that this node has or can reach."""

    name: str
    """Service name without `.mesh`; empty: none points to the ID."""
    id: str
    address: str = ""
    """Where it listens on this node; empty: it is on others."""
    nodes: tuple[str, ...] = ()
    """Nodes that announce it, this one included."""
    proxy_header: bool = False
    exposed: bool = False
    """Its listener takes connections from every local user, past policy."""


@final
class SessionView(Message, frozen=True):
    """One session of this node's proxy, as client or as server."""

    source: str
    target: str
    node: str
    """The other end's node."""
    path: tuple[str, ...]
    standby: tuple[str, ...] = ()
    streams: int = 0
    state: str = ""
    requests: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    resent_bytes: int = 0
    moves: int = 0
    group: str = ""
    """Key exchange of the active circuit; empty: there is none."""
    signature: str = ""
    """How the other end, `target`, has signed its handshake."""


@final
class SvidView(Message, frozen=True):
    """An SVID in use; never its key."""

    id: str
    serial: str
    not_before_unix_s: int
    not_after_unix_s: int
    renewals: int = 0
    error: str = ""
    """Why the last renewal failed; empty: it did not."""
    key: str = ""
    """Kind of its key, e.g. `P-256`, `ML-DSA-65`."""


@final
class ListenerView(Message, frozen=True):
    """Where programs of this host hand connections in, with the port really bound."""

    address: str
    kind: str
    name: str = ""


@final
class EventView(Message, frozen=True):
    """Something that happened: links, sessions, identities, refusals."""

    unix_us: int
    kind: str
    """`link`, `path`, `session`, `svid`, `policy`, `authority`, `refused`, `node` or `bound`."""
    text: str
    node: str = ""
    """Empty: the node that tells it."""


# ------------------------------------------------------------------ answers
@final
class Finding(Message, frozen=True):
    """One thing that is wrong or worth knowing."""

    id: str
    """Stable: `X0-CHK-nnn`, or `X0-DEN-nnn` of `x0 explain denied`."""
    level: str
    """`error`: something does not work; `warning`: it will not, or is weaker than it looks;
    `notice`: worth knowing."""
    what: str
    hint: str


@final
class PlaneView(Message, frozen=True):
    """How data of other nodes is passed on."""

    kind: str = "userspace"
    """`kernel` or `userspace`."""
    text: str = "userspace"
    """In words, with the reason."""
    findings: tuple[Finding, ...] = ()
    explained: tuple[str, ...] = ()
    """Neighbours whose link is down for what a finding says."""


@final
class Status(Message, frozen=True):
    """A node at one moment."""

    node: str
    trust_domain: str
    version: str
    state: str
    """`starting`, `ready`, `draining` or `alone` (no proxy)."""
    unix_us: int
    uptime_ms: int
    agent_pid: int = 0
    proxy_pid: int = 0
    area: int = 0
    data_address: str = ""
    control_address: str = ""
    metrics_address: str = ""
    workload_api: str = ""
    """Address of the Workload API's socket; empty while it is not served."""
    require_pq: bool = False
    authority: AuthorityView = AuthorityView()
    links: tuple[LinkView, ...] = ()
    members: tuple[MemberView, ...] = ()
    paths: tuple[PathView, ...] = ()
    services: tuple[ServiceView, ...] = ()
    listeners: tuple[ListenerView, ...] = ()
    sessions: tuple[SessionView, ...] = ()
    sessions_total: int = 0
    svids: tuple[SvidView, ...] = ()
    events: tuple[EventView, ...] = ()
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    """As `messages.Counters`: name, then label values after `|`; proxy and agent together."""
    records: int = 0
    plane: PlaneView = PlaneView()
    duplicate_name: bool = False
    """Another node with another key writes under this node's name."""


@final
class PathAnswer(Message, frozen=True):
    """Paths from `source` to `target`, best first; the first is in use, the others back it up."""

    source: str
    target: str
    """The node that was found for the asked name or ID."""
    paths: tuple[tuple[str, ...], ...]
    costs: tuple[int, ...] = ()
    disjoint: bool = True


@final
class CheckAnswer(Message, frozen=True):
    """All findings, worst first; none: all is well."""

    findings: tuple[Finding, ...]
    plane: str = ""
    """How data is passed on, as in a status; empty: without any choice."""


@final
class Text(Message, frozen=True):
    """Text as it is."""

    text: str


@final
class Support(Message, frozen=True):
    """Files of a support bundle: name -> text; key material is redacted already."""

    files: dict[str, str]


@final
class Explanation(Message, frozen=True):
    """What the gate of this node says, and because of what."""

    allowed: bool
    reason: str
    source: str
    target: str
    rule: str = ""
    """ID of the rule, or the name whose callers decided; empty: nothing allowed it."""


@final
class Fine(Message, frozen=True):
    """It was done."""

    text: str = ""


@final
class Refusal(Message, frozen=True):
    """It was not done: the parts of an `errors.X0Error`."""

    id: str
    what: str
    hint: str = ""


AdminAnswer = Status | PathAnswer | CheckAnswer | Text | Support | Explanation | Fine | Refusal


def request_reader() -> Reader[AdminRequest]:
    """Reader, in the agent, of what a command sends."""
    return Reader(AdminRequest, ADMIN_FRAME_BYTES_MAX)


def answer_reader() -> Reader[AdminAnswer]:
    """Reader, in a command, of what the agent sends."""
    return Reader(AdminAnswer, ADMIN_FRAME_BYTES_MAX)


STATUS_JSON: Final = msgspec.json.Encoder()
"""Encodes what a support bundle has."""
