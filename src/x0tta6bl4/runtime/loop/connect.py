"""Addresses as configuration writes them, and connecting to one of several without blocking.

Only literals are dialled: a name would have to be looked up, and that blocks the byte path.  The
agent resolves names before they reach the proxy.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Final, final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.loop.poll import WRITE, Loop, Timer
from x0tta6bl4.wire.errors import BadConfig

CONNECT_US: Final = 2 * SECOND
"""Deadline of one attempt."""
ADDRESSES_MAX: Final = 8
_KEEPALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
)
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
CLOSE_IN_ORDER: Final = struct.pack("ii", 0, 0)
"""Values of SO_LINGER."""

Address = tuple[str, int] | str
OnConnected = Callable[[socket.socket | None, str], None]


def parse_address(text: str) -> tuple[int, Address]:
    """Read `127.0.0.1:80`, `[::1]:80` or `unix:/path`.

    Returns:
        Address family, and what `socket.connect` takes.
    Raises:
        BadConfig: anything else, names of hosts too.
    """
    if text.startswith("unix:/"):
        return socket.AF_UNIX, text[5:]
    host, _, port = text.rpartition(":")
    try:
        bracketed = host.startswith("[") and host.endswith("]")
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if bracketed != (address.version == 6) or not port.isdecimal():
            raise ValueError
        number = int(port)
        if not 0 < number < 65536:
            raise ValueError
    except ValueError:
        raise BadConfig(
            "X0-NET-001",
            f"{text[:80]!r} is no address",
            "use 192.0.2.1:port, [2001:db8::1]:port or unix:/path",
        ) from None
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), (str(address), number)


def tune(sock: socket.socket) -> None:
    """Set what every TCP connection between proxies has: no delay, and death within 30 s."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        for level, option, value in _KEEPALIVE:
            sock.setsockopt(level, option, value)


def established(sock: socket.socket) -> bool:
    """Whether a connect under way is through already, as on loopback it nearly always is."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def begin(sock: socket.socket, frame: bytes) -> str:
    """Send a setup frame, in one segment with what follows at once.

    Returns:
        "", or why it was not sent; the socket is closed then.
    """
    try:
        if sock.send(frame, socket.MSG_MORE) < len(frame):
            raise BlockingIOError  # An empty send buffer takes 4 KiB, or is no good.
    except OSError as error:
        sock.close()
        return f"setup frame not sent: {error.strerror}"
    return ""


def reset(sock: socket.socket) -> None:
    """Close so that the other end sees a reset and not an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass  # It is gone already.
    sock.close()


def data_port(address: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Bind the data port: TCP for hops and UDP for hellos, under the same number.

    Args:
        address: an IP address; `::` takes IPv4 too.
        port: 0 for any.
    Returns:
        Listening TCP socket and UDP socket, both non-blocking.
    Raises:
        OSError: in use, or not ours.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for attempt in range(8):
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sock in (tcp, udp):
                sock.setblocking(False)
                if address == "::":
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            tcp.bind((address, port))
            udp.bind((address, tcp.getsockname()[1]))
            # Whoever connects speaks first: don't be woken for those who don't.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
            tcp.listen(1024)
        except OSError:
            tcp.close()
            udp.close()
            if port or attempt == 7:
                raise
        else:
            return tcp, udp
    raise AssertionError


@final
class Connecting:
    """Tries addresses one after the other; answers once, and never before it has returned.

    Args:
        loop: where the answer comes from.
        addresses: as `parse_address` takes them; at most ADDRESSES_MAX are tried.
        on_done: takes the connected, tuned socket, or None and the reason of the last failure.
        each_us: deadline of one attempt.
    """

    __slots__ = ("_each_us", "_left", "_loop", "_on_done", "_reason", "_sock", "_timer")

    def __init__(
        self,
        loop: Loop,
        addresses: Sequence[str],
        on_done: OnConnected,
        each_us: int = CONNECT_US,
    ) -> None:
        self._loop = loop
        self._left = list(addresses[:ADDRESSES_MAX])
        self._on_done: OnConnected | None = on_done
        self._each_us = each_us
        self._sock: socket.socket | None = None
        self._reason = "no address to dial"
        self._timer: Timer | None = None
        loop.after_batch(self._next)

    def cancel(self) -> None:
        """Stop; `on_done` is not called any more."""
        self._on_done = None
        self._drop()

    def _next(self) -> None:
        """Start the next attempt, or give up."""
        while self._on_done is not None:
            if not self._left:
                return self._answer(None)
            try:
                family, address = parse_address(self._left.pop(0))
                sock = socket.socket(family, socket.SOCK_STREAM)
            except (BadConfig, OSError) as error:
                self._reason = getattr(error, "what", None) or str(error)
                continue
            self._sock = sock
            tune(sock)
            code = sock.connect_ex(address)
            if code == 0 or (code == errno.EINPROGRESS and established(sock)):
                return self._answer(sock)
            if code == errno.EINPROGRESS:
                self._loop.add(sock.fileno(), WRITE, self._ready)
                self._timer = self._loop.after(self._each_us, self._late)
                return None
            self._fail(os.strerror(code).lower())
        return None

    def _ready(self, mask: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(os.strerror(code).lower())
            self._next()
        elif mask & WRITE:
            self._answer(self._sock)

    def _late(self) -> None:
        self._fail("connect timed out")
        self._next()

    def _fail(self, reason: str) -> None:
        self._reason = reason
        self._drop()

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.drop(sock.fileno())
            sock.close()

    def _answer(self, sock: socket.socket | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            self._loop.drop(sock.fileno())
            self._sock, self._reason = None, ""
        call, self._on_done = self._on_done, None
        assert call is not None
        call(sock, self._reason)
