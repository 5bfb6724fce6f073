"""Fixtures of the command line's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.cli_world import LYING, NODE, RULE, Authority, Ran, Run, config_file
from x0tta6bl4.app.cli.main import main


@pytest.fixture
def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Run]:
    """Run `x0 ARGUMENTS` in this process, in an empty world of its own."""
    monkeypatch.setenv("X0_UP_DIR", str(tmp_path / "up"))
    monkeypatch.setenv("X0_AUTHORITY_DIR", "")
    monkeypatch.delenv("X0_STATE_DIR", raising=False)
    monkeypatch.setattr("x0tta6bl4.app.cli.reach.SYSTEM_STATE", tmp_path / "system")

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        status = left.value.code
        assert isinstance(status, int)
        return Ran(status, out, err)

    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        yield call


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """One authority for all tests of the command line."""
    running = Authority(tmp_path_factory.mktemp("x0"))
    yield running
    running.stop()


@pytest.fixture
def at_authority(run: Run, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands that find the authority of these tests."""
    monkeypatch.setenv("X0_AUTHORITY_DIR", str(authority.state))
    return run


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Files that the cases name."""
    (tmp_path / "d").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    node = NODE.format(state=tmp_path / "state")
    config_file(tmp_path, node)
    config_file(tmp_path, node + "arae = 1\n", "typo.toml")
    config_file(tmp_path, RULE, "good.policy")
    config_file(tmp_path, LYING, "lying.policy")
    config_file(tmp_path, RULE.replace('"allow"', '"alow"'), "typo.policy")
    return tmp_path
