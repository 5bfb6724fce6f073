"""Identities before a PostgreSQL that listens on a Unix socket only."""

import asyncio
import sys

from x0tta6bl4.sdk.frameworks.postgres import front
from x0tta6bl4.sdk.identity import X509Source, member_of

USERS = {"spiffe://example.org/web": ["web", "reports"]}


async def main(port: str, server: str) -> None:
    async with X509Source() as source:
        await source.wait()
        async with front(
            f"127.0.0.1:{port}",
            source,
            authorize=member_of("example.org"),
            server=server,
            users=lambda id: USERS.get(id, []),
        ):
            print("listening", flush=True)
            await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
