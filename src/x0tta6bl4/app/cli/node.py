"""`x0 node` and `x0 proxy`: run a node on this host; list, drain and evict nodes."""

from __future__ import annotations

from pathlib import Path

import click

from x0tta6bl4.app.cli import services
from x0tta6bl4.app.cli.reach import (
    ask_authority,
    at,
    authority_option,
    confirmed,
    json_option,
    node_dirs,
    node_options,
    one_node,
    print_fields,
    print_json,
    print_table,
)


@click.group(
    epilog="""\b
Examples:
  x0 node run --config /etc/x0/node.toml
  x0 node list
  x0 node drain               this host's node, before an upgrade
  x0 node evict b --yes       never again, and everything issued through it"""
)
def node() -> None:
    """Run a node; list, drain and evict nodes."""


@node.command(
    epilog="""\b
Examples:
  x0 node run --config /etc/x0/node.toml"""
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False, readable=False), required=True
)
def run(config: Path) -> None:
    """Run agent and proxy in the foreground, as systemd wants it; SIGTERM ends both."""
    services.run_node(config)


@node.command(
    epilog="""\b
Examples:
  x0 node stop --state-dir /var/lib/x0/a"""
)
@node_options
def stop(name: str, state_dir: Path | None) -> None:
    """Stop a node of this host: agent and proxy.

    Also one whose agent was killed: its proxy, and what it had in the kernel, end too.
    """
    from x0tta6bl4.wire.admin import Fine, Stop
    from x0tta6bl4.wire.errors import Unavailable

    [path, *_] = node_dirs(state_dir, name)
    try:
        with one_node(path, name) as client:
            client.ask(Stop(), Fine)
    except Unavailable as error:
        if error.id != "X0-ADM-001":
            raise
        from x0tta6bl4.app.planes import end_dead

        done = end_dead(path)
        if done is None:
            raise
        print(f"the agent is gone already; {done}")
    else:
        print("stopping")


@node.command(
    epilog="""\b
Examples:
  x0 node drain                       the node of this host
  x0 node drain --timeout 300
  x0 node drain --remote b            any node, through the authority
  x0 node drain --remote b --undo"""
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.IntRange(1, 86_400),
    default=60,
    show_default=True,
    help="Seconds to wait for streams to end.",
)
@click.option("--remote", metavar="NAME", default="", help="Ask the authority to drain this node.")
@click.option("--undo", is_flag=True, help="With --remote: take traffic again.")
@node_options
@authority_option
def drain(
    timeout_s: int,
    remote: str,
    undo: bool,
    name: str,
    state_dir: Path | None,
    authority_dir: Path | None,
) -> None:
    """Take no transit and no new streams, and wait until the last stream has ended."""
    if remote:
        from x0tta6bl4.wire.authority import NodeDrain

        ask_authority(authority_dir, "NodeDrain", NodeDrain(node=remote, on=not undo))
        print(f"{remote}: {'takes traffic again' if undo else 'draining'}")
        return
    if undo:
        raise click.UsageError("--undo goes with --remote; a drained node is started anew")
    from x0tta6bl4.wire.admin import Drain, Fine

    with one_node(state_dir, name, timeout_s + 10.0) as client:
        answer = client.ask(Drain(timeout_s * 1000), Fine)
    print(answer.text or "drained")


@node.command(
    "renew",
    epilog="""\b
Examples:
  x0 node renew
  x0 node renew --id spiffe://example.org/web""",
)
@click.option("--id", "id", default="", help="One SPIFFE ID; else all of this node.")
@node_options
def renew(id: str, name: str, state_dir: Path | None) -> None:
    """Renew SVIDs now; application connections go on."""
    from x0tta6bl4.wire.admin import Fine, Renew

    with one_node(state_dir, name, 30.0) as client:
        answer = client.ask(Renew(id), Fine)
    print(answer.text or "renewed")


@node.command(
    "list",
    epilog="""\b
Examples:
  x0 node list --json""",
)
@authority_option
@json_option
def list_nodes(authority_dir: Path | None, as_json: bool) -> None:
    """All enrolled nodes, as the authority has them."""
    from x0tta6bl4.wire.authority import Page

    nodes = ask_authority(authority_dir, "NodeList", Page()).nodes
    if as_json:
        print_json(nodes)
        return
    print_table(
        ("NODE", "STATE", "ATTESTED", "SVID UNTIL"),
        [
            (
                n.name,
                "evicted"
                if n.evicted_unix_s
                else "draining"
                if n.draining
                else "connected"
                if n.connected
                else "away",
                at(n.attested_unix_s),
                at(n.not_after_unix_s),
            )
            for n in nodes
        ],
    )


@node.command(
    "show",
    epilog="""\b
Examples:
  x0 node show b""",
)
@click.argument("name")
@authority_option
@json_option
def show_node(name: str, authority_dir: Path | None, as_json: bool) -> None:
    """One enrolled node."""
    from x0tta6bl4.wire.authority import Key

    found = ask_authority(authority_dir, "NodeShow", Key(name))
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@node.command(
    epilog="""\b
Examples:
  x0 node evict b --reason "stolen" --yes"""
)
@click.argument("name")
@click.option("--reason", default="", help="For the record.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@authority_option
@json_option
def evict(name: str, reason: str, yes: bool, authority_dir: Path | None, as_json: bool) -> None:
    """Ban a node for good, and revoke all that was issued to it and through it."""
    from x0tta6bl4.wire.authority import NodeEvict

    if not confirmed(f"evict {name} for good?", yes):
        raise click.Abort
    found = ask_authority(authority_dir, "NodeEvict", NodeEvict(node=name, reason=reason))
    if as_json:
        print_json(found)
    else:
        print(f"{name} is evicted; its name is free again after x0 node delete {name}")


@node.command(
    epilog="""\b
Examples:
  x0 node delete b"""
)
@click.argument("name")
@authority_option
def delete(name: str, authority_dir: Path | None) -> None:
    """Forget an evicted node, so that its name may be enrolled again."""
    from x0tta6bl4.wire.authority import Key

    ask_authority(authority_dir, "NodeDelete", Key(name))
    print(f"{name} is forgotten")


@click.group(
    hidden=True,
    epilog="""\b
Examples:
  x0 proxy run --config /etc/x0/node.toml""",
)
def proxy() -> None:
    """The data plane of a node; started by its agent."""


@proxy.command(
    "run",
    epilog="""\b
Examples:
  x0 proxy run --config /etc/x0/node.toml""",
)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False, readable=False), required=True
)
def run_proxy(config: Path) -> None:
    """Run the proxy alone, in the foreground; it waits for an agent at proxy.sock."""
    services.run_proxy(config)
