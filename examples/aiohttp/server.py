"""An application that knows who asks."""

import asyncio
import sys

from aiohttp import web

from x0tta6bl4.sdk.frameworks.aiohttp import Site, peer_id
from x0tta6bl4.sdk.identity import X509Source, member_of


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {peer_id(request)}")


async def main(port: int) -> None:
    app = web.Application()
    app.add_routes([web.get("/", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    async with X509Source() as source:
        await source.wait()
        who = member_of("example.org")
        await Site(runner, "127.0.0.1", port, source=source, authorize=who).start()
        print("listening", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
