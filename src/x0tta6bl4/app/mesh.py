"""A whole mesh on one machine: real processes, real files, real sockets.

`x0 up`, `x0 demo` and the real-process tests stand on it.  It writes the configuration files that
an operator would write, starts `x0 authority run` and one `x0 node run` per node, and knows how to
hurt them: kill, freeze, agent only.  Every process that it starts it ends, by pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, Literal, final

import msgspec

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.wallet import write_private
from x0tta6bl4.wire.errors import NotFound, Unavailable

READY_S: Final = 30.0
STOP_S: Final = 5.0
_LOGS: Final = ("out.log", "node.log")
Part = str
"""`node` (agent and proxy), `agent`, `proxy`."""


@final
class Plan(msgspec.Struct, frozen=True):
    """What a local mesh consists of."""

    trust_domain: str
    nodes: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    """The first of each pair dials."""
    listeners: tuple[tuple[str, cfg.Listen], ...] = ()
    svid_ttl_s: int = 3600
    hello_ms: int = cfg.HELLO_MS
    keys: Literal["p-256", "ml-dsa-65"] = "p-256"


def ring_of_six() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Six nodes in a ring with two chords: every node can be lost without cutting any other."""
    nodes = tuple(f"n{i}" for i in range(1, 7))
    ring = tuple((nodes[i], nodes[(i + 1) % 6]) for i in range(6))
    return nodes, (*ring, ("n1", "n4"), ("n2", "n5"))


def free_ports(count: int, but: Iterable[int] = ()) -> list[int]:
    """Loopback ports that nobody uses or has held (`Mesh.lay_out`) now, TCP and UDP alike.

    They lie below the range from which the kernel takes ports for outgoing connections, so that
    they are still free when a killed process comes back.

    Args:
        count: how many.
        but: ports that are spoken for, though nobody uses them yet.
    """
    but = set(but)
    ports: list[int] = []
    while len(ports) < count:
        port = 10_240 + secrets.randbelow(32_768 - 10_240)
        with (
            socket.socket() as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            contextlib.suppress(OSError),
        ):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            if port not in ports and port not in but:
                ports.append(port)
    return ports


class Mesh:
    """The processes of one local mesh.

    Args:
        root: an empty or earlier directory of this mesh, 0700.
        plan: what to build; written down, so that another process can find its way.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root = root
        self.plan = plan
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._log_begins: dict[str, dict[str, int]] = {}
        self._held: list[socket.socket] = []

    # -------------------------------------------------------------- files
    def lay_out(self) -> None:
        """Write all configuration files, with ports that are free now and stay this mesh's.

        No other mesh on this machine gets them until `stop`, whoever is dead here meanwhile.

        Raises:
            Unavailable: somebody listens at a port that the plan names.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        nodes = self.plan.nodes
        named = [int(x.address.rpartition(":")[2]) for _, x in self.plan.listeners]
        self._let_go()
        free = free_ports(1 + 3 * len(nodes) + len(named), but=named)
        for port in (*free, *filter(None, named)):
            self._hold(port)
        ports = iter(free)
        authority = next(ports)
        at = {node: (next(ports), next(ports), next(ports)) for node in nodes}
        self._write(
            "authority",
            cfg.dump(
                cfg.AuthoritySettings(
                    trust_domain=self.plan.trust_domain,
                    state_dir=str(self.root / "authority"),
                    listen=f"127.0.0.1:{authority}",
                    svid=cfg.Svid(ttl_s=self.plan.svid_ttl_s, node_ttl_s=self.plan.svid_ttl_s),
                    keys=self.plan.keys,
                )
            ),
        )
        for node in nodes:
            data, control, metrics = at[node]
            self._write(
                node,
                cfg.dump(
                    cfg.NodeSettings(
                        trust_domain=self.plan.trust_domain,
                        node=node,
                        state_dir=str(self.root / node),
                        authority=cfg.AuthorityAt(
                            address=f"127.0.0.1:{authority}",
                            token_file=str(self.root / node / "enrol-token"),
                        ),
                        data=cfg.Data(listen=f"127.0.0.1:{data}", advertise=(f"127.0.0.1:{data}",)),
                        control=cfg.Control(listen=f"127.0.0.1:{control}"),
                        link=self._links(node, {n: p[1] for n, p in at.items()}),
                        listen=tuple(_bound(x, ports) for n, x in self.plan.listeners if n == node),
                        metrics=cfg.Metrics(listen=f"127.0.0.1:{metrics}"),
                        log=cfg.Log(
                            file=str(self.root / node / "node.log"),
                            access_file=str(self.root / node / "access.log"),
                        ),
                    )
                ),
            )
        (self.root / "plan.json").write_bytes(msgspec.json.encode(self.plan))

    def _hold(self, port: int) -> None:
        """Bind a port without listening: our own processes may still listen there."""
        sock = socket.socket()
        self._held.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            self._let_go()
            raise Unavailable(
                "X0-UP-007", f"port {port} is taken: {error.strerror}", "try again"
            ) from None

    def _let_go(self) -> None:
        for sock in self._held:
            sock.close()
        self._held = []

    def _links(self, node: str, control: dict[str, int]) -> tuple[cfg.Link, ...]:
        links = []
        for first, second in self.plan.links:
            if node in (first, second):
                other = second if node == first else first
                dial = f"127.0.0.1:{control[other]}" if node == first else ""
                links.append(cfg.Link(node=other, address=dial, hello_ms=self.plan.hello_ms))
        return tuple(links)

    def _write(self, name: str, text: str) -> None:
        (self.root / name).mkdir(mode=0o700, exist_ok=True)
        write_private(self.config(name), text.encode())

    def config(self, name: str) -> Path:
        """Configuration file of `authority` or of a node."""
        kind = "authority.toml" if name == "authority" else "node.toml"
        return self.root / name / kind

    def state(self, name: str) -> Path:
        """State directory of `authority` or of a node."""
        return self.root / name

    def settings(self, node: str) -> cfg.NodeSettings:
        """A node's settings, read back from its file."""
        return cfg.read_node(self.config(node))

    # -------------------------------------------------------------- processes
    def start(self, name: str) -> None:
        """Start the authority or a node; its output goes to `<state>/out.log`."""
        verb = ("authority", "run") if name == "authority" else ("node", "run")
        self.spawn(name, [*verb, "--config", str(self.config(name))])

    def spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start `x0 ARGUMENTS` under a name; it ends with the mesh at the latest."""
        log_file = self.state(name) / "out.log"
        self._log_begins[name] = {file: _size(self.state(name) / file) for file in _LOGS}
        with open(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "x0tta6bl4", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children[name] = child
        return child

    def pids(self, node: str, part: Part = "node") -> list[int]:
        """Living processes of a node, from the pid files that they keep.

        Raises:
            NotFound: no such node in this mesh.
        """
        if node != "authority" and node not in self.plan.nodes:
            raise NotFound("X0-UP-001", f"no node {node!r} here", f"one of {self._names()}")
        parts = {"node": ("agent", "proxy"), "authority": ("authority",)}.get(part, (part,))
        if node == "authority":
            parts = ("authority",)
        found = [living(self.state(node) / f"{each}.pid") for each in parts]
        return [pid for pid in found if pid]

    def kill(self, node: str, part: Part = "node") -> None:
        """SIGKILL; returns when the processes are gone."""
        killed = self.pids(node, part)
        self.signal(node, signal.SIGKILL, part)
        wait_for(lambda: not self.pids(node, part), f"{node} to die", STOP_S, reap=self._reap)
        child = self._children.get(node)
        if child is not None and child.pid in killed:
            child.wait(STOP_S)

    def freeze(self, node: str) -> None:
        """SIGSTOP agent and proxy of a node."""
        self.signal(node, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        """SIGCONT after `freeze`."""
        self.signal(node, signal.SIGCONT)

    def signal(self, node: str, number: signal.Signals, part: Part = "node") -> None:
        """Send a signal to a node's processes, or to some of them."""
        for pid in self.pids(node, part):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """End every process of this mesh: nodes first, SIGTERM, then SIGKILL."""
        names = [*self.plan.nodes, "authority"]
        for name in names:
            self.signal(name, signal.SIGCONT)
            self.signal(name, signal.SIGTERM)
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        with contextlib.suppress(Unavailable):
            # An agent ends after the proxy that it may be about to start.
            wait_for(
                lambda: (
                    all(child.poll() is not None for child in self._children.values())
                    and not any(self.pids(n) for n in names)
                ),
                "the mesh to end",
                STOP_S,
            )
        for name in names:
            self.signal(name, signal.SIGKILL)
        for child in self._children.values():
            child.kill()
            child.wait()
        self._children.clear()
        self._let_go()

    def wait(self, name: str, ready: Callable[[], bool], what: str) -> None:
        """Wait until a process that was started here is ready, or has ended.

        Raises:
            Unavailable: it has ended, or is not ready within READY_S; with its last words.
        """
        child = self._children.get(name)

        def done() -> bool:
            return ready() or (child is not None and child.poll() is not None)

        try:
            wait_for(done, what)
            ended = child is not None and child.poll() is not None
        except Unavailable as error:
            raise Unavailable(error.id, f"{error.what}; it said last:\n{self.tail(name)}") from None
        if ended:
            raise Unavailable("X0-UP-006", f"{name} has ended; it said last:\n{self.tail(name)}")

    def _reap(self) -> None:
        for child in self._children.values():
            child.poll()

    def _names(self) -> str:
        return ", ".join(self.plan.nodes)

    def tail(self, name: str, lines: int = 8) -> str:
        """Last lines of a process's output since it was started here, for error messages."""
        found: list[str] = []
        begins = self._log_begins.get(name, {})
        for file in _LOGS:
            with contextlib.suppress(OSError), (self.state(name) / file).open("rb") as log:
                log.seek(begins.get(file, 0))
                found += log.read().decode(errors="replace").splitlines()[-lines:]
        return "\n".join(dict.fromkeys(found))


def _bound(listen: cfg.Listen, ports: Iterator[int]) -> cfg.Listen:
    """A listener with a port of its own where the plan says 0."""
    if not listen.address.endswith(":0"):
        return listen
    return msgspec.structs.replace(listen, address=f"{listen.address[:-1]}{next(ports)}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def opened(root: Path) -> Mesh:
    """The mesh that another process laid out under `root`.

    Raises:
        NotFound: there is none.
    """
    try:
        plan = msgspec.json.decode((root / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        raise NotFound("X0-UP-002", f"no mesh in {root}", "start one with `x0 up`") from None
    return Mesh(root, plan)


def wait_for(
    ready: Callable[[], bool],
    what: str,
    seconds: float = READY_S,
    reap: Callable[[], None] = lambda: None,
) -> None:
    """Look every 10 ms until `ready()`.

    Raises:
        Unavailable: not within `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        reap()
        if ready():
            return
        if time.monotonic() > end:
            raise Unavailable("X0-UP-003", f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)


def read_lines(stream: Iterator[bytes]) -> Iterator[dict[str, object]]:
    """JSON objects, one per line; a half-written last line is left out."""
    for line in stream:
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def living(file: Path) -> int:
    """The pid in a file, if that is still a process of this program (pids are reused); else 0.

    One of another user than the file's is none: who may write the file could name anybody.
    """
    try:
        with file.open() as said:
            pid, owner = int(said.read()), os.fstat(said.fileno()).st_uid
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        user, state = int(status["Uid"].split()[1]), status["State"].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError, IndexError, KeyError):
        return 0
    return pid if user == owner and state != "Z" and b"x0tta6bl4" in command else 0
