"""Any ASGI application: who asks stands in its scope."""

import asyncio
import sys

import uvicorn

from x0tta6bl4.sdk.frameworks.asgi import peer_id
from x0tta6bl4.sdk.frameworks.uvicorn import Config
from x0tta6bl4.sdk.identity import X509Source, member_of


async def app(scope, receive, send):
    if scope["type"] == "http":
        body = f"hello {peer_id(scope)}".encode()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": body})


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        config = Config(app, port=port, source=source, authorize=member_of("example.org"))
        await uvicorn.Server(config).serve()


asyncio.run(main(int(sys.argv[1])))
