"""One TCP connection between the two proxies of each link, for what hellos by UDP can't do.

It carries hellos where UDP is blocked or a side can't be dialled, asks the other side to dial
back, and says why hops were reset.

    message = length u16 little-endian | sealed (kind u8 | body)

Source: RFC 4271 section 6.8 for two connections at once, with this difference: the one that was
dialled by the proxy with the lower incarnation stays, and the other proxy waits a second before
it dials at all, so that there seldom are two.  A dialled channel counts from the first message of
the accepting end, its WELCOME, on: before that the other end may not have the keys yet.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.runtime.loop.connect import Connecting
from x0tta6bl4.runtime.loop.neighbours import Neighbour
from x0tta6bl4.runtime.loop.poll import READ, WRITE, Loop, Timer
from x0tta6bl4.runtime.ports import ChannelSeal, SetupSeal
from x0tta6bl4.wire.hop import (
    CHANNEL,
    HEADER_BYTES,
    MESSAGE_BYTES_MAX,
    WELCOME,
    unpack_refusal,
)
from x0tta6bl4.wire.ids import NodeName

OUTPUT_BYTES_MAX: Final = 64 * 1024
"""What may wait to be sent; a message beyond it is dropped, as a datagram would be."""
WAIT_US: Final = 1 * SECOND
"""Head start of the proxy with the lower incarnation."""
RETRY_US_MIN: Final = 250 * MS
RETRY_US_MAX: Final = 15 * SECOND
WELCOME_US: Final = 5 * SECOND
_SEALED_MAX: Final = MESSAGE_BYTES_MAX + 1 + 16
_LENGTH = struct.Struct("<H")


@final
class Channel:
    """One connection behind its CHANNEL frame.

    Args:
        loop: the proxy's loop.
        sock: connected and non-blocking; owned from here on.
        seal: of this channel.
        dialled: whether this proxy dialled it.
        setup: the LinkSeal under which it was opened, to tell generations apart.
        neighbour: who is at the other end.
        on_message: takes the channel, the kind and the body of each message.
        on_end: told once, with the reason, unless `close` was called.
    """

    __slots__ = (
        "_input",
        "_loop",
        "_mask",
        "_on_end",
        "_on_message",
        "_output",
        "_seal",
        "_sock",
        "dialled",
        "neighbour",
        "setup",
        "up",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        seal: ChannelSeal,
        dialled: bool,
        setup: SetupSeal,
        neighbour: Neighbour,
        on_message: Callable[[Channel, int, bytes], None],
        on_end: Callable[[Channel, str], None],
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._seal = seal
        self.dialled = dialled
        self.setup = setup
        self.neighbour = neighbour
        self.up = not dialled
        self._on_message = on_message
        self._on_end = on_end
        self._input = bytearray()
        self._output = bytearray()
        self._mask = READ
        loop.add(sock.fileno(), READ, self._ready)

    def send(self, kind: int, body: bytes) -> bool:
        """Send a message, at once if the kernel takes it.

        Returns:
            False if it was dropped: closed, or OUTPUT_BYTES_MAX wait already.
        """
        assert len(body) <= MESSAGE_BYTES_MAX
        if self._sock is None or len(self._output) > OUTPUT_BYTES_MAX:
            return False
        sealed = self._seal.seal(bytes((kind,)) + body)
        self._output += _LENGTH.pack(len(sealed)) + sealed
        if self._mask == READ:
            self._flush()
        return self._sock is not None

    def close(self) -> None:
        """Close without telling `on_end`."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.drop(sock.fileno())
            sock.close()

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        sock = self._sock
        if sock is None or not mask & ~WRITE:
            return
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            return self.fail(str(error.strerror).lower())
        if not data:
            return self.fail("closed by the other end")
        self._input += data
        self._parse()

    def _parse(self) -> None:
        """Handle all complete messages of the input."""
        buffer, at = self._input, 0
        if not self.up:
            refused = unpack_refusal(buffer)
            if refused is not None:
                return self.fail(refused) if refused else None
        while len(buffer) - at >= 2 and self._sock is not None:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if not 17 <= length <= _SEALED_MAX:
                return self.fail("channel message of a wrong length")
            if len(buffer) - at - 2 < length:
                break
            body = self._seal.open(bytes(buffer[at + 2 : at + 2 + length]))
            at += 2 + length
            if not isinstance(body, bytes):
                return self.fail(body.reason)
            self.up = True
            self._on_message(self, body[0], body[1:])
        del buffer[:at]
        return None

    def _flush(self) -> None:
        assert self._sock is not None
        try:
            del self._output[: self._sock.send(self._output)]
        except BlockingIOError:
            pass
        except OSError as error:
            return self.fail(str(error.strerror).lower())
        mask = READ | WRITE if self._output else READ
        if mask != self._mask:
            self._mask = mask
            self._loop.set(self._sock.fileno(), mask)
        return None

    def fail(self, reason: str) -> None:
        """Close and tell `on_end`."""
        if self._sock is not None:
            self.close()
            self._on_end(self, reason)


@final
class _Slot:
    """What is known and under way for one neighbour."""

    __slots__ = ("channel", "connecting", "fresh", "retry_us", "timer", "why")

    def __init__(self) -> None:
        self.channel: Channel | None = None
        """The one in use."""
        self.fresh: Channel | None = None
        """Dialled, not welcomed yet."""
        self.connecting: Connecting | None = None
        self.timer: Timer | None = None
        self.retry_us = RETRY_US_MIN
        self.why = "not tried yet"


@final
class Channels:
    """Keeps one channel to each neighbour, as long as one of the two can dial the other.

    Args:
        loop: the proxy's loop.
        me: this node.
        incarnation: of this proxy, to decide between two channels; the name breaks a tie.
        on_message: takes the neighbour's name, the kind and the body of each message but WELCOME.
    """

    __slots__ = ("_loop", "_me", "_on_message", "_slots", "dialled", "ups")

    def __init__(
        self,
        loop: Loop,
        me: NodeName,
        incarnation: int,
        on_message: Callable[[NodeName, int, bytes], None],
    ) -> None:
        self._loop = loop
        self._me = (incarnation, me)
        self._on_message = on_message
        self._slots: dict[NodeName, _Slot] = {}
        self.dialled = 0
        self.ups = 0

    def neighbour_set(self, neighbour: Neighbour) -> None:
        """See to it that there is a channel, under the newest keys."""
        slot = self._slots.setdefault(neighbour.node, _Slot())
        slot.retry_us = RETRY_US_MIN
        self._plan(neighbour, slot, self._head_start(neighbour))

    def neighbour_gone(self, node: NodeName) -> None:
        """Close what there is."""
        slot = self._slots.pop(node, None)
        if slot is not None:
            self._clear(slot)
            if slot.channel is not None:
                slot.channel.close()

    def has(self, node: NodeName) -> bool:
        """Whether messages can be sent."""
        slot = self._slots.get(node)
        return slot is not None and slot.channel is not None

    def why(self, node: NodeName) -> str:
        """Why the last channel to a neighbour ended or did not come to be; empty if it is up."""
        slot = self._slots.get(node)
        return "no neighbour" if slot is None else "" if slot.channel is not None else slot.why

    def send(self, node: NodeName, kind: int, body: bytes) -> bool:
        """Send a message.

        Returns:
            False if it was dropped: no channel, or too much waits in it.
        """
        slot = self._slots.get(node)
        return slot is not None and slot.channel is not None and slot.channel.send(kind, body)

    def accepted(
        self, neighbour: Neighbour, setup: SetupSeal, header: bytes, sock: socket.socket
    ) -> None:
        """Take over a connection that began with a CHANNEL frame of this neighbour."""
        slot = self._slots.get(neighbour.node)
        if slot is None:
            sock.close()
            return
        channel = Channel(
            self._loop,
            sock,
            setup.channel(header, False),
            False,
            setup,
            neighbour,
            self._message,
            self._ended,
        )
        if channel.send(WELCOME, b""):
            self._adopt(neighbour, slot, channel)

    def close(self) -> None:
        """Close all channels."""
        for node in tuple(self._slots):
            self.neighbour_gone(node)

    def _lower(self, neighbour: Neighbour) -> bool:
        """Whether this proxy is the one whose dialled channel stays; both ends agree on it."""
        return self._me < (neighbour.item.incarnation, neighbour.node)

    def _head_start(self, neighbour: Neighbour) -> int:
        return 0 if self._lower(neighbour) else WAIT_US

    def _plan(self, neighbour: Neighbour, slot: _Slot, delay_us: int) -> None:
        """Dial later, unless a channel under the newest keys is there by then."""
        if slot.timer is not None:
            slot.timer.cancel()
        slot.timer = self._loop.after(delay_us, lambda: self._dial(neighbour, slot))

    def _dial(self, neighbour: Neighbour, slot: _Slot) -> None:
        if slot.channel is not None and slot.channel.setup is neighbour.seal:
            return
        self._clear(slot)
        if not neighbour.item.endpoints:
            return  # It has to dial us.
        self.dialled += 1
        slot.connecting = Connecting(
            self._loop,
            neighbour.item.endpoints,
            lambda sock, why: self._connected(neighbour, slot, sock, why),
        )

    def _connected(
        self, neighbour: Neighbour, slot: _Slot, sock: socket.socket | None, why: str
    ) -> None:
        slot.connecting = None
        if sock is None:
            return self._failed(neighbour, slot, why)
        setup = neighbour.seal
        frame = setup.seal(CHANNEL, b"")
        try:
            sent = sock.send(frame)
        except OSError as error:
            sent, why = 0, str(error.strerror).lower()
        if sent < len(frame):
            sock.close()
            return self._failed(neighbour, slot, why or "setup frame not taken")
        slot.fresh = Channel(
            self._loop,
            sock,
            setup.channel(frame[:HEADER_BYTES], True),
            True,
            setup,
            neighbour,
            self._message,
            self._ended,
        )
        fresh = slot.fresh
        slot.timer = self._loop.after(WELCOME_US, lambda: fresh.fail("no welcome in 5 s"))
        return None

    def _failed(self, neighbour: Neighbour, slot: _Slot, why: str) -> None:
        slot.why = why
        self._plan(neighbour, slot, slot.retry_us)
        slot.retry_us = min(slot.retry_us * 2, RETRY_US_MAX)

    def _message(self, channel: Channel, kind: int, body: bytes) -> None:
        neighbour = channel.neighbour
        slot = self._slots[neighbour.node]
        if slot.fresh is channel:
            slot.fresh = None
            self._adopt(neighbour, slot, channel)
        if kind != WELCOME:
            self._on_message(neighbour.node, kind, body)

    def _adopt(self, neighbour: Neighbour, slot: _Slot, channel: Channel) -> None:
        """Use a channel that has come up, or close it in favour of the one in use."""
        old = slot.channel
        if old is not None:
            rivals = old.setup is channel.setup and old.dialled != channel.dialled
            if rivals and old.dialled == self._lower(neighbour):
                return channel.close()
            old.close()
        slot.channel = channel
        self.ups += 1
        slot.retry_us = RETRY_US_MIN
        if slot.timer is not None and slot.fresh is None:
            slot.timer.cancel()
        return None

    def _ended(self, channel: Channel, reason: str) -> None:
        neighbour = channel.neighbour
        slot = self._slots[neighbour.node]
        if slot.fresh is channel:
            slot.fresh = None
            self._failed(neighbour, slot, reason)
        elif slot.channel is channel:
            slot.channel = None
            slot.why = reason
            self._plan(neighbour, slot, slot.retry_us + self._head_start(neighbour))

    def _clear(self, slot: _Slot) -> None:
        """Stop everything that is under way."""
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        if slot.connecting is not None:
            slot.connecting.cancel()
            slot.connecting = None
        if slot.fresh is not None:
            slot.fresh.close()
            slot.fresh = None
