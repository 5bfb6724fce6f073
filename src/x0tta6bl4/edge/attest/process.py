"""Which processes hold a socket, and what they run: through /proc, held still by a pidfd.

Source: proc(5), pidfd_open(2).  A pid may be used again and a process may exec: the pidfd is taken
first, everything is read through /proc/<pid>, then the pidfd must still be alive (so it was one
process throughout), still hold the socket and still run the same file.

A process can connect, then exec another program that inherits the socket.  A socket that is
close-on-exec can't have come that way; a caller's that is not is refused, for entries that ask for
its executable.  (A listener may be inherited: service managers pass them on.)

Without CAP_SYS_PTRACE only processes of the own uid can be looked into.
"""

from __future__ import annotations

import os
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.facts import Facts, Wants, mounted
from x0tta6bl4.edge.attest.files import Hashes
from x0tta6bl4.edge.attest.proc import ended, line

OWNERS_MAX: Final = 256
EXECUTABLE_BYTES_MAX: Final = 1 << 30
_CLOSE_ON_EXEC: Final = 0o2000000


@final
class Needs(Value, frozen=True):
    """What has to be found out about the owner of a socket beyond the uid."""

    gid: bool = False
    path: bool = False
    sha256: bool = False
    cgroup: bool = False
    wants: Wants = Wants()

    @property
    def program(self) -> bool:
        """Whether it matters what the process runs."""
        return self.path or self.sha256 or self.wants.python

    @property
    def process(self) -> bool:
        """Whether the process has to be found, and not just its user and group."""
        return self.program or self.cgroup or self.wants != _NOTHING


_NOTHING: Final = Wants()


@final
class ProcessFacts(Value, frozen=True):
    """What all processes that hold a socket have in common; empty what was not asked for."""

    pids: tuple[int, ...]
    gids: tuple[int, ...]
    """The effective group, alone."""
    path: str
    """Executable, as this mount namespace sees it."""
    sha256: str
    cgroup: str
    facts: frozenset[str] = frozenset()
    """Selectors of other families that hold."""


@final
class _Seen(Value, frozen=True):
    """What is compared between looks and between processes."""

    path: str
    file: tuple[int, int]
    gids: tuple[int, ...]
    cgroup: str
    facts: frozenset[str] = frozenset()


class Processes:
    """Looks into /proc.

    Args:
        proc: where procfs is mounted.
        facts: finds out what other families ask for.
    """

    __slots__ = ("_facts", "_hashes", "_proc")

    def __init__(self, proc: str = "/proc", facts: Facts | None = None) -> None:
        self._proc = proc
        self._hashes = Hashes()
        self._facts = facts or Facts(hashes=self._hashes, proc=proc)

    def holders(
        self, inode: int, wanted: Needs, caller: bool, pid: int = 0
    ) -> ProcessFacts | Denied:
        """What holds the socket with this inode; several holders must agree on what is asked for.

        Args:
            inode: of the socket; not 0.
            wanted: what to find out; a hash is cached by the file's inode and times.
            caller: refuse a socket that a program before the present one may have opened, where
                it matters what program it is.
            pid: look at this process only; 0: at all.
        """
        link = f"socket:[{inode}]"
        agreed: _Seen | None = None
        pids: list[int] = []
        digest = ""
        for found, number in self._find(link, [str(pid)] if pid else os.listdir(self._proc)):
            seen = self._look(found, number, link, wanted, caller)
            if seen is None:
                continue  # It ended, or closed the socket, meanwhile.
            if isinstance(seen, Denied):
                return seen
            if agreed is not None and seen != agreed:
                return Denied("several processes hold the socket and differ")
            agreed = seen
            if found not in pids:
                pids.append(found)
            if len(pids) > OWNERS_MAX:
                return Denied("too many processes hold the socket")
        if agreed is None:
            return Denied("no process found that holds the socket")
        if wanted.sha256:
            hashed = self._hash(pids[0], agreed)
            if isinstance(hashed, Denied):
                return hashed
            digest = hashed
        facts = agreed.facts
        if wanted.wants.python and digest:
            facts |= {f"python:interpreter-sha256:{digest}"}
        return ProcessFacts(tuple(pids), agreed.gids, agreed.path, digest, agreed.cgroup, facts)

    def _find(self, link: str, processes: list[str]) -> list[tuple[int, str]]:
        """(pid, descriptor) of every hold of these on a socket that we may see."""
        found: list[tuple[int, str]] = []
        for name in processes:
            if not name.isdecimal():
                continue
            base = f"{self._proc}/{name}/fd"
            try:
                numbers = os.listdir(base)
            except OSError:
                continue
            for number in numbers:
                try:
                    if os.readlink(f"{base}/{number}") == link:
                        found.append((int(name), number))
                except OSError:
                    continue
        return found

    def _look(
        self, pid: int, number: str, link: str, wanted: Needs, caller: bool
    ) -> _Seen | Denied | None:
        """Read one holder twice with its pidfd in hand; None if it is one no longer."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            base = f"{self._proc}/{pid}"
            descriptor = f"{base}/fd/{number}"
            if os.readlink(descriptor) != link:
                return None
            strict = caller and wanted.program
            if strict and not _flags(f"{base}/fdinfo/{number}") & _CLOSE_ON_EXEC:
                return Denied("socket may have been opened by a program before an exec")
            seen = _seen(base, wanted)
            facts = self._facts.of(pid, seen.path, wanted.wants)
            if os.readlink(descriptor) != link or ended(pidfd):
                return None
            if _seen(base, wanted) != seen:
                return Denied("process changed while it was looked at")
            if wanted.program and _file(seen.path) != seen.file:
                return Denied("executable is not what its path names")
            if isinstance(facts, Denied):
                return facts
            return _Seen(seen.path, seen.file, seen.gids, seen.cgroup, facts)
        except FileNotFoundError:
            return None
        except OSError as error:
            return Denied(f"process not readable: {os.strerror(error.errno or 0).lower()}")
        finally:
            os.close(pidfd)

    def _hash(self, pid: int, seen: _Seen) -> str | Denied:
        """SHA-256 of what the process runs, read through /proc so that no path is trusted."""
        try:
            with open(f"{self._proc}/{pid}/exe", "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != seen.file:
                    return Denied("process changed while it was looked at")
                return self._hashes.of(file, "executable", EXECUTABLE_BYTES_MAX)
        except OSError as error:
            return Denied(f"executable not readable: {os.strerror(error.errno or 0).lower()}")


class Cgroups:
    """Paths of cgroups (v2) by their ids, which are inodes of the cgroup file system.

    Args:
        root: where it is mounted; found in /proc/self/mountinfo if not given, and "" if nowhere.
    """

    __slots__ = ("_paths", "_root")

    CGROUPS_MAX: Final = 16_384

    def __init__(self, root: str | None = None) -> None:
        self._root = mounted() if root is None else root
        self._paths: dict[int, str] = {}

    def path(self, id: int) -> str:
        """Path of a cgroup below the mount, e.g. `/system.slice/web.service`; empty: unknown."""
        if not id or not self._root:
            return ""
        known = self._paths.get(id)
        if known is not None and _file(self._root + known)[1] == id:
            return known
        self._walk()
        return self._paths.get(id, "")

    def _walk(self) -> None:
        self._paths.clear()
        for base, names, _ in os.walk(self._root):
            self._paths[_file(base)[1]] = base[len(self._root) :] or "/"
            if len(self._paths) >= self.CGROUPS_MAX:
                names.clear()


def _file(path: str) -> tuple[int, int]:
    """Device and inode; zeros if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _seen(base: str, wanted: Needs) -> _Seen:
    path, file = "", (0, 0)
    if wanted.program:
        status = os.stat(f"{base}/exe")
        path, file = os.readlink(f"{base}/exe"), (status.st_dev, status.st_ino)
    gids = (int(line(f"{base}/status", b"Gid:").split()[2]),) if wanted.gid else ()
    cgroup = line(f"{base}/cgroup", b"0::")[3:].strip().decode() if wanted.cgroup else ""
    return _Seen(path, file, gids, cgroup)


def _flags(path: str) -> int:
    """Flags of an open file, from its fdinfo."""
    return int(line(path, b"flags:").split()[1], 8)
