"""Any ASGI application, over HTTP/2, HTTP/1.1 and WebSockets: who asks stands in its scope."""

import asyncio
import sys

from hypercorn.config import Config

from x0tta6bl4.sdk.frameworks.asgi import peer_id
from x0tta6bl4.sdk.frameworks.hypercorn import serve
from x0tta6bl4.sdk.identity import X509Source, member_of


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    if scope["type"] == "http":
        body = f"HTTP/{scope['http_version']}: hello {peer_id(scope)}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


async def main(port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    async with X509Source() as source:
        await source.wait()
        await serve(app, config, source=source, authorize=member_of("example.org"))


asyncio.run(main(int(sys.argv[1])))
