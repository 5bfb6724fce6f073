"""HTTP CONNECT as a client speaks it to us.

Source: RFC 9110 section 9.3.6 (CONNECT), section 15.5.8 (407), RFC 9112 section 3.

    CONNECT web.mesh:80 HTTP/1.1 <header fields, ignored>  ->  200, sent only after OPENED
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from x0tta6bl4.core.session.frames import Reset
from x0tta6bl4.edge.ingress.literals import NO_NAMES, named
from x0tta6bl4.wire.ingress import Asked, More, Rejected, Step

HEADER_BYTES_MAX: Final = 16 * 1024
_PHRASES: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}
_FIELDS: Final = {
    405: "Allow: CONNECT\r\n",
    407: "Proxy-Authenticate: X0-Socket-Owner\r\n",
}
_CODES: Final = {
    Reset.DENIED: 403,
    Reset.WITHDRAWN: 403,
    Reset.BUSY: 503,
    Reset.DRAINING: 503,
    Reset.CONNECT_TIMEOUT: 504,
}
_OPENED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


@final
class Connect:
    """One client's request.

    Args:
        names: address -> service name, for clients that resolve before they ask.
    """

    __slots__ = ("_buffer", "_names")

    def __init__(self, names: Mapping[str, str] = NO_NAMES) -> None:
        self._buffer = b""
        self._names = names

    def feed(self, data: bytes) -> Step:
        """Take the client's next bytes; not to be called again after Asked or Rejected."""
        self._buffer += data
        buffer = self._buffer
        start = b"CONNECT "
        if not start.startswith(buffer[: len(start)]):
            return Rejected(_answer(405, "only CONNECT is served here"), "not CONNECT")
        end = buffer.find(b"\r\n\r\n", 0, HEADER_BYTES_MAX)
        if end < 0:
            if len(buffer) >= HEADER_BYTES_MAX:
                return Rejected(_answer(431, "header is longer than 16 KiB"), "header too long")
            return More()
        return self._parse(buffer[:end], buffer[end + 4 :])

    def answer(self, outcome: Reset | None, reason: str = "") -> bytes:
        """The response: None for an opened stream, else why there is none.

        Args:
            outcome: what came of the stream.
            reason: one line for whoever reads the body.
        """
        if outcome is None:
            return _OPENED
        return _answer(_CODES.get(outcome, 502), reason or outcome.phrase)

    def stranger(self, reason: str) -> bytes:
        """The response to a caller that is nobody we know."""
        return _answer(407, reason)

    def _parse(self, head: bytes, rest: bytes) -> Step:
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        parts = line.split(" ")
        if len(parts) != 3 or not line.isprintable():
            return Rejected(_answer(400, "not a request line"), "bad request line")
        _, where, version = parts
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            return Rejected(_answer(505, "only HTTP/1.1 is served here"), "HTTP version")
        host, colon, port = where.rpartition(":")
        number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else 0
        if not colon or not 0 < number < 65536:
            return Rejected(_answer(400, "CONNECT wants host:port"), "bad authority")
        bracketed = host.startswith("[") and host.endswith("]")
        name, literal = named(host[1:-1] if bracketed else host, self._names)
        if bracketed and not literal:
            return Rejected(_answer(400, "only addresses stand in brackets"), "bad authority")
        if not name:
            what = "an address is no service" if literal else "no service of that name"
            return Rejected(_answer(403 if literal else 502, what), f"{host[:80]!r}: {what}")
        return Asked(name, number, rest)


def _answer(code: int, reason: str) -> bytes:
    """A whole response with a one-line body."""
    body = "".join(c if " " <= c <= "~" else "?" for c in reason)[:200] + "\n"
    return (
        f"HTTP/1.1 {code} {_PHRASES[code]}\r\n{_FIELDS.get(code, '')}"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        f"{body}"
    ).encode()
