"""Services of this node: streams that others open, judged, attested and connected.

    OPEN --> policy --> what listens there --> connect --> is it still that? --> OPENED
              |              |                   |              |
              '--------------'------ RST with a reason ---------'

Until OPENED the service gets no byte; what comes meanwhile (at most the first credit) waits.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from x0tta6bl4.core.machine import SECOND, Allowed, Denied, Verdict
from x0tta6bl4.core.session.frames import Open, Reset
from x0tta6bl4.core.session.stream import Stream
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.connect import Address, established, parse_address
from x0tta6bl4.runtime.loop.poll import WRITE
from x0tta6bl4.runtime.loop.sessions import Session, StreamRecord
from x0tta6bl4.runtime.loop.streams import AppStream
from x0tta6bl4.wire.errors import BadConfig
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import ServiceItem

if TYPE_CHECKING:
    from x0tta6bl4.runtime.loop.endpoint import Endpoint

CONNECT_US: Final = 5 * SECOND
"""How long a service may take to accept."""
_ADDRESSES_MAX: Final = 256

Listener = Callable[[ServiceItem], object]
"""What listens at a service's address now: a value to compare (its socket's cookie and owner), or
Denied if it is nothing or not what the service's selectors say."""

Confirm = Callable[[ServiceItem, Any, socket.socket], Verdict]
"""Whether the connected socket leads to what `Listener` saw: asked before any byte."""

ProxyHeader = Callable[[SpiffeId, str], bytes]
"""PROXY protocol header for a connection of this caller to this name."""


class Serving:
    """The server side of an endpoint.

    Args:
        endpoint: whose sessions bring the streams.
        listener: attests what listens at a service's address, before the connect.
        confirm: the same after it; None: `listener` is asked again and must say the same.
        proxy_header: makes PROXY headers.
    """

    __slots__ = (
        "_addresses", "_confirm", "_connecting", "_endpoint", "_listener", "_proxy",
        "_proxy_header",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: Endpoint,
        listener: Listener,
        confirm: Confirm | None,
        proxy_header: ProxyHeader | None,
    ) -> None:
        self._endpoint = endpoint
        self._proxy = endpoint.proxy
        self._listener = listener
        self._confirm = confirm or self._same_listener
        self._proxy_header = proxy_header
        self._connecting: dict[AppStream, _Connect] = {}
        """Streams whose service has not accepted yet; bounded by the endpoint's streams."""
        self._addresses: dict[str, tuple[int, Address]] = {}

    @property
    def connecting(self) -> int:
        """Streams whose service has not accepted yet."""
        return len(self._connecting)

    def accept(self, session: Session, ask: Open) -> Stream | Reset:
        """OPEN came: policy, what listens there, connect (called by its session)."""
        service = self._proxy.service(session.target)
        verdict = self._proxy.open(session.source, session.target, ask.name)
        if type(verdict) is Denied:
            return self._refused(session, ask, verdict.reason, Reset.DENIED)
        if self._endpoint.draining:
            return self._refused(session, ask, "draining", Reset.DRAINING)
        if service is None:
            return self._refused(session, ask, "no service", Reset.NO_SERVICE)
        if self._endpoint.full:
            return self._refused(session, ask, "too many streams", Reset.BUSY)
        seen = self._listener(service)
        if isinstance(seen, Denied):
            return self._refused(session, ask, seen.reason, Reset.LISTENER)
        try:
            family, address = self._address(service.address)
        except BadConfig:
            return self._refused(session, ask, "bad address", Reset.NO_SERVICE)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # Out of descriptors.
            return self._refused(session, ask, f"socket: {error.strerror}", Reset.BUSY)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            code = sock.connect_ex(address)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            reason = Reset.BUSY if code == errno.EAGAIN else Reset.CONNECT_REFUSED
            return self._refused(session, ask, reason.phrase, reason)
        stream = AppStream(session, sock, clock())
        stream.held = True
        self._endpoint.begun()
        connected = code == 0 or established(sock)
        self._connecting[stream] = _Connect(self, self._endpoint, stream, service, seen, connected)
        return stream

    def _refused(self, session: Session, ask: Open, why: str, reason: Reset) -> Reset:
        self._endpoint.count("streams_refused")
        self._endpoint.on_record(
            StreamRecord(
                session.source,
                session.target,
                ask.name,
                False,
                "",
                session.path,
                0,
                0,
                0,
                f"refused: {why}",
            )
        )
        return reason

    def connected(self, stream: AppStream, connect: _Connect, code: int) -> None:
        """The service's socket is connected, or not."""
        self._connecting.pop(stream, None)
        if stream.reason:
            return
        pipe = stream.pipe
        if code or pipe is None:
            stream.fail(Reset.CONNECT_TIMEOUT if code == errno.ETIMEDOUT else Reset.CONNECT_REFUSED)
            return
        if type(self._confirm(connect.service, connect.seen, stream.sock)) is Denied:
            # Somebody else has taken the port meanwhile: not a byte goes there.
            stream.fail(Reset.LISTENER)
            return
        self._endpoint.count("streams_opened")
        if connect.service.proxy_header and self._proxy_header is not None:
            stream.put_first(self._proxy_header(stream.session.source, stream.ask.name))
        pipe.opened(stream)
        stream.start()

    def _same_listener(self, service: ServiceItem, seen: object, _: socket.socket) -> Verdict:
        now = self._listener(service)
        if isinstance(now, Denied):
            return now
        return Allowed(SpiffeId(service.id)) if now == seen else Denied("listener changed")

    def ended(self, stream: AppStream) -> None:
        """A stream is over."""
        connect = self._connecting.pop(stream, None)
        if connect is not None:
            connect.cancel()

    def _address(self, text: str) -> tuple[int, Address]:
        """A parsed address; the last few are kept, services are called often."""
        parsed = self._addresses.get(text)
        if parsed is None:
            if len(self._addresses) >= _ADDRESSES_MAX:
                self._addresses.clear()
            parsed = self._addresses[text] = parse_address(text)
        return parsed


class _Connect:
    """A connection to a local service under way."""

    __slots__ = ("_done", "_fd", "_loop", "_serving", "_stream", "_timer", "seen", "service")

    def __init__(
        self,
        serving: Serving,
        endpoint: Endpoint,
        stream: AppStream,
        service: ServiceItem,
        seen: object,
        connected: bool,
    ) -> None:
        self._serving, self._loop, self._stream = serving, endpoint.loop, stream
        self.service, self.seen = service, seen
        self._fd = stream.fd
        self._done = False
        loop = self._loop
        self._timer = loop.after(CONNECT_US, lambda: self._finish(errno.ETIMEDOUT))
        if connected:
            # The stream gets its number only when `accept` has returned.
            loop.after_batch(lambda: self._finish(0))
        else:
            loop.add(self._fd, WRITE, self._on_event)

    def cancel(self) -> None:
        """Forget it; the socket is the stream's."""
        if not self._done:
            self._done = True
            self._timer.cancel()
            self._loop.drop(self._fd)

    def _on_event(self, mask: int) -> None:
        self._finish(self._stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _finish(self, code: int) -> None:
        if self._done:
            return
        self.cancel()
        self._serving.connected(self._stream, self, code)
