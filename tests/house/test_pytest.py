"""What every test gets from conftest.py and pyproject.toml does bite."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.house import tree


def outcome(tmp_path: Path, code: str, *arguments: str) -> str:
    """Run one test module under the project's own settings; pytest's last line."""
    shutil.copy(tree.ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(tree.ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_it.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.stdout


def test_an_error_line_fails_a_test_that_does_not_mean_it(tmp_path: Path) -> None:
    code = (
        "import logging, pytest\n"
        "def test_one(): logging.getLogger('asyncio').error('exception was never retrieved')\n"
        "@pytest.mark.logs_errors\n"
        "def test_two(): logging.getLogger('x').error('meant')\n"
    )
    said = outcome(tmp_path, code)
    assert "never retrieved" in said
    assert "2 passed, 1 error" in said


def test_what_a_test_must_not_do_is_seen(tmp_path: Path) -> None:
    code = (
        "import pytest, threading, warnings\n"
        "def test_warning(): warnings.warn('old')\n"
        "async def test_never_awaited(): assert True\n"
        "def test_hanging(): threading.Event().wait()\n"
        "def test_lost_exception():\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "@pytest.mark.night\n"
        "def test_long(): assert False\n"
    )
    said = outcome(tmp_path, code, "--timeout=1")
    assert "4 failed, 1 deselected" in said
    for what in ("UserWarning: old", "async def", "Timeout", "ZeroDivisionError"):
        assert what in said


def test_an_unknown_marker_is_no_marker(tmp_path: Path) -> None:
    code = "import pytest\n@pytest.mark.nite\ndef test_one(): ...\n"
    assert "'nite' not found" in outcome(tmp_path, code)


def test_seeds_are_fixed_but_at_night(tmp_path: Path) -> None:
    code = (
        "import hypothesis, pytest\n"
        "def test_day(): assert hypothesis.settings().derandomize\n"
        "@pytest.mark.night\n"
        "def test_night(): assert not hypothesis.settings().derandomize\n"
    )
    assert "1 passed, 1 deselected" in outcome(tmp_path, code)
    shutil.rmtree(tmp_path / "tests")
    assert "1 failed, 1 passed" in outcome(tmp_path, code, "-m", "night or not night")
