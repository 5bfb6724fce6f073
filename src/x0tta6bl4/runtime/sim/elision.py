"""Calm links without hellos: both ends are moved on at once when something is about to happen.

Now and then the links that pass hellos are looked at.  Where both proxies run on clocks that do
not drift, the wires only take time, and both machines say that each hello changes the same
(`core.links.calm`), the ends are taken out of their machines' schedules.  Whoever is about to
change something of that (a fault, an order of the agent, a key that retires) wakes the link first:
both ends become what all the hellos would have made of them, and those under way are put onto the
wire.  What machines say, and when, is the same (tests/sim/test_elision.py plays both and compares).
"""

from __future__ import annotations

import functools
from typing import Final, final

import msgspec

from x0tta6bl4.core.links.calm import Way, move, way
from x0tta6bl4.core.links.words import Parked
from x0tta6bl4.core.machine import MS
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.sides import Datagram, Lane, ProxySide

_LOOK: Final = 500 * MS


@final
class _Half(msgspec.Struct, frozen=True, gc=False):
    """One direction of a link that passes no hellos."""

    way: Way
    lane: Lane
    source: ProxySide


class Elision:
    """All links of a mesh that could do without hellos, and those that do.

    Args:
        mesh: with all its links, before anything is started; its world ticks no machine early
            and none late.
    """

    def __init__(self, mesh: Mesh) -> None:
        assert not mesh.world.nervous
        assert not mesh.world.tick_late_us
        self._mesh = mesh
        self._links: dict[tuple[str, str], tuple[_Half, _Half] | None] = dict.fromkeys(mesh.links)
        self._lively = dict.fromkeys(mesh.links)
        self._of: dict[str, list[tuple[str, str]]] = {}
        for pair in mesh.links:
            for name in pair:
                self._of.setdefault(name, []).append(pair)
            for edge in (pair, pair[::-1]):
                mesh.network.wire(*edge).wake = functools.partial(self._wake, pair)
        mesh.elision = self
        mesh.world.after(_LOOK, self._look)

    def __len__(self) -> int:
        """How many links pass no hellos now."""
        return len(self._links) - len(self._lively)

    def wake(self, host: str | None = None) -> None:
        """Have all links of a host, or all, pass hellos again, from what they are now."""
        for pair in self._links if host is None else self._of.get(host, ()):
            self._wake(pair)

    def elided(self) -> int:
        """Hellos that the links which pass none would have sent since they passed the last."""
        now = self._mesh.world.now
        return sum(
            half.way.sent(now + half.source.host.clock.boot_us)
            for halves in self._links.values()
            if halves is not None
            for half in halves
        )

    def _look(self, _: object) -> None:
        for pair in tuple(self._lively):
            halves = self._calm(*pair)
            if halves is not None:
                self._links[pair] = halves
                del self._lively[pair]
                for half, other in zip(halves, pair[::-1], strict=True):
                    half.source.process.machine.handle(half.source.process.now, Parked(other, True))
        self._mesh.world.after(_LOOK, self._look)

    def _calm(self, a: str, b: str) -> tuple[_Half, _Half] | None:
        """Both directions of a link, if nothing happens on it."""
        mesh = self._mesh
        wires = [mesh.network.wire(a, b), mesh.network.wire(b, a)]
        took = [wire.plain_us for wire in wires]
        sides = [mesh.hosts[name].proxy for name in (a, b)]
        if min(took) < 0 or any(
            side is None or side.process.frozen or side.host.clock.drifts for side in sides
        ):
            return None
        ends = [side.machine.links.end(other) for side, other in zip(sides, (b, a), strict=True)]
        if None in ends or not all(end.calm(other, sum(took)) for end, other in (ends, ends[::-1])):
            return None
        halves = []
        for side, there, end, other, us, names in zip(
            sides, sides[::-1], ends, ends[::-1], took, ((a, b), (b, a)), strict=True
        ):
            lane = side.lane(names[1])
            if not there.hears(end.neighbour.config.link, names[0], lane.key):
                return None
            ahead_us = us + there.host.clock.boot_us - side.host.clock.boot_us
            halves.append(_Half(way(end, other, us, ahead_us), lane, side))
        return halves[0], halves[1]

    def _wake(self, pair: tuple[str, str]) -> None:
        halves = self._links[pair]
        if halves is None:
            return
        self._links[pair] = None
        self._lively[pair] = None
        now = self._mesh.world.now
        for half, back in (halves, halves[::-1]):
            boot_us = half.source.host.clock.boot_us
            sent, hellos = move(half.way, back.way, now + boot_us)
            coming = [
                (hello.sent_us - boot_us + half.way.latency_us, Datagram(half.lane.key, hello))
                for hello in hellos
            ]
            half.lane.wire.elided(sent, half.lane.deliver, coming)
        for half, other in zip(halves, pair[::-1], strict=True):
            process = half.source.process
            process.machine.handle(process.now, Parked(other, False))
            process.arm()
