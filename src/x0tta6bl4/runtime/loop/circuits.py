"""One circuit of the proxy: a socket, TLS over memory, and the session's circuit inside.

    readable  --> 256 KiB recv_into --> tls.decrypt --> circuit.feed --> applications
    pump      <-- send <-- tls.encrypt <-- circuit.pending: [ACK +] one chunk

A chunk is encrypted only while the socket has taken everything before it, so a failover throws
away at most one batch of ciphertext.  Nothing here calls a machine from within `pump` or `feed`:
a circuit that fails closes its socket and says so at the end of the batch.

Bounds: one send buffer per circuit whose socket does not take, from a pool; three shared buffers.
"""

from __future__ import annotations

import mmap
import socket
from typing import Final, Protocol

from x0tta6bl4.core.machine import SECOND, Verdict
from x0tta6bl4.core.session.circuit import Circuit
from x0tta6bl4.core.session.frames import ProtocolError
from x0tta6bl4.core.session.pipe import SessionBroken
from x0tta6bl4.runtime.loop.poll import READ, WRITE, Loop, Timer
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.hop import unpack_refusal
from x0tta6bl4.wire.ids import SpiffeId

HANDSHAKE_US: Final = 5 * SECOND
READ_BYTES: Final = 256 * 1024
SEND_BYTES: Final = 448 * 1024
"""A batch of 128 KiB, one more read, and what TLS adds."""
MERGE_BYTES: Final = 64 * 1024
"""Small chunks that wait are encrypted together up to this, for one send."""
POOL_MAX: Final = 16


class Tls(Protocol):
    """What a circuit needs of TLS (`edge.tls.engine.Engine`; errors are `X0Error`s)."""

    peer: Verdict
    peer_not_after_unix_s: int
    peer_issued_unix_s: int
    peer_via: str
    failed: bool
    """The next `read` raises."""
    group: str
    """Key exchange, once shaken."""

    @property
    def signature(self) -> str:
        """How the peer has signed the handshake."""
        ...

    def feed(self, view: memoryview) -> None:
        """Take ciphertext in."""
        ...

    def feed_eof(self) -> None:
        """The stream has ended."""
        ...

    def shake(self) -> bool:
        """Go on with the handshake; True when done and the peer judged."""
        ...

    def write(self, view: memoryview) -> None:
        """Encrypt a whole buffer."""
        ...

    def take(self, into: memoryview) -> int:
        """Ciphertext out."""
        ...

    def encrypt(self, view: memoryview, into: memoryview) -> int:
        """`write`, and `take`."""
        ...

    def read(self, into: memoryview) -> int:
        """Plaintext out, 0: none yet."""
        ...

    def decrypt(self, cipher: memoryview, count: int, into: memoryview) -> int:
        """`feed` the first `count` bytes of one shared buffer, `read` into another."""
        ...

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Keying material of this connection."""
        ...

    def close(self) -> None:
        """Say that nothing more will be written."""
        ...


class Buffers:
    """Buffers that all circuits of a proxy share; mmap, so that untouched pages cost nothing.

    Attributes:
        cipher: for what is received, during one call.
        plain: for what that decrypts to.
        send: for what is sent, during one call.
    """

    __slots__ = ("_pool", "cipher", "plain", "send")

    def __init__(self) -> None:
        self.cipher = allocate(READ_BYTES)
        self.plain = allocate(READ_BYTES)
        self.send = allocate(SEND_BYTES)
        self._pool: list[memoryview] = []

    def keep(self) -> memoryview:
        """The send buffer with what a socket did not take; another one takes its place."""
        kept = self.send
        self.send = self._pool.pop() if self._pool else allocate(SEND_BYTES)
        return kept

    def give(self, buffer: memoryview) -> None:
        """A kept send buffer is no longer needed."""
        if len(self._pool) < POOL_MAX:
            self._pool.append(buffer)


def allocate(size: int) -> memoryview:
    """Zeroed memory whose pages exist once touched (a bytearray touches all: measured 17 ms).

    Private: what mmap gives by default is a file of shared memory, which takes ten times as long.
    """
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class CircuitOwner(Protocol):
    """Who is told what happens to a circuit (the endpoint)."""

    def on_shaken(self, circuit: TlsCircuit) -> None:
        """TLS is done and the peer judged; frames may be fed right after this call."""
        ...

    def on_fed(self, circuit: TlsCircuit) -> None:
        """What one readiness brought was fed."""
        ...

    def on_lost(self, circuit: TlsCircuit, reason: str) -> None:
        """It failed and its socket is closed; may be called from within `pump` or `feed`."""
        ...


class TlsCircuit:
    """One circuit.

    Args:
        loop: the proxy's loop.
        sock: connected; owned from here on.
        tls: a fresh TLS object.
        buffers: shared ones.
        circuit: the session's part.
        owner: hears of it.
        own: our workload; its SVID is presented.
        peer: whom a client expects at the other end; None: we are the server.
        first: bytes that were read already.

    Attributes:
        client: whether we dialled.
        expected: whom a client expects.
        peer: who is at the other end, once shaken.
        path: as far as it is known here.
        generation: of our SVID that it presents.
        told: the machine knows of it.
        up: TLS is done.
        open: the socket is not closed.
        backlog: ciphertext that the socket has not taken.
    """

    __slots__ = (
        "_at", "_buffers", "_checked", "_first", "_loop", "_mask", "_out", "_owner", "_pumping",
        "_refusal", "_timer", "backlog", "circuit", "client", "expected", "fd", "generation",
        "_speaks", "open", "own", "path", "peer", "sock", "tls", "told", "up",
    )  # fmt: skip

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        tls: Tls,
        buffers: Buffers,
        circuit: Circuit,
        owner: CircuitOwner,
        own: SpiffeId,
        *,
        peer: SpiffeId | None = None,
        first: bytes = b"",
    ) -> None:
        self._loop, self._buffers, self._owner = loop, buffers, owner
        self.sock, self.tls, self.circuit = sock, tls, circuit
        self.fd = sock.fileno()
        self.own = own
        self.expected = peer
        self.client = peer is not None
        self.generation = 0
        self.told = False
        self.path: tuple[str, ...] = ()
        self.peer: SpiffeId = SpiffeId("")
        self.up = False
        self.open = True
        self._out: memoryview | None = None
        self._at = self.backlog = 0
        self._pumping = self._speaks = False
        self._refusal = bytearray()
        self._checked = not self.client
        """A client looks for a refusal in place of the first TLS record."""
        self._mask = READ
        self._first = first
        self._timer: Timer | None = None

    def start(self) -> None:
        """Watch the socket and begin the handshake; a client's first words are often there."""
        self._loop.add(self.fd, READ, self._on_event)
        self._timer = self._loop.after(HANDSHAKE_US, self._too_late)
        if self._first:
            self.tls.feed(memoryview(self._first))
        if self.client or self._first:
            self._shake()
        else:
            self._on_event(READ)

    # ------------------------------------------------------------------ outwards
    def say(self, frame: bytes) -> None:
        """Queue a frame that is not numbered; it leaves at the end of this batch."""
        try:
            self.circuit.say(frame)
        except ProtocolError:
            self.lose("deaf")
            return
        self._speak_later()

    def _speak_later(self) -> None:
        if not self._speaks:
            self._speaks = True
            self._loop.after_batch(self._speak)

    def _speak(self) -> None:
        """Send what was said in this batch, and the last that TLS says of its handshake."""
        self._speaks = False
        self.pump()
        if self.open and not self.backlog:
            self._send_waiting()

    def pump(self) -> None:
        """Encrypt and send what waits, while the socket takes it."""
        if self.backlog or self._pumping or not self.up or not self.open:
            return  # While it pumps, what is flushed meanwhile finds its own way out.
        self._pumping = True
        circuit, tls, out = self.circuit, self.tls, self._buffers.send
        try:
            while (view := circuit.pending()) is not None:
                size = self._merge(view) if circuit.more else tls.encrypt(view, out)
                if not self._send(size) or not circuit.more:
                    return
        except X0Error as error:
            self.lose(_reason(error))
        finally:
            self._pumping = False

    def _merge(self, view: memoryview | None) -> int:
        """Encrypt several small chunks for one send; returns the bytes to be sent."""
        merged = 0
        while view is not None:
            self.tls.write(view)
            merged += len(view)
            more = self.circuit.more and merged <= MERGE_BYTES
            view = self.circuit.pending() if more else None
        return self.tls.take(self._buffers.send)

    def _send(self, size: int) -> bool:
        """Send what was taken into the send buffer and what is behind; True if that was all."""
        out = self._buffers.send
        while size:
            try:
                sent = self.sock.send(out[:size])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.lose(_os_reason(error))
                return False
            if sent < size:
                self._out = self._buffers.keep()
                self._at, self.backlog = sent, size - sent
                self._watch(READ | WRITE)
                return False
            if size < SEND_BYTES:  # There was no more.
                break
            size = self.tls.take(out)
        return True

    def _send_waiting(self) -> bool:
        """Send what TLS has to say by itself; True if that was all."""
        return self._send(self.tls.take(self._buffers.send))

    def _on_writable(self) -> None:
        out, at = self._out, self._at
        if out is not None and self.backlog:
            try:
                sent = self.sock.send(out[at : at + self.backlog])
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(_os_reason(error))
                return
            self._at += sent
            self.backlog -= sent
            if self.backlog:
                return
            self._out = None
            self._buffers.give(out)
        if not self._send_waiting():
            return
        self._watch(READ)
        self.pump()

    # ------------------------------------------------------------------ inwards
    def _on_event(self, mask: int) -> None:
        if mask & WRITE:
            self._on_writable()
            if mask == WRITE or not self.open:
                return None
        tls, circuit = self.tls, self.circuit
        cipher, plain = self._buffers.cipher, self._buffers.plain
        try:
            size = self.sock.recv_into(cipher)
            if not size:
                return self.lose("eof")
            size = tls.decrypt(cipher, size, plain) if self.up else self._greet(cipher[:size])
            while size:
                circuit.feed(plain[:size])
                if not self.open or (size < READ_BYTES and not tls.failed):
                    break  # There was no more, and nothing wrong behind it.
                size = tls.read(plain)
        except BlockingIOError:
            return None
        except OSError as error:
            return self.lose(_os_reason(error))
        except ProtocolError:
            self.lose("protocol")
        except X0Error as error:
            return self.lose(_reason(error))
        except SessionBroken:
            pass  # The owner looks at `pipe.broken`.
        if circuit.control:
            self._speak_later()
        self._owner.on_fed(self)
        return None

    def _greet(self, data: memoryview) -> int:
        """Before TLS is done: go on with it; bytes of plaintext that were behind it."""
        if not self._checked and not self._check_refusal(data):
            return 0
        self.tls.feed(data)
        return self.tls.read(self._buffers.plain) if self._shake() else 0

    def _shake(self) -> bool:
        """Go on with the handshake; True when done."""
        try:
            done = self.tls.shake()
        except X0Error as error:
            self._send_waiting()
            self.lose(_reason(error))
            return False
        if not done:
            self._send_waiting()
            return False
        self.up = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._speak_later()  # The end of the handshake and the first frames in one segment.
        self._owner.on_shaken(self)
        return self.open

    def _check_refusal(self, data: memoryview) -> bool:
        """Whether the first bytes are TLS; a refusal loses the circuit with its reason."""
        head = self._refusal
        if not head and data[0] != 0x58:  # "X", which no TLS record starts with.
            self._checked = True
            return True
        head += data
        reason = unpack_refusal(head)
        if reason is None:
            self.lose("no tls")
        elif reason:
            self.lose(f"refused: {reason}")
        return False

    # ------------------------------------------------------------------ ends
    def lose(self, reason: str) -> None:
        """It failed: close the socket and tell the owner."""
        if self.open:
            self._shut()
            self._owner.on_lost(self, reason)

    def close(self) -> None:
        """Close on purpose; a close_notify is tried, nothing is waited for."""
        if not self.open:
            return
        if self.up and not self.backlog:
            try:
                if (said := self.circuit.take_control()) is not None:
                    self.tls.write(said)
                self.tls.close()
                self._send_waiting()
            except X0Error:
                pass  # TLS has failed meanwhile, and nobody was told yet.
        self._shut()

    def _shut(self) -> None:
        if not self.open:
            return
        self.open = False
        self.circuit.closed = True
        self._loop.drop(self.fd)
        self.sock.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._out is not None:
            self._buffers.give(self._out)
            self._out = None

    def _too_late(self) -> None:
        self.lose("handshake took too long")

    def _watch(self, mask: int) -> None:
        if self.open and mask != self._mask:
            self._mask = mask
            self._loop.set(self.fd, mask)


def _reason(error: X0Error) -> str:
    """Reason of a TLS failure: `closed`, or what the TLS object calls it."""
    reason = getattr(error, "reason", None)
    return f"tls: {reason}" if reason else "closed"


def _os_reason(error: OSError) -> str:
    return "reset" if isinstance(error, ConnectionError) else error.strerror or "socket"
