"""Every selector that holds for a running program, for who writes entries."""

from __future__ import annotations

import os

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.errands import LIMIT_S, Errands
from x0tta6bl4.edge.attest.facts import Facts, Wants
from x0tta6bl4.edge.attest.files import Hashes
from x0tta6bl4.edge.attest.proc import ended, line
from x0tta6bl4.edge.attest.process import EXECUTABLE_BYTES_MAX
from x0tta6bl4.wire.errors import NotFound, Refused

_WANTS = {
    "python": (Wants(python=True, script_sha256=True), Wants(python=True, venv=True)),
    "systemd": (Wants(systemd=True),),
    "docker": (Wants(docker=True),),
}


def describe(pid: int, facts: Facts | None = None) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """All that is known of a process, by family.

    Args:
        pid: of a process that runs.
        facts: finds out; made if not given.
    Returns:
        (family, selectors, why there are no more; empty: nothing is missing), each once.
    Raises:
        NotFound: X0-SEL-010 no process has the number, or it has ended meanwhile.
        Refused: X0-SEL-011 this user may not look into it.
    """
    facts = facts or Facts(Errands(wait_s=LIMIT_S))
    try:
        pidfd = os.pidfd_open(pid)
        try:
            found = (_unix(pid), *(_family(pid, family, facts) for family in _WANTS))
            if not ended(pidfd):
                return found
        finally:
            os.close(pidfd)
    except (FileNotFoundError, ProcessLookupError):
        pass
    except PermissionError:
        raise Refused(
            "X0-SEL-011", f"this user may not look into process {pid}", "use sudo"
        ) from None
    raise NotFound("X0-SEL-010", f"no process {pid} is running", "see ps -e")


def _unix(pid: int) -> tuple[str, tuple[str, ...], str]:
    base = f"/proc/{pid}"
    uid, gid = (line(f"{base}/status", start).split()[2].decode() for start in (b"Uid:", b"Gid:"))
    said = [f"unix:uid:{uid}", f"unix:gid:{gid}", f"unix:path:{os.readlink(f'{base}/exe')}"]
    with open(f"{base}/exe", "rb") as file:
        digest = Hashes().of(file, "executable", EXECUTABLE_BYTES_MAX)
    if isinstance(digest, str):
        said.append(f"unix:sha256:{digest}")
    said.append(f"unix:cgroup:{line(f'{base}/cgroup', b'0::')[3:].strip().decode()}")
    return "unix", tuple(said), digest.reason if isinstance(digest, Denied) else ""


def _family(pid: int, family: str, facts: Facts) -> tuple[str, tuple[str, ...], str]:
    """Each part of a family is asked for alone: what can't be said of one hides no other."""
    exe, said, why = os.readlink(f"/proc/{pid}/exe"), set[str](), ""
    for wants in _WANTS[family]:
        found = facts.of(pid, exe, wants)
        if isinstance(found, Denied):
            why = found.reason
        else:
            said |= found
    return family, tuple(sorted(said)), why
