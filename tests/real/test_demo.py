"""The main job, as a newcomer runs it: `x0 demo` loses no request and lets no impostor in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ACTS = (
    "nothing happens",
    "relay killed",
    "relay frozen",
    "agent killed",
    "agent and authority killed",
    "all SVIDs rotated",
    "policy changed",
    "identity revoked",
    "impostors",
)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose name leaves room for Unix sockets below it."""
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        yield Path(name)


@pytest.mark.timeout(300)
def test_the_demo_loses_no_request_and_lets_no_impostor_in(short_path: Path) -> None:
    tmp_path = short_path
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "x0tta6bl4", "demo", "--json", str(out)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    report = json.loads(out.read_text())
    assert tuple(act["name"] for act in report["acts"]) == ACTS
    assert all(act["failed"] == 0 and act["requests"] >= 400 for act in report["acts"])
    assert report["requests"] >= 5_000
    assert report["failed"] == 0
    assert report["bulk"]["sha256_ok"]
    assert report["bulk"]["bytes"] >= 256 << 20
    assert report["rotations"] >= 10
    assert report["impostors"]["tried"] >= 100
    assert report["impostors"]["accepted"] == 0
    killed = report["acts"][1]
    assert killed["path_after"][1] != killed["path_before"][1]
    left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _belongs(p, str(tmp_path))]
    assert left == []


def _belongs(process: Path, folder: str) -> bool:
    try:
        return folder.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
