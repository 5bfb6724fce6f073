"""The script `x0`: from nothing to a running product, and one clear line for whatever is missing.

It runs here in a copy of the clone, on a PATH with nothing but a few system tools and a pretended
Python that notes what it was asked to do; no package is installed and no network is used.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from x0tta6bl4 import __main__ as entry

_TOOLS = "sh bash cat cut date dirname flock grep id mkdir mv readlink rm sed sha256sum tail touch"

_PYTHON = """#!/bin/sh
case $1 in
-c)
    case $2 in
    *ensurepip*) cat "$PRETEND/python" ;;
    *compileall*) echo "compile" >>"$PRETEND/log" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
    esac ;;
-V) exec "$REAL_PYTHON" -V ;;
-m)
    case $2 in
    venv) echo "venv" >>"$PRETEND/log"; mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"
          "$REAL_PYTHON" -c 'import os, sys; os.chmod(sys.argv[1], 0o755)' "$3/bin/python" ;;
    pip) echo "pip" >>"$PRETEND/log"
         if [ -p "$PRETEND/hold" ]; then cat "$PRETEND/hold" >/dev/null; fi
         if [ -f "$PRETEND/pip-fails" ]; then cat "$PRETEND/pip-fails" >&2; exit 1; fi ;;
    esac ;;
*) echo "ran $*" ;;
esac
"""

_APT = """#!/bin/sh
case "$*" in
*update*) echo "apt update" >>"$PRETEND/log"; : >"$PRETEND/lists" ;;
*) [ -e "$PRETEND/lists" ] || { echo "E: Unable to locate package" >&2; exit 100; }
   for each; do [ ! -e "$PRETEND/no-$each" ] || { echo "E: no $each" >&2; exit 100; }; done
   for each; do case $each in -*|*=*|install) ;; *) echo "apt $each" >>"$PRETEND/log" ;; esac; done
   echo good >"$PRETEND/python" ;;
esac
"""


class Machine:
    """A machine with a clone of the project, and almost nothing else."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clone = home / "clone"
        self.bin = home / "bin"
        (self.clone / "requirements").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "x0", self.clone)
        for name in ("runtime", "dev"):
            shutil.copy(ROOT / "requirements" / f"{name}.txt", self.clone / "requirements")
        for tool in _TOOLS.split():
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.environment = {
            "PATH": str(self.bin),
            "PRETEND": str(home),
            "REAL_PYTHON": sys.executable,
        }
        self.is_root(False)

    def program(self, name: str, code: str) -> None:
        """Put a program on the PATH."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(code)
        (self.bin / name).chmod(0o755)

    def python(self, kind: str = "good") -> None:
        """Install the pretended Python: good, or bare (without ensurepip)."""
        (self.home / "python").write_text(kind + "\n")
        self.program("python3", _PYTHON)

    def is_root(self, yes: bool) -> None:
        """Let `id` say so."""
        self.program("id", f'#!/bin/sh\n[ "$1" = -u ] && echo {0 if yes else 1000} || echo me\n')

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `./x0 arguments` in a process group of its own."""
        return subprocess.Popen(
            [str(self.clone / "x0"), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def x0(self, *arguments: str) -> tuple[int, str, str]:
        """Run it to its end: status, stdout, stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    @property
    def log(self) -> list[str]:
        """What the pretended programs were asked to do, so far."""
        path = self.home / "log"
        return path.read_text().splitlines() if path.exists() else []

    def hold(self) -> None:
        """Let the next pip wait until `release`."""
        os.mkfifo(self.home / "hold")

    def release(self) -> None:
        """Let every waiting pip go on (waits until one is there)."""
        with (self.home / "hold").open("w"):
            (self.home / "hold").unlink()

    def wait_for(self, line: str) -> None:
        """Wait until something has been asked to do this."""
        deadline = time.monotonic() + 30
        while line not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.005)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(machine: Machine, id: str, *arguments: str) -> str:
    """It says exactly one line of trouble, with this id and a hint, and fails."""
    status, out, err = machine.x0(*(arguments or ("demo",)))
    assert status == 1
    assert out == ""
    trouble = [line for line in err.splitlines() if "X0-BOOT-" in line]
    assert len(trouble) == 1, err
    assert trouble[0].startswith(f"x0: {id}: "), err
    assert ". " in trouble[0]
    return trouble[0]


# --- the good way ---------------------------------------------------------------------------------


def test_first_start_sets_up_and_runs(machine: Machine) -> None:
    machine.python()
    status, out, err = machine.x0("status", "--json", "a b")
    assert (status, out) == (0, "ran -P -m x0tta6bl4 status --json a b\n"), err
    assert machine.log == ["venv", "pip", "compile"]
    assert not (machine.clone / ".venv" / "x0-busy").exists()


def test_second_start_does_nothing_but_run(machine: Machine) -> None:
    machine.python()
    machine.x0("setup")
    (machine.home / "log").unlink()
    took = []
    for _ in range(5):
        began = time.perf_counter()
        status, _, err = machine.x0("status")
        took.append(time.perf_counter() - began)
        assert (status, err) == (0, "")
    assert machine.log == []
    assert min(took) < 0.05


def test_a_new_lock_is_installed_into_the_same_venv(machine: Machine) -> None:
    machine.python()
    machine.x0("setup")
    with (machine.clone / "requirements" / "runtime.txt").open("a") as lock:
        lock.write("# new\n")
    assert machine.x0("setup")[0] == 0
    assert machine.log == ["venv", "pip", "compile", "pip", "compile"]
    assert machine.x0("setup")[2] == ""


def test_a_clone_that_was_moved_is_set_up_again(machine: Machine) -> None:
    machine.python()
    machine.x0("setup")
    machine.clone = machine.clone.rename(machine.home / "moved")
    assert machine.x0("setup")[0] == 0
    assert machine.log.count("pip") == 2


def test_tests_want_the_tools_of_developers_once(machine: Machine) -> None:
    machine.python()
    machine.x0("setup")
    status, out, err = machine.x0("test", "-k", "name")
    assert (status, out) == (0, "ran -P -m pytest -k name\n"), err
    assert machine.log.count("pip") == 2
    assert "curl is missing (an unmodified client through the mesh)" in err
    machine.x0("test")
    machine.x0("demo")
    assert machine.log.count("pip") == 2


def test_it_is_found_through_a_link_and_from_elsewhere(machine: Machine) -> None:
    machine.python()
    (machine.bin / "x0").symlink_to(machine.clone / "x0")
    done = subprocess.run(
        ["x0", "status"],
        env=machine.environment,
        executable=machine.bin / "x0",
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "ran -P -m x0tta6bl4 status\n", done.stderr
    assert (machine.clone / ".venv" / "x0-runtime").exists()


# --- a machine with less --------------------------------------------------------------------------


def test_root_gets_what_a_bare_debian_lacks(machine: Machine) -> None:
    machine.python("bare")
    machine.is_root(True)
    machine.program("apt-get", _APT)
    status, _, err = machine.x0("setup")
    assert status == 0, err
    assert machine.log[:2] == ["apt update", "apt python3-venv"]
    assert "python3-venv (" in err
    assert "without ensurepip" in err


def test_package_lists_are_fetched_only_if_needed(machine: Machine) -> None:
    machine.python("bare")
    machine.is_root(True)
    machine.program("apt-get", _APT)
    (machine.home / "lists").touch()
    assert machine.x0("setup")[0] == 0
    assert machine.log[0] == "apt python3-venv"


def test_root_gets_the_system_packages_of_the_tests(machine: Machine) -> None:
    machine.python()
    machine.is_root(True)
    machine.program("apt-get", _APT)
    status, _, err = machine.x0("test")
    assert status == 0, err
    assert "x0: installing curl (an unmodified client through the mesh)" in err
    assert "apt curl" in machine.log


def test_a_package_that_this_release_lacks_costs_no_other(machine: Machine) -> None:
    machine.python()
    machine.is_root(True)
    machine.program("apt-get", _APT)
    (machine.home / "no-clang-19").touch()
    status, _, err = machine.x0("test")
    assert status == 0, err
    assert "x0: could not install clang-19: tests that need it are skipped by name" in err
    assert "apt curl" in machine.log
    assert "apt clang-19" not in machine.log


def test_without_root_one_line_says_what_to_install(machine: Machine) -> None:
    machine.python("bare")
    machine.program("apt-get", _APT)
    assert "apt-get install python3-venv" in refused(machine, "X0-BOOT-003")
    assert machine.log == []


def test_no_python(machine: Machine) -> None:
    assert "apt-get install python3" in refused(machine, "X0-BOOT-002")


def test_an_old_python_is_no_python(machine: Machine) -> None:
    machine.python("")
    refused(machine, "X0-BOOT-002")


def test_a_clone_with_missing_files(machine: Machine) -> None:
    (machine.clone / "requirements" / "runtime.txt").unlink()
    refused(machine, "X0-BOOT-001")


def test_a_venv_of_somebody_else_is_left_alone(machine: Machine) -> None:
    machine.python()
    (machine.clone / ".venv").mkdir()
    (machine.clone / ".venv" / "mine").touch()
    refused(machine, "X0-BOOT-011")
    assert (machine.clone / ".venv" / "mine").exists()


def test_an_unknown_option_of_setup(machine: Machine) -> None:
    refused(machine, "X0-BOOT-012", "setup", "--fast")


@pytest.mark.parametrize(
    ("pip_says", "id"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "X0-BOOT-005"),
        ("ERROR: [Errno 30] Read-only file system: '/x/.venv'", "X0-BOOT-004"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure", "X0-BOOT-006"),
        ("Read timed out.\nERROR: No matching distribution found for click", "X0-BOOT-006"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED certificate verify failed", "X0-BOOT-006"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE FILE", "X0-BOOT-007"),
        ("ERROR: No matching distribution found for uvloop==0.23.0", "X0-BOOT-008"),
        ("Traceback\nAssertionError: of pip itself", "X0-BOOT-009"),
    ],
)
def test_what_pip_says_becomes_one_line(machine: Machine, pip_says: str, id: str) -> None:
    machine.python()
    (machine.home / "pip-fails").write_text(pip_says)
    refused(machine, id)
    (machine.home / "pip-fails").unlink()
    assert machine.x0("demo")[0] == 0, "and once it is mended, the next start succeeds"


def test_a_full_disk_is_seen_behind_a_failure_that_does_not_say_so(machine: Machine) -> None:
    machine.python()
    machine.program(
        "df", "#!/bin/sh\necho Filesystem 1024-blocks Used Available\necho x 9 9 9 9% /\n"
    )
    (machine.home / "pip-fails").write_text("returned non-zero exit status 1")
    refused(machine, "X0-BOOT-005")


def test_no_write_access(machine: Machine) -> None:
    machine.python()
    machine.clone.chmod(0o555)
    if os.geteuid() == 0:
        for directory in (machine.home, *machine.home.parents[:2]):
            directory.chmod(directory.stat().st_mode | 0o005)
        done = subprocess.run(
            [str(machine.clone / "x0"), "demo"],
            env=machine.environment,
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("x0: X0-BOOT-004: no write access to "), done.stderr
    else:
        refused(machine, "X0-BOOT-004")


# --- interrupted, and several at once -------------------------------------------------------------


def test_an_interrupted_set_up_is_done_again_from_the_start(machine: Machine) -> None:
    machine.python()
    machine.hold()
    process = machine.start("demo")
    machine.wait_for("pip")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    (machine.home / "hold").unlink()
    status, out, err = machine.x0("demo")
    assert (status, out) == (0, "ran -P -m x0tta6bl4 demo\n"), err
    assert "the last set-up did not finish" in err
    assert machine.log == ["venv", "pip", "venv", "pip", "compile"]


def test_two_at_once_set_up_once(machine: Machine) -> None:
    machine.python()
    machine.hold()
    first = machine.start("demo")
    machine.wait_for("pip")
    second = machine.start("demo")
    assert second.stderr is not None
    assert "another x0 is setting up this clone" in second.stderr.readline()
    machine.release()
    for process in (first, second):
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "ran -P -m x0tta6bl4 demo\n"), err
    assert machine.log == ["venv", "pip", "compile"]


def test_an_orphaned_pip_is_waited_for(machine: Machine) -> None:
    machine.python()
    machine.hold()
    first = machine.start("demo")
    machine.wait_for("pip")
    first.kill()
    second = machine.start("demo")
    assert second.stderr is not None
    assert "another x0 is setting up this clone" in second.stderr.readline()
    assert machine.log == ["venv", "pip"]
    machine.release()
    out, err = second.communicate(timeout=30)
    assert (second.returncode, out) == (0, "ran -P -m x0tta6bl4 demo\n"), err
    assert machine.log == ["venv", "pip", "venv", "pip", "compile"]
    first.communicate(timeout=30)


# --- the package's own entrance -------------------------------------------------------------------


def test_a_copy_without_a_command_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "x0tta6bl4.app.cli.main", None)
    assert entry.main() == 70
    assert capsys.readouterr().err.startswith("x0: X0-BOOT-013: ")
