"""`x0 entry`, `name`, `token`: what the authority has registered."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from x0tta6bl4.app.cli.reach import (
    SECONDS_MAX,
    ask_authority,
    at,
    authority_option,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from x0tta6bl4.wire import authority as words
from x0tta6bl4.wire.records import Name


def _show(value: msgspec.Struct, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        print_fields(value)


# ------------------------------------------------------------------ entries
@click.group(
    epilog="""\b
Examples:
  x0 entry create --id spiffe://example.org/web --node a \\
      --selector unix:uid:1000 --address 127.0.0.1:8080
  x0 entry list --node a"""
)
def entry() -> None:
    """Registration entries: who on which node may be what."""


@entry.command(
    "list",
    epilog="""\b
Examples:
  x0 entry list --match web --json""",
)
@click.option("--node", "node_name", default="", help="Entries of this node only.")
@click.option("--match", default="", help="Only where this stands in key or ID.")
@authority_option
@json_option
def entry_list(node_name: str, match: str, authority_dir: Path | None, as_json: bool) -> None:
    """All entries."""
    found: list[words.Entry] = []
    more, after = True, ""
    while more:
        page = ask_authority(
            authority_dir, "EntryList", words.Page(after=after, match=match, node=node_name)
        )
        found += page.entries
        more, after = page.more, found[-1].key if found else ""
    if as_json:
        print_json(found)
        return
    print_table(
        ("KEY", "ID", "NODE", "SELECTORS", "ADDRESS", "TTL"),
        [
            (e.key, e.id, e.node, " ".join(e.selectors), e.address or "-", f"{e.ttl_s} s")
            for e in found
        ],
    )


@entry.command(
    "show",
    epilog="""\b
Examples:
  x0 entry show KEY""",
)
@click.argument("key")
@authority_option
@json_option
def entry_show(key: str, authority_dir: Path | None, as_json: bool) -> None:
    """One entry."""
    _show(ask_authority(authority_dir, "EntryShow", words.Key(key)), as_json)


@entry.command(
    "create",
    epilog="""\b
Examples:
  x0 entry create --id spiffe://example.org/client --node b --selector unix:uid:1001
  x0 entry create --id spiffe://example.org/web --node a --selector unix:uid:1000 \\
      --address unix:/run/web.sock --proxy-header""",
)
@click.option("--id", "id", required=True, help="SPIFFE ID.")
@click.option("--node", "node_name", required=True, help="The only node that gets its SVID.")
@click.option(
    "--selector",
    "selectors",
    multiple=True,
    required=True,
    help="What the program must be, e.g. unix:uid:1000. Repeatable; all must hold.",
)
@click.option("--address", default="", help="Where it listens, if it takes connections.")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(0, SECONDS_MAX),
    default=0,
    help="Life of its SVIDs, in seconds; else as authority.toml says.",
)
@click.option("--proxy-header", is_flag=True, help="Send PROXY protocol v2 with the caller's ID.")
@click.option("--key", default="", help="Name of the entry; else one is chosen.")
@click.option("--hint", default="", help="A word that the Workload API passes on.")
@click.option(
    "--federates-with",
    multiple=True,
    metavar="DOMAIN",
    help="Foreign trust domain whose bundle it is given. Repeatable.",
)
@authority_option
@json_option
def entry_create(
    id: str,
    node_name: str,
    selectors: tuple[str, ...],
    address: str,
    ttl_s: int,
    proxy_header: bool,
    key: str,
    hint: str,
    federates_with: tuple[str, ...],
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Register a program; replicas are entries with one ID on several nodes."""
    _show(
        ask_authority(
            authority_dir,
            "EntryCreate",
            words.Entry(
                id=id,
                node=node_name,
                selectors=selectors,
                ttl_s=ttl_s,
                address=address,
                proxy_header=proxy_header,
                hint=hint,
                key=key,
                federates_with=federates_with,
            ),
        ),
        as_json,
    )


@entry.command(
    "update",
    epilog="""\b
Examples:
  x0 entry update KEY --address 127.0.0.1:8081""",
)
@click.argument("key")
@click.option("--node", "node_name", help="Move it to another node.")
@click.option("--selector", "selectors", multiple=True, help="Replaces all selectors. Repeatable.")
@click.option("--address", help="Where it listens; empty: it takes no connections.")
@click.option(
    "--ttl", "ttl_s", type=click.IntRange(0, SECONDS_MAX), help="Life of its SVIDs, in seconds."
)
@click.option("--proxy-header/--no-proxy-header", default=None)
@click.option(
    "--federates-with",
    multiple=True,
    metavar="DOMAIN",
    help="Replaces all foreign trust domains; '' for none. Repeatable.",
)
@authority_option
@json_option
def entry_update(
    key: str,
    node_name: str | None,
    selectors: tuple[str, ...],
    address: str | None,
    ttl_s: int | None,
    proxy_header: bool | None,
    federates_with: tuple[str, ...],
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Change what is named and leave the rest; refused if somebody else was quicker."""
    old = ask_authority(authority_dir, "EntryShow", words.Key(key))
    changes = {
        "node": node_name,
        "selectors": selectors or None,
        "address": address,
        "ttl_s": ttl_s,
        "proxy_header": proxy_header,
        "federates_with": tuple(filter(None, federates_with)) if federates_with else None,
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    if not changes:
        raise click.UsageError("nothing to change; name at least one option")
    new = msgspec.structs.replace(old, **changes)
    _show(ask_authority(authority_dir, "EntryUpdate", new), as_json)


@entry.command(
    "delete",
    epilog="""\b
Examples:
  x0 entry delete KEY""",
)
@click.argument("key")
@authority_option
@json_option
def entry_delete(key: str, authority_dir: Path | None, as_json: bool) -> None:
    """Issue no more SVIDs for it; to end those that are out: x0 authority revoke."""
    gone = ask_authority(authority_dir, "EntryDelete", words.Key(key))
    if as_json:
        print_json(gone)
    else:
        print(f"{gone.id} on {gone.node}: deleted")


# ------------------------------------------------------------------ names
@click.group(
    epilog="""\b
Examples:
  x0 name create web --id spiffe://example.org/web --caller spiffe://example.org/client
  x0 name update web --caller 'spiffe://example.org/shop/*'"""
)
def name() -> None:
    """Service names: name -> SPIFFE ID and allowed callers."""


@name.command(
    "list",
    epilog="""\b
Examples:
  x0 name list""",
)
@click.option("--match", default="", help="Only where this stands in name or ID.")
@authority_option
@json_option
def name_list(match: str, authority_dir: Path | None, as_json: bool) -> None:
    """All names."""
    found: list[Name] = []
    more, after = True, ""
    while more:
        page = ask_authority(authority_dir, "NameList", words.Page(after=after, match=match))
        found += page.names
        more, after = page.more, found[-1].name if found else ""
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "ID", "CALLERS"),
        [(f"{n.name}.mesh", n.id, " ".join(n.callers) or "-") for n in found],
    )


@name.command(
    "show",
    epilog="""\b
Examples:
  x0 name show web""",
)
@click.argument("service")
@authority_option
@json_option
def name_show(service: str, authority_dir: Path | None, as_json: bool) -> None:
    """One name."""
    _show(ask_authority(authority_dir, "NameShow", words.Key(_bare(service))), as_json)


@name.command(
    "create",
    epilog="""\b
Examples:
  x0 name create web --id spiffe://example.org/web --caller spiffe://example.org/client""",
)
@click.argument("service")
@click.option("--id", "id", required=True, help="SPIFFE ID that the name stands for.")
@click.option(
    "--caller",
    "callers",
    multiple=True,
    help="Who may call it: an ID, or one with /* at its end. Repeatable.",
)
@click.option("--proxy-header", is_flag=True, help="Its servers want PROXY protocol v2.")
@authority_option
@json_option
def name_create(
    service: str,
    id: str,
    callers: tuple[str, ...],
    proxy_header: bool,
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Give a service name to a SPIFFE ID; nobody may call it but who is named."""
    _show(
        ask_authority(
            authority_dir,
            "NameCreate",
            Name(name=_bare(service), id=id, callers=callers, proxy_header=proxy_header),
        ),
        as_json,
    )


@name.command(
    "update",
    epilog="""\b
Examples:
  x0 name update web --caller spiffe://example.org/client
  x0 name update web --no-callers""",
)
@click.argument("service")
@click.option("--id", "id", help="Another SPIFFE ID.")
@click.option("--caller", "callers", multiple=True, help="Replaces all callers. Repeatable.")
@click.option("--no-callers", is_flag=True, help="Nobody may call it by name.")
@click.option("--proxy-header/--no-proxy-header", default=None)
@authority_option
@json_option
def name_update(
    service: str,
    id: str | None,
    callers: tuple[str, ...],
    no_callers: bool,
    proxy_header: bool | None,
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Change what is named and leave the rest; open connections are judged again at once."""
    old = ask_authority(authority_dir, "NameShow", words.Key(_bare(service)))
    if not (id or callers or no_callers or proxy_header is not None):
        raise click.UsageError("nothing to change; name at least one option")
    new = Name(
        name=old.name,
        id=id or old.id,
        callers=() if no_callers else callers or old.callers,
        proxy_header=old.proxy_header if proxy_header is None else proxy_header,
    )
    _show(ask_authority(authority_dir, "NameUpdate", new), as_json)


@name.command(
    "delete",
    epilog="""\b
Examples:
  x0 name delete web""",
)
@click.argument("service")
@authority_option
@json_option
def name_delete(service: str, authority_dir: Path | None, as_json: bool) -> None:
    """Delete a name; connections made through it end, unless a rule allows them."""
    gone = ask_authority(authority_dir, "NameDelete", words.Key(_bare(service)))
    if as_json:
        print_json(gone)
    else:
        print(f"{gone.name}.mesh: deleted")


def _bare(service: str) -> str:
    return service.removesuffix(".mesh")


# ------------------------------------------------------------------ tokens
@click.group(
    epilog="""\b
Examples:
  x0 token create --node b --out b.token     then copy it to b, for authority.token_file"""
)
def token() -> None:
    """Enrolment tokens for new nodes: single use, ten minutes at most."""


@token.command(
    "create",
    epilog="""\b
Examples:
  x0 token create --node b --out b.token
  x0 token create --node b --authority-address 192.0.2.1:7000""",
)
@click.option("--node", "node_name", default="", help="The only name it enrols; else any free one.")
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(0, SECONDS_MAX),
    default=words.TOKEN_TTL_S_MAX,
    show_default=True,
    help="Seconds.",
)
@click.option(
    "--authority-address",
    "addresses",
    multiple=True,
    metavar="HOST:PORT",
    help="Where the node dials; else as authority.toml advertises. Repeatable.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there, 0600, instead of printing it.",
)
@authority_option
@json_option
def token_create(
    node_name: str,
    ttl_s: int,
    addresses: tuple[str, ...],
    out: Path | None,
    authority_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a token; it is shown this once."""
    made = ask_authority(
        authority_dir,
        "TokenCreate",
        words.TokenCreate(node=node_name, ttl_s=ttl_s, authorities=addresses),
    )
    if out is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(out, flags, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(made.token + "\n")
        print(f"wrote {out}, good until {at(made.expires_unix_s)}")
    elif as_json:
        print_json(made)
    else:
        print(made.token)


@token.command(
    "list",
    epilog="""\b
Examples:
  x0 token list""",
)
@authority_option
@json_option
def token_list(authority_dir: Path | None, as_json: bool) -> None:
    """Tokens without their secrets."""
    found = ask_authority(authority_dir, "TokenList", words.Page()).tokens
    if as_json:
        print_json(found)
        return
    print_table(
        ("TOKEN", "NODE", "UNTIL", "USED"),
        [(t.id, t.node or "any", at(t.expires_unix_s), at(t.used_unix_s)) for t in found],
    )


@token.command(
    "delete",
    epilog="""\b
Examples:
  x0 token delete ID""",
)
@click.argument("id")
@authority_option
def token_delete(id: str, authority_dir: Path | None) -> None:
    """Make a token worthless."""
    ask_authority(authority_dir, "TokenDelete", words.Key(id))
    print(f"{id}: deleted")
