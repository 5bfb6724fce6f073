"""A session whose servers are proven; the URL says where, never who."""

import asyncio
import sys

import aiohttp

from x0tta6bl4.sdk.frameworks.aiohttp import Connector
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        connector = Connector(source, authorize=exact("spiffe://example.org/web"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"https://127.0.0.1:{port}/") as response,
        ):
            print(response.status, await response.text())


asyncio.run(main(int(sys.argv[1])))
