"""Nodes on hosts of their own: one network namespace, one loopback, one configuration file each.

The files are the ones an operator would write; the processes are `x0 authority run` and
`x0 node run`.  Admin sockets are files, so the test administers from outside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.real.hosts import Hosts
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import living, wait_for
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.errors import Unavailable, X0Error

DATA, CONTROL, AUTHORITY = cfg.DATA_PORT, cfg.CONTROL_PORT, cfg.AUTHORITY_PORT


def join(hosts: Hosts, left: str, left_ip: str, right: str, right_ip: str) -> None:
    """A cable between two hosts that each have one address on all their cables.

    Only hosts with a cable between them reach each other.
    """
    one, two = hosts.wire(left, f"{left_ip}/32", right, f"{right_ip}/32")
    hosts.run(left, "ip", "route", "add", f"{right_ip}/32", "dev", one, "src", left_ip)
    hosts.run(right, "ip", "route", "add", f"{left_ip}/32", "dev", two, "src", right_ip)


class HostMesh:
    """The processes of a mesh on `Hosts`.

    Args:
        hosts: where; they end what is still running.
        root: directory for configuration, state and output of every host, 0700.
        domain: trust domain.
    """

    def __init__(self, hosts: Hosts, root: Path, domain: str = "hosts.mesh") -> None:
        self.hosts = hosts
        self.root = root
        self.domain = domain
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.operator = Operator(self.state("authority"))
        self._at: dict[str, str] = {}

    def state(self, name: str) -> Path:
        """State directory of `authority` or a node."""
        return self.root / name

    def authority(self, host: str, listen: str, *, ttl_s: int = 3600) -> None:
        """Start the authority on a host and wait until it answers."""
        settings = cfg.AuthoritySettings(
            trust_domain=self.domain,
            state_dir=str(self.state("authority")),
            listen=listen,
            advertise=(listen,),
            svid=cfg.Svid(ttl_s=ttl_s, node_ttl_s=ttl_s),
        )
        self._write("authority", "authority.toml", cfg.dump(settings))
        self._at["authority"] = host
        self.start("authority")
        wait_for(self.operator.is_serving, "the authority")

    def node(self, host: str, settings: cfg.NodeSettings) -> None:
        """Write a node's file, make its token and start it.

        Args:
            host: where.
            settings: `trust_domain`, `state_dir` and the token's file are filled in.
        """
        from msgspec.structs import replace

        token = self.state(settings.node) / "enrol-token"
        settings = replace(
            settings,
            trust_domain=self.domain,
            state_dir=str(self.state(settings.node)),
            authority=replace(settings.authority, token_file=str(token)),
        )
        self._write(settings.node, "node.toml", cfg.dump(settings))
        self.operator.enrol_file(settings.node, token)
        self._at[settings.node] = host
        self.start(settings.node)

    def _write(self, name: str, file: str, text: str) -> None:
        self.state(name).mkdir(mode=0o700, exist_ok=True)
        (self.state(name) / file).write_text(text)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start the authority or a node whose file is written."""
        verb = "authority" if name == "authority" else "node"
        return self.hosts.start(
            self._at[name],
            sys.executable,
            "-m",
            "x0tta6bl4",
            verb,
            "run",
            "--config",
            str(self.state(name) / f"{verb}.toml"),
            log=self.state(name) / "out.log",
        )

    def pids(self, name: str) -> list[int]:
        """Living processes of a node or of the authority."""
        found = (living(self.state(name) / f"{x}.pid") for x in ("agent", "proxy", "authority"))
        return [pid for pid in found if pid]

    def kill(self, name: str) -> None:
        """SIGKILL everything of a node."""
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self, name: str, seconds: float = 10.0) -> None:
        """SIGTERM to a node or the authority, and wait until all of it has ended."""
        pids = self.pids(name)
        for pid in pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not self.pids(name), f"{name} to end", seconds)

    def status(self, node: str) -> admin.Status:
        """Status of a node."""
        with AdminClient(self.state(node)) as client:
            return client.ask(admin.GetStatus(), admin.Status)

    def is_ready(self, node: str) -> bool:
        """Whether a node is ready with all its links up."""
        try:
            status = self.status(node)
        except X0Error:
            return False
        return status.state == "ready" and all(link.state == "up" for link in status.links)

    def wait_ready(self, *nodes: str, seconds: float = 40.0) -> None:
        """Wait until nodes are ready with all their links up; their last words in the error."""
        for node in nodes:
            try:
                wait_for(lambda node=node: self.is_ready(node), f"{node} to be ready", seconds)  # type: ignore[misc]
            except Unavailable as error:
                raise Unavailable(error.id, f"{error.what}:\n{self.tail(node)}") from None

    def tail(self, name: str, lines: int = 20) -> str:
        """Last lines that a process has said."""
        said: list[str] = []
        for file in ("out.log", "node.log"):
            with contextlib.suppress(OSError):
                said += (self.state(name) / file).read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(said)
