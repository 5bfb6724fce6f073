"""Who owns a socket, asked of the kernel: sock_diag over one netlink socket.

Source: sock_diag(7); `struct inet_diag_req_v2`, `struct inet_diag_msg` and `INET_DIAG_CGROUP_ID` in
linux/inet_diag.h; `struct unix_diag_req` in linux/unix_diag.h.

Every question names one socket exactly, so the kernel looks it up in its hash tables and dumps
nothing.  The kernel answers inside the send, so nothing is ever waited for.  What it finds is
compared with the question: an exact look-up that finds no connection falls back to a listener of
the same port, and a socket nobody holds any more has inode 0 and uid 0, which is not root.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_ERROR: Final = 2
_REQUEST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_ASK: Final = struct.Struct("=BBBBI2s2s16s16sI8s")
_ANSWER: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_ASK_UNIX: Final = struct.Struct("=BBHIII8s")
_ANSWER_UNIX: Final = struct.Struct("=BBBBI8s")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ANY_COOKIE: Final = b"\xff" * 8
_CGROUP_ID: Final = 21
_UNIX_SHOW_PEER: Final = 4
_UNIX_PEER: Final = 2
_ALL_STATES: Final = 0xFFFFFFFF

LISTEN: Final = 10
_OPEN_STATES: Final = (1, 4, 5, 8)
"""ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: not SYN_SENT, which may be another's attempt
under the same four numbers, and nothing that is only remembered."""

SocketAddress = tuple[str, int]


@final
class SocketOwner(Value, frozen=True):
    """One TCP socket of this host."""

    uid: int
    """Of the process that made it."""
    inode: int
    cookie: int
    """Of the kernel, never used twice while it runs."""
    cgroup_id: int
    """Inode of the cgroup (v2) in which it was made; 0 where the kernel does not say."""


class SockDiag:
    """Asks the kernel about single sockets of this network namespace.

    Raises:
        OSError: the kernel has no sock_diag.
    """

    __slots__ = ("_sequence", "_sock")

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
        self._sock.setblocking(False)
        self._sequence = 0

    def connected(self, own: SocketAddress, other: SocketAddress) -> SocketOwner | Denied:
        """The socket whose own address is `own` and which is connected to `other`."""
        found = self._inet(own, other)
        if isinstance(found, Denied):
            return found
        state, owner = found
        if state not in _OPEN_STATES:
            return Denied("caller's socket is not connected")
        if not owner.inode:
            return Denied("caller's socket is closed already")
        return owner

    def listening(self, address: SocketAddress) -> SocketOwner | Denied:
        """The socket that would get a connection to this address now."""
        found = self._inet(address, ("::" if ":" in address[0] else "0.0.0.0", 0))
        if isinstance(found, Denied):
            return Denied("nobody listens")
        state, owner = found
        if state != LISTEN:
            return Denied("nobody listens")
        if not owner.inode:
            return Denied("listener is closed already")
        return owner

    def unix_peer(self, inode: int) -> int | Denied:
        """Inode of the socket at the other end of a Unix stream socket of ours."""
        answer = self._ask(
            _ASK_UNIX.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, inode, _UNIX_SHOW_PEER, _ANY_COOKIE)
        )
        if isinstance(answer, Denied):
            return answer
        if _ANSWER_UNIX.unpack_from(answer)[4] != inode:
            return Denied("kernel answered for another socket")
        peer = _attribute(answer, _ANSWER_UNIX.size, _UNIX_PEER)
        return struct.unpack("=I", peer[:4])[0] if peer else Denied("caller's socket is gone")

    def close(self) -> None:
        """Give the netlink socket back."""
        self._sock.close()

    def _inet(self, own: SocketAddress, other: SocketAddress) -> tuple[int, SocketOwner] | Denied:
        family, address = _packed(own[0])
        family_other, address_other = _packed(other[0])
        if family != family_other:
            return Denied("addresses of two families")
        port, port_other = own[1].to_bytes(2, "big"), other[1].to_bytes(2, "big")
        answer = self._ask(
            _ASK.pack(
                family,
                socket.IPPROTO_TCP,
                0,
                0,
                _ALL_STATES,
                port,
                port_other,
                address,
                address_other,
                0,
                _ANY_COOKIE,
            )
        )
        if isinstance(answer, Denied):
            return answer
        if len(answer) < _ANSWER.size:
            return Denied("kernel answered too little")
        (
            _,
            state,
            _,
            _,
            found_port,
            found_port_other,
            found,
            found_other,
            _,
            cookie,
            _,
            _,
            _,
            uid,
            inode,
        ) = _ANSWER.unpack_from(answer)
        width = 4 if family == socket.AF_INET else 16
        if state != LISTEN and (
            (found_port, found_port_other) != (port, port_other)
            or not _same(found, address, width)
            or not _same(found_other, address_other, width)
        ):
            return Denied("kernel answered for another socket")
        cgroup = _attribute(answer, _ANSWER.size, _CGROUP_ID)
        cgroup_id = struct.unpack("=Q", cgroup[:8])[0] if len(cgroup) >= 8 else 0
        return state, SocketOwner(uid, inode, int.from_bytes(cookie, "little"), cgroup_id)

    def _ask(self, body: bytes) -> bytes | Denied:
        """One request, one answer; the answer's body."""
        self._sequence = sequence = self._sequence + 1 & 0xFFFFFFFF
        size = _HEADER.size + len(body)
        self._sock.send(_HEADER.pack(size, _BY_FAMILY, _REQUEST, sequence, 0) + body)
        for _ in range(16):  # An answer to a request that was interrupted may still be queued.
            try:
                data = self._sock.recv(8192)
            except BlockingIOError:
                return Denied("kernel did not answer")
            length, kind, _, answered, _ = _HEADER.unpack_from(data)
            if answered != sequence:
                continue
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, _HEADER.size)
                if -code == errno.ENOENT:
                    return Denied("no such socket")
                return Denied(f"socket look-up: {os.strerror(-code).lower()}")
            return data[_HEADER.size : length]
        return Denied("kernel did not answer")


def plain(address: tuple[str, int] | tuple[str, int, int, int]) -> SocketAddress:
    """A socket's name without what IPv6 adds; IPv4 inside IPv6 becomes IPv4."""
    host = address[0]
    return (host[7:] if host.startswith("::ffff:") else host), address[1]


def _packed(host: str) -> tuple[int, bytes]:
    if ":" in host:
        return socket.AF_INET6, socket.inet_pton(socket.AF_INET6, host)
    return socket.AF_INET, socket.inet_pton(socket.AF_INET, host) + bytes(12)


def _same(found: bytes, asked: bytes, width: int) -> bool:
    """Whether two addresses are the same; an IPv6 socket may hold an IPv4 connection."""
    mapped = bytes(10) + b"\xff\xff"
    return found[:width] == asked[:width] or (width == 4 and found == mapped + asked[:4])


def _attribute(answer: bytes, at: int, wanted: int) -> bytes:
    """Value of a netlink attribute, empty if it is not there."""
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            break
        if kind & 0x3FFF == wanted:
            return answer[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return b""
