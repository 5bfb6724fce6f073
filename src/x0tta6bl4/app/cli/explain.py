"""`x0 explain`: why an identity is as it is, or why there is none."""

from __future__ import annotations

from pathlib import Path

import click

from x0tta6bl4.app.cli.reach import (
    ask_authority,
    at,
    authority_option,
    json_option,
    node_options,
    one_node,
    print_json,
)


@click.group(
    epilog="""\b
Examples:
  x0 explain ttl spiffe://example.org/web
  x0 explain denied spiffe://example.org/web     on the host of the program
  x0 explain program 1234"""
)
def explain() -> None:
    """Why an identity is as it is, or why there is none."""


@explain.command(
    epilog="""\b
Examples:
  x0 explain ttl spiffe://example.org/web
  x0 explain ttl spiffe://example.org/web --json"""
)
@click.argument("id", metavar="SPIFFE-ID")
@authority_option
@json_option
def ttl(id: str, authority_dir: Path | None, as_json: bool) -> None:
    """How long SVIDs of an identity live, what bounds that, and when they are renewed."""
    from x0tta6bl4.core.identity.renewal import SPREAD
    from x0tta6bl4.wire import authority as words
    from x0tta6bl4.wire.errors import NotFound
    from x0tta6bl4.wire.ids import spiffe_id

    wanted = spiffe_id(id)
    page = ask_authority(authority_dir, "EntryList", words.Page(match=wanted))
    entries = [entry for entry in page.entries if entry.id == wanted]
    if not entries:
        raise NotFound("X0-CLI-040", f"no entry has the ID {wanted}", "see x0 entry list")
    bundle = ask_authority(authority_dir, "BundleShow", words.Nothing())
    active = [ca for ca in bundle.cas if ca.state == "active"]
    ca_end = min(ca.not_after_unix_s for ca in active)
    found = [
        {
            "entry": entry.key,
            "node": entry.node,
            "lifetime_s": entry.ttl_s,
            "backdated_s": min(words.BACKDATE_S, entry.ttl_s // 4),
            "renewed_after_s": [round(entry.ttl_s * (1 + by) / 2) for by in (-SPREAD, SPREAD)],
            "longest_allowed_s": words.TTL_S_MAX,
            "ca_not_after": ca_end,
        }
        for entry in entries
    ]
    if as_json:
        print_json(found)
        return
    for one in found:
        first, last = one["renewed_after_s"]
        print(f"entry {one['entry']} on {one['node']}:")
        print(f"  lives {one['lifetime_s']} s, as its entry says (x0 entry update --ttl);")
        print(
            f"  {one['backdated_s']} s of these lie before it is issued, for clocks that are slow;"
        )
        print(f"  the authority allows at most {one['longest_allowed_s']} s,")
        print(f"  and nothing beyond the end of its CA, {at(ca_end)}.")
        print(f"  Renewed {first} to {last} s after its beginning (half of its life ± 10 %).")


@explain.command(
    epilog="""\b
Examples:
  x0 explain denied spiffe://example.org/web
  x0 explain denied spiffe://example.org/web --node n1 --json"""
)
@click.argument("id", metavar="SPIFFE-ID")
@json_option
@node_options
def denied(id: str, as_json: bool, name: str, state_dir: Path | None) -> int:
    """Why a program of this host has not got an identity.

    Goes through the node, the entries of the ID and the programs that have asked, the last first.
    The exit status is 1 if nobody can have the identity here, 0 otherwise.
    """
    from x0tta6bl4.wire.admin import CheckAnswer, ExplainDenied
    from x0tta6bl4.wire.ids import spiffe_id

    with one_node(state_dir, name) as client:
        found = client.ask(ExplainDenied(spiffe_id(id)), CheckAnswer).findings
    if as_json:
        print_json(found)
    for one in () if as_json else found:
        print(f"{one.level.upper():7}  {one.id}: {one.what}. {one.hint}")
    return int(any(one.level == "error" for one in found))


@explain.command(
    epilog="""\b
Examples:
  x0 explain program 1234
  sudo x0 explain program $(systemctl show -P MainPID web.service)"""
)
@click.argument("pid", type=click.IntRange(1, 2**22))
@json_option
def program(pid: int, as_json: bool) -> None:
    """All selectors that hold for a running program, or why a family has none.

    What it says is of now; docs/selectors.md says what each of them proves.
    """
    from x0tta6bl4.edge.attest.describe import describe

    found = describe(pid)
    if as_json:
        print_json({family: {"selectors": said, "why": why} for family, said, why in found})
        return
    for family, said, why in found:
        for selector in said:
            print(selector)
        if why:
            print(f"# {family}: {why}")
