"""Words of the agent's composite: what it hears and says beside the words of its rooms."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import msgspec

from x0tta6bl4.core.machine import Value, Verdict
from x0tta6bl4.wire.authority import Entry, Update
from x0tta6bl4.wire.messages import (
    AgentOrder,
    ListenItem,
    NeighbourItem,
    ProxyFact,
    SessionState,
    SvidItem,
)
from x0tta6bl4.wire.records import Endpoint, Record


@final
class Crypto(msgspec.Struct, frozen=True):
    """What the agent needs of cryptography, as functions (`edge.tls` has the real ones)."""

    verify: Callable[[Record, int], Verdict]
    """(record, unix seconds): chain, signature over `signed_part`, not beyond the leaf's notAfter;
    answers with the ID of the leaf."""
    verify_key: Callable[[Record, bytes], Verdict]
    """(record, point): signature of the authority over `signed_part`; the ID does not matter."""
    verify_endpoint: Callable[[str, Endpoint, int], Verdict]
    """(node, endpoint, unix seconds): chain, and signature over `endpoint_signed_part`; answers
    with the ID of the leaf."""
    sign: Callable[[bytes, bytes], bytes]
    """(private key PKCS#8 DER, data) -> signature."""


@final
class NodeConfig(Value, frozen=True):
    """What node.toml says, as far as it concerns the agent's decisions."""

    neighbours: tuple[str, ...] = ()
    """Names in `[[link]]`; others that were known before are dropped from the proxy."""
    listens: tuple[ListenItem, ...] = ()
    authority: str = ""
    """`host:port` at which this node dials the authority itself; empty: only through others."""
    revocation_max_age_s: int = 0
    area: int = 0
    stub: bool = False
    """No transit for others (RFC 6987)."""
    draining: bool = False
    """No transit, no new streams: this node is about to stop."""


# ------------------------------------------------------------------------------ events
@final
class Configured(Value, frozen=True):
    """This is the configuration now."""

    config: NodeConfig


@final
class SvidHeld(Value, frozen=True):
    """An SVID is there that nobody had to ask for."""

    item: SvidItem


@final
class Workloads(Value, frozen=True):
    """Entries of this node and their SVIDs: what was written down in the life before.

    They count only where nobody knows better: neither the authority nor a proxy that lives on.
    Whoever reads them from the disk leaves out what is revoked or has ended.
    """

    entries: tuple[Entry, ...] = ()
    svids: tuple[SvidItem, ...] = ()


@final
class NeighbourUp(Value, frozen=True):
    """The agents of a link are connected; `item` has the neighbour's Intro and the link's keys."""

    item: NeighbourItem


@final
class NeighbourDown(Value, frozen=True):
    """The connection of the agents is gone; the proxies go on with their hellos."""

    node: str


@final
class KernelLinks(Value, frozen=True):
    """The kernel forwards over the links to these neighbours, all of them that it does."""

    nodes: frozenset[str]
    held: bool = False
    """It does so by a table of an earlier life, which stands until `TableComplete`."""


@final
class KernelPace(Value, frozen=True):
    """The kernel judges the links to these neighbours, all of them, and finds them good.

    While the agents are connected, the proxies need few hellos there.
    """

    nodes: frozenset[str]


@final
class ProxySaid(Value, frozen=True):
    """A message from the proxy."""

    fact: ProxyFact


@final
class ProxyGone(Value, frozen=True):
    """The proxy's socket has closed."""


@final
class AuthoritySaid(Value, frozen=True):
    """The authority pushed this."""

    update: Update


@final
class AuthorityState(Value, frozen=True):
    """Whether there is a connection to the authority, and why not."""

    up: bool
    reason: str = ""


@final
class RenewNow(Value, frozen=True):
    """Renew these SVIDs at once; an operator asks."""

    ids: tuple[str, ...]


@final
class Stopping(Value, frozen=True):
    """The agent is about to stop on purpose; its proxy may go on for the restart time."""


# ------------------------------------------------------------------------------ effects
@final
class Order(Value, frozen=True):
    """Write this to the proxy."""

    message: AgentOrder


@final
class HangUp(Value, frozen=True):
    """Close the connection to a neighbour's agent: it is revoked or no longer configured."""

    node: str
    reason: str


@final
class PersistWanted(Value, frozen=True):
    """What `Agent.held()` says is worth writing down; at most once a second."""


@final
class KeepWanted(Value, frozen=True):
    """What `Agent.workloads()` says is worth writing down; at most once a second."""


@final
class WorkloadsChanged(Value, frozen=True):
    """`Agent.entries()` or `Agent.svid()` answer something else; once an event, however much."""


@final
class TableComplete(Value, frozen=True):
    """All that the kernel's table is to have has been said; said once.

    What an earlier life has left in it can go.
    """


@final
class Noticed(Value, frozen=True):
    """Something an operator wants to read."""

    kind: str
    """Stable lower-case phrase."""
    text: str


# ------------------------------------------------------------------------------ view
@final
class LinkView(Value, frozen=True):
    """A link of this node."""

    node: str
    state: str
    """`up`, `suspected`, `down` or `unknown`."""
    connected: bool
    """Whether the agents are connected."""
    rtt_us: int
    loss_ppm: int
    cost: int
    """As published, in 1/16 ms; 0 while it is not published."""
    reason: str = ""


@final
class NodeView(Value, frozen=True):
    """A member of the mesh, as this node sees it."""

    node: str
    generation: int
    expires_unix_s: int
    cost: int
    """Of the best path, in 1/16 ms; 0 for this node; -1 where there is no path."""
    paths: tuple[tuple[str, ...], ...]
    """Those computed, which is for nodes in use only."""
    endpoints: tuple[str, ...]
    stub: bool
    authority: bool
    links: int
    """That it publishes, confirmed by their other ends or not."""


@final
class View(Value, frozen=True):
    """What `x0 status` and `x0 path` show; no secrets."""

    node: str
    trust_domain: str
    unix_s: int
    bundle_sequence: int
    heartbeat_age_s: int
    """-1 before the first."""
    authority_up: bool
    authority_reason: str
    proxy_up: bool
    snapshot: int
    """Version of the proxy's snapshot."""
    svids: tuple[tuple[str, int], ...]
    """(ID, not after in unix seconds)."""
    links: tuple[LinkView, ...]
    nodes: tuple[NodeView, ...]
    entries: tuple[Entry, ...]
    names: tuple[tuple[str, str], ...]
    sessions: tuple[SessionState, ...]
    records: int
    records_bytes: int
