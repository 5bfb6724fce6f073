"""`x0 dev`: a trust domain for one developer: authority, node, Workload API, two workloads.

The two workloads are `app/dev_workloads.py`, a few lines over the SDK that anybody can start from.
All that is registered here belongs to the user who runs it: within one user nothing is a boundary.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from x0tta6bl4.app import dev_workloads
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import READY_S, Mesh, Plan, free_ports
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.sdk.identity.endpoint import VARIABLE
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Conflict, Unavailable, X0Error
from x0tta6bl4.wire.ids import is_reserved, spiffe_id

NODE: Final = "dev"
WORKLOADS: Final = ("stock", "shop")
TTL_S: Final = 60
"""Short, so that a rotation is seen every half a minute."""
Tell = Callable[[str], None]


class Dev:
    """The processes of one developer's trust domain.

    Args:
        root: directory of everything; 0700.
        domain: trust domain.
        paths: of further workloads of this user.
        ttl_s: life of SVIDs.
        tell: hears a line about each step, and what the workloads print; from other threads, too.
    Raises:
        BadId: a path that no workload can have.
    """

    def __init__(
        self, root: Path, domain: str, paths: Sequence[str], ttl_s: int, tell: Tell
    ) -> None:
        self.ids = [spiffe_id(f"spiffe://{domain}/{path.strip('/')}") for path in paths]
        for id in self.ids:
            if is_reserved(id):
                raise Conflict("X0-DEV-001", f"{id} is reserved", "name another path")
        self._domain = domain
        self._tell = tell
        self.mesh = Mesh(root, Plan(domain, (NODE,), (), svid_ttl_s=ttl_s))
        self.operator = Operator(self.mesh.state("authority"))
        self.endpoint = ""
        """Address of the Workload API, once it is served."""
        self._workloads: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._listening = threading.Event()
        self._begun = False

    def start(self, demo: bool) -> None:
        """Start everything and wait until the Workload API is served.

        Args:
            demo: whether the two workloads run, too.
        Raises:
            Conflict: it runs in this directory already.
            Unavailable: something did not come up; its last words are in the error.
        """
        mesh = self.mesh
        if (mesh.root / "plan.json").exists() and any(
            mesh.pids(name) for name in ("authority", NODE)
        ):
            raise Conflict("X0-DEV-002", f"one is running in {mesh.root}", "end it, or name --dir")
        self._begun = True
        mesh.lay_out()
        mesh.start("authority")
        mesh.wait("authority", self.operator.is_serving, "the authority")
        self.operator.enrol_file(NODE, mesh.state(NODE) / "enrol-token")
        mesh.start(NODE)
        mine = f"unix:uid:{os.getuid()}"
        names = [*self.ids, *(spiffe_id(self._id(each)) for each in WORKLOADS if demo)]
        self.operator.create_entries([Entry(id=id, node=NODE, selectors=(mine,)) for id in names])
        mesh.wait(NODE, self._is_ready, "the Workload API")
        if demo:
            (port,) = free_ports(1)
            self._run(WORKLOADS[0], port)
            if not self._listening.wait(READY_S):
                raise Unavailable("X0-DEV-003", "the first workload does not listen")
            self._run(WORKLOADS[1], port)

    def _id(self, name: str) -> str:
        return f"spiffe://{self._domain}/{name}"

    def _is_ready(self) -> bool:
        try:
            with AdminClient(self.mesh.state(NODE)) as client:
                status = client.ask(admin.GetStatus(), admin.Status)
        except X0Error:
            return False
        self.endpoint = status.workload_api
        return status.state == "ready" and bool(self.endpoint)

    def _run(self, name: str, port: int) -> None:
        other = WORKLOADS[1 - WORKLOADS.index(name)]
        workload = subprocess.Popen(
            [
                *(sys.executable, "-m", dev_workloads.__name__),
                *(name, self._id(name), self._id(other), str(port)),
            ],
            env={**os.environ, VARIABLE: self.endpoint},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert workload.stdout is not None
        reader = threading.Thread(target=self._read, args=(workload.stdout,), daemon=True)
        reader.start()
        self._workloads.append(workload)
        self._readers.append(reader)

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._tell(line.rstrip())
                if " listens " in line:
                    self._listening.set()

    def is_alive(self) -> bool:
        """Whether authority and node still run."""
        return bool(self.mesh.pids("authority") and self.mesh.pids(NODE, "agent"))

    def lost(self) -> Unavailable:
        """What to say when it is not alive any more."""
        name = NODE if self.mesh.pids("authority") else "authority"
        words = self.mesh.tail(name, 1).partition("\n")[0] or "nothing"
        return Unavailable("X0-DEV-004", f"{name} has ended; it said last: {words}", "start again")

    def stop(self) -> None:
        """End every process of ours; another one's in the same directory are left alone."""
        if not self._begun:
            return
        for workload in self._workloads:
            workload.terminate()
        for workload in self._workloads:
            try:
                workload.wait(5)
            except subprocess.TimeoutExpired:
                workload.kill()
                workload.wait()
        for reader in self._readers:
            reader.join(5)
        self._workloads.clear()
        self._readers.clear()
        self.mesh.stop()
