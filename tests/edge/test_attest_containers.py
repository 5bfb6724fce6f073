"""Containers: what the engine says counts only where the kernel says the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.container_api import FakeContainers
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.containers import ANSWER_BYTES_MAX, Containers, Place, place
from x0tta6bl4.edge.attest.errands import PENDING, Errands
from x0tta6bl4.edge.attest.facts import Facts, Wants, mounted
from x0tta6bl4.edge.attest.proc import started_ticks

ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
SCOPE = f"/system.slice/docker-{ID}.scope"
DOCKER = Wants(docker=True)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="x0ce"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def engine(directory: Path) -> Iterator[FakeContainers]:
    made = FakeContainers(directory / "sock")
    yield made
    made.close()


class World:
    """A /proc with processes as a test wants them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, pid: int, cgroup: str, space: str = "a", started: int = 5) -> None:
        base = self.root / str(pid)
        (base / "ns").mkdir(parents=True, exist_ok=True)
        (self.root / space).touch()
        (base / "ns" / "pid").unlink(missing_ok=True)
        (base / "ns" / "pid").symlink_to(self.root / space)
        (base / "cgroup").write_text(f"0::{cgroup}\n")
        fields = ["S", *["0"] * 18, str(started), *["0"] * 30]
        (base / "stat").write_text(f"{pid} (x) {' '.join(fields)}\n")


@pytest.fixture
def world(directory: Path) -> World:
    made = World(directory / "proc")
    made.put(10, SCOPE)
    made.put(20, f"{SCOPE}/inner")
    return made


def look(
    engine: FakeContainers, world: World, pid: int = 20, deadline_s: float = 2.0
) -> frozenset[str] | Denied:
    facts = Facts(
        Errands(wait_s=10),
        containers=Containers([engine.path], str(world.root), deadline_s),
        mount="",
        proc=str(world.root),
    )
    return facts.of(pid, "", DOCKER)


# ---------------------------------------------------------------------- which container
@pytest.mark.parametrize(
    ("groups", "id"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", ID),
        (f"0::/docker/{ID}\n", ID),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", ID),
        (f"0::/kubepods.slice/a.slice/cri-containerd-{ID}.scope\n", ID),
        (f"4:memory:/docker/{ID}\n1:cpu:/docker/{ID}\n0::/\n", ID),
        (f"0::/docker/{ID}/docker/{OTHER}\n", ID),
        ("0::/user.slice\n", ""),
        (f"0::/x/{ID[:63]}\n0::/y/{ID}0\n0::/z{ID}\n", ""),
        (f"1:cpu:/docker/{ID}\n0::/docker/{OTHER}\n", ""),
        (f"0::/../docker/{ID}\n", ""),
    ],
)
def test_the_outermost_container_counts(groups: str, id: str) -> None:
    found = place(groups)
    if id:
        assert isinstance(found, Place)
        assert found.id == id
    else:
        assert isinstance(found, Denied)


# ---------------------------------------------------------------------- what the engine says
def test_SP_097_a_container_is_known_by_kernel_and_engine(
    engine: FakeContainers, world: World
) -> None:
    engine.add(ID, 10, Labels={"app": "web", "x": "a=b"}, Env=["ROLE=front"])
    expected = {
        f"docker:container:{ID}",
        "docker:image-id:sha256:" + "ab" * 32,
        "docker:image-name:web:1.2",
        "docker:label:app=web",
        "docker:label:x=a=b",
        "docker:env:ROLE=front",
    }
    assert look(engine, world) == frozenset(expected)


def test_the_engine_is_asked_once_per_start_of_a_container(
    engine: FakeContainers, world: World
) -> None:
    engine.add(ID, 10, Labels={"run": "1"})
    containers = Containers([engine.path], str(world.root))
    where = place(f"0::{SCOPE}\n")
    assert isinstance(where, Place)
    assert containers.known(20, where) is None
    first = containers.look(20, where)
    assert containers.known(20, where) == first
    assert engine.asked == 1
    world.put(10, SCOPE, started=99)  # It began anew, with the same number even.
    assert containers.known(20, where) is None
    engine.add(ID, 10, Labels={"run": "2"})
    again = containers.look(20, where)
    assert isinstance(again, frozenset)
    assert "docker:label:run=2" in again
    assert "docker:label:run=1" not in again


# ---------------------------------------------------------------------- who pretends
def _forged(world: World) -> None:
    world.put(20, f"/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope")


def _beside(world: World) -> None:
    world.put(20, f"/system.slice/docker-{ID}.scope.d/docker-{ID}.scope")


def _conmon(world: World) -> None:
    world.put(20, f"/machine.slice/libpod-conmon-{ID}.scope")


def _namespace(world: World) -> None:
    world.put(20, SCOPE, space="b")


def _no_container(world: World) -> None:
    world.put(20, "/system.slice/web.service")


def _ended(world: World) -> None:
    shutil.rmtree(world.root / "10")


@pytest.mark.parametrize(
    ("spoof", "reason"),
    [
        (_forged, "control group is not the container's"),
        (_beside, "control group is not the container's"),
        (_conmon, "control group is not the container's"),
        (_namespace, "caller is in another pid namespace than the container"),
        (_no_container, "caller is in no container"),
        (_ended, "container has ended"),
    ],
)
def test_SP_097_whoever_only_looks_like_a_container_is_refused(
    engine: FakeContainers, world: World, spoof: Callable[[World], None], reason: str
) -> None:
    engine.add(ID, 10)
    assert isinstance(look(engine, world), frozenset)
    spoof(world)
    assert look(engine, world) == Denied(reason)


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("silent", "container engine is too slow"),
        ("drip", "container engine is too slow"),
        ("garbage", "container engine talks nonsense"),
        ("deep", "container engine talks nonsense"),
        ("wrong", "container engine talks nonsense"),
        ("chunked", "container engine talks nonsense"),
        ("huge", "container engine says too much"),
        ("cut", "container engine was cut off"),
        ("refuses", "container engine refuses"),
    ],
)
def test_an_engine_that_misbehaves_costs_little_and_proves_nothing(
    engine: FakeContainers, world: World, manner: str, reason: str
) -> None:
    engine.add(ID, 10)
    engine.manner = manner
    began = time.monotonic()
    assert look(engine, world, deadline_s=0.2) == Denied(reason)
    assert time.monotonic() - began < 2
    assert ANSWER_BYTES_MAX <= 1 << 20


def test_an_engine_that_knows_another_or_a_dead_container_is_not_believed(
    engine: FakeContainers, world: World
) -> None:
    nothing = Denied("container engine knows no such container")
    assert look(engine, world) == nothing
    engine.add(ID, 10)
    engine.containers[ID]["Id"] = OTHER
    assert look(engine, world) == nothing
    engine.add(ID, 10)
    engine.containers[ID]["State"]["Running"] = False
    assert look(engine, world) == nothing
    engine.add(ID, 0)
    assert look(engine, world) == nothing


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to be several users")
def test_an_engine_of_another_user_is_not_believed(directory: Path, world: World) -> None:
    path = str(directory / "theirs")
    directory.chmod(0o777)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('up', flush=True); sys.stdin.readline()\n"
    )
    python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    theirs = subprocess.Popen(
        [python, "-c", code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=65_534,
        cwd="/",
    )
    with theirs:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == b"up\n"
        containers = Containers([path], str(world.root))
        where = place(f"0::{SCOPE}\n")
        assert isinstance(where, Place)
        assert containers.look(20, where) == Denied("container engine is another user's")
        theirs.kill()


def test_engines_are_asked_in_turn(engine: FakeContainers, world: World, directory: Path) -> None:
    engine.add(ID, 10)
    where = place(f"0::{SCOPE}\n")
    assert isinstance(where, Place)
    nowhere = str(directory / "nowhere")
    assert Containers([nowhere], str(world.root)).look(20, where) == Denied(
        "no container engine is here"
    )
    both = Containers([nowhere, engine.path], str(world.root))
    assert isinstance(both.look(20, where), frozenset)


def test_a_slow_engine_stops_nobody(engine: FakeContainers, world: World) -> None:
    """Who asks goes on, and finds the answer when it asks again."""
    engine.add(ID, 10)
    engine.manner = "silent"
    errands = Errands(wait_s=0.01)
    containers = Containers([engine.path], str(world.root), deadline_s=0.3)
    facts = Facts(errands, containers=containers, mount="", proc=str(world.root))
    began = time.monotonic()
    assert facts.of(20, "", DOCKER) == PENDING
    assert time.monotonic() - began < 0.2
    while errands.running():
        time.sleep(0.005)
    assert facts.of(20, "", DOCKER) == Denied("container engine is too slow")


# ---------------------------------------------------------------------- real groups and processes
@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to make control groups")
def test_real_groups_and_namespaces_are_told_apart(engine: FakeContainers) -> None:
    mount = mounted()
    group = Path(mount) / f"docker-{ID}.scope"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a cgroup2 mount in which groups can be made")
    if not shutil.which("unshare"):
        pytest.skip("needs unshare (package util-linux)")
    code = (
        f"import sys\nopen({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        "print('up', flush=True); sys.stdin.readline()\n"
    )
    run = [sys.executable, "-c", code]
    facts = Facts(Errands(wait_s=10), containers=Containers([engine.path]))
    children = []
    try:
        for before in ([], ["unshare", "--pid", "--fork"]):
            child = subprocess.Popen([*before, *run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            children.append(child)
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
        pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
        first = children[0].pid
        (inner,) = [pid for pid in pids if pid != first]
        engine.add(ID, first, Labels={"app": "web"})
        found = facts.of(first, "", DOCKER)
        assert isinstance(found, frozenset)
        assert "docker:label:app=web" in found
        assert facts.of(inner, "", DOCKER) == Denied(
            "caller is in another pid namespace than the container"
        )
        assert facts.of(os.getpid(), "", DOCKER) == Denied("caller is in no container")
        assert started_ticks(first) > 0
    finally:
        for child in children:
            child.communicate(b"\n", 10)
        end = time.monotonic() + 5
        while group.exists() and time.monotonic() < end:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.01)
