"""Seals of setup frames and channel messages, under the keys exported from a link's TLS.

Source: RFC 8439 (ChaCha20-Poly1305), RFC 4303 section 3.4.3 (the replay window, here 1,024 wide).

The nonce is the frame's counter.  Counters start at the clock's microseconds, so that a link that
is withdrawn and given again with the same keys never repeats one; keys change with every start of
either proxy.  A channel's messages have keys of their own, derived from the setup keys and the
channel's opening header, which the replay window admits only once.
"""

from __future__ import annotations

import hashlib
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from x0tta6bl4.core.machine import Denied, Instant
from x0tta6bl4.wire.errors import BadMessage
from x0tta6bl4.wire.hop import BODY_BYTES_MAX, Header, pack_header, unpack_header

WINDOW: Final = 1024
KEY_BYTES: Final = 32
SEAL_BYTES: Final = 16
"""What a seal adds to its plaintext."""
PLAIN_BYTES_MAX: Final = BODY_BYTES_MAX - SEAL_BYTES
COUNTER_MAX: Final = 2**64 - 1

_MASK = (1 << WINDOW) - 1


@final
class Window:
    """Which counters have been seen: the newest, and the 1,023 before it.

    Counters beyond the window's lower edge count as seen.  One int, so bounded.
    """

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0

    def fresh(self, counter: int) -> bool:
        """Whether `counter` was never admitted and is not too old."""
        behind = self._newest - counter
        return behind < 0 or (behind < WINDOW and not self._seen >> behind & 1)

    def admit(self, counter: int) -> None:
        """Mark a fresh counter as seen; only after its seal was verified."""
        behind = self._newest - counter
        if behind >= 0:
            self._seen |= 1 << behind
        else:
            self._seen = ((self._seen << min(-behind, WINDOW)) | 1) & _MASK
            self._newest = counter


@final
class LinkSeal:
    """Setup keys of one link, for both directions, of one pair of proxy incarnations.

    Args:
        link: key id that both ends computed from the exporter; not 0.
        tx: key that seals what this proxy sends, 32 bytes.
        rx: key under which it receives, 32 bytes.
        now: clock of the proxy; see the module's text on counters.
    """

    __slots__ = ("_counter", "_rx", "_rx_key", "_tx", "_tx_key", "_window", "link")

    def __init__(self, link: int, tx: bytes, rx: bytes, now: Instant) -> None:
        if len(tx) != KEY_BYTES or len(rx) != KEY_BYTES or tx == rx or not 0 < link < 2**32:
            raise BadMessage(
                "X0-HOP-020",
                f"link {link} with keys of a wrong form",
                "two different keys of 32 bytes",
            )
        self.link = link
        self._tx_key, self._rx_key = tx, rx
        self._tx, self._rx = ChaCha20Poly1305(tx), ChaCha20Poly1305(rx)
        self._counter: int = now
        self._window = Window()

    def seal(self, kind: int, body: bytes) -> bytes:
        """Make a whole setup frame.

        Args:
            kind: HOP, CHANNEL or DIALBACK.
            body: plaintext, at most PLAIN_BYTES_MAX.
        Raises:
            BadMessage: too long.
        """
        if len(body) > PLAIN_BYTES_MAX:
            raise BadMessage("X0-HOP-004", f"setup body of {len(body)} bytes", "at most 4080")
        counter = self._counter = self._counter + 1
        assert counter <= COUNTER_MAX
        header = pack_header(Header(kind, self.link, counter, len(body) + SEAL_BYTES))
        return header + self._tx.encrypt(_nonce(counter), body, header)

    def open(self, header: bytes, sealed: bytes) -> bytes | Denied:
        """Open the body of a received setup frame; the second time the same frame is denied.

        Args:
            header: its 18 bytes.
            sealed: the bytes after it, as many as the header says.
        """
        try:
            fields = unpack_header(header)
        except BadMessage as error:
            return Denied(error.what)
        if fields.link != self.link:
            return Denied("setup frame of another link")
        if len(sealed) != fields.length or fields.length < SEAL_BYTES:
            return Denied("setup frame cut short")
        if not self._window.fresh(fields.counter):
            return Denied("setup frame replayed")
        try:
            body = self._rx.decrypt(_nonce(fields.counter), sealed, header)
        except InvalidTag:
            return Denied("setup frame forged")
        self._window.admit(fields.counter)
        return body

    def channel(self, header: bytes, dialled: bool) -> ChannelSeal:
        """Seal for the messages of a channel that was opened with `header`.

        Args:
            header: the 18 bytes of its CHANNEL frame.
            dialled: whether this proxy sent that frame.
        """
        there = _derive(self._tx_key if dialled else self._rx_key, header, b">")
        back = _derive(self._rx_key if dialled else self._tx_key, header, b"<")
        return ChannelSeal(there, back) if dialled else ChannelSeal(back, there)


@final
class ChannelSeal:
    """Seals the messages of one channel, in order; any failure ends the channel.

    Args:
        tx: key of this channel and this direction, 32 bytes.
        rx: key of the other direction.
    """

    __slots__ = ("_received", "_rx", "_sent", "_tx")

    def __init__(self, tx: bytes, rx: bytes) -> None:
        self._tx, self._rx = ChaCha20Poly1305(tx), ChaCha20Poly1305(rx)
        self._sent = 0
        self._received = 0

    def seal(self, body: bytes) -> bytes:
        """Seal the next message; the result has no length prefix."""
        self._sent += 1
        return self._tx.encrypt(_nonce(self._sent), body, None)

    def open(self, sealed: bytes) -> bytes | Denied:
        """Open the next message."""
        self._received += 1
        try:
            return self._rx.decrypt(_nonce(self._received), sealed, None)
        except InvalidTag:
            return Denied("channel message forged")


def _nonce(counter: int) -> bytes:
    return b"\0\0\0\0" + counter.to_bytes(8, "little")


def _derive(key: bytes, header: bytes, direction: bytes) -> bytes:
    return hashlib.blake2b(
        header + direction, digest_size=KEY_BYTES, key=key, person=b"x0 channel 1"
    ).digest()
