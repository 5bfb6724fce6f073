"""Whatever goes wrong is one line with an id and a hint: exit status 1, or 2 for a bad command."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.app.cli_world import LINE, NODE, Authority, Run, config_file, is_one_clear_line
from tests.app.test_admin import served
from tests.fakes.node_admin import FakeNode
from tests.real.lab import running
from x0tta6bl4.app.cli import main as cli
from x0tta6bl4.app.mesh import wait_for
from x0tta6bl4.app.wallet import KEY, Wallet, write_private

# arguments -> id, words in the line, exit status.  {…} are filled in by the test.
ALONE: dict[str, tuple[str, str, str, int]] = {
    "unknown command": ("stats", "X0-CLI-001", "did you mean status?", 2),
    "unknown subcommand": ("node lost", "X0-CLI-001", "did you mean list?", 2),
    "unknown option": ("status --wach", "X0-CLI-001", "did you mean --watch?", 2),
    "missing argument": ("path a", "X0-CLI-001", "see x0 path --help", 2),
    "too many arguments": ("down all", "X0-CLI-001", "see x0 down --help", 2),
    "options that exclude each other": ("status --watch --json", "X0-CLI-001", "exclude", 2),
    "no number": ("node drain --timeout soon", "X0-CLI-001", "soon", 2),
    "a timeout that is no number": ("svid show --timeout nan", "X0-CLI-001", "'nan'", 2),
    "a timeout without an end": ("jwt mint --audience a --timeout inf", "X0-CLI-001", "inf", 2),
    "a life longer than any number": (
        "token create --ttl 99999999999999999999",
        "X0-CLI-001",
        "'--ttl'",
        2,
    ),
    "no node here": ("status", "X0-CLI-020", "x0 up", 1),
    "no agent in that directory": ("status --state-dir {tmp}", "X0-ADM-001", "x0 node run", 1),
    "no mesh to hurt": ("kill n1", "X0-UP-002", "x0 up", 1),
    "no mesh to end": ("down", "X0-UP-002", "x0 up", 1),
    "no authority here": ("entry list", "X0-CLI-023", "x0 authority run", 1),
    "no authority there": ("entry list --authority {tmp}", "X0-CLI-023", "--authority", 1),
    "a settings file that is not there": (
        "node run --config {tmp}/no.toml",
        "X0-CFG-001",
        "no such file",
        1,
    ),
    "a directory as settings": ("node run --config {tmp}/d", "X0-CLI-001", "directory", 2),
    "settings with a typo": ("node run --config {tmp}/typo.toml", "X0-CFG-003", "'area'", 1),
    "settings of the other kind": (
        "authority run --config {tmp}/node.toml",
        "X0-CFG-003",
        "node: unknown key",
        1,
    ),
    "a trust domain that is none": (
        "authority init --trust-domain a_b! --config {tmp}/x.toml --state-dir {tmp}/x",
        "X0-CFG-007",
        "trust_domain",
        1,
    ),
    "settings that exist already": (
        "authority init --trust-domain e.org --config {tmp}/node.toml --state-dir {tmp}/x",
        "X0-CLI-030",
        "exists already",
        1,
    ),
    "a state_dir that is in use": (
        "authority init --trust-domain e.org --config {tmp}/x.toml --state-dir {tmp}/full",
        "X0-CLI-031",
        "not empty",
        1,
    ),
    "no directory for the report": (
        "demo --json {tmp}/no/out.json",
        "X0-CLI-014",
        "no such file",
        1,
    ),
    "a policy with a typo": ("policy apply {tmp}/typo.policy", "X0-CFG-006", "'allow'", 1),
    "a SPIFFE ID that is none": ("policy explain web client", "X0-ID-002", "spiffe://", 1),
}

AT_AUTHORITY: dict[str, tuple[str, str, str, int]] = {
    "an unknown name": ("name show nope", "X0-AUT-068", "x0 name list", 1),
    "an unknown entry": ("entry show nope", "X0-AUT-", "nope", 1),
    "an unknown node": ("node show nope", "X0-AUT-", "nope", 1),
    "an unknown node to evict": ("node evict nope --yes", "X0-AUT-", "nope", 1),
    "an unknown token": ("token delete 00", "X0-AUT-", "00", 1),
    "a name that exists": ("name create taken --id spiffe://example.org/b", "X0-AUT-", "taken", 1),
    "a reserved ID": (
        "entry create --id spiffe://example.org/node/a --node a --selector unix:uid:1",
        "X0-AUT-025",
        "reserved",
        1,
    ),
    "an ID of another domain": (
        "entry create --id spiffe://other.org/a --node a --selector unix:uid:1",
        "X0-AUT-",
        "other.org",
        1,
    ),
    "a selector that is none": (
        "entry create --id spiffe://example.org/a --node a --selector uid:1",
        "X0-SEL-",
        "uid:1",
        1,
    ),
    "a service on the network": (
        "entry create --id spiffe://example.org/a --node a --selector "
        "unix:uid:1 --address 192.0.2.1:80",
        "X0-AUT-",
        "192.0.2.1",
        1,
    ),
    "SVIDs for a year": (
        "entry create --id spiffe://example.org/a --node a --selector unix:uid:1 --ttl 31536000",
        "X0-AUT-",
        "31536000",
        1,
    ),
    "no selector": (
        "entry create --id spiffe://example.org/a --node a",
        "X0-CLI-001",
        "--selector",
        2,
    ),
    "an update of nothing": ("name update taken", "X0-CLI-001", "nothing to change", 2),
    "a token for a day": ("token create --ttl 86400", "X0-AUT-", "86400", 1),
    "a token for a bad name": ("token create --node A_B", "X0-", "A_B", 1),
    "a policy that fails its test": (
        "policy apply {tmp}/lying.policy --yes",
        "X0-POL-001",
        "nothing was applied",
        1,
    ),
    "nobody to ask": ("policy apply {tmp}/good.policy", "X0-CLI-001", "--yes", 2),
    "a revocation of nobody": ("authority revoke example.org --yes", "X0-", "example.org", 1),
    "an authority that is running": ("authority run --config {config}", "X0-", "", 1),
    "a full disk": ("token create --out /dev/full", "X0-CLI-010", "no space left", 1),
}


@pytest.mark.parametrize("case", ALONE)
def test_a_mistake_is_one_line(case: str, run: Run, world: Path) -> None:
    arguments, id, words, status = ALONE[case]
    is_one_clear_line(run(*arguments.format(tmp=world).split()), id, words, status)


@pytest.mark.parametrize("case", AT_AUTHORITY)
def test_a_mistake_at_the_authority_is_one_line(
    case: str, at_authority: Run, authority: Authority, world: Path
) -> None:
    if "taken" in case + AT_AUTHORITY[case][0]:
        at_authority("name", "delete", "taken")
        at_authority("name", "create", "taken", "--id", "spiffe://example.org/a")
    arguments, id, words, status = AT_AUTHORITY[case]
    filled = arguments.format(tmp=world, config=authority.config).split()
    ran = at_authority(*filled)
    if case == "nobody to ask":  # The plan comes first.
        assert "add r" in ran.out
        ran.out = ""
    is_one_clear_line(ran, id, words, status)


def test_mistakes_at_a_node_are_one_line(run: Run, tmp_path: Path) -> None:
    with served(tmp_path):
        is_one_clear_line(
            run("path", "a", "nowhere", "--state-dir", tmp_path), "X0-PTH-001", "see x0 status", 1
        )
        is_one_clear_line(
            run("support-bundle", "--out", "/dev/full", "--state-dir", tmp_path),
            "X0-CLI-010",
            "free some space",
            1,
        )
        is_one_clear_line(
            run("support-bundle", "--out", tmp_path / "no" / "x", "--state-dir", tmp_path),
            "X0-CLI-014",
            "no such file",
            1,
        )


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, first in (([], "Usage: x0 [OPTIONS]"), (["svid"], "Usage: x0 svid [OPTIONS]")):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(first)
        assert "Commands:" in lines


def test_a_name_that_no_node_here_has(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "up" / "mesh" / "n1"
    directory.mkdir(0o700, parents=True)
    with served(directory, FakeNode("n1")):
        is_one_clear_line(run("status", "--node", "n9"), "X0-CLI-021", "there are n1", 1)


def test_a_taken_port(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = (
            f'trust_domain = "e.org"\nstate_dir = "{tmp_path}/s"\n'
            f'listen = "127.0.0.1:{taken.getsockname()[1]}"\n'
        )
        config = config_file(tmp_path, text, "authority.toml")
        done = subprocess.run(
            [sys.executable, "-m", "x0tta6bl4", "authority", "run", "--config", config],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert LINE.fullmatch(last), done.stderr
    assert "taken" in last


def _open_directory(state: Path) -> None:
    state.chmod(0o755)


def _open_key(state: Path) -> None:
    Wallet(state)
    (state / KEY).chmod(0o644)


def _damaged_token(state: Path) -> None:
    write_private(state / "token", b"x0t1.AAAABBBBCCCC")


def _open_token(state: Path) -> None:
    write_private(state / "token", b"x0t1.AAAABBBBCCCC")
    (state / "token").chmod(0o644)


def _no_token(state: Path) -> None:
    pass


# what is done to a node before it starts -> id, words
NODES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a state_dir open to others": (_open_directory, "X0-RUN-001", "chmod 700"),
    "a key that others may read": (_open_key, "X0-RUN-023", "chmod 600"),
    "a damaged token": (_damaged_token, "X0-AUT-", "token"),
    "a token that others may read": (_open_token, "X0-RUN-023", "chmod 600"),
    "a node that was never enrolled": (_no_token, "X0-RUN-030", "x0 token create"),
}


def _start(directory: Path, more: str = "") -> str:
    """Start a node that can't start, and return its last line."""
    state = directory / "state"
    config = config_file(directory, NODE.format(state=state) + more)
    done = subprocess.run(
        [sys.executable, "-m", "x0tta6bl4", "node", "run", "--config", config],
        capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert LINE.fullmatch(last), done.stderr
    return last


PORTS = (
    '[data]\nlisten = "127.0.0.1:0"\n[control]\nlisten = "127.0.0.1:0"\n'
    '[authority]\ntoken_file = "{state}/token"\n'
)


@pytest.mark.parametrize("case", NODES)
def test_a_node_that_can_not_start_says_why(case: str, tmp_path: Path) -> None:
    do, id, words = NODES[case]
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    do(state)
    last = _start(tmp_path, PORTS.format(state=state))
    assert f"x0: {id}" in last
    assert words in last


def test_a_node_that_is_running_already(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with served(state):
        assert "x0: X0-RUN-003" in _start(tmp_path, PORTS.format(state=state))


def test_a_token_of_another_name_a_used_one_and_a_deleted_one(
    at_authority: Run, authority: Authority, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    more = PORTS.format(state=state).replace(
        "[authority]", f'[authority]\naddress = "127.0.0.1:{authority.port}"'
    )
    token = state / "token"
    assert at_authority("token", "create", "--node", "somebody", "--out", token).status == 0
    assert "somebody" in _start(tmp_path, more)
    wait_for(lambda: not running(tmp_path), "the proxy of a node that never got in to end", 5)
    assert at_authority("token", "create", "--node", "a", "--out", token).status == 0
    listed = json.loads(at_authority("token", "list", "--json").out)
    (id,) = [one["id"] for one in listed if one["node"] == "a"]
    assert at_authority("token", "delete", id).status == 0
    assert "token" in _start(tmp_path, more)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_what_another_user_may_not_read(run: Run, tmp_path: Path) -> None:
    """The same command as uid 65534: settings, a node's socket, an authority's directory."""
    config = config_file(tmp_path, "node = 1")
    config.chmod(0o600)
    with served(tmp_path):
        cases = (
            (["node", "run", "--config", config], "X0-CFG-001", "permission denied"),
            (["status", "--state-dir", tmp_path], "X0-ADM-002", "sudo"),
            (["entry", "list", "--authority", tmp_path / "x"], "X0-CLI-024", "sudo"),
        )
        for arguments, id, words in cases:
            run(*arguments)  # Imports what it needs while it may read it.
            heard, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 9
                with contextlib.suppress(BaseException):
                    os.setgid(65534)
                    os.setuid(65534)
                    ran = run(*arguments)
                    code = 0 if ran.status == 1 and id in ran.err and words in ran.err else 1
                    if code:
                        os.write(told, ran.err.encode()[-4000:])
                os._exit(code)
            os.close(told)
            with open(heard) as words_heard:
                said = words_heard.read()
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said


def test_output_that_nobody_reads_and_output_that_has_no_room(authority: Authority) -> None:
    command = [
        sys.executable,
        "-m",
        "x0tta6bl4",
        "name",
        "list",
        "--authority",
        str(authority.state),
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("x0: X0-CLI-010")
    assert len(done.stderr.splitlines()) == 1
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30, check=False
    )
    os.close(writer)
    assert done.stderr == ""
