"""What a Python process runs, and the ways to make it look like something else."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from x0tta6bl4.core.identity.selectors import Attributes, Matches, match, parse_all
from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest import python
from x0tta6bl4.edge.attest.errands import Answer, Errands
from x0tta6bl4.edge.attest.facts import Facts, Wants
from x0tta6bl4.edge.attest.files import Hashed, Hashes
from x0tta6bl4.edge.attest.listener import needs
from x0tta6bl4.edge.attest.peer import Peer, PeerAttestor
from x0tta6bl4.edge.attest.process import Needs, Processes

EXE = os.path.realpath(sys.executable)
CALL = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["CALL"])
for line in sys.stdin:
    do = line.split()
    if do[0] == "exec":  # Another program of the same interpreter, with the socket.
        s.set_inheritable(len(do) > 3)
        os.execv(do[1], do[1:3])
"""
SCRIPT = Needs(wants=Wants(python=True, script_sha256=True))
WHOLE = Needs(sha256=True, wants=Wants(python=True, script_sha256=True, venv=True))
needs_exe = pytest.mark.skipif(
    not python.INTERPRETER.match(os.path.basename(EXE)), reason="needs an executable named python3"
)
pytestmark = needs_exe


def digest(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a script in it, older than whatever is started from it."""
    path = Path(os.path.realpath(tempfile.mkdtemp(prefix="x0py")))
    (path / "web.py").write_text(CALL)
    rest()
    yield path
    shutil.rmtree(path)


def rest() -> None:
    """A process that starts from now on is younger than all files; both are stamped in ticks."""
    time.sleep(0.03)


@contextmanager
def caller(
    place: Path, *words: str, exe: str = EXE, **environment: str
) -> Iterator[tuple[Peer, subprocess.Popen[bytes]]]:
    """A process that has connected, and the hold on it."""
    path = str(place / "sock")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    with ExitStack() as stack:
        stack.callback(lambda: os.unlink(path))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        listener.settimeout(10)
        child = subprocess.Popen(
            [exe, *words],
            stdin=subprocess.PIPE,
            env={**clean, "CALL": path, **environment},
            cwd=place,
        )
        stack.enter_context(child)
        stack.callback(child.kill)
        sock = stack.enter_context(listener.accept()[0])
        attestor = PeerAttestor(Processes(facts=Facts(Errands(wait_s=10))))
        stack.callback(attestor.close)
        peer = attestor.meet(sock)
        assert isinstance(peer, Peer)
        stack.callback(peer.close)
        yield peer, child


def found(place: Path, *words: str, wanted: Needs = SCRIPT, **others: str) -> Attributes | Denied:
    with caller(place, *words, **others) as (peer, _):
        return peer.attributes(wanted)


# ---------------------------------------------------------------------- what it runs
def test_SP_097_a_script_is_known_by_its_path_and_content(place: Path) -> None:
    script = str(place / "web.py")
    answer = found(place, "-IBu", "-W", "ignore", script, "--an", "argument", wanted=WHOLE)
    assert answer == Denied("python runs outside of a virtual environment")
    answer = found(place, "-IBu", "-W", "ignore", script, "-c", "an argument of the script")
    assert isinstance(answer, Attributes), answer
    assert answer.facts == {
        f"python:interpreter:{EXE}",
        f"python:script:{script}",
        f"python:script-sha256:{digest(script)}",
    }
    entry = parse_all((f"unix:uid:{os.getuid()}", f"python:script-sha256:{digest(script)}"))
    assert needs(entry) == SCRIPT
    assert type(match(entry, answer)) is Matches
    other = parse_all((f"unix:uid:{os.getuid()}", f"python:script-sha256:{'0' * 64}"))
    assert type(match(other, answer)) is not Matches


def test_only_what_is_asked_for_is_found_out(place: Path) -> None:
    script = str(place / "web.py")
    answer = found(place, "-I", script, wanted=Needs(wants=Wants(python=True)))
    assert isinstance(answer, Attributes)
    assert answer.facts == {f"python:interpreter:{EXE}", f"python:script:{script}"}
    assert answer.sha256 == ""
    plain = found(place, "-I", script, wanted=Needs(path=True))
    assert isinstance(plain, Attributes)
    assert plain.facts == frozenset()


def test_a_link_named_like_a_trusted_script_is_what_it_leads_to(place: Path) -> None:
    (place / "trusted.py").symlink_to(place / "web.py")
    rest()
    answer = found(place, "-I", str(place / "trusted.py"))
    assert isinstance(answer, Attributes)
    assert f"python:script:{place / 'web.py'}" in answer.facts
    assert f"python:script:{place / 'trusted.py'}" not in answer.facts


def test_a_zip_archive_is_hashed_whole(place: Path) -> None:
    with zipfile.ZipFile(place / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", CALL)
    rest()
    answer = found(place, "-I", str(place / "app.pyz"))
    assert isinstance(answer, Attributes)
    assert f"python:script-sha256:{digest(place / 'app.pyz')}" in answer.facts


def _environment(place: Path) -> tuple[str, str]:
    """A virtual environment with a package in it: its Python, and the package's directory."""
    venv.create(place / "env", with_pip=False, symlinks=True)
    site = next((place / "env" / "lib").iterdir()) / "site-packages"
    info = site / "web-1.dist-info"
    for directory in (site / "web", info):
        directory.mkdir()
    (site / "web" / "__init__.py").touch()
    (site / "web" / "server.py").write_text(CALL)
    (info / "RECORD").write_text("web/server.py,sha256=abc,1\n")
    rest()
    return str(place / "env" / "bin" / "python"), str(site)


def test_SP_097_a_module_is_known_where_nothing_else_can_have_its_name(place: Path) -> None:
    exe, site = _environment(place)
    answer = found(place, "-P", "-m", "web.server", exe=exe, wanted=WHOLE)
    assert isinstance(answer, Attributes), answer
    installed = python.venv_sha256(str(place / "env"))
    assert answer.facts == {
        f"python:interpreter:{EXE}",
        f"python:interpreter-sha256:{digest(EXE)}",
        "python:module:web.server",
        f"python:module-path:{site}/web/server.py",
        f"python:script-sha256:{digest(site + '/web/server.py')}",
        f"python:venv-sha256:{installed}",
    }
    named = found(place, "-P", "-mweb.server", exe="python", PATH=f"{place}/env/bin", wanted=SCRIPT)
    assert isinstance(named, Attributes), named
    assert named.facts < answer.facts


def test_what_is_installed_changes_the_hash_of_an_environment(place: Path) -> None:
    _, site = _environment(place)
    root = str(place / "env")
    before = python.venv_sha256(root)
    assert isinstance(before, str)
    assert python.venv_sha256(root) == before
    record = Path(site) / "web-1.dist-info" / "RECORD"
    kept = record.read_text()
    seen = {before}
    for change, undo in (
        (
            lambda: record.write_text("web/server.py,sha256=abd,1\n"),
            lambda: record.write_text(kept),
        ),
        ((Path(site) / "evil.pth").touch, (Path(site) / "evil.pth").unlink),
        ((Path(site) / "sitecustomize.py").touch, (Path(site) / "sitecustomize.py").unlink),
    ):
        change()
        now = python.venv_sha256(root)
        assert isinstance(now, str)
        assert now not in seen
        seen.add(now)
        undo()
    assert python.venv_sha256(root) == before
    (place / "env" / "lib" / "python3.99").mkdir()
    assert isinstance(python.venv_sha256(root), Denied)


# ---------------------------------------------------------------------- who pretends
def _good(place: Path) -> str:
    return str(place / "web.py")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("-I", "-c", CALL), "python runs code of its command line"),
        (("-Ic" + CALL, "{place}/web.py"), "python runs code of its command line"),
        (("-I", "web.py"), "script was named by a relative path"),
        (("{place}",), "script is no regular file"),
        (("-m", "web"), "module may be of the working directory; give python -P or -I"),
        (("-i", "{place}/web.py"), "python reads code when its script has ended"),
        (("-X", "pycache_prefix=/tmp", "{place}/web.py"), "python takes code from elsewhere"),
    ],
)
def test_SP_097_code_from_elsewhere_is_nobody_s(
    place: Path, words: tuple[str, ...], reason: str
) -> None:
    shutil.copy(place / "web.py", place / "__main__.py")
    rest()
    given = tuple(word.replace("{place}", str(place)) for word in words)
    assert found(place, *given) == Denied(reason)


@pytest.mark.parametrize(
    "name", ["PYTHONPATH", "PYTHONSTARTUP", "PYTHONPYCACHEPREFIX", "LD_LIBRARY_PATH"]
)
def test_SP_097_an_environment_that_bends_what_is_run_is_refused(place: Path, name: str) -> None:
    script = _good(place)
    evil = place / "evil"
    evil.mkdir()
    (evil / "socket.py").write_text("raise SystemExit")
    there = str(evil if name != "PYTHONPATH" else place / "nowhere")
    refused = Denied(f"{name} decides what it runs")
    bent = {name: there}
    with caller(place, script, exe=EXE, **bent) as (peer, _):
        assert peer.attributes(SCRIPT) == refused
    with caller(place, "-I", script, exe=EXE, **bent) as (peer, _):
        isolated = peer.attributes(SCRIPT)
    if name.startswith("LD_"):
        assert isolated == refused
    else:
        assert isinstance(isolated, Attributes), "it looks at none of them"


def test_SP_097_a_module_of_the_working_directory_does_not_pass_for_an_installed_one(
    place: Path,
) -> None:
    exe, _ = _environment(place)
    (place / "web").mkdir()
    (place / "web" / "server.py").write_text(CALL)
    refused = Denied("module may be of the working directory; give python -P or -I")
    assert found(place, "-m", "web.server", exe=exe) == refused
    assert found(place, "-P", "-m", "web.server", exe=exe, PYTHONPATH=str(place)) == Denied(
        "PYTHONPATH decides what it runs"
    )


@pytest.mark.parametrize("how", ["written", "replaced", "put back"])
def test_SP_097_a_script_that_is_another_by_now_is_refused(place: Path, how: str) -> None:
    script = place / "web.py"
    before = script.stat()
    with caller(place, "-I", str(script)) as (peer, _):
        assert isinstance(peer.attributes(SCRIPT), Attributes)
        if how == "written":
            with script.open("a") as file:
                file.write("# and more\n")
        elif how == "replaced":
            (place / "other").write_text(CALL + "# another\n")
            (place / "other").rename(script)
        else:  # The good one comes after the bad one was started, with its old times.
            (place / "good").write_text(CALL)
            (place / "good").rename(script)
            os.utime(script, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert peer.attributes(SCRIPT) == Denied("script was changed after the process began")


@pytest.mark.parametrize("inherited", [False, True])
def test_SP_097_an_exec_of_another_script_is_noticed(place: Path, inherited: bool) -> None:
    """The interpreter is the same, the process too: only its command line is another."""
    (place / "wait.py").write_text("import time; time.sleep(60)\n")
    rest()
    with caller(place, "-I", str(place / "web.py")) as (peer, child):
        assert isinstance(peer.attributes(SCRIPT), Attributes)
        assert child.stdin is not None
        more = " too" if inherited else ""
        child.stdin.write(f"exec {EXE} {place / 'wait.py'}{more}\n".encode())
        child.stdin.flush()
        until(lambda: b"wait.py" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
        reason = (
            "socket may have been opened by a program before an exec"
            if inherited
            else "no process found that holds the socket"
        )
        assert peer.attributes(SCRIPT) == Denied(reason)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end


class Noting(Errands):
    """Errands that are run at once, and what they were asked for by."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Hashable] = []

    def ask(self, key: Hashable, who: int, look: Callable[[], Answer]) -> Answer:
        assert who == os.getuid()
        self.keys.append(key)
        return look()


def test_SP_097_an_answer_that_waits_to_be_fetched_is_not_the_next_program_s(place: Path) -> None:
    """Process, interpreter and time of start are the same after an exec: the memory is not."""
    (place / "wait.py").write_text("import time; time.sleep(60)\n")
    rest()
    errands = Noting()
    facts = Facts(errands)
    with caller(place, "-I", str(place / "web.py")) as (_, child):
        for _ in range(2):
            assert isinstance(facts.of(child.pid, EXE, SCRIPT.wants), frozenset)
        assert child.stdin is not None
        child.stdin.write(f"exec {EXE} {place / 'wait.py'}\n".encode())
        child.stdin.flush()
        until(lambda: b"wait.py" in Path(f"/proc/{child.pid}/cmdline").read_bytes())
        facts.of(child.pid, EXE, SCRIPT.wants)
    first, again, after = errands.keys
    assert first == again
    assert first != after


def test_SP_097_a_program_that_is_no_interpreter_can_t_name_a_script(place: Path) -> None:
    """Its command line may say what it likes."""
    shutil.copy(EXE, place / "webserver")
    home = {"PYTHONHOME": sys.base_prefix}
    with caller(place, _good(place), exe=str(place / "webserver"), **home) as (peer, _):
        assert peer.attributes(SCRIPT) == Denied("executable is no Python")


def test_a_name_that_is_not_the_interpreter_s_finds_no_environment(place: Path) -> None:
    exe, _ = _environment(place)
    hashes = Hashes()
    wanted = python.Wanted(True, True)
    code = "import os, sys; os.execv(sys.argv[1], sys.argv[2:])"
    shutil.copytree(place / "env", place / "fake", symlinks=True)
    os.unlink(place / "fake" / "bin" / "python")
    os.unlink(place / "fake" / "bin" / "python3")
    (place / "fake" / "bin" / "python").write_text("not the interpreter\n")
    rest()
    argv0 = str(place / "fake" / "bin" / "python")
    with caller(place, "-I", "-c", code, exe, argv0, "-I", _good(place)) as (peer, child):
        assert python.look(child.pid, EXE, wanted, hashes) == Denied(
            "command line does not name the interpreter"
        )
        assert isinstance(peer.attributes(SCRIPT), Attributes)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: to make namespaces")
def test_SP_097_a_file_system_of_its_own_is_refused(place: Path) -> None:
    """There the same path may be another file."""
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("needs unshare (package util-linux)")
    with caller(place, "--mount", EXE, "-I", _good(place), exe=unshare) as (peer, _):
        assert peer.attributes(SCRIPT) == Denied("caller has a file system of its own")


def test_SP_097_a_script_that_is_a_pipe_or_too_large_is_not_read(place: Path) -> None:
    os.mkfifo(place / "pipe")
    assert Hashes().at(str(place / "pipe"), "script", 10) == Denied("script is no regular file")
    assert Hashes().at(str(place / "web.py"), "script", 10) == Denied("script is too large to hash")
    assert Hashes().at("/dev/null", "script", 10) == Denied("script is no regular file")


class Growing(io.BufferedReader):
    """A file that somebody writes to while it is read."""

    def read(self, size: int | None = -1, /) -> bytes:
        with open(self.name, "ab") as file:
            file.write(b"more")
        return super().read(size)


def test_a_file_that_is_written_while_it_is_hashed_has_no_hash(place: Path) -> None:
    (place / "kept").write_bytes(b"kept")
    hashes = Hashes()
    written = Denied("script was written while it was hashed")
    with Growing(io.FileIO(place / "web.py")) as file:
        assert hashes.of(file, "script", 1 << 20) == written
    for _ in range(2):
        assert hashes.at(str(place / "kept"), "script", 10) == Hashed(
            str(place / "kept"), digest(place / "kept"), 4, (place / "kept").stat().st_ctime_ns
        )


# ---------------------------------------------------------------------- command lines
@pytest.mark.parametrize(
    ("words", "run"),
    [
        (["/a.py", "-c", "x"], python.Run("/a.py")),
        (["--", "/a.py"], python.Run("/a.py")),
        (["-Wd", "-Xdev", "-X", "utf8", "/a.py"], python.Run("/a.py")),
        (["--check-hash-based-pycs", "always", "/a.py"], python.Run("/a.py")),
        (["-Im", "a.b", "c"], python.Run("", "a.b", frozenset("I"))),
        (["-OOma.b"], python.Run("", "a.b", frozenset("O"))),
    ],
)
def test_a_command_line_is_read_as_python_reads_it(words: list[str], run: python.Run) -> None:
    assert python.parse_command(words) == run


@pytest.mark.parametrize(
    "words", [[], ["-"], [""], ["-V"], ["--help"], ["-m"], ["-W"], ["-Z", "/a"], ["-hm", "a"]]
)
def test_a_command_line_that_runs_no_file_is_refused(words: list[str]) -> None:
    assert isinstance(python.parse_command(words), Denied)
