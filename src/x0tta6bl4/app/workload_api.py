"""The Workload API in the agent's process: its socket, and the agent as its `World`.

The socket stands in a directory of its own that every user may enter; `state_dir` is 0700.  Where
it can't be made that is said and tried again: the mesh does not need it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from x0tta6bl4.app.identities import Identities
from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.edge.attest.containers import Containers
from x0tta6bl4.edge.attest.facts import Facts
from x0tta6bl4.edge.attest.peer import PeerAttestor
from x0tta6bl4.edge.attest.process import Processes
from x0tta6bl4.edge.tls import x509
from x0tta6bl4.edge.workload_api.server import WorkloadServer
from x0tta6bl4.runtime.clocks import unix_us
from x0tta6bl4.wire.authority import Entry, Minted
from x0tta6bl4.wire.errors import BadInput, Unavailable, X0Error
from x0tta6bl4.wire.ids import SpiffeId
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import Bundle, Federated

if TYPE_CHECKING:
    from x0tta6bl4.app.agent import AgentProcess
    from x0tta6bl4.app.settings import NodeSettings

INSTALLED: Final = "/var/lib"
RUN: Final = "/run/x0tta6bl4"
DIRECTORY_MODE: Final = 0o755
RETRY_S: Final = 5.0
REASONS_MAX: Final = 64
"""Reasons of refusals that are counted one by one."""


def socket_path(settings: NodeSettings) -> Path:
    """Where the Workload API of a node is.

    As configured; else `/run/x0tta6bl4/<node>/workload.sock` where the state is below `/var/lib`,
    and `<state_dir>.api/sock` where it is not.
    """
    if settings.workload_api.socket:
        return Path(settings.workload_api.socket)
    if Path(settings.state_dir).is_relative_to(INSTALLED):
        return Path(RUN) / settings.node / "workload.sock"
    return Path(f"{settings.state_dir.rstrip('/')}.api") / "sock"


class WorkloadApi:
    """Serves the workloads of this host from what the agent knows.

    Attributes:
        path: of the socket; None while it is not served.
    """

    def __init__(self, agent: AgentProcess) -> None:
        self._agent = agent
        self._refused: dict[str, int] = {}
        self._issued: dict[str, tuple[bytes, int]] = {}
        self.path: Path | None = None
        self.identities = Identities(self, self._on_refused)
        self._attestor = PeerAttestor(
            Processes(facts=Facts(containers=Containers(agent.settings.attest.engines)))
        )
        self.server = WorkloadServer(
            self.identities,
            self._attestor,
            agent.settings.workload_api.hold_s,
            on_refused=self._on_refused,
        )

    async def run(self) -> None:
        """Serve until cancelled."""
        said = ""
        while True:
            path = socket_path(self._agent.settings)
            try:
                make_directory(path.parent)
                if not self._agent.settings.workload_api.socket:
                    check_directory(path.parent)
                await self.server.start(path)
                break
            except X0Error as error:
                if str(error) != said:
                    said = str(error)
                    self._agent.desk.event("bound", said)
            await asyncio.sleep(RETRY_S)
        self.path = path
        self._agent.desk.event("node", f"the Workload API is at unix:{path}")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.path = None
            self.identities.close()
            await self.server.stop()

    def close(self) -> None:
        """Give back what attestation holds, also if nothing was ever served."""
        self._attestor.close()

    def statistics(self) -> dict[str, int]:
        """Sums and sizes for metrics."""
        now = self.server.statistics()
        calls = {f"workload_api_calls_total|{k}": v for k, v in self.server.calls.items()}
        pushes = {f"workload_api_pushes_total|{k}": v for k, v in self.server.pushes.items()}
        refused = {f"workload_api_refused_total|{k}": v for k, v in self._refused.items()}
        return {
            "workload_api_connections": now["connections"],
            "workload_api_calls": now["open"],
            **calls,
            **pushes,
            **refused,
        }

    def _on_refused(self, reason: str) -> None:
        if reason not in self._refused:
            if len(self._refused) >= REASONS_MAX:
                reason = "other"
            self._agent.desk.event("refused", f"Workload API: {reason}")
        self._refused[reason] = self._refused.get(reason, 0) + 1

    # -------------------------------------------------------------- the world of `Identities`
    def entries(self) -> tuple[Entry, ...]:
        """Those of this node."""
        return self._agent.machine.entries()

    def svid(self, id: str) -> SvidItem | None:
        """The SVID held for an ID."""
        return self._agent.machine.svid(id)

    def bundle(self) -> Bundle | None:
        """Of this trust domain; the one from the disk until the authority has said it again."""
        return self._agent.machine.sets.bundle or self._agent.wallet.known_bundle

    def federated(self) -> tuple[Federated, ...]:
        """Of the others."""
        return self._agent.machine.sets.federated

    def crls(self) -> tuple[bytes, ...]:
        """Revocation lists of this trust domain, DER."""
        return self._agent.machine.sets.crls

    def good(self, item: SvidItem) -> Verdict:
        """Whether an SVID of ours still counts: not revoked, and neither is this node."""
        known = self._issued.get(item.id)
        if known is None or known[0] != item.chain[0]:
            try:
                fields = x509.parse(item.chain[0]).fields
            except BadInput as error:
                return Denied(error.what)
            if len(self._issued) > 2 * len(self._agent.machine.entries()) + 64:
                self._issued.clear()
            known = self._issued[item.id] = item.chain[0], fields.not_before_unix_s
        return self._agent.trusts.counts(SpiffeId(item.id), known[1], self._agent.me)

    async def mint(self, entry: str, audience: tuple[str, ...]) -> Minted:
        """A JWT-SVID from the authority.

        Raises:
            X0Error: Unavailable while the authority is out of reach.
        """
        authority = getattr(self._agent, "authority", None)
        if authority is None:
            raise Unavailable("X0-WLA-012", "this node has no SVID yet", "try again in a moment")
        minted: Minted = await authority.mint(entry, audience)
        return minted

    def unix_us(self) -> int:
        """Wall time."""
        return unix_us()


def make_directory(path: Path) -> None:
    """Make the socket's directory, open for all to enter; one that is there stays as it is."""
    try:
        if not path.exists():
            path.mkdir(parents=True)
            path.chmod(DIRECTORY_MODE)
            if path.parent == Path(RUN):
                path.parent.chmod(DIRECTORY_MODE)
    except OSError as error:
        raise Unavailable(
            "X0-WLA-003",
            f"can't make {path}: {os.strerror(error.errno or 0)}",
            "set workload_api.socket to a path that this process may make",
        ) from None


def check_directory(path: Path) -> None:
    """Whoever can replace the socket can hand out identities and CAs of their own.

    Only for places that we chose: `state_dir` may stand where everybody can make directories, and
    somebody may have been there first.  An operator who names a socket has looked.

    Raises:
        Unavailable: X0-WLA-004 the directory is another user's, or others may write to it.
    """
    found = path.lstat()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid not in (0, os.geteuid())
        or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise Unavailable(
            "X0-WLA-004",
            f"others could replace the Workload API's socket in {path}",
            "remove that directory, or give it to this user with mode 0755",
        )
