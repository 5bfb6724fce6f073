"""Where packets that come in meet the programs of a node: in the driver, or behind it, and why.

    native   XDP in the driver     put on first where it is wished for
    generic  TC ingress            where the driver refuses, where nobody answers, where the other
                                   end of a veth pair is generic; from then on until the node stops

An attachment that was accepted proves nothing: a veth end without a program of its own drops what
the other end answers from its driver.  So a neighbour must answer within PROOF_S.

Source: drivers/net/veth.c of Linux (`veth_xdp_xmit`, `veth_xdp_set`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from typing import Final, Literal, final

import msgspec

from x0tta6bl4.app.kernel_links import KernelLink, Links
from x0tta6bl4.edge.kernel.libbpf import KernelRefused
from x0tta6bl4.edge.kernel.programs import Mode, Programs, is_veth
from x0tta6bl4.wire.admin import Finding
from x0tta6bl4.wire.messages import KernelOffer

PROOF_S: Final = 3.0
"""From the moment that hellos are sent under keys that both ends have."""
Xdp = Literal["auto", "native", "generic"]


@final
class _On(msgspec.Struct, frozen=True):
    """The programs on one interface."""

    name: str
    mode: Mode
    why: str = ""
    """Why they are not in the driver."""
    meant: bool = False
    """Nobody has wished for anything else."""


@final
class Modes:
    """Modes of the interfaces that carry the programs of a node.

    Args:
        programs: at work, perhaps those of an earlier agent.
        wish: `[data] xdp` of node.toml.
    """

    __slots__ = ("_on", "_programs", "_wish")

    def __init__(self, programs: Programs, wish: Xdp) -> None:
        self._programs, self._wish = programs, wish
        self._on: dict[int, _On] = {}
        """By number of the interface; bounded by those of this host."""
        for index, mode in programs.attached().items():
            with contextlib.suppress(OSError):
                name = socket.if_indextoname(index)
                self._on[index] = _On(name, mode, "as before this start", meant=True)
                if mode is Mode.NATIVE and wish == "generic":
                    self._put(index, name)

    def __contains__(self, index: int) -> bool:
        return index in self._on

    def put(self, index: int, name: str) -> None:
        """Put the programs on an interface that has none.

        Raises:
            KernelRefused: X0-KRN-009 it takes none.
        """
        if index not in self._on:
            self._put(index, name)

    def _put(self, index: int, name: str) -> None:
        if self._wish == "generic":
            why, meant = "asked for", True
        elif self._wish == "auto" and is_veth(index):
            why, meant = "veth", True
        else:
            try:
                self._programs.attach(index, Mode.NATIVE)
            except KernelRefused as error:
                why, meant = error.what, False
            else:
                self._on[index] = _On(name, Mode.NATIVE)
                return
        self._programs.attach(index, Mode.GENERIC)
        self._on[index] = _On(name, Mode.GENERIC, why, meant)

    def native(self, index: int) -> bool:
        """Whether the programs are in the driver."""
        on = self._on.get(index)
        return on is not None and on.mode is Mode.NATIVE

    def leave_driver(self, index: int, why: str) -> None:
        """Go on behind the driver.

        Raises:
            KernelRefused: X0-KRN-009.
        """
        self._programs.attach(index, Mode.GENERIC)
        self._on[index] = _On(self._on[index].name, Mode.GENERIC, why)

    def mend(self, links: Iterable[KernelLink]) -> Iterator[str]:
        """Put programs on again that somebody took off, and say where.

        Raises:
            KernelRefused: as `put`.
        """
        at_work = self._programs.attached()
        names = dict(socket.if_nameindex())
        self._on = {index: on for index, on in self._on.items() if index in names}
        for index in sorted(_indexes(links) & self._on.keys()):
            if index not in at_work:
                on = self._on[index]
                yield f"somebody took the programs off {on.name}; they are put on again"
                if on.mode is Mode.NATIVE:
                    self._put(index, on.name)
                else:
                    self._programs.attach(index, Mode.GENERIC)

    # ------------------------------------------------------------------ both ends of a link
    def stands_alone(self, index: int, node: str, theirs: KernelOffer) -> str:
        """Why a neighbour's offer ends native mode here; empty: it does not."""
        if not self.native(index):
            return ""
        if theirs.unheard:
            return f"{node} hears no answer that a driver sends"
        if not theirs.native and is_veth(index):
            return f"{node} has its programs behind its driver, and a veth pair needs both in it"
        return ""

    def unproven(self, links: Links, now: float) -> tuple[int, str] | None:
        """An interface in native mode over which nobody answers, and why; one at a time.

        Args:
            links: of the node.
            now: monotonic seconds.
        """
        watched = [link for link in links if link.kept is not None]
        proven = {link.kept.index for link in watched if link.kept and link.proven}
        for link in watched:
            assert link.kept is not None
            index = link.kept.index
            keys = link.keys
            late = keys.used and not link.proven and now > keys.used_at + PROOF_S
            if late and self.native(index) and index not in proven:
                return index, f"{link.node} did not answer in {PROOF_S:g} s"
        return None

    # ------------------------------------------------------------------ what is told
    def text(self, links: Iterable[KernelLink]) -> str:
        """`native on eth0, generic on to-b (veth)`, of interfaces in use."""
        names = dict(socket.if_nameindex())  # As they are called now.
        used = [(names.get(n, ""), self._on[n]) for n in _indexes(links) & self._on.keys()]
        return ", ".join(
            f"{on.mode.value} on {name or on.name}" + (f": {on.why}" if on.why else "")
            for name, on in sorted(used, key=lambda one: one[0])
        )

    def findings(self, links: Iterable[KernelLink]) -> Iterator[Finding]:
        """Interfaces that are not as was wished for."""
        for index in sorted(_indexes(links) & self._on.keys()):
            on = self._on[index]
            if on.mode is Mode.GENERIC and not on.meant:
                yield Finding(
                    "X0-KRN-144",
                    "notice",
                    f"the programs on {on.name} run behind its driver: {on.why}",
                    'everything works, for more CPU; `xdp = "generic"` if that is meant,'
                    " `x0 node stop` before another try",
                )


def _indexes(links: Iterable[KernelLink]) -> set[int]:
    return {link.kept.index for link in links if link.kept is not None}
