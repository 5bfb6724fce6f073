"""`x0 dev`: one command, and two workloads that know each other; Ctrl-C, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from x0tta6bl4.app.dev import Dev
from x0tta6bl4.wire.errors import Conflict

X0 = [sys.executable, "-m", "x0tta6bl4"]


def said(process: subprocess.Popen[str], word: str) -> str:
    """The next line with a word in it."""
    assert process.stdout is not None
    heard = []
    for line in process.stdout:
        heard.append(line)
        if word in line:
            return line.strip()
    raise AssertionError(f"never said {word!r}: {heard}")


def children(process: subprocess.Popen[str], root: str) -> list[str]:
    """Living processes that were started with this directory in their arguments or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if root.encode() in about and int(entry.name) not in (os.getpid(), process.pid):
            found.append(entry.name)
    return found


def test_two_workloads_talk_and_a_third_gets_its_identity() -> None:
    with subprocess.Popen(
        [*X0, "dev", "--ttl", "10", "--workload", "web"], text=True, stdout=subprocess.PIPE
    ) as process:
        try:
            root = said(process, "starting the trust domain").rpartition(" ")[2]
            endpoint = said(process, "export SPIFFE_ENDPOINT_SOCKET=").partition("=")[2]
            state_dir = said(process, "export X0_STATE_DIR=").partition("=")[2]
            heard = said(process, "shop heard")
            assert "'12 of apples' from spiffe://dev.test/stock, X25519MLKEM768" in heard
            shown = subprocess.run(
                [*X0, "svid", "show", "--json"],
                env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": endpoint},
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            assert "spiffe://dev.test/web" in [row["id"] for row in json.loads(shown.stdout)]
            asked = subprocess.run(
                [*X0, "explain", "denied", "spiffe://dev.test/db"],
                env={**os.environ, "X0_STATE_DIR": state_dir},
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
            assert asked.returncode == 1
            assert "X0-DEN-004: no entry gives spiffe://dev.test/db to" in asked.stdout
            first = said(process, "stock holds")
            assert said(process, "stock holds") != first, "rotated"
            assert "'12 of apples'" in said(process, "shop heard")
            assert children(process, root)
            process.terminate()
            assert process.wait(15) == 0
        finally:
            process.kill()
    assert not children(process, root)
    assert not Path(root).exists()


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        (["--workload", "node/x"], "X0-DEV-001"),
        (["--workload", "a b"], "X0-ID-003"),
        (["--ttl", "5"], "X0-CLI-001"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], id: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        done = subprocess.run(
            [*X0, "dev", "--dir", f"{folder}/d", *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert id in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not Path(f"{folder}/d").exists()


def test_a_part_that_dies_ends_it_and_is_named() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        arguments = ["dev", "--no-demo", "--dir", f"{folder}/d"]
        with subprocess.Popen(
            [*X0, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                said(process, "export X0_AUTHORITY_DIR=")
                os.kill(
                    int(Path(f"{folder}/d/authority/authority.pid").read_text()), signal.SIGKILL
                )
                assert process.stderr is not None
                assert "X0-DEV-004: authority has ended" in process.stderr.read()
                assert process.wait(15) == 1
            finally:
                process.kill()
        assert not children(process, folder)


def test_a_second_one_in_the_same_directory_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        first = Dev(Path(folder) / "d", "dev.test", (), 60, lambda _: None)
        try:
            first.start(demo=False)
            second = Dev(Path(folder) / "d", "dev.test", (), 60, lambda _: None)
            with pytest.raises(Conflict, match="X0-DEV-002"):
                second.start(demo=False)
            second.stop()
            assert first.is_alive()
        finally:
            first.stop()
