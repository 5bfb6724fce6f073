"""The container that a process is in, as the host's container engine knows it: Docker or podman.

Source: Docker Engine API, `GET /containers/{id}/json`, which podman answers too; cgroups(7).

A group's name says which container to ask for and proves nothing.  The engine says which process
that container began with; a caller is in it if both are in the same group and PID namespace by the
kernel's word.  So a group that somebody named like a container's is refused, and so is conmon.

The engine is asked in HTTP/1.0, so it closes after its answer, which has a deadline and a bound.
Only an engine of root or of our own user is believed.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, final

import msgspec

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.proc import started_ticks

ENGINES: Final = ("/run/docker.sock", "/run/podman/podman.sock")
ANSWER_BYTES_MAX: Final = 1 << 20
DEADLINE_S: Final = 2.0
CONTAINERS_MAX: Final = 1024
"""Containers that are known; the one used longest ago is asked for again."""
_ID: Final = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?\Z")
_CREDENTIALS: Final = struct.Struct("3i")


@final
class Place(Value, frozen=True):
    """Where a process is, of containers."""

    id: str
    groups: tuple[str, ...]
    """Of each hierarchy that names it: `hierarchy:path`, cut off below the container."""


@final
class Container(Value, frozen=True):
    """What the engine said, and of whom."""

    pid: int
    started_ticks: int
    """Of that process: another start of the container has another."""
    facts: frozenset[str]


class _State(msgspec.Struct, rename="pascal", gc=False):
    pid: int
    running: bool


class _Config(msgspec.Struct, rename="pascal", gc=False):
    image: str = ""
    labels: dict[str, str] | None = None
    env: list[str] | None = None


class _Inspected(msgspec.Struct, rename="pascal", gc=False):
    id: str
    image: str
    state: _State
    config: _Config


def place(groups: str) -> Place | Denied:
    """The outermost container that the text of a /proc/PID/cgroup names.

    Returns:
        Denied where it names none, or several in several hierarchies.
    """
    found: list[str] = []
    ids: set[str] = set()
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = path.split("/")
        for at, part in enumerate(parts):
            match = _ID.search(part)
            if match and ".." not in parts:
                ids.add(match[1])
                found.append(f"{number}:{controllers}:{'/'.join(parts[: at + 1])}")
                break
    if len(ids) != 1:
        return Denied("caller is in no container" if not ids else "caller is in two containers")
    return Place(ids.pop(), tuple(found))


class Containers:
    """Knows the containers of this host.

    Args:
        sockets: of engines, asked in turn.
        proc: where procfs is mounted.
        deadline_s: for each answer, whole.
        now_s: any clock that does not jump.
    """

    __slots__ = ("_deadline_s", "_known", "_now_s", "_proc", "_sockets")

    def __init__(
        self,
        sockets: Sequence[str] = ENGINES,
        proc: str = "/proc",
        deadline_s: float = DEADLINE_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sockets = tuple(sockets)
        self._proc = proc
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._known: OrderedDict[str, Container] = OrderedDict()

    def known(self, pid: int, where: Place) -> frozenset[str] | None:
        """Selectors that hold, without asking anybody; None: the engine has to be asked."""
        container = self._known.get(where.id)
        if container is None or type(self._inside(pid, where, container)) is Denied:
            return None
        return container.facts

    def look(self, pid: int, where: Place) -> frozenset[str] | Denied:
        """Selectors that hold for a process; asks the engine.

        Args:
            pid: of the process, in our namespace.
            where: as `place` found it.
        """
        container = self._ask_all(where.id)
        if isinstance(container, Denied):
            return container
        outside = self._inside(pid, where, container)
        if outside is not None:
            return outside
        self._known[where.id] = container
        if len(self._known) > CONTAINERS_MAX:
            self._known.popitem(last=False)
        return container.facts

    def _inside(self, pid: int, where: Place, container: Container) -> Denied | None:
        """Whether a process is in a container, by the kernel's word about both."""
        base = f"{self._proc}/{container.pid}"
        try:
            if started_ticks(container.pid, self._proc) != container.started_ticks:
                return Denied("container has ended")
            with open(f"{base}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
                first = place(file.read())
            same = os.stat(f"{base}/ns/pid").st_ino == os.stat(f"{self._proc}/{pid}/ns/pid").st_ino
        except OSError:
            return Denied("container has ended")
        if first != where:
            return Denied("control group is not the container's")
        return None if same else Denied("caller is in another pid namespace than the container")

    def _ask_all(self, id: str) -> Container | Denied:
        answer: Container | Denied = Denied("no container engine is here")
        for path in self._sockets:
            if not os.path.exists(path):
                continue
            try:
                body = self._ask(path, id)
            except OSError:
                body = Denied("container engine does not answer")
            answer = body if isinstance(body, Denied) else self._read(body, id)
            if not isinstance(answer, Denied):
                break
        return answer

    def _ask(self, path: str, id: str) -> bytes | Denied:
        """The body of the engine's answer.

        Raises:
            OSError: it can't be asked.
        """
        end_s = self._now_s() + self._deadline_s
        data = bytearray()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(self._deadline_s)
            sock.connect(path)
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(peer)[1] not in (0, os.geteuid()):
                return Denied("container engine is another user's")
            sock.sendall(f"GET /containers/{id}/json HTTP/1.0\r\nHost: engine\r\n\r\n".encode())
            while True:
                left_s = end_s - self._now_s()
                if left_s <= 0:
                    return Denied("container engine is too slow")
                sock.settimeout(left_s)
                try:
                    chunk = sock.recv(65_536)
                except TimeoutError:
                    return Denied("container engine is too slow")
                if not chunk:
                    return _body(bytes(data))
                data += chunk
                if len(data) > ANSWER_BYTES_MAX:
                    return Denied("container engine says too much")

    def _read(self, body: bytes, id: str) -> Container | Denied:
        try:
            said = _DECODER.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Denied("container engine talks nonsense")
        if said.id != id or not said.state.running or said.state.pid <= 0:
            return Denied("container engine knows no such container")
        try:
            ticks = started_ticks(said.state.pid, self._proc)
        except OSError:
            return Denied("container has ended")
        config = said.config
        facts = {
            f"docker:container:{id}",
            f"docker:image-id:sha256:{said.image.removeprefix('sha256:')}",
            f"docker:image-name:{config.image}",
            *(f"docker:label:{key}={value}" for key, value in (config.labels or {}).items()),
            *(f"docker:env:{pair}" for pair in config.env or ()),
        }
        return Container(said.state.pid, ticks, frozenset(facts))


_DECODER: Final = msgspec.json.Decoder(_Inspected)


def _body(answer: bytes) -> bytes | Denied:
    """The body of an HTTP answer that ended with its connection."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    words = status.split(b" ", 2)
    if not blank or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        return Denied("container engine talks nonsense")
    if words[1] == b"404":
        return Denied("container engine knows no such container")
    if words[1] != b"200":
        return Denied("container engine refuses")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"transfer-encoding":
            return Denied("container engine talks nonsense")
        if name.lower() == b"content-length" and value.strip() != str(len(body)).encode():
            return Denied("container engine was cut off")
    return body
