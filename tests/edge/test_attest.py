"""Attestation of callers and listeners, with real sockets, processes and uids."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from x0tta6bl4.core.identity.selectors import Attributes, parse_all
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.listener import Attestor, ListenerId, needs
from x0tta6bl4.edge.attest.process import Cgroups, Needs, Processes
from x0tta6bl4.edge.attest.sockets import SockDiag, SocketOwner, plain

UID = Needs()
PROGRAM = Needs(path=True)
HASH = Needs(path=True, sha256=True)
ME = os.getuid()
root = pytest.mark.skipif(ME != 0, reason="needs root: to be several users")
EXE = os.path.realpath(sys.executable)
# A copy in a place that every uid may read.
CALL = """
import socket, sys, os
s = socket.socket(socket.AF_UNIX if sys.argv[1][0] == "/" else socket.AF_INET)
s.connect(sys.argv[1] if sys.argv[1][0] == "/" else ("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
do = sys.stdin.readline().split()
if do and do[0] == "exec":
    s.set_inheritable(True)
    os.execv(do[1], do[1:])
if do and do[0] == "share":
    import subprocess
    subprocess.Popen(do[1:], pass_fds=(s.fileno(),))
    print("shared", flush=True)
if do and do[0] == "fork" and os.fork() == 0:
    print("forked", flush=True)
sys.stdin.readline()
"""
LISTEN = """
import socket, sys
if sys.argv[1][0] == "/":
    s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])
else:
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((sys.argv[2], int(sys.argv[1])))
s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def attestor() -> Iterator[Attestor]:
    made = Attestor()
    yield made
    made.close()


@contextmanager
def server(path: str = "") -> Iterator[socket.socket]:
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen()
    else:
        listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    with listener:
        yield listener


@contextmanager
def process(
    code: str, *arguments: str, uid: int = ME, exe: str = sys.executable
) -> Iterator[subprocess.Popen[str]]:
    """A Python process of that uid, known to have said its first line."""
    python = exe if uid == ME else shutil.which("python3", path="/usr/bin:/bin") or exe
    child = subprocess.Popen(
        [python, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=None if uid == ME else uid,
        group=None if uid == ME else uid,
        cwd="/",
    )
    try:
        yield child
    finally:
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


def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.socket(listener.family)
    client.connect(listener.getsockname())
    return client, listener.accept()[0]


# ---------------------------------------------------------------------- sockets
def test_a_caller_s_uid_is_known_and_cheap(attestor: Attestor) -> None:
    with server() as listener:
        client, accepted = pair(listener)
        with client, accepted:
            assert attestor.caller(accepted, UID) == Attributes(ME)
            began = time.process_time()
            for _ in range(1000):
                attestor.caller(accepted, UID)
            each = (time.process_time() - began) * 1000
            print(f"caller look-up: {each:.1f} us")
            assert each < 60 * 4, "60 us, and room for a busy machine"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_both_families_and_one_inside_the_other(attestor: Attestor, host: str) -> None:
    try:
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:
        pytest.skip("needs IPv6")
    with listener:
        port = listener.getsockname()[1]
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
            client.connect((host, port))
            with listener.accept()[0] as accepted:
                assert attestor.caller(accepted, UID) == Attributes(ME)
        address = "[::1]" if host == "::1" else "127.0.0.1"
        assert isinstance(attestor.listener(f"{address}:{port}", UID), ListenerId)


def test_a_caller_that_closed_is_nobody_and_not_root(attestor: Attestor) -> None:
    with server() as listener:
        for linger in (False, True):
            client, accepted = pair(listener)
            if linger:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.send(b"a request without anybody behind it")
            client.close()
            with accepted:
                assert isinstance(attestor.caller(accepted, UID), Denied)


def test_a_caller_that_sent_its_end_is_still_known(attestor: Attestor) -> None:
    with server() as listener:
        client, accepted = pair(listener)
        with client, accepted:
            client.shutdown(socket.SHUT_WR)
            assert attestor.caller(accepted, UID) == Attributes(ME)


def test_a_connection_taken_over_under_the_same_numbers_is_refused(attestor: Attestor) -> None:
    """One sends, resets, and another connects from the same port: its uid is not the first's."""
    with server() as listener:
        first, accepted = pair(listener)
        port = first.getsockname()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        first.send(b"in the name of who comes next")
        first.close()
        with socket.socket() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.bind(port)
            second.connect(listener.getsockname())
            with accepted, listener.accept()[0] as after:
                assert attestor.caller(after, UID) == Attributes(ME)
                with pytest.raises(OSError):
                    accepted.getpeername()
                assert attestor.caller(accepted, UID) == Denied("caller is gone")


def test_a_look_up_that_falls_back_to_a_listener_is_refused() -> None:
    diag = SockDiag()
    with server() as listener:
        own = plain(listener.getsockname())
        assert isinstance(diag.connected(own, ("127.0.0.1", 9)), Denied)
        assert isinstance(diag.listening(own), SocketOwner)
        client, accepted = pair(listener)
        with client, accepted:
            assert isinstance(diag.listening(plain(client.getsockname())), Denied)
    assert diag.listening(own) == Denied("nobody listens")
    assert isinstance(diag.connected(own, ("::1", 9)), Denied)
    assert isinstance(diag.unix_peer(1), Denied)
    diag.close()


@root
def test_uids_are_told_apart(attestor: Attestor, tmp_path: Path) -> None:
    with server() as listener, ExitStack() as stack:
        port = str(listener.getsockname()[1])
        for uid in (54_321, 54_322, 0):
            child = stack.enter_context(process(CALL, port, uid=uid))
            assert line(child) == "up"
            accepted = stack.enter_context(listener.accept()[0])
            assert attestor.caller(accepted, UID) == Attributes(uid)
            assert attestor.caller(accepted, Needs(gid=True)) == Attributes(uid, (uid,))
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    path = str(tmp_path / "s")
    with server(path) as listener, process(CALL, path, uid=54_321) as child:
        assert line(child) == "up"
        with listener.accept()[0] as accepted:
            assert attestor.caller(accepted, UID) == Attributes(54_321, (54_321,))
            found = attestor.caller(accepted, HASH)
            assert isinstance(found, Attributes)
            assert found.uid == 54_321
            assert len(found.sha256) == 64


# ---------------------------------------------------------------------- processes
@pytest.mark.parametrize("unix", [False, True])
def test_the_program_is_named_and_hashed(attestor: Attestor, tmp_path: Path, unix: bool) -> None:
    with server(str(tmp_path / "s") if unix else "") as listener:
        where = str(tmp_path / "s") if unix else str(listener.getsockname()[1])
        with process(CALL, where) as child:
            assert line(child) == "up"
            with listener.accept()[0] as accepted:
                found = attestor.caller(accepted, HASH)
                assert isinstance(found, Attributes), found
                assert found.path == EXE
                with open(EXE, "rb") as file:
                    assert found.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
                assert found.gids == ((os.getgid(),) if unix else ())
                child.kill()
                child.wait()
                assert isinstance(attestor.caller(accepted, HASH), Denied)


@pytest.mark.parametrize("unix", [False, True])
def test_a_program_that_inherited_the_socket_over_an_exec_is_refused(
    attestor: Attestor, tmp_path: Path, unix: bool
) -> None:
    with server(str(tmp_path / "s") if unix else "") as listener:
        where = str(tmp_path / "s") if unix else str(listener.getsockname()[1])
        with process(CALL, where) as child:
            assert line(child) == "up"
            tell(child, "exec /bin/sleep 60")
            with listener.accept()[0] as accepted:
                deadline = time.monotonic() + 5
                while not os.readlink(f"/proc/{child.pid}/exe").endswith("sleep"):
                    assert time.monotonic() < deadline
                    time.sleep(0.005)
                reason = "socket may have been opened by a program before an exec"
                assert attestor.caller(accepted, PROGRAM) == Denied(reason)
                found = attestor.caller(accepted, UID)
                assert isinstance(found, Attributes), "who asks for the uid only is answered"


def test_several_holders_must_agree(attestor: Attestor) -> None:
    with server() as listener:
        port = str(listener.getsockname()[1])
        with process(CALL, port) as child, listener.accept()[0] as accepted:
            assert line(child) == "up"
            tell(child, "fork")
            assert line(child) == "forked"
            found = attestor.caller(accepted, PROGRAM)
            assert found == Attributes(ME, (), EXE), "two processes of one program"
            diag = SockDiag()
            owner = diag.connected(plain(accepted.getpeername()), plain(accepted.getsockname()))
            diag.close()
            assert isinstance(owner, SocketOwner)
            facts = Processes().holders(owner.inode, PROGRAM, True)
            assert not isinstance(facts, Denied)
            assert len(facts.pids) == 2
            assert child.pid in facts.pids
            for pid in facts.pids:
                if pid != child.pid:
                    os.kill(pid, 9)
        with process(CALL, port) as child, listener.accept()[0] as accepted:
            assert line(child) == "up"
            tell(child, "share /bin/sleep 3")
            assert line(child) == "shared"
            assert isinstance(attestor.caller(accepted, PROGRAM), Denied)
            inode = _inode(accepted)
            differ = Processes().holders(inode, PROGRAM, False)
            assert differ == Denied("several processes hold the socket and differ")


def _inode(accepted: socket.socket) -> int:
    diag = SockDiag()
    owner = diag.connected(plain(accepted.getpeername()), plain(accepted.getsockname()))
    diag.close()
    assert isinstance(owner, SocketOwner)
    return owner.inode


def test_a_replaced_executable_is_refused(attestor: Attestor, tmp_path: Path) -> None:
    exe = tmp_path / "program"
    shutil.copy(EXE, exe)
    environment = os.environ.copy()
    os.environ["PYTHONHOME"] = sys.base_prefix
    try:
        with server() as listener:
            port = str(listener.getsockname()[1])
            with process(CALL, port, exe=str(exe)) as child:
                assert line(child) == "up"
                with listener.accept()[0] as accepted:
                    assert attestor.caller(accepted, PROGRAM) == Attributes(ME, (), str(exe))
                    other = tmp_path / "other"
                    other.write_bytes(b"something else")
                    other.rename(exe)
                    denied = attestor.caller(accepted, PROGRAM)
                    assert denied == Denied("executable is not what its path names")
    finally:
        os.environ.clear()
        os.environ.update(environment)


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert Processes().holders(2**31, PROGRAM, True) == Denied(
        "no process found that holds the socket"
    )


def test_a_cgroup_is_known_from_the_socket(attestor: Attestor) -> None:
    mount = Cgroups()._root
    if not mount or ME != 0 or not os.access(mount, os.W_OK):
        pytest.skip("needs root and a writable cgroup2 mount")
    group = Path(mount) / f"x0-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a cgroup2 mount in which groups can be made")
    code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n" + CALL
    try:
        with server() as listener, process(code, str(listener.getsockname()[1])) as child:
            assert line(child) == "up"
            with listener.accept()[0] as accepted:
                found = attestor.caller(accepted, Needs(cgroup=True))
                assert found == Attributes(ME, (), "", "", f"/{group.name}")
    finally:
        deadline = time.monotonic() + 5
        while group.exists() and time.monotonic() < deadline:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.01)


def test_needs_are_what_selectors_ask_for() -> None:
    assert needs(parse_all(["unix:uid:1"])) == Needs()
    assert needs(parse_all(["unix:uid:1", "unix:path:/x"])) == Needs(path=True)
    assert needs(parse_all([f"unix:sha256:{'0' * 64}", "unix:gid:2", "unix:cgroup:/a"])) == Needs(
        True, False, True, True
    )


# ---------------------------------------------------------------------- listeners
def test_a_listener_is_the_same_before_and_after(attestor: Attestor) -> None:
    with server() as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        before = attestor.listener(address, HASH)
        assert isinstance(before, ListenerId)
        assert before.attributes.path == EXE
        client, accepted = pair(listener)
        with client, accepted:
            assert attestor.confirmed(before, client, HASH) == before.attributes


def test_a_port_inherited_from_a_crashed_service_is_refused(attestor: Attestor) -> None:
    with process(LISTEN, "0", "127.0.0.1") as service:
        port = line(service)
        before = attestor.listener(f"127.0.0.1:{port}", UID)
        assert isinstance(before, ListenerId)
        service.kill()
        service.wait()
        assert attestor.listener(f"127.0.0.1:{port}", UID) == Denied("nobody listens")
        with process(LISTEN, port, "0.0.0.0") as thief:
            assert line(thief) == port
            with socket.create_connection(("127.0.0.1", int(port))) as sock:
                assert attestor.confirmed(before, sock, UID) == Denied(
                    "listener changed during the connect"
                )


@root
def test_a_listener_of_another_user_is_told_apart(attestor: Attestor) -> None:
    with process(LISTEN, "0", "0.0.0.0", uid=54_321) as service:
        found = attestor.listener(f"127.0.0.1:{line(service)}", UID)
        assert isinstance(found, ListenerId)
        assert found.attributes.uid == 54_321


def test_a_unix_listener_is_known_once_connected(attestor: Attestor, tmp_path: Path) -> None:
    path = str(tmp_path / "service")
    with process(LISTEN, path) as service:
        line(service)
        before = attestor.listener(f"unix:{path}", HASH)
        assert isinstance(before, ListenerId)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            found = attestor.confirmed(before, sock, HASH)
            assert isinstance(found, Attributes), found
            assert (found.uid, found.path) == (ME, EXE)
            assert attestor.confirmed(before, sock, UID) == Attributes(ME, (os.getgid(),))
            service.kill()
            service.wait()
            assert isinstance(attestor.confirmed(before, sock, HASH), Denied)
