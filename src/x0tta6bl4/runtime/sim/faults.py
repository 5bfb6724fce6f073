"""What goes wrong in a simulated mesh: each fault has a beginning, an end and parameters.

A fault is data: `(kind, at, duration, target, number)`.  The plan of a seed is drawn before the
world starts, so a red seed can be cut down by hand; scenario files name the same kinds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final

import msgspec

from x0tta6bl4.core.machine import MS, SECOND
from x0tta6bl4.runtime.sim import attackers
from x0tta6bl4.runtime.sim.fleet import Fleet
from x0tta6bl4.runtime.sim.mesh import Host, Mesh
from x0tta6bl4.runtime.sim.network import Shape, Wire
from x0tta6bl4.runtime.sim.plan import FOREVER, Fault, Kind, Undo
from x0tta6bl4.runtime.sim.sides import Datagram


# ------------------------------------------------------------------------------------- processes
def _crash(fleet: Fleet, fault: Fault) -> Undo:
    """The host loses power, and starts again with both processes new."""
    host = fleet.mesh.hosts[fault.target[0]]
    host.isolate()
    host.kill_agent()
    host.kill_proxy()

    def undo() -> None:
        host.rejoin()
        _start(fleet, host)

    return undo


def _kill_agent(fleet: Fleet, fault: Fault) -> Undo:
    """The agent dies alone."""
    host = fleet.mesh.hosts[fault.target[0]]
    host.kill_agent()
    return lambda: _start(fleet, host)


def _kill_proxy(fleet: Fleet, fault: Fault) -> Undo:
    """The proxy dies alone."""
    host = fleet.mesh.hosts[fault.target[0]]
    host.kill_proxy()
    return lambda: _start(fleet, host)


def _start(fleet: Fleet, host: Host) -> None:
    if not host.isolated:  # Else another fault has the host down; that one starts it.
        fleet.start([host.name])


def _freeze(fleet: Fleet, fault: Fault) -> Undo:
    """Both processes stand still, as on a stalled host; their sockets fill."""
    return _stop(fleet.mesh.hosts[fault.target[0]], agent=True)


def _freeze_proxy(fleet: Fleet, fault: Fault) -> Undo:
    """The proxy stands still."""
    return _stop(fleet.mesh.hosts[fault.target[0]], agent=False)


def _stop(host: Host, agent: bool) -> Undo:
    stopped = [part for part in (host.proxy, host.agent if agent else None) if part is not None]
    for part in stopped:
        part.process.freeze()

    def undo() -> None:
        for part in stopped:
            part.process.thaw()

    return undo


def _suspend(fleet: Fleet, fault: Fault) -> Undo:
    """The host sleeps: nothing runs, nothing arrives, CLOCK_BOOTTIME goes on."""
    host = fleet.mesh.hosts[fault.target[0]]
    stop = _stop(host, agent=True)
    host.isolate()

    def undo() -> None:
        host.rejoin()
        stop()
        _start(fleet, host)

    return undo


# ------------------------------------------------------------------------------------ the clocks
def _clock_step(fleet: Fleet, fault: Fault) -> Undo:
    """Wall time jumps by `number` microseconds, and back."""
    host = fleet.mesh.hosts[fault.target[0]]
    host.clock.wall_us += fault.number
    host.clock_stepped()

    def undo() -> None:
        host.clock.wall_us -= fault.number
        host.clock_stepped()

    return undo


def _clock_drift(fleet: Fleet, fault: Fault) -> Undo:
    """CLOCK_BOOTTIME is `number` parts per million fast."""
    host = fleet.mesh.hosts[fault.target[0]]
    for process in host.processes():
        process.wake()
    host.clock.drift(fleet.world.now, fault.number)
    for process in host.processes():
        process.arm()
    return lambda: host.clock.drift(fleet.world.now, 0)


# --------------------------------------------------------------------------------------- wires
def _both(fleet: Fleet, fault: Fault) -> list[Wire]:
    a, b = fault.target
    return [fleet.mesh.network.wire(a, b), fleet.mesh.network.wire(b, a)]


def _cut(fleet: Fleet, fault: Fault) -> Undo:
    """A link passes nothing in either direction."""
    return _cut_wires(_both(fleet, fault))


def _one_way(fleet: Fleet, fault: Fault) -> Undo:
    """A link passes nothing from the first to the second."""
    return _cut_wires([fleet.mesh.network.wire(*fault.target)])


def _partition(fleet: Fleet, fault: Fault) -> Undo:
    """Nothing passes between the named hosts and all others."""
    inside = set(fault.target)
    return _cut_wires(
        [
            fleet.mesh.network.wire(source, target)
            for a, b in fleet.mesh.network.edges()
            if (a in inside) != (b in inside)
            for source, target in ((a, b), (b, a))
        ]
    )


def _cut_wires(wires: list[Wire]) -> Undo:
    for wire in wires:
        wire.cut()

    def undo() -> None:
        for wire in wires:
            wire.mend()

    return undo


def _shaped(field: str, one_way: bool = False) -> Kind:
    """A fault that sets one field of a link's shape to `number`."""

    def begin(fleet: Fleet, fault: Fault) -> Undo:
        wires = _both(fleet, fault)[: 1 if one_way else 2]
        before = [wire.reshape(field, fault.number) for wire in wires]

        def undo() -> None:
            for wire, value in zip(wires, before, strict=True):
                wire.reshape(field, value)

        return undo

    return begin


# -------------------------------------------------------------------------------------- attackers
def _replay_hellos(fleet: Fleet, fault: Fault) -> Undo:
    """Somebody on the wire repeats the last hellos of both ends, to both ends, without pause."""
    kept: deque[Datagram] = deque(maxlen=1 + fault.number % 40)
    wires = _both(fleet, fault)
    for wire in wires:
        wire.tap(kept.append)
    going = [True]

    def again(_: object) -> None:
        if not going[0]:
            return
        if kept:
            datagram = kept[0]
            kept.rotate(-1)
            for name in fault.target:
                host = fleet.mesh.hosts[name]
                if host.proxy is not None and not host.isolated:
                    host.proxy.receive(datagram)
        fleet.world.after(fault.number, again)

    fleet.world.after(fault.number, again)

    def undo() -> None:
        going[0] = False
        for wire in wires:
            wire.untap(kept.append)

    return undo


def _jam(fleet: Fleet, fault: Fault) -> Undo:
    """The link is cut, and its old hellos are repeated so that it should seem alive."""
    listen = _replay_hellos(fleet, fault)
    undos: list[Undo] = [listen]
    wires = _both(fleet, fault)

    def cut(_: object) -> None:
        undos.append(_cut_wires(wires))

    fleet.world.after(min(SECOND, fault.duration // 2), cut, None)

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _forge_hellos(fleet: Fleet, fault: Fault) -> Undo:
    """Somebody without the key sends both ends changed copies of each hello: down, sequence up."""
    taps: list[tuple[Wire, Callable[[Datagram], None]]] = []
    a, b = fault.target
    for source, target in ((a, b), (b, a)):
        wire = fleet.mesh.network.wire(source, target)

        def tap(datagram: Datagram, there: str = target) -> None:
            hello = msgspec.structs.replace(
                datagram.hello, state=1, sequence=datagram.hello.sequence + fault.number
            )
            proxy = fleet.mesh.hosts[there].proxy
            if proxy is not None:
                proxy.receive(Datagram(b"guessed", hello))

        wire.tap(tap)
        taps.append((wire, tap))

    def undo() -> None:
        for wire, tap in taps:
            wire.untap(tap)

    return undo


KINDS: Final[dict[str, Kind]] = {
    "crash": _crash,
    "kill-agent": _kill_agent,
    "kill-proxy": _kill_proxy,
    "freeze": _freeze,
    "freeze-proxy": _freeze_proxy,
    "suspend": _suspend,
    "clock-step": _clock_step,
    "clock-drift": _clock_drift,
    "cut": _cut,
    "one-way": _one_way,
    "partition": _partition,
    "loss": _shaped("loss_ppm"),
    "loss-one-way": _shaped("loss_ppm", one_way=True),
    "latency": _shaped("latency_us"),
    "jitter": _shaped("jitter_us"),
    "reorder": _shaped("reorder_ppm"),
    "corrupt": _shaped("corrupt_ppm"),
    "slow": _shaped("bytes_per_s"),
    "replay-hellos": _replay_hellos,
    "jam": _jam,
    "forge-hellos": _forge_hellos,
} | attackers.KINDS


class Faults:
    """Begins and ends the faults of a plan.

    Attributes:
        begun: how often each kind has begun, for the report of coverage.
        quiet_from: virtual time at which the last fault has ended.
    """

    def __init__(self, fleet: Fleet, plan: list[Fault]) -> None:
        self.begun: dict[str, int] = {}
        self.quiet_from = max(
            (fault.at + (0 if fault.forever else fault.duration) for fault in plan), default=0
        )
        self._fleet = fleet
        # One fault at a time of a kind per target: they undo to what was before.
        for fault in plan:
            fleet.world.at(fault.at, self._begin, fault)

    def _begin(self, fault: Fault) -> None:
        self.begun[fault.kind] = self.begun.get(fault.kind, 0) + 1
        undo = KINDS[fault.kind](self._fleet, fault)
        if not fault.forever:
            self._fleet.world.after(fault.duration, lambda _: undo())


# -------------------------------------------------------------------------------------- the dice
_NUMBERS: Final[dict[str, tuple[int, int]]] = {
    "clock-step": (-20 * SECOND, 20 * SECOND),
    "clock-drift": (-200, 200),
    "loss": (20_000, 400_000),
    "loss-one-way": (20_000, 600_000),
    "latency": (1 * MS, 300 * MS),
    "jitter": (1 * MS, 100 * MS),
    "reorder": (10_000, 500_000),
    "corrupt": (10_000, 500_000),
    "slow": (500, 20_000),
    "replay-hellos": (20 * MS, 500 * MS),
    "jam": (20 * MS, 200 * MS),
    "forge-hellos": (0, 100),
    "corrupt-relay": (100 * MS, 3 * SECOND),
    "forge-records": (50 * MS, 2 * SECOND),
    "replay-records": (50 * MS, 2 * SECOND),
    "thief": (100 * MS, SECOND),
}
_DURATIONS: Final[dict[str, tuple[int, int]]] = {
    "freeze": (50 * MS, 10 * SECOND),
    "freeze-proxy": (50 * MS, 10 * SECOND),
    "suspend": (100 * MS, 30 * SECOND),
}
_OF_HOSTS: Final = frozenset(
    "crash kill-agent kill-proxy freeze freeze-proxy suspend clock-step clock-drift corrupt-relay"
    " forge-records replay-records liar rotate revoke".split()
)


_MAY_LAST: Final = frozenset(
    "crash kill-agent kill-proxy cut one-way partition jam replay-hellos forge-records"
    " replay-records liar revoke".split()
)


def draw(random: Random, mesh: Mesh, count: int, start: int, end: int) -> list[Fault]:
    """A plan of `count` faults that begin and end between `start` and `end`.

    No two faults of one kind touch the same wire or host at a time.  Some of those that cut or
    kill never end: the mesh has to see that too.
    """
    plan: list[Fault] = []
    busy: dict[tuple[str, str], int] = {}
    hosts, edges = sorted(mesh.hosts), mesh.network.edges()
    for at in sorted(start + random.randrange(max(1, end - start)) for _ in range(count)):
        kind = random.choice(sorted(KINDS))
        low, high = _DURATIONS.get(kind, (200 * MS, 20 * SECOND))
        duration = min(random.randint(low, high), end - at)
        if kind in _MAY_LAST and random.random() < 0.3:
            duration = FOREVER
        number = random.randint(*_NUMBERS[kind]) if kind in _NUMBERS else 0
        target: tuple[str, ...]
        if kind == "partition":
            size = random.randint(1, max(1, len(hosts) // 2))
            target = tuple(sorted(random.sample(hosts, size)))
        elif kind in _OF_HOSTS:
            target = (random.choice(hosts),)
        else:
            target = random.choice(edges)
            if random.random() < 0.5:
                target = target[::-1]
        touched = (_group(kind), "-".join(sorted(target)))
        if busy.get(touched, 0) <= at:
            busy[touched] = at + duration
            plan.append(Fault(kind, at, duration, target, number))
    return plan


def _group(kind: str) -> str:
    """Faults of one group would undo each other; cuts are counted and do not."""
    if kind in ("crash", "kill-agent", "kill-proxy", "freeze", "freeze-proxy", "suspend"):
        return "process"
    return kind.removesuffix("-one-way")


def shape(random: Random) -> Shape:
    """A wire of the everyday kind: 0.1 to 40 ms, often some jitter, sometimes a little loss."""
    latency = int(100 * 400 ** random.random())
    return Shape(
        latency_us=latency,
        jitter_us=random.choice((0, latency // 10, latency // 2)),
        loss_ppm=random.choice((0, 0, 0, 1_000)),
    )
