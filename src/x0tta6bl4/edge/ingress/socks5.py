"""SOCKS5 as a client speaks it to us: CONNECT to a service by name.

Source: RFC 1928.

    05 n methods  ->  05 00
    05 01 00 type address port  ->  05 code 00 01 0.0.0.0 0        (sent only after OPENED)

No authentication is asked for: who calls is known from the socket.  Names are for the mesh to
resolve, so an address is refused with "address type not supported" unless it was given a name.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final, final

from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.edge.ingress.literals import NO_NAMES, named
from x0tta6bl4.wire.ingress import Asked, More, Rejected, Step

GREETING_BYTES_MAX: Final = 2 + 255 + 4 + 256 + 2
"""Longest method list and longest request together."""

SUCCEEDED: Final = 0
FAILED: Final = 1
NOT_ALLOWED: Final = 2
HOST_UNREACHABLE: Final = 4
REFUSED: Final = 5
TTL_EXPIRED: Final = 6
COMMAND: Final = 7
ADDRESS_TYPE: Final = 8

_CODES: Final = {
    Reset.DENIED: NOT_ALLOWED,
    Reset.WITHDRAWN: NOT_ALLOWED,
    Reset.LISTENER: NOT_ALLOWED,
    Reset.NO_SERVICE: HOST_UNREACHABLE,
    Reset.UNREACHABLE: HOST_UNREACHABLE,
    Reset.CONNECT_REFUSED: REFUSED,
    Reset.CONNECT_TIMEOUT: TTL_EXPIRED,
}
_ADDRESS_BYTES: Final = {1: 4, 4: 16}


@final
class Socks5:
    """One client's greeting.

    Args:
        names: address -> service name, for clients that resolve before they ask.
    """

    __slots__ = ("_buffer", "_greeted", "_names")

    def __init__(self, names: Mapping[str, str] = NO_NAMES) -> None:
        self._buffer = b""
        self._greeted = False
        self._names = names

    def feed(self, data: bytes) -> Step:
        """Take the client's next bytes; not to be called again after Asked or Rejected."""
        self._buffer += data
        send = b""
        if not self._greeted:
            step = self._methods()
            if step is not None:
                return step
            send, self._greeted = b"\x05\x00", True
        return self._request(send)

    def answer(self, outcome: Reset | None, reason: str = "") -> bytes:
        """The reply: None for an opened stream, else why there is none."""
        return _reply(SUCCEEDED if outcome is None else _CODES.get(outcome, FAILED))

    def stranger(self, reason: str) -> bytes:
        """The reply to a caller that is nobody we know."""
        return _reply(NOT_ALLOWED)

    def _methods(self) -> Step | None:
        buffer = self._buffer
        if buffer and buffer[0] != 5:
            return Rejected(b"", "not SOCKS5")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return More()
        methods, self._buffer = buffer[2 : 2 + buffer[1]], buffer[2 + buffer[1] :]
        if 0 not in methods:
            return Rejected(b"\x05\xff", "client offers no method without a password")
        return None

    def _request(self, send: bytes) -> Step:
        buffer = self._buffer
        if len(buffer) >= 1 and buffer[0] != 5:
            return Rejected(send + _reply(FAILED), "not SOCKS5")
        if len(buffer) >= 2 and buffer[1] != 1:
            return Rejected(send + _reply(COMMAND), f"command {buffer[1]}, not CONNECT")
        if len(buffer) < 5:
            return More(send)
        kind = buffer[3]
        if kind == 3:
            begin, length = 5, buffer[4]
        elif kind in _ADDRESS_BYTES:
            begin, length = 4, _ADDRESS_BYTES[kind]
        else:
            return Rejected(send + _reply(ADDRESS_TYPE), f"address of type {kind}")
        if len(buffer) < begin + length + 2:
            return More(send)
        raw, port = buffer[begin : begin + length], buffer[begin + length : begin + length + 2]
        if kind == 3:
            host = raw.decode("ascii", "replace")
        else:
            host = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, raw)
        name, literal = named(host, self._names)
        if not name:
            code, what = (ADDRESS_TYPE, "address") if literal else (HOST_UNREACHABLE, "name")
            return Rejected(send + _reply(code), f"{what} {host!r} is no service")
        return Asked(name, int.from_bytes(port, "big"), buffer[begin + length + 2 :], send)


def _reply(code: int) -> bytes:
    return bytes((5, code, 0, 1)) + bytes(6)
