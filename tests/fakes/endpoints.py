"""Proxies' endpoints in one loop, over loopback TCP and real TLS, with real applications."""

from __future__ import annotations

import hmac
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.fakes.ca import FakeCa, FakeClock
from x0tta6bl4.core.identity.rules import WORKLOAD
from x0tta6bl4.core.machine import Denied, Effect, Received
from x0tta6bl4.core.proxy.words import AGENT
from x0tta6bl4.core.session.facts import LIMITS, Limits
from x0tta6bl4.edge.tls.context import ALPN_CIRCUIT, TlsContext
from x0tta6bl4.edge.tls.engine import Engine
from x0tta6bl4.edge.tls.judge import Judge
from x0tta6bl4.edge.tls.x509 import Svid
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.endpoint import Endpoint
from x0tta6bl4.runtime.loop.poll import READ, Loop
from x0tta6bl4.runtime.loop.sessions import StreamRecord
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import (
    Delta,
    Full,
    Item,
    NameItem,
    NodeItem,
    PathsItem,
    ReplicasItem,
    ServiceItem,
    SvidItem,
)


def unix_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000


class WallClock(FakeClock):
    """The real wall clock in the form of the fake one."""

    def __init__(self) -> None:
        super().__init__(unix_us() / 1e6)


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


class Node:
    """One node's endpoint and what its agent would tell it."""

    def __init__(self, mesh: Mesh, name: str, limits: Limits) -> None:
        self.mesh = mesh
        self.name = NodeName(name)
        self.records: list[StreamRecord] = []
        self.effects: list[Effect] = []
        self.version = 0
        self.contexts: dict[tuple[SpiffeId, bool, int], TlsContext] = {}
        self.listener: Callable[[ServiceItem], object] = lambda service: "somebody"
        self.dials: list[tuple[str, ...]] = []
        self.incoming: list[socket.socket] = []
        self.endpoint = Endpoint(
            mesh.loop,
            incarnation=7,
            seed=name,
            dial=self.dial,
            tls=self.tls,
            perform=self.effects.append,
            listener=lambda service: self.listener(service),
            mac=mac,
            random=os.urandom,
            unix_us=unix_us,
            on_record=self.records.append,
            proxy_header=lambda source, name: b"PROXY " + source.encode() + b"\n",
            limits=limits,
        )
        self.put(NodeItem(trust_domain=mesh.ca.domain, node=name, authority=""))

    def put(self, *items: Item, drops: tuple[str, ...] = ()) -> None:
        self.version += 1
        if self.version == 1:
            message: Full | Delta = Full(1, items)
        else:
            message = Delta(self.version - 1, self.version, items, drops)
        self.endpoint.give(Received(AGENT, message))

    def workload(self, path: str, ttl_s: int = 3600) -> SpiffeId:
        """Give this node an SVID (again: rotate it)."""
        ca = self.mesh.ca
        ca.clock.unix_us = unix_us()
        svid = ca.svid(path, ttl_s=ttl_s, via=self.name)
        self.put(SvidItem(ca.id(path), svid.chain, svid.key, svid.not_after_unix_s))
        return ca.id(path)

    def tls(self, own: SpiffeId, peer: SpiffeId | None, server: bool) -> Engine | Denied:
        item = self.endpoint.proxy.svid(own)
        if item is None:
            return Denied("no svid")
        key = (own, server, self.endpoint.proxy.generation(own))
        context = self.contexts.get(key)
        if context is None:
            ca = self.mesh.ca
            judge = Judge(ca.domain, [ca.issuer.certificate], self.endpoint.proxy.check, unix_us)
            svid = Svid(own, item.chain, item.key, item.not_after_unix_s)
            context = self.contexts[key] = TlsContext(svid, judge, [ALPN_CIRCUIT], WORKLOAD)
        return Engine(context, server)

    def dial(
        self,
        path: Sequence[NodeName],
        target: SpiffeId | str,
        on_done: Callable[[socket.socket | None, str], None],
    ) -> Any:
        """A hop: relays are not there, paths are only names; `mesh.cut` decides which work."""
        self.dials.append(tuple(path))
        loop = self.mesh.loop

        class Dialling:
            cancelled = False

            def cancel(self) -> None:
                self.cancelled = True

        dialling = Dialling()

        def later() -> None:
            if dialling.cancelled:
                return
            if tuple(path) in self.mesh.cut:
                on_done(None, "no way")
                return
            near, far = self.mesh.wire(tuple(path))
            self.mesh.nodes[path[-1]].endpoint.on_circuit(
                far, path[-2] if len(path) > 1 else path[0], SpiffeId(target), b""
            )
            on_done(near, "")

        loop.after_batch(later)
        return dialling


class Mesh:
    """Nodes in one loop."""

    def __init__(self, *names: str, limits: Limits = LIMITS, tcp: bool = True) -> None:
        self.loop = Loop()
        self.ca = FakeCa(clock=WallClock())
        self.tcp = tcp
        self.cut: set[tuple[str, ...]] = set()
        self.wires: list[tuple[tuple[str, ...], socket.socket, socket.socket]] = []
        self.nodes = {NodeName(name): Node(self, name, limits) for name in names}
        self.socks: list[socket.socket] = []

    def wire(self, path: tuple[str, ...]) -> tuple[socket.socket, socket.socket]:
        near, far = tcp_pair() if self.tcp else socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.wires.append((path, near, far))
        return near, far

    def kill_wires(self, *which: int) -> None:
        """Cut circuits as a dying relay does: both ends see the end of the connection."""
        for index in which:
            for sock in self.wires[index][1:]:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def run(self, until: Callable[[], object], seconds: float = 10.0) -> None:
        """Run the loop until something holds."""
        deadline = clock() + int(seconds * 1e6)
        while not until():
            assert clock() < deadline, "waited for too long"
            self.loop.once(min(deadline, clock() + 20_000))  # type: ignore[arg-type]

    def idle(self, seconds: float) -> None:
        deadline = clock() + int(seconds * 1e6)
        while clock() < deadline:
            self.loop.once(deadline)  # type: ignore[arg-type]

    def close(self) -> None:
        for node in self.nodes.values():
            node.endpoint.close()
        for sock in self.socks:
            sock.close()
        for _, near, far in self.wires:
            near.close()
            far.close()
        self.loop.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    return near, far


class Service:
    """A local TCP service inside the loop: keeps what comes, sends what it is told."""

    def __init__(self, mesh: Mesh, echo: bool = False, read: bool = True, unix: str = "") -> None:
        self.mesh = mesh
        if unix:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(unix)
            self.sock.listen(1024)
        else:
            self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.echo = echo
        self.read = read
        self.apps: list[App] = []
        mesh.loop.add(self.sock.fileno(), READ, self._accept)
        mesh.socks.append(self.sock)

    @property
    def address(self) -> str:
        if self.sock.family == socket.AF_UNIX:
            return f"unix:{self.sock.getsockname()}"
        host, port = self.sock.getsockname()
        return f"{host}:{port}"

    def _accept(self, mask: int) -> None:
        sock, _ = self.sock.accept()
        self.apps.append(App(self.mesh, sock, echo=self.echo, read=self.read))


class App:
    """An application's end of a connection, driven by the same loop."""

    def __init__(
        self, mesh: Mesh, sock: socket.socket, *, echo: bool = False, read: bool = True
    ) -> None:
        self.mesh, self.sock, self.echo, self.read = mesh, sock, echo, read
        sock.setblocking(False)
        self.got = bytearray()
        self.out = bytearray()
        self.end = ""
        self.fin = False
        mesh.socks.append(sock)
        mesh.loop.add(sock.fileno(), self._mask(), self._on_event)

    def _mask(self) -> int:
        return (READ if self.read else 0) | (4 if self.out else 0)

    def send(self, data: bytes) -> None:
        self.out += data
        self._write()

    def finish(self) -> None:
        """Half-close when everything is written."""
        self.fin = True
        self._write()

    def _on_event(self, mask: int) -> None:
        try:
            if mask & READ and self.read:
                data = self.sock.recv(262_144)
                self.got += data
                if not data:
                    self.end = "eof"
                    self.read = False
                elif self.echo:
                    self.out += data
        except OSError as error:
            self.end = type(error).__name__
            self.mesh.loop.drop(self.sock.fileno())
            return
        self._write()
        if mask & ~(READ | 4) and not self.read:
            self.mesh.loop.drop(self.sock.fileno())

    def _write(self) -> None:
        try:
            while self.out:
                sent = self.sock.send(self.out)
                del self.out[:sent]
            if self.fin:
                self.fin = False
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end = self.end or type(error).__name__
            self.out.clear()
        if self.end in ("", "eof"):
            try:
                self.mesh.loop.set(self.sock.fileno(), self._mask())
            except (OSError, ValueError):
                pass


def web(
    mesh: Mesh, paths: tuple[tuple[str, ...], ...] = (("a", "r", "b"), ("a", "s", "b")), **kind: Any
) -> Service:
    """`a` has a caller, `b` a service `web`, and everybody may."""
    a, b = mesh.nodes[NodeName("a")], mesh.nodes[NodeName("b")]
    caller, target = a.workload("caller"), b.workload("web")
    service = Service(mesh, **kind)
    name = NameItem("web", target, (caller,))
    a.put(name, ReplicasItem(target, (("b", 0),)), PathsItem("b", paths))
    b.put(name, ServiceItem(target, service.address, ("unix:uid:0",)))
    return service


def call(mesh: Mesh, node: str = "a", name: str = "web", **kind: Any) -> App:
    """An application of a node connects to a service."""
    mine, theirs = tcp_pair()
    reply, own = kind.pop("reply", None), kind.pop("own", False)
    app = App(mesh, mine, **kind)
    a = mesh.nodes[NodeName(node)]
    a.endpoint.connect(theirs, mesh.ca.id("caller"), name, reply=reply, own=own)
    return app
