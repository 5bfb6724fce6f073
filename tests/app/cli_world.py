"""A world for commands: an authority of their own, files, and what a command leaves behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from x0tta6bl4.app.cli.main import main
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.operator import Operator

LINE = re.compile(r"x0: X0-[A-Z]+-\d{3}: .+\. .+")


class Ran:
    """What a command left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


Run = Callable[..., Ran]


class Authority:
    """A real authority in a process of its own."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = directory / "authority.toml"
        self.state = directory / "authority"
        with pytest.raises(SystemExit, match="0"):
            main(
                [
                    "authority",
                    "init",
                    "--trust-domain",
                    "example.org",
                    "--config",
                    str(self.config),
                    "--state-dir",
                    str(self.state),
                    "--listen",
                    f"127.0.0.1:{self.port}",
                ]
            )
        with open(directory / "out.log", "wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "x0tta6bl4",
                    "authority",
                    "run",
                    "--config",
                    str(self.config),
                ],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        wait_for(Operator(self.state).is_serving, "the authority")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


def config_file(directory: Path, text: str = "", name: str = "node.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


NODE = 'trust_domain = "example.org"\nnode = "a"\nstate_dir = "{state}"\n'
RULE = (
    '[[rule]]\nid = "r"\neffect = "allow"\ncallers = ["spiffe://example.org/a"]\n'
    'targets = ["spiffe://example.org/b"]\n'
)
LYING = (
    RULE + '[[test]]\ncaller = "spiffe://example.org/a"\ntarget = "spiffe://example.org/b"\n'
    'expect = "deny"\n'
)


def is_one_clear_line(ran: Ran, id: str, words: str, status: int) -> None:
    assert ran.status == status, ran.err
    assert LINE.fullmatch(ran.err.strip()), ran.err
    assert f"x0: {id}" in ran.err
    assert words in ran.err
    assert ran.out == ""
