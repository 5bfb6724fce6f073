"""Network namespaces without names, for one test: gone as soon as nothing holds them."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class Space:
    """A network namespace; `with space:` moves this thread into it and back."""

    def __init__(self) -> None:
        home = _own()
        try:
            if _LIBC.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            self._fd = _own()
        finally:
            _enter(home)
            os.close(home)
        self._homes: list[int] = []
        self.sysctl("ipv6.conf.default.accept_dad", "0")
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Space:
        self._homes.append(_own())
        _enter(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        home = self._homes.pop()
        _enter(home)
        os.close(home)

    @property
    def path(self) -> str:
        """For `ip link set ... netns`."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def run(self, *command: str, check: bool = True, told: str = "") -> str:
        """Run a command in it, with this as its input; what it printed."""
        with self:
            done = subprocess.run(
                command, input=told, capture_output=True, text=True, check=False, timeout=20
            )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def ip(self, *lines: str) -> None:
        """Many commands of `ip` at once."""
        self.run("ip", "-batch", "-", told="\n".join(lines))

    def sysctl(self, name: str, value: str) -> None:
        """Set one sysctl of the network."""
        with self:
            Path("/proc/sys/net", *name.split(".")).write_text(value)

    def wire(self, mine: str, other: Space, theirs: str) -> None:
        """Join two by a cable; both ends are up, and their addresses there at once."""
        self.run(*f"ip link add {mine} type veth peer name {theirs} netns {other.path}".split())
        for space, name in ((self, mine), (other, theirs)):
            space.run("ip", "link", "set", name, "up")

    def mac(self, name: str) -> bytes:
        """Hardware address of an interface."""
        with self, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((name, 0))
            address: bytes = sock.getsockname()[4]
            return address

    def index(self, name: str) -> int:
        """Number of an interface."""
        with self:
            return socket.if_nametoindex(name)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def link_local(mac: bytes) -> IPv6Address:
    """EUI-64 address, as the kernel makes it (RFC 4291 appendix A)."""
    return IPv6Address(
        b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2, mac[1], mac[2], 0xFF, 0xFE]) + mac[3:]
    )


class _Named(Space):
    def __init__(self, name: str) -> None:
        self._fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self._homes = []


@contextmanager
def named(name: str) -> Iterator[None]:
    """This thread is in a namespace that `ip netns` has made."""
    with closing(_Named(name)) as space, space:
        yield


class Spaces(ExitStack):
    """Some namespaces, closed together."""

    def add(self) -> Space:
        """One more."""
        space = Space()
        self.callback(space.close)
        return space


def _own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
