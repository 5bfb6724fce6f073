"""What procfs says of one process: source proc(5), pidfd_open(2)."""

from __future__ import annotations

import select


def ended(pidfd: int) -> bool:
    """Whether a process has ended; not `select.select`, which knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def started_ticks(pid: int, proc: str = "/proc") -> int:
    """When a process started, in clock ticks of CLOCK_BOOTTIME; an exec does not change it.

    Raises:
        OSError: there is none.
    """
    return int(_stat(pid, proc)[19])


def incarnation(pid: int, proc: str = "/proc") -> tuple[bytes, ...]:
    """Is another after an exec: when it started, and where the kernel laid its memory out.

    Raises:
        OSError: there is no such process.
    """
    fields = _stat(pid, proc)
    return fields[19], fields[23], fields[25], *fields[42:]


def line(path: str, start: bytes) -> bytes:
    """The line of a file in /proc that begins so.

    Raises:
        FileNotFoundError: there is none.
    """
    with open(path, "rb") as file:
        for found in file:
            if found.startswith(start):
                return found
    raise FileNotFoundError(path)


def _stat(pid: int, proc: str) -> list[bytes]:
    with open(f"{proc}/{pid}/stat", "rb") as file:
        # Its name stands in parentheses and may hold any of them, and spaces.
        fields = file.read().rpartition(b")")[2].split()
    if len(fields) < 46:
        raise FileNotFoundError(f"{proc}/{pid}/stat")
    return fields
