"""Words of the records room: what its machine hears, what it says, what it keeps over a restart."""

from __future__ import annotations

from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import SECOND, Value
from x0tta6bl4.wire.records import Bundle, Record

AHEAD_MAX_S: Final = 60
"""A generation further than this ahead of the clock is refused."""


def newer(generation: int, than: int) -> bool:
    """The merge rule: strictly greater; of two with the same generation the first stays."""
    return generation > than


def next_generation(stored: int, unix_s: int) -> int:
    """Generation of a writer's next record: max(stored + 1, unix seconds)."""
    return max(stored + 1, unix_s)


@final
class Settings(Value, frozen=True):
    """Bounds of a store."""

    records_max: int = 65_536
    """Records in all; beyond it unknown ones are refused, known ones still renewed."""
    peers_max: int = 256
    parked_max: int = 4096
    """Records of writers over their rate that wait; beyond it anti-entropy brings them later."""
    gone_max: int = 4096
    """Generations remembered of records that are gone, so that older copies stay out."""
    chain_max: int = 32
    """Bundles remembered for those who were away."""
    pace: int = 1 * SECOND
    """Between two records of one writer in the long run."""
    burst: int = 8
    sins_max: int = 64
    """Bad records per peer and round of 10 s, before it is not listened to until the next."""


@final
class Held(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a store wants to find again after a restart; goes to a file of mode 0600."""

    own: tuple[bytes, ...] = ()
    """Records of this node."""
    authority: tuple[bytes, ...] = ()
    """Manifests and chunks held."""
    chain: tuple[tuple[bytes, ...], ...] = ()
    """Records of the last bundles, oldest first."""
    bundle: Bundle | None = None
    generation: int = 0
    """Highest that any record of this node ever had."""
    floor_unix_us: int = 0
    """Newest time signed by the authority."""


# ------------------------------------------------------------------------------ events
@final
class Learn(Value, frozen=True):
    """Encoded records came by another way than a link: the authority, an enrolment."""

    src: str
    records: tuple[bytes, ...]


@final
class Publish(Value, frozen=True):
    """Say this about oneself, in place of what was said under (kind, name) before."""

    kind: str
    name: str
    body: bytes
    expires_unix_s: int


@final
class Withdraw(Value, frozen=True):
    """Say nothing more under (kind, name)."""

    kind: str
    name: str


@final
class PeerUp(Value, frozen=True):
    """A link's connection to a neighbour's agent is there."""

    node: str


@final
class PeerDown(Value, frozen=True):
    """It is gone."""

    node: str


@final
class Rejudge(Value, frozen=True):
    """Verify again what is held of these writers (of all, if empty): trust has changed."""

    writers: tuple[str, ...] = ()


@final
class Trust(Value, frozen=True):
    """Believe this bundle, obtained by enrolment, if it is newer than the one held."""

    bundle: Bundle
    expires_unix_s: int


@final
class Restore(Value, frozen=True):
    """First event after a restart: what `held()` said.  Comes from one's own disk: believed."""

    held: Held


# ------------------------------------------------------------------------------ facts
@final
class RecordChanged(Value, frozen=True):
    """A node says this now."""

    record: Record


@final
class RecordGone(Value, frozen=True):
    """A node says this no longer: expired, withdrawn or no longer believed."""

    writer: str
    kind: str
    name: str


@final
class DuplicateName(Value, frozen=True):
    """Somebody else publishes under this node's name with a valid SVID: at most once a minute."""

    node: str


@final
class RecordRefused(Value, frozen=True):
    """A record from `src` was not accepted although it looked new."""

    src: str
    reason: str


@final
class Statistics(Value, frozen=True):
    """Plain sums since the start, and sizes now."""

    records: int
    parked: int
    gone: int
    peers: int
    accepted: int
    refused: int
    verified: int
    bytes: int
