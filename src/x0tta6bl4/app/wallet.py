"""What a node keeps on disk of itself: its long-lived key, its newest SVID, the bundle, workloads.

The key is made before enrolment and registered by it; possession of it lets the node come back
after any absence until it is evicted.  Entries and SVIDs of its workloads let a host start while
the authority is out of reach.  Every file is 0600, written beside and renamed, so that a
power cut leaves the old or the new and never half of either.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, final

import msgspec

from x0tta6bl4.core.agent.words import Workloads
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.wire.errors import BadInput, Refused, Unavailable
from x0tta6bl4.wire.records import Bundle, decode_bundle

KEY: Final = "node.key"
KEPT: Final = "node.svid"
WORKLOADS: Final = "workloads"
FILE_BYTES_MAX: Final = 64 * 1024 * 1024


@final
class Kept(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Content of `node.svid`."""

    svid: Svid
    bundle: bytes
    """Body of the newest bundle known."""


class Wallet:
    """Secrets of one node in its state directory.

    Args:
        state_dir: made 0700 if it is missing.
    Raises:
        Refused: the directory or a key file is open to other users, or not ours.
        Unavailable: a file can't be read or written.
        BadInput: a file is damaged.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        private_dir(state_dir)
        self.svid: Svid | None = None
        self.bundle: bytes = b""
        key = self._dir / KEY
        self.is_new = not key.exists()
        if self.is_new:
            write_private(key, x509.key_bytes(x509.new_key()))
        self.key = x509.load_key(read_private(key))
        if (self._dir / KEPT).exists():
            self._load(read_private(self._dir / KEPT))

    def _load(self, data: bytes) -> None:
        try:
            kept = msgspec.msgpack.decode(data, type=Kept)
            decode_bundle(kept.bundle)
        except (msgspec.DecodeError, UnicodeDecodeError, BadInput):
            raise BadInput(
                "X0-RUN-020",
                f"{self._dir / KEPT} is damaged",
                "remove it: the node attests again by its key",
            ) from None
        self.svid, self.bundle = kept.svid, kept.bundle

    @property
    def known_bundle(self) -> Bundle | None:
        """The newest bundle that this node has verified."""
        return decode_bundle(self.bundle) if self.bundle else None

    def keep(self, svid: Svid, bundle: bytes) -> None:
        """Remember the newest SVID and bundle.

        Raises:
            Unavailable: they could not be written; they are in use all the same.
        """
        self.svid, self.bundle = svid, bundle
        write_private(self._dir / KEPT, msgspec.msgpack.encode(Kept(svid, bundle)))

    def keep_workloads(self, workloads: Workloads) -> None:
        """Remember the entries of this node and their SVIDs, keys and all.

        Raises:
            Unavailable: they could not be written; they are in use all the same.
        """
        write_private(self._dir / WORKLOADS, msgspec.msgpack.encode(workloads))

    def workloads(self) -> Workloads:
        """What `keep_workloads` wrote last; empty if there is none.

        Raises:
            BadInput: the file is damaged.
            Refused: others may read it.
            Unavailable: it can't be read.
        """
        path = self._dir / WORKLOADS
        if not path.exists():
            return Workloads()
        try:
            return msgspec.msgpack.decode(read_private(path), type=Workloads)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise BadInput(
                "X0-RUN-026",
                f"{path} is damaged: this node starts without workloads",
                "nothing to do: the authority tells them again as soon as it is in reach",
            ) from None


def private_dir(path: Path) -> None:
    """Make sure that a state directory exists and is this user's alone.

    Raises:
        Refused: it is open to others or belongs to somebody else.
        Unavailable: it can't be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise Unavailable(
            "X0-RUN-021",
            f"can't use state_dir {path}: {error.strerror}",
            "give it to the user that runs this process",
        ) from None
    if found.st_uid != os.geteuid():
        raise Refused(
            "X0-RUN-022",
            f"state_dir {path} belongs to uid {found.st_uid}",
            "run as its owner, or give this process its own",
        )
    if found.st_mode & 0o077:
        raise Refused(
            "X0-RUN-001",
            f"{path} is open to other users",
            "chmod 700 it, and let its owner run this process",
        )


def read_private(path: Path) -> bytes:
    """Read a file with a secret in it.

    Raises:
        Refused: others may read it.
        Unavailable: it can't be read.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                raise Refused(
                    "X0-RUN-023",
                    f"{path} can be read by other users",
                    f"chmod 600 {path}, and replace the key if somebody may have read it",
                )
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise Unavailable("X0-RUN-024", f"can't read {path}: {error.strerror}") from None


def write_private(path: Path, data: bytes) -> None:
    """Replace a file, durably, 0600 from its first byte.

    Raises:
        Unavailable: it can't be written; the old one is untouched.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise Unavailable(
            "X0-RUN-025",
            f"can't write {path}: {error.strerror}",
            "make room, or check the directory's owner",
        ) from None


def note_pid(path: Path) -> None:
    """Write down which process this is; a full disk keeps nobody from serving."""
    with contextlib.suppress(OSError):
        path.write_text(f"{os.getpid()}\n")
