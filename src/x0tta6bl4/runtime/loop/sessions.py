"""Sessions of the proxy's endpoint: the pipe of each, its streams, and who waits for room."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import msgspec

from x0tta6bl4.core.machine import SECOND, Instant
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.pipe import HELD_MAX, Hooks, Pipe
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.streams import AppStream
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import SessionState

if TYPE_CHECKING:
    from x0tta6bl4.runtime.loop.circuits import TlsCircuit
    from x0tta6bl4.runtime.loop.endpoint import Endpoint

RING_BYTES_CALM: Final = 192 * 1024 * 1024
"""Memory of all rings above which every session may hold less."""
HELD_MAX_PRESSED: Final = 256 * 1024
REST_US: Final = 5 * SECOND
STANDING_US: Final = SECOND
STANDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of streams that stand still, in all; at the bound the longest idle are reset."""
RETRY: frozenset[Reset] = frozenset(
    {
        Reset.CONNECT_REFUSED,
        Reset.CONNECT_TIMEOUT,
        Reset.NO_SERVICE,
        Reset.LISTENER,
        Reset.BUSY,
        Reset.DRAINING,
        Reset.SESSION_ENDED,
        Reset.UNREACHABLE,
    }
)
"""Answers to OPEN after which another replica is tried."""

Reply = Callable[[Reset | None], bytes]
"""What the application gets before anything else: None when its stream was OPENED, else why not."""


@final
class StreamRecord(msgspec.Struct, frozen=True, gc=False):
    """One line of the access log."""

    source: str
    target: str
    name: str
    client: bool
    """Whether the calling workload is on this node."""
    node: str
    """The other node; empty at the server, which does not learn it."""
    path: tuple[str, ...]
    """Of the circuit that carried it last."""
    bytes_in: int
    """Towards the application here."""
    bytes_out: int
    duration_us: int
    reason: str


class Owed(Protocol):
    """What the glue needs of either machine's idea of a session."""

    owing: bool


class Opening:
    """A stream on its way to a replica.

    Args:
        source, target, name, port: what is asked for.
        replicas: those not tried yet, best first.
        reply: for SOCKS5 and CONNECT; None for plain ports, whose data goes out with OPEN.
        first: bytes of the application that were read already.
        begun_at: instant of the application's connection.
        own: it gets a session of its own.
    """

    __slots__ = (
        "begun_at", "first", "name", "own", "port", "replicas", "reply", "source", "target",
        "tried", "tried_at",
    )  # fmt: skip

    def __init__(
        self,
        source: SpiffeId,
        target: SpiffeId,
        name: str,
        port: int,
        replicas: tuple[NodeName, ...],
        reply: Reply | None,
        first: bytes,
        now: Instant,
        own: bool,
    ) -> None:
        self.source, self.target, self.name, self.port = source, target, name, port
        self.own = own
        self.replicas = list(replicas)
        self.reply = reply
        self.first = first
        self.begun_at = now
        self.tried_at = now
        self.tried: list[NodeName] = []


class Session(Hooks):
    """One session of this proxy, in either role; the hooks of its pipe.

    Attributes:
        number: the machine's.
        pipe: its bytes.
        control: `core.session.control.Client` or `answer.Carried`.
        slow: streams whose application has not taken everything.
        waiting: streams that are not read because the session is paused or without credit.
        requests: streams opened so far.
    """

    __slots__ = (
        "_flushing", "client", "control", "endpoint", "joined", "loop", "moves", "node",
        "number", "path", "pipe", "slow", "source", "target", "waiting", "written", "written_at",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, number: int, client: bool) -> None:
        self.endpoint = endpoint
        self.loop: Loop = endpoint.loop
        self.number = number
        self.client = client
        self.pipe = Pipe(endpoint.allocate, self, client)
        self.source = self.target = SpiffeId("")
        self.node = NodeName("")
        self.path: tuple[str, ...] = ()
        self.joined = False
        self.moves = 0
        self.control: Any = None
        self.slow: dict[AppStream, None] = {}
        self.waiting: dict[AppStream, None] = {}
        self.written = self.written_at = 0
        self._flushing = False

    # ------------------------------------------------------------------ hooks of the pipe
    def wake(self, pipe: Pipe) -> None:
        """See `Hooks`."""
        if not self._flushing:
            self._flushing = True
            self.loop.after_batch(self._flush)

    def ready(self, pipe: Pipe) -> None:
        """See `Hooks`."""
        active = pipe.active
        if active is not None:
            circuit = self.endpoint.circuits.get(active.number)
            if circuit is not None:
                circuit.pump()

    def resume(self, pipe: Pipe) -> None:
        """See `Hooks`."""
        waiting, self.waiting = self.waiting, {}
        for stream in waiting:
            stream.resume()

    def accept(self, pipe: Pipe, number: int, ask: Open) -> Stream | Reset:
        """See `Hooks`."""
        return self.endpoint.serving.accept(self, ask)

    def _flush(self) -> None:
        self._flushing = False
        pipe = self.pipe
        pipe.flush()
        if pipe.broken or (self.client and not self.control.watching):
            self.endpoint.flushed(self)

    # ------------------------------------------------------------------ called by streams
    def blocked(self, stream: AppStream) -> bool:
        """Whether a stream must not be read now; it is resumed when that ends."""
        pipe = self.pipe
        if pipe.paused or pipe.credit <= 0:
            self.waiting[stream] = None
            return True
        return stream.credit <= 0

    def wait(self, stream: AppStream) -> None:
        """There was no room for this stream."""
        if stream.credit > 0:
            self.waiting[stream] = None
            if not self.pipe.paused and self.pipe.credit > 0:
                # Paused and resumed within one batch.
                self.loop.after_batch(lambda: self.resume(self.pipe))

    def standing(self, stream: AppStream) -> None:
        """Its application has not taken everything."""
        if stream not in self.slow:
            self.slow[stream] = None
            stream.looked_at = stream.taken
            stream.standing_since = self.loop.now

    def moving(self, stream: AppStream) -> None:
        """Its application has taken everything."""
        self.slow.pop(stream, None)

    def opened(self, stream: AppStream) -> None:
        """OPENED came."""
        self.endpoint.calls.opened(stream)

    def try_another(self, stream: AppStream, reason: Reset) -> bool:
        """Whether another replica is going to be tried for a stream that was refused."""
        return self.endpoint.calls.try_another(stream, reason)

    def ended(self, stream: AppStream) -> None:
        """The stream is over."""
        self.slow.pop(stream, None)
        self.waiting.pop(stream, None)
        self.endpoint.ended(self, stream)


def session_of(pipe: Pipe) -> Session:
    """The session whose hooks a pipe has."""
    session = pipe.hooks
    assert type(session) is Session
    return session


def lend_standing(sessions: Iterable[Session], now: Instant) -> int:
    """Give the credit of streams that stand still back to their sessions, within a budget.

    Args:
        sessions: of this proxy.
        now: the instant of this look; looks are some 500 ms apart.
    Returns:
        Bytes of streams that stand still.
    """
    lent: list[tuple[int, int, AppStream]] = []
    for session in sessions:
        for stream in session.slow:
            if stream.taken != stream.looked_at:
                stream.looked_at = stream.taken
                stream.standing_since = now
            elif now - stream.standing_since >= STANDING_US:
                stream.lend()
            if stream.lent:
                lent.append((stream.standing_since, stream.number, stream))
    total = sum(stream.lent for _, _, stream in lent)
    if total > STANDING_BYTES_MAX:
        for _, _, stream in sorted(lent, key=lambda item: item[:2]):
            total -= stream.lent
            stream.fail(Reset.STALLED)
            if total <= STANDING_BYTES_MAX:
                break
    return total


def rest_rings(sessions: Collection[Session], now: Instant) -> int:
    """Give memory of rings back that is not needed, and hold less where all need much.

    Args:
        sessions: of this proxy.
        now: the instant of this look.
    Returns:
        Bytes of all rings.
    """
    total = sum(len(session.pipe.ring.view) for session in sessions)
    pressed = total > RING_BYTES_CALM
    for session in sessions:
        pipe = session.pipe
        pipe.held_max = HELD_MAX_PRESSED if pressed else HELD_MAX
        if pipe.ring.written != session.written:
            session.written = pipe.ring.written
            session.written_at = now
        elif pressed or now - session.written_at >= REST_US:
            pipe.rest()
    return total


def states(
    sessions: Iterable[Session], circuits: Mapping[int, TlsCircuit]
) -> tuple[SessionState, ...]:
    """Client sessions as they stand, for status views; those of the same two are told as one."""
    found: dict[tuple[str, str, str], SessionState] = {}
    for session in sessions:
        if not session.client or session.control is None:
            continue
        state = _state(session, circuits)
        key = (state.source, state.target, state.node)
        other = found.get(key)
        found[key] = state if other is None else _both(other, state)
    return tuple(found.values())


def _state(session: Session, circuits: Mapping[int, TlsCircuit]) -> SessionState:
    control, pipe = session.control, session.pipe
    standby = control.standby
    state = (
        "running"
        if control.active is not None and control.joined
        else ("paused" if control.joined else "new")
    )
    active = circuits.get(control.active.circuit.number) if control.active else None
    return SessionState(
        session.source,
        session.target,
        session.node,
        path=control.active.path if control.active is not None else (),
        standby=standby.path if standby is not None else (),
        streams=len(pipe.streams),
        state=state,
        requests=pipe.opened_total,
        bytes_out=pipe.ring.written,
        bytes_in=pipe.received,
        resent_bytes=pipe.resent,
        moves=control.moves,
        group=active.tls.group if active is not None else "",
        signature=active.tls.signature if active is not None else "",
    )


def _both(one: SessionState, other: SessionState) -> SessionState:
    """Two sessions of the same two workloads as one."""
    return msgspec.structs.replace(
        one if one.path else other,
        streams=one.streams + other.streams,
        requests=one.requests + other.requests,
        bytes_out=one.bytes_out + other.bytes_out,
        bytes_in=one.bytes_in + other.bytes_in,
        resent_bytes=one.resent_bytes + other.resent_bytes,
        moves=one.moves + other.moves,
    )
