"""Asking several nodes of this host at once, where each may be dead or slow."""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, final

import msgspec

from x0tta6bl4.app.admin import AdminClient
from x0tta6bl4.app.cli.reach import plain
from x0tta6bl4.telemetry.redact import redact
from x0tta6bl4.wire.admin import (
    AdminAnswer,
    AdminRequest,
    CheckAnswer,
    Finding,
    GetCheck,
    GetMetrics,
    GetStatus,
    GetSupport,
    Status,
    Support,
    Text,
)
from x0tta6bl4.wire.errors import Unavailable, X0Error

ASK_S = 3.0
A = TypeVar("A", bound=AdminAnswer)


@final
class Silent(msgspec.Struct, frozen=True):
    """A node that does not answer, and why."""

    node: str
    error: X0Error

    def __str__(self) -> str:
        """One line."""
        return f"{self.node}: {self.error}"


def statuses(dirs: Sequence[Path]) -> list[Status | Silent]:
    """A status of each node, or why there is none, in the order of `dirs`."""
    return [
        one if isinstance(one, Status) else Silent(path.name, one)
        for path, one in zip(dirs, _ask_all(dirs, GetStatus(), Status), strict=True)
    ]


def raise_if_none(found: Sequence[Status | Silent]) -> None:
    """Complain when not one node has answered.

    Raises:
        X0Error: why the only one did not.
        Unavailable: of several none did; with the reason of the first.
    """
    silent = [one for one in found if isinstance(one, Silent)]
    if len(silent) < len(found):
        return
    if len(silent) == 1:
        raise silent[0].error
    raise Unavailable(
        "X0-CLI-026",
        f"no node answers; {silent[0].node}: {silent[0].error.what}",
        silent[0].error.hint,
    )


def findings(dirs: Sequence[Path]) -> tuple[list[tuple[str, Finding]], dict[str, str]]:
    """Findings of all nodes, the worst first; a node that does not answer is one.

    Returns:
        Nodes with a finding; and by node how data is passed on, where that was a choice.
    """
    found: list[tuple[str, Finding]] = []
    planes: dict[str, str] = {}
    for path, answer in zip(dirs, _ask_all(dirs, GetCheck(), CheckAnswer), strict=True):
        if isinstance(answer, CheckAnswer):
            found += [(path.name, one) for one in answer.findings]
            if answer.plane:
                planes[path.name] = answer.plane
        else:
            found.append(
                (
                    path.name,
                    Finding(
                        "X0-CHK-020",
                        "error",
                        f"the agent does not answer ({answer.id})",
                        answer.hint or "look into its log",
                    ),
                )
            )
    order = {"error": 0, "warning": 1, "notice": 2}
    found.sort(key=lambda pair: (order.get(pair[1].level, 3), pair[1].id, pair[0]))
    return found, planes


def write_bundle(out: Path, dirs: Sequence[Path]) -> int:
    """Write a support bundle, 0600.

    Returns:
        How many files are in it.
    """
    files = {"host.json": json.dumps(_host(), indent=2)}
    for path in dirs:
        files |= {f"{path.name}/{name}": text for name, text in _of_node(path).items()}
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with (
        open(os.open(out, flags, 0o600), "wb") as raw,
        tarfile.open(fileobj=raw, mode="w:gz") as archive,
    ):
        for name, text in files.items():
            data = redact(text).encode()
            info = tarfile.TarInfo(f"x0-support/{name}")
            info.size, info.mode = len(data), 0o600
            archive.addfile(info, io.BytesIO(data))
    return len(files)


def _of_node(path: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    try:
        with AdminClient(path, ASK_S) as client:
            files["status.json"] = _json(client.ask(GetStatus(), Status))
            files["findings.json"] = _json(client.ask(GetCheck(), CheckAnswer))
            files["metrics.txt"] = client.ask(GetMetrics(), Text).text
            files |= client.ask(GetSupport(), Support).files
    except X0Error as error:
        files["error.txt"] = f"{error}\n"
    for name in ("node.toml", "node.log", "out.log"):
        try:
            files.setdefault(
                name, (path / name).read_bytes()[-1024 * 1024 :].decode(errors="replace")
            )
        except OSError:
            continue  # Logs may be in the journal, settings in /etc.
    return files


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=2)


def _host() -> dict[str, str]:
    from x0tta6bl4 import __version__

    return {
        "x0": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }


def _ask_all(dirs: Sequence[Path], request: AdminRequest, kind: type[A]) -> list[A | X0Error]:
    def ask(path: Path) -> A | X0Error:
        try:
            with AdminClient(path, ASK_S) as client:
                return client.ask(request, kind)
        except X0Error as error:
            return error

    with ThreadPoolExecutor(max_workers=min(16, max(1, len(dirs)))) as pool:
        return list(pool.map(ask, dirs))
