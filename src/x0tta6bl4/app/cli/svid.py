"""`x0 svid`: identities of the calling process: looked at, in files, around another process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from x0tta6bl4.app.cli.reach import (
    SECONDS_MAX,
    Seconds,
    at,
    json_option,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from x0tta6bl4.app.svid import Wanted
    from x0tta6bl4.edge.tls.x509 import Svid

F = TypeVar("F", bound=Callable[..., Any])


def socket_option(command: F) -> F:
    """Option that says where the Workload API is, and how long to wait for it."""
    command = click.option(
        "--timeout",
        type=Seconds(0.1, SECONDS_MAX),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="For the first answer.",
    )(command)
    return click.option(
        "--socket",
        metavar="ADDRESS",
        default="",
        help="unix:/path or tcp://IP:PORT; else SPIFFE_ENDPOINT_SOCKET.",
    )(command)


def identity_options(command: F) -> F:
    """Options that say which identity is meant, of which Workload API."""
    command = socket_option(command)
    command = click.option("--hint", default="", help="The one with this hint.")(command)
    return click.option(
        "--id", "id", default="", metavar="SPIFFE-ID", help="This one; else the first."
    )(command)


@click.group(
    epilog="""\b
Examples:
  x0 svid show --socket unix:/run/x0tta6bl4/n1/workload.sock
  x0 svid write --dir /run/web --signal HUP --pid-file /run/nginx.pid
  x0 svid run -- ./server --cert-from-env"""
)
def svid() -> None:
    """Identities of the calling process: show, watch, write to files, run a process under one."""


@svid.command(
    epilog="""\b
Examples:
  x0 svid show
  x0 svid show --json
  x0 svid show --pem | openssl x509 -noout -text"""
)
@socket_option
@json_option
@click.option("--pem", is_flag=True, help="Print the certificates, PEM, leaf first; no keys.")
def show(socket: str, timeout: float, as_json: bool, pem: bool) -> None:
    """All identities of this process, the default one first."""
    import asyncio

    from x0tta6bl4.app.svid import Wanted, fetch

    svids = asyncio.run(fetch(Wanted(socket, timeout_s=timeout), _say))
    if pem:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        for one in svids:
            for der in one.chain:
                sys.stdout.write(
                    x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
                )
        return
    rows = [row(one) for one in svids]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("ID", "KEY", "FROM", "UNTIL", "HINT"),
        [
            (x["id"], x["key"], at(x["not_before"]), at(x["not_after"]), x["hint"] or "-")
            for x in rows
        ],
    )


def row(held: Svid) -> dict[str, Any]:
    """What may be said of an SVID; never its key."""
    from x0tta6bl4.edge.tls.x509 import parse

    leaf = parse(held.chain[0])
    return {
        "id": held.id,
        "key": leaf.fields.key,
        "serial": f"{leaf.certificate.serial_number:x}",
        "not_before": leaf.fields.not_before_unix_s,
        "not_after": leaf.fields.not_after_unix_s,
        "chain": len(held.chain),
        "hint": held.hint,
    }


@svid.command(
    epilog="""\b
Examples:
  x0 svid watch
  x0 svid watch --json | jq -r .not_after"""
)
@identity_options
@json_option
def watch(id: str, hint: str, socket: str, timeout: float, as_json: bool) -> None:
    """A line for each new SVID, until Ctrl-C."""
    import asyncio
    import json

    from x0tta6bl4.app.svid import follow

    async def act(held: Svid | None, source: Any) -> None:
        if as_json:
            print(json.dumps(row(held) if held else {"gone": True}), flush=True)
        elif held is None:
            print(f"gone: {source.error or 'expired'}", flush=True)
        else:
            found = row(held)
            until = f"until {at(found['not_after'])}"
            print(f"{held.id}  {until}  serial {found['serial']}", flush=True)

    asyncio.run(follow(_wanted(id, hint, socket, timeout), act, _say))


@svid.command(
    epilog="""\b
Examples:
  x0 svid write --dir /run/web --once
  x0 svid write --dir /run/web --signal HUP --pid-file /run/nginx.pid
  x0 svid write --dir /run/web --mode 0640 --owner :web -- systemctl reload web"""
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where to; made 0700 if it is missing.",
)
@identity_options
@click.option("--chain", default="svid.pem", show_default=True, help="Name of the chain's file.")
@click.option("--key", default="svid_key.pem", show_default=True, help="Name of the key's file.")
@click.option("--bundle", default="bundle.pem", show_default=True, help="Name of the CAs' file.")
@click.option("--mode", default="0600", show_default=True, help="Mode of the key's file, octal.")
@click.option("--owner", default="", metavar="USER[:GROUP]", help="Owner of the files.")
@click.option("--signal", "signal_name", default="", metavar="NAME", help="Sent when they are new.")
@click.option("--pid", type=click.IntRange(min=1), default=None, help="Whom the signal is for.")
@click.option("--pid-file", default="", metavar="FILE", help="The same, read each time.")
@click.option("--once", is_flag=True, help="Write once and end, instead of keeping them fresh.")
@click.argument("command", nargs=-1)
def write(
    folder: Path,
    id: str,
    hint: str,
    socket: str,
    timeout: float,
    chain: str,
    key: str,
    bundle: str,
    mode: str,
    owner: str,
    signal_name: str,
    pid: int | None,
    pid_file: str,
    once: bool,
    command: tuple[str, ...],
) -> None:
    """Keep an identity in files, PEM: they change together, and are removed with the identity.

    COMMAND, after --, is run whenever they are new.
    """
    import asyncio

    from x0tta6bl4.app import svid as work
    from x0tta6bl4.runtime.secrecy import keep_secrets
    from x0tta6bl4.sdk.identity.files import Form

    keep_secrets()
    uid, gid = work.owner(owner) if owner else (-1, -1)
    names = (chain, key, bundle)
    if len(set(names)) < 3 or any("/" in name or name.startswith(".") for name in names):
        raise click.BadParameter("names of files differ, and have no / and no leading dot")
    form = Form(chain, key, bundle, secret_mode=_mode(mode), uid=uid, gid=gid)
    told = work.told_by(signal_name, pid or 0, pid_file, command)
    files = work.Files(folder, form, told, _say)
    asyncio.run(work.follow(_wanted(id, hint, socket, timeout), files.act, _say, once=once))


@svid.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  x0 svid run -- ./server            started again for each new SVID
  x0 svid run --signal HUP -- nginx -g 'daemon off;'
The process finds its files by X0_SVID_CHAIN, X0_SVID_KEY and X0_SVID_BUNDLE.""",
)
@identity_options
@click.option(
    "--signal", "signal_name", default="", metavar="NAME", help="For a new SVID, not a restart."
)
@click.argument("command", nargs=-1, required=True)
def run(
    id: str, hint: str, socket: str, timeout: float, signal_name: str, command: tuple[str, ...]
) -> int:
    """Run a process under an identity: started with it, told of each new one, ended with it."""
    import asyncio

    from x0tta6bl4.app import svid as work
    from x0tta6bl4.runtime.secrecy import keep_secrets

    keep_secrets()
    number = work.signal_number(signal_name) if signal_name else 0
    wanted = _wanted(id, hint, socket, timeout)

    async def main() -> int:
        return await work.run(wanted, work.Process(command, number, _say))

    return asyncio.run(main())


def _wanted(id: str, hint: str, socket: str, timeout: float) -> Wanted:
    from x0tta6bl4.app.svid import Wanted

    return Wanted(socket, id, hint, timeout)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0o400 <= mode <= 0o660 or mode & 0o117:
        raise click.BadParameter(
            f"{text} is no mode for a key: 0600, or 0640 for a group; nobody else reads it"
        )
    return mode


def _say(line: str) -> None:
    print(f"x0: {line}", file=sys.stderr, flush=True)
