"""What service managers start: the same with and without the command line."""

from __future__ import annotations

import configparser
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fakes.broken_agent import BUG, COMMAND, WRONG
from x0tta6bl4.app.cli.services import is_plain
from x0tta6bl4.app.mesh import living, wait_for
from x0tta6bl4.wire.token import Token, write_token

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


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


@pytest.mark.parametrize(
    ("kind", "status"), [("node", 0), ("proxy", 0), ("authority", 0), ("svid", -signal.SIGTERM)]
)
def test_who_inherits_blocked_signals_is_stopped_by_them_all_the_same(
    kind: str, status: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "x0tta6bl4", *waiting(kind, Path(name))],
                stdout=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with process:
            try:
                mask = "SigBlk" if kind == "svid" else "SigCgt"
                ready = kind != "svid"
                wait_for(lambda: has(process.pid, mask, signal.SIGTERM) == ready, kind, 20)
                process.terminate()
                assert process.wait(10) == status
            finally:
                process.kill()


def waiting(kind: str, state_dir: Path) -> list[str]:
    """A command that runs until it is stopped."""
    if kind == "svid":
        return ["svid", "watch", "--socket", f"unix:{state_dir}/none"]
    lines = ['trust_domain = "mesh.test"', f'state_dir = "{state_dir}"']
    if kind == "authority":
        lines += ['listen = "127.0.0.1:0"']
    else:
        lines += ['node = "a"', f'workload_api.socket = "{state_dir}/w"']
        lines += [f'{port}.listen = "127.0.0.1:0"' for port in ("data", "control")]
        # Nobody is there: the agent tries again.
        lines += ['authority.address = "127.0.0.1:1"', f'authority.token_file = "{state_dir}/t"']
        token = Token("mesh.test", ("127.0.0.1:1",), bytes(32), "a", 2**40, bytes(8), bytes(32))
        (state_dir / "t").write_text(write_token(token))
        (state_dir / "t").chmod(0o600)
    config = state_dir / "x0.toml"
    config.write_text("\n".join(lines))
    return [kind, "run", "--config", str(config)]


@pytest.mark.parametrize("kind", ["node", "authority"])
def test_systemd_starts_it_again_however_often_it_fails(kind: str) -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.read(UNITS / f"x0-{kind}.service")
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert (unit["Service"].get("KillMode") == "process") is (kind == "node")


@pytest.mark.parametrize(
    ("wrong", "line"), [(BUG, "AssertionError: a bug"), (WRONG, "x0: X0-LAB-002: it is wrong")]
)
def test_an_agent_that_ends_by_a_bug_leaves_its_proxy_to_the_next(
    wrong: signal.Signals, line: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="x0-") as name:
        state_dir, proxy = Path(name), 0
        [*_, config] = waiting("node", state_dir)
        ends = wrong is WRONG
        agent = subprocess.Popen([*COMMAND, config], stderr=subprocess.PIPE, text=True)
        with agent:
            try:
                wait_for(lambda: living(state_dir / "proxy.pid") > 0, "a proxy", 20)
                proxy = living(state_dir / "proxy.pid")
                agent.send_signal(wrong)
                _, said = agent.communicate(timeout=20)
                assert agent.returncode == 1
                *_, last = said.splitlines()
                assert last == line
                assert said.count("a task of the agent failed") == 1
                if ends:
                    wait_for(lambda: not living(state_dir / "proxy.pid"), "its end", 10)
                assert (living(state_dir / "proxy.pid") == proxy) is not ends
                assert [(state_dir / x).exists() for x in ("agent.sock", "agent.pid")] == (
                    [not ends] * 2
                )
            finally:
                agent.kill()
                if proxy and living(state_dir / "proxy.pid") == proxy:
                    os.kill(proxy, signal.SIGKILL)


def has(pid: int, mask: str, number: signal.Signals) -> bool:
    """Whether a signal is in one of a process's masks (proc(5), status)."""
    fields = dict(x.split(":\t") for x in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields[mask], 16) >> (number - 1) & 1)
