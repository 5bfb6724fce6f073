"""What attestation asks of a container engine: the fake and podman pass the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.test_attest_containers import ID, SCOPE, World
from tests.fakes.container_api import FakeContainers
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.containers import Containers, place

CONFIGURED = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Running:
    """An engine that runs one container, with the label `app=web` and the variable `ROLE=front`."""

    def __init__(self, socket: str, id: str, pid: int, proc: str = "/proc") -> None:
        self.socket, self.id, self.pid, self.proc = socket, id, pid, proc


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="x0cc"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def fake(directory: Path) -> Iterator[Running]:
    world = World(directory / "proc")
    world.put(10, SCOPE)
    engine = FakeContainers(directory / "sock")
    engine.add(ID, 10, Labels={"app": "web"}, Env=["PATH=/bin", "ROLE=front"])
    yield Running(engine.path, ID, 10, str(world.root))
    engine.close()


@pytest.fixture
def podman(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    for program in ("podman", "runc", "busybox"):
        if not shutil.which(program):
            pytest.skip(f"needs {program} (packages podman, runc, busybox-static)")
    if os.getuid() != 0:
        pytest.skip("needs root: to run containers")
    (directory / "conf").write_text(CONFIGURED)
    monkeypatch.setenv("CONTAINERS_CONF", str(directory / "conf"))
    with tarfile.open(directory / "image.tar", "w") as image:
        image.add(shutil.which("busybox") or "", "bin/sleep")
    base = ["podman", "--root", f"{directory}/r", "--runroot", f"{directory}/rr"]
    base += ["--storage-driver", "vfs"]

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*base, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    call("import", f"{directory}/image.tar", "x0-test:1")
    socket = directory / "sock"
    service = subprocess.Popen(
        [*base, "system", "service", "--time", "0", f"unix://{socket}"], stderr=subprocess.DEVNULL
    )
    try:
        options = ("--network", "none", "--label", "app=web", "--env", "ROLE=front")
        id = call("run", "--detach", *options, "x0-test:1", "/bin/sleep", "600")
        pid = int(call("inspect", "--format", "{{.State.Pid}}", id))
        wait_for(socket.exists, "podman's socket")
        yield Running(str(socket), id, pid)
    finally:
        service.terminate()
        service.wait(20)
        call("rm", "--force", "--all", "--time", "0")


@pytest.mark.parametrize("which", ["fake", pytest.param("podman", marks=pytest.mark.night)])
def test_an_engine_says_what_it_runs_and_nothing_of_the_rest(
    which: str, request: pytest.FixtureRequest
) -> None:
    engine: Running = request.getfixturevalue(which)
    containers = Containers([engine.socket], engine.proc)
    where = place(Path(f"{engine.proc}/{engine.pid}/cgroup").read_text())
    assert not isinstance(where, Denied)
    assert where.id == engine.id
    facts = containers.look(engine.pid, where)
    assert isinstance(facts, frozenset), facts
    assert {f"docker:container:{engine.id}", "docker:label:app=web"} < facts
    assert "docker:env:ROLE=front" in facts
    (image,) = [fact for fact in facts if fact.startswith("docker:image-id:")]
    assert len(image) == len("docker:image-id:sha256:") + 64
    assert containers.known(engine.pid, where) == facts
    other = place(f"0::/docker/{'9' * 64}\n")
    assert not isinstance(other, Denied)
    unknown = Denied("container engine knows no such container")
    assert containers.look(engine.pid, other) == unknown
