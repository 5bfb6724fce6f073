"""Messages between processes: agent to agent over a link, and agent to proxy on one host.

All are msgpack maps or arrays with a tag, framed by `codec`.  What passes between agent and proxy
is a set of items under keys: `Full` once after a connection, then `Delta`s.  An SVID leaves the
proxy by its expiry or by being named in `Delta.drops`, never by being absent from a `Full`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, final

import msgspec
from msgspec import Meta

LINK_VERSION: Final = 1
PROXY_VERSION: Final = 1
MTU_MAX: Final = 65_535


class Message(
    msgspec.Struct,
    frozen=True,
    gc=False,
    tag=True,
    tag_field="t",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Root of tagged messages."""


def hash64(data: bytes) -> int:
    """64 bits over what two ends compare without sending it (`Digest`, `Completion`)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# ------------------------------------------------------------------ agent to agent, over a link
@final
class KernelOffer(Message, frozen=True, forbid_unknown_fields=False):
    """That the kernel of the sender forwards over the interface which this connection uses.

    With one from both ends, both watch the link in the kernel, under keys that are exported from
    the connection.  It comes first with the greeting, then once more as soon as the connection
    counts, with a slot; the receiver puts the key of the sender's hellos into the other slot and
    says so (`ready`), and only then does the sender use it.
    """

    link: Annotated[int, Meta(ge=0, le=255)]
    """Number of the link at the sender."""
    local: Annotated[bytes, Meta(min_length=16, max_length=16)]
    """Link-local IPv6 address of its interface."""
    mac: Annotated[bytes, Meta(min_length=6, max_length=6)]
    """Hardware address of its interface."""
    mtu: Annotated[int, Meta(ge=0, le=MTU_MAX)]
    slot: Annotated[int, Meta(ge=-1, le=1)]
    """In which the key of its hellos was when the connection began to count; -1: it does not."""
    fresh: bool = False
    """There was no key in it: its kernel has sent nothing yet, in this life."""
    ready: bool = False
    """It takes hellos under the key of this connection."""
    native: bool = False
    """Its programs are in the driver of its interface."""
    unheard: bool = False
    """They were, and no hello was answered: the receiver's are to leave its driver, too."""
    eases: bool = False
    """Its proxy understands hellos that ask for few (`hello.EASY`)."""


@final
class Intro(Message, frozen=True, forbid_unknown_fields=False):
    """First message on a link from each side, and again whenever the proxy has started anew."""

    version: int
    node: str
    agent_incarnation: int
    proxy_incarnation: int
    """Random 63 bits, new at each start of the proxy; goes into the exported keys."""
    endpoints: tuple[str, ...]
    """`host:port` at which this proxy takes hops and hellos (TCP and UDP); empty behind a NAT."""
    hello_us: int
    unix_us: int
    area: int = 0
    kernel: KernelOffer | None = None
    """Left out by nodes whose data goes through user space."""


@final
class Flood(Message, frozen=True):
    """Encoded records (`records.encode_record`), newest known to the sender; at most 64."""

    records: tuple[bytes, ...]


@final
class Digest(Message, frozen=True):
    """64 bucket hashes of 8 bytes over (writer, kind, name, generation): anti-entropy."""

    buckets: bytes


@final
class Bucket(Message, frozen=True):
    """What the sender holds in one differing bucket: (writer, kind, name, generation)."""

    index: int
    held: tuple[tuple[str, str, str, int], ...]


@final
class Want(Message, frozen=True):
    """Send me these records: (writer, kind, name)."""

    keys: tuple[tuple[str, str, str], ...]


@final
class Alive(Message, frozen=True):
    """Keeps the link's TLS connection honest: sent every second, answered by its own kind."""

    sequence: int


@final
class Redial(Message, frozen=True):
    """The sender's SVID has changed and the receiver dialled: please dial a new connection."""


@final
class Completion(Message, frozen=True):
    """The sender's kernel sends packets by this map, on all ways whose turn is before `turns`.

    Source: completion messages, RFC 6976.
    """

    map: int
    """64 bits over confirmed links, costs and stubs (`core.routing.alternates`)."""
    turns: int


LinkMessage = Intro | Flood | Digest | Bucket | Want | Alive | Redial | Completion


# ------------------------------------------------------------------ agent to proxy: the snapshot
@final
class NodeItem(Message, frozen=True):
    """Who this proxy is."""

    trust_domain: str
    node: str
    authority: str
    """`host:port` of the authority as this node dials it; empty: only through others."""
    revocation_max_age_s: int = 0
    """Refuse everything when the newest heartbeat is older; 0: never."""
    draining: bool = False
    """Take no new streams; those that are open go on."""


@final
class SvidItem(Message, frozen=True):
    """An X.509-SVID with its key, in use from now on."""

    id: str
    chain: tuple[bytes, ...]
    """DER, leaf first."""
    key: bytes
    """PKCS#8 DER, unencrypted: only ever over the 0600 socket."""
    not_after_unix_s: int


@final
class BundleItem(Message, frozen=True):
    """Trust anchors of a trust domain, DER."""

    trust_domain: str
    anchors: tuple[bytes, ...]


@final
class NeighbourItem(Message, frozen=True):
    """A configured neighbour with the keys exported from its link's TLS connection."""

    node: str
    link: int
    """Key id: both ends compute the same 32 bits from the exporter."""
    endpoints: tuple[str, ...]
    """Where its proxy takes hops and hellos; empty: it must dial us."""
    incarnation: int
    hello_us: int
    tx_hello: bytes
    rx_hello: bytes
    tx_setup: bytes
    rx_setup: bytes
    udp: bool = True
    watched: bool = False
    """The kernel watches the link, and its verdict is told: few hellos are enough."""


@final
class PathsItem(Message, frozen=True):
    """Paths to one node, best first, each from this node to it inclusive; at most 4."""

    node: str
    paths: tuple[tuple[str, ...], ...]


@final
class DirectItem(Message, frozen=True):
    """A node that the kernel's routes lead to: circuits go there in one TCP connection."""

    node: str
    address: str
    """Its mesh address."""
    via: str = ""
    """The neighbour that the kernel's routes lead to first: a standby goes by another."""


@final
class AuthorityPathItem(Message, frozen=True):
    """Paths towards nodes that can reach the authority, best first."""

    paths: tuple[tuple[str, ...], ...]


@final
class ReplicasItem(Message, frozen=True):
    """Nodes where a workload can be reached, with their load, healthy ones only."""

    id: str
    nodes: tuple[tuple[str, int], ...]


@final
class ServiceItem(Message, frozen=True):
    """A workload of this node that takes connections."""

    id: str
    address: str
    """`127.0.0.1:8080`, `[::1]:8080` or `unix:/path`."""
    selectors: tuple[str, ...]
    """What its listener must be, e.g. `unix:uid:1000`; all must hold."""
    proxy_header: bool = False


@final
class CallerItem(Message, frozen=True):
    """A workload of this node that may call: selectors of its local sockets."""

    id: str
    selectors: tuple[str, ...]


@final
class ListenItem(Message, frozen=True):
    """A local address at which workloads hand connections in."""

    address: str
    kind: str
    """`plain` (then `name` is the service), `socks5` or `connect`."""
    name: str = ""
    own_sessions: bool = False
    """Each connection gets a session of its own."""


@final
class NameItem(Message, frozen=True):
    """Service name, see records.Name."""

    name: str
    id: str
    callers: tuple[str, ...]


@final
class RuleItem(Message, frozen=True):
    """Policy rule, see records.Rule."""

    id: str
    effect: str
    callers: tuple[str, ...]
    targets: tuple[str, ...]


@final
class RevokedItem(Message, frozen=True):
    """See records.Revocation."""

    subject: str
    until_unix_s: int
    issued_before_unix_s: int = 0


@final
class ClockItem(Message, frozen=True):
    """Newest time signed by the authority: floor of wall time, and age of the revocations."""

    floor_unix_us: int


Item = (
    NodeItem
    | SvidItem
    | BundleItem
    | NeighbourItem
    | PathsItem
    | DirectItem
    | AuthorityPathItem
    | ReplicasItem
    | ServiceItem
    | CallerItem
    | ListenItem
    | NameItem
    | RuleItem
    | RevokedItem
    | ClockItem
)


def item_key(item: Item) -> str:
    """Key under which an item stands in a snapshot; a new item replaces the one of its key."""
    kind = type(item).__name__
    if type(item) is SvidItem or type(item) is ServiceItem or type(item) is ReplicasItem:
        return f"{kind}/{item.id}"
    if type(item) is CallerItem:
        return f"{kind}/{item.id}/{','.join(item.selectors)}"
    if type(item) is BundleItem:
        return f"{kind}/{item.trust_domain}"
    if type(item) is NeighbourItem or type(item) is PathsItem or type(item) is DirectItem:
        return f"{kind}/{item.node}"
    if type(item) is ListenItem:
        return f"{kind}/{item.address}"
    if type(item) is NameItem:
        return f"{kind}/{item.name}"
    if type(item) is RuleItem:
        return f"{kind}/{item.id}"
    if type(item) is RevokedItem:
        return f"{kind}/{item.subject}/{item.issued_before_unix_s}"
    return kind


@final
class Full(Message, frozen=True):
    """Agent to proxy, first after a connection; also proxy to agent: what it holds (read back)."""

    version: int
    items: tuple[Item, ...]


@final
class Delta(Message, frozen=True):
    """Changes from version `base` to `version`; on any other base refused and a Full asked for."""

    base: int
    version: int
    puts: tuple[Item, ...] = ()
    drops: tuple[str, ...] = ()


# ------------------------------------------------------------------ proxy to agent: facts
@final
class Ready(Message, frozen=True):
    """First message of the proxy: wire version, incarnation, version of the snapshot it holds."""

    wire_version: int
    incarnation: int
    holds: int
    udp_port: int
    tcp_port: int


@final
class NeedFull(Message, frozen=True):
    """The last delta did not fit; send everything."""

    holds: int


@final
class LinkState(Message, frozen=True):
    """A link changed: `state` is up, suspected or down; RTT and loss as measured here."""

    node: str
    state: str
    rtt_us: int
    loss_ppm: int
    dials: bool
    agent_alive: bool
    """What the neighbour's hellos say of its agent."""
    reason: str = ""
    gray: bool = False
    """Loses too much to be trusted (CUSUM, 4 % against 0.5 %): its cost counts four times."""


@final
class SessionState(Message, frozen=True):
    """One session, for status views; sent on change and every second while it moves bytes.

    Own sessions of one workload with one workload on a node are told as one: sums, and the path of
    one of them.
    """

    source: str
    target: str
    node: str
    path: tuple[str, ...]
    standby: tuple[str, ...]
    streams: int
    state: str
    requests: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    resent_bytes: int = 0
    moves: int = 0
    group: str = ""
    """Key exchange of the active circuit."""
    signature: str = ""
    """Of the other end's handshake on it."""


@final
class SessionGone(Message, frozen=True):
    """A session has ended."""

    source: str
    target: str
    node: str
    reason: str


@final
class ListenState(Message, frozen=True):
    """A local listener is there, or can't be: `asked` as configured, `address` as bound."""

    asked: str
    address: str
    kind: str
    name: str = ""
    problem: str = ""


@final
class PathBad(Message, frozen=True):
    """A path corrupted, dropped or swallowed what a session sent over it: avoid it for a while."""

    path: tuple[str, ...]
    reason: str


@final
class Notice(Message, frozen=True):
    """Something an operator wants to read: refused callers, lost circuits, bounds met."""

    kind: str
    text: str


@final
class Counters(Message, frozen=True):
    """Plain sums since the proxy's start, for /metrics: name -> value (labels after a `|`)."""

    values: dict[str, int]


ProxyFact = (
    Ready
    | NeedFull
    | LinkState
    | ListenState
    | SessionState
    | SessionGone
    | PathBad
    | Notice
    | Counters
    | Full
)
AgentOrder = Full | Delta
