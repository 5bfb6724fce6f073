"""What service managers start: the same with and without the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from x0tta6bl4.app.cli.services import is_plain


def x0(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "x0tta6bl4", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("kind", ["node", "proxy", "authority"])
def test_errors_are_told_as_the_command_line_tells_them(kind: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    assert is_plain([kind, "run", "--config", missing])
    assert not is_plain([kind, "run", f"--config={missing}"])
    status, said = x0(kind, "run", "--config", missing)
    assert (status, said) == x0(kind, "run", f"--config={missing}")
    assert status == 1
    assert said.startswith("x0: X0-")
    assert missing in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["node", "run"],
        ["node", "run", "--config"],
        ["node", "run", "--config", "--help"],
        ["node", "run", "--config", "a", "b"],
        ["node", "stop", "--config", "a"],
        ["mesh", "run", "--config", "a"],
    ],
)
def test_everything_else_goes_to_the_command_line(arguments: list[str]) -> None:
    assert not is_plain(arguments)


def test_an_agent_starts_without_what_only_others_need() -> None:
    code = (
        "import sys; from x0tta6bl4.app.cli import services; import x0tta6bl4.app.agent\n"
        "print(*(m for m in ('click', 'joserfc', 'prometheus_client', 'sqlalchemy', 'rich')"
        " if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == ""
