"""Who calls at a local socket, and who listens at a local address.

The owner of a caller's socket is asked of the kernel (`sockets`), or is what SO_PEERCRED says on a
Unix socket.  A listener is looked up before the connect and after it and must be the same socket
both times, so that nobody inherits the port of a service that crashed; a Unix listener is known
from the connected socket itself.  What can't be found out is refused: never guessed, never empty.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import final

from x0tta6bl4.core.identity.selectors import Attributes, Selector
from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.facts import Wants
from x0tta6bl4.edge.attest.process import Cgroups, Needs, Processes
from x0tta6bl4.edge.attest.sockets import SockDiag, SocketOwner, plain

_CREDENTIALS = struct.Struct("3i")
_NOBODY_UID = 2**32 - 1
_STANDING = (1, 8)
"""ESTABLISHED, CLOSE_WAIT."""


def needs(selectors: Iterable[Selector]) -> Needs:
    """What these selectors ask for."""
    kinds = {selector.kind for selector in selectors}
    families = {selector.family for selector in selectors}
    return Needs(
        "unix:gid" in kinds,
        "unix:path" in kinds,
        not kinds.isdisjoint(("unix:sha256", "python:interpreter-sha256")),
        "unix:cgroup" in kinds,
        Wants(
            "python" in families,
            "python:script-sha256" in kinds,
            "python:venv-sha256" in kinds,
            "systemd" in families,
            "docker" in families,
        ),
    )


@final
class ListenerId(Value, frozen=True):
    """A listener as it was before the connect."""

    address: str
    cookie: int
    """0 for a Unix socket, whose listener is known only once connected."""
    uid: int
    attributes: Attributes


class Attestor:
    """Finds out who is at the other end of a local socket.

    Args:
        diag: asks the kernel.
        processes: looks into /proc.
        cgroups: names cgroups.
    """

    __slots__ = ("_cgroups", "_diag", "_processes")

    def __init__(
        self,
        diag: SockDiag | None = None,
        processes: Processes | None = None,
        cgroups: Cgroups | None = None,
    ) -> None:
        self._diag = diag or SockDiag()
        self._processes = processes or Processes()
        self._cgroups = cgroups or Cgroups()

    def caller(self, sock: socket.socket, wanted: Needs) -> Attributes | Denied:
        """Who made the connection that was accepted as `sock`.

        Args:
            sock: an accepted TCP loopback or Unix stream socket.
            wanted: what to find out beyond the uid.
        """
        if sock.family == socket.AF_UNIX:
            return self._unix(sock, wanted, True)
        try:
            own, other = plain(sock.getpeername()), plain(sock.getsockname())
        except OSError:
            return Denied("caller is gone")
        owner = self._diag.connected(own, other)
        if isinstance(owner, Denied):
            return owner
        # Our end still stands, so nobody else's connection can have had the same four numbers.
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _STANDING:
            return Denied("caller is gone")
        return self._complete(owner, wanted, True)

    def listener(self, address: str, wanted: Needs) -> ListenerId | Denied:
        """Who listens at a service's address, before it is connected to.

        Args:
            address: `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`.
            wanted: what to find out beyond the uid.
        """
        if address.startswith("unix:"):
            return ListenerId(address, 0, _NOBODY_UID, Attributes())
        host, _, port = address.rpartition(":")
        owner = self._diag.listening((host.strip("[]"), int(port)))
        if isinstance(owner, Denied):
            return owner
        found = self._complete(owner, wanted, False)
        if isinstance(found, Denied):
            return found
        return ListenerId(address, owner.cookie, owner.uid, found)

    def confirmed(
        self, before: ListenerId, sock: socket.socket, wanted: Needs
    ) -> Attributes | Denied:
        """Whether the connected `sock` leads to the listener seen before; before any byte is sent.

        Returns:
            Its attributes; Denied if it is another one by now.
        """
        if sock.family == socket.AF_UNIX:
            return self._unix(sock, wanted, False)
        after = self.listener(before.address, wanted)
        if isinstance(after, Denied):
            return after
        if after != before:
            return Denied("listener changed during the connect")
        return after.attributes

    def close(self) -> None:
        """Give the netlink socket back."""
        self._diag.close()

    def _complete(self, owner: SocketOwner, wanted: Needs, caller: bool) -> Attributes | Denied:
        """Attributes of a TCP socket's owner."""
        cgroup = self._cgroups.path(owner.cgroup_id) if wanted.cgroup else ""
        asked = Needs(wanted.gid, wanted.path, wanted.sha256, False, wanted.wants)
        if not wanted.gid and not asked.process:
            return Attributes(owner.uid, (), "", "", cgroup)
        facts = self._processes.holders(owner.inode, asked, caller)
        if isinstance(facts, Denied):
            return facts
        return Attributes(owner.uid, facts.gids, facts.path, facts.sha256, cgroup, facts.facts)

    def _unix(self, sock: socket.socket, wanted: Needs, caller: bool) -> Attributes | Denied:
        """SO_PEERCRED: of the connect for a caller, of the listen for a listener."""
        try:
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(data)
            own, path = os.fstat(sock.fileno()).st_ino, sock.getpeername()
        except OSError:
            return Denied("other end is gone")
        if uid < 0:
            return Denied("other end has no credentials")
        if not wanted.process:
            return Attributes(uid, (gid,))
        inodes = self._peer(own) if caller else _listening(path)
        if isinstance(inodes, Denied):
            return inodes
        asked = Needs(False, wanted.path, wanted.sha256, wanted.cgroup, wanted.wants)
        for inode in inodes:
            facts = self._processes.holders(inode, asked, caller)
            if isinstance(facts, Denied):
                return facts
            if pid in facts.pids:
                return Attributes(uid, (gid,), facts.path, facts.sha256, facts.cgroup, facts.facts)
        return Denied("the process that made the socket holds it no longer")

    def _peer(self, own: int) -> tuple[int, ...] | Denied:
        found = self._diag.unix_peer(own)
        return found if isinstance(found, Denied) else (found,)


def _listening(path: str | bytes) -> tuple[int, ...]:
    """Inodes of the Unix sockets that listen under a path; those it once had too."""
    wanted = path.encode() if isinstance(path, str) else path
    found: list[int] = []
    with open("/proc/net/unix", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(None, 7)
            # Num RefCount Protocol Flags Type St Inode Path; the flag says that it listens.
            if len(fields) == 8 and fields[3] == b"00010000" and fields[7] == wanted:
                found.append(int(fields[6]))
    return tuple(found)
