"""The same TLS for asyncio and uvloop: an object shaped like `ssl.SSLContext`.

    loop.create_server(..., ssl=SslContext(context))       grpclib: Server.start(..., ssl=...)
    loop.create_connection(..., ssl=SslContext(context))            Channel(..., ssl=...)

Afterwards `transport.get_extra_info("ssl_object")` is an `SslObject` with the peer's verdict, the
exporter and the group.  For control connections only: asyncio's TLS turns an end without
close_notify into a clean one and knows no half-close, so what is sent over it must carry its own
lengths (gRPC does); the proxy's byte path uses `Engine`.

What asyncio does with a refused handshake: it drops the connection and forgets what waits to be
sent.  So a server says "want read" once, which sends the alert, and raises when the peer answers
or leaves (its caller hears of it at once through `on_refused`); a client raises at once, so that
its caller gets the reason, and the server sees the connection end.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final

from x0tta6bl4.core.machine import Allowed, Verdict
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.judge import Judging
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire.ids import SpiffeId

_CHUNK: Final = 256 * 1024
_DISCARD_BYTES_MAX: Final = 4 * 1024 * 1024

Source = TlsContext | Callable[[], TlsContext]


class SslRefused(TlsRefused, ssl.SSLError):
    """`TlsRefused` in the shape that asyncio expects of TLS errors."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SslContext(ssl.SSLContext):
    """Stands where an `ssl.SSLContext` is asked for; nothing of OpenSSL's own checks is used.

    Args:
        source: the context, or what gives the one in use now (asked for each connection, so that
            a listener goes on over rotations); where it raises TlsRefused, having none to give,
            the handshake is refused with that reason.
        on_refused: told the reason of each refused handshake.
    """

    def __new__(cls, source: Source, on_refused: Callable[[str], None] | None = None) -> SslContext:
        """Make the shell; its own settings refuse everybody, should they ever be used."""
        shell = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        assert isinstance(shell, SslContext)
        return shell

    def __init__(self, source: Source, on_refused: Callable[[str], None] | None = None) -> None:
        self._source = source
        self._on_refused = on_refused

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Any:
        """Called by the event loop, once per connection; host names play no part."""
        source = self._source
        try:
            context = source if isinstance(source, TlsContext) else source()
        except TlsRefused as error:
            if self._on_refused is not None:
                self._on_refused(error.reason)
            return _Refusing(error.reason)
        made = SslObject(Engine(context, server_side), incoming, outgoing, self, self._on_refused)
        if context.svid is not None:
            made.own_not_after_unix_s = context.svid.not_after_unix_s
        return made

    def wrap_socket(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: it would bypass the judge."""
        raise NotImplementedError("asyncio only")


class _Refusing:
    """Stands where there is nothing to present: its handshake fails before the first byte.

    An exception within `wrap_bio` would leave the socket open.
    """

    __slots__ = ("_reason",)

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def do_handshake(self) -> None:
        raise SslRefused(self._reason)

    def unwrap(self) -> None:
        raise SslRefused(self._reason)

    def pending(self) -> int:
        return 0


class SslObject:
    """Stands where an `ssl.SSLObject` is asked for.

    Attributes:
        engine: the connection; all that `Engine` tells can be asked of it.
        own_not_after_unix_s: end of the SVID that this end presents; 0 where it has none.
    """

    __slots__ = (
        "_buffer",
        "_incoming",
        "_on_refused",
        "_outgoing",
        "_refused",
        "_view",
        "context",
        "engine",
        "own_not_after_unix_s",
    )

    def __init__(
        self,
        engine: Engine,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        context: SslContext,
        on_refused: Callable[[str], None] | None,
    ) -> None:
        self.engine = engine
        self.own_not_after_unix_s = 0
        self.context = context
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_refused = on_refused
        self._refused = ""
        self._buffer = bytearray(20 * 1024)
        self._view = memoryview(self._buffer)

    # ---------------------------------------------------------------------- what callers ask
    @property
    def peer(self) -> Verdict:
        """Verdict on the peer; Denied("no certificate") where none was demanded."""
        return self.engine.peer

    @property
    def peer_id(self) -> SpiffeId:
        """ID of a peer that was allowed.

        Raises:
            TlsRefused: there is none (a client that enrols).
        """
        verdict = self.engine.peer
        if type(verdict) is not Allowed:
            raise TlsRefused("no certificate")
        return verdict.peer

    @property
    def peer_not_after_unix_s(self) -> int:
        """End of the peer's SVID; 0 where it has none."""
        return self.engine.peer_not_after_unix_s

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates, DER, as they were judged."""
        return self.engine.peer_chain

    @property
    def own(self) -> Svid | None:
        """What this end presents."""
        return self.engine.context.svid

    @property
    def judged_by(self) -> Judging:
        """Who has judged the peer."""
        return self.engine.context.judge

    @property
    def group(self) -> str:
        """Key exchange, e.g. `X25519MLKEM768`."""
        return self.engine.group

    @property
    def signature(self) -> str:
        """See `Engine.signature`."""
        return self.engine.signature

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """See `Engine.exporter`."""
        return self.engine.exporter(label, context, length)

    # ------------------------------------------------------------------ what event loops call
    def do_handshake(self) -> None:
        """Go on with the handshake.

        Raises:
            ssl.SSLWantReadError: more is needed from the peer.
            SslRefused: refused.
        """
        if self._refused:
            raise SslRefused(self._refused)
        self._pull()
        try:
            complete = self.engine.shake()
        except TlsRefused as error:
            self._refused = error.reason
            if self._on_refused is not None:
                self._on_refused(error.reason)
            if self.engine.server and self._push():
                raise ssl.SSLWantReadError("the alert goes first") from None
            raise SslRefused(error.reason) from None
        self._push()
        if not complete:
            raise ssl.SSLWantReadError("handshake goes on")

    def read(self, length: int = 16 * 1024, buffer: Any = None) -> Any:
        """Decrypted bytes (or their number, with a buffer); none: the peer closed properly.

        Raises:
            ssl.SSLWantReadError: none yet.
            SslRefused: broken, or an alert.
        """
        self._pull()
        if buffer is None:
            own = bytearray(min(length, _CHUNK, max(self.engine.pending, 64)))
            return bytes(own[: self._read(own)])
        return self._read(memoryview(buffer)[:length])

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt up to 256 KiB; returns how many bytes were taken."""
        view = memoryview(data).cast("B")[:_CHUNK]
        try:
            self.engine.write(view)
        except TlsRefused as error:
            raise SslRefused(error.reason) from None
        self._push()
        return len(view)

    def unwrap(self) -> None:
        """Close properly: send close_notify, throw away what comes, wait for the peer's.

        Raises:
            ssl.SSLWantReadError: the peer has not closed yet.
        """
        self.engine.close()
        self._push()
        discarded = 0
        while discarded < _DISCARD_BYTES_MAX:
            self._pull()
            try:
                got = self.engine.read(self._view)
            except TlsClosed:
                return
            except TlsRefused as error:
                raise SslRefused(error.reason) from None
            if not got:
                raise ssl.SSLWantReadError("waiting for the peer's close_notify")
            discarded += got
        raise SslRefused("data after close")

    def pending(self) -> int:
        """Bytes that a `read` might give without more from the network.

        Counts ciphertext that was taken over already, too: uvloop reads only while this or its
        own buffer is not empty.
        """
        return self.engine.pending

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The peer's leaf: DER, or a dict with its SPIFFE ID as `ssl` would give it."""
        chain = self.engine.peer_chain
        if binary_form:
            return chain[0] if chain else None
        verdict = self.engine.peer
        if type(verdict) is not Allowed:
            return {}
        return {"subjectAltName": (("URI", verdict.peer),)}

    def cipher(self) -> tuple[str, str, int]:
        """Name, protocol, bits; the name says what matters here, the key exchange."""
        return (self.engine.group, "TLSv1.3", 256)

    def compression(self) -> None:
        """There is none."""

    def version(self) -> str:
        """Always TLS 1.3."""
        return "TLSv1.3"

    def selected_alpn_protocol(self) -> str:
        """The protocol that was agreed on."""
        return self.engine.alpn

    # ------------------------------------------------------------------------------- details
    def _read(self, view: bytearray | memoryview) -> int:
        try:
            got = self.engine.read(view)
        except TlsClosed:
            return 0
        except TlsRefused as error:
            self._push()
            raise SslRefused(error.reason) from None
        if not got:
            raise ssl.SSLWantReadError("nothing yet")
        return got

    def _pull(self) -> None:
        """Hand what has come over to OpenSSL; the event loop bounds it (256 KiB high water)."""
        data = self._incoming.read()
        if data:
            self.engine.feed(data)

    def _push(self) -> int:
        """Hand what OpenSSL wants sent to the event loop; returns how much."""
        total = 0
        while taken := self.engine.take(self._view):
            self._outgoing.write(self._view[:taken])
            total += taken
        return total
