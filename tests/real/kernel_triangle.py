"""Three hosts whose kernels pass data on, each with a cable to both others: for tests of faults.

  b
 / \\       authority and reader at a, the service at c; a probe of 1,000 packets a second goes
a---c      from a's mesh address to c's
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from tests.real.kernel_ring import KernelRing
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain
from x0tta6bl4.wire.mesh_address import mesh_address

PORT = 9999
OF_ITSELF = ("fe80::", "ff00::", "netdev_budget")
PERIOD_S = 0.001


class Triangle(KernelRing):
    """The picture above, running."""

    ips = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}  # noqa: RUF012
    cables = (("a", "b"), ("a", "c"), ("b", "c"))
    server_at = "c"

    def forwards(self, name: str) -> bool:
        """Whether all links of a node are the kernel's, and alive there."""
        try:
            counters = self.mesh.status(name).counters
        except X0Error:
            return False  # Its agent is about to begin.
        alive = [key for key in counters if key.startswith("kernel_link_up|")]
        return len(alive) == 2 and all(counters[key] for key in alive)

    def wait_forwards(self, seconds: float = 15.0, names: Iterable[str] = "abc") -> None:
        """Until all links of these nodes are the kernel's."""
        wait_for(lambda: all(self.forwards(name) for name in names), "kernels to forward", seconds)

    def kill(self, name: str) -> None:
        """SIGKILL to a node's agent; its proxy goes on."""
        pid = self.agent(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in self.mesh.pids(name), "the agent to be gone", 5)

    def findings(self, name: str) -> list[str]:
        """Ids of what `x0 check` says of a node's kernel, and of links that are down."""
        with AdminClient(self.mesh.state(name)) as client:
            found = client.ask(admin.GetCheck(), admin.CheckAnswer).findings
        return [x.id for x in found if x.id.startswith("X0-KRN") or x.id == "X0-CHK-005"]

    def run(self, name: str, command: str) -> str:
        """Run a command on a host."""
        return self.hosts.run(name, *command.split()).stdout

    def unmount(self, name: str) -> None:
        """Take a node's BPF file system away, where its processes see it."""
        subprocess.run(["umount", self.pins(name)], check=True, timeout=20)

    def objects(self, name: str) -> set[tuple[str, int]]:
        """Programs and maps that a node has pinned, with their numbers in the kernel."""
        library = Libbpf()
        found = set()
        for path in self.pins(name).glob("x0_*"):
            fd = library.unpin(path)
            assert fd is not None
            info = Path(f"/proc/self/fdinfo/{fd}").read_text()
            os.close(fd)
            lines = dict(line.split(":\t") for line in info.splitlines())
            kind = "prog" if "prog_id" in lines else "map"
            found.add((kind, int(lines[f"{kind}_id"])))
        return found

    def switches(self, name: str) -> list[str]:
        """All that the kernel of a host could keep of ours, but for what comes by itself."""
        found = []
        for command in (
            "ip -d -o link", "ip -o -6 addr", "ip -6 route show table all", "ip -6 rule",
            "ip nexthop show", "ip -6 neigh show nud permanent", "tc qdisc show",
            "sysctl -ae -r net.ipv[46]",
        ):  # fmt: skip
            found += [f"{command}: {line}" for line in self.run(name, command).splitlines()]
        for other in self.ips:
            if other != name:
                for side in ("ingress", "egress"):
                    command = f"tc filter show dev to-{other} {side}"
                    found += self.run(name, command).splitlines()
        return [" ".join(x.split()) for x in found if not any(own in x for own in OF_ITSELF)]

    def agent(self, name: str) -> int:
        """Process id of a node's agent."""
        return int((self.mesh.state(name) / "agent.pid").read_text())

    def pins(self, name: str) -> Path:
        """Where a node pins its programs and maps."""
        return self.mesh.state(name) / "bpf"


def living(objects: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of these programs and maps that the kernel still has."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    found = set()
    for kind, number in objects:
        fd = getattr(library, f"bpf_{kind}_get_fd_by_id")(number)
        if fd >= 0:
            os.close(fd)
            found.add((kind, number))
    return found


class Probe:
    """A packet a millisecond from one mesh address to another, while the block runs.

    Attributes:
        gap_s: the longest time without a packet since the last `reset`.
    """

    def __init__(self, ring: KernelRing, source: str = "a", target: str = "c") -> None:
        domain = TrustDomain(ring.mesh.domain)
        here, there = (str(mesh_address(domain, NodeName(name))) for name in (source, target))
        self._stop = threading.Event()
        self.sent = self.came = 0
        self.gap_s = 0.0
        self._last = time.monotonic()
        with ring.space(target):
            self._into = _socket(there, PORT)
            self._into.settimeout(0.05)
        with ring.space(source):
            self._out = _socket(here, 0)
        self._to = there, PORT
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)
        ]

    def __enter__(self) -> Probe:
        self.reset()
        for thread in self._threads:
            thread.start()
        self.wait(50)
        self.reset()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._into.close()
        self._out.close()

    def reset(self) -> None:
        """Count gaps from now on."""
        self.gap_s, self._last = 0.0, time.monotonic()

    def wait(self, more: int, seconds: float = 10.0) -> None:
        """Until so many more packets have come."""
        until, end = self.came + more, time.monotonic() + seconds
        while self.came < until:
            assert time.monotonic() < end, f"{self.came} of {until} packets came"
            time.sleep(0.005)

    def gap(self, more: int = 200, seconds: float = 10.0) -> float:
        """Milliseconds of the longest gap so far, once packets have gone on for a while."""
        self.wait(more, seconds)
        return max(self.gap_s, time.monotonic() - self._last) * 1000

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # No route, or no address, for the time being.
                self._out.sendto(struct.pack("!Q", self.sent), self._to)
                self.sent += 1
            due = max(due + PERIOD_S, time.monotonic() - PERIOD_S)
            time.sleep(max(due - time.monotonic(), 0))

    def _receive(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self._into.recv(64)
                now = time.monotonic()
                self.gap_s = max(self.gap_s, now - self._last)
                self._last = now
                self.came += 1


def _socket(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: the address may come and go.
    sock.bind((address, port))
    return sock
