"""`x0 svid` and `x0 jwt` against a Workload API: what lands in files, and who is told of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from x0tta6bl4.app import svid as work
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.sdk.testing.workload_api import WorkloadApi
from x0tta6bl4.wire.errors import BadInput

ID = "spiffe://example.org/web"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkloadApi]:
    with WorkloadApi() as served:
        served.issue("/web")
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", served.endpoint)
        yield served


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "x0tta6bl4", *arguments]


def x0(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), input=given, capture_output=True, text=True, timeout=30, check=False
    )


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(*arguments), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def serial(folder: Path, name: str = "svid.pem") -> int:
    """Serial of the leaf, after its key was seen to fit."""
    while True:
        where = os.path.realpath(folder / name)
        chain = (folder / name).read_bytes()
        key = (folder / "svid_key.pem").read_bytes()
        if os.path.realpath(folder / name) == where:  # Not between two sets.
            break
    leaf = x509.load_pem_x509_certificate(chain)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private = load_pem_private_key(key, None)
    assert private.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)
    return leaf.serial_number


def test_show_says_what_is_held_and_never_the_key(api: WorkloadApi) -> None:
    done = x0("svid", "show", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["id"] == ID
    assert row["key"] == "P-256"
    plain = x0("svid", "show")
    assert ID in plain.stdout
    pem = x0("svid", "show", "--pem")
    assert (
        int(row["serial"], 16) == x509.load_pem_x509_certificate(pem.stdout.encode()).serial_number
    )
    assert "PRIVATE" not in done.stdout + plain.stdout + pem.stdout


def test_write_once_leaves_files_that_fit_and_modes_that_hold(
    api: WorkloadApi, tmp_path: Path
) -> None:
    folder = tmp_path / "svid"
    done = x0("svid", "write", "--dir", str(folder), "--once", "--chain", "tls.crt")
    assert done.returncode == 0, done.stderr
    assert serial(folder, "tls.crt")
    assert stat.S_IMODE((folder / "svid_key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert b"BEGIN CERTIFICATE" in (folder / "bundle.pem").read_bytes()


def test_files_follow_rotations_and_go_with_the_identity(api: WorkloadApi, tmp_path: Path) -> None:
    folder, log = tmp_path / "svid", tmp_path / "told"
    tell = f"echo told >> {log}"
    with started("svid", "write", "--dir", str(folder), "--", "sh", "-c", tell):
        wait_for((folder / "svid.pem").exists, "the first files")
        seen = {serial(folder)}
        for _ in range(3):
            before = serial(folder)
            api.rotate()
            wait_for(lambda old=before: serial(folder) != old, "new files")  # type: ignore[misc]
            seen.add(serial(folder))
        assert len(seen) == 4
        wait_for(lambda: len(list(folder.glob(".x509-*"))) == 2, "older sets to be removed")
        wait_for(lambda: log.exists() and log.read_text().count("told") == 4, "four tellings")
        api.withdraw()
        wait_for(lambda: not list(folder.iterdir()), "all of it to go")


def test_a_process_is_told_by_a_signal(api: WorkloadApi, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "print(open(os.environ['X0_SVID_CHAIN']).read().count('BEGIN'), flush=True)\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('hup', flush=True))\n"
        "while True: signal.pause()\n"
    )
    with started("svid", "run", "--signal", "HUP", "--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        api.rotate()
        assert process.stdout.readline() == "hup\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


def test_a_process_starts_again_for_a_new_svid_and_ends_with_the_identity(
    api: WorkloadApi,
) -> None:
    script = (
        "import os, time\n"
        "print(os.getpid(), os.environ['X0_SVID_DIR'], flush=True)\n"
        "time.sleep(60)\n"
    )
    with started("svid", "run", "--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first, folder = process.stdout.readline().split()
        assert serial(Path(folder))
        api.rotate()
        second, _ = process.stdout.readline().split()
        assert second != first
        api.withdraw()
        assert process.wait(10) == 1
        assert "X0-SVD-002" in process.stderr.read()
    for pid in (first, second):
        assert not Path(f"/proc/{pid}").exists()
    assert not Path(folder).exists()


def test_its_own_status_is_that_of_the_process(api: WorkloadApi) -> None:
    assert x0("svid", "run", "--", "sh", "-c", "exit 7").returncode == 7


def test_a_token_is_minted_and_validated_and_refused_elsewhere(api: WorkloadApi) -> None:
    minted = x0("jwt", "mint", "--audience", "api")
    assert minted.returncode == 0, minted.stderr
    good = x0("jwt", "validate", "--audience", "api", given=minted.stdout)
    assert good.returncode == 0, good.stderr
    assert ID in good.stdout
    bad = x0("jwt", "validate", "--audience", "other", given=minted.stdout)
    assert bad.returncode == 1
    assert "X0-SDK-041" in bad.stderr
    assert minted.stdout.strip() not in good.stdout + bad.stderr


def test_the_wait_for_an_identity_can_be_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        silent.settimeout(20)
        with started("svid", "run", "--socket", f"unix:{tmp_path}/s", "--", "true") as process:
            silent.accept()[0].close()  # Now it waits, and knows its signals.
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 128 + signal.SIGINT


MISTAKES = {
    "svid write --dir {tmp}/d --once --mode 0644": "0600",
    "svid write --dir {tmp}/d --once --key a --chain a": "differ",
    "svid write --dir {tmp}/d --once --key ../a": "no /",
    "svid write --dir {tmp}/d --once --signal HUP": "X0-SVD-004",
    "svid write --dir {tmp}/d --once --signal NOPE --pid 1": "X0-SVD-005",
    "svid write --dir {tmp}/d --once --owner nobody-here": "X0-SVD-006",
    "svid write --dir {tmp}/d --once --owner 0:4294967295": "X0-SVD-006",
    "svid write --dir {tmp}/d --once --owner :²": "X0-SVD-006",
    "jwt validate --audience api {tmp}/garbage": "X0-SDK-041",
    "svid write --dir {tmp}/d --once --id spiffe://example.org/other": "X0-SVD-001",
    "svid run -- {tmp}/nothing-here": "X0-SVD-003",
    "svid show --socket unix:relative": "X0-SDK-002",
    "svid show --socket unix:{tmp}/none --timeout 0.3": "X0-SDK",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(api: WorkloadApi, tmp_path: Path, arguments: str) -> None:
    (tmp_path / "garbage").write_bytes(bytes(range(256)))
    done = x0(*arguments.format(tmp=tmp_path).split())
    assert done.returncode in (1, 2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert MISTAKES[arguments] in done.stderr
    assert not (tmp_path / "d" / "svid_key.pem").exists()


def test_who_waits_long_is_told_for_what(tmp_path: Path) -> None:
    done = x0("svid", "show", "--socket", f"unix:{tmp_path}/none", "--timeout", "2.4")
    assert done.returncode == 1
    waiting, error = done.stderr.splitlines()
    assert "waiting up to 0 s more" in waiting
    assert "X0-SDK" in error


def test_signals_and_owners_have_several_spellings() -> None:
    assert work.signal_number("HUP") == work.signal_number("sighup") == work.signal_number("1") == 1
    assert work.owner("12:34") == (12, 34)
    assert work.owner(":34") == (-1, 34)
    assert work.owner("root") == (0, -1)
    with pytest.raises(BadInput, match="X0-SVD-005"):
        work.signal_number("99")
