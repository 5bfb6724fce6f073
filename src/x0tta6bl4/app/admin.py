"""The agent's admin socket: the server for the agent, the blocking client for commands.

Only the agent's own user and root get in: the socket is 0600 in the 0700 state directory, and the
kernel is asked who is calling (SO_PEERCRED) on top.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar

from x0tta6bl4.runtime.local import is_own, listen_private, peer_of
from x0tta6bl4.wire.admin import (
    WATCH_MS_MIN,
    AdminAnswer,
    AdminRequest,
    CheckAnswer,
    Drain,
    Explain,
    ExplainDenied,
    Explanation,
    Fine,
    GetCheck,
    GetMetrics,
    GetPath,
    GetStatus,
    GetSupport,
    PathAnswer,
    Refusal,
    Renew,
    Status,
    Stop,
    Support,
    Text,
    Watch,
    answer_reader,
    request_reader,
)
from x0tta6bl4.wire.codec import encode
from x0tta6bl4.wire.errors import BadMessage, Refused, Unavailable, X0Error

SOCKET_NAME: Final = "agent.sock"
CONNECTIONS_MAX: Final = 64
REQUEST_S: Final = 10.0
WRITE_S: Final = 10.0
_CHUNK_BYTES = 256 * 1024

A = TypeVar("A", bound=AdminAnswer)


class NodeAdmin(Protocol):
    """What the agent does for commands.  Each may raise an `X0Error`, which becomes a `Refusal`."""

    def status(self) -> Status:
        """This node now, without waiting for anything."""
        ...

    async def path(self, request: GetPath) -> PathAnswer:
        """Paths from one node to a node, name or ID."""
        ...

    async def check(self) -> CheckAnswer:
        """Findings, worst first."""
        ...

    async def metrics(self) -> Text:
        """Prometheus text."""
        ...

    async def support(self) -> Support:
        """Files of a support bundle, redacted."""
        ...

    async def explain(self, request: Explain) -> Explanation:
        """What the gate says."""
        ...

    async def explain_denied(self, request: ExplainDenied) -> CheckAnswer:
        """Why no program has an identity."""
        ...

    async def renew(self, request: Renew) -> Fine:
        """Renew SVIDs; returns once they are in use."""
        ...

    async def drain(self, request: Drain) -> Fine:
        """Return once the last stream has ended, or the time is up."""
        ...

    async def stop(self) -> Fine:
        """Begin to stop; the answer still goes out."""
        ...


class AdminServer:
    """Serves `agent.sock`.

    Args:
        path: where; a socket left by a dead agent is taken over, a live one is a `Conflict`.
        node: who answers.
    """

    __slots__ = ("_connections", "_node", "_path", "_server")

    def __init__(self, path: Path, node: NodeAdmin) -> None:
        self._path = path
        self._node = node
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            Refused, Conflict, BadConfig: see `runtime.local.listen_private`.
        """
        listener = listen_private(self._path, "an agent", CONNECTIONS_MAX)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def close(self) -> None:
        """Remove the socket, stop listening, end all connections."""
        if self._server is None:
            return
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # First: the next one's is not ours to remove.
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, BadMessage):
            pass  # Its end of the conversation; the next connection starts afresh.
        except asyncio.CancelledError:
            pass  # Only `close` cancels; a cancelled task would make asyncio.streams log an error.
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._connections.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        refusal = self._admit(writer.get_extra_info("socket"))
        if refusal is not None:
            await _write(writer, refusal)
            return
        requests = request_reader()
        while data := await reader.read(_CHUNK_BYTES):
            for request in requests.feed(data):
                if type(request) is Watch:
                    await self._watch(reader, writer, request)
                    return
                await _write(writer, await self._answer(request))

    def _admit(self, connection: socket.socket) -> Refusal | None:
        peer = peer_of(connection)
        if not is_own(peer):
            return Refusal("X0-ADM-002", f"uid {peer.uid} may not command this node", "use sudo")
        if len(self._connections) > CONNECTIONS_MAX:
            return Refusal(
                "X0-ADM-005", f"{CONNECTIONS_MAX} commands are connected already", "end some"
            )
        return None

    async def _answer(self, request: AdminRequest) -> AdminAnswer:
        node = self._node
        try:
            if type(request) is GetStatus:
                return node.status()
            if type(request) is GetPath:
                return await node.path(request)
            if type(request) is GetCheck:
                return await node.check()
            if type(request) is GetMetrics:
                return await node.metrics()
            if type(request) is GetSupport:
                return await node.support()
            if type(request) is Explain:
                return await node.explain(request)
            if type(request) is ExplainDenied:
                return await node.explain_denied(request)
            if type(request) is Renew:
                return await node.renew(request)
            if type(request) is Drain:
                return await node.drain(request)
            assert type(request) is Stop
            return await node.stop()
        except X0Error as error:
            return Refusal(error.id, error.what, error.hint)

    async def _watch(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Watch
    ) -> None:
        """Send a status per interval until the asker closes or says anything more."""
        interval_s = max(request.interval_ms, WATCH_MS_MIN) / 1000
        closed = asyncio.create_task(reader.read(1))
        try:
            while not closed.done():
                await _write(writer, self._node.status())
                await asyncio.wait((closed,), timeout=interval_s)
        finally:
            closed.cancel()
            await asyncio.gather(closed, return_exceptions=True)


class AdminClient:
    """Asks a node's agent, blocking; for commands and tests.

    Args:
        state_dir: the node's `state_dir`.
        timeout_s: longest wait for one answer.
    Raises:
        Unavailable: no agent is running there, or it does not answer in time.
        Refused: this user may not ask.
    """

    __slots__ = ("_answers", "_path", "_socket", "_waiting")

    def __init__(self, state_dir: Path, timeout_s: float = REQUEST_S) -> None:
        self._path = state_dir / SOCKET_NAME
        self._answers = answer_reader()
        self._waiting: list[AdminAnswer] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise _why_not(error, self._path) from None

    def ask(self, request: AdminRequest, kind: type[A]) -> A:
        """One request, one answer.

        Args:
            request: anything but a `Watch`.
            kind: what its answer is.
        Raises:
            X0Error: what the agent refused with.
            Unavailable: no answer in time, or not one of this protocol.
        """
        self._send(request)
        return self._take(kind)

    def watch(self, interval_ms: int) -> Iterator[Status]:
        """Statuses as they come, without end; close the client to stop."""
        self._send(Watch(interval_ms))
        while True:
            yield self._take(Status)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: AdminRequest) -> None:
        try:
            self._socket.sendall(encode(request))
        except OSError as error:
            raise _why_not(error, self._path) from None

    def _take(self, kind: type[A]) -> A:
        while not self._waiting:
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except OSError as error:
                raise _why_not(error, self._path) from None
            if not data:
                raise Unavailable(
                    "X0-ADM-003", f"the agent at {self._path} hung up", "look into its log"
                )
            try:
                self._waiting.extend(self._answers.feed(data))
            except BadMessage as error:
                raise Unavailable(
                    "X0-ADM-004",
                    f"the agent at {self._path} speaks another version: {error.what}",
                    "restart the node",
                ) from None
        answer = self._waiting.pop(0)
        if type(answer) is Refusal:
            raise Refused(answer.id, answer.what, answer.hint)
        if type(answer) is not kind:
            raise Unavailable(
                "X0-ADM-004",
                f"the agent answered with {type(answer).__name__}",
                "restart the node: its version differs from this command's",
            )
        return answer


async def _write(writer: asyncio.StreamWriter, answer: AdminAnswer) -> None:
    writer.write(encode(answer))
    async with asyncio.timeout(WRITE_S):
        await writer.drain()


def _why_not(error: OSError, path: Path) -> X0Error:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return Unavailable(
            "X0-ADM-001",
            f"no agent is running at {path}",
            "start it: x0 up, or x0 node run --config node.toml",
        )
    if isinstance(error, PermissionError):
        return Refused("X0-ADM-002", f"this user may not open {path}", "use sudo")
    if isinstance(error, TimeoutError):
        return Unavailable(
            "X0-ADM-003",
            f"the agent at {path} does not answer",
            "it may be frozen or starting; look into its log",
        )
    return Unavailable("X0-ADM-003", f"{path}: {error.strerror or error}", "look into its log")
