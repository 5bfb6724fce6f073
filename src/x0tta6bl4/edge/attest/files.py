"""SHA-256 of files, read once for as long as they stay what they are.

The cache goes by device, inode, size and both times; ctime is the kernel's, so who writes a file
and sets its mtime back is found out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import OrderedDict
from io import BufferedReader
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value

HASHES_MAX: Final = 256
"""Files; the one hashed or asked for longest ago is read again."""
_CHUNK_BYTES: Final = 1 << 18


@final
class Hashed(Value, frozen=True):
    """A file as it was."""

    path: str
    """Without symbolic links, as the kernel names it."""
    sha256: str
    size_bytes: int
    ctime_ns: int


class Hashes:
    """Hashes files, and remembers them."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, ...], str] = OrderedDict()

    def of(self, file: BufferedReader, what: str, bytes_max: int) -> str | Denied:
        """SHA-256, lower-case hex, of an open file.

        Args:
            file: at its beginning.
            what: names it in a reason, e.g. `executable`.
            bytes_max: larger ones are Denied.
        Raises:
            OSError: it can't be read.
        """
        status = os.fstat(file.fileno())
        if status.st_size > bytes_max:
            return Denied(f"{what} is too large to hash")
        key = _key(status)
        known = self._known.pop(key, None)
        if known is None:
            digest, left = hashlib.sha256(), status.st_size
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                digest.update(chunk)  # No more than it had: it might grow for ever.
                left -= len(chunk)
            known = digest.hexdigest()
            if _key(os.fstat(file.fileno())) != key:
                return Denied(f"{what} was written while it was hashed")
        self._known[key] = known
        if len(self._known) > HASHES_MAX:
            self._known.popitem(last=False)
        return known

    def at(self, path: str, what: str, bytes_max: int) -> Hashed | Denied:
        """The regular file at a path; links are followed, nothing but a file is ever opened.

        Raises:
            OSError: it is not there, or can't be read.
        """
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                return Denied(f"{what} is no regular file")
            held = f"/proc/self/fd/{found}"
            name = os.readlink(held)
            with open(held, "rb") as file:
                digest = self.of(file, what, bytes_max)
            if isinstance(digest, Denied):
                return digest
            return Hashed(name, digest, status.st_size, status.st_ctime_ns)
        finally:
            os.close(found)


def _key(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
