"""Events and effects of the session machines, and their limits.

Circuits are named by the token of the `DialCircuit` that asked for them (client) or by a number
from the driver (server); both come from one counter per proxy, so a number means one circuit.
Sessions are numbered by the driver.  `Done(token, Up(...))` or `Failed(token, reason)` answers
each `DialCircuit` exactly once; after a Done, exactly one `CircuitLost` follows unless the machine
closed the circuit itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import MS, SECOND, Value
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.wire.ids import SpiffeId

Path = tuple[str, ...]
"""Nodes from the client's to the server's, inclusive."""


# ------------------------------------------------------------------ events
@final
class Up(Value, frozen=True):
    """A circuit has its TLS done and its peer judged (value of `Done`, and part of `Accepted`)."""

    circuit: Circuit
    path: Path
    not_after_unix_us: int
    """Earlier end of the two SVIDs."""
    exporter: bytes
    """Value exported under `EXPERIMENTAL x0 circuit`; only of this circuit."""
    secret: bytes = b""
    """Client: value exported under `EXPERIMENTAL x0 session`; used if this is the first circuit."""
    generation: int = 0
    """Which of our SVIDs it presents; another one makes the circuit stale."""
    peer_issued_unix_s: int = 0
    """notBefore of the peer's SVID, for revocations."""
    peer_via: str = ""
    """Node through which it was issued, or empty."""


@final
class Accepted(Value, frozen=True):
    """Server: somebody's circuit has its TLS done and its peer judged."""

    number: int
    source: SpiffeId
    target: SpiffeId
    up: Up


@final
class Heard(Value, frozen=True):
    """A frame that is not numbered came in: NEW, JOIN, JOINED, PONG, MOVE or GONE."""

    circuit: int
    kind: int
    value: int = 0
    body: bytes = b""


@final
class CircuitLost(Value, frozen=True):
    """A circuit that was up is gone: `eof`, `reset`, `tls`, `protocol`, `withdrawn` ..."""

    circuit: int
    reason: str


@final
class Wrote(Value, frozen=True):
    """Frames were sent while the machine wasn't watching for their acknowledgement."""

    session: int


@final
class Owing(Value, frozen=True):
    """Something came in that is not acknowledged, while the machine had no ACK planned."""

    session: int


@final
class Broken(Value, frozen=True):
    """The pipe can't go on; the session ends."""

    session: int
    reason: str


@final
class SvidChanged(Value, frozen=True):
    """Our own SVID for `id` was replaced: circuits of older generations are stale."""

    id: SpiffeId
    generation: int


@final
class PathsChanged(Value, frozen=True):
    """The paths a client's session may use now, best first; empty: none known."""

    session: int
    paths: tuple[Path, ...]
    direct: bool = False
    """The first has no relay, and dead links under it are mended: who uses others goes there."""


@final
class Withdraw(Value, frozen=True):
    """End a session now, for good: revoked, denied, drained, operator."""

    session: int
    reason: str


# ------------------------------------------------------------------ effects
@final
class DialCircuit(Value, frozen=True):
    """Set a circuit up to the session's target; not over `avoid` if there is another path."""

    token: int
    session: int
    avoid: tuple[Path, ...]


@final
class CancelDial(Value, frozen=True):
    """The answer to this `DialCircuit` is no longer wanted (it still has to come, as Failed)."""

    token: int


@final
class SendFrame(Value, frozen=True):
    """Put a frame on a circuit, before its next chunk, and pump it."""

    circuit: int
    frame: bytes


@final
class CloseCircuit(Value, frozen=True):
    """Close a circuit at once; what it had not delivered is sent again on another."""

    circuit: int
    reason: str


@final
class SessionOpened(Value, frozen=True):
    """Server: a session was created by NEW."""

    session: int
    source: SpiffeId
    target: SpiffeId


@final
class Joined(Value, frozen=True):
    """A circuit carries the session now."""

    session: int
    circuit: int
    path: Path
    took_us: int
    """From the loss of the circuit before (or the decision to move) until JOINED."""
    reason: str
    """`new`, `lost`, `silent`, `moved`."""


@final
class CircuitsGone(Value, frozen=True):
    """The session has no circuit: its streams pause."""

    session: int


@final
class PathFailed(Value, frozen=True):
    """A path corrupted, dropped or swallowed what was sent over it."""

    path: Path
    reason: str


@final
class SessionEnded(Value, frozen=True):
    """The session is over; its streams have been reset."""

    session: int
    reason: str


@final
class Limits(Value, frozen=True):
    """Times and bounds of sessions; all durations in microseconds.

    The defaults are the house's rules; the simulator varies them.
    """

    threshold_min: int = 25 * MS
    """Least time without a sign of life before a circuit is suspected (else srtt + 4 rttvar)."""
    threshold_unknown: int = SECOND
    """The same before the first round trip was measured (RFC 6298 section 2)."""
    ping_every: int = SECOND
    calm_after: int = 5 * SECOND
    """A session without a stream for this long is calm: nobody waits for what it would find out."""
    calm_every: int = 5 * SECOND
    """Between pings of a calm session; less than half of `calm_silence`."""
    calm_jitter: int = 120 * SECOND
    """Half of this, to all of it, after its paths have changed a calm session follows; in a mesh
    whose figures move all the time it would else make circuits for nobody, and move them more."""
    ack_delay: int = 5 * MS
    """What came in is acknowledged after one to two of these, if no chunk takes the ACK along."""
    late: int = 12 * MS
    """A tick later than this judges nobody: we were the ones who slept."""
    silence: int = 2 * SECOND
    """The server drops a circuit without a byte for this long, if streams are on it."""
    calm_silence: int = 12 * SECOND
    """The same where none are: of a standby, whose session nobody here knows, or a calm session."""
    expiry_margin: int = SECOND
    """A circuit closes this long before the earlier notAfter."""
    pause_max: int = 60 * SECOND
    """Without a circuit for this long a session ends."""
    idle_max: int = 300 * SECOND
    """Without a stream for this long a session ends, once all it said is acknowledged."""
    rest_after: int = 5 * SECOND
    """Without a frame for this long a session gives grown memory back."""
    lame_max: int = SECOND
    """How long a circuit that was left is still read."""
    retry_min: int = 10 * MS
    retry_max: int = 640 * MS
    """Back-off of dials while the session has no circuit."""
    retry_standby_max: int = 10 * SECOND
    """Back-off of dials while only the standby is missing."""
    retry_short: int = 100 * MS
    """A circuit that carried the session for less than this was no success."""
    second_dial: int = 250 * MS
    """While the session has no circuit: when to dial a second one beside the first."""
    standby_after: int = 0
    """How long the first circuit carries the session before a standby is dialled."""
    jitter: int = SECOND
    """A standby lost to a failure is rebuilt after 0 to this."""
    renew_spread: int = 5 * SECOND
    """After the renewal of an SVID its sessions move within this, or a quarter of what is left."""
    roll_bytes: int = 64 << 30
    """AES-GCM (RFC 8446 section 5.5): a circuit is replaced after this many bytes."""
    resend_percent: int = 5
    """Suspicion may cost at most this share of all bytes sent, plus `resend_window`."""
    resend_window: int = 4 * 1024 * 1024
    circuits_max: int = 8192
    """Server: circuits in all."""
    circuits_per_source_max: int = 1024
    sessions_max: int = 4096
    sessions_per_source_max: int = 512


LIMITS: Final = Limits()
DIALS_MAX: Final = 2
"""Dials under way at once for one session."""
FAILED_PATH: Final = frozenset({"tls", "silent"})
"""Reasons of a loss that speak against the path rather than against its end."""

Token = Callable[[], int]
"""Gives a fresh number each time; one counter per proxy."""


def reset_for(reason: str) -> Reset:
    """What the streams of a session that ended for `reason` are told."""
    return _RESETS.get(reason, Reset.SESSION_ENDED)


_RESETS: Final = {
    "revoked": Reset.WITHDRAWN,
    "denied": Reset.WITHDRAWN,
    "withdrawn": Reset.WITHDRAWN,
    "drained": Reset.DRAINING,
    "no circuit": Reset.UNREACHABLE,
}
