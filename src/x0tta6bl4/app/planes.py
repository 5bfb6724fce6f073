"""Which plane carries a node's data: the kernel's or user space, and why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from x0tta6bl4.app.kernel_links import KEPT, where_left
from x0tta6bl4.app.kernel_plane import PINS, SWITCHES, KernelPlane, Say
from x0tta6bl4.app.mesh import living
from x0tta6bl4.app.settings import NodeSettings
from x0tta6bl4.app.wallet import Wallet, private_dir
from x0tta6bl4.edge.kernel.sysctl import here
from x0tta6bl4.runtime.local import is_own, listen_private, peer_of
from x0tta6bl4.wire.admin import Finding, PlaneView
from x0tta6bl4.wire.errors import Conflict, Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain, domain_of, node_of

_PROXY_S: Final = 2.0
"""A proxy's socket takes a connection at once unless its backlog is full."""


def open_plane(settings: NodeSettings, say: Say) -> tuple[KernelPlane | None, PlaneView]:
    """The plane that node.toml asks for, as far as this host can.

    Args:
        settings: of the node.
        say: a line for the events log.
    Returns:
        The kernel's plane, or None; and what is in force without it, with the reason.
    Raises:
        Unavailable: `plane = "kernel"`, and this host can't; the reason is X0-KRN-...
    """
    wish, state_dir = settings.data.plane, Path(settings.state_dir)
    names = [link.node for link in settings.link]
    domain, me = TrustDomain(settings.trust_domain), NodeName(settings.node)
    if wish == "userspace":
        if is_left(state_dir):
            try:
                _end_kernel(domain, me, state_dir)
            except (X0Error, OSError) as error:
                say("kernel", str(error))
        return None, PlaneView()
    try:
        return KernelPlane(domain, me, state_dir, names, say, settings.data), PlaneView()
    except X0Error as error:
        if wish == "kernel":
            raise
        why = f"{error.id}: {error.what}"
        filters = settings.data.filters
        missed = f"; {', '.join(filters)} not in force" if filters else ""
        say("kernel", f"data goes through user space: {why}{missed}")
        wrong = Finding(
            "X0-KRN-143", "error" if missed else "warning",
            f"data goes through user space: {why}{missed}",
            error.hint or 'say plane = "userspace" if that is meant',
        )  # fmt: skip
        return None, PlaneView("userspace", f"userspace, because {why}{missed}", (wrong,))


def is_left(state_dir: Path) -> bool:
    """Whether a life in kernel mode, if it is over, was killed: an end leaves none of these."""
    files = [state_dir / name for name in (KEPT, SWITCHES)]
    return any(file.exists() for file in files) or any((state_dir / PINS).glob("x0_*"))


def end_dead(state_dir: Path) -> str | None:
    """Do what an agent that was killed could not: end its proxy, and the kernel's half of its node.

    To be called in the network namespace of the node, by its user.  No agent can begin meanwhile.

    Args:
        state_dir: of a node whose agent does not answer.
    Returns:
        What was done; None: there was nothing to do, or the agent lives.
    Raises:
        X0Error: it can't be done, or not all of it.
    """
    if not state_dir.is_dir():
        return None
    private_dir(state_dir)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_in_place_of_agent(state_dir / "agent.sock"))
        except Conflict:
            return None
        if living(state_dir / "agent.pid"):
            return None
        me = _whose(state_dir) if is_left(state_dir) else None
        done = ["its proxy is stopped"] if _end_proxy(state_dir / "proxy.sock") else []
        if me is not None:
            done.append(_end_kernel(*me, state_dir))
        return ", ".join(done) or None


@contextlib.contextmanager
def _in_place_of_agent(path: Path) -> Iterator[None]:
    """Hold what an agent holds to be the only one of its node; as before afterwards."""
    was = path.exists()
    listener = listen_private(path, "a node")
    try:
        yield
    finally:
        if not was:
            path.unlink(missing_ok=True)
        listener.close()


def _whose(state_dir: Path) -> tuple[TrustDomain, NodeName]:
    """Whose kernel mode it was that has left something, in this network namespace."""
    _be_where(state_dir)
    svid = Wallet(state_dir).svid
    me = node_of(svid.id) if svid else None
    if svid is None or me is None:
        raise Unavailable(
            "X0-KRN-149",
            f"whose kernel mode {state_dir} was is not known: there is no SVID in it",
            "start the node with its node.toml, then stop it",
        )
    return domain_of(svid.id), me


def _end_proxy(path: Path) -> bool:
    """End the proxy that listens there: its pid file may name somebody else by now."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.ExitStack() as stack:
        sock.settimeout(_PROXY_S)
        try:
            sock.connect(os.fspath(path))
            peer = peer_of(sock)
            if not is_own(peer):
                return False
            pidfd = os.pidfd_open(peer.pid)
            stack.callback(os.close, pidfd)
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        except (OSError, OverflowError):
            return False
    return True


def _be_where(state_dir: Path) -> str:
    """Be in the network namespace of a life in kernel mode that is over.

    Returns:
        Where it was: here, or in an earlier boot of this host; empty: that is not known.
    Raises:
        Unavailable: X0-KRN-152 it was in another one.
    """
    was, now = where_left(state_dir / KEPT, state_dir / SWITCHES), here()
    if was and was.split()[0] == now.split()[0] and was != now:
        raise Unavailable(
            "X0-KRN-152",
            f"the kernel mode of {state_dir} is in another network namespace",
            "x0 node stop there (ip netns exec, nsenter -n); if it is gone, start the node once",
        )
    return was


def _end_kernel(domain: TrustDomain, me: NodeName, state_dir: Path) -> str:
    """Take away what a life in kernel mode has left; what was done.

    Raises:
        X0Error: it is in another network namespace, another node is in this one, or it can't be
            taken away.
    """
    where = _be_where(state_dir)
    if where not in ("", here()):
        for name in (KEPT, SWITCHES):
            (state_dir / name).unlink(missing_ok=True)
        if not is_left(state_dir):
            return "what it had written before this host's last start is deleted"
    left = KernelPlane(domain, me, state_dir, (), _unheard).remove()
    if left:
        raise Unavailable(
            "X0-KRN-150",
            f"left in the kernel: {'; '.join(left)}"[:1000],
            "x0 node stop tries it again; the log of the kernel may say more (dmesg)",
        )
    what = "programs, routes and switches" if where else "programs"
    return f"its {what} are taken out of the kernel"


def _unheard(kind: str, text: str) -> None:
    """There is no log."""
