"""Calls of local applications: who may call what, which replica, and another one if it refuses.

    connect --> name -> ID -> policy -> replicas --> OPEN + first DATA --OPENED--> carried
                                ^                        '--refused, too late--.
                                '------- next replica, with the first bytes ---'

The first bytes of a stream (at most its first credit, 64 KiB) are kept until OPENED, where there is
another replica to try.  What was OPENED stays with its replica.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Instant
from x0tta6bl4.core.policy.gate import plain
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.connect import reset
from x0tta6bl4.runtime.loop.parting import Partings
from x0tta6bl4.runtime.loop.sessions import RETRY, Opening, Reply, StreamRecord
from x0tta6bl4.runtime.loop.streams import AppStream
from x0tta6bl4.wire.errors import BadId
from x0tta6bl4.wire.ids import SpiffeId, spiffe_id

if TYPE_CHECKING:
    from x0tta6bl4.runtime.loop.endpoint import Endpoint

OPEN_US: Final = 10 * SECOND
"""How long OPENED may take before another replica is tried."""
REACH_US: Final = 3 * SECOND
"""The same while the session has never had a circuit and there is another replica."""


class Calls:
    """The client side of an endpoint.

    Args:
        endpoint: whose sessions carry the calls.
    """

    __slots__ = ("_endpoint", "_loop", "_openings", "_partings", "_proxy")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = endpoint.loop
        self._partings = Partings(endpoint.loop)
        self._proxy = endpoint.proxy
        self._openings: dict[AppStream, None] = {}
        """Streams that were not OPENED yet; bounded by the endpoint's streams."""

    @property
    def opening(self) -> int:
        """Streams that were not OPENED yet."""
        return len(self._openings)

    def connect(
        self,
        sock: socket.socket,
        source: SpiffeId,
        name: str,
        *,
        port: int = 0,
        reply: Reply | None = None,
        first: bytes = b"",
        own: bool = False,
    ) -> Allowed | Denied:
        """Take an application's connection and carry it to a service.

        Args:
            sock: accepted, non-blocking; owned from here on, also when it is refused.
            source: who calls, as its socket's owner was attested.
            name: service name, with or without `.mesh`, or a SPIFFE ID.
            port: port that the application named, 0 if none.
            reply: for SOCKS5 and CONNECT: gives the bytes of the answer, after OPENED or a
                refusal; None: nothing is answered, and a refusal is a reset.
            first: bytes of the application that were read already, at most 64 KiB.
            own: carry it in a session of its own.
        Returns:
            Allowed(target) if it is under way, Denied if it was refused at once.
        """
        sock.setblocking(False)
        now = clock()
        target = self._target(name)
        name = "" if is_id(name) else plain(name)
        if target is None:
            return self._refuse(sock, source, name, reply, "no such name", Reset.NO_SERVICE)
        if self._proxy.svid(source) is None:
            return self._refuse(sock, source, name, reply, "caller has no svid", Reset.DENIED)
        verdict = self._proxy.open(source, target, name)
        if type(verdict) is Denied:
            return self._refuse(sock, source, name, reply, verdict.reason, Reset.DENIED)
        if self._endpoint.draining:
            return self._refuse(sock, source, name, reply, "draining", Reset.DRAINING)
        if self._endpoint.full:
            return self._refuse(sock, source, name, reply, "too many streams", Reset.BUSY)
        replicas = self._proxy.replicas(target)
        if not replicas and not own:
            replicas = self._proxy.reached(source, target)
        if not replicas:
            return self._refuse(sock, source, name, reply, "no replica", Reset.UNREACHABLE)
        opening = Opening(source, target, name, port, replicas, reply, first, now, own)
        self._try_next(sock, opening, Reset.UNREACHABLE)
        return Allowed(target)

    def _target(self, name: str) -> SpiffeId | None:
        """The ID that a name or an ID given as text stands for."""
        if not is_id(name):
            return self._proxy.resolve(name)
        try:
            return spiffe_id(name)
        except BadId:
            return None

    def _refuse(
        self,
        sock: socket.socket,
        source: SpiffeId,
        name: str,
        reply: Reply | None,
        why: str,
        reason: Reset,
    ) -> Denied:
        self._endpoint.count("streams_refused")
        self._part(sock, reply, reason)
        record = StreamRecord(source, "", name, True, "", (), 0, 0, 0, f"refused: {why}")
        self._endpoint.on_record(record)
        return Denied(why)

    def _part(self, sock: socket.socket, reply: Reply | None, reason: Reset) -> None:
        """Answer an application that gets no stream, so that it can read the answer."""
        if reply is None:
            reset(sock)
        else:
            self._partings.say(sock, reply(reason))

    def close(self) -> None:
        """Close those that were refused."""
        self._partings.close()

    def _try_next(self, sock: socket.socket, opening: Opening, reason: Reset) -> None:
        """Open a stream to the best replica that was not tried yet."""
        while opening.replicas:
            node = opening.replicas.pop(0)
            opening.tried.append(node)
            session = self._endpoint.session_to(
                opening.source, opening.target, node, own=opening.own
            )
            if session is None:
                reason = Reset.BUSY
                continue
            stream = AppStream(session, sock, opening.begun_at)
            refused = session.pipe.open(stream, Open(opening.name, opening.port))
            if refused is not None:
                reason = refused
                continue
            self._begin(stream, opening)
            return
        self._endpoint.count("streams_refused")
        self._part(sock, opening.reply, reason)
        self._endpoint.on_record(
            StreamRecord(
                opening.source,
                opening.target,
                opening.name,
                True,
                "",
                (),
                0,
                0,
                clock() - opening.begun_at,
                f"refused: {reason.phrase}",
            )
        )

    def _begin(self, stream: AppStream, opening: Opening) -> None:
        self._endpoint.begun()
        stream.opening = opening
        opening.tried_at = clock()
        self._openings[stream] = None
        if opening.replicas:
            stream.early = bytearray(opening.first)
        if opening.reply is not None:
            stream.held = True
            return
        stream.send_first(opening.first)
        stream.start()

    def opened(self, stream: AppStream) -> None:
        """The service has taken the connection (called by its session)."""
        self._openings.pop(stream, None)
        opening, stream.opening = stream.opening, None
        self._endpoint.count("streams_opened")
        if opening is None or opening.reply is None:
            return
        stream.put_first(opening.reply(None))
        stream.send_first(opening.first)
        stream.start()

    def try_another(self, stream: AppStream, reason: Reset) -> bool:
        """A stream was reset: whether it was only refused and another replica may have it."""
        opening = stream.opening
        if opening is None:
            return False
        stream.opening = None
        self._openings.pop(stream, None)
        early = stream.early
        kept = early is not None or (stream.held and not stream.sent)
        if reason not in RETRY or not opening.replicas or not kept or stream.received:
            if opening.reply is None:
                return False
            self._part(stream.leave(reason.phrase), opening.reply, reason)
            return True
        if early is not None and opening.reply is None:
            opening.first = bytes(early)
        sock = stream.leave(reason.phrase)
        self._loop.after_batch(lambda: self._try_next(sock, opening, reason))
        return True

    def ended(self, stream: AppStream) -> None:
        """A stream is over."""
        self._openings.pop(stream, None)

    def sweep(self, now: Instant) -> None:
        """Give those up that wait for too long."""
        for stream in tuple(self._openings):
            opening = stream.opening
            if opening is None:
                continue
            waited = now - opening.tried_at
            unreachable = not stream.session.joined and bool(opening.replicas)
            if waited > (REACH_US if unreachable else OPEN_US):
                pipe = stream.pipe
                if pipe is not None:
                    pipe.reset(stream, Reset.CONNECT_TIMEOUT)
                    stream.on_reset(Reset.CONNECT_TIMEOUT)


def is_id(name: str) -> bool:
    """Whether an application asked by SPIFFE ID rather than by name."""
    return name[:9].lower() == "spiffe://"
