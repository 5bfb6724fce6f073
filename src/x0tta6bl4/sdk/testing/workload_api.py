"""A SPIFFE Workload API for tests: a real server on a Unix socket, in a thread of its own.

It serves what a test tells it to, pushes every change at once, and does what is asked of it by
`inject`, however wrong.  It asks nobody who calls: the socket lies in a directory of mode 0700.

Source: SPIFFE Workload API and Workload Endpoint (SP-088 to SP-125).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self, Unpack, final

import msgspec
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.bundle.document import parse
from x0tta6bl4.edge.jwt.svid import judge_token
from x0tta6bl4.edge.listening import stop_listening
from x0tta6bl4.edge.workload_api import schema
from x0tta6bl4.sdk.testing.domain import Domain, Shape, Svid
from x0tta6bl4.sdk.testing.faults import Fault
from x0tta6bl4.wire.errors import BadInput
from x0tta6bl4.wire.ids import TrustDomain, domain_of, spiffe_id

CALLS_MAX: Final = 10_000
"""Calls that are remembered; the oldest goes first."""
WAIT_S: Final = 5.0
STREAMS: Final = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")
_UNARY: Final = ("FetchJWTSVID", "ValidateJWTSVID")


@final
class Call(msgspec.Struct, frozen=True):
    """One call, as it came in."""

    method: str
    metadata: Mapping[str, str]
    request: Any
    """Message of `edge.workload_api.schema`."""
    at_s: float
    """`time.monotonic()`."""


@final
class _Issued(msgspec.Struct, frozen=True):
    """An SVID, and how to make it again."""

    svid: Svid
    again: Callable[[], Svid]


class WorkloadApi:
    """The server.  Use it as a context manager, or `start` and `stop` it.

    Args:
        domain: the workload's trust domain; a new `example.org` if left out.
        endpoint: `unix:///path` or `tcp://IP:port`; a socket in a directory of its own if left out.
    """

    def __init__(self, domain: Domain | None = None, endpoint: str | None = None) -> None:
        self.domain = domain or Domain()
        self._folder = tempfile.mkdtemp(prefix="x0-api-") if endpoint is None else ""
        self.endpoint = endpoint or f"unix://{self._folder}/api.sock"
        """For `SPIFFE_ENDPOINT_SOCKET`."""
        self._issued: tuple[_Issued, ...] = ()
        self._federated: tuple[Domain, ...] = ()
        self._crl: tuple[bytes, ...] = ()
        self._written: dict[tuple[str, str], bytes] = {}
        self._faults: dict[str, deque[tuple[Fault, int | None]]] = {}
        self._calls: deque[Call] = deque(maxlen=CALLS_MAX)
        self._open: dict[str, int] = dict.fromkeys((*STREAMS, *_UNARY), 0)
        self._seen = threading.Condition()
        self._version = 0
        self._thread: threading.Thread | None = None
        self._running: _Running | None = None

    # ------------------------------------------------------------------------------ life cycle
    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Listen; no-op if it does already."""
        if self._thread is not None:
            return
        running = self._running = _Running(self)
        self._thread = threading.Thread(target=running.run, name="workload-api", daemon=True)
        self._thread.start()
        if not running.ready.wait(WAIT_S) or running.error is not None:
            self._thread = self._running = None
            raise RuntimeError(f"the Workload API does not start: {running.error}")

    def stop(self) -> None:
        """Cut every connection and stop listening; the socket is gone then."""
        if self._thread is None or self._running is None:
            return
        self._running.halt()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the Workload API does not stop"
        self._thread = self._running = None

    def restart(self) -> None:
        """Stop and start again at the same endpoint, serving the same."""
        self.stop()
        self.start()

    def disconnect(self) -> None:
        """Cut every connection, and go on listening."""
        if self._running is not None:
            self._running.soon(self._running.cut)

    # ---------------------------------------------------------------------------- what it serves
    @property
    def svids(self) -> tuple[Svid, ...]:
        """What it serves now, the default first."""
        return tuple(issued.svid for issued in self._issued)

    def issue(
        self,
        path: str = "/web",
        *,
        hint: str = "",
        signers: Sequence[Shape] = (),
        **shape: Unpack[Shape],
    ) -> Svid:
        """Make one more SVID (see `Domain.svid`) and push the new set."""

        def make() -> Svid:
            return self.domain.svid(path, hint=hint, signers=signers, **shape)

        issued = _Issued(make(), make)
        self._issued = (*self._issued, issued)
        self.push()
        return issued.svid

    def serve(self, *svids: Svid) -> None:
        """Serve exactly these, made elsewhere, and push; `rotate` makes plain ones of them."""
        self._issued = tuple(_Issued(svid, partial(self._renewed, svid)) for svid in svids)
        self.push()

    def rotate(self) -> tuple[Svid, ...]:
        """Make every SVID again, with a new key, and push."""
        self._issued = tuple(_Issued(issued.again(), issued.again) for issued in self._issued)
        self.push()
        return self.svids

    def rotate_anchor(self, *, retire: bool = False) -> tuple[Svid, ...]:
        """A new CA, new SVIDs below it, and push; `retire` takes the old CA out of the bundle."""
        self.domain.rotate_anchor()
        if retire:
            self.domain.retire_anchors()
        return self.rotate()

    def redact(self, path: str) -> None:
        """Serve the SVIDs of this ID no more, and push; without any, PermissionDenied."""
        id = self.domain.id(path)
        self._issued = tuple(issued for issued in self._issued if issued.svid.id != id)
        self.push()

    def withdraw(self) -> None:
        """Serve nothing: every stream ends with PermissionDenied, every call is answered so."""
        self._issued = ()
        self.push()

    def federate(self, *domains: Domain) -> None:
        """Exactly these are federated from now on; push."""
        self._federated = domains
        self.push()

    def revoke(self, *svids: Svid) -> None:
        """Exactly these stand on the CRL of the domain from now on; push."""
        self._crl = (self.domain.crl(*svids),) if svids else ()
        self.push()

    def write_bundle(
        self, trust_domain: str, *, x509: bytes | None = None, jwks: bytes | None = None
    ) -> None:
        """Send these bytes as the bundle of a trust domain, whatever they are; push.

        What is left out is the proper one again.
        """
        for kind, data in (("x509", x509), ("jwks", jwks)):
            if data is None:
                self._written.pop((kind, trust_domain), None)
            else:
                self._written[kind, trust_domain] = data
        self.push()

    def push(self) -> None:
        """Answer every open stream again."""
        self._version += 1
        if self._running is not None:
            self._running.soon(self._running.wake)

    # -------------------------------------------------------------------------------- faults
    def inject(self, method: str, fault: Fault, times: int | None = None) -> None:
        """Do this instead of answering properly.

        Args:
            method: for example `FetchX509SVID`.
            fault: what happens; the answers to calls and those pushed later both count.
            times: for so many answers; until `clear` if left out.
        """
        self._faults.setdefault(method, deque()).append((fault, times))

    def clear(self) -> None:
        """Take every fault back."""
        self._faults.clear()

    # --------------------------------------------------------------------------- what was seen
    @property
    def calls(self) -> tuple[Call, ...]:
        """Calls so far, the oldest first."""
        return tuple(self._calls)

    def wait_for_calls(self, method: str, count: int = 1, timeout_s: float = WAIT_S) -> None:
        """Wait until a method was called so often in all.

        Raises:
            TimeoutError: it was not.
        """
        self._wait(
            lambda: sum(call.method == method for call in self._calls) >= count,
            f"{method} was not called {count} times",
            timeout_s,
        )

    def wait_for_streams(self, method: str, count: int = 1, timeout_s: float = WAIT_S) -> None:
        """Wait until exactly so many calls of a method are open.

        Raises:
            TimeoutError: there are more, or fewer.
        """
        self._wait(
            lambda: self._open[method] == count, f"not {count} streams of {method}", timeout_s
        )

    def _wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        with self._seen:
            if not self._seen.wait_for(done, timeout_s):
                raise TimeoutError(f"{what} within {timeout_s} s")

    # -------------------------------------------------------- answers (in the server's thread)
    async def handle(self, method: str, stream: Any) -> None:
        """One call from its beginning to its end."""
        request = await stream.recv_message()
        metadata = {name: str(value) for name, value in stream.metadata.items()}
        with self._seen:
            self._calls.append(Call(method, metadata, request, time.monotonic()))
            self._open[method] += 1
            self._seen.notify_all()
        try:
            name, value = schema.METADATA
            if metadata.get(name) != value:
                raise GRPCError(Status.INVALID_ARGUMENT, f"{name} is missing")
            await self._answers(method, request, stream)
        finally:
            with self._seen:
                self._open[method] -= 1
                self._seen.notify_all()

    async def _answers(self, method: str, request: Any, stream: Any) -> None:
        assert self._running is not None
        while True:
            changed = self._running.changed
            fault = self._fault(method)
            if fault is not None:
                await self._misbehave(fault, stream)
            answer = self.answer(method, request)
            if fault is not None and fault.change is not None:
                answer = fault.change(answer)
            await stream.send_message(answer)
            if method not in STREAMS or (fault is not None and fault.end):
                return
            await changed.wait()

    async def _misbehave(self, fault: Fault, stream: Any) -> None:
        await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await asyncio.Event().wait()
        if fault.disconnect:
            stream._stream._transport.abort()
            await asyncio.Event().wait()
        if fault.reset:
            await stream.cancel()
            raise GRPCError(Status.CANCELLED)
        if fault.code:
            raise GRPCError(Status[fault.code], fault.message)

    def _fault(self, method: str) -> Fault | None:
        waiting = self._faults.get(method)
        if not waiting:
            return None
        fault, times = waiting[0]
        if times is not None:
            if times <= 1:
                waiting.popleft()
            else:
                waiting[0] = (fault, times - 1)
        return fault

    def answer(self, method: str, request: Any) -> Any:
        """The proper answer.

        Raises:
            GRPCError: PermissionDenied, or InvalidArgument.
        """
        if not self._issued:
            raise GRPCError(Status.PERMISSION_DENIED, "no identity issued")
        if method == "FetchX509SVID":
            return self._x509_svids()
        if method == "FetchX509Bundles":
            bundles = {domain.id(""): self._x509_bundle(domain) for domain in self._domains()}
            return schema.X509BundlesResponse(crl=list(self._crl), bundles=bundles)
        if method == "FetchJWTBundles":
            bundles = {domain.id(""): self._jwks(domain) for domain in self._domains()}
            return schema.JWTBundlesResponse(bundles=bundles)
        if method == "FetchJWTSVID":
            return self._tokens(request)
        return self._validated(request)

    def _x509_svids(self) -> Any:
        return schema.X509SVIDResponse(
            svids=[
                schema.X509SVID(
                    spiffe_id=svid.id,
                    x509_svid=b"".join(svid.chain),
                    x509_svid_key=svid.key,
                    bundle=self._x509_bundle(self._domain_of(svid)),
                    hint=svid.hint,
                )
                for svid in self.svids
            ],
            crl=list(self._crl),
            federated_bundles={d.id(""): self._x509_bundle(d) for d in self._federated},
        )

    def _tokens(self, request: Any) -> Any:
        if not request.audience:
            raise GRPCError(Status.INVALID_ARGUMENT, "audience is missing")
        wanted = [svid for svid in self.svids if request.spiffe_id in ("", svid.id)]
        if not wanted:
            raise GRPCError(Status.PERMISSION_DENIED, "not entitled to this ID")
        return schema.JWTSVIDResponse(
            svids=[
                schema.JWTSVID(
                    spiffe_id=svid.id,
                    svid=self._domain_of(svid).token(svid.id, list(request.audience)),
                    hint=svid.hint,
                )
                for svid in wanted
            ]
        )

    def _validated(self, request: Any) -> Any:
        try:
            documents = {
                TrustDomain(domain.name): parse(self._jwks(domain), TrustDomain(domain.name))
                for domain in self._domains()
            }
        except BadInput as error:
            raise GRPCError(Status.INTERNAL, error.what) from None
        now_us = self.domain.now_unix_s * 1_000_000
        found = judge_token(request.svid, request.audience, documents, now_us)
        if isinstance(found, Denied):
            raise GRPCError(Status.INVALID_ARGUMENT, found.reason)
        answer = schema.ValidateJWTSVIDResponse(spiffe_id=found.id)
        answer.claims.update(found.claims)
        return answer

    def _renewed(self, svid: Svid) -> Svid:
        return self._domain_of(svid).svid(svid.id, hint=svid.hint)

    def _domains(self) -> tuple[Domain, ...]:
        return (self.domain, *self._federated)

    def _domain_of(self, svid: Svid) -> Domain:
        name = domain_of(spiffe_id(svid.id))
        return next((domain for domain in self._domains() if domain.name == name), self.domain)

    def _x509_bundle(self, domain: Domain) -> bytes:
        return self._written.get(("x509", domain.name), b"".join(domain.anchors))

    def _jwks(self, domain: Domain) -> bytes:
        written = self._written.get(("jwks", domain.name))
        return domain.jwks() if written is None else written


class _Running:
    """One start of the server: a thread with its own event loop."""

    def __init__(self, api: WorkloadApi) -> None:
        self._api = api
        self.ready = threading.Event()
        self.error: OSError | None = None
        self.changed: asyncio.Event

    def run(self) -> None:
        """The thread."""
        try:
            asyncio.run(self._main())
        except OSError as error:
            self.error = error
            self.ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._halted = asyncio.Event()
        self.changed = asyncio.Event()
        self._server = _Server(self._api)
        scheme, _, where = self._api.endpoint.partition(":")
        where = where.removeprefix("//")
        if scheme == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where)
            await self._server.start(path=where)
        else:
            host, _, port = where.rpartition(":")
            await self._server.start(host.strip("[]"), int(port))
        self.ready.set()
        await self._halted.wait()
        await stop_listening(self._server)
        self.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S / 2):
                await self._server.wait_closed()
        if scheme == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(where)

    def wake(self) -> None:
        """Answer every stream again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def cut(self) -> None:
        """Abort every connection."""
        for transport in tuple(self._server.transports):
            transport.abort()

    def halt(self) -> None:
        """Let the thread end."""
        self._loop.call_soon_threadsafe(self._halted.set)

    def soon(self, call: Callable[[], None]) -> None:
        """Do it in the thread of the server, and wait until it is done."""
        done = threading.Event()

        def run() -> None:
            call()
            done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(WAIT_S):
            raise RuntimeError("the Workload API hangs")


class _Server(Server):
    """grpclib's server, which knows its connections."""

    def __init__(self, api: WorkloadApi) -> None:
        super().__init__([_Methods(api)], codec=_Codec())
        self.transports: set[Any] = set()

    def _protocol_factory(self) -> Any:
        protocol: Any = super()._protocol_factory()
        made, lost = protocol.connection_made, protocol.connection_lost

        def connection_made(transport: Any) -> None:
            self.transports.add(transport)
            protocol.transport_ = transport
            made(transport)

        def connection_lost(error: BaseException | None) -> None:
            self.transports.discard(protocol.transport_)
            lost(error)

        protocol.connection_made = connection_made
        protocol.connection_lost = connection_lost
        return protocol


class _Methods:
    """The methods, as grpclib wants them."""

    def __init__(self, api: WorkloadApi) -> None:
        self._api = api

    def __mapping__(self) -> dict[str, Handler]:
        return {schema.path(method): self._handler(method) for method in (*STREAMS, *_UNARY)}

    def _handler(self, method: str) -> Handler:
        request, response, streams = schema.METHODS[method]

        async def handle(stream: Any) -> None:
            await self._api.handle(method, stream)

        kind = Cardinality.UNARY_STREAM if streams else Cardinality.UNARY_UNARY
        return Handler(handle, kind, request, response)


class _Codec(CodecBase):
    """Messages as protobuf, bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message if isinstance(message, bytes) else bytes(message.SerializeToString())

    def decode(self, data: bytes, message_type: Any) -> Any:
        return message_type.FromString(data)
