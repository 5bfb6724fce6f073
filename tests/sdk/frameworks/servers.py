"""Real servers from packages, each on a Unix socket in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_S = 30.0


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"needs {name} (package {package})")
    return found


@contextmanager
def _running(
    command: list[str], ready: Callable[[], bool], log: Path, user: str | None
) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, user=user, cwd=log.parent)
    try:
        limit = time.monotonic() + START_S
        while not ready():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.01)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL waits for no session then.
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as tried, contextlib.suppress(OSError):
        tried.connect(path)
        return True
    return False


@contextmanager
def redis_server() -> Iterator[str]:
    """Redis without a TCP port; gives its socket."""
    program = _program("redis-server", "redis-server")
    folder = Path(tempfile.mkdtemp(prefix="x0-redis-"))
    path = f"{folder}/s"
    command = [
        program, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700",
        "--save", "", "--appendonly", "no", "--dir", str(folder),
    ]  # fmt: skip
    try:
        with _running(command, lambda: _answers(path), folder / "log", None):
            yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _other_user() -> str | None:
    """PostgreSQL does not run as root; None: we are somebody else already."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("needs a user that is not root")


@contextmanager
def postgres_server(setup: str) -> Iterator[str]:
    """PostgreSQL without a TCP port; gives its socket.

    Args:
        setup: SQL that a superuser runs at first.
    """
    program, initdb = (_program(name, "postgresql") for name in ("postgres", "initdb"))
    user = _other_user()
    folder = Path(tempfile.mkdtemp(prefix="x0-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    try:
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-N", "-U", "admin", "--no-locale", "-E", "UTF8"],
            check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        subprocess.run(
            [program, "--single", "-D", data, "postgres"],
            input=setup, text=True, check=True, user=user, cwd=folder,
            capture_output=True, timeout=60,
        )  # fmt: skip
        path = f"{folder}/.s.PGSQL.5432"
        settings = {
            "listen_addresses": "", "unix_socket_directories": folder, "fsync": "off",
            "shared_buffers": "8MB", "max_connections": "40", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        command = [program, "-D", str(data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with _running(command, lambda: _answers(path), folder / "log", user):
            yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)
