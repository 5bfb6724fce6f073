"""`x0 node run`, `x0 proxy run`, `x0 authority run`: what service managers start, and agents.

Asked for in their plain form they start without the command line, whose libraries take a tenth of
a second and some megabytes that a process for weeks has no use for.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from x0tta6bl4.wire.errors import X0Error


def run_node(config: Path) -> int:
    """Run agent and proxy of a node until SIGTERM."""
    from x0tta6bl4.app.settings import read_node

    settings = read_node(config)
    from x0tta6bl4.app import agent

    agent.run(settings, config.absolute())
    return 0


def run_proxy(config: Path) -> int:
    """Run a proxy alone; it waits for an agent."""
    from x0tta6bl4.app.settings import read_node

    settings = read_node(config)
    from x0tta6bl4.app import proxy

    proxy.run(settings)
    return 0


def run_authority(config: Path) -> int:
    """Run the authority until SIGTERM."""
    from x0tta6bl4.app.settings import read_authority

    settings = read_authority(config)
    from x0tta6bl4.app import authority

    return authority.main(settings)


_RUN: Final[dict[str, Callable[[Path], int]]] = {
    "node": run_node,
    "proxy": run_proxy,
    "authority": run_authority,
}


def hear_signals() -> None:
    """Take all signals from now on, whatever the process that started this one has blocked.

    A mask outlives exec (sigprocmask(2)): with SIGTERM in it nobody could stop this process, with
    SIGCHLD in it it would not hear of the end of its own.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def is_plain(arguments: Sequence[str]) -> bool:
    """Whether the arguments are `node|proxy|authority run --config FILE` and nothing else."""
    return (
        len(arguments) == 4
        and list(arguments[1:3]) == ["run", "--config"]
        and arguments[0] in _RUN
        and not arguments[3].startswith("-")
    )


def main(arguments: Sequence[str]) -> NoReturn:
    """Run what `is_plain` knows, and exit as the command line does."""
    hear_signals()
    try:
        status = _RUN[arguments[0]](Path(arguments[3]))
    except X0Error as error:
        _say(str(error))
        status = 1
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        from x0tta6bl4.app.cli.main import os_error_line

        _say(os_error_line(error))
        status = 1
    sys.exit(status)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"x0: {line}", file=sys.stderr, flush=True)
