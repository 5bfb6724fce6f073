"""`x0 dev`: a trust domain for one developer, in one command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  x0 dev                                  two workloads that know each other
  x0 dev --workload web --workload db     and entries for programs of yours
  x0 dev --no-demo --dir ./dev            nothing but the Workload API, in a directory that stays
Then, from another terminal:
  export SPIFFE_ENDPOINT_SOCKET=unix:...  the lines that it prints
  x0 svid show
  x0 explain denied spiffe://dev.test/db"""
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to; else a directory that is removed at the end.",
)
@click.option("--trust-domain", default="dev.test", show_default=True, metavar="NAME")
@click.option(
    "--workload", "paths", multiple=True, metavar="PATH", help="An identity for you. Repeatable."
)
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(min=10, max=3600),
    default=60,
    show_default=True,
    help="Life of SVIDs, in seconds.",
)
@click.option("--no-demo", is_flag=True, help="Without the two workloads.")
def dev(
    folder: Path | None, trust_domain: str, paths: tuple[str, ...], ttl_s: int, no_demo: bool
) -> None:
    """Authority, node, Workload API and two workloads for one developer; Ctrl-C ends it.

    Needs no root. Every program of this user gets the identities: in production entries say more.
    """
    import shutil
    import signal
    import tempfile
    import time

    from x0tta6bl4.app.dev import NODE, Dev

    root = folder.absolute() if folder is not None else Path(tempfile.mkdtemp(prefix="x0-dev-"))
    local = Dev(root, trust_domain, paths, ttl_s, _say)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _say(f"starting the trust domain {trust_domain} in {root}")
        local.start(demo=not no_demo)
        _say(f"export SPIFFE_ENDPOINT_SOCKET={local.endpoint}")
        _say(f"export X0_STATE_DIR={local.mesh.state(NODE)}")
        _say(f"export X0_AUTHORITY_DIR={local.mesh.state('authority')}")
        for id in local.ids:
            _say(f"yours: {id}")
        while local.is_alive():
            time.sleep(0.5)
        raise local.lost()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        local.stop()
        if folder is None:
            shutil.rmtree(root, ignore_errors=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, flush=True)
