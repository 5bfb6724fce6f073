"""The access log: one line per stream, with both identities, the path, bytes and duration.

Written by the proxy, so it costs little: a struct per stream, encoded and written in batches by
`flush`, which the proxy calls once a second.  At BUFFER_BYTES_MAX lines are counted, not kept.
"""

from __future__ import annotations

import os
from typing import Final, final

import msgspec

BUFFER_BYTES_MAX: Final = 1024 * 1024


@final
class Access(msgspec.Struct, frozen=True, gc=False):
    """One stream that has ended, as one end saw it."""

    unix_us: int
    """When it ended."""
    side: str
    """`client` (the caller is here) or `server` (the service is here)."""
    source: str
    """SPIFFE ID of the caller."""
    target: str
    """SPIFFE ID of the service."""
    name: str
    """Service name that was asked for; empty: asked by ID, or not known at this end."""
    node: str
    """Node of the other end."""
    path: tuple[str, ...]
    """Of the circuit that was active at the end of the stream."""
    bytes_out: int
    """From the caller to the service."""
    bytes_in: int
    duration_us: int
    outcome: str
    """`ok`, or the stable reason of a refusal or reset."""


class AccessLog:
    """Appends to one file, 0600, which may be rotated by renaming.

    Args:
        path: absolute.
    Raises:
        OSError: it can't be opened.
    """

    __slots__ = ("_buffer", "_fd", "_inode", "_path", "dropped", "lines")

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = self._inode = -1
        self._buffer = bytearray()
        self.lines = 0
        """Lines taken so far."""
        self.dropped = 0
        """Lines lost because the disk did not take them."""
        self._open()

    def write(self, access: Access) -> None:
        """Take one line; it is on the disk after the next `flush`."""
        if len(self._buffer) > BUFFER_BYTES_MAX:
            self.dropped += 1
            return
        self.lines += 1
        self._buffer += _ENCODER.encode(access)
        self._buffer += b"\n"

    def flush(self) -> None:
        """Write what was taken.  A full disk keeps it for the next time, up to the bound."""
        if not self._buffer:
            return
        try:
            if self._moved():
                self.close()
                self._open()
            written = os.write(self._fd, self._buffer)
        except OSError:
            return
        del self._buffer[:written]

    def close(self) -> None:
        """Give the file back; what was not flushed is lost."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _moved(self) -> bool:
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        self._inode = os.fstat(self._fd).st_ino


_ENCODER = msgspec.json.Encoder()
