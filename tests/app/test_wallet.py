"""What a node keeps on disk: modes, damage, full disk, and whose directory it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.ca import FakeCa
from x0tta6bl4.app.wallet import (
    KEPT,
    KEY,
    WORKLOADS,
    Wallet,
    note_pid,
    private_dir,
    read_private,
    write_private,
)
from x0tta6bl4.core.agent.words import Workloads
from x0tta6bl4.wire.authority import Entry
from x0tta6bl4.wire.errors import BadInput, Refused, Unavailable
from x0tta6bl4.wire.messages import SvidItem
from x0tta6bl4.wire.records import Bundle, encode_body

BUNDLE = encode_body(Bundle("t.mesh", 1, (b"anchor",), ()))


def test_a_new_node_has_a_key_and_nothing_else(tmp_path: Path) -> None:
    wallet = Wallet(tmp_path / "state")
    assert wallet.is_new
    assert wallet.svid is None
    assert wallet.known_bundle is None
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / KEY).stat().st_mode & 0o777 == 0o600


def test_key_svid_and_bundle_are_found_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    svid = FakeCa().svid("node/a")
    first = Wallet(tmp_path)
    first.keep(svid, BUNDLE)
    again = Wallet(tmp_path)
    assert not again.is_new
    assert again.svid == svid
    assert again.bundle == BUNDLE
    assert again.key.public_key() == first.key.public_key()
    assert (tmp_path / KEPT).stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.new"))


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    Wallet(tmp_path).keep(FakeCa().svid("node/a"), BUNDLE)
    data = (tmp_path / KEPT).read_bytes()
    for damaged in (b"", data[:-7], b"\xff" * 64):
        (tmp_path / KEPT).write_bytes(damaged)
        with pytest.raises(BadInput, match="X0-RUN-020: .* is damaged. remove it"):
            Wallet(tmp_path)


def test_workloads_are_found_again_unless_the_file_is_damaged_or_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    wallet, svid = Wallet(tmp_path), FakeCa().svid("web")
    assert wallet.workloads() == Workloads()
    item = SvidItem(svid.id, svid.chain, svid.key, svid.not_after_unix_s)
    kept = Workloads((Entry(svid.id, "a", ("unix:uid:1",), key="k"),), (item,))
    wallet.keep_workloads(kept)
    path = tmp_path / WORKLOADS
    assert Wallet(tmp_path).workloads() == kept
    assert path.stat().st_mode & 0o777 == 0o600
    data = path.read_bytes()
    for damaged in (b"", data[:-7], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="X0-RUN-026: .* is damaged: this node starts without"):
            wallet.workloads()
    path.chmod(0o640)
    with pytest.raises(Refused, match="X0-RUN-023"):
        wallet.workloads()


def test_files_and_directories_that_others_may_read_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(Refused, match="X0-RUN-001: .* is open to other users. chmod 700"):
        private_dir(tmp_path)
    tmp_path.chmod(0o700)
    Wallet(tmp_path)
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(Refused, match="X0-RUN-023: .* can be read by other users. chmod 600"):
        Wallet(tmp_path)


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="X0-RUN-021: can't use state_dir"):
        private_dir(tmp_path / "file" / "state")


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from x0tta6bl4.app.wallet import write_private
from x0tta6bl4.wire.errors import Unavailable

resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_private(Path(sys.argv[1]), bytes(5000))
except Unavailable as error:
    sys.exit(0 if error.id == "X0-RUN-025" else 1)
sys.exit(2)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"old")
    full = subprocess.run([sys.executable, "-c", _ON_A_FULL_DISK, str(path)], check=False)
    assert full.returncode == 0
    assert read_private(path) == b"old"
    assert os.listdir(tmp_path) == ["secret"]


def test_a_process_is_noted_and_a_full_disk_keeps_it_from_nothing(tmp_path: Path) -> None:
    note_pid(tmp_path / "pid")
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    note_pid(Path("/dev/full"))
