"""A small mesh with a member that lies, under a load that has to lose nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.fakes.flipper import Flipper
from tests.fakes.hostile import Background, Member
from tests.fakes.hostile_circuit import Door
from tests.real.lab import Lab, Service, Shape, scratch, spiffe
from x0tta6bl4.app import settings as cfg
from x0tta6bl4.app.mesh import Mesh, Plan, wait_for
from x0tta6bl4.app.story import Watcher
from x0tta6bl4.app.wallet import write_private
from x0tta6bl4.wire.address import split_address
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import Unavailable
from x0tta6bl4.wire.records import Adjacency, NodeBody

EVIL = "mal"
NEIGHBOURS = ("n1", "n2")
"""n1 dials the hostile member, the hostile member dials n2."""
EVIL_IDS = ("shop", "wolf")
"""Workloads of its own beside the service `den`: a replica of n1's, and one that nobody admits."""


RELAYS = ("n2", "n4")
"""n1 and n3 reach each other through either; what neighbours dial as their data port is ours."""


def shape() -> Shape:
    """A diamond n1, n2 and n4, n3; the member that is going to lie hangs on n1 and n2."""
    return Shape(
        nodes=("n1", "n2", "n4", "n3", EVIL),
        links=(
            ("n1", "n2"),
            ("n2", "n3"),
            ("n1", "n4"),
            ("n4", "n3"),
            ("n1", EVIL),
            (EVIL, "n2"),
        ),
        services=(
            Service("web", ("n3",), ("shop",)),
            Service("den", (EVIL,), ("shop",)),
            Service("stall", ("n4",), ("shop",)),
        ),
        callers=(("n1", "shop"),),
        socks=("n1",),
    )


class Scene:
    """What the attacks of a module share."""

    def __init__(
        self, lab: Lab, watcher: Watcher, member: Member, door: Door, flippers: dict[str, Flipper]
    ) -> None:
        self.lab = lab
        self.flippers = flippers
        self.ended = False
        self.watcher = watcher
        self.member = member
        self.door = door

    # -------------------------------------------------------------- what the victims say
    def now_us(self) -> int:
        """From here on, for `says`."""
        return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1000

    def says(self, node: str, words: str, since_us: int, seconds: float = 5.0) -> str:
        """The event of a node with these words in it, newer than an instant."""
        found: list[str] = []

        def heard() -> bool:
            events = [e for e in self.lab.status(node).events if e.unix_us >= since_us]
            found[:] = [e.text for e in events if words in e.text] or found[:0]
            said[:] = [e.text for e in events]
            return bool(found)

        said: list[str] = []
        try:
            wait_for(heard, f"{node} to say {words!r}", seconds)
        except Unavailable as error:
            raise Unavailable(error.id, f"{error.what}; it said {said}") from None
        return found[-1]

    def counter(self, node: str, key: str) -> int:
        """One sum of a node; the proxy tells its own once a second."""
        return self.lab.status(node).counters.get(key, 0)

    def counts(self, node: str, key: str, before: int, seconds: float = 5.0) -> str:
        """Wait until a sum has grown; the part of its name that is the reason."""
        try:
            wait_for(lambda: self.counter(node, key) > before, f"{key} at {node}", seconds)
        except Unavailable as error:
            all_of_them = {
                k: v for k, v in self.lab.status(node).counters.items() if "handshake" in k
            }
            raise Unavailable(error.id, f"{error.what}; {all_of_them}") from None
        return key.rpartition("|")[2]

    def generation(self, node: str, writer: str) -> int:
        """Generation of a member's record, as a node's map has it; 0: none."""
        return next((m.generation for m in self.lab.status(node).members if m.node == writer), 0)

    def replicas(self, node: str, id: str) -> tuple[str, ...]:
        """Where a node believes that an ID can be reached."""
        return next((s.nodes for s in self.lab.status(node).services if s.id == id), ())

    # -------------------------------------------------------------- the honest part
    def honest(self, *links: Adjacency, name: str = "") -> int:
        """Publish a true record of the hostile member at both neighbours; its generation."""
        body = NodeBody(links or self.links(), ())
        data = self.member.record(body, name=name)
        for node in NEIGHBOURS:
            self.member.flood(node, data)
        return self.member.generation

    def links(self) -> tuple[Adjacency, ...]:
        """Its links as they are."""
        return tuple(Adjacency(node, 8, True) for node in NEIGHBOURS)

    def offer_den(self) -> None:
        """Publish where the service of the hostile member is, and wait until n1 knows."""
        den = self.member.endpoint(spiffe("den"), self.member.workloads[spiffe("den")])
        self.honest()
        self.member.flood("n1", self.member.record(NodeBody((), (den,)), name="e0"))
        wait_for(lambda: EVIL in self.replicas("n1", spiffe("den")), "the endpoint of den", 5)

    def taken(self, generation: int, *nodes: str, seconds: float = 5.0) -> bool:
        """Wait until nodes have a record of the hostile member that is as new as this."""
        for node in nodes or ("n1",):
            wait_for(
                lambda node=node: self.generation(node, EVIL) >= generation,  # type: ignore[misc]
                f"record {generation} of {EVIL} at {node}",
                seconds,
            )
        return True


class BentMesh(Mesh):
    """A mesh whose relays are dialled at our ports.

    Args:
        root: see `Mesh`.
        plan: see `Mesh`.
        flippers: what stands in front of a node's data port.
    """

    def __init__(self, root: Path, plan: Plan, flippers: dict[str, Flipper]) -> None:
        super().__init__(root, plan)
        self._flippers = flippers

    def lay_out(self) -> None:
        """See `Mesh`."""
        super().lay_out()
        for node, flipper in self._flippers.items():
            found = self.settings(node)
            flipper.target = split_address(found.data.listen)
            data = msgspec.structs.replace(found.data, advertise=(flipper.address,))
            bent = msgspec.structs.replace(found, data=data)
            write_private(self.config(node), cfg.dump(bent).encode())


@contextlib.contextmanager
def scene(name: str) -> Iterator[Scene]:
    """Start everything, and end it."""
    with contextlib.ExitStack() as stack:
        background = Background()
        stack.callback(background.stop)
        root = stack.enter_context(scratch(name))
        flippers = {node: Flipper() for node in RELAYS}
        for flipper in flippers.values():
            stack.callback(flipper.close)
        lab = Lab(root, shape())
        lab.mesh = BentMesh(lab.mesh.root, lab.mesh.plan, flippers)
        stack.enter_context(lab)
        lab.start()
        lab.operator.create_entries(
            [Entry(id=spiffe(name), node=EVIL, selectors=("unix:uid:4242",)) for name in EVIL_IDS]
        )
        watcher = lab.load("n1", "web", "--rate", "60", "--fresh", "10", "--kept", "4")
        lab.mesh.kill(EVIL)
        member = Member(lab.mesh, EVIL, background)
        stack.callback(member.stop)
        door = Door(member)
        stack.callback(door.close)
        member.start()
        member.fetch()
        made = Scene(lab, watcher, member, door, flippers)
        made.taken(made.honest(), *NEIGHBOURS)
        yield made


class _Shared:
    """One scene for all modules of a run: starting it takes longer than most attacks."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._made: Scene | None = None

    def take(self) -> Scene:
        if self._made is None:
            self._made = self._stack.enter_context(scene("hostile"))
        return self._made

    def close(self) -> None:
        self._made = None
        self._stack.close()


_SHARED = _Shared()


@pytest.fixture(scope="module")
def evil(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The scene; it ends with the last module that wants it."""
    yield _SHARED.take()
    wanting = [i for i in request.session.items if "evil" in getattr(i, "fixturenames", ())]
    if wanting[-1].path == request.path:
        _SHARED.close()


@pytest.fixture
def load(evil: Scene) -> Iterator[None]:
    """For every attack: the other traffic goes on meanwhile, and loses nothing."""
    before = len(evil.watcher.samples)
    yield
    if not evil.ended:
        wait_for(lambda: len(evil.watcher.samples) > before, "the load to go on", 5)
    assert not evil.watcher.failed()


def end_of(made: Scene, requests_min: int = 100) -> int:
    """Look at what the load got."""
    assert not made.watcher.failed()
    assert len(made.watcher.samples) >= requests_min
    return len(made.watcher.samples)
