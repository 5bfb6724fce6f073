"""A mesh of real processes for tests and measurements: who serves what to whom, and how to look.

    with Lab(root, Shape(services=(Service("web", ("n3",), ("shop",)),), ...)) as lab:
        lab.start()
        lab.mesh.kill(lab.relay("n1"))

All programs on both sides are ordinary ones (`bench/server.py`, sockets, `app.load`).  Everything
that is started here ends with the context, by pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, final

import msgspec

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import Mesh, Plan, free_ports, ring_of_six, wait_for
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.app.story import Watcher
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import NotFound, Unavailable, X0Error
from x0tta6bl4.wire.records import Name

DOMAIN = "lab.mesh"
SERVER = Path(__file__).parents[2] / "bench" / "server.py"
PAGE_BYTES = 1024
Address = tuple[str, int]


@final
class Service(msgspec.Struct, frozen=True):
    """A service: its ID is `spiffe://lab.mesh/<name>`, its name `<name>.mesh`."""

    name: str
    nodes: tuple[str, ...]
    callers: tuple[str, ...]


@final
class Shape(msgspec.Struct, frozen=True):
    """What a lab consists of; a ring of six with two chords unless told."""

    services: tuple[Service, ...]
    callers: tuple[tuple[str, str], ...]
    """(node, workload that every program of this user on that node is)."""
    nodes: tuple[str, ...] = ring_of_six()[0]
    links: tuple[tuple[str, str], ...] = ring_of_six()[1]
    socks: tuple[str, ...] = ()
    """Nodes with a SOCKS5 listener; every node with a caller has a plain one per service."""
    plain_max: int = 4
    ttl_s: int = 3600
    hello_ms: int = 100
    keys: Literal["p-256", "ml-dsa-65"] = "p-256"


def spiffe(workload: str) -> str:
    """Full ID of a workload of the lab."""
    return f"spiffe://{DOMAIN}/{workload}"


class Lab:
    """A running mesh with its servers.

    Args:
        root: directory of everything.
        shape: what to build.
    """

    def __init__(self, root: Path, shape: Shape) -> None:
        self.root = root
        self.shape = shape
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.page = root / "page"
        self.page.write_bytes(secrets.token_bytes(PAGE_BYTES))
        self.servers: dict[str, ServerProcess] = {}
        self._watchers: list[Watcher] = []
        listeners = [
            (node, cfg.Listen(address="127.0.0.1:0", kind="plain", name=service.name))
            for node, _ in shape.callers
            for service in shape.services[: shape.plain_max]
        ]
        listeners += [(n, cfg.Listen(address="127.0.0.1:0", kind="socks5")) for n in shape.socks]
        self.mesh = Mesh(
            root / "mesh",
            Plan(
                trust_domain=DOMAIN,
                nodes=shape.nodes,
                links=shape.links,
                listeners=tuple(_told_apart(listeners)),
                svid_ttl_s=shape.ttl_s,
                hello_ms=shape.hello_ms,
                keys=shape.keys,
            ),
        )
        self.operator = Operator(self.mesh.state("authority"))

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.finish(1)
        self.mesh.stop()
        for server in self.servers.values():
            server.stop()

    # -------------------------------------------------------------- starting
    def start(self) -> None:
        """Start everything and wait until every caller gets a page from every plain listener."""
        self.mesh.lay_out()
        self.mesh.start("authority")
        self.mesh.wait("authority", self.operator.is_serving, "the authority")
        self._register()
        for node in self.shape.nodes:
            self.operator.enrol_file(node, self.mesh.state(node) / "enrol-token")
            self.mesh.start(node)
        self.wait_ready(*self.shape.nodes)
        for node, caller in self.shape.callers:
            for service in self.shape.services[: self.shape.plain_max]:
                if caller in service.callers:
                    self.wait_page(node, service.name)

    def _register(self) -> None:
        uid = (f"unix:uid:{os.getuid()}",)
        entries = []
        for node in self.shape.nodes:
            here = [s for s in self.shape.services if node in s.nodes]
            if not here:
                continue
            server = self.servers[node] = ServerProcess(self.page, len(here))
            entries += [
                Entry(
                    id=spiffe(service.name),
                    node=node,
                    selectors=uid,
                    address=f"127.0.0.1:{port}",
                    ttl_s=self.shape.ttl_s,
                )
                for service, port in zip(here, server.ports, strict=True)
            ]
        entries += [
            Entry(id=spiffe(name), node=node, selectors=uid, ttl_s=self.shape.ttl_s)
            for node, name in self.shape.callers
        ]
        self.operator.create_entries(entries)
        for service in self.shape.services:
            self.operator.create_name(
                Name(service.name, spiffe(service.name), tuple(map(spiffe, service.callers)))
            )

    # -------------------------------------------------------------- looking
    def status(self, node: str) -> admin.Status:
        """Status of a node, asked of its agent."""
        with AdminClient(self.mesh.state(node)) as client:
            return client.ask(admin.GetStatus(), admin.Status)

    def plain(self, node: str, service: str) -> Address:
        """Where programs of a node reach a service, whether or not its agent lives."""
        return self._listener(node, "plain", service)

    def socks(self, node: str) -> Address:
        """SOCKS5 listener of a node."""
        return self._listener(node, "socks5", "")

    def _listener(self, node: str, kind: str, name: str) -> Address:
        for at, listener in self.mesh.plan.listeners:
            if (at, listener.kind, listener.name) == (node, kind, name):
                host, _, port = listener.address.rpartition(":")
                return host, int(port)
        raise NotFound("X0-LAB-002", f"{node} has no {kind} listener for {name!r}")

    def path(self, node: str) -> tuple[str, ...]:
        """Path of the session that a node's callers use most; empty: none."""
        mine = {spiffe(name) for at, name in self.shape.callers if at == node}
        found = [s for s in self.status(node).sessions if s.source in mine]
        best = max(found, key=lambda s: (s.streams, s.bytes_in + s.bytes_out), default=None)
        return best.path if best else ()

    def relay(self, node: str) -> str:
        """The first relay on that path.

        Raises:
            Unavailable: there is none.
        """
        path = self.path(node)
        if len(path) < 3:
            raise Unavailable("X0-LAB-001", f"no relay on the path {path} of {node}")
        return path[1]

    def proxies(self, *nodes: str) -> dict[str, int]:
        """Process ids of proxies, by node."""
        return {node: pid for node in nodes for pid in self.mesh.pids(node, "proxy")}

    def processes(self) -> dict[str, int]:
        """Process ids of everything of ours: `n1/agent`, `n1/proxy`, ..., `authority`."""
        found = {
            f"{n}/{p}": i
            for n in self.shape.nodes
            for p in ("agent", "proxy")
            for i in self.mesh.pids(n, p)
        }
        for pid in self.mesh.pids("authority"):
            found["authority"] = pid
        return found

    # -------------------------------------------------------------- waiting
    def wait_ready(self, *nodes: str, seconds: float = 30.0) -> None:
        """Wait until nodes are ready with all their links up; their last words in the error."""
        for node in nodes:
            try:
                wait_for(lambda node=node: self.is_ready(node), f"{node} to be ready", seconds)  # type: ignore[misc]
            except Unavailable as error:
                raise Unavailable(
                    error.id, f"{error.what}; it said last:\n{self.mesh.tail(node, 20)}"
                ) from None

    def is_ready(self, node: str) -> bool:
        """Whether a node is ready with all its links up."""
        try:
            status = self.status(node)
        except X0Error:
            return False
        return status.state == "ready" and all(link.state == "up" for link in status.links)

    def wait_page(self, node: str, service: str = "web", seconds: float = 30.0) -> None:
        """Wait until a page comes through the mesh."""
        try:
            wait_for(lambda: self.gets_page(node, service), f"{service} at {node}", seconds)
        except Unavailable as error:
            raise Unavailable(
                error.id, f"{error.what}; {node} said last:\n{self.mesh.tail(node, 20)}"
            ) from None

    def gets_page(self, node: str, service: str = "web") -> bool:
        """Whether the page comes through now, on a connection of its own."""
        return get_page(self.plain(node, service)) == self.page.read_bytes()

    def revive(self, *nodes: str) -> None:
        """Start what is dead of some nodes and of the authority; wait until they are ready."""
        if not self.mesh.pids("authority"):
            self.mesh.start("authority")
            self.mesh.wait("authority", self.operator.is_serving, "the authority")
        for node in nodes:
            self.mesh.thaw(node)
            if not self.mesh.pids(node, "agent"):
                self.mesh.start(node)
        self.wait_ready(*nodes)

    # -------------------------------------------------------------- doing
    def renew(self, *nodes: str) -> int:
        """Renew every SVID of some nodes (none given: of all); how many changed."""
        count = 0
        for node in nodes or self.shape.nodes:
            before = {s.id: s.serial for s in self.status(node).svids}
            with AdminClient(self.mesh.state(node), 20) as client:
                client.ask(admin.Renew(), admin.Fine)
            count += sum(before.get(s.id) != s.serial for s in self.status(node).svids)
        return count

    def load(self, node: str, service: str = "web", *arguments: str) -> Watcher:
        """Steady HTTP requests from a node to a service, until `finish`."""
        host, port = self.plain(node, service)
        watcher = Watcher(f"{host}:{port}", self.page, list(arguments))
        self._watchers.append(watcher)
        return watcher

    def set_callers(self, service: str, *callers: str) -> None:
        """Say anew who may call a service."""
        self.operator.update_name(Name(service, spiffe(service), tuple(map(spiffe, callers))))


def _told_apart(listeners: Iterable[tuple[str, cfg.Listen]]) -> Iterable[tuple[str, cfg.Listen]]:
    """The same listeners, each with a free port of its own: two of a node can't share port 0."""
    listeners = list(listeners)
    for (node, listener), port in zip(listeners, free_ports(len(listeners)), strict=True):
        yield node, msgspec.structs.replace(listener, address=f"127.0.0.1:{port}")


class ServerProcess:
    """A `bench/server.py`.

    Args:
        page: file that it answers GET with.
        count: how many ports.
        command: in front of it, as in `ip netns exec NAME`.
        arguments: further ones.
    """

    def __init__(
        self, page: Path, count: int = 1, command: Iterable[str] = (), arguments: Iterable[str] = ()
    ) -> None:
        self._process = subprocess.Popen(
            [
                *command,
                sys.executable,
                str(SERVER),
                "--page",
                str(page),
                "--count",
                str(count),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.ports: list[int] = json.loads(self._process.stdout.readline())["ports"]

    def count(self) -> dict[str, int]:
        """What it has seen: connections ended, reset, open; asked past the mesh."""
        with socket.create_connection(("127.0.0.1", self.ports[0]), 10) as direct:
            direct.sendall(b"count\n")
            answer: dict[str, int] = json.loads(_read_all(direct))
            return answer

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# ------------------------------------------------------------------ clients
def get_page(address: Address, seconds: float = 5.0) -> bytes:
    """One HTTP request on a connection of its own; empty: it failed."""
    got = b""
    try:
        with socket.create_connection(address, seconds) as connection:
            connection.sendall(b"GET /page HTTP/1.1\r\nHost: web.mesh\r\n\r\n")
            while len(got.partition(b"\r\n\r\n")[2]) < PAGE_BYTES:
                data = connection.recv(1 << 16)
                if not data:
                    return b""
                got += data
    except OSError:
        return b""
    return got.partition(b"\r\n\r\n")[2]


def _read_all(connection: socket.socket) -> bytes:
    got = bytearray()
    while data := connection.recv(1 << 16):
        got += data
    return bytes(got)


def through_socks(
    proxy: Address, name: str, port: int = 80, seconds: float = 15.0
) -> socket.socket:
    """A connection to a service by its name through a SOCKS5 listener.

    Raises:
        ConnectionError: refused, with the SOCKS reply code.
    """
    connection = socket.create_connection(proxy, seconds)
    try:
        connection.sendall(b"\x05\x01\x00")
        _exactly(connection, 2)
        host = name.encode()
        connection.sendall(
            b"\x05\x01\x00\x03" + bytes((len(host),)) + host + struct.pack(">H", port)
        )
        head = _exactly(connection, 4)
        if head[1]:
            raise ConnectionRefusedError(f"SOCKS5 reply {head[1]} for {name}")
        _exactly(connection, {1: 6, 4: 18}[head[3]])
    except BaseException:
        connection.close()
        raise
    return connection


def _exactly(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = connection.recv(size - len(got))
        if not data:
            raise ConnectionError("closed early")
        got += data
    return got


class Ticks:
    """A long-lived connection over which the server counts; notes when each count arrived.

    Args:
        address: local port of the mesh.
        interval_ms: between counts.
    """

    def __init__(self, address: Address, interval_ms: int = 20) -> None:
        self.first_at = self.last_at = 0.0
        """CLOCK_MONOTONIC seconds; 0: nothing yet."""
        self.count = 0
        self.gap_s = 0.0
        """Longest time between two arrivals."""
        self.ended = ""
        """How it ended; empty: it still runs."""
        self._stopped = False
        self._socket = socket.create_connection(address, 10)
        self._socket.settimeout(60)
        self._socket.sendall(f"tick {interval_ms}\n".encode())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        kept = b""
        try:
            while data := self._socket.recv(4096):
                now = time.monotonic()
                if self.first_at:
                    self.gap_s = max(self.gap_s, now - self.last_at)
                self.first_at = self.first_at or now
                self.last_at = now
                kept += data
                whole = len(kept) // 8
                for (number,) in struct.iter_unpack("<Q", kept[: 8 * whole]):
                    if number != self.count:
                        self.ended = f"{number} came where {self.count} was due"
                        return
                    self.count += 1
                kept = kept[8 * whole :]
            self.ended = "stopped" if self._stopped else "closed"
        except OSError as error:
            self.ended = "stopped" if self._stopped else type(error).__name__
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Close it from this side."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)


# ------------------------------------------------------------------ measuring
def rss_kb(pid: int) -> int:
    """Resident memory; 0: gone."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * (
            resource.getpagesize() // 1024
        )
    return 0


def pss_kb(pid: int) -> int:
    """Proportional memory: shared pages divided among those who share them; 0: gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def running(directory: Path) -> list[str]:
    """Command lines of living processes of ours that name a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = process.read_bytes()
            if str(directory).encode() in command and b"x0tta6bl4" in command:
                found.append(command.decode().replace("\0", " "))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time so far of all threads of some processes."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Memory:
    """Samples resident memory of some processes until `stop`.

    Args:
        pids: name -> process id.
        interval_s: between samples.
    """

    def __init__(self, pids: dict[str, int], interval_s: float = 0.25) -> None:
        self.first = {name: rss_kb(pid) for name, pid in pids.items()}
        self.most = dict(self.first)
        self.last = dict(self.first)
        self._pids = pids
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            for name, pid in self._pids.items():
                if now := rss_kb(pid):
                    self.last[name] = now
                    self.most[name] = max(self.most[name], now)

    def stop(self) -> dict[str, dict[str, float]]:
        """MB at the start, at most, at the end."""
        self._stop.set()
        self._thread.join()
        return {
            name: {
                "first_mb": round(self.first[name] / 1024, 1),
                "most_mb": round(self.most[name] / 1024, 1),
                "last_mb": round(self.last[name] / 1024, 1),
            }
            for name in self._pids
        }


def at_intervals(seconds: float, acts: Iterable[Callable[[], object]]) -> None:
    """Do some acts, spread evenly over a time that begins now; one that is late delays none."""
    acts = list(acts)
    began = time.monotonic()
    for number, act in enumerate(acts, 1):
        time.sleep(max(0.0, began + seconds * number / (len(acts) + 1) - time.monotonic()))
        act()


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty directory for a lab, short enough for socket names; it stays after a failure."""
    root = Path("/tmp") / f"x0-{name}-{os.getpid()}"
    shutil.rmtree(root, ignore_errors=True)
    yield root
    shutil.rmtree(root, ignore_errors=True)
