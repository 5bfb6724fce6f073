"""Which plane carries a node's data: the kernel's or user space, and why."""

from __future__ import annotations

import contextlib
from pathlib import Path

from x0tta6bl4.app.kernel_links import KEPT
from x0tta6bl4.app.kernel_plane import KernelPlane, Say
from x0tta6bl4.app.settings import NodeSettings
from x0tta6bl4.wire.admin import Finding, PlaneView
from x0tta6bl4.wire.errors import X0Error
from x0tta6bl4.wire.ids import NodeName, TrustDomain


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
        if (state_dir / KEPT).exists():  # Of a life in kernel mode that was killed.
            with contextlib.suppress(X0Error, OSError):
                KernelPlane(domain, me, state_dir, names, say).remove()
        return None, PlaneView()
    try:
        return KernelPlane(domain, me, state_dir, names, say, settings.data.xdp), PlaneView()
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


__all__ = ["KernelPlane", "open_plane"]
