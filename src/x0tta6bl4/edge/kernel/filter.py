"""The membership filter at XDP: who may send into the mesh's addresses, and how much.

Packets from a mesh address pass only if it is a member's, within its rate, and, if so wished,
through a neighbour; packets from elsewhere to a mesh address never do.  Everything else on the
interface passes, except from sources that policy denies.  A node's own addresses are no members:
nobody else sends from them.

The filter goes on without the agent: what it knew then stays in force.

Source: `bpf/filter.h`; GCRA, ITU-T I.371 annex A.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final, final

from x0tta6bl4.core.machine import Value
from x0tta6bl4.edge.kernel import layout
from x0tta6bl4.edge.kernel.layout import FilterFlag
from x0tta6bl4.edge.kernel.libbpf import KernelRefused
from x0tta6bl4.edge.kernel.programs import Programs

MEMBERS_MAX: Final = 65_536
SOURCES_MAX: Final = 16_384
_ZERO: Final = bytes(4)


@final
class Member(Value, frozen=True):
    """What one member of the mesh may do."""

    denied: bool = False
    """Known, and turned away: it is counted apart from strangers."""
    rate_pps: int = 0
    """Packets per second; 0: no limit."""
    burst: int = 64
    """Packets above the rate at once."""


@final
class Filter:
    """The filter of one node; what is set replaces what was, by differences.

    Args:
        programs: loaded or adopted.
    """

    __slots__ = ("_members", "_programs", "_sources")

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._members = dict.fromkeys(programs.maps["x0_members"].keys(), b"")
        self._sources = dict.fromkeys(programs.maps["x0_sources"].keys(), b"")

    def switch(self, mesh: IPv6Network, *, on: bool = True, neighbours_only: bool = True) -> None:
        """Say what the mesh's addresses are, and whether the filter is in force.

        Args:
            mesh: their prefix, of at most 64 bits.
            on: whether it is in force.
            neighbours_only: packets from mesh addresses must come from a watched link.
        """
        assert mesh.prefixlen <= 64
        flags = FilterFlag.ON if on else FilterFlag(0)
        if neighbours_only:
            flags |= FilterFlag.NEIGHBOURS
        if self._sources:
            flags |= FilterFlag.SOURCES
        self._programs.maps["x0_filters"].put(
            _ZERO,
            layout.FILTER.pack(
                prefix=mesh.network_address.packed[:8],
                mask=mesh.netmask.packed[:8],
                flags=int(flags),
            ),
        )

    @property
    def denied(self) -> dict[IPv6Address, bool]:
        """Of each member whether it is turned away, whoever has said so."""
        held = self._programs.maps["x0_members"]
        told = ((IPv6Address(key), held.get(key)) for key in self._members)
        return {node: bool(layout.MEMBER.unpack(data)["denied"]) for node, data in told if data}

    def set_members(self, members: Mapping[IPv6Address, Member]) -> int:
        """Make these the members.

        Args:
            members: by mesh address, without our own.
        Returns:
            How many entries were changed.
        Raises:
            KernelRefused: X0-KRN-012 too many; nothing was changed.
        """
        if len(members) > MEMBERS_MAX:
            raise KernelRefused(
                "X0-KRN-012", f"{len(members)} members", f"the filter holds {MEMBERS_MAX}"
            )
        wanted = {address.packed: _member(one) for address, one in members.items()}
        return self._apply("x0_members", self._members, wanted)

    def set_sources(self, denied: Mapping[IPv4Network | IPv6Network, bool]) -> int:
        """Make these the sources that are denied (True), or let in within a denied one (False).

        The longest prefix counts; of IPv4 and IPv6 ones that are the same, the one that denies.

        Returns:
            How many entries were changed.
        Raises:
            KernelRefused: X0-KRN-012 too many; nothing was changed.
        """
        if len(denied) > SOURCES_MAX:
            raise KernelRefused(
                "X0-KRN-012", f"{len(denied)} prefixes", f"the filter holds {SOURCES_MAX}"
            )
        ranked = sorted(denied.items(), key=lambda one: one[1])
        wanted = {_prefix(one): struct.pack("I", no) for one, no in ranked}
        changed = self._apply("x0_sources", self._sources, wanted)
        held = layout.FILTER.unpack(self._programs.maps["x0_filters"].get(_ZERO) or b"")
        flags = FilterFlag(held["flags"]) & ~FilterFlag.SOURCES
        held["flags"] = int(flags | FilterFlag.SOURCES if wanted else flags)
        self._programs.maps["x0_filters"].put(_ZERO, layout.FILTER.pack(**held))
        return changed

    def dropped(self, address: IPv6Address) -> int:
        """Packets of a member that were turned away: denied, or over its rate."""
        data = self._programs.maps["x0_members"].get(address.packed)
        return int(layout.MEMBER.unpack(data)["dropped"]) if data else 0

    def _apply(self, name: str, held: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> int:
        """Removals first: a full map has room again."""
        table = self._programs.maps[name]
        gone = held.keys() - wanted.keys()
        for key in gone:
            table.delete(key)
            del held[key]
        changed = [key for key, value in wanted.items() if held.get(key) != value]
        for key in changed:
            table.put(key, wanted[key])
            held[key] = wanted[key]
        return len(gone) + len(changed)


def _member(one: Member) -> bytes:
    cost_ns = 1_000_000_000 // one.rate_pps if one.rate_pps else 0
    return layout.MEMBER.pack(cost_ns=cost_ns, burst_ns=cost_ns * one.burst, denied=int(one.denied))


def _prefix(network: IPv4Network | IPv6Network) -> bytes:
    bits = network.prefixlen
    source = network.network_address.packed
    if isinstance(network, IPv4Network):
        bits, source = bits + 96, bytes(10) + b"\xff\xff" + source
    return layout.PREFIX.pack(prefix=bits, source=source)
