"""A pool of connections to a Redis that is proven."""

import asyncio
import sys

from redis.asyncio import Redis

from x0tta6bl4.sdk.frameworks.redis import pool
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(address: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = exact("spiffe://example.org/web")
        async with pool(address, source, authorize=who, decode_responses=True) as made:
            print(await Redis(connection_pool=made).acl_whoami())


asyncio.run(main(f"127.0.0.1:{sys.argv[1]}"))
