"""The process at the other end of an accepted Unix connection, for as long as that lasts.

Source: unix(7); SO_PEERPIDFD (Linux 6.5), pidfd_open(2), proc(5).

uid and gid are what the kernel noted at the connect and need no process.  For all else the process
is held by a pidfd, so that its number can't come to mean another: from SO_PEERPIDFD, or, where the
kernel has none, by its number, refused if that process started after the connection was accepted.
Whatever is read through /proc counts only if that process still holds this very socket.

The first look at a program goes through all processes: another that holds the socket and runs
something else (the connection was made before an exec, and a child kept it) makes it nobody's.
Later looks are at the one process: a socket that is close-on-exec can't have spread since.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, final

from x0tta6bl4.core.identity.selectors import Attributes
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.proc import ended, started_ticks
from x0tta6bl4.edge.attest.process import Needs, Processes, ProcessFacts
from x0tta6bl4.edge.attest.sockets import SockDiag

SO_PEERPIDFD: Final = 77
_CREDENTIALS: Final = struct.Struct("3i")
_INT: Final = struct.Struct("i")


@final
class Peer:
    """One caller.  `close` gives its pidfd back.

    Attributes:
        pid: in our namespace; 0 where it has no number here.
        uid: effective, at the connect.
        gid: effective, at the connect.
    """

    __slots__ = ("_attestor", "_inode", "_pidfd", "_scanned", "gid", "pid", "uid")

    def __init__(
        self, attestor: PeerAttestor, credentials: tuple[int, int, int], pidfd: int, inode: int
    ) -> None:
        self._attestor = attestor
        self.pid, self.uid, self.gid = credentials
        self._pidfd = pidfd
        self._inode = inode
        self._scanned: set[Needs] = set()

    def attributes(self, wanted: Needs) -> Attributes | Denied:
        """What the process is now.

        Args:
            wanted: what to find out beyond uid and gid.
        Returns:
            Attributes with what was asked for; Denied where it can't be found out.
        """
        if self._pidfd < 0 or ended(self._pidfd):
            return Denied("caller has ended")
        if not wanted.process:
            return Attributes(self.uid, (self.gid,))
        if self.pid <= 0:
            return Denied("caller is in another pid namespace")
        asked = Needs(False, wanted.path, wanted.sha256, wanted.cgroup, wanted.wants)
        facts = self._attestor.holder(self._inode, asked, self.pid if asked in self._scanned else 0)
        if isinstance(facts, Denied):
            return facts
        if self.pid not in facts.pids or ended(self._pidfd):
            return Denied("the process that made the connection holds it no longer")
        self._scanned.add(asked)
        return Attributes(
            self.uid, (self.gid,), facts.path, facts.sha256, facts.cgroup, facts.facts
        )

    def close(self) -> None:
        """The connection has ended."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class PeerAttestor:
    """Meets callers at a listening Unix socket.

    Args:
        processes: looks into /proc.
        diag: asks the kernel which socket is connected to which.
        peer_pidfd: whether to try SO_PEERPIDFD; without it, as on a kernel before 6.5.
        now_s: CLOCK_BOOTTIME, seconds.
    """

    __slots__ = ("_diag", "_now_s", "_peer_pidfd", "_processes")

    def __init__(
        self,
        processes: Processes | None = None,
        diag: SockDiag | None = None,
        peer_pidfd: bool = True,
        now_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._processes = processes or Processes()
        self._diag = diag or SockDiag()
        self._peer_pidfd = peer_pidfd
        self._now_s = now_s

    def meet(self, sock: socket.socket) -> Peer | Denied:
        """Who made a connection; call it at once when it is accepted.

        Args:
            sock: accepted on a Unix stream socket.
        """
        accepted_s = self._now_s()
        try:
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            inode = os.fstat(sock.fileno()).st_ino
        except OSError:
            return Denied("caller is gone")
        credentials = _CREDENTIALS.unpack(data)
        if credentials[1] < 0:
            return Denied("caller has no credentials")
        pidfd = self._pidfd(sock, credentials[0], accepted_s)
        if isinstance(pidfd, Denied):
            return pidfd
        return Peer(self, credentials, pidfd, inode)

    def _pidfd(self, sock: socket.socket, pid: int, accepted_s: float) -> int | Denied:
        if self._peer_pidfd:
            try:
                data = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _INT.size)
                return int(_INT.unpack(data)[0])
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    return Denied("caller has ended")
            self._peer_pidfd = False
        if pid <= 0:
            return Denied("caller is in another pid namespace")
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return Denied("caller has ended")
        try:
            started = started_ticks(pid)
        except OSError:
            os.close(pidfd)
            return Denied("caller has ended")
        if started > accepted_s * os.sysconf("SC_CLK_TCK") or ended(pidfd):
            os.close(pidfd)
            return Denied("caller has ended, and its number is another's")
        return pidfd

    def holder(self, inode: int, wanted: Needs, pid: int) -> ProcessFacts | Denied:
        """What the processes have in common that hold the other end of our socket `inode`."""
        other = self._diag.unix_peer(inode)
        if isinstance(other, Denied):
            return other
        return self._processes.holders(other, wanted, True, pid)

    def close(self) -> None:
        """Give the netlink socket back."""
        self._diag.close()
