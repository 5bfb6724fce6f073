"""May read, may not restart."""

import asyncio
import sys

import httpx

from x0tta6bl4.sdk.frameworks.httpx import Transport
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        transport = Transport(source, authorize=exact("spiffe://example.org/web"))
        async with httpx.AsyncClient(transport=transport) as client:
            for method, path in (("GET", "/"), ("POST", "/restart")):
                response = await client.request(method, f"https://127.0.0.1:{port}{path}")
                print(method, path, response.status_code, response.text)


asyncio.run(main(int(sys.argv[1])))
