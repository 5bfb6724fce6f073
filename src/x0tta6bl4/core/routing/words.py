"""Words of the routing room: what its machine hears and what it says."""

from __future__ import annotations

from typing import final

from x0tta6bl4.core.machine import NEVER, Instant, Value
from x0tta6bl4.wire.records import Adjacency, NodeBody


# ------------------------------------------------------------------------------ events
@final
class MemberChanged(Value, frozen=True):
    """A node's own record says this now."""

    node: str
    body: NodeBody
    restarting_until: Instant = NEVER
    """`body.restarting_until_unix_s` on the driver's clock; after it the node counts as gone."""


@final
class MemberGone(Value, frozen=True):
    """A node's own record is gone."""

    node: str


@final
class LinkUp(Value, frozen=True):
    """A link of this node can be used; also after a suspicion that was wrong."""

    node: str
    rtt_us: int
    loss_ppm: int
    gray: bool
    dials: bool


@final
class LinkMeasured(Value, frozen=True):
    """A link that is up has new figures."""

    node: str
    rtt_us: int
    loss_ppm: int
    gray: bool
    dials: bool


@final
class LinkSuspected(Value, frozen=True):
    """Nothing new over this link until LinkUp or LinkDown."""

    node: str


@final
class LinkDown(Value, frozen=True):
    """A link of this node cannot be used."""

    node: str


@final
class Wanted(Value, frozen=True):
    """Paths to this node are wanted; answered by PathsChanged as soon as there are any."""

    node: str


@final
class Unwanted(Value, frozen=True):
    """They are not any more."""

    node: str


@final
class PathBad(Value, frozen=True):
    """Bytes were corrupted or stood still on this path: avoid its links for a while."""

    path: tuple[str, ...]


# ------------------------------------------------------------------------------ facts
@final
class PathsChanged(Value, frozen=True):
    """Paths to a wanted node, best first, from this node to it inclusive; empty: out of reach."""

    node: str
    paths: tuple[tuple[str, ...], ...]


@final
class AuthorityPathsChanged(Value, frozen=True):
    """Paths to the nearest nodes that reach the authority themselves, best first."""

    paths: tuple[tuple[str, ...], ...]


@final
class AdjacencyWanted(Value, frozen=True):
    """Publish these links of this node."""

    links: tuple[Adjacency, ...]
