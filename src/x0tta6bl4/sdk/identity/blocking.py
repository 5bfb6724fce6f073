"""The same for threads: every name of `sdk.identity`, blocking.

    with blocking.X509Source() as source:
        source.wait()
        with blocking.dial("127.0.0.1:8443", source, authorize=member_of("a.test")) as peer:
            peer.write(b"hello")

Each client or source runs an event loop in a thread of its own; what is said of the names there is
true here.  Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeVar

from x0tta6bl4.edge.bundle.document import Document
from x0tta6bl4.edge.jwt.svid import JwtSvid
from x0tta6bl4.edge.tls.judge import Clock, Judges
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.sdk.identity import auto_renew, client, jwt, source, tls
from x0tta6bl4.sdk.identity.answers import Bundles, BundleSet, X509Set
from x0tta6bl4.sdk.identity.authorize import Authorizer, anyone, exact, matching, member_of
from x0tta6bl4.sdk.identity.connections import Connections
from x0tta6bl4.sdk.identity.lifetime import validate_certificate
from x0tta6bl4.sdk.identity.source import WAIT_S
from x0tta6bl4.sdk.identity.tls import HANDSHAKE_S
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.ids import SpiffeId

__all__ = [
    "BundleSource",
    "Connection",
    "JWTSource",
    "Listener",
    "WorkloadClient",
    "X509Source",
    "anyone",
    "dial",
    "enable_auto_renew",
    "exact",
    "fetch_jwt_svids",
    "listen",
    "matching",
    "member_of",
    "validate_certificate",
    "validate_jwt",
    "verify_peer",
]

CALL_S: Final = 30.0
"""Longest that a call may take which has no time of its own."""
HANDLERS_MAX: Final = 256
"""Threads of one listener; further connections wait."""

T = TypeVar("T")
S = TypeVar("S", bound=source.Source)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="x0-identity", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T], timeout_s: float | None = CALL_S) -> T:
        """Let the loop do it, and wait.

        Raises:
            Unavailable: it took too long, or this was closed.
        """
        if self._loop.is_closed():
            work.close()
            raise Unavailable("X0-SDK-061", "closed already")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise Unavailable("X0-SDK-060", "no answer within the time") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop; nothing the second time."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_S)


class _Closing:
    """A context that closes at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close; nothing the second time."""
        raise NotImplementedError


class WorkloadClient(_Closing):
    """See `sdk.identity.client.WorkloadClient`."""

    def __init__(
        self, endpoint: str | None = None, *, deadline_s: float = client.DEADLINE_S
    ) -> None:
        self.real = client.WorkloadClient(endpoint, deadline_s=deadline_s)
        self._loop = _Loop()

    def close(self) -> None:
        """Close the connection."""

        async def close() -> None:
            self.real.close()

        if self._loop._thread.is_alive():
            self._loop.do(close())
            self._loop.close()

    def fetch_x509(self) -> X509Set:
        """See `WorkloadClient.fetch_x509`."""
        return self._loop.do(self.real.fetch_x509())

    def fetch_x509_bundles(self) -> BundleSet:
        """See `WorkloadClient.fetch_x509_bundles`."""
        return self._loop.do(self.real.fetch_x509_bundles())

    def fetch_jwt_svids(
        self, audience: str | Sequence[str], *, id: str | None = None
    ) -> tuple[JwtSvid, ...]:
        """See `sdk.identity.jwt.fetch_jwt_svids`."""
        return self._loop.do(jwt.fetch_jwt_svids(audience, id=id, client=self.real))

    def ask_validity(self, token: str, audience: str) -> tuple[str, dict[str, Any]]:
        """See `WorkloadClient.ask_validity`."""
        return self._loop.do(self.real.ask_validity(token, audience))


class _Source(_Closing, Generic[S]):
    """A source whose loop is in a thread."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._loop = _Loop()
        try:
            self.real = self._loop.do(self._start(make))
        except BaseException:
            self._loop.close()
            raise

    @staticmethod
    async def _start(make: Callable[[], S]) -> S:
        made = make()
        made.start()
        return made

    def close(self) -> None:
        """Stop; nothing is given out any more, and connections under it end."""
        if self._loop._thread.is_alive():
            self._loop.do(self.real.close())
            self._loop.close()

    def wait(self, timeout_s: float = WAIT_S) -> None:
        """See `Source.wait`."""
        self._loop.do(self.real.wait(timeout_s), timeout_s + CALL_S)

    def changed(self, since: int, timeout_s: float = WAIT_S) -> int:
        """See `Source.changed`."""
        return self._loop.do(self.real.changed(since, timeout_s), timeout_s + CALL_S)

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `Source.on_change`; the listener is called in the thread of the source."""
        return self.real.on_change(listener)

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self.real.version

    @property
    def ready(self) -> bool:
        """See `Source.ready`."""
        return self.real.ready


class X509Source(_Source[source.X509Source]):
    """See `sdk.identity.source.X509Source`."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        pick: Callable[[tuple[Svid, ...]], Svid] | None = None,
        ocsp: Literal["soft", "hard", "off"] = "soft",
    ) -> None:
        super().__init__(lambda: source.X509Source(endpoint, pick=pick, ocsp=ocsp))

    def current(self, id: str | None = None, *, hint: str | None = None) -> Svid:
        """See `X509Source.current`."""
        return self.real.current(id, hint=hint)

    @property
    def svids(self) -> tuple[Svid, ...]:
        """All identities that are valid now, the default one first."""
        return self.real.svids

    @property
    def bundles(self) -> Bundles:
        """CA certificates by trust domain."""
        return self.real.bundles

    @property
    def judges(self) -> Judges:
        """The judge of each trust domain that we have a bundle of."""
        return self.real.judges

    @property
    def connections(self) -> Connections:
        """Live connections."""
        return self.real.connections


class BundleSource(_Source[source.BundleSource]):
    """See `sdk.identity.source.BundleSource`."""

    def __init__(self, endpoint: str | None = None, *, x509: bool = True, jwt: bool = True) -> None:
        super().__init__(lambda: source.BundleSource(endpoint, x509=x509, jwt=jwt))
        self.clock: Clock = self.real.clock

    @property
    def bundles(self) -> Bundles:
        """CA certificates by trust domain."""
        return self.real.bundles

    @property
    def judges(self) -> Judges:
        """The judge of each trust domain that we have a bundle of."""
        return self.real.judges

    @property
    def documents(self) -> Mapping[Any, Document]:
        """Keys of JWT-SVIDs by trust domain."""
        return self.real.documents


class JWTSource(_Source[jwt.JWTSource]):
    """See `sdk.identity.jwt.JWTSource`."""

    def __init__(self, endpoint: str | None = None) -> None:
        super().__init__(lambda: jwt.JWTSource(endpoint))
        self.clock: Clock = self.real.clock

    @property
    def documents(self) -> Mapping[Any, Document]:
        """Keys of JWT-SVIDs by trust domain."""
        return self.real.documents

    def token(self, audience: str | Sequence[str], *, id: str | None = None) -> JwtSvid:
        """See `JWTSource.token`."""
        return self._loop.do(self.real.token(audience, id=id))

    def validate(self, token: str, audience: str, *, leeway_s: int = 0) -> JwtSvid:
        """See `validate_jwt`."""
        return self.real.validate(token, audience, leeway_s=leeway_s)


class Connection(_Closing):
    """See `sdk.identity.tls.Connection`; reads and writes block."""

    def __init__(self, real: tls.Connection, loop: _Loop) -> None:
        self.real = real
        self._loop = loop

    @property
    def peer_id(self) -> SpiffeId:
        """Who the peer has proven to be."""
        return self.real.peer_id

    @property
    def group(self) -> str:
        """Key exchange, e.g. `X25519MLKEM768`."""
        return self.real.group

    @property
    def signature(self) -> str:
        """How the peer has signed the handshake."""
        return self.real.signature

    def read(self, size: int = -1, timeout_s: float | None = None) -> bytes:
        """Up to `size` bytes, at least one before the end; all until the end for -1.

        Raises:
            Refused: cut off, or ended here; the reason is in it.
            Unavailable: nothing within the time.
        """
        return self._loop.do(self.real.reader.read(size), timeout_s)

    def readline(self, timeout_s: float | None = None) -> bytes:
        """Up to and with the next newline; see `read`."""
        return self._loop.do(self.real.reader.readline(), timeout_s)

    def write(self, data: bytes, timeout_s: float | None = None) -> None:
        """Write it all; returns when it left our buffers but for 64 KiB."""

        async def write() -> None:
            self.real.writer.write(data)
            await self.real.writer.drain()

        self._loop.do(write(), timeout_s)

    def close(self) -> None:
        """Close properly."""
        self._loop.do(self.real.close())


class Listener(_Closing):
    """See `sdk.identity.tls.Listener`."""

    def __init__(self, real: tls.Listener, loop: _Loop, threads: ThreadPoolExecutor) -> None:
        self.real = real
        self._loop = loop
        self._threads = threads

    @property
    def port(self) -> int:
        """TCP port; 0 where it has none."""
        return self.real.port

    def close(self) -> None:
        """Stop listening, end the connections, whose handlers then get errors."""
        self._loop.do(self.real.close())
        self._threads.shutdown(wait=False)


def listen(
    address: str,
    source: X509Source,
    handler: Callable[[Connection], None],
    *,
    authorize: Authorizer,
    **options: Any,
) -> Listener:
    """See `sdk.identity.tls.listen`; each handler runs in a thread of its own."""
    loop = source._loop
    threads = ThreadPoolExecutor(HANDLERS_MAX, "x0-handler")

    async def handle(real: tls.Connection) -> None:
        await asyncio.get_running_loop().run_in_executor(threads, handler, Connection(real, loop))

    made = loop.do(tls.listen(address, source.real, handle, authorize=authorize, **options))
    return Listener(made, loop, threads)


def dial(
    address: str,
    source: X509Source,
    *,
    authorize: Authorizer,
    timeout_s: float = HANDSHAKE_S,
    **options: Any,
) -> Connection:
    """See `sdk.identity.tls.dial`."""
    loop = source._loop
    made = loop.do(
        tls.dial(address, source.real, authorize=authorize, timeout_s=timeout_s, **options),
        timeout_s + CALL_S,
    )
    return Connection(made, loop)


def verify_peer(
    chain: Sequence[bytes], source: X509Source | BundleSource, *, authorize: Authorizer
) -> SpiffeId:
    """See `sdk.identity.tls.verify_peer`."""
    return tls.verify_peer(chain, source.real, authorize=authorize)


def fetch_jwt_svids(
    audience: str | Sequence[str],
    *,
    id: str | None = None,
    client: WorkloadClient | None = None,
) -> tuple[JwtSvid, ...]:
    """See `sdk.identity.jwt.fetch_jwt_svids`."""
    if client is not None:
        return client.fetch_jwt_svids(audience, id=id)
    with WorkloadClient() as own:
        return own.fetch_jwt_svids(audience, id=id)


def validate_jwt(
    token: str, audience: str, source: JWTSource | BundleSource, *, leeway_s: int = 0
) -> JwtSvid:
    """See `sdk.identity.jwt.validate_jwt`."""
    return jwt.validate_jwt(token, audience, source, leeway_s=leeway_s)


class AutoRenew(_Closing):
    """See `sdk.identity.auto_renew.AutoRenew`."""

    def __init__(self, real: auto_renew.AutoRenew, loop: _Loop) -> None:
        self.real = real
        self._loop = loop

    @property
    def current(self) -> auto_renew.Held | None:
        """What is held; None where it is missing, withdrawn or expired."""
        return self.real.current

    def close(self) -> None:
        """End."""
        self._loop.do(self.real.stop())


def enable_auto_renew(client: WorkloadClient, **options: Any) -> AutoRenew:
    """See `sdk.identity.auto_renew.enable_auto_renew`; callbacks come in the client's thread."""

    async def start() -> auto_renew.AutoRenew:
        return auto_renew.enable_auto_renew(client.real, **options)

    return AutoRenew(client._loop.do(start()), client._loop)
