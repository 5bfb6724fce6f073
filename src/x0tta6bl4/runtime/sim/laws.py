"""What must hold in every simulated world, whatever went wrong before.

The driver's own laws (honest deadline, progress, token) are checked by `world` at each step.
Here are those of the mesh: observers that look at every effect, and judgements once the world
has been quiet for a stated time.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any, Final

from x0tta6bl4.core.agent.words import Order
from x0tta6bl4.core.machine import SECOND, Effects, Event, Send
from x0tta6bl4.runtime.sim import attackers
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Mesh
from x0tta6bl4.runtime.sim.world import LawBroken, Process, shown
from x0tta6bl4.wire.messages import Flood, Full, LinkState, PathsItem

LINKS_SETTLE: Final = 25 * SECOND
"""After the last fault links are as the wires are: 5 s until a silent control link is lost, 6.25 s
of back-off until it is dialled, detect time, and 10 hellos in a row and 2 s of hold; the rest for
what a lossy wire adds."""

PATHS_SETTLE: Final = LINKS_SETTLE + 15 * SECOND
"""After the last fault who is connected has paths: links settle, records are flooded at once but
at most every 2 s, what was lost is repaired by a round of anti-entropy each 10 s."""

HOPS_MAX: Final = 15
"""A setup frame names at most 16 nodes; no path is expected beyond."""

_LOSSY_PPM: Final = 20_000
"""Above this loss, ten hellos in a row may take arbitrarily long; such links are not judged."""


DOWN_WITHIN: Final = 2 * SECOND
"""Nothing passes on a wire: its receiver has said so after this, unless it stood still."""
BOTH_DOWN_WITHIN: Final = 6 * SECOND
"""... and its sender, who has to be told so by hellos, after this."""


class LinkTimes:
    """Once a second: nobody holds a link up over which nothing has come for DOWN_WITHIN.

    Args:
        mesh: what to look at, from now on.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._stood_still: dict[str, int] = {}
        mesh.world.after(SECOND, self._look)

    def _look(self, _: object) -> None:
        mesh = self._mesh
        now = mesh.world.now
        for name, host in mesh.hosts.items():
            if host.proxy is None or host.proxy.process.frozen:
                self._stood_still[name] = now
        for a, b in mesh.network.edges():
            for source, target in ((a, b), (b, a)):
                wire = mesh.network.wire(source, target)
                if wire.shape.cut:
                    self._check(target, source, wire.cut_since, DOWN_WITHIN)
                    self._check(source, target, wire.cut_since, BOTH_DOWN_WITHIN)
        mesh.world.after(SECOND, self._look)

    def _check(self, name: str, other: str, cut_since: int, within: int) -> None:
        now = self._mesh.world.now
        since = max(cut_since, self._stood_still.get(name, 0) + SECOND)
        if now - since < within:
            return
        told = self._mesh.hosts[name].proxy.told.get(other, "down")
        if told != "down":
            raise LawBroken(
                f"detect time: at {shown(now)} {name} holds its link to {other}"
                f" {told}; cut since {shown(since)}"
            )


class LinkFacts:
    """What a proxy tells of links alternates: up, suspected or down only after that."""

    def __init__(self) -> None:
        self._told: dict[tuple[Process, str], str] = {}

    def __call__(self, process: Process, event: Event, effects: Effects) -> None:
        """Look at the effects of one step."""
        for effect in effects:
            if type(effect) is Send and type(effect.message) is LinkState:
                state = effect.message
                before = self._told.get((process, state.node), "down")
                if before not in _BEFORE[state.state]:
                    raise LawBroken(
                        f"facts of links: {process.name} told {state} after {before}"
                        f" at {shown(process.world.now)}"
                    )
                self._told[process, state.node] = state.state


_BEFORE: Final = {
    "up": ("down", "suspected", "up"),
    "suspected": ("up",),
    "down": ("up", "suspected"),
}


class Orders:
    """What an agent tells its proxy: paths without loops, from here to there, over neighbours.

    Also: no SVID beyond its end, and no private key of another's.
    """

    def __call__(self, process: Process, event: Event, effects: Effects) -> None:
        """Look at the effects of one step."""
        for effect in effects:
            if type(effect) is not Order:
                continue
            message = effect.message
            for item in message.items if type(message) is Full else message.puts:
                if type(item) is PathsItem:
                    for path in item.paths:
                        self._check(process, item.node, path)

    def _check(self, process: Process, node: str, path: tuple[str, ...]) -> None:
        me = process.name.partition("/")[0]
        if len(set(path)) != len(path) or path[0] != me or path[-1] != node or len(path) > 17:
            raise LawBroken(
                f"no path loop: {process.name} gave {path} to {node} at {shown(process.world.now)}"
            )


FLOODS_MAX: Final = 30
"""Of one record to one neighbour: once, and now and then again where anti-entropy asks."""


class Floods:
    """A record goes over a link once, not round and round."""

    def __init__(self) -> None:
        self._sent: dict[tuple[Process, str, bytes], int] = {}

    def __call__(self, process: Process, event: Event, effects: Effects) -> None:
        """Look at the effects of one step."""
        for effect in effects:
            if type(effect) is not Send or type(effect.message) is not Flood:
                continue
            for record in effect.message.records:
                key = (process, effect.dst, record)
                count = self._sent[key] = self._sent.get(key, 0) + 1
                if count > FLOODS_MAX:
                    raise LawBroken(
                        f"bounded: {process.name} has sent one record to {effect.dst} {count}"
                        f" times at {shown(process.world.now)}"
                    )


def nothing_forged(mesh: Mesh) -> None:
    """No forged record is in any store, no rule from one at any proxy, no thief in a session."""
    word = attackers.FORGED.encode()
    for host in mesh.hosts.values():
        if host.agent is not None:
            for key, record in attackers.records_of(host.agent).items():
                if word in record.body:
                    raise LawBroken(f"no forged record enters: {host.name} holds {key}")
        if host.proxy is not None and f"RuleItem/{attackers.FORGED}" in (
            host.proxy.machine.snapshot.items
        ):
            raise LawBroken(f"no forged record enters: a forged rule is in force at {host.name}")
    for proxy, number in mesh.thefts:
        held = proxy.machine.server.circuits.get(number)
        if held is not None and held.session is not None:
            raise LawBroken(
                f"a holder without the secret never joins: circuit {number} at {proxy.host.name}"
            )
    mesh.thefts.clear()


def revoked_gone(fleet: Fleet) -> None:
    """No circuit of a revoked identity is left where the revocation could be heard."""
    revoked = fleet.authority.revoked
    for name, host in fleet.mesh.hosts.items():
        if host.proxy is None or host.proxy.process.frozen or not fleet.authority.reachable(name):
            continue
        machine = host.proxy.machine
        sessions = [(held, held.machine.active) for held in machine.clients.values()]
        sessions += [(held, held.active) for held in machine.server.sessions.values()]
        for held, active in sessions:
            for id in (held.source, held.target):
                if id in revoked and active is not None:
                    raise LawBroken(f"revocation: {name} still has a circuit of {id}")


class Circuits:
    """Once a second: no circuit outlives an SVID by the clock of either end; no thief gets in.

    Args:
        mesh: what to look at, from now on.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._excused: dict[str, int] = {}
        self._walls: dict[str, int] = {}
        mesh.world.after(SECOND, self._look)

    def _look(self, _: object) -> None:
        mesh = self._mesh
        now = mesh.world.now
        for name, host in mesh.hosts.items():
            stepped = self._walls.get(name) != host.clock.wall_us
            self._walls[name] = host.clock.wall_us
            if host.proxy is None or host.proxy.process.frozen or stepped:
                self._excused[name] = now
                continue
            if now - self._excused.get(name, 0) <= SECOND:
                continue
            unix_us = host.clock.unix_us(now)
            for end in host.proxy.sessions.ends.values():
                over_us = unix_us - end.wire.not_after_unix_s * SECOND
                if end.open and end.wire.not_after_unix_s and over_us > 0:
                    raise LawBroken(
                        f"no SVID past its expiry: a circuit {end.wire.path} at {name} is"
                        f" {over_us} us too old at {shown(now)}"
                    )
        nothing_forged(mesh)
        mesh.world.after(SECOND, self._look)


def usable(mesh: Mesh, a: str, b: str) -> bool:
    """Whether the link of two hosts can be used, as a god sees it."""
    for name in (a, b):
        host = mesh.hosts[name]
        if host.proxy is None or host.agent is None:
            return False
        if host.proxy.process.frozen or host.agent.process.frozen:
            return False
    return mesh.passes(a, b) and mesh.passes(b, a)


def _doubtful(mesh: Mesh, a: str, b: str) -> bool:
    """Whether so much is lost that a link may come and go."""
    shapes = (mesh.network.wire(a, b).shape, mesh.network.wire(b, a).shape)
    return any(shape.loss_ppm + shape.corrupt_ppm > _LOSSY_PPM for shape in shapes)


def connected(mesh: Mesh) -> dict[str, dict[str, int]]:
    """Hops from each host to those it reaches over links that nobody can doubt."""
    known = {name for name in mesh.hosts if speaks(mesh, name)} - mesh.byzantine
    sure: dict[str, list[str]] = {
        a: [
            b
            for b in mesh.neighbours(a)
            if {a, b} <= known and usable(mesh, a, b) and not _doubtful(mesh, a, b)
        ]
        for a in mesh.hosts
    }
    found: dict[str, dict[str, int]] = {}
    for start in mesh.hosts:
        hops = found[start] = {start: 0}
        for here in (todo := [start]):
            for there in sure[here]:
                if there not in hops:
                    hops[there] = hops[here] + 1
                    todo.append(there)
    return found


def paths_agree(mesh: Mesh) -> int:
    """Convergence of paths: who is connected has paths, every hop of them can be used.

    To be called when the world has been quiet for PATHS_SETTLE.

    Returns:
        Pairs judged.
    """
    sure = connected(mesh)
    pairs = 0
    for source, host in mesh.hosts.items():
        if host.agent is None or host.agent.process.frozen or host.proxy is None:
            continue
        for target in mesh.hosts:
            if source == target:
                continue
            pairs += 1
            paths = host.agent.machine.paths(source, target)[0]
            if sure[source].get(target, HOPS_MAX + 1) <= HOPS_MAX and not paths:
                raise LawBroken(
                    f"convergence: {source} has no path to {target} at {shown(mesh.world.now)}"
                )
            for path in paths:
                for here, there in itertools.pairwise(path):
                    if not any(
                        speaks(mesh, name) and name not in mesh.byzantine and name in sure[source]
                        for name in (here, there)
                    ):
                        continue  # Two liars, or a liar and one who is not heard: nobody says no.
                    if (here, there) not in mesh.network or not _alive(mesh, here, there):
                        raise LawBroken(
                            f"two-way: {source} goes to {target} by {path}, but"
                            f" {here}-{there} cannot be used at {shown(mesh.world.now)}"
                        )
    return pairs


def speaks(mesh: Mesh, name: str) -> bool:
    """Whether a node runs and has a valid SVID, without which it has nothing to say."""
    host = mesh.hosts[name]
    for part in (host.agent, host.proxy):
        if part is None or part.process.frozen:
            return False
    svid = host.disk.get("svid")
    return svid is not None and svid.not_after_unix_s > host.clock.unix_us(mesh.world.now) // SECOND


def _alive(mesh: Mesh, a: str, b: str) -> bool:
    """Whether bytes pass: a dead agent is no dead link."""
    ends = [mesh.hosts[name].proxy for name in (a, b)]
    alive = all(end is not None and not end.process.frozen for end in ends)
    return alive and mesh.passes(a, b) and mesh.passes(b, a)


def links_agree(mesh: Mesh) -> None:
    """Convergence of links: both ends hold a link up where packets pass, and down where not.

    To be called when the world has been quiet for LINKS_SETTLE.
    """
    for a, b in mesh.network.edges():
        there, back = mesh.network.wire(a, b).shape, mesh.network.wire(b, a).shape
        if max(there.loss_ppm, back.loss_ppm) > _LOSSY_PPM:
            continue
        ends = [mesh.hosts[name].proxy for name in (a, b)]
        alive = all(end is not None and not end.process.frozen for end in ends)
        # Without an agent a proxy gets no keys for a neighbour that has started anew.
        governed = all(mesh.hosts[name].agent is not None for name in (a, b))
        wanted = alive and not there.cut and not back.cut
        for end, other in zip(ends, (b, a), strict=True):
            if end is None:
                continue
            told = end.told.get(other, "down")
            if wanted and governed and told == "down":
                raise LawBroken(
                    f"convergence: {end.host.name} holds its link to {other} {told} at "
                    f"{shown(mesh.world.now)}: {end.machine.links.statistics()}"
                )
            if not wanted and told != "down":
                raise LawBroken(
                    f"soundness: {end.host.name} holds its link to {other} {told} at "
                    f"{shown(mesh.world.now)}, although nothing passes"
                )


def bounded(mesh: Mesh, items_max: int) -> int:
    """No container inside any machine holds more than `items_max`.

    Returns:
        The largest found.
    """
    largest = 0
    for host in mesh.hosts.values():
        for process in host.processes():
            size, where = _largest(process.machine)
            if size > items_max:
                raise LawBroken(f"bounded: {process.name} holds {size} items in {where}")
            largest = max(largest, size)
    return largest


def _largest(machine: object) -> tuple[int, str]:
    """Size of the largest container reachable from a machine, and where it is."""
    best, where = 0, ""
    seen: set[int] = set()
    todo: list[tuple[Any, str]] = [(machine, type(machine).__name__)]
    while todo:
        thing, path = todo.pop()
        if id(thing) in seen or isinstance(thing, str | bytes | int | float | type(None)):
            continue
        seen.add(id(thing))
        if isinstance(thing, dict | list | set | frozenset) and len(thing) > best:
            best, where = len(thing), path
        if isinstance(thing, dict):
            todo += [(value, f"{path}[]") for value in thing.values()]
        elif isinstance(thing, list | set | frozenset | tuple):
            todo += [(value, f"{path}[]") for value in thing]
        elif isinstance(thing, deque):
            best, where = max((best, where), (len(thing), path))
        if type(thing).__module__.startswith("x0tta6bl4.core"):
            names = [n for kind in type(thing).__mro__ for n in getattr(kind, "__slots__", ())]
            names += list(getattr(thing, "__dict__", {}))
            todo += [(getattr(thing, n), f"{path}.{n}") for n in names if hasattr(thing, n)]
    return best, where
