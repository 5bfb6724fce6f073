"""Hosts for tests: network namespaces joined by veth pairs, made and removed by the test.

Needs root, iproute2 and nftables.  Nothing outside the namespaces that it made is touched; their
names start with `x0t-` and this process's pid.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

_SETS = itertools.count()
"""Two sets of hosts of one process have namespaces of their own."""


class Hosts:
    """Some hosts, each a network namespace with its own loopback.

    Use as a context; at its end every process started through it is killed and every namespace
    removed.
    """

    def __init__(self, *names: str) -> None:
        self._prefix = f"x0t-{os.getpid()}-{next(_SETS)}-"
        self.names = names
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        for name in self.names:
            _run("ip", "netns", "add", self.space(name))
            _run("ip", "-n", self.space(name), "link", "set", "lo", "up")
            for cc in ("cubic", "reno"):
                done = self.run(
                    name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={cc}", check=False
                )
                if done.returncode == 0:
                    break

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for name in self.names:
            for pid in _run("ip", "netns", "pids", self.space(name), check=False).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "del", self.space(name), check=False)

    def space(self, name: str) -> str:
        """Name of a host's namespace."""
        return self._prefix + name

    def wire(self, left: str, left_address: str, right: str, right_address: str) -> tuple[str, str]:
        """Join two hosts by a cable; addresses with prefix length.

        Returns:
            Names of the two interfaces, `to-<other>`.
        """
        one, two = f"to-{right}", f"to-{left}"
        _run(
            "ip",
            "link",
            "add",
            one,
            "netns",
            self.space(left),
            "type",
            "veth",
            "peer",
            "name",
            two,
            "netns",
            self.space(right),
        )
        for name, device, address in ((left, one, left_address), (right, two, right_address)):
            _run("ip", "-n", self.space(name), "addr", "add", address, "dev", device)
            _run("ip", "-n", self.space(name), "link", "set", device, "up")
        return one, two

    def route(self, name: str, destination: str, via: str) -> None:
        """A static route."""
        _run("ip", "-n", self.space(name), "route", "add", destination, "via", via)

    def forwards(self, name: str) -> None:
        """Let a host forward IPv4 packets, as a router does."""
        self.run(name, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def nft(self, name: str, rules: str) -> None:
        """Load nftables rules in a host."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space(name), "nft", "-f", "-"],
            input=rules.encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()

    def run(
        self, name: str, *command: str, check: bool = True, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a host and wait for it, at most 60 s."""
        return _run("ip", "netns", "exec", self.space(name), *command, check=check, **more)

    def start(
        self, name: str, *command: str, log: Path | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process in a host; it ends with the context at the latest."""
        return self.start_as(("ip", "netns", "exec", self.space(name), *command), log, **more)

    def start_as(
        self, command: tuple[str, ...], log: Path | None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a process; it ends with the context at the latest."""
        out = open(log, "ab") if log else subprocess.DEVNULL  # noqa: SIM115
        more.setdefault("stdout", out)
        more.setdefault("stderr", out)
        child: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **more,
        )
        if log:
            out.close()  # type: ignore[union-attr]
        self._children.append(child)
        return child


def _run(*command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
    assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done
