"""Which plane carries a node's data: the kernel's or user space, and why."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from x0tta6bl4.app.kernel_links import KEPT
from x0tta6bl4.app.kernel_plane import PINS, SWITCHES, KernelPlane, Say
from x0tta6bl4.app.mesh import living
from x0tta6bl4.app.settings import NodeSettings
from x0tta6bl4.app.wallet import Wallet
from x0tta6bl4.wire.admin import Finding, PlaneView
from x0tta6bl4.wire.errors import Unavailable, X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain, domain_of, node_of


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
            with contextlib.suppress(X0Error, OSError):
                KernelPlane(domain, me, state_dir, names, say).remove()
        return None, PlaneView()
    try:
        return KernelPlane(domain, me, state_dir, names, say, settings.data), PlaneView()
    except X0Error as error:
        if wish == "kernel":
            raise
        why = f"{error.id}: {error.what}"
        say("kernel", f"data goes through user space: {why}")
        wrong = Finding(
            "X0-KRN-143", "warning", f"data goes through user space: {why}",
            error.hint or 'say plane = "userspace" if that is meant',
        )  # fmt: skip
        return None, PlaneView("userspace", f"userspace, because {why}", (wrong,))


def is_left(state_dir: Path) -> bool:
    """Whether a life in kernel mode, if it is over, was killed: an end leaves none of these."""
    files = [state_dir / name for name in (KEPT, SWITCHES)]
    return any(file.exists() for file in files) or any((state_dir / PINS).glob("x0_*"))


def end_dead(state_dir: Path) -> str | None:
    """Do what an agent that was killed could not: end its proxy, and the kernel's half of its node.

    To be called in the network namespace of the node.

    Args:
        state_dir: of a node whose agent does not answer.
    Returns:
        What was done; None: there was nothing to do, or the agent lives.
    Raises:
        X0Error: it can't be done, or not all of it.
    """
    if living(state_dir / "agent.pid"):
        return None
    done = []
    proxy = living(state_dir / "proxy.pid")
    if proxy:
        os.kill(proxy, signal.SIGTERM)
        done.append("its proxy is stopped")
    if is_left(state_dir):
        svid = Wallet(state_dir).svid
        me = node_of(svid.id) if svid else None
        if svid is None or me is None:
            raise Unavailable(
                "X0-KRN-149",
                f"whose kernel mode {state_dir} was is not known: there is no SVID in it",
                "start the node with its node.toml, then stop it",
            )
        left = KernelPlane(domain_of(svid.id), me, state_dir, (), _unheard).remove()
        if left:
            raise Unavailable(
                "X0-KRN-150",
                f"left in the kernel: {'; '.join(left)}"[:1000],
                "x0 node stop tries it again; the log of the kernel may say more (dmesg)",
            )
        done.append("its programs, routes and switches are taken out of the kernel")
    return ", ".join(done) or None


def _unheard(kind: str, text: str) -> None:
    """There is no log."""
