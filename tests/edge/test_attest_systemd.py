"""systemd units: where the kernel put a process, and what systemd says that it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.facts import Facts, Wants
from x0tta6bl4.edge.attest.systemd import look

RUN = "0123456789abcdef" * 2
ME = os.getuid()


class Host:
    """Groups and units as systemd keeps them, below a directory."""

    def __init__(self, root: Path) -> None:
        self.mount, self.units = root / "groups", root / "units"
        for path in (self.mount, self.units):
            path.mkdir(mode=0o755)

    def unit(self, path: str, run: str = RUN) -> None:
        """A group, made with all that it is below."""
        base = self.mount
        for part in path.strip("/").split("/"):
            base = base / part
            base.mkdir(mode=0o755, exist_ok=True)
        link = self.units / f"invocation:{base.name.removeprefix('_')}"
        link.unlink(missing_ok=True)
        link.symlink_to(run)

    def look(self, path: str) -> frozenset[str] | Denied:
        return look(path, str(self.mount), str(self.units), owner=ME)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.unit("/system.slice/web.service")
    made.unit("/user.slice/user-1000.slice/user@1000.service")
    return made


WEB = frozenset(
    {"systemd:unit:web.service", f"systemd:invocation:{RUN}", "systemd:slice:system.slice"}
)
USER = frozenset(
    {
        "systemd:unit:user@1000.service",
        f"systemd:invocation:{RUN}",
        "systemd:slice:user.slice",
        "systemd:slice:user-1000.slice",
    }
)


def test_SP_097_a_process_is_of_the_unit_whose_group_it_is_in(host: Host) -> None:
    assert host.look("/system.slice/web.service") == WEB
    assert host.look("/system.slice/web.service/worker/7") == WEB
    host.unit("/init.scope")
    assert host.look("/init.scope") == frozenset(
        {"systemd:unit:init.scope", f"systemd:invocation:{RUN}"}
    )
    host.unit("/system.slice/_cpu.service")  # systemd writes it so: it is like a kernel's file.
    found = host.look("/system.slice/_cpu.service")
    assert isinstance(found, frozenset)
    assert "systemd:unit:cpu.service" in found


@pytest.mark.parametrize(
    "path",
    [
        "web.service",
        "app.slice/web.service",
        "system.slice/web.service",
        "user.slice/user-0.slice/web.service",
    ],
)
def test_SP_097_a_group_that_a_user_made_is_the_user_s_whatever_its_name(
    host: Host, path: str
) -> None:
    whole = f"/user.slice/user-1000.slice/user@1000.service/{path}"
    (host.mount / whole[1:]).mkdir(parents=True)
    assert host.look(whole) == USER


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/", "caller is in no systemd unit"),
        ("/system.slice", "caller is in no systemd unit"),
        ("/docker/0123", "caller is in no systemd unit"),
        ("/system.slice/web.service.d", "caller is in no systemd unit"),
        ("/system.slice/user-1000.slice/web.service", "caller is in no systemd unit"),
        ("/../system.slice/web.service", "control group is not below our own"),
        ("/system.slice/gone.service", "control group is gone"),
        ("/system.slice/web.service (deleted)", "caller is in no systemd unit"),
        ("", "control group is not below our own"),
        ("/a" * 64, "control group is not below our own"),
    ],
)
def test_what_is_no_unit_is_refused(host: Host, path: str, reason: str) -> None:
    assert host.look(path) == Denied(reason)


def test_SP_097_a_group_that_root_did_not_make_room_for_is_refused(host: Host) -> None:
    """Who may write to the slice may make a group there with any name."""
    (host.mount / "system.slice").chmod(0o775)
    refused = Denied("control group is below one that others may write to")
    assert host.look("/system.slice/web.service") == refused
    (host.mount / "system.slice").chmod(0o755)
    assert host.look("/system.slice/web.service") == WEB
    found = look("/system.slice/web.service", str(host.mount), str(host.units), owner=ME + 1)
    assert found == refused


def test_SP_097_a_unit_that_systemd_does_not_run_is_refused(host: Host) -> None:
    (host.mount / "system.slice" / "db.service").mkdir()
    unknown = Denied("systemd runs no such unit")
    assert host.look("/system.slice/db.service") == unknown
    (host.units / "invocation:db.service").symlink_to("nonsense")
    assert host.look("/system.slice/db.service") == unknown
    (host.units / "invocation:db.service").unlink()
    (host.units / "invocation:db.service").write_text(RUN)
    assert host.look("/system.slice/db.service") == unknown
    host.units.chmod(0o777)
    said = Denied("what systemd runs is not said by systemd alone")
    assert host.look("/system.slice/web.service") == said


@pytest.mark.skipif(ME != 0, reason="needs root: to write what only a manager may note")
def test_an_earlier_run_of_a_unit_is_not_this_one(host: Host) -> None:
    group = host.mount / "system.slice" / "web.service"
    try:
        os.setxattr(group, "trusted.invocation_id", RUN.encode())
    except OSError:
        pytest.skip("needs a file system with trusted.* attributes")
    assert host.look("/system.slice/web.service") == WEB
    os.setxattr(group, "trusted.invocation_id", b"f" * 32)
    assert host.look("/system.slice/web.service") == Denied("control group is of another run")


def test_a_process_outside_of_all_units_is_refused(host: Host) -> None:
    facts = Facts(mount=str(host.mount), units=str(host.units))
    assert isinstance(facts.of(os.getpid(), "", Wants(systemd=True)), Denied)
