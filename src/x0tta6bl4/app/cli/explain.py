"""`x0 explain`: why an identity is as it is, or why there is none."""

from __future__ import annotations

from pathlib import Path

import click

from x0tta6bl4.app.cli.reach import ask_authority, at, authority_option, json_option, print_json


@click.group(
    epilog="""\b
Examples:
  x0 explain ttl spiffe://example.org/web"""
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
