"""Authorities as processes that start in milliseconds: forked from one that has imported all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from x0tta6bl4.app.authority import ADMIN_SOCKET

ROOT = Path(__file__).parents[2]
_PARENT = """
import os, signal, sys
import sqlalchemy.dialects.sqlite.pysqlite
from pathlib import Path
from x0tta6bl4.app.authority import main
from x0tta6bl4.app.settings import read_authority
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            os._exit(main(read_authority(Path(line.strip()))))
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
"""


class Forks:
    """Starts and kills one authority again and again.

    Args:
        config: its `authority.toml`.
        state_dir: where its admin socket appears.
    """

    def __init__(self, config: Path, state_dir: Path) -> None:
        self._config = config
        self._socket = state_dir / ADMIN_SOCKET
        self.errors = config.with_suffix(".err")
        self.pid = 0
        with open(self.errors, "wb") as errors:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, bufsize=0,
            )  # fmt: skip
        self._line()

    def _line(self) -> bytes:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline()

    def start(self) -> None:
        """Start it and wait until an operator could connect."""
        import socket

        assert self._parent.stdin is not None
        self._parent.stdin.write(f"{self._config}\n".encode())
        self.pid = int(self._line())
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self._socket)) == 0:
                    return
            time.sleep(0.005)
        raise AssertionError(self.errors.read_text())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> None:
        """Until it is gone."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.002)
        raise AssertionError("the authority does not end")

    def close(self) -> None:
        """Kill what is left."""
        if self.pid:
            self.kill()
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait(10)
