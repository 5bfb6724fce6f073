"""`x0 jwt`: JWT-SVIDs of the calling process, and those that somebody presents to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from x0tta6bl4.app.cli.reach import at, json_option, print_json
from x0tta6bl4.app.cli.svid import socket_option

if TYPE_CHECKING:
    from x0tta6bl4.edge.jwt.svid import JwtSvid

TOKEN_CHARS_MAX = 64 * 1024


@click.group(
    epilog="""\b
Examples:
  x0 jwt mint --audience spiffe://example.org/api > token
  x0 jwt validate --audience spiffe://example.org/api < token"""
)
def jwt() -> None:
    """JWT-SVIDs: get one of this process, validate one of somebody else."""


@jwt.command(
    epilog="""\b
Examples:
  curl -H "authorization: Bearer $(x0 jwt mint --audience api)" https://api.example.org/
  x0 jwt mint --audience api --json        what is in it, without the token"""
)
@click.option("--audience", multiple=True, required=True, help="Whom it is for. Repeatable.")
@click.option("--id", "id", default="", metavar="SPIFFE-ID", help="Whose; else the default one's.")
@socket_option
@json_option
def mint(audience: tuple[str, ...], id: str, socket: str, timeout: float, as_json: bool) -> None:
    """Get a JWT-SVID of this process and print it."""
    import asyncio

    from x0tta6bl4.sdk.identity.client import WorkloadClient
    from x0tta6bl4.sdk.identity.jwt import fetch_jwt_svids

    async def get() -> JwtSvid:
        async with WorkloadClient(socket or None, deadline_s=timeout) as client:
            return (await fetch_jwt_svids(audience, id=id or None, client=client))[0]

    svid = asyncio.run(get())
    if as_json:
        print_json(_described(svid))
    else:
        print(svid.token)


@jwt.command(
    epilog="""\b
Examples:
  x0 jwt validate --audience api < token
  x0 jwt mint --audience api | x0 jwt validate --audience api"""
)
@click.argument("token", type=click.File("r", errors="replace"), default="-")
@click.option("--audience", required=True, help="Who we are; has to be one of the token's own.")
@socket_option
@json_option
def validate(token: TextIO, audience: str, socket: str, timeout: float, as_json: bool) -> None:
    """Validate a JWT-SVID from a file or standard input, against the bundles of the Workload API.

    Exit status 1 and the reason if it is refused. A token is never an argument: others could read
    it in the list of processes.
    """
    import asyncio

    from x0tta6bl4.sdk.identity.jwt import validate_jwt
    from x0tta6bl4.sdk.identity.source import BundleSource

    text = token.read(TOKEN_CHARS_MAX + 1).strip()

    async def judged() -> JwtSvid:
        async with BundleSource(socket or None, x509=False) as source:
            await source.wait(timeout)
            return validate_jwt(text, audience, source)

    svid = asyncio.run(judged())
    if as_json:
        print_json(_described(svid))
        return
    print(f"{svid.id}  until {at(svid.expires_unix_s)}  for {', '.join(svid.audience)}")
    sys.stdout.flush()


def _described(svid: JwtSvid) -> dict[str, Any]:
    return {
        "id": svid.id,
        "audience": svid.audience,
        "issued": svid.issued_unix_s,
        "expires": svid.expires_unix_s,
        "hint": svid.hint,
        "claims": dict(svid.claims),
    }
