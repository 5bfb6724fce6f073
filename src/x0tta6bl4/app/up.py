"""A mesh to look at: six nodes on this machine, a web service on two of them, callers on others.

`x0 up` keeps it running, `x0 demo` tells its story on it.  The servers are Python's own HTTP
server and know nothing of the mesh.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.mesh import Mesh, Plan, free_ports, opened, ring_of_six, wait_for
from x0tta6bl4.app.operator import Operator
from x0tta6bl4.wire import admin
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Conflict, Unavailable, X0Error
from x0tta6bl4.wire.records import Name

CLIENT: Final = "n1"
GUEST_NODE: Final = "n6"
REPLICAS: Final = ("n3", "n5")
PAGE_BYTES: Final = 1024
Tell = Callable[[str], None]


class Up:
    """The mesh, its servers, and what runs where.

    Args:
        root: directory of everything; 0700.
        domain: trust domain.
        bulk_bytes: size of the large file that the servers offer; 0: none.
    """

    def __init__(self, root: Path, domain: str, bulk_bytes: int = 0) -> None:
        self.root = root
        self.domain = domain
        self.web = f"spiffe://{domain}/web"
        self.shop = f"spiffe://{domain}/shop"
        self.guest = f"spiffe://{domain}/guest"
        self.digest = ""
        self._bulk_bytes = bulk_bytes
        nodes, links = ring_of_six()
        self.mesh = Mesh(
            root / "mesh",
            Plan(
                trust_domain=domain,
                nodes=nodes,
                links=links,
                listeners=(
                    *(
                        (node, cfg.Listen(address="127.0.0.1:0", kind="plain", name="web"))
                        for node in (CLIENT, GUEST_NODE)
                    ),
                    (CLIENT, cfg.Listen(address="127.0.0.1:0", kind="socks5")),
                    (CLIENT, cfg.Listen(address="127.0.0.1:0", kind="connect")),
                ),
            ),
        )
        self.operator = Operator(self.mesh.state("authority"))
        self._servers: list[subprocess.Popen[bytes]] = []

    def start(self, tell: Tell) -> None:
        """Start everything and wait until a page has come through the mesh.

        Raises:
            Unavailable: something did not come up; its last words are in the error.
            Conflict: a mesh runs in this directory already.
        """
        if (self.root / "mesh" / "plan.json").exists() and any(
            self.mesh.pids(name) for name in ("authority", *self.mesh.plan.nodes)
        ):
            raise Conflict("X0-UP-004", f"a mesh is running in {self.root}", "x0 down ends it")
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mesh.lay_out()
        tell(f"starting the authority of the trust domain {self.domain}")
        self.start_authority()
        self._register(self._serve())
        tell(f"starting {len(self.mesh.plan.nodes)} nodes, an agent and a proxy each")
        for node in self.mesh.plan.nodes:
            self.operator.enrol_file(node, self.mesh.state(node) / "enrol-token")
            self.mesh.start(node)
        for node in self.mesh.plan.nodes:
            self.wait_ready(node)
        for node in (CLIENT, GUEST_NODE):
            self.wait_page(node)

    def start_authority(self) -> None:
        """Start the authority, also anew, and wait until it answers."""
        self.mesh.start("authority")
        self.mesh.wait("authority", self.operator.is_serving, "the authority")

    def _register(self, ports: list[int]) -> None:
        uid = f"unix:uid:{os.getuid()}"
        self.operator.create_entries(
            [
                *(
                    Entry(id=self.web, node=node, selectors=(uid,), address=f"127.0.0.1:{port}")
                    for node, port in zip(REPLICAS, ports, strict=True)
                ),
                Entry(id=self.shop, node=CLIENT, selectors=(uid,)),
                Entry(id=self.guest, node=GUEST_NODE, selectors=(uid,)),
            ]
        )
        self.operator.create_name(Name("web", self.web, (self.shop, self.guest)))

    def _serve(self) -> list[int]:
        pages = self.root / "pages"
        pages.mkdir(exist_ok=True)
        (pages / "page").write_bytes(secrets.token_bytes(PAGE_BYTES))
        (pages / "index.html").write_text("<h1>It came through the mesh.</h1>\n")
        digest = hashlib.sha256()
        with open(pages / "bulk", "wb") as file:
            for _ in range(self._bulk_bytes >> 20):
                block = os.urandom(1 << 20)
                digest.update(block)
                file.write(block)
        self.digest = digest.hexdigest()
        ports = free_ports(len(REPLICAS))
        for number, port in enumerate(ports):
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "http.server",
                    "--protocol",
                    "HTTP/1.1",
                    "--bind",
                    "127.0.0.1",
                    "--directory",
                    str(pages),
                    str(port),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._servers.append(server)
            (self.root / f"server{number}.pid").write_text(f"{server.pid}\n")
        return ports

    # -------------------------------------------------------------- looking
    @property
    def page(self) -> Path:
        """File with the answer to `/page`."""
        return self.root / "pages" / "page"

    def status(self, node: str) -> admin.Status:
        """Status of one node, asked of its agent.

        Raises:
            Unavailable: it does not answer.
        """
        with AdminClient(self.mesh.state(node)) as client:
            return client.ask(admin.GetStatus(), admin.Status)

    def address(self, node: str, kind: str) -> str:
        """`host:port` of a node's local listener of this kind."""
        for listener in self.status(node).listeners:
            if listener.kind == kind:
                return listener.address
        raise Unavailable("X0-UP-005", f"{node} has no {kind} listener yet")

    def wait_ready(self, node: str) -> None:
        """Wait until a node is ready with all its links up.

        Raises:
            Unavailable: it is not; with its last words.
        """
        self.mesh.wait(node, lambda: self._is_ready(node), f"{node} to be ready")

    def _is_ready(self, node: str) -> bool:
        try:
            status = self.status(node)
        except X0Error:
            return False
        return status.state == "ready" and all(link.state == "up" for link in status.links)

    def wait_page(self, node: str) -> None:
        """Wait until a page comes through the mesh at a node's plain listener."""
        wait_for(lambda: self.get_page(node), f"a page at {node}")

    def get_page(self, node: str) -> bool:
        """Whether the page comes through now."""
        try:
            host, _, port = self.address(node, "plain").rpartition(":")
        except X0Error:
            return False
        connection = http.client.HTTPConnection(host, int(port), timeout=5)
        try:
            connection.request("GET", "/page")
            answer = connection.getresponse()
            return answer.status == 200 and len(answer.read()) == PAGE_BYTES
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End every process of this mesh and its servers."""
        self.mesh.stop()
        for server in self._servers:
            server.kill()
            server.wait()
        self._servers.clear()


def down(root: Path) -> None:
    """End a mesh that another process started.

    Raises:
        NotFound: there is none.
    """
    mesh = opened(root / "mesh")
    mesh.stop()
    for file in root.glob("server*.pid"):
        pid = int(file.read_text())
        try:
            if b"http.server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, 9)
        except OSError:
            pass
        file.unlink()
