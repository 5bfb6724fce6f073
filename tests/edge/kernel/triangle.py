"""Three nodes, each joined to the other two: what is cut between two can go by the third."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

from tests.edge.kernel.space import Space, Spaces, link_local
from x0tta6bl4.edge.kernel.detector import Alternate, Detector, Link, LinkEvent, Pace, keys_of
from x0tta6bl4.edge.kernel.layout import EventKind
from x0tta6bl4.edge.kernel.libbpf import Libbpf
from x0tta6bl4.edge.kernel.programs import Mode, Programs

NAMES = "abc"
NUMBERS = {pair: number for number, pair in enumerate(("ab", "ac", "ba", "bc", "ca", "cb"))}
MESH = {name: IPv6Address(f"fd00::{number}") for number, name in enumerate(NAMES, 1)}
_PORT = 5001


def until(what: Callable[[], object], within_s: float = 5) -> None:
    """Wait for something that the kernel does by itself."""
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, what
        time.sleep(0.001)


class Node:
    """Programs and detector of one node."""

    def __init__(self, triangle: Triangle, name: str, pins: Path, pace: Pace) -> None:
        self.space = triangle.spaces[name]
        self.name = name
        self.seen: list[LinkEvent] = []
        with self.space:
            self.programs = Programs.open(Libbpf(), pins)
            self.detector = Detector(self.programs, pace)
        triangle.callback(self.remove)

    def watch(self, triangle: Triangle, other: str, mode: Mode = Mode.GENERIC) -> int:
        """Watch the link to another node."""
        device = self.name + other
        mine, theirs = self.space.mac(device), triangle.spaces[other].mac(other + self.name)
        number = NUMBERS[device]
        with self.space:
            ifindex = socket.if_nametoindex(device)
            self.programs.attach(ifindex, mode)
            self.detector.set_link(
                Link(
                    number=number,
                    peer_number=NUMBERS[other + self.name],
                    ifindex=ifindex,
                    local_mac=mine,
                    peer_mac=theirs,
                    local=link_local(mine),
                    peer=link_local(theirs),
                    incarnation=time.monotonic_ns(),
                )
            )
            secret = b"".join(sorted((mine, theirs))).ljust(32, b"k")
            send, take = keys_of(secret, self.name < other)
            self.detector.take_under(number, 0, take)
            self.detector.send_under(number, 0, send)
        return number

    def events(self) -> list[LinkEvent]:
        """Everything said so far."""
        self.seen += self.detector.events()
        return self.seen

    def told(self, number: int, kind: EventKind) -> bool:
        """Whether this was said, ever."""
        return any((one.number, one.kind) == (number, kind) for one in self.events())

    def revive(self, number: int) -> None:
        """When the kernel finds it good."""
        until(lambda: self.detector.report(number).good >= 10)
        self.detector.revive(number)
        self.seen.clear()

    def remove(self) -> None:
        """Leave nothing; also at the end of a test that failed, and then once more for nothing."""
        if self.programs.programs:
            with self.space:
                self.detector.remove()
                self.programs.remove()


class Triangle(Spaces):
    """a, b and c, with routes along the sides, c forwarding."""

    def __enter__(self) -> Triangle:
        super().__enter__()
        self.spaces = {name: self.add() for name in NAMES}
        for one, other in ("ab", "ac", "bc"):
            self.spaces[one].wire(one + other, self.spaces[other], other + one)
        for name, space in self.spaces.items():
            space.sysctl("ipv6.conf.all.forwarding", "1")
            lines = [f"addr add {MESH[name]}/128 dev lo nodad"]
            for other in NAMES.replace(name, ""):
                mac = self.spaces[other].mac(other + name)
                hop, device = link_local(mac), name + other
                lines += [
                    f"neigh replace {hop} dev {device} lladdr {mac.hex(':')} nud permanent",
                    f"route add {MESH[other]}/128 via {hop} dev {device} src {MESH[name]}",
                ]
            space.ip(*lines)
        self._drop = drop_program()
        self.callback(os.close, self._drop)
        return self

    def alternate(self, by: str, target: str) -> Alternate:
        """To a node by a neighbour: `alternate("ac", "b")`."""
        mac = self.spaces[by[1]].mac(by[::-1])
        return Alternate(MESH[target], self.spaces[by[0]].index(by), mac)

    def cut(self, way: str) -> None:
        """Drop silently what comes on an interface: nobody sees its carrier go."""
        with self.spaces[way[0]]:
            Libbpf().attach_xdp(socket.if_nametoindex(way), self._drop)

    def heal(self, way: str) -> None:
        """Drop nothing any more."""
        with self.spaces[way[0]]:
            Libbpf().detach_xdp(socket.if_nametoindex(way))

    @contextmanager
    def probes(self, source: str, target: str) -> Iterator[Probes]:
        """Numbered datagrams, one per millisecond, while the block runs."""
        probes = Probes(self.spaces[source], self.spaces[target], target)
        probes.start()
        try:
            yield probes
        finally:
            probes.stop()


class Probes:
    """Datagrams with numbers: which came, and when the missing ones were sent."""

    def __init__(self, source: Space, target: Space, name: str) -> None:
        with source:
            self._out = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._out.connect((str(MESH[name]), _PORT))
        with target:
            self._in = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._in.bind(("::", _PORT))
            self._in.settimeout(0.2)
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]
        self.sent: list[float] = []
        self.came: dict[int, int] = {}

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once what is under way has come."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        following = time.monotonic()
        while not self._ended.is_set():
            self.sent.append(time.monotonic())
            self._out.send(struct.pack("I", len(self.sent) - 1))
            following = max(following + 0.001, time.monotonic())
            time.sleep(max(following - time.monotonic(), 0.0002))

    def _receive(self) -> None:
        while True:
            try:
                number = struct.unpack("I", self._in.recv(64))[0]
            except TimeoutError:
                if self._ended.is_set():
                    return
                continue
            self.came[number] = self.came.get(number, 0) + 1

    def lost(self) -> list[int]:
        """Numbers that never came; after the block."""
        return [number for number in range(len(self.sent)) if number not in self.came]

    def outage_ms(self) -> float:
        """From the first to the last that was lost; 0 if none was."""
        lost = self.lost()
        return (self.sent[lost[-1]] - self.sent[lost[0]]) * 1000 + 1 if lost else 0.0


def drop_program() -> int:
    """An XDP program that drops everything: mov r0, 1; exit."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
    program: int = library.bpf_prog_load(6, b"cut", b"GPL", code, ctypes.c_size_t(2), None)
    assert program >= 0, ctypes.get_errno()
    return program
