"""The import contracts of pyproject.toml hold, and they do say no."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import tree

_LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

_SMALL_HOUSE = {
    "__init__.py": "",
    "__main__.py": "import x0tta6bl4.app.cli",
    "app/__init__.py": "",
    "app/cli.py": "import x0tta6bl4.edge.tls, x0tta6bl4.runtime.loop.poll",
    "edge/__init__.py": "",
    "edge/tls.py": "import x0tta6bl4.core.identity",
    "runtime/__init__.py": "",
    "runtime/aio.py": "",
    "runtime/loop/__init__.py": "",
    "runtime/loop/poll.py": "import x0tta6bl4.core.machine",
    "core/__init__.py": "",
    "core/agent.py": "import x0tta6bl4.core.identity, x0tta6bl4.core.links",
    "core/identity.py": "import x0tta6bl4.core.machine",
    "core/links.py": "import x0tta6bl4.core.machine",
    "core/machine.py": "import x0tta6bl4.wire.ids",
    "core/proxy.py": "",
    "sdk/__init__.py": "",
    "sdk/identity.py": "import x0tta6bl4.edge.tls, x0tta6bl4.runtime.aio",
    "sdk/testing.py": "import x0tta6bl4.edge.tls",
    "wire/__init__.py": "",
    "wire/ids.py": "",
}


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the house that stands in this directory."""
    return subprocess.run(
        [sys.executable, "-c", _LINT, "--no-cache"],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house / "src"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_floors_hold() -> None:
    answer = lint(tree.ROOT)
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-2000:]


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    for name, code in _SMALL_HOUSE.items():
        path = tmp_path / "src" / "x0tta6bl4" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    shutil.copy(tree.ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_small_house_stands(small_house: Path) -> None:
    answer = lint(small_house)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "code", "contract"),
    [
        ("attic.py", "", "floors"),
        ("core/attic.py", "", "core"),
        ("runtime/attic.py", "", "runtime"),
        ("wire/ids.py", "import x0tta6bl4.core.machine", "floors"),
        ("core/links.py", "import x0tta6bl4.edge.tls", "floors"),
        ("core/links.py", "import x0tta6bl4.core.identity", "core"),
        ("core/machine.py", "import x0tta6bl4.core.identity", "core"),
        ("core/agent.py", "import x0tta6bl4.core.proxy", "core"),
        ("edge/tls.py", "import x0tta6bl4.runtime.aio", "floors"),
        ("edge/tls.py", "import x0tta6bl4.app.cli", "floors"),
        ("runtime/aio.py", "import x0tta6bl4.runtime.loop.poll", "runtime"),
        ("sdk/attic.py", "", "sdk"),
        ("sdk/testing.py", "import x0tta6bl4.sdk.identity", "sdk"),
        ("edge/tls.py", "import x0tta6bl4.sdk.identity", "floors"),
    ],
)
def test_a_door_that_must_not_be_is_found(
    small_house: Path, module: str, code: str, contract: str
) -> None:
    (small_house / "src" / "x0tta6bl4" / module).write_text(code)
    answer = lint(small_house)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    broken = [line for line in answer.stdout.splitlines() if line.endswith("BROKEN")]
    said = [line for line in broken if line.startswith(f"{contract}:")]
    assert said or (not code and "not listed" in answer.stdout + answer.stderr), answer.stdout
