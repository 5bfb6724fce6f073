"""`x0 demo`, `up`, `down`, `kill`: a whole mesh on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from x0tta6bl4.app.cli.reach import mesh_root, up_root

if TYPE_CHECKING:
    from x0tta6bl4.app.cli.gather import Silent
    from x0tta6bl4.app.mesh import Mesh
    from x0tta6bl4.app.up import Up
    from x0tta6bl4.wire.admin import Status

DOMAIN: Final = "up.mesh"


@click.command(
    epilog="""\b
Examples:
  x0 demo
  x0 demo --json out.json"""
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the figures there.",
)
@click.option("--keep", is_flag=True, help="Leave files and logs behind, to look at.")
def demo(json_path: Path | None, keep: bool) -> int:
    """Tell one story with real processes, in under 90 s.

    A trust domain and six nodes, two replicas of an unmodified HTTP server and an unmodified
    client, whose requests never stop: a relay is killed, another frozen, agents and the authority
    are killed, all SVIDs rotate, a policy changes, an identity is revoked, impostors try. The exit
    status is not 0 if a request was lost or an impostor was let in.
    """
    from x0tta6bl4.app import demo as story

    if json_path is not None:
        json_path.touch()  # Better now than after 90 s.
    return story.main(json_path, keep)


@click.command(
    epilog="""\b
Examples:
  x0 up
  x0 up --detach && x0 status
  curl -x socks5h://127.0.0.1:PORT http://web.mesh/       from another terminal"""
)
@click.option("--detach", is_flag=True, help="Leave it in the background; x0 down ends it.")
@click.option("--plain", is_flag=True, help="Events as lines instead of the live view.")
def up(detach: bool, plain: bool) -> None:
    """Keep a mesh of six nodes running here, with a live view; Ctrl-C ends it.

    The last line of the view has a SOCKS5 port, for a request of yours from another terminal.
    """
    import signal

    from x0tta6bl4.app.up import Up

    root = up_root()
    _clear(root)
    local = Up(root, DOMAIN)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep = False
    try:
        local.start(lambda line: print(line, flush=True))
        hints = _hints(local)
        if detach:
            keep = True
            print("\n".join((*hints, "x0 status --watch looks at it, x0 down ends it")))
            return
        _look(local, hints, plain or not sys.stdout.isatty())
    except KeyboardInterrupt:
        pass
    finally:
        if not keep:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            local.stop()
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)


def _clear(root: Path) -> None:
    """Remove what an earlier mesh left, unless it is alive: its keys and ports are worth nothing.

    Raises:
        Conflict: it is alive.
    """
    import shutil

    from x0tta6bl4.app.mesh import opened
    from x0tta6bl4.wire.errors import Conflict

    if not (root / "mesh" / "plan.json").exists():
        return
    if _alive(opened(root / "mesh")):
        raise Conflict("X0-UP-004", f"a mesh is running in {root}", "x0 down ends it")
    shutil.rmtree(root)


def _alive(mesh: Mesh) -> bool:
    return any(mesh.pids(name) for name in ("authority", *mesh.plan.nodes))


def _hints(local: Up) -> tuple[str, ...]:
    from x0tta6bl4.app.up import CLIENT

    return (f"curl -x socks5h://{local.address(CLIENT, 'socks5')} http://web.mesh/",)


def _look(local: Up, hints: tuple[str, ...], plain: bool) -> None:
    """Show the mesh until it is ended here or by `x0 down`."""
    from x0tta6bl4.app.cli import gather, view

    dirs = [local.mesh.state(node) for node in local.mesh.plan.nodes]

    def looks() -> list[Status | Silent]:
        return gather.statuses(dirs)

    if plain:
        print("\n".join(hints), flush=True)
        view.lines(looks, lambda: _alive(local.mesh))
    else:
        view.live(looks, hints, lambda: _alive(local.mesh))


@click.command(
    epilog="""\b
Examples:
  x0 down"""
)
def down() -> None:
    """End the mesh of `x0 up`, whoever started it, and wait until it is gone."""
    from x0tta6bl4.app.up import down as end

    end(up_root())
    print("the mesh has ended")


@click.command(
    epilog="""\b
Examples:
  x0 kill n2              SIGKILL of agent and proxy: the node is gone
  x0 kill n2 --agent      the control plane alone: its sessions go on
  x0 kill n2 --freeze     SIGSTOP: there, but silent"""
)
@click.argument("node")
@click.option("--freeze", is_flag=True, help="SIGSTOP instead of SIGKILL; --thaw ends it.")
@click.option("--thaw", is_flag=True, help="SIGCONT after --freeze.")
@click.option("--agent", is_flag=True, help="Only the agent.")
def kill(node: str, freeze: bool, thaw: bool, agent: bool) -> None:
    """Hurt a node of the local mesh, to see it heal."""
    import signal

    from x0tta6bl4.app.mesh import opened
    from x0tta6bl4.wire.errors import NotFound

    if freeze and thaw:
        raise click.UsageError("--freeze and --thaw exclude each other")
    mesh = opened(mesh_root())
    part = "agent" if agent else "node"
    if not mesh.pids(node, part):
        raise NotFound("X0-CLI-025", f"{node} is not running", "see x0 status")
    if freeze or thaw:
        mesh.signal(node, signal.SIGSTOP if freeze else signal.SIGCONT, part)
        print(f"{node}: {'frozen' if freeze else 'thawed'}")
    else:
        mesh.kill(node, part)
        print(f"{node}: {'agent ' if agent else ''}killed")
