"""The two gRPC servers of an authority: for nodes over mutual TLS, for operators on a socket.

Who calls is established once per connection: the judged SVID of a node (or none: then only the
calls that lead to one are answered), or the peer credentials of the local socket.  No connection
outlives the SVID that it was opened with, none without an SVID lives longer than ANONYMOUS_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import h2.exceptions
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream

from x0tta6bl4.core.authority.rows import Caller
from x0tta6bl4.core.machine import Allowed, Denied
from x0tta6bl4.edge.authority_api.codec import Codec, to_grpc
from x0tta6bl4.edge.authority_api.service import Service, with_connections
from x0tta6bl4.edge.grpc_listener import GrpcListener
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.errors import BadConfig, BadMessage, Conflict, Refused, X0Error
from x0tta6bl4.wire.ids import NodeName, node_of

CONNECTIONS_MAX: Final = 16_384
ANONYMOUS_MAX: Final = 256
"""Connections without an SVID at once: enrolling and returning nodes."""
ANONYMOUS_S: Final = 30.0
CALL_S: Final = 10.0
PUSH_S: Final = 30.0
"""A watcher that takes nothing for so long is cut off."""
GATHER_S: Final = 0.02
"""A watcher that was told something is told more after so long: a thousand entries in a row are
not a thousand updates."""
NONCE_S: Final = 30.0
CLOSE_EARLY_S: Final = 1.0
_WINDOW_BYTES: Final = 1024 * 1024
_ANONYMOUS_CALLS: Final = frozenset({"Trust", "Challenge", "Enrol", "Attest"})
_QUESTIONS: Final = frozenset({"Health"}) | {
    method for method in words.ADMIN_METHODS if method.endswith(("List", "Show"))
}
_THINGS: Final = ("key", "subject", "node", "name", "trust_domain", "step", "version")
_CREDENTIALS: Final = struct.Struct("3i")


class _Peer:
    """One connection: who it is, and what is to be remembered with it."""

    __slots__ = ("abort", "caller", "nonce", "nonce_at", "timer")

    def __init__(self, transport: Any, caller: Caller) -> None:
        self.abort: Callable[[], None] = transport.abort
        """Closes the connection at once."""
        self.caller = caller
        self.nonce = b""
        self.nonce_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def anonymous(self) -> bool:
        """Whether it has shown no SVID."""
        return self.caller.node is None and not self.caller.operator

    def spend_nonce(self) -> bytes:
        """The challenge given on this connection, once and for NONCE_S."""
        nonce, self.nonce = self.nonce, b""
        fresh = asyncio.get_running_loop().time() - self.nonce_at <= NONCE_S
        return nonce if fresh else b""


class _Listener(GrpcListener[_Peer]):
    """Peers whose SVID, or its absence, says how long they may stay."""

    def __init__(
        self,
        handlers: Any,
        identify: Callable[[Any], tuple[Caller, float | None]],
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(handlers, Codec(words.REQUEST_BYTES_MAX), _WINDOW_BYTES, on_refused)
        self._identify = identify
        self.anonymous = 0

    def meet(self, transport: Any) -> _Peer | Denied:
        try:
            caller, end_s = self._identify(transport)
        except X0Error as error:
            return Denied(error.what)
        peer = _Peer(transport, caller)
        if len(self.peers) >= CONNECTIONS_MAX or (
            peer.anonymous and self.anonymous >= ANONYMOUS_MAX
        ):
            return Denied("too many connections")
        self.anonymous += peer.anonymous
        if peer.anonymous:
            end_s = ANONYMOUS_S
        if end_s is not None:
            loop = asyncio.get_running_loop()
            peer.timer = loop.call_later(max(0.0, end_s), peer.abort)
        return peer

    def forget(self, peer: _Peer) -> None:
        self.anonymous -= peer.anonymous
        if peer.timer is not None:
            peer.timer.cancel()

    def peer_of(self, stream: Any) -> _Peer:
        """Who sent a request."""
        peer = self.of(stream)
        if peer is None:
            raise Refused("X0-AUT-084", "the connection is not admitted")
        return peer


class ApiServer:
    """Serves nodes and operators from one Service.

    Args:
        service: decides and writes.
        unix_us: wall time, microseconds.
        fill_health: completes what the machine says of its health.
        on_refused: told why a connection was not admitted (for counts and the log).
        on_operator: told what an operator has changed: method and name of the thing.
    """

    def __init__(
        self,
        service: Service,
        unix_us: Callable[[], int],
        fill_health: Callable[[words.Health], words.Health],
        on_refused: Callable[[str], None],
        on_operator: Callable[[str, str], None],
    ) -> None:
        self._service = service
        self._unix_us = unix_us
        self._fill_health = fill_health
        self._on_operator = on_operator
        self.calls: dict[str, int] = {}
        self._nodes = _Listener(
            _Methods(words.SERVICE, self._nodes_table()), self._judged, on_refused
        )
        self._operators = _Listener(
            _Methods(words.ADMIN, self._operators_table()), _credentials, on_refused
        )

    async def serve_nodes(self, sock: socket.socket, tls: Any) -> None:
        """Take nodes on a bound TCP socket.

        Args:
            sock: bound, not listening.
            tls: server context of `edge.tls.aio`, with `demand=False`.
        """
        await self._nodes.listen(sock, tls)

    async def serve_operators(self, sock: socket.socket) -> None:
        """Take operators on a bound unix socket that only this user can reach."""
        await self._operators.listen(sock)

    async def stop(self) -> None:
        """Close everything; at most 4 s."""
        await self._nodes.stop()
        await self._operators.stop()

    def cut(self, node: str, reason: str) -> None:
        """Close all connections of a node."""
        for peer in list(self._nodes.peers.values()):
            if peer.caller.node == node:
                peer.abort()

    def statistics(self) -> dict[str, int]:
        """Connections of now and calls so far (`calls|Issue|ok`)."""
        return {
            "connections": len(self._nodes.peers),
            "anonymous": self._nodes.anonymous,
            **{f"calls|{name}": count for name, count in sorted(self.calls.items())},
        }

    # -------------------------------------------------------------- who
    def _judged(self, transport: Any) -> tuple[Caller, float | None]:
        tls = transport.get_extra_info("ssl_object")
        if type(tls.peer) is not Allowed:
            return Caller(), None  # No SVID: judged ones that are not allowed don't get this far.
        name = node_of(tls.peer.peer)
        if name is None:
            raise Refused("X0-AUT-085", "not a node's SVID")
        left_s = tls.peer_not_after_unix_s - self._unix_us() / 1e6 - CLOSE_EARLY_S
        return Caller(node=NodeName(name), not_before_unix_s=tls.engine.peer_issued_unix_s), left_s

    # -------------------------------------------------------------- what
    def _nodes_table(self) -> dict[str, Handler]:
        table = {}
        for method, (request, reply) in words.METHODS.items():
            streaming = method == "Watch"
            call = self._watch if streaming else self._unary(method, self_of="nodes")
            kind = Cardinality.UNARY_STREAM if streaming else Cardinality.UNARY_UNARY
            table[method] = Handler(call, kind, request, reply)
        return table

    def _operators_table(self) -> dict[str, Handler]:
        return {
            method: Handler(
                self._unary(method, self_of="operators"), Cardinality.UNARY_UNARY, request, reply
            )
            for method, (request, reply) in words.ADMIN_METHODS.items()
        }

    def _unary(self, method: str, self_of: str) -> Callable[[Stream[Any, Any]], Any]:
        async def call(stream: Stream[Any, Any]) -> None:
            listener = self._nodes if self_of == "nodes" else self._operators
            with self._counted(method):
                async with asyncio.timeout(CALL_S):
                    peer = listener.peer_of(stream)
                    request = await _receive(stream)
                    reply = await self._call(peer, method, request)
                    await stream.send_message(reply)

        return call

    async def _call(self, peer: _Peer, method: str, request: Any) -> Any:
        caller = peer.caller
        if caller.operator:
            reply = with_connections(
                self._service, await self._service.ask(caller, method, request)
            )
            if method not in _QUESTIONS:
                self._on_operator(method, _thing(request))
            return self._fill_health(reply) if method == "Health" else reply
        if caller.node is None and method not in _ANONYMOUS_CALLS:
            raise Refused(
                "X0-AUT-086",
                "this call needs a node's SVID",
                "enrol, or attest by the long-lived key",
            )
        if method == "Attest":
            caller = Caller(
                node=caller.node,
                not_before_unix_s=caller.not_before_unix_s,
                nonce=peer.spend_nonce(),
            )
        reply = await self._service.ask(caller, method, request)
        if method == "Challenge":
            peer.nonce, peer.nonce_at = reply.nonce, asyncio.get_running_loop().time()
        return reply

    async def _watch(self, stream: Stream[Any, Any]) -> None:
        with self._counted("Watch"):
            peer = self._nodes.peer_of(stream)
            async with asyncio.timeout(CALL_S):
                request = await _receive(stream)
            node = peer.caller.node
            if node is None:
                raise Refused("X0-AUT-086", "this call needs a node's SVID")
            watcher = self._service.watch(node)
            try:
                first = await self._service.ask(peer.caller, "Watch", request, watcher.reset)
                await _push(stream, peer, first)
                while True:
                    await _push(stream, peer, await self._service.next_update(watcher, peer.caller))
                    await asyncio.sleep(GATHER_S)
            finally:
                self._service.unwatch(watcher)

    @contextlib.contextmanager
    def _counted(self, method: str) -> Any:
        """Turn what a call raises into gRPC's words, and count how it ended."""
        outcome = "ok"
        try:
            yield
        except X0Error as error:
            outcome = error.id
            raise to_grpc(error) from None
        except TimeoutError:
            outcome = "deadline"
            raise GRPCError(Status.DEADLINE_EXCEEDED, "") from None
        except (AssertionError, StreamTerminatedError, h2.exceptions.ProtocolError, OSError):
            outcome = "broken"  # The caller went away, or sent half a message.
            raise GRPCError(Status.CANCELLED, "") from None
        except asyncio.CancelledError:
            outcome = "gone"
            raise
        finally:
            key = f"{method}|{outcome}"
            self.calls[key] = self.calls.get(key, 0) + 1


class _Methods:
    """What grpclib asks a service for."""

    def __init__(self, service: str, table: dict[str, Handler]) -> None:
        self._mapping = {f"/{service}/{method}": handler for method, handler in table.items()}

    def __mapping__(self) -> dict[str, Handler]:
        """Path -> handler."""
        return self._mapping


def _thing(request: Any) -> str:
    """What an operator's request is about."""
    found = (str(getattr(request, field, "")) for field in _THINGS)
    return next((text for text in found if text), "")


async def _receive(stream: Stream[Any, Any]) -> Any:
    # grpclib would gather up to 4 GiB before its codec is asked.
    raw: Any = stream._stream
    head = await raw.recv_data(5)
    length = int.from_bytes(head[1:5], "big")
    if len(head) != 5 or head[0] or length > words.REQUEST_BYTES_MAX:
        raise BadMessage(
            "X0-AUT-002",
            f"message of {length} bytes",
            f"at most {words.REQUEST_BYTES_MAX}, not compressed",
        )
    return stream._codec.decode(await raw.recv_data(length), stream._recv_type)


async def _push(stream: Stream[Any, Any], peer: _Peer, update: words.Update) -> None:
    try:
        async with asyncio.timeout(PUSH_S):
            await stream.send_message(update)
    except TimeoutError:
        peer.abort()
        raise


def _credentials(transport: Any) -> tuple[Caller, float | None]:
    raw = transport.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, uid, _ = _CREDENTIALS.unpack(raw)
    if uid not in (0, os.geteuid()):
        raise Refused("X0-AUT-087", f"uid {uid} is no operator of this authority")
    return Caller(operator=True), None


# ------------------------------------------------------------------ sockets
def bind_tcp(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; port 0 takes any.

    Raises:
        Conflict: X0-AUT-088 the port is taken.
        BadConfig: X0-AUT-090 the address is not one of this machine, or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )[0]
    except OSError:
        raise BadConfig(
            "X0-AUT-090",
            f"{host!r} is no IP address to listen on",
            "write an address of this machine, e.g. 0.0.0.0 or [::]",
        ) from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)  # Says at once whether the port is taken.
    except OSError as error:
        sock.close()
        if error.errno == 98:
            raise Conflict(
                "X0-AUT-088",
                f"port {port} on {host} is taken",
                "stop what listens there, or choose another port",
            ) from None
        raise BadConfig(
            "X0-AUT-090",
            f"can't listen on {host}:{port}: {error.strerror}",
            "check the address and your rights",
        ) from None
    return sock
