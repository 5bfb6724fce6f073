"""The command line: what it shows, what it changes, and what it costs to be asked."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.app.cli_world import LINE, Run, config_file
from tests.app.test_admin import served
from tests.fakes.node_admin import FakeNode
from x0tta6bl4.app.cli import authority as authority_commands
from x0tta6bl4.app.cli import (
    dev,
    explain,
    federation,
    jwt,
    mesh,
    node,
    policy,
    registry,
    status,
    svid,
)
from x0tta6bl4.app.cli import main as cli
from x0tta6bl4.app.cli.main import COMMANDS, root
from x0tta6bl4.app.settings import parse_authority

MODULES = {
    "authority": authority_commands,
    "dev": dev,
    "explain": explain,
    "federation": federation,
    "jwt": jwt,
    "mesh": mesh,
    "node": node,
    "policy": policy,
    "registry": registry,
    "status": status,
    "svid": svid,
}


def test_every_command_of_every_module_is_listed() -> None:
    listed = {(module, attribute) for module, attribute, _ in COMMANDS.values()}
    found = {
        (name, attribute)
        for name, module in MODULES.items()
        for attribute, value in vars(module).items()
        if isinstance(value, click.Command) and not _is_part(value, module)
    }
    assert {pair for pair in listed if pair[0] != "sim"} == found


def _is_part(command: click.Command, module: object) -> bool:
    """Whether a command belongs to a group of its module."""
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    return any(command in group.commands.values() for group in groups)


def test_help_is_quick_and_imports_little() -> None:
    code = (
        "import sys; from x0tta6bl4.app.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('rich', 'cryptography', 'OpenSSL', 'grpclib',"
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


def test_a_proxy_imports_what_it_needs() -> None:
    code = (
        "import sys; import x0tta6bl4.app.cli.main, x0tta6bl4.app.cli.node, x0tta6bl4.app.proxy\n"
        "print([m for m in ('rich', 'grpclib', 'prometheus_client', 'uvloop', 'asyncio', 'ssl',"
        " 'sqlalchemy', 'difflib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


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


def test_foreign_trust_domains_are_made_shown_changed_and_deleted(
    at_authority: Run, tmp_path: Path
) -> None:
    ours = at_authority("bundle", "show").out
    assert json.loads(ours)["keys"][0]["use"] == "x509-svid"
    pem = at_authority("bundle", "show", "--format", "pem").out
    assert pem.startswith("-----BEGIN CERTIFICATE-----")
    theirs = tmp_path / "theirs.json"
    theirs.write_text(ours)
    made = at_authority(
        *"federation create other.test --url https://127.0.0.1:9/ --profile https_spiffe".split(),
        *f"--endpoint-id spiffe://other.test/e --bundle {theirs} --json".split(),
    )
    assert bytes.fromhex(json.loads(made.out)["bundle"]).decode() == ours
    assert "other.test" in at_authority("federation", "list").out
    changed = at_authority("federation", "update", "other.test", "--url", "https://127.0.0.1:8/")
    assert "https://127.0.0.1:8/" in changed.out
    assert "https_spiffe" in changed.out
    assert at_authority("federation", "refresh", "other.test").status == 0
    entry = at_authority(
        *"entry create --id spiffe://example.org/f --node a --selector unix:uid:1".split(),
        *"--federates-with other.test --key f --json".split(),
    )
    assert json.loads(entry.out)["federates_with"] == ["other.test"]
    none = at_authority("entry", "update", "f", "--federates-with", "", "--json")
    assert json.loads(none.out)["federates_with"] == []
    at_authority("entry", "delete", "f")
    assert "forgotten" in at_authority("federation", "delete", "other.test").out
    wrong = at_authority("federation", "create", "other.test", "--url", "https://x/")
    assert "X0-CLI-001" in wrong.err
    http = at_authority(*"federation create o.test --url http://x/ --profile https_web".split())
    assert "X0-FED-001" in http.err


def test_the_page_on_federation_can_be_followed(at_authority: Run, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto-federation.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    text = 'trust_domain = "example.org"\nstate_dir = "/s"\n' + re.sub("^ +", "", block, flags=re.M)
    assert parse_authority(text).bundle_endpoint.listen == "0.0.0.0:8443"
    bundle = tmp_path / "other.json"
    bundle.write_text(at_authority("bundle", "show").out)
    at_authority(*"entry create --id spiffe://example.org/k --node a --key k".split(),
                 "--selector", "unix:uid:1")  # fmt: skip
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, re.S)).replace("\\\n", " ")
    commands += "x0 federation update other.test --bundle other.json"
    ran = 0
    for line in filter(None, map(str.strip, commands.splitlines())):
        words = line.replace("other.json", str(bundle)).replace("KEY", "k").split()
        assert words.pop(0) == "x0"
        answer = at_authority(*words)
        assert answer.status == 0, (line, answer.err)
        ran += 1
    assert ran == 4
    at_authority("entry", "delete", "k")
    at_authority("federation", "delete", "other.test")
    assert "BEGIN X509 CRL" in at_authority("authority", "crl").out


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
    again = config_file(world, saved, "again.policy")
    assert "nothing changes" in at_authority("policy", "apply", again, "--yes").out
    failed = at_authority("policy", "test", world / "lying.policy")
    assert "FAILED" in failed.out
    assert failed.status == 1
    assert at_authority("name", "delete", "shop").status == 0
    nothing = config_file(world, "", "nothing.policy")
    assert "remove r" in at_authority("policy", "apply", nothing, "--yes").out


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
        (tmp_path / "up" / "mesh" / name).mkdir(0o700, parents=True)
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
