"""What a Python process runs: its script or module, and its virtual environment.

Source: "Command line and environment" of the Python documentation; `Python/getopt.c` and
`Modules/main.c` of CPython; PEP 405 (`pyvenv.cfg`), PEP 376 and 627 (`RECORD`).

Command line and environment are the process's own words: whoever runs as its user can write them.
So these selectors tell apart the programs of one user who means well, and `core.identity.selectors`
wants the user beside them.  What can be ruled out is: a script that changed after the process
began, code from anywhere else (`-c`, standard input, PYTHONPATH, a working directory), a relative
path that another directory would make mean something else, and another mount namespace.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest.files import Hashed, Hashes
from x0tta6bl4.edge.attest.proc import started_ticks

SCRIPT_BYTES_MAX: Final = 64 << 20
WORDS_BYTES_MAX: Final = 1 << 20
"""Command line, or environment."""
VENV_FILES_MAX: Final = 4096
VENV_BYTES_MAX: Final = 64 << 20
INTERPRETER: Final = re.compile(r"python3(\.[0-9]{1,2})?t?\Z")

_FLAGS: Final = "bBdEhiIOPqRsStuvVx?"
"""Options of one letter; these take a value: -c -m -W -X."""
_LOADER: Final = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT")
_BENDING: Final = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONPLATLIBDIR",
    "PYTHONPYCACHEPREFIX",
    "PYTHONINSPECT",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PYTHONCASEOK",
    "PYTHONEXECUTABLE",
)


@final
class Run(Value, frozen=True):
    """What a command line says that Python does."""

    script: str = ""
    module: str = ""
    options: frozenset[str] = frozenset()


@final
class Wanted(Value, frozen=True):
    """What to find out."""

    script_sha256: bool = False
    venv: bool = False


def look(
    pid: int, exe: str, wanted: Wanted, hashes: Hashes, proc: str = "/proc"
) -> frozenset[str] | Denied:
    """Selectors of the python family that hold for a process, but its interpreter's hash.

    Args:
        pid: held by the caller of this, who checks afterwards that it is still the same.
        exe: its executable.
        wanted: what costs more.
        hashes: of files.
        proc: where procfs is mounted.
    Raises:
        OSError: something can't be read.
    """
    base = f"{proc}/{pid}"
    if not INTERPRETER.match(os.path.basename(exe)):
        return Denied("executable is no Python")
    if (
        os.stat(f"{base}/ns/mnt").st_ino != os.stat(f"{proc}/self/ns/mnt").st_ino
        or os.readlink(f"{base}/root") != "/"
    ):
        return Denied("caller has a file system of its own")
    words = _words(f"{base}/cmdline")
    variables = dict(pair.partition("=")[::2] for pair in reversed(_words(f"{base}/environ")))
    run = parse_command(words[1:])
    if isinstance(run, Denied):
        return run
    bent = _bent(run, variables)
    if bent is not None:
        return bent
    venv = _venv(words[0], variables, exe)
    facts = {f"python:interpreter:{exe}"}
    if run.module:
        facts.add(f"python:module:{run.module}")
        file = _module(run, venv, hashes)
    else:
        file = _script(run.script, hashes)
    if isinstance(file, Denied):
        return file
    if file.ctime_ns > _started_ns(pid, proc):
        return Denied("script was changed after the process began")
    facts.add(f"python:{'module-path' if run.module else 'script'}:{file.path}")
    if wanted.script_sha256:
        facts.add(f"python:script-sha256:{file.sha256}")
    if wanted.venv:
        digest = venv_sha256(venv) if isinstance(venv, str) else venv
        if isinstance(digest, Denied):
            return digest
        facts.add(f"python:venv-sha256:{digest}")
    return frozenset(facts)


def parse_command(words: list[str]) -> Run | Denied:
    """What `python` does with these arguments, read as CPython reads them.

    Returns:
        Denied where it runs no file, or one and then something else.
    """
    options: set[str] = set()
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        if word == "--check-hash-based-pycs":
            at += 1
            continue
        if word.startswith("--"):
            return Denied("python runs no file")
        for place, letter in enumerate(word[1:], 2):
            if letter in _FLAGS:
                options.add(letter)
                continue
            if letter not in "cmWX":
                return Denied("command line is not Python's")
            value = word[place:]
            if not value:
                if at >= len(words):
                    return Denied("command line is not Python's")
                value, at = words[at], at + 1
            if letter == "c":
                return Denied("python runs code of its command line")
            if letter == "X" and value.startswith(("pycache_prefix", "presite")):
                return Denied("python takes code from elsewhere")
            if letter == "m":
                return _checked(Run("", value, frozenset(options)))
            break
    if at >= len(words) or words[at] in ("", "-"):
        return Denied("python runs no file")
    return _checked(Run(words[at], "", frozenset(options)))


def _checked(run: Run) -> Run | Denied:
    if run.options & set("hV?"):
        return Denied("python runs no file")
    return Denied("python reads code when its script has ended") if "i" in run.options else run


def _bent(run: Run, variables: dict[str, str]) -> Denied | None:
    """Whether the environment decides what code is run."""
    ignored = run.options & set("EI")
    for name in _LOADER if ignored else (*_LOADER, *_BENDING):
        if variables.get(name):
            return Denied(f"{name} decides what it runs")
    return None


def _script(path: str, hashes: Hashes) -> Hashed | Denied:
    """A script or zip archive; a directory is none, its content could be anything."""
    if not path.startswith("/"):
        return Denied("script was named by a relative path")
    return hashes.at(path, "script", SCRIPT_BYTES_MAX)


def _module(run: Run, venv: str | Denied, hashes: Hashes) -> Hashed | Denied:
    """The file of a module, where nothing but the virtual environment can be what it comes from."""
    if not run.options & set("PI"):
        return Denied("module may be of the working directory; give python -P or -I")
    if isinstance(venv, Denied):
        return venv
    parts = run.module.split(".")
    if parts[0] in sys.stdlib_module_names:
        return Denied("module is of the standard library")
    if not all(part.isidentifier() for part in parts):
        return Denied("command line is not Python's")
    site = _site(venv)
    if isinstance(site, Denied):
        return site
    base = f"{site}/{'/'.join(parts)}"
    # A package comes before a module of the same name.
    for path in (f"{base}/__main__.py", f"{base}.py"):
        if os.path.lexists(path):
            return hashes.at(path, "module", SCRIPT_BYTES_MAX)
    return Denied("module is not in the virtual environment")


def _venv(argv0: str, variables: dict[str, str], exe: str) -> str | Denied:
    """Root of the virtual environment, found as Python finds it: beside the name it was called."""
    called = argv0
    if "/" not in argv0:
        places = variables.get("PATH", "").split(":")
        found = (f"{place}/{argv0}" for place in places if place.startswith("/"))
        called = next((path for path in found if os.access(path, os.X_OK)), "")
    if not called.startswith("/"):
        return Denied("python was called by a relative path")
    try:
        if not os.path.samefile(called, exe):
            return Denied("command line does not name the interpreter")
    except OSError:
        return Denied("command line does not name the interpreter")
    beside = os.path.dirname(os.path.abspath(called))
    for root in (beside, os.path.dirname(beside)):
        if os.path.isfile(f"{root}/pyvenv.cfg"):
            return root
    return Denied("python runs outside of a virtual environment")


def _site(venv: str) -> str | Denied:
    """The one `site-packages` of a virtual environment."""
    lib = f"{venv}/lib"
    names = [name for name in os.listdir(lib) if re.match(r"python3\.[0-9]{1,2}t?\Z", name)]
    if len(names) != 1:
        return Denied("virtual environment has not one site-packages")
    return f"{lib}/{names[0]}/site-packages"


def venv_sha256(venv: str) -> str | Denied:
    """One hash of what is installed in a virtual environment.

    SHA-256 over lines `sha256 name`, sorted by name: of `pyvenv.cfg`, of every RECORD, which has
    the hashes of all that a distribution installed, and of each file that lies in `site-packages`
    itself, such as `.pth` files and `sitecustomize.py`.

    Args:
        venv: its root.
    Raises:
        OSError: something can't be read.
    """
    site = _site(venv)
    if isinstance(site, Denied):
        return site
    names = [f"{venv}/pyvenv.cfg"]
    with os.scandir(site) as found:
        for item in found:
            if item.name.endswith(".dist-info"):
                names.append(f"{item.path}/RECORD")
            elif item.is_file():
                names.append(item.path)
            if len(names) > VENV_FILES_MAX:
                return Denied("virtual environment has too many files")
    lines, left = [], VENV_BYTES_MAX
    hashes = Hashes()
    for name in names:
        hashed = hashes.at(name, "file of the virtual environment", left)
        if isinstance(hashed, Denied):
            return hashed
        left -= hashed.size_bytes
        lines.append(f"{hashed.sha256} {os.path.relpath(name, venv)}\n")
    whole = "".join(sorted(lines, key=lambda line: line[65:]))
    return hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()


def _words(path: str) -> list[str]:
    """Command line or environment; what stands after the last NUL was not put there by an exec.

    Raises:
        OSError: it can't be read, or is too long.
    """
    with open(path, "rb") as file:
        data = file.read(WORDS_BYTES_MAX + 1)
    if len(data) > WORDS_BYTES_MAX:
        raise OSError(0, "too long")
    return data.decode(errors="surrogateescape").split("\0")[:-1] or [""]


def _started_ns(pid: int, proc: str) -> int:
    """When a process started, by the wall clock that files are stamped with."""
    boot_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(
        time.CLOCK_BOOTTIME
    )
    ticks = started_ticks(pid, proc)
    return boot_ns + ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
