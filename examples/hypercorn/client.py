"""A client whose servers are proven; the URL says where, never who."""

import asyncio
import sys

import httpx

from x0tta6bl4.sdk.frameworks.httpx import Transport, peer_id
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        transport = Transport(source, authorize=exact("spiffe://example.org/web"))
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.get(f"https://127.0.0.1:{port}/")
            print(response.text)
            print("said", peer_id(response))


asyncio.run(main(int(sys.argv[1])))
