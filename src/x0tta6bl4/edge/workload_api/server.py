"""The SPIFFE Workload API on a Unix socket.

    accepted --kernel says who--> Peer --each call attested--> Directory --snapshots--> streams

Callers say nothing of themselves (SP-096): the kernel does.  Answers are pushed when something has
changed and never repeat what a stream has been told already.  A first answer is held back while
there is no identity yet, for `hold_s`; whoever loses the last identity hears PermissionDenied.

Every call takes a place, of its user and in all; so does every connection.  Beyond the bounds calls
end with ResourceExhausted and connections are closed.

Source: SPIFFE Workload Endpoint sections 3 to 7, SPIFFE Workload API sections 4 to 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, final

import h2.exceptions
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.peer import Peer, PeerAttestor
from x0tta6bl4.edge.grpc_listener import GrpcListener, abort
from x0tta6bl4.edge.workload_api import answers, reflection, schema
from x0tta6bl4.edge.workload_api.words import Directory, Snapshot
from x0tta6bl4.wire.authority import AUDIENCE_BYTES_MAX, AUDIENCES_MAX
from x0tta6bl4.wire.errors import BadId, Conflict, Refused, Unavailable, X0Error
from x0tta6bl4.wire.ids import spiffe_id

REQUEST_BYTES_MAX: Final = 64 * 1024
"""Longest request: a JWT-SVID and an audience."""
REQUEST_S: Final = 5.0
"""Longest wait for a request whose headers have come."""
CALL_S: Final = 20.0
"""Longest time for a call that is no stream, the hold not counted."""
PUSH_S: Final = 10.0
"""Longest wait for a client that does not read; then its connection is closed."""
SOCKET_MODE: Final = 0o666
_WINDOW_BYTES: Final = 2**16


@final
class Bounds(Value, frozen=True):
    """How much is served at once."""

    calls_max: int = 16_384
    """Calls that are open, streams among them."""
    calls_of_user_max: int = 12_288
    """Of these, of one user, so that nobody takes all."""
    connections_max: int = 8_192
    connections_of_user_max: int = 6_144


class _Codec(CodecBase):
    """Messages of our own pool, or bytes that were encoded before."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        """One message body."""
        return message if type(message) is bytes else message.SerializeToString()

    def decode(self, data: bytes, message_type: Any) -> Any:
        """The message in a body."""
        return message_type.FromString(data)


class _Table(dict[str, Handler]):
    """Handlers; grpclib's own answer for a method that is not there has no content type."""

    def get(self, key: str, default: Any = None) -> Any:
        """The handler of a path, or one that says that there is none."""
        return super().get(key, _UNIMPLEMENTED)


async def _unimplemented(stream: Stream[Any, Any]) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "no such method")


_UNIMPLEMENTED: Final = Handler(_unimplemented, Cardinality.STREAM_STREAM, bytes, bytes)


class _Listener(GrpcListener[Peer]):
    """Callers as the kernel knows them, so many of each user."""

    def __init__(
        self,
        handlers: Any,
        attestor: PeerAttestor,
        bounds: Bounds,
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(handlers, _Codec(), _WINDOW_BYTES, on_refused)
        self._mapping = _Table(self._mapping)
        self._attestor = attestor
        self._bounds = bounds
        self._of_user: dict[int, int] = {}

    def meet(self, transport: Any) -> Peer | Denied:
        peer = self._attestor.meet(transport.get_extra_info("socket"))
        if isinstance(peer, Denied):
            return peer
        of_user = self._of_user.get(peer.uid, 0)
        if (
            len(self.peers) >= self._bounds.connections_max
            or of_user >= self._bounds.connections_of_user_max
        ):
            peer.close()
            return Denied("too many connections")
        self._of_user[peer.uid] = of_user + 1
        return peer

    def forget(self, peer: Peer) -> None:
        peer.close()
        self._of_user[peer.uid] -= 1
        if not self._of_user[peer.uid]:
            del self._of_user[peer.uid]

    def peer_of(self, stream: Any) -> Peer:
        """Who sent a request."""
        peer = self.of(stream)
        if peer is None:
            raise GRPCError(Status.PERMISSION_DENIED, "the connection is not admitted")
        return peer


class WorkloadServer:
    """Serves the workloads of this host.

    Args:
        directory: who has what.
        attestor: meets callers.
        hold_s: how long a first answer may wait for an identity.
        bounds: how much at once.
        on_refused: told why a connection or a caller was refused (for counts and the log).

    Attributes:
        calls: `method|code` -> calls that ended so.
        pushes: method -> messages of streams.
    """

    def __init__(
        self,
        directory: Directory,
        attestor: PeerAttestor,
        hold_s: float = 5.0,
        bounds: Bounds | None = None,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._directory = directory
        self._hold_s = hold_s
        self._bounds = bounds or Bounds()
        self._open_calls: dict[int, int] = {}
        self._open = 0
        self.calls: dict[str, int] = {}
        self.pushes: dict[str, int] = {}
        self._path: Path | None = None
        self._listener = _Listener(self, attestor, self._bounds, on_refused)

    async def start(self, path: Path) -> None:
        """Listen; every user of this host may connect.

        Args:
            path: of the socket; what an earlier server left there is replaced.
        Raises:
            Conflict: X0-WLA-001 somebody listens there.
            Unavailable: X0-WLA-002 the socket can't be made.
        """
        await self._listener.listen(_bind(path))
        self._path = path

    async def stop(self) -> None:
        """End all calls, remove the socket; at most 2 s."""
        await self._listener.stop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def statistics(self) -> dict[str, int]:
        """Connections and calls that are open now."""
        return {"connections": len(self._listener.peers), "open": self._open}

    def __mapping__(self) -> dict[str, Handler]:
        """Path -> handler, as grpclib asks for it."""
        table = {}
        for method, (request, response, is_stream) in schema.METHODS.items():
            kind = Cardinality.UNARY_STREAM if is_stream else Cardinality.UNARY_UNARY
            call = self._call(method)
            table[schema.path(method)] = Handler(call, kind, request, response)
        table |= self._beside()
        return table

    # -------------------------------------------------------------- every call
    def _call(self, method: str) -> Callable[[Stream[Any, Any]], Any]:
        serve = {"FetchJWTSVID": self._fetch_jwt, "ValidateJWTSVID": self._validate}.get(method)

        async def call(stream: Stream[Any, Any]) -> None:
            with self._counted(method, stream) as peer:
                name, value = schema.METADATA
                if stream.metadata is None or stream.metadata.getall(name, None) != [value]:
                    raise GRPCError(
                        Status.INVALID_ARGUMENT, f"the metadata {name}: {value} is missing"
                    )
                request = await _receive(stream)
                if serve is None:
                    await self._push_for_ever(method, stream, peer, request)
                else:
                    await stream.send_message(await serve(peer, request))

        return call

    @contextlib.contextmanager
    def _counted(self, method: str, stream: Stream[Any, Any]) -> Iterator[Peer]:
        """Take a place, turn what a call raises into gRPC's words, count how it ended."""
        code = "ok"
        peer: Peer | None = None
        try:
            found = self._listener.peer_of(stream)
            of_user = self._open_calls.get(found.uid, 0)
            if self._open >= self._bounds.calls_max or of_user >= self._bounds.calls_of_user_max:
                raise GRPCError(Status.RESOURCE_EXHAUSTED, "too many calls are open")
            peer = found
            self._open_calls[peer.uid] = of_user + 1
            self._open += 1
            yield peer
        except X0Error as error:
            status = Status.PERMISSION_DENIED if isinstance(error, Refused) else Status.UNAVAILABLE
            code = status.name.lower()
            raise GRPCError(status, f"{error.id} {error.what}") from None
        except GRPCError as error:
            code = error.status.name.lower()
            raise
        except TimeoutError:
            code = "deadline_exceeded"
            raise GRPCError(Status.DEADLINE_EXCEEDED, "") from None
        except (StreamTerminatedError, h2.exceptions.ProtocolError, OSError):
            code = "cancelled"  # The caller went away.
            raise GRPCError(Status.CANCELLED, "") from None
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        finally:
            key = f"{method}|{code}"
            self.calls[key] = self.calls.get(key, 0) + 1
            if peer is not None:
                self._open -= 1
                self._open_calls[peer.uid] -= 1
                if not self._open_calls[peer.uid]:
                    del self._open_calls[peer.uid]

    # -------------------------------------------------------------- streams
    async def _push_for_ever(
        self, method: str, stream: Stream[Any, Any], peer: Peer, request: Any
    ) -> None:
        encode = answers.STREAMS[method]
        wanted = _wanted(request) if method == "FetchWITSVID" else ""
        sent: bytes | None = None
        async with contextlib.aclosing(_Updates(self._directory.subscribe(peer))) as updates:
            snapshot = await self._first(updates)
            while True:
                if snapshot.wit is None and method.startswith("FetchWIT"):
                    raise GRPCError(Status.UNIMPLEMENTED, "no WIT-SVIDs here")
                if wanted:
                    data = answers.wit_svids(_having(snapshot, wanted), wanted)
                else:
                    data = snapshot.encoded(method, encode)
                if data != sent:
                    await self._push(stream, data)
                    self.pushes[method] = self.pushes.get(method, 0) + 1
                    sent = data
                snapshot = await updates.next()
                if not snapshot.svids:
                    raise _no_identity()

    async def _first(self, updates: _Updates) -> Snapshot:
        """What a caller has, as soon as it has anything (SP-106, SP-099)."""
        try:
            snapshot = await updates.next()
            async with asyncio.timeout(self._hold_s):
                while not snapshot.svids:
                    snapshot = await updates.next()
        except TimeoutError:
            raise _no_identity() from None
        return snapshot

    async def _push(self, stream: Stream[Any, Any], data: bytes) -> None:
        try:
            async with asyncio.timeout(PUSH_S):
                await stream.send_message(data)
        except TimeoutError:
            abort(stream)
            raise

    # -------------------------------------------------------------- JWT-SVIDs
    async def _fetch_jwt(self, peer: Peer, request: Any) -> Any:
        audience = tuple(request.audience)
        if not 0 < len(audience) <= AUDIENCES_MAX or not all(
            0 < len(one.encode()) <= AUDIENCE_BYTES_MAX for one in audience
        ):
            raise GRPCError(
                Status.INVALID_ARGUMENT, f"give 1 to {AUDIENCES_MAX} audiences, none empty"
            )
        wanted = _wanted(request)
        async with contextlib.aclosing(_Updates(self._directory.subscribe(peer))) as updates:
            snapshot = _having(await self._first(updates), wanted)
        svids = tuple(svid for svid in snapshot.svids if wanted in ("", svid.id))
        async with asyncio.timeout(CALL_S):
            tokens = await self._directory.mint(peer, svids, audience)
        made = schema.JWTSVIDResponse()
        for svid, token in zip(svids, tokens, strict=True):
            made.svids.add(spiffe_id=svid.id, svid=token, hint=svid.hint)
        return made

    async def _validate(self, peer: Peer, request: Any) -> Any:
        if not request.audience or not request.svid:
            raise GRPCError(Status.INVALID_ARGUMENT, "give an audience and a JWT-SVID")
        async with contextlib.aclosing(_Updates(self._directory.subscribe(peer))) as updates:
            snapshot = await self._first(updates)
        found = self._directory.validate(snapshot, request.svid, request.audience)
        if isinstance(found, Denied):
            raise GRPCError(Status.INVALID_ARGUMENT, f"not a good JWT-SVID: {found.reason}")
        made = schema.ValidateJWTSVIDResponse(spiffe_id=found.id)
        made.claims.update(found.claims)
        return made

    # -------------------------------------------------------------- health, reflection
    def _beside(self) -> dict[str, Handler]:
        request, response = reflection.HealthCheckRequest, reflection.HealthCheckResponse
        table = {
            f"/{reflection.HEALTH}/Check": Handler(
                self._check, Cardinality.UNARY_UNARY, request, response
            ),
            f"/{reflection.HEALTH}/Watch": Handler(
                self._watch, Cardinality.UNARY_STREAM, request, response
            ),
        }
        for service in reflection.REFLECTION:
            table[f"/{service}/ServerReflectionInfo"] = Handler(
                self._reflect(service),
                Cardinality.STREAM_STREAM,
                *reflection.reflection_types(service),
            )
        return table

    async def _check(self, stream: Stream[Any, Any]) -> None:
        with self._counted("Check", stream):
            found = reflection.check((await _receive(stream)).service)
            if found is None:
                raise GRPCError(Status.NOT_FOUND, "no such service")
            await stream.send_message(found)

    async def _watch(self, stream: Stream[Any, Any]) -> None:
        with self._counted("Watch", stream):
            async for answer in reflection.watch((await _receive(stream)).service):
                await self._push(stream, answer)

    def _reflect(self, service: str) -> Callable[[Stream[Any, Any]], Any]:
        async def call(stream: Stream[Any, Any]) -> None:
            with self._counted("ServerReflectionInfo", stream):
                while True:
                    request = await _receive_next(stream)
                    if request is None:
                        return
                    await self._push(stream, reflection.reflect(service, request))

        return call


class _Updates:
    """A subscription that is closed for certain."""

    __slots__ = ("_updates",)

    def __init__(self, updates: AsyncIterator[Snapshot]) -> None:
        self._updates = updates

    async def next(self) -> Snapshot:
        """The next that is different, or the first."""
        return await anext(self._updates)

    async def aclose(self) -> None:
        """No more is wanted."""
        close = getattr(self._updates, "aclose", None)
        if close is not None:
            await close()


def _wanted(request: Any) -> str:
    """The SPIFFE ID that is asked for, in normal form; empty: all."""
    try:
        return spiffe_id(request.spiffe_id) if request.spiffe_id else ""
    except BadId as error:
        raise GRPCError(Status.INVALID_ARGUMENT, error.what) from None


def _having(snapshot: Snapshot, wanted: str) -> Snapshot:
    """The snapshot, if the identity that is asked for is in it (SP-119)."""
    if wanted and all(svid.id != wanted for svid in snapshot.svids):
        raise GRPCError(Status.PERMISSION_DENIED, "that identity is not the caller's")
    return snapshot


def _no_identity() -> GRPCError:
    return GRPCError(Status.PERMISSION_DENIED, "no identity issued")


async def _receive(stream: Stream[Any, Any]) -> Any:
    """The one request of a call that has no more."""
    async with asyncio.timeout(REQUEST_S):
        request = await _receive_next(stream)
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "no request")
    return request


async def _receive_next(stream: Stream[Any, Any]) -> Any | None:
    # grpclib would gather up to 4 GiB before its codec is asked.
    raw: Any = stream._stream
    head = await raw.recv_data(5)
    if not head:
        return None
    length = int.from_bytes(head[1:5], "big")
    if len(head) != 5 or head[0] or length > REQUEST_BYTES_MAX:
        raise GRPCError(
            Status.INVALID_ARGUMENT, f"a request has at most {REQUEST_BYTES_MAX} bytes, plain"
        )
    data = await raw.recv_data(length) if length else b""
    try:
        if len(data) != length:
            raise DecodeError
        return stream._codec.decode(data, stream._recv_type)
    except DecodeError:
        raise GRPCError(Status.INVALID_ARGUMENT, "not a request of this method") from None


def _bind(path: Path) -> socket.socket:
    """A listening socket at a path, for every user."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as other:
                other.settimeout(1.0)
                if other.connect_ex(str(path)) == 0:
                    raise Conflict(
                        "X0-WLA-001",
                        f"somebody serves the Workload API at {path}",
                        "stop it, or set workload_api.socket",
                    )
            path.unlink(missing_ok=True)
        sock.bind(str(path))
        os.chmod(path, SOCKET_MODE)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise Unavailable(
            "X0-WLA-002",
            f"can't listen at {path}: {error.strerror}",
            "set workload_api.socket to a path that this process may make",
        ) from None
    except X0Error:
        sock.close()
        raise
    return sock
