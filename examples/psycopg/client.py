"""A pool of connections to a PostgreSQL that is proven."""

import asyncio
import sys

from x0tta6bl4.sdk.frameworks.psycopg import pool
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(address: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = exact("spiffe://example.org/web")
        login = {"user": "web", "dbname": "postgres"}
        async with (
            pool(address, source, authorize=who, kwargs=login) as made,
            made.connection() as connection,
        ):
            answer = await connection.execute("SELECT current_user")
            print(await answer.fetchone())


asyncio.run(main(f"127.0.0.1:{sys.argv[1]}"))
