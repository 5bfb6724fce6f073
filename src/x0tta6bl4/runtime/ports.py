"""What runtimes need from the floor above: structural types, fitted in app/wiring."""

from __future__ import annotations

from typing import Protocol

from x0tta6bl4.core.machine import Allowed


class TlsPeer(Protocol):
    """The TLS object of a connection whose peer was judged inside the handshake."""

    @property
    def peer(self) -> Allowed:
        """Who is at the other end."""
        ...

    @property
    def peer_not_after_unix_s(self) -> int:
        """End of the peer's SVID."""
        ...

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Keying material of this connection (RFC 5705, RFC 8446 section 7.5)."""
        ...
