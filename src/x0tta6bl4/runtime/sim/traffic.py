"""Applications of a simulated mesh: they open streams, send known bytes, and never forget."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from x0tta6bl4.core.machine import SECOND
from x0tta6bl4.runtime.sim.fleet import Fleet, workload
from x0tta6bl4.runtime.sim.laws import HOPS_MAX, connected, speaks
from x0tta6bl4.runtime.sim.sessions import App, Talk
from x0tta6bl4.runtime.sim.world import LawBroken, shown

PROOF: Final = 15 * SECOND
"""A stream between connected workloads is done after this: back-off of dials, and the bytes."""
_SIZES: Final = (0, 1, 1_000, 1_000, 30_000, 200_000)
_ALPHABET: Final = 1 << 20


class Call:
    """One stream that an application has opened.

    Attributes:
        app: its client's end.
        client, server: proxies at the time of opening.
        opened_at: virtual time.
    """

    __slots__ = ("app", "client", "name", "opened_at", "server", "source", "target")

    def __init__(self, fleet: Fleet, name: str, source: str, target: str, app: App) -> None:
        self.name = name
        self.source = source
        self.target = target
        self.app = app
        self.client: Any = fleet.mesh.hosts[source].proxy
        self.server: Any = fleet.mesh.hosts[target].proxy
        self.opened_at = fleet.world.now


class Traffic:
    """Opens streams between random workloads, and judges them in the end.

    Args:
        fleet: whose workloads talk.
        every: mean virtual time between two streams.

    Attributes:
        calls: streams opened.
        refused: reasons of those that were not.
    """

    def __init__(self, fleet: Fleet, every: int) -> None:
        self.fleet = fleet
        self.calls: list[Call] = []
        self.refused: dict[str, int] = {}
        self._every = every
        self._random = fleet.world.random("traffic")
        self._bytes = self._random.randbytes(_ALPHABET)
        self._count = 0
        self._going = False
        hosts = sorted(fleet.mesh.hosts)
        # Few pairs and many streams: idle sessions ping, and teach nothing.
        self._pairs = [
            (self._random.choice(hosts), self._random.choice(hosts))
            for _ in range(self._random.randint(2, 8))
        ]

    def start(self) -> None:
        """Open streams from now on."""
        self._going = True
        self.fleet.world.after(self._every, self._next)

    def stop(self) -> None:
        """Open no more."""
        self._going = False

    def _next(self, _: object) -> None:
        if not self._going:
            return
        random = self._random
        source, target = random.choice(self._pairs)
        pace = random.choice((0, 0, 0, 20_000))
        self.open(source, target, random.choice(_SIZES), random.choice(_SIZES), pace)
        self.fleet.world.after(int(self._every * 2 * random.random()), self._next)

    def open(self, source: str, target: str, out: int, back: int, pace: int = 0) -> Call | None:
        """Open one stream.

        Args:
            source: node of the calling workload.
            target: node of the called one.
            out: bytes that the caller sends.
            back: bytes that it is to get.
            pace: bytes that the server's application reads each 10 ms; 0: at once.
        Returns:
            The call, or None if it was refused.
        """
        proxy = self.fleet.mesh.hosts[source].proxy
        if proxy is None or proxy.process.frozen:
            return None
        self._count += 1
        name = f"talk-{self._count}"
        talk = Talk(self._script(out), self._script(back), pace)
        self.fleet.mesh.talks[name] = talk
        app = proxy.sessions.open(workload(source), workload(target), target, name)
        if isinstance(app, str):
            self.refused[app] = self.refused.get(app, 0) + 1
            return None
        call = Call(self.fleet, name, source, target, app)
        self.calls.append(call)
        return call

    def _script(self, size: int) -> bytes:
        at = self._random.randrange(_ALPHABET)
        return (self._bytes[at:] + self._bytes * (1 + size // _ALPHABET))[:size]

    def prove(self) -> list[Call]:
        """Open a stream between each of the pairs that are connected beyond doubt.

        To be called when paths have settled; all have to be done PROOF later.
        """
        hops = connected(self.fleet.mesh)
        revoked = self.fleet.authority.revoked
        calls: list[Call] = []
        for source, target in dict.fromkeys(self._pairs):
            banned = workload(source) in revoked or workload(target) in revoked
            alive = all(self._serves(name) for name in (source, target))
            near = hops[source].get(target, HOPS_MAX + 1) <= HOPS_MAX
            if near and alive and not banned:
                call = self.open(source, target, 1_000, 1_000)
                if call is None:
                    raise LawBroken(
                        f"convergence: a stream {source} to {target} is refused at"
                        f" {shown(self.fleet.world.now)}: {self.refused}"
                    )
                calls.append(call)
        return calls

    def _serves(self, name: str) -> bool:
        """Whether a node runs and its workload has an SVID; after a crash only the authority,
        which may be out of reach, gives it one.
        """
        proxy = self.fleet.mesh.hosts[name].proxy
        return speaks(self.fleet.mesh, name) and proxy.machine.svid(workload(name)) is not None

    def proved(self, calls: list[Call]) -> None:
        """Those streams are done."""
        for call in calls:
            if call.app.end != "done":
                raise LawBroken(
                    f"convergence: a stream {call.source} to {call.target} opened at"
                    f" {shown(call.opened_at)} is {call.app.end or 'open'} {call.app.reason}"
                )

    def waiting(self) -> int:
        """Streams that have not ended, at clients that still live."""
        hosts = self.fleet.mesh.hosts
        return sum(
            not call.app.end
            and hosts[call.source].proxy is call.client
            and not call.client.process.frozen
            for call in self.calls
        )

    def judge(self) -> None:
        """Every stream has ended; those that ended well are whole, the others had a reason."""
        hosts = self.fleet.mesh.hosts
        for call in self.calls:
            app = call.app
            ends = hosts[call.source].proxy is call.client, hosts[call.target].proxy is call.server
            if not app.end:
                if not ends[0] or call.client.process.frozen:
                    continue
                raise LawBroken(
                    f"progress: stream {call.name} {call.source} to {call.target}, opened at"
                    f" {shown(call.opened_at)}, has neither ended nor been reset at"
                    f" {shown(self.fleet.world.now)}"
                )
            if not all(ends):
                continue  # What a proxy that died had not delivered is lost, as with TCP.
            other = self.fleet.mesh.served.get(call.name)
            if app.end == "done" and (other is None or other.got != len(app.script)):
                raise LawBroken(
                    f"exactly the bytes sent: stream {call.name} is done at {call.source}, but"
                    f" {0 if other is None else other.got} of {len(app.script)} bytes came"
                )

    def summary(self) -> dict[str, int]:
        """How streams ended: `done`, or the reason of their reset."""
        found: dict[str, int] = {}
        for call in self.calls:
            end = call.app.end if call.app.end != "reset" else f"reset {call.app.reason}"
            found[end or "open"] = found.get(end or "open", 0) + 1
        return found


def mean_every(random: Random) -> int:
    """Mean time between streams: 0.1 to 3 s."""
    return int(SECOND * 0.1 * 30 ** random.random())
