"""The systemd unit that a process belongs to, by its control group (v2).

Source: cgroups(7); systemd.slice(5); CGROUP_DELEGATION.md of systemd; `unit_export_invocation_id`,
which keeps `/run/systemd/units/invocation:<unit>` for every running unit of the system's manager.

The unit is the first part of the path that is no slice: what comes below it was delegated and says
nothing, whatever it is called: `user@1000.service/app.slice/web.service` is `user@1000.service`.
Nobody but root may be able to make a group beside the unit's, and the manager must know the unit.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from x0tta6bl4.core.machine import Denied

UNITS: Final = "/run/systemd/units"
DEPTH_MAX: Final = 32
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|scope|socket|mount|swap)\Z")
_INVOCATION: Final = re.compile(r"[0-9a-f]{32}\Z")


def look(cgroup: str, mount: str, units: str = UNITS, owner: int = 0) -> frozenset[str] | Denied:
    """Selectors that hold for a process.

    Args:
        cgroup: path of its group, from /proc/PID/cgroup.
        mount: where the groups are mounted; empty: nowhere.
        units: where the manager says what it runs.
        owner: uid of the manager.
    """
    parts = cgroup.strip("/").split("/")
    if not mount or not cgroup.startswith("/") or len(parts) > DEPTH_MAX or ".." in parts:
        return Denied("control group is not below our own")
    slices, at = _slices(parts)
    unit = _unescaped(parts[at]) if at < len(parts) else ""
    if not _UNIT.match(unit):
        return Denied("caller is in no systemd unit")
    base = mount
    for part in ("", *parts[:at]):
        base = f"{base}/{part}" if part else base
        if not _closed(base, owner):
            return Denied("control group is below one that others may write to")
    try:
        if not stat.S_ISDIR(os.lstat(f"{base}/{parts[at]}").st_mode):
            return Denied("control group is gone")
    except OSError:
        return Denied("control group is gone")
    invocation = _invocation(f"{base}/{parts[at]}", unit, units, owner)
    if isinstance(invocation, Denied):
        return invocation
    return frozenset(
        (
            f"systemd:unit:{unit}",
            f"systemd:invocation:{invocation}",
            *(f"systemd:slice:{name}" for name in slices),
        )
    )


def _slices(parts: list[str]) -> tuple[list[str], int]:
    """The slices that a path begins with, each named like the one it is in, and their number."""
    found: list[str] = []
    for part in parts:
        name = _unescaped(part)
        inner = name.removesuffix(".slice")
        outer = found[-1].removesuffix(".slice") if found else ""
        nested = inner.startswith(f"{outer}-") if outer else "-" not in inner
        if inner == name or not inner or not nested:
            break
        found.append(name)
    return found, len(found)


def _invocation(group: str, unit: str, units: str, owner: int) -> str | Denied:
    """What the manager calls the run that a unit is in."""
    link = f"{units}/invocation:{unit}"
    try:
        if not _closed(units, owner) or os.lstat(link).st_uid != owner:
            return Denied("what systemd runs is not said by systemd alone")
        invocation = os.readlink(link)
    except OSError:
        return Denied("systemd runs no such unit")
    if not _INVOCATION.match(invocation):
        return Denied("systemd runs no such unit")
    try:
        noted = os.getxattr(group, "trusted.invocation_id").decode("ascii", "replace")
    except OSError:  # Older managers note nothing, and only root may read it.
        return invocation
    return invocation if noted == invocation else Denied("control group is of another run")


def _closed(path: str, owner: int) -> bool:
    """Whether nobody but the owner can make anything in a directory."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and not status.st_mode & 0o022


def _unescaped(part: str) -> str:
    """A unit's name: systemd puts `_` before one that is like a file of the kernel's."""
    return part.removeprefix("_")
