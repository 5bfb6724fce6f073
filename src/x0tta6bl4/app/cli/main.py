"""`x0`: the command line.

Only what a command needs is imported when it runs, so that `x0 --help` is quick.  Whatever goes
wrong is one line with an id and a hint: exit status 1, or 2 where the command itself is malformed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from x0tta6bl4 import __version__
from x0tta6bl4.app.cli.services import hear_signals
from x0tta6bl4.wire.errors import X0Error

# Command -> (module, attribute, one line).  The line stands here so that help imports nothing.
COMMANDS: Final = {
    "demo": ("mesh", "demo", "Tell one story with real processes: a mesh that is hurt and heals."),
    "dev": ("dev", "dev", "A trust domain for one developer: Workload API and two workloads."),
    "up": ("mesh", "up", "Keep a local mesh running, with a live view."),
    "down": ("mesh", "down", "End the local mesh."),
    "kill": ("mesh", "kill", "Kill or freeze a node of the local mesh."),
    "status": ("status", "status", "How nodes, links, paths, services and sessions are."),
    "path": ("status", "path", "Which way from one node to another, and what backs it up."),
    "check": ("status", "check", "What is wrong here, and what to do about it."),
    "policy": ("policy", "policy", "Who may call whom: show, apply, test, explain."),
    "entry": ("registry", "entry", "Registration entries: who on which node may be what."),
    "name": ("registry", "name", "Service names: name -> SPIFFE ID and allowed callers."),
    "token": ("registry", "token", "Enrolment tokens for new nodes."),
    "node": ("node", "node", "Run a node; list, drain and evict nodes."),
    "svid": ("svid", "svid", "Identities of this process: show, watch, write, run one under it."),
    "jwt": ("jwt", "jwt", "JWT-SVIDs: mint one of this process, validate somebody else's."),
    "explain": ("explain", "explain", "Why an identity is as it is, or why there is none."),
    "federation": ("federation", "federation", "Foreign trust domains and their bundles."),
    "bundle": ("federation", "bundle", "The trust bundle of this trust domain, for others."),
    "authority": ("authority", "authority", "Run the authority; revoke, rotate, look at it."),
    "proxy": ("node", "proxy", "The data plane of a node; started by its agent."),
    "sim": ("sim", "sim", "Simulated worlds: run, swarm, bench."),
    "support-bundle": ("status", "support_bundle", "Collect what a bug report needs, redacted."),
}

EPILOG: Final = """\b
Examples:
  x0 demo --json out.json          a mesh that is hurt and heals, with figures
  x0 up                            keep one running; then, from another terminal:
  curl -x socks5h://127.0.0.1:PORT http://web.mesh/
  x0 status --watch
"""


class Commands(click.Group):
    """Knows its commands by name, and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of reading."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module = importlib.import_module(f"x0tta6bl4.app.cli.{place[0]}")
        command = getattr(module, place[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing anything."""
        rows = [(name, line) for name, (_, _, line) in COMMANDS.items() if name != "proxy"]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from x0tta6bl4.wire.admin import ADMIN_VERSION
    from x0tta6bl4.wire.authority import ALPN
    from x0tta6bl4.wire.messages import LINK_VERSION, PROXY_VERSION

    print(f"x0tta6bl4 {__version__}")
    print(
        f"wire: x0-link/{LINK_VERSION} x0-circuit/1 {ALPN} proxy/{PROXY_VERSION} "
        f"admin/{ADMIN_VERSION}"
    )
    ctx.exit()


@click.group(
    cls=Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Version of the program and of each protocol that it speaks.",
)
def root() -> None:
    """A self-healing zero-trust mesh: programs talk through it unchanged.

    Every connection has two SPIFFE identities and outlives the relays and certificates that
    carry it.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status."""
    hear_signals()
    try:
        status = root.main(args=arguments, prog_name="x0", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        _say("X0-CLI-003: stopped. nothing more was changed")
        status = 130
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        status = 2
    except click.UsageError as error:
        _say(usage_line(error))
        status = 2
    except X0Error as error:
        _say(str(error))
        status = 1
    except BrokenPipeError:
        # Nobody reads any more: leave without the interpreter's own complaint at its end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        _say(os_error_line(error))
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def usage_line(error: click.UsageError) -> str:
    """A malformed command in the form that all errors have."""
    path = error.ctx.command_path if error.ctx else "x0"
    what = error.format_message().rstrip(".").replace("\n", " ")
    hint = f"see {path} --help"
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        what = f"no such option: {error.option_name}"
        hint = f"did you mean {error.possibilities[0]}?"
    elif what.startswith("No such command") and error.ctx:
        group = error.ctx.command
        asked = what.partition("'")[2].partition("'")[0]
        if isinstance(group, click.Group):
            import difflib

            near = difflib.get_close_matches(asked, group.list_commands(error.ctx), n=1)
            hint = f"did you mean {near[0]}?" if near else hint
        what = f"no such command: {asked}"
    return f"X0-CLI-001: {what[:1].lower()}{what[1:]}. {hint}"


def os_error_line(error: OSError) -> str:
    """What the operating system refused, in the form that all errors have."""
    hints: dict[int | None, tuple[str, str]] = {
        errno.ENOSPC: ("X0-CLI-010", "free some space, then repeat the command"),
        errno.EDQUOT: ("X0-CLI-010", "free some space, then repeat the command"),
        errno.EACCES: ("X0-CLI-011", "run as the owner of these files, or with sudo"),
        errno.EPERM: ("X0-CLI-011", "run as the owner of these files, or with sudo"),
        errno.EROFS: ("X0-CLI-011", "its file system is read-only"),
        errno.EADDRINUSE: ("X0-CLI-012", "see `ss -ltnp`; end what listens there, or change it"),
        errno.EMFILE: ("X0-CLI-013", "raise the limit: ulimit -n 65536"),
        errno.ENFILE: ("X0-CLI-013", "raise fs.file-max"),
    }
    id, hint = hints.get(error.errno, ("X0-CLI-014", "look into the log of the node"))
    where = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    return f"{id}: {where}{reason}. {hint}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"x0: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
