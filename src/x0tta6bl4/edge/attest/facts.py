"""What selectors beyond the unix family ask for, each family only where an entry wants it."""

from __future__ import annotations

import os
from typing import Final, final

from x0tta6bl4.core.machine import Denied, Value
from x0tta6bl4.edge.attest import python, systemd
from x0tta6bl4.edge.attest.containers import Containers, place
from x0tta6bl4.edge.attest.errands import Errands
from x0tta6bl4.edge.attest.files import Hashes
from x0tta6bl4.edge.attest.proc import incarnation

GROUPS_BYTES_MAX: Final = 65_536


@final
class Wants(Value, frozen=True):
    """Families that are asked for."""

    python: bool = False
    script_sha256: bool = False
    venv: bool = False
    systemd: bool = False
    docker: bool = False


class Facts:
    """Finds selectors that hold for a process.

    Args:
        errands: makes looks that may take long.
        hashes: of files.
        containers: knows the containers of this host.
        mount: where control groups (v2) are mounted; empty: nowhere.
        units: where systemd says what it runs.
        proc: where procfs is mounted.
    """

    __slots__ = ("_containers", "_errands", "_hashes", "_mount", "_proc", "_units")

    def __init__(
        self,
        errands: Errands | None = None,
        hashes: Hashes | None = None,
        containers: Containers | None = None,
        mount: str | None = None,
        units: str = systemd.UNITS,
        proc: str = "/proc",
    ) -> None:
        self._errands = errands or Errands()
        self._hashes = hashes or Hashes()
        self._containers = containers or Containers(proc=proc)
        self._mount = mounted() if mount is None else mount
        self._units = units
        self._proc = proc

    def of(self, pid: int, exe: str, wants: Wants) -> frozenset[str] | Denied:
        """Selectors that hold, as text.

        Args:
            pid: of a process that the caller of this holds still.
            exe: its executable; needed for python.
            wants: families.
        Raises:
            OSError: it can't be looked into.
        """
        facts: frozenset[str] = frozenset()
        looks = (
            (wants.systemd, self._systemd, ""),
            (wants.docker, self._docker, ""),
            (wants.python, lambda pid, exe: self._python(pid, exe, wants), exe),
        )
        for wanted, look, argument in looks:
            if wanted:
                found = look(pid, argument)
                if isinstance(found, Denied):
                    return found
                facts |= found
        return facts

    def _groups(self, pid: int) -> str:
        with open(f"{self._proc}/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return file.read(GROUPS_BYTES_MAX)

    def _systemd(self, pid: int, _: str) -> frozenset[str] | Denied:
        for line in self._groups(pid).splitlines():
            if line.startswith("0::"):
                return systemd.look(line[3:], self._mount, self._units)
        return Denied("caller is in no systemd unit")

    def _docker(self, pid: int, _: str) -> frozenset[str] | Denied:
        where = place(self._groups(pid))
        if isinstance(where, Denied):
            return where
        known = self._containers.known(pid, where)
        if known is not None:
            return known
        return self._errands.ask(
            ("docker", where.id, pid, incarnation(pid, self._proc)),
            self._user(pid),
            lambda: self._containers.look(pid, where),
        )

    def _python(self, pid: int, exe: str, wants: Wants) -> frozenset[str] | Denied:
        wanted = python.Wanted(wants.script_sha256, wants.venv)
        return self._errands.ask(
            ("python", exe, wanted, pid, incarnation(pid, self._proc)),
            self._user(pid),
            lambda: python.look(pid, exe, wanted, self._hashes, self._proc),
        )

    def _user(self, pid: int) -> int:
        return os.stat(f"{self._proc}/{pid}").st_uid


def mounted() -> str:
    """Where control groups (v2) are mounted; empty: nowhere."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                return before.split()[4]
    return ""
