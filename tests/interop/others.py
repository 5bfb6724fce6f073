"""Programs of others: built, or installed into a place of their own; skipped by name if not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GO = Path(__file__).parent / "go"


def python(root: Path, *packages: str) -> str:
    """An interpreter that has these packages, from PyPI and unchanged."""
    where = root / packages[0]
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(where)], capture_output=True, check=False, timeout=120
    )
    if made.returncode == 0:
        made = subprocess.run(
            [str(where / "bin" / "pip"), "install", "--quiet", *packages],
            capture_output=True, check=False, timeout=300,
        )  # fmt: skip
    if made.returncode:
        pytest.skip(f"needs the packages {', '.join(packages)}")
    return str(where / "bin" / "python")


def go(root: Path, program: str = ".") -> str:
    """A program on go-spiffe, by its folder in `go/`."""
    compiler = shutil.which("go") or "/usr/local/go/bin/go"
    if not os.path.exists(compiler):
        pytest.skip("needs go")
    made = subprocess.run(
        [compiler, "build", "-o", str(root / "interop"), program],
        cwd=GO, capture_output=True, check=False, timeout=400,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("needs Go 1.25 and the module github.com/spiffe/go-spiffe/v2")
    return str(root / "interop")
