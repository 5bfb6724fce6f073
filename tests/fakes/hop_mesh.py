"""Several data ports in one loop, joined by links with real keys over loopback."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from x0tta6bl4.core.machine import Allowed, Denied, Instant, Verdict
from x0tta6bl4.edge.hop.setup import LinkSeal
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.connect import data_port
from x0tta6bl4.runtime.loop.hops import HopLimits, Hops, HopSocket
from x0tta6bl4.runtime.loop.poll import READ, WRITE, Loop
from x0tta6bl4.wire.hop import unpack_refusal
from x0tta6bl4.wire.ids import NodeName, SpiffeId
from x0tta6bl4.wire.messages import NeighbourItem

WEB = SpiffeId("spiffe://mesh.test/web")


class End:
    """One end of a circuit: sends what it is given, keeps what comes."""

    def __init__(self, loop: Loop, sock: socket.socket, echo: bool = False) -> None:
        self.loop, self.sock, self.echo = loop, sock, echo
        self.received = bytearray()
        self.count = 0
        self.keep = True
        self.reading = True
        self.out = bytearray()
        self.ended = ""
        self.shut = False
        loop.add(sock.fileno(), READ, self.ready)

    def send(self, data: bytes) -> None:
        self.out += data
        self.watch()

    def finish(self) -> None:
        self.shut = True
        self.watch()

    def pause(self) -> None:
        self.reading = False
        self.watch()

    def watch(self) -> None:
        if not self.ended:
            wanted = bool(self.out) or self.shut
            self.loop.set(self.sock.fileno(), READ * self.reading | WRITE * wanted)

    def ready(self, mask: int) -> None:
        try:
            if mask & ~WRITE:
                data = self.sock.recv(1 << 18)
                self.count += len(data)
                if self.keep:
                    self.received += data
                if not data:
                    return self.end("fin")
                if self.echo:
                    self.out += data
            if self.out:
                del self.out[: self.sock.send(memoryview(self.out)[: 1 << 18])]
            if self.shut and not self.out:
                self.shut = False
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            return self.end("reset")
        self.watch()
        return None

    def end(self, how: str) -> None:
        if how == "fin" and self.echo:
            with suppress(OSError):
                self.sock.setblocking(True)
                self.sock.sendall(self.out)
        self.ended = how
        self.loop.drop(self.sock.fileno())
        self.sock.close()

    def close(self) -> None:
        if not self.ended:
            self.end("closed")

    @property
    def refusal(self) -> str | None:
        return unpack_refusal(self.received) if self.received else None


class Node:
    """One node: its data port, the circuits that ended at it, and what its operator was told."""

    def __init__(self, mesh: HopMesh, name: str, limits: HopLimits) -> None:
        self.mesh, self.name = mesh, NodeName(name)
        self.incarnation = 1 + len(mesh.nodes)
        self.notices: list[tuple[str, str]] = []
        self.ends: list[End] = []
        self.previous: list[tuple[NodeName, SpiffeId]] = []
        self.deny: set[tuple[str, str]] = set()
        tcp, self.udp = data_port(mesh.bind, 0)
        self.port = tcp.getsockname()[1]
        self.hops = Hops(
            mesh.loop,
            tcp,
            me=self.name,
            incarnation=self.incarnation,
            maker=LinkSeal,
            admit=self.admit,
            on_circuit=self.on_circuit,
            on_notice=lambda kind, text: self.notices.append((kind, text)),
            limits=limits,
        )

    def admit(self, previous: NodeName, node: NodeName) -> Verdict:
        if (previous, node) in self.deny:
            return Denied("link not confirmed")
        return Allowed(SpiffeId(f"spiffe://mesh.test/node/{node}"))

    def on_circuit(
        self, sock: HopSocket, previous: NodeName, target: SpiffeId, first: bytes
    ) -> None:
        self.previous.append((previous, target))
        self.ends.append(End(self.mesh.loop, sock, echo=True))

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.hops.close()
        self.udp.close()


class HopMesh:
    """The loop and the nodes in it."""

    def __init__(self, bind: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        self.bind, self.host = bind, host
        self.loop = Loop()
        self.nodes: dict[str, Node] = {}
        self.ends: list[End] = []

    def node(self, name: str, limits: HopLimits = HopLimits()) -> Node:  # noqa: B008
        node = self.nodes[name] = Node(self, name, limits)
        return node

    def item(
        self, me: str, other: str, generation: int = 0, dials: bool = True, udp: bool = True
    ) -> NeighbourItem:
        """What the agent of `me` tells its proxy about `other`."""
        first, second = sorted((me, other))

        def key(purpose: str, sender: str) -> bytes:
            text = f"{first} {second} {generation} {purpose} {sender}"
            return hashlib.sha256(text.encode()).digest()

        link = int.from_bytes(key("link", "")[:4], "little") | 1
        peer = self.nodes[other]
        return NeighbourItem(
            other,
            link,
            (f"{self.host}:{peer.port}",) if dials else (),
            peer.incarnation,
            100_000,
            key("hello", me),
            key("hello", other),
            key("setup", me),
            key("setup", other),
            udp,
        )

    def link(
        self,
        one: str,
        two: str,
        one_dials: bool = True,
        two_dials: bool = True,
        generation: int = 0,
    ) -> None:
        self.nodes[one].hops.neighbour_set(self.item(one, two, generation, one_dials))
        self.nodes[two].hops.neighbour_set(self.item(two, one, generation, two_dials))

    def dial(self, path: Sequence[str], target: str = WEB) -> tuple[list[End], list[str]]:
        """Dial from the first node; the lists get the end, or the reason."""
        ends: list[End] = []
        reasons: list[str] = []

        def done(sock: socket.socket | None, why: str) -> None:
            if sock is None:
                reasons.append(why)
            else:
                ends.append(End(self.loop, sock))
                self.ends.append(ends[0])

        self.nodes[path[0]].hops.dial(tuple(NodeName(n) for n in path), target, done)
        return ends, reasons

    def open(self, path: Sequence[str], target: str = WEB) -> End:
        """Dial and wait for the connection."""
        ends, reasons = self.dial(path, target)
        self.run(lambda: bool(ends or reasons))
        assert ends, reasons
        return ends[0]

    def run(self, until: Callable[[], object], seconds: float = 10.0) -> None:
        """Run the loop until something holds; fails if it does not in time."""
        deadline = clock() + int(seconds * 1e6)
        while not until():
            assert clock() < deadline, "did not happen in time"
            self.loop.once(Instant(min(deadline, clock() + 50_000)))

    def settle(self, seconds: float) -> None:
        """Run the loop for a while, to see what does not happen."""
        deadline = clock() + int(seconds * 1e6)
        while clock() < deadline:
            self.loop.once(Instant(deadline))

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for node in self.nodes.values():
            node.close()
        self.settle(0.01)
        self.loop.close()
