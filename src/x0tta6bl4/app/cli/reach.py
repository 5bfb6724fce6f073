"""Finding the node and the authority that a command is about, and printing what they say."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from x0tta6bl4.wire.errors import NotFound, Refused

if TYPE_CHECKING:
    from x0tta6bl4.app.admin import AdminClient

SYSTEM_STATE: Final = Path("/var/lib/x0")
AUTHORITY_SOCKET: Final = "admin.sock"
NODE_SOCKET: Final = "agent.sock"
SECONDS_MAX: Final = 31_536_000

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """So many seconds, at most a year; what is no number lies within every range of fractions."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See `click.ParamType`."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


def up_root() -> Path:
    """Where `x0 up` keeps everything: `$X0_UP_DIR`, else below the user's state directory."""
    if named := os.environ.get("X0_UP_DIR"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "x0-up"


def mesh_root() -> Path:
    """Parent of the state directories of the mesh of `x0 up`."""
    return up_root() / "mesh"


def node_options(command: F) -> F:
    """Options that say which node a command asks."""
    command = click.option(
        "--node", "name", metavar="NAME", default="", help="Which node of the local mesh."
    )(command)
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path, readable=False),
        envvar="X0_STATE_DIR",
        help="The node's state_dir; else it is looked for.",
    )(command)


def authority_option(command: F) -> F:
    """Option that says which authority a command asks."""
    return click.option(
        "--authority",
        "authority_dir",
        type=click.Path(path_type=Path, readable=False),
        envvar="X0_AUTHORITY_DIR",
        help="The authority's state_dir; else it is looked for.",
    )(command)


def json_option(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def node_dirs(state_dir: Path | None, name: str) -> list[Path]:
    """State directories of the nodes that a command may mean, by where they usually are.

    Args:
        state_dir: as given by the user; None: the mesh of `x0 up`, then `/var/lib/x0/*`.
        name: only the node of this name; empty: all of them.
    Raises:
        NotFound: none is running here.
        Refused: there may be some, but this user can't see.
    """
    if state_dir is not None:
        return [state_dir]
    found: list[Path] = []
    for root in (mesh_root(), SYSTEM_STATE):
        try:
            found += sorted(path.parent for path in root.glob(f"*/{NODE_SOCKET}"))
            if root.is_dir() and not os.access(root, os.R_OK | os.X_OK):
                raise Refused("X0-CLI-022", f"this user may not look into {root}", "use sudo")
        except PermissionError:
            raise Refused("X0-CLI-022", f"this user may not look into {root}", "use sudo") from None
        if found:
            break
    if name:
        names = ", ".join(path.name for path in found)
        found = [path for path in found if path.name == name]
        if not found and names:
            raise NotFound("X0-CLI-021", f"no node {name!r} is running here", f"there are {names}")
    if not found:
        raise NotFound(
            "X0-CLI-020",
            "no node is running here",
            "start one (x0 up), or name its directory with --state-dir",
        )
    return found


def one_node(state_dir: Path | None, name: str, timeout_s: float = 10.0) -> AdminClient:
    """A connection to one node; with several and no name, the first that answers."""
    from x0tta6bl4.app.admin import AdminClient

    return AdminClient(node_dirs(state_dir, name)[0], timeout_s)


def authority_dir(given: Path | None) -> Path:
    """State directory of the authority that a command means.

    Raises:
        NotFound: none is running here.
        Refused: this user can't see.
    """
    candidates = [given] if given else [mesh_root() / "authority", SYSTEM_STATE / "authority"]
    for path in candidates:
        try:
            if (path / AUTHORITY_SOCKET).exists():
                return path
        except PermissionError:
            raise Refused("X0-CLI-024", f"this user may not look into {path}", "use sudo") from None
    where = f"in {given}" if given else "here"
    raise NotFound(
        "X0-CLI-023",
        f"no authority is running {where}",
        "run this where it runs, start it (x0 authority run), or name its "
        "directory with --authority",
    )


def ask_authority(given: Path | None, method: str, request: Any) -> Any:
    """One method of `wire.authority.ADMIN_METHODS`, answered."""
    from x0tta6bl4.app.operator import Operator

    return Operator(authority_dir(given)).call(method, request)


# ------------------------------------------------------------------ printing
def plain(value: Any) -> Any:
    """A struct as what JSON has, with every field in it, defaults too; bytes as hex."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns that are as wide as their widest cell; nothing but the head where there is no row."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = [list(head), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def print_fields(value: msgspec.Struct) -> None:
    """One struct, a line per field that has a value."""
    width = max(len(name) for name in value.__struct_fields__)
    for name in value.__struct_fields__:
        item = getattr(value, name)
        if item in ("", (), 0, None, False) and item is not False:
            continue
        shown = ", ".join(map(str, item)) if isinstance(item, tuple) else item
        if name.endswith("_unix_s") and isinstance(item, int):
            shown = at(item)
        print(f"{name.removesuffix('_unix_s').ljust(width)}  {shown}")


def at(unix_s: int) -> str:
    """An instant in UTC, as text; `-` for none."""
    import datetime

    if not unix_s:
        return "-"
    moment = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def confirmed(question: str, yes: bool) -> bool:
    """Whether the user wants it: `--yes`, or an answer at a terminal.

    Raises:
        click.UsageError: there is nobody to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked; say --yes")
    return bool(click.confirm(question))
