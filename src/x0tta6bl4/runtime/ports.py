"""What runtimes need from the floor above: structural types, fitted in app/wiring."""

from __future__ import annotations

from typing import Protocol

from x0tta6bl4.core.machine import Denied, Instant
from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.ingress import Step


class TlsPeer(Protocol):
    """The TLS object of a connection whose peer was judged inside the handshake."""

    @property
    def peer_id(self) -> SpiffeId:
        """Who is at the other end; raises where the peer was not judged."""
        ...

    @property
    def peer_not_after_unix_s(self) -> int:
        """End of the peer's SVID."""
        ...

    @property
    def own_not_after_unix_s(self) -> int:
        """End of the SVID that this end presented, whatever it has by now."""
        ...

    @property
    def group(self) -> str:
        """Key exchange, e.g. `X25519MLKEM768`."""
        ...

    @property
    def signature(self) -> str:
        """How the peer has signed the handshake, e.g. `mldsa65`."""
        ...

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Keying material of this connection (RFC 5705, RFC 8446 section 7.5)."""
        ...


class ChannelSeal(Protocol):
    """Seals for the messages of one connection between two proxies, in order."""

    def seal(self, body: bytes) -> bytes:
        """Seal the next message."""
        ...

    def open(self, sealed: bytes) -> bytes | Denied:
        """Open the next message; anything but bytes ends the connection."""
        ...


class SetupSeal(Protocol):
    """Setup keys of one link and one pair of proxy incarnations (edge/hop)."""

    link: int

    def seal(self, kind: int, body: bytes) -> bytes:
        """A whole setup frame of `wire.hop`."""
        ...

    def open(self, header: bytes, sealed: bytes) -> bytes | Denied:
        """Body of a received frame, once."""
        ...

    def channel(self, header: bytes, dialled: bool) -> ChannelSeal:
        """Seal for the messages behind a CHANNEL frame with this header."""
        ...


class SealMaker(Protocol):
    """Makes the seal of a link from its id and keys."""

    def __call__(self, link: int, tx: bytes, rx: bytes, now: Instant) -> SetupSeal:
        """Keys of sending and receiving, 32 bytes each; `now` is the driver's clock."""
        ...


class Greeting(Protocol):
    """One client's greeting at a local listener, without I/O (edge/ingress)."""

    def feed(self, data: bytes) -> Step:
        """Take the client's next bytes; not to be called again after Asked or Rejected."""
        ...

    def answer(self, outcome: Reset | None, reason: str = "") -> bytes:
        """What tells the client that its stream is open (None), or why there is none."""
        ...

    def stranger(self, reason: str) -> bytes:
        """What tells a client that it is nobody we know."""
        ...
