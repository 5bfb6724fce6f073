"""The command line: what is right works, what is wrong is one line with an id and a hint."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from tests.app.test_admin import served
from tests.fakes.node_admin import FakeNode
from x0tta6bl4.app.cli import main as cli
from x0tta6bl4.app.cli.main import COMMANDS, main, root
from x0tta6bl4.app.operator import Operator

LINE = re.compile(r"x0: X0-[A-Z]+-\d{3}: .+\. .+")


class Ran:
    """What a command left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


Run = Callable[..., Ran]


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


class Authority:
    """A real authority in a process of its own."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = directory / "authority.toml"
        self.state = directory / "authority"
        with pytest.raises(SystemExit, match="0"):
            main(
                [
                    "authority",
                    "init",
                    "--trust-domain",
                    "example.org",
                    "--config",
                    str(self.config),
                    "--state-dir",
                    str(self.state),
                    "--listen",
                    f"127.0.0.1:{self.port}",
                ]
            )
        with open(directory / "out.log", "wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "x0tta6bl4",
                    "authority",
                    "run",
                    "--config",
                    str(self.config),
                ],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        Operator(self.state).wait(30)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """One authority for all tests of this file."""
    running = Authority(tmp_path_factory.mktemp("x0"))
    yield running
    running.stop()


# ------------------------------------------------------------------ what is wrong
def _config(directory: Path, text: str = "", name: str = "node.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


NODE = 'trust_domain = "example.org"\nnode = "a"\nstate_dir = "{state}"\n'
RULE = (
    '[[rule]]\nid = "r"\neffect = "allow"\ncallers = ["spiffe://example.org/a"]\n'
    'targets = ["spiffe://example.org/b"]\n'
)
LYING = (
    RULE + '[[test]]\ncaller = "spiffe://example.org/a"\ntarget = "spiffe://example.org/b"\n'
    'expect = "deny"\n'
)

# arguments -> id, words in the line, exit status.  {…} are filled in by the test.
ALONE: dict[str, tuple[str, str, str, int]] = {
    "unknown command": ("stats", "X0-CLI-001", "did you mean status?", 2),
    "unknown subcommand": ("node lost", "X0-CLI-001", "did you mean list?", 2),
    "unknown option": ("status --wach", "X0-CLI-001", "did you mean --watch?", 2),
    "missing argument": ("path a", "X0-CLI-001", "see x0 path --help", 2),
    "too many arguments": ("down all", "X0-CLI-001", "see x0 down --help", 2),
    "options that exclude each other": ("status --watch --json", "X0-CLI-001", "exclude", 2),
    "no number": ("node drain --timeout soon", "X0-CLI-001", "soon", 2),
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


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Files that the cases name."""
    (tmp_path / "d").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    node = NODE.format(state=tmp_path / "state")
    _config(tmp_path, node)
    _config(tmp_path, node + "arae = 1\n", "typo.toml")
    _config(tmp_path, RULE, "good.policy")
    _config(tmp_path, LYING, "lying.policy")
    _config(tmp_path, RULE.replace('"allow"', '"alow"'), "typo.policy")
    return tmp_path


def _is_one_clear_line(ran: Ran, id: str, words: str, status: int) -> None:
    assert ran.status == status, ran.err
    assert LINE.fullmatch(ran.err.strip()), ran.err
    assert f"x0: {id}" in ran.err
    assert words in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("case", ALONE)
def test_a_mistake_is_one_line(case: str, run: Run, world: Path) -> None:
    arguments, id, words, status = ALONE[case]
    _is_one_clear_line(run(*arguments.format(tmp=world).split()), id, words, status)


@pytest.fixture
def at_authority(run: Run, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands that find the authority of this file."""
    monkeypatch.setenv("X0_AUTHORITY_DIR", str(authority.state))
    return run


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
    _is_one_clear_line(ran, id, words, status)


def test_mistakes_at_a_node_are_one_line(run: Run, tmp_path: Path) -> None:
    with served(tmp_path):
        _is_one_clear_line(
            run("path", "a", "nowhere", "--state-dir", tmp_path), "X0-PTH-001", "see x0 status", 1
        )
        _is_one_clear_line(
            run("support-bundle", "--out", "/dev/full", "--state-dir", tmp_path),
            "X0-CLI-010",
            "free some space",
            1,
        )
        _is_one_clear_line(
            run("support-bundle", "--out", tmp_path / "no" / "x", "--state-dir", tmp_path),
            "X0-CLI-014",
            "no such file",
            1,
        )


def test_a_name_that_no_node_here_has(run: Run, tmp_path: Path) -> None:
    directory = tmp_path / "up" / "mesh" / "n1"
    directory.mkdir(parents=True)
    with served(directory, FakeNode("n1")):
        _is_one_clear_line(run("status", "--node", "n9"), "X0-CLI-021", "there are n1", 1)


def test_a_taken_port(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = (
            f'trust_domain = "e.org"\nstate_dir = "{tmp_path}/s"\n'
            f'listen = "127.0.0.1:{taken.getsockname()[1]}"\n'
        )
        config = _config(tmp_path, text, "authority.toml")
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


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_what_another_user_may_not_read(run: Run, tmp_path: Path) -> None:
    """The same command as uid 65534: settings, a node's socket, an authority's directory."""
    config = _config(tmp_path, "node = 1")
    config.chmod(0o600)
    with served(tmp_path):
        cases = (
            (["node", "run", "--config", config], "X0-CFG-001", "permission denied"),
            (["status", "--state-dir", tmp_path], "X0-ADM-002", "sudo"),
            (["entry", "list", "--authority", tmp_path / "x"], "X0-CLI-024", "sudo"),
        )
        for arguments, id, words in cases:
            pid = os.fork()
            if pid == 0:
                code = 9
                with contextlib.suppress(BaseException):
                    os.setgid(65534)
                    os.setuid(65534)
                    ran = run(*arguments)
                    code = 0 if ran.status == 1 and id in ran.err and words in ran.err else 1
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, arguments


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


# ------------------------------------------------------------------ what is right
def test_help_is_quick_and_imports_little() -> None:
    code = (
        "import sys; from x0tta6bl4.app.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('rich', 'cryptography', 'OpenSSL', 'grpclib', 'structlog',"
        " 'prometheus_client', 'uvloop', 'asyncio', 'sqlalchemy') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    took = time.monotonic() - began
    assert done.stderr.strip() == "[]"
    assert took < 5.0  # 0.07 s on an idle machine.
    for name in COMMANDS:
        assert name in done.stdout or name == "proxy"


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


@pytest.mark.parametrize("path", [p for p in _commands(root) if p[0] != "sim"], ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...], run: Run) -> None:
    ran = run(*path, "--help")
    assert ran.status == 0
    assert "Examples:" in ran.out
    assert f"x0 {path[0]}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_version_names_each_wire_protocol(run: Run) -> None:
    out = run("--version").out
    for word in ("x0tta6bl4 ", "x0-link/1", "x0-circuit/1", "x0-authority/1", "proxy/1", "admin/1"):
        assert word in out


def test_entries_are_made_listed_changed_and_deleted(at_authority: Run) -> None:
    made = json.loads(
        at_authority(
            "entry",
            "create",
            "--id",
            "spiffe://example.org/web",
            "--node",
            "a",
            "--selector",
            "unix:uid:1000",
            "--address",
            "127.0.0.1:8080",
            "--key",
            "web-a",
            "--json",
        ).out
    )
    assert made["key"] == "web-a"
    assert made["ttl_s"] == 3600
    assert "web-a" in at_authority("entry", "list").out
    assert at_authority("entry", "list", "--node", "b", "--json").out.strip() == "[]"
    assert at_authority("entry", "update", "web-a", "--ttl", "60").status == 0
    shown = json.loads(at_authority("entry", "show", "web-a", "--json").out)
    assert (shown["ttl_s"], shown["address"]) == (60, "127.0.0.1:8080")
    assert "deleted" in at_authority("entry", "delete", "web-a").out
    assert at_authority("entry", "show", "web-a").status == 1


def test_names_and_policy_are_applied_and_explained(at_authority: Run, world: Path) -> None:
    assert (
        at_authority(
            "name",
            "create",
            "shop.mesh",
            "--id",
            "spiffe://example.org/shop",
            "--caller",
            "spiffe://example.org/till",
        ).status
        == 0
    )
    assert (
        "allowed by name shop"
        in at_authority("policy", "explain", "spiffe://example.org/till", "shop.mesh").out
    )
    assert at_authority("name", "update", "shop", "--no-callers").status == 0
    assert (
        "denied by default"
        in at_authority("policy", "explain", "spiffe://example.org/till", "shop").out
    )
    planned = at_authority("policy", "apply", world / "good.policy", "--plan")
    assert "add r" in planned.out
    assert '+ effect = "allow"' in planned.out
    assert "applied, version" in at_authority("policy", "apply", world / "good.policy", "--yes").out
    assert "nothing changes" in at_authority("policy", "apply", world / "good.policy", "--yes").out
    assert (
        "allowed by rule r"
        in at_authority("policy", "explain", "spiffe://example.org/a", "spiffe://example.org/b").out
    )
    saved = at_authority("policy", "show", "--toml").out
    again = _config(world, saved, "again.policy")
    assert "nothing changes" in at_authority("policy", "apply", again, "--yes").out
    failed = at_authority("policy", "test", world / "lying.policy")
    assert "FAILED" in failed.out
    assert failed.status == 1
    assert at_authority("name", "delete", "shop").status == 0


def test_a_token_goes_into_a_private_file(at_authority: Run, tmp_path: Path) -> None:
    path = tmp_path / "b.token"
    path.write_text("old")
    path.chmod(0o644)
    assert at_authority("token", "create", "--node", "b", "--out", path).status == 0
    assert path.read_text().startswith("x0t1.")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listed = json.loads(at_authority("token", "list", "--json").out)
    token = next(t for t in listed if t["node"] == "b")
    assert "secret" not in token
    assert at_authority("token", "delete", token["id"]).status == 0


def test_the_authority_is_looked_at_and_commanded(at_authority: Run) -> None:
    assert json.loads(at_authority("authority", "status", "--json").out)["trust_domain"] == (
        "example.org"
    )
    assert "active" in at_authority("authority", "bundle").out
    assert (
        "is revoked until"
        in at_authority("authority", "revoke", "spiffe://example.org/gone", "--yes").out
    )
    assert "spiffe://example.org/gone" in at_authority("authority", "revocations").out
    assert at_authority("authority", "unban", "spiffe://example.org/gone").status == 0
    assert at_authority("authority", "renew-all").status == 0
    assert at_authority("node", "list", "--json").out.strip() == "[]"


def test_a_node_is_looked_at(run: Run, tmp_path: Path) -> None:
    at = ("--state-dir", tmp_path)
    with served(tmp_path) as node:
        (status,) = json.loads(run("status", "--json", *at).out)
        assert status["links"][1]["loss_ppm"] == 21_000
        assert status["counters"] == {"requests_total|client|ok": 1000}
        shown = run("status", *at).out
        for word in ("example.org", "a-b", "suspected", "client > web", "web.mesh", "a f c"):
            assert word in shown
        assert "a -> b -> c" in run("path", "a", "c", *at).out
        ran = run("check", *at)
        assert (ran.status, "X0-CHK-001: the clock is off. set it" in ran.out) == (1, True)
        assert json.loads(run("check", "--json", *at).out)[0]["id"] == "X0-CHK-001"
        assert run("node", "renew", *at).out == "2 renewed\n"
        assert run("node", "drain", "--timeout", "1", *at).out == "drained\n"
        assert run("node", "stop", *at).out == "stopping\n"
    assert node.asked[-3:] == ["renew", "drain", "stop"]


def test_a_dead_node_among_living_ones_is_shown_and_found(run: Run, tmp_path: Path) -> None:
    for name in ("n1", "n2"):
        (tmp_path / "up" / "mesh" / name).mkdir(parents=True)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "up" / "mesh" / "n2" / "agent.sock"))
    dead.close()
    with served(tmp_path / "up" / "mesh" / "n1", FakeNode("n1")):
        ran = run("status")
        assert ran.status == 0
        assert "n2: X0-ADM-001" in ran.out
        found = json.loads(run("check", "--json").out)
        assert ("n2", "X0-CHK-020") in [(one["node"], one["id"]) for one in found]


def test_a_support_bundle_has_no_secrets(run: Run, tmp_path: Path) -> None:
    (tmp_path / "node.log").write_text('{"event": "enrolling with x0t1.AAAABBBBCCCCDDDD"}\n')
    out = tmp_path / "bundle.tar.gz"
    with served(tmp_path):
        assert run("support-bundle", "--out", out, "--state-dir", tmp_path).status == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with tarfile.open(out) as archive:
        names = archive.getnames()
        texts = {}
        for name in names:
            file = archive.extractfile(name)
            assert file is not None
            texts[name] = file.read().decode()
    where = f"x0-support/{tmp_path.name}"
    assert {
        f"{where}/status.json",
        f"{where}/metrics.txt",
        "x0-support/host.json",
        f"{where}/node.log",
    } <= set(names)
    assert "AAAABBBB" not in "".join(texts.values())
    assert "[redacted]" in texts[f"{where}/node.log"]


def test_errors_of_the_system_have_hints() -> None:
    for number in (1, 13, 24, 28, 30, 98, 5):
        line = cli.os_error_line(OSError(number, os.strerror(number), "/x"))
        assert LINE.fullmatch(f"x0: {line}"), line
