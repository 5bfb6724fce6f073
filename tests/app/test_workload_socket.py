"""Where the Workload API's socket stands, and who could replace it there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from x0tta6bl4.app.workload_api import check_directory, make_directory
from x0tta6bl4.wire.errors import Unavailable


def test_a_directory_of_our_own_is_open_to_enter_and_to_nothing_else(tmp_path: Path) -> None:
    made = tmp_path / "n1.api"
    make_directory(made)
    check_directory(made)
    assert made.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_in_which_others_write_is_refused(tmp_path: Path, mode: int) -> None:
    made = tmp_path / "n1.api"
    make_directory(made)
    made.chmod(mode)
    make_directory(made)
    with pytest.raises(Unavailable, match="X0-WLA-004"):
        check_directory(made)


def test_a_link_that_others_could_turn_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n1.api").symlink_to(tmp_path)
    with pytest.raises(Unavailable, match="X0-WLA-004"):
        check_directory(tmp_path / "n1.api")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "n1.api"
    make_directory(made)
    os.chown(made, 54_321, -1)
    with pytest.raises(Unavailable, match="X0-WLA-004"):
        check_directory(made)
