"""What the links machine hears and says."""

from __future__ import annotations

from typing import Final, final

from x0tta6bl4.core.machine import MS, SECOND, Value

NEIGHBOURS_MAX: Final = 256
"""Further ones are refused with `LinkDown(node, "too many neighbours")`."""


@final
class NeighbourSet(Value, frozen=True):
    """Watch this neighbour, or go on watching it with new keys or a new start of its proxy."""

    node: str
    incarnation: int
    """Of the neighbour's proxy; hellos of any other are ignored.  A new one starts anew."""
    link: int
    """Key id for our hellos from now on; new keys alone disturb nothing."""
    hello_us: int = 100 * MS
    """Calm interval, both what we send and the least we want; the greater of both ends counts."""
    watched: bool = False
    """Something faster than hellos watches it, for as long as our agent lives: then the neighbour
    is asked for one each `EASY_US` only, until one stays away, is lost twice, or finds it down."""


@final
class NeighbourGone(Value, frozen=True):
    """Watch this neighbour no longer; it is told so once."""

    node: str


@final
class AgentAlive(Value, frozen=True):
    """Whether the agent of this node is connected to the proxy; every hello says so."""

    alive: bool


@final
class Counted(Value, frozen=True):
    """Traffic to a neighbour has been counted: packets sent and resent, e.g. from TCP_INFO."""

    node: str
    good: int
    lost: int


@final
class Parked(Value, frozen=True):
    """Send nothing to this neighbour and judge it by nothing: both ends are moved on (`calm`).

    Or go on, from what was made of them; only simulators say so.
    """

    node: str
    parked: bool


@final
class LinkUp(Value, frozen=True):
    """The link can be used; also said when a suspicion turned out to be wrong."""

    node: str
    rtt_us: int
    loss_ppm: int
    """Of a round trip: ETX is 1 / (1 − loss)."""
    gray: bool
    """Loses too much to be trusted: its cost is to be multiplied by 4; it is not down."""
    agent_alive: bool


@final
class LinkQuality(Value, frozen=True):
    """A link that is up has changed; at most once a second, at once for the two flags."""

    node: str
    rtt_us: int
    loss_ppm: int
    gray: bool
    agent_alive: bool


@final
class LinkSuspected(Value, frozen=True):
    """Nothing heard for 1.4 intervals: nothing new over this link; LinkUp or LinkDown follows."""

    node: str


@final
class LinkDown(Value, frozen=True):
    """The link cannot be used.

    `reason` is one of: silent, neighbour down, neighbour shut, neighbour restarted, removed,
    too many neighbours.
    """

    node: str
    reason: str


@final
class Config(Value, frozen=True):
    """How calmly links are judged."""

    multiplier: int = 3
    """Intervals in silence after which the *other* end declares this one down (RFC 5880)."""
    good_hellos: int = 10
    """Hellos in a row before a link that has failed is used again."""
    hold_us: int = 2 * SECOND
    """Time before a link that has failed is used again; both must hold."""
    idle_after_us: int = 10 * SECOND
    """A neighbour that is down and unheard for this long gets a hello every `idle_us`."""
    idle_us: int = 1 * SECOND
    quality_us: int = 1 * SECOND
    """Least time between two LinkQuality of one link."""


@final
class LinkStatistics(Value, frozen=True):
    """One link as it stands, for status views."""

    node: str
    state: str
    """down, init, up, held (up, but not yet trusted again) or suspected."""
    rtt_us: int
    loss_ppm: int
    gray: bool
    agent_alive: bool
    sent: int
    received: int
    refused: int
    """Hellos of another start, repeated or too old."""
    downs: int
