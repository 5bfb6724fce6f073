"""The caller of a Unix socket held by a pidfd: real processes, and what they pretend."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from x0tta6bl4.core.identity.selectors import Attributes
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.peer import Peer, PeerAttestor
from x0tta6bl4.edge.attest.proc import ended, started_ticks
from x0tta6bl4.edge.attest.process import Needs, Processes

UID, PROGRAM, CGROUP = Needs(), Needs(path=True), Needs(cgroup=True)
HASH = Needs(path=True, sha256=True)
EXE = os.path.realpath(sys.executable)
ME = os.getuid()
root = pytest.mark.skipif(ME != 0, reason="needs root: to be several users, or to make namespaces")
CONNECT = """
import os, socket, subprocess, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print("up", flush=True)
for line in sys.stdin:
    do = line.split()
    if do[0] == "exec":
        os.execv(do[1], do[1:])
    if do[0] == "inherit":  # The child that goes on is the attacker; the parent becomes another.
        if os.fork():
            s.set_inheritable(True); os.execv(do[1], do[1:])
        print("forked", flush=True)
    if do[0] == "closed":   # The same, but the socket does not survive the exec.
        if os.fork():
            os.execv(do[1], do[1:])
        print("forked", flush=True)
    if do[0] == "leave" and os.fork():
        os._exit(0)
    if do[0] == "leave":
        print("left", flush=True)
    if do[0] == "name":
        open("/proc/self/comm", "w").write(do[1])
        print("named", flush=True)
"""


@pytest.fixture
def attestor() -> Iterator[PeerAttestor]:
    made = PeerAttestor()
    yield made
    made.close()


@pytest.fixture
def old(request: pytest.FixtureRequest) -> Iterator[PeerAttestor]:
    """As on a kernel before 6.5."""
    made = PeerAttestor(peer_pidfd=False)
    yield made
    made.close()


@contextmanager
def caller(
    attestor: PeerAttestor, *before: str, user: int | None = None, code: str = CONNECT
) -> Iterator[tuple[subprocess.Popen[str], Peer | Denied]]:
    """A process that has connected, and who it is taken for."""
    directory = tempfile.mkdtemp(prefix="x0pe")
    os.chmod(directory, 0o755)
    path = f"{directory}/sock"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        listener.settimeout(10)
        python = EXE if user is None else shutil.which("python3", path="/usr/bin:/bin") or EXE
        child = subprocess.Popen(
            [*before, python, "-c", code, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=user,
            group=user,
            cwd="/",
        )
        stack.callback(end, child)
        sock = stack.enter_context(listener.accept()[0])
        assert line(child) == "up"
        peer = attestor.meet(sock)
        if isinstance(peer, Peer):
            stack.callback(peer.close)
        yield child, peer


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        pipe.close()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()


def until_exe(pid: int, path: str) -> None:
    end = asyncio.new_event_loop()
    try:
        deadline = end.time() + 10
        while os.readlink(f"/proc/{pid}/exe") != os.path.realpath(path):
            assert end.time() < deadline
    finally:
        end.close()


@pytest.mark.parametrize("kernel", ["attestor", "old"])
def test_SP_096_097_the_kernel_says_who_calls_server(
    kernel: str, request: pytest.FixtureRequest
) -> None:
    attestor: PeerAttestor = request.getfixturevalue(kernel)
    with caller(attestor) as (child, peer):
        assert isinstance(peer, Peer)
        assert (peer.pid, peer.uid, peer.gid) == (child.pid, ME, os.getgid())
        assert peer.attributes(UID) == Attributes(ME, (os.getgid(),))
        found = peer.attributes(HASH)
        assert isinstance(found, Attributes)
        assert found.path == EXE
        assert len(found.sha256) == 64
        assert isinstance(peer.attributes(CGROUP), Attributes)
        assert peer.attributes(HASH) == found  # The second look is at one process.


@root
def test_uid_and_gid_are_those_of_the_connect(attestor: PeerAttestor) -> None:
    with caller(attestor, user=65_534) as (_, peer):
        assert isinstance(peer, Peer)
        assert peer.attributes(UID) == Attributes(65_534, (65_534,))


@pytest.mark.parametrize("kernel", ["attestor", "old"])
def test_a_caller_that_has_ended_is_nobody_though_a_child_holds_the_socket(
    kernel: str, request: pytest.FixtureRequest
) -> None:
    attestor: PeerAttestor = request.getfixturevalue(kernel)
    with caller(attestor) as (child, peer):
        assert isinstance(peer, Peer)
        assert isinstance(peer.attributes(PROGRAM), Attributes)
        tell(child, "leave now")
        child.wait(10)
        assert line(child) == "left"
        for wanted in (UID, PROGRAM):
            assert peer.attributes(wanted) == Denied("caller has ended")


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        (
            "inherit",
            {
                "socket may have been opened by a program before an exec",
                "several processes hold the socket and differ",
            },
        ),
        ("closed", {"the process that made the connection holds it no longer"}),
        ("exec", {"no process found that holds the socket"}),
    ],
)
@pytest.mark.parametrize("looked_before", [False, True])
def test_a_caller_that_runs_another_program_after_connecting_is_refused(
    attestor: PeerAttestor, how: str, reasons: set[str], looked_before: bool
) -> None:
    """Who connects and then becomes a trusted program does not get what that may have."""
    sleep = os.path.realpath("/bin/sleep")
    with caller(attestor) as (child, peer):
        assert isinstance(peer, Peer)
        if looked_before:
            assert isinstance(peer.attributes(PROGRAM), Attributes)
        tell(child, f"{how} {sleep} 60")
        if how != "exec":
            assert line(child) == "forked"
        until_exe(child.pid, sleep)
        found = peer.attributes(PROGRAM)
        assert isinstance(found, Denied)
        if how == "closed" and looked_before:
            reasons = reasons | {"no process found that holds the socket"}
        assert found.reason in reasons
        tell(child, "go")


def test_a_number_that_is_another_s_by_now_is_refused() -> None:
    """Without SO_PEERPIDFD: the process with that number is younger than the connection."""
    attestor = PeerAttestor(peer_pidfd=False, now_s=lambda: 1.0)
    try:
        with caller(attestor) as (_, peer):
            assert peer == Denied("caller has ended, and its number is another's")
    finally:
        attestor.close()


def test_a_name_can_t_forge_the_time_of_start(attestor: PeerAttestor) -> None:
    with caller(attestor) as (child, _):
        before = started_ticks(child.pid)
        tell(child, "name x)_S_1_1_1")
        assert line(child) == "named"
        assert started_ticks(child.pid) == before
        assert before > 0


@root
def test_a_caller_in_another_pid_namespace_is_known_by_its_user_alone() -> None:
    """Its number here is another's or none: whoever asks for the program gets no answer."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare (package util-linux)")
    code = (
        "import os, sys\n"
        "sys.path[:0] = %r\n"
        "from tests.edge import test_attest_peer as t\n"
        "from x0tta6bl4.edge.attest.peer import Peer, PeerAttestor\n"
        "import socket\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('up', flush=True)\n"
        "c, _ = s.accept()\n"
        "p = PeerAttestor().meet(c)\n"
        "assert isinstance(p, Peer), p\n"
        "print(p.pid, p.attributes(t.UID), '|', p.attributes(t.PROGRAM).reason, flush=True)\n"
        "sys.stdin.readline()\n"
    ) % [p for p in sys.path if p]
    directory = tempfile.mkdtemp(prefix="x0pe")
    try:
        server = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code,
             f"{directory}/sock"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        try:
            assert line(server) == "up"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"{directory}/sock")
                said = line(server)
            assert said.startswith("0 Attributes(uid=0")
            assert said.endswith("| caller is in another pid namespace")
        finally:
            tell(server, "end")
            server.wait(10)
            end(server)
    finally:
        shutil.rmtree(directory)


def test_an_executable_under_another_name_is_what_it_is(
    attestor: PeerAttestor, tmp_path: Path
) -> None:
    """A link named like a trusted program is resolved by the kernel; a copy has its own path."""
    link = tmp_path / "trusted"
    link.symlink_to(EXE)
    with caller(
        attestor, str(link), "-I", "-c", "import os,sys; os.execv(sys.argv[1], sys.argv[1:])"
    ) as (_, peer):
        assert isinstance(peer, Peer)
        found = peer.attributes(PROGRAM)
        assert isinstance(found, Attributes)
        assert found.path == EXE


def test_descriptors_above_1023_are_no_trouble() -> None:
    pidfd = os.pidfd_open(os.getpid())
    high = os.dup2(pidfd, 2000, inheritable=False)
    try:
        assert not ended(high)
    finally:
        os.close(pidfd)
        os.close(high)


def test_one_process_alone_is_looked_at(attestor: PeerAttestor) -> None:
    with caller(attestor) as (child, _):
        descriptors = Path(f"/proc/{child.pid}/fd")
        inode = next(
            int(os.readlink(one)[8:-1])
            for one in descriptors.iterdir()
            if os.readlink(one).startswith("socket:")
        )
        found = Processes().holders(inode, PROGRAM, True, child.pid)
        assert not isinstance(found, Denied)
        assert found.pids == (child.pid,)
        other = Processes().holders(inode, PROGRAM, True, os.getpid())
        assert other == Denied("no process found that holds the socket")
