#!/usr/bin/env python3
"""One TCP connection through the mesh while relays die under it and every SVID rotates.

    .venv/bin/python -m bench.long_stream

Six nodes in a ring with two chords; a client on n1, a server on n3, no link between them.  Both
send at a steady pace on the same connection and hash; the relay in use is SIGKILLed `--kills`
times, all SVIDs of all nodes are renewed `--rotations` times, spread evenly.  Then: half-close and
reset in both directions, 200 sessions at once, 1,000 readers that hardly read.  The memory of both
proxies is sampled all the while.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.outcome import Outcome, run
from bench.server import pattern
from tests.real.lab import Address, Lab, Memory, Service, Shape, at_intervals, through_socks
from x0tta6bl4.app.mesh import wait_for

CLIENT, SERVER = "n1", "n3"
MB = 1 << 20


class Both:
    """The client's side of the `both` verb: sends a pattern, checks what comes back.

    Args:
        address: local port of the mesh.
        each: bytes in each direction.
        pace: bytes per second and direction.
    """

    def __init__(self, address: Address, each: int, pace: int) -> None:
        self.error = ""
        self.equal = False
        self.received = 0
        self.gap_s = 0.0
        """Longest time without a byte from the server."""
        self._each, self._pace = each, pace
        self._socket = socket.create_connection(address, 10)
        self._socket.settimeout(90)
        self._socket.sendall(f"both {each} {pace}\n".encode())
        self._sent = hashlib.sha256()
        self._threads = [
            threading.Thread(target=self._guard, args=(part,), daemon=True)
            for part in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except OSError as error:
            self.error = self.error or f"{type(error).__name__}: {error}"

    def _send(self) -> None:
        began, sent = time.monotonic(), 0
        for block in pattern(self._each, seed=2):
            self._socket.sendall(block)
            self._sent.update(block)
            sent += len(block)
            time.sleep(max(0.0, began + sent / self._pace - time.monotonic()))
        self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        wanted = hashlib.sha256()
        for block in pattern(self._each):
            wanted.update(block)
        digest, left, buffer = hashlib.sha256(), self._each, bytearray(1 << 18)
        last = time.monotonic()
        while left:
            size = self._socket.recv_into(buffer, min(left, len(buffer)))
            now = time.monotonic()
            self.gap_s, last = max(self.gap_s, now - last), now
            if not size:
                raise ConnectionError(f"closed {left} bytes early")
            digest.update(memoryview(buffer)[:size])
            left -= size
            self.received += size
        theirs = b""
        while data := self._socket.recv(4096):
            theirs += data
        self._threads[0].join()
        self.equal = (
            digest.digest() == wanted.digest() and theirs.decode() == self._sent.hexdigest()
        )

    def join(self, seconds: float) -> None:
        """Wait for the end of both directions."""
        for thread in self._threads:
            thread.join(seconds)
            if thread.is_alive():
                self.error = self.error or f"not at its end after {seconds:.0f} s more"
        self._socket.close()


def stream(
    outcome: Outcome, lab: Lab, seconds: float, total: int, kills: int, rotations: int
) -> None:
    """The long connection, with everything that happens to it."""
    both = Both(lab.plain(CLIENT, "web"), total // 2, int(total / 2 / seconds))
    began = time.monotonic()
    memory = Memory(lab.proxies(CLIENT, SERVER))
    dead: list[str] = []
    renewed: list[int] = []

    def kill() -> None:
        if dead:
            lab.wait_ready(dead[-1])
        dead.append(lab.relay(CLIENT))
        lab.mesh.kill(dead[-1])
        time.sleep(min(2.0, seconds / 10))
        lab.mesh.start(dead[-1])

    def rotate() -> None:
        if dead:
            lab.wait_ready(dead[-1])
        renewed.append(lab.renew())

    acts = [(i / (kills + 1), kill) for i in range(1, kills + 1)]
    acts += [((i - 0.5) / rotations, rotate) for i in range(1, rotations + 1)]
    at_intervals(seconds, [act for _, act in sorted(acts, key=lambda each: each[0])])
    both.join(seconds + 60)
    took = time.monotonic() - began
    outcome.figure("seconds", round(took, 1))
    outcome.figure("bytes", 2 * both.received)
    outcome.figure("relays_killed", dead)
    outcome.figure("svids_renewed", renewed)
    outcome.figure("longest_silence_ms", round(both.gap_s * 1e3, 1))
    figures = memory.stop()
    outcome.figure("memory_stream", figures)
    outcome.check("the connection was never reset", not both.error, both.error)
    outcome.check("SHA-256 equal in both directions", both.equal)
    outcome.check(f"{kills} relays killed on its path", len(dead) == kills, dead)
    all_svids = sum(len(lab.status(node).svids) for node in lab.shape.nodes)
    outcome.check(
        f"all SVIDs renewed {rotations} times",
        len(renewed) == rotations and min(renewed, default=0) == all_svids,
        renewed,
    )
    most = max(f["most_mb"] for f in figures.values())
    outcome.check("memory of both proxies below 200 MB", most < 200, f"{most} MB")


def ends(outcome: Outcome, lab: Lab) -> None:
    """Half-close and reset, in both directions."""
    address = lab.plain(CLIENT, "web")
    with socket.create_connection(address, 10) as half:
        half.settimeout(20)
        half.sendall(b"echo\n" + b"q" * 100_000)
        half.shutdown(socket.SHUT_WR)
        back = b""
        while data := half.recv(1 << 16):
            back += data
    outcome.check("half-close passes", back == b"q" * 100_000, f"{len(back)} bytes after it")
    with socket.create_connection(address, 10) as theirs:
        theirs.settimeout(20)
        theirs.sendall(b"reset\n")
        theirs.recv(1)
        theirs.sendall(b"x")
        try:
            found = f"{len(theirs.recv(1))} bytes"
        except ConnectionResetError:
            found = "reset"
    outcome.check("the server's reset passes", found == "reset", found)
    before = lab.servers[SERVER].count()
    ours = socket.create_connection(address, 10)
    ours.settimeout(20)
    ours.sendall(b"hold\n")
    ours.recv(1)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    with contextlib.suppress(Exception):
        wait_for(lambda: lab.servers[SERVER].count()["reset"] > before["reset"], "a reset", 10)
    after = lab.servers[SERVER].count()
    outcome.check("the client's reset passes", after["reset"] == before["reset"] + 1, after)


def sessions(outcome: Outcome, lab: Lab, count: int) -> None:
    """Many sessions at once: one per service."""
    memory = Memory(lab.proxies(CLIENT, SERVER))
    proxy = lab.socks(CLIENT)
    held: list[socket.socket] = []
    broken = 0
    began = time.monotonic()
    try:
        for number in range(count):
            connection = through_socks(proxy, f"s{number:03d}.mesh")
            held.append(connection)
            connection.sendall(b"echo\n")
        for connection in held * 3:
            connection.sendall(b"z" * 4096)
            got = 0
            while got < 4096:
                size = len(connection.recv(4096 - got))
                if not size:
                    broken += 1
                    break
                got += size
        outcome.figure("sessions_s", round(time.monotonic() - began, 1))
        outcome.figure("sessions", lab.status(CLIENT).sessions_total)
    except OSError as error:
        outcome.check(f"{count} sessions", False, f"{len(held)} made, then {error}")
    finally:
        for connection in held:
            connection.close()
    figures = memory.stop()
    outcome.figure("memory_sessions", figures)
    outcome.check(f"{count} sessions, none broken", not broken and len(held) == count, broken)
    most = max(f["most_mb"] for f in figures.values())
    outcome.check(f"memory with {count} sessions below 400 MB", most < 400, f"{most} MB")


def slow(outcome: Outcome, lab: Lab, count: int, seconds: float) -> None:
    """Readers who asked for much and read 16 KiB/s; requests beside them in a session of its own.

    Requests in the readers' own session share its credit, so they wait; that is told, not judged.
    """
    memory = Memory(lab.proxies(CLIENT, SERVER))
    address = lab.plain(CLIENT, "web")
    same = lab.load(CLIENT, "web", "--kept", "4", "--rate", "40", "--fresh", "5")
    load = lab.load(CLIENT, "other", "--kept", "4", "--rate", "40", "--fresh", "5")
    readers: list[socket.socket] = []
    for _ in range(count):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        reader.settimeout(20)
        reader.connect(address)
        reader.sendall(b"down 4194304\n")
        readers.append(reader)
    end, alive, read = time.monotonic() + seconds, set(readers), 0
    while time.monotonic() < end:
        due = time.monotonic() + 1
        for reader in tuple(alive):
            try:
                read += len(reader.recv(16384, socket.MSG_DONTWAIT))
            except BlockingIOError:
                pass
            except OSError:
                alive.discard(reader)
        time.sleep(max(0.0, due - time.monotonic()))
    load.finish(10)
    for reader in readers:
        reader.close()
    same.finish(10)
    figures = memory.stop()
    outcome.figure("memory_slow_readers", figures)
    outcome.figure("slow_readers", {"alive": len(alive), "reset": count - len(alive), "read": read})
    failed = load.failed()
    longest = max((s.took for s in load.samples), default=0.0)
    outcome.figure("requests_beside_them", len(load.samples))
    outcome.figure("longest_of_them_ms", round(longest * 1e3, 1))
    waited = max((s.took for s in same.samples), default=0.0)
    outcome.figure("longest_in_their_session_ms", round(waited * 1e3, 1))
    outcome.figure("failed_in_their_session", len(same.failed()))
    outcome.check(
        "requests beside slow readers all answered",
        bool(load.samples) and not failed,
        [s.why for s in failed[:3]] or len(load.samples),
    )
    most = max(f["most_mb"] for f in figures.values())
    outcome.check(f"memory with {count} slow readers below 400 MB", most < 400, f"{most} MB")


def shape(session_count: int = 0) -> Shape:
    """The mesh for it; with that many more services."""
    more = tuple(Service(f"s{i:03d}", (SERVER,), ("shop",)) for i in range(session_count))
    return Shape(
        services=(*(Service(name, (SERVER,), ("shop",)) for name in ("web", "other")), *more),
        callers=((CLIENT, "shop"),),
        socks=(CLIENT,),
        plain_max=2,
    )


def measure(outcome: Outcome, root: Path, options: argparse.Namespace) -> None:
    """All parts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parts = options.parts.split(",")
    with Lab(root, shape(options.sessions if "sessions" in parts else 0)) as lab:
        lab.start()
        if "stream" in parts:
            stream(
                outcome, lab, options.seconds, options.mib * MB, options.kills, options.rotations
            )
            outcome.check("lasted 90 s", outcome.figures["seconds"] >= min(90, options.seconds))
        if "ends" in parts:
            ends(outcome, lab)
        if "sessions" in parts:
            sessions(outcome, lab, options.sessions)
        if "slow" in parts:
            slow(outcome, lab, options.readers, options.slow_seconds)


def parser() -> argparse.ArgumentParser:
    """Options."""
    words = argparse.ArgumentParser(description="one long connection through a mesh under fire")
    words.add_argument("--parts", default="stream,ends,sessions,slow")
    words.add_argument("--seconds", type=float, default=100)
    words.add_argument("--mib", type=int, default=2400, help="both directions together")
    words.add_argument("--kills", type=int, default=3)
    words.add_argument("--rotations", type=int, default=5)
    words.add_argument("--sessions", type=int, default=200)
    words.add_argument("--readers", type=int, default=1000)
    words.add_argument("--slow-seconds", type=float, default=30)
    return words


def main() -> int:
    """Command line."""
    return run("long_stream", measure, parser())


if __name__ == "__main__":
    sys.exit(main())
