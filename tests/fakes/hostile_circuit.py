"""Circuits made by hand: a setup frame, TLS and session frames over a blocking socket."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from tests.fakes.hostile import Member
from x0tta6bl4.core.identity.rules import ANYBODY
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.core.session import frames
from x0tta6bl4.core.session.frames import Join, join_frame, join_mac
from x0tta6bl4.edge.tls.context import ALPN_CIRCUIT, TlsContext
from x0tta6bl4.edge.tls.engine import Engine, TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.judge import Judging
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire import hop

SECONDS = 5.0
LABEL = b"EXPERIMENTAL x0 circuit"


class Handshake(Protocol):
    """What `Engine` and the raw attacker share."""

    def shake(self) -> bool: ...
    def feed(self, view: bytes, /) -> None: ...
    def take(self, into: bytearray, /) -> int: ...


def say_setup(address: tuple[str, int], *parts: bytes, end: bool = False) -> str:
    """Say something to a data port.

    Args:
        address: of the proxy.
        parts: bytes, in order.
        end: no more will come.
    Returns:
        The refusal; `closed` where there was none; `silent` if it waits for more.
    """
    with socket.create_connection(address, SECONDS) as sock:
        sock.sendall(b"".join(parts))
        if end:
            sock.shutdown(socket.SHUT_WR)
        return read_refusal(sock)


def read_refusal(sock: socket.socket, seconds: float = 2.0) -> str:
    """What a data port answers to a setup frame; see `say_setup`."""
    got = b""
    sock.settimeout(seconds)
    try:
        while data := sock.recv(4096):
            got += data
            reason = hop.unpack_refusal(got)
            if reason is None:
                return f"bytes: {got[:16].hex()}"
            if reason:
                return reason
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    return "closed"


def hop_frame(member: Member, via: str, path: Sequence[str], target: str) -> bytes:
    """A sealed hop for a neighbour, valid in form."""
    return member.seal(via).seal(hop.HOP, hop.pack_hop(hop.Hop(tuple(path), target)))


def raw_hop(member: Member, via: str, path: Sequence[str], target: str) -> bytes:
    """A sealed hop of which nothing has been checked."""
    return member.seal(via).seal(hop.HOP, msgspec.msgpack.encode((tuple(path), target)))


def dial(member: Member, path: Sequence[str], target: str) -> socket.socket:
    """A hop through the first node of `path` (after us) to the last."""
    sock = socket.create_connection(member.data_of(path[0]), SECONDS)
    sock.sendall(hop_frame(member, path[0], path, target))
    return sock


def context(svid: Svid | None, judge: Judging, alpn: str = ALPN_CIRCUIT) -> TlsContext:
    """TLS of an attacker: as anybody, with anybody."""
    return TlsContext(svid, judge, (alpn,), ANYBODY)


def shake(sock: socket.socket, end: Handshake) -> str:
    """Carry a handshake out; the empty string when it is complete, else why not.

    TLS 1.3 lets a client finish before the server has judged it: see `Circuit.refused`.
    """
    buffer = bytearray(1 << 17)
    sock.settimeout(SECONDS)
    first = True
    try:
        while True:
            done = end.shake()
            while count := end.take(buffer):
                sock.sendall(memoryview(buffer)[:count])
            if done:
                return ""
            if dead := getattr(end, "dead", ""):
                return str(dead)
            data = sock.recv(65536)
            if not data:
                return "closed"
            if first and data[:1] == b"X":
                return hop.unpack_refusal(data) or "refused"
            first = False
            end.feed(data)
    except TlsRefused as error:
        with contextlib.suppress(OSError):
            while count := end.take(buffer):
                sock.sendall(memoryview(buffer)[:count])
        return error.reason
    except OSError as error:
        return type(error).__name__


class Circuit:
    """A circuit of an attacker: its own frames, nobody's rules.

    Args:
        sock: connected, after the setup frame.
        tls: of `context`.
        server: role.
    """

    def __init__(self, sock: socket.socket, tls: TlsContext, server: bool = False) -> None:
        self.sock = sock
        self.tls = Engine(tls, server)
        self.why = shake(sock, self.tls)
        self._plain = b""
        self.ended = self.why
        if not self.why:
            self._decrypt()  # A client's first frames come with the end of its handshake.

    def close(self) -> None:
        """Let go."""
        self.sock.close()

    def say(self, *data: bytes) -> None:
        """Send frames."""
        buffer = bytearray(1 << 17)
        self.tls.write(b"".join(data))
        with contextlib.suppress(OSError):
            while count := self.tls.take(buffer):
                self.sock.sendall(memoryview(buffer)[:count])

    def _more(self, seconds: float) -> bool:
        """Read once; False at the end or when nothing came."""
        self.sock.settimeout(max(0.01, seconds))
        try:
            data = self.sock.recv(1 << 17)
            if not data:
                self.ended = self.ended or "eof"
                return False
            self.tls.feed(data)
            self._decrypt()
        except TimeoutError:
            return False
        except OSError as error:
            self.ended = type(error).__name__
        return not self.ended

    def _decrypt(self) -> None:
        plain = bytearray(1 << 17)
        try:
            while count := self.tls.read(plain):
                self._plain += plain[:count]
        except TlsClosed:
            self.ended = "closed"
        except TlsRefused as error:
            self.ended = error.reason

    def each(self, seconds: float = SECONDS) -> Iterator[tuple[int, int, int, bytes]]:
        """Frames as they come: (stream, kind, value, body), until the end or a silence."""
        until = time.monotonic() + seconds
        while True:
            while len(self._plain) >= 8:
                number, word = struct.unpack_from("<II", self._plain)
                kind, value = word >> 28, word & frames.VALUE_MAX
                bodied = kind in (frames.DATA, frames.OPEN) or kind in frames.BODY_BYTES
                size = 8 + (value if bodied else 0)
                if len(self._plain) < size:
                    break
                body, self._plain = self._plain[8:size], self._plain[size:]
                if kind == frames.PING:
                    self.say(frames.frame(number, frames.PONG))
                    continue
                yield number, kind, value, body
            if self.ended or time.monotonic() > until:
                return
            self._more(until - time.monotonic())

    def wait(self, kind: int, seconds: float = SECONDS) -> bytes | None:
        """Body of the next frame of a kind; None: it did not come."""
        for _, found, _, body in self.each(seconds):
            if found == kind:
                return body
        return None

    def wait_end(self, seconds: float = SECONDS) -> str:
        """How the other side ended it; empty: it did not."""
        for _ in self.each(seconds):
            pass
        return self.ended

    def join(
        self, kind: int, join: Join, secret: bytes, label: bytes = frames.LABEL_CLIENT
    ) -> bytes:
        """NEW, JOIN or JOINED with a MAC under `secret` for this very circuit."""
        exporter = self.tls.exporter(LABEL, b"", 32)
        tag = join_mac(hmac_sha256, secret, label, exporter, join)
        whole = Join(
            join.session,
            join.epoch,
            join.received,
            join.start,
            tag,
            secret if kind == frames.NEW else b"",
        )
        return join_frame(kind, whole)

    def get_page(self, stream: int = 1, name: str = "web", seconds: float = SECONDS) -> bytes:
        """One HTTP request over a session that this circuit carries; the body of the answer."""
        ask = b"GET /page HTTP/1.1\r\nHost: web.mesh\r\n\r\n"
        data = struct.pack("<II", stream, frames.DATA << 28 | len(ask)) + ask
        self.say(frames.open_frame(stream, frames.Open(name)), data)
        got = b""
        for number, kind, _, body in self.each(seconds):
            if number == stream and kind == frames.DATA:
                got += body
                page = got.partition(b"\r\n\r\n")[2]
                if len(page) >= 1024:
                    return page
        return b""


def hmac_sha256(key: bytes, data: bytes) -> bytes:
    """As the product makes it."""
    return hmac.digest(key, data, hashlib.sha256)


def new_session() -> tuple[bytes, bytes]:
    """Number and secret of a session."""
    return os.urandom(frames.SESSION_ID_BYTES), os.urandom(frames.SECRET_BYTES)


class Door:
    """The data port of a hostile member: takes hops and gives them to whoever asked for them.

    Args:
        member: whose port it is.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._listener = socket.create_server(member.data, backlog=64)
        self._listener.settimeout(0.2)
        self.on_circuit: Callable[[socket.socket, str], None] | None = None
        """Takes the socket after its setup frame, and the target; None: refused."""
        self._stopped = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        sock.settimeout(SECONDS)
        with contextlib.suppress(OSError, StopIteration):
            head = _exactly(sock, hop.HEADER_BYTES)
            header = hop.unpack_header(head)
            body = _exactly(sock, header.length)
            node = next(n for n, k in self._member.keys.items() if k.link == header.link)
            opened = self._member.seal(node).open(head, body)
            take = self.on_circuit
            if header.kind == hop.HOP and not isinstance(opened, Denied):
                asked = hop.unpack_hop(opened, self._member.node)  # type: ignore[arg-type]
                if take is not None and len(asked.path) == 1:
                    take(sock, asked.target)
                    return
                sock.sendall(hop.pack_refusal("no thoroughfare"))
        sock.close()

    def close(self) -> None:
        """Stop taking."""
        self._stopped = True
        self._listener.close()
        self._thread.join(2)


def _exactly(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = sock.recv(size - len(got))
        if not data:
            raise ConnectionError("closed early")
        got += data
    return got
