"""Where workloads of this host hand their connections in: loopback TCP and Unix sockets.

    accepted -> who calls? -> greeting (none for `plain`) -> `on_stream` -> `reply`

The caller is looked up at once, while its socket is sure to be its own.  A caller nobody knows is
answered in the words of its protocol and closed; nothing it sent goes anywhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import SECOND, Denied, Verdict
from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.runtime.loop.accept import Acceptor
from x0tta6bl4.runtime.loop.connect import parse_address, reset
from x0tta6bl4.runtime.loop.notices import Notices
from x0tta6bl4.runtime.loop.parting import Partings
from x0tta6bl4.runtime.loop.poll import READ, Loop, Timer
from x0tta6bl4.runtime.ports import Greeting
from x0tta6bl4.wire.errors import BadConfig
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.ingress import Asked, More, Rejected
from x0tta6bl4.wire.messages import ListenItem

PLAIN: Final = "plain"
LISTENERS_MAX: Final = 256
_RECEIVE: Final = 64 * 1024

Identify = Callable[[socket.socket], Verdict]
Reply = Callable[[Reset | None], bytes]
"""What the client is to read first: None when its stream is open, else why there is none."""
OnStream = Callable[[socket.socket, SpiffeId, ListenItem, str, bytes, Reply | None], None]


@final
class IngressLimits(msgspec.Struct, frozen=True):
    """Bounds of the local listeners."""

    pending_max: int = 512
    """Greetings under way; beyond it the oldest is closed."""
    greeting_us: int = 10 * SECOND
    unix_mode: int = 0o660
    """Mode of Unix sockets; 0o600 admits this uid alone."""


@final
class IngressStatistics(msgspec.Struct, frozen=True, gc=False):
    """`listeners` and `pending` are now, the rest sums since the start."""

    listeners: int
    pending: int
    accepted: int
    strangers: int
    """Callers that no entry knows."""
    rejected: int
    """Greetings that could not be served."""
    streams: int
    evicted: int


@final
class Ingress:
    """The local listeners of a proxy.

    Args:
        loop: the proxy's loop.
        identify: who is at the other end of an accepted socket.
        greetings: maker of a greeting, by the kind of the listener; `plain` has none.
        on_stream: takes the socket (the callee's from here on, not watched), the caller, the
            listener, the name asked for, the bytes already read, and `reply`, which gives
            the bytes of the answer that the listener's protocol has; None for plain ones.
        on_notice: takes a kind and a text for the operator.
        limits: bounds.
    """

    __slots__ = (
        "_accepted",
        "_evicted",
        "_greetings",
        "_identify",
        "_limits",
        "_listeners",
        "_loop",
        "_notices",
        "_on_stream",
        "_partings",
        "_pending",
        "_rejected",
        "_strangers",
        "_streams",
    )

    def __init__(
        self,
        loop: Loop,
        *,
        identify: Identify,
        greetings: Mapping[str, Callable[[], Greeting]],
        on_stream: OnStream,
        on_notice: Callable[[str, str], None],
        limits: IngressLimits = IngressLimits(),  # noqa: B008 - frozen
    ) -> None:
        self._loop = loop
        self._identify = identify
        self._greetings = greetings
        self._on_stream = on_stream
        self._notices = Notices(loop, on_notice)
        self._limits = limits
        self._listeners: dict[str, tuple[ListenItem, Acceptor]] = {}
        self._pending: dict[_Pending, None] = {}
        self._partings = Partings(loop)
        self._accepted = self._strangers = self._rejected = self._streams = self._evicted = 0

    def set(self, item: ListenItem) -> None:
        """Listen, or change what a listener is for.

        Raises:
            BadConfig: an address that is not of this host alone, a kind we don't know, a plain
                listener without a name, or too many.
            OSError: in use, or not ours.
        """
        if item.kind != PLAIN and item.kind not in self._greetings:
            raise BadConfig(
                "X0-ING-001",
                f"listener of kind {item.kind!r}",
                f"use plain, {', '.join(self._greetings)}",
            )
        if item.kind == PLAIN and not item.name:
            raise BadConfig("X0-ING-002", f"plain listener {item.address} without a service")
        known = self._listeners.get(item.address)
        if known is not None:
            self._listeners[item.address] = item, known[1]
            return
        if len(self._listeners) >= LISTENERS_MAX:
            raise BadConfig("X0-ING-003", "more than 256 listeners")
        self._listeners[item.address] = (
            item,
            Acceptor(
                self._loop,
                _listen(item.address, self._limits.unix_mode),
                lambda sock: self._accept(item.address, sock),
                lambda why: self._notices.say("accept", why),
            ),
        )

    def gone(self, address: str) -> None:
        """Stop listening; streams go on."""
        known = self._listeners.pop(address, None)
        if known is not None:
            known[1].close()
            if address.startswith("unix:"):
                _unlink(address[5:])

    def where(self, address: str) -> str:
        """The address really bound, where the port was given as 0; empty if there is none."""
        known = self._listeners.get(address)
        if known is None or address.startswith("unix:"):
            return "" if known is None else address
        host, port = known[1].listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def statistics(self) -> IngressStatistics:
        """Snapshot for metrics."""
        return IngressStatistics(
            len(self._listeners),
            len(self._pending),
            self._accepted,
            self._strangers,
            self._rejected,
            self._streams,
            self._evicted,
        )

    def close(self) -> None:
        """Stop listening and close what has not become a stream."""
        for address in tuple(self._listeners):
            self.gone(address)
        for pending in tuple(self._pending):
            pending.close()
        self._partings.close()

    def _accept(self, address: str, sock: socket.socket) -> None:
        self._accepted += 1
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begin(sock, self._listeners[address][0], self._identify(sock))

    def _begin(self, sock: socket.socket, item: ListenItem, who: Verdict) -> None:
        if isinstance(who, Denied):
            self._strangers += 1
            self._notices.say("caller", f"refused at {item.address}: {who.reason}")
        if item.kind == PLAIN:
            if isinstance(who, Denied):
                return reset(sock)
            return self._stream(sock, who.peer, item, item.name, b"", None)
        if len(self._pending) >= self._limits.pending_max:
            self._evicted += 1
            next(iter(self._pending)).close()
        greeting = self._greetings[item.kind]()
        pending = _Pending(self._loop, self, sock, item, who, greeting, self._limits.greeting_us)
        self._pending[pending] = None
        return None

    def _stream(
        self,
        sock: socket.socket,
        source: SpiffeId,
        item: ListenItem,
        name: str,
        rest: bytes,
        greeting: Greeting | None,
    ) -> None:
        """Hand a connection over."""
        self._streams += 1
        reply = None if greeting is None else partial(_answer, greeting)
        self._on_stream(sock, source, item, name, rest, reply)

    def _send(self, sock: socket.socket, data: bytes, last: bool) -> None:
        """Send an answer; the last one in such a way that the client can read it."""
        if sock.fileno() < 0:
            return
        if last:
            self._loop.drop(sock.fileno())
            self._partings.say(sock, data)
        elif data:
            with contextlib.suppress(OSError):  # Whoever reads next hears of it.
                sock.send(data)

    def _asked(self, pending: _Pending, asked: Asked) -> None:
        """A greeting is complete."""
        del self._pending[pending]
        if isinstance(pending.who, Denied):
            stranger = pending.greeting.stranger(pending.who.reason)
            return self._send(pending.sock, asked.send + stranger, True)
        if asked.send:
            self._send(pending.sock, asked.send, False)
        return self._stream(
            pending.sock, pending.who.peer, pending.item, asked.name, asked.rest, pending.greeting
        )

    def _refused(self, pending: _Pending, rejected: Rejected) -> None:
        """A greeting that can't be served."""
        del self._pending[pending]
        self._rejected += 1
        self._notices.say("greeting", f"at {pending.item.address}: {rejected.reason}")
        self._send(pending.sock, rejected.send, True)

    def _ended(self, pending: _Pending) -> None:
        self._pending.pop(pending, None)


@final
class _Pending:
    """A greeting under way."""

    __slots__ = ("_ingress", "_loop", "_open", "_timer", "greeting", "item", "sock", "who")

    def __init__(
        self,
        loop: Loop,
        ingress: Ingress,
        sock: socket.socket,
        item: ListenItem,
        who: Verdict,
        greeting: Greeting,
        deadline_us: int,
    ) -> None:
        self._loop = loop
        self._ingress = ingress
        self.sock = sock
        self.item = item
        self.who = who
        self.greeting = greeting
        self._open = True
        self._timer: Timer = loop.after(deadline_us, self.close)
        loop.add(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        """Give up on it."""
        if self._leave():
            self.sock.close()
            self._ingress._ended(self)

    def _leave(self) -> bool:
        """Stop watching; False if that was done before."""
        was, self._open = self._open, False
        if was:
            self._timer.cancel()
            self._loop.drop(self.sock.fileno())
        return was

    def _ready(self, mask: int) -> None:
        try:
            data = self.sock.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self.close()
        step = self.greeting.feed(data)
        if type(step) is More:
            if step.send:
                try:
                    self.sock.send(step.send)
                except OSError:
                    self.close()
            return None
        self._leave()
        if type(step) is Asked:
            return self._ingress._asked(self, step)
        assert type(step) is Rejected
        return self._ingress._refused(self, step)


def _answer(greeting: Greeting, outcome: Reset | None) -> bytes:
    return greeting.answer(outcome, "" if outcome is None else outcome.phrase)


def _listen(address: str, unix_mode: int) -> socket.socket:
    """Bind a local listener.

    Raises:
        BadConfig: not loopback, or something else than a socket is in the way.
        OSError: in use, or not ours.
    """
    if address.startswith("unix:/"):
        return _listen_unix(address[5:], unix_mode)
    # Port 0 is for tests: any free one.
    family, parsed = parse_address(address[:-2] + ":1" if address.endswith(":0") else address)
    assert not isinstance(parsed, str)
    if not ipaddress.ip_address(parsed[0]).is_loopback:
        raise BadConfig(
            "X0-ING-004",
            f"{address} is not of this host alone",
            "listen on 127.0.0.1, [::1] or unix:/path",
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((parsed[0], 0 if address.endswith(":0") else parsed[1]))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_unix(path: str, mode: int) -> socket.socket:
    _unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        old = os.umask(0o777 & ~mode)
        try:
            listener.bind(path)
        finally:
            os.umask(old)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _unlink(path: str) -> None:
    """Remove a socket that a former start has left."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
