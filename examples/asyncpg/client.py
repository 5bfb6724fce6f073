"""A pool of connections to a PostgreSQL that is proven."""

import asyncio
import sys

from x0tta6bl4.sdk.frameworks.asyncpg import pool
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(address: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = exact("spiffe://example.org/web")
        async with pool(address, source, authorize=who, user="web", database="postgres") as made:
            print(await made.fetchval("SELECT current_user"))


asyncio.run(main(f"127.0.0.1:{sys.argv[1]}"))
