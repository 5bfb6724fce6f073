"""Who asks is the user; who may do what is said by authorisers."""

import asyncio
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from x0tta6bl4.sdk.frameworks.starlette import Peers
from x0tta6bl4.sdk.frameworks.uvicorn import Config
from x0tta6bl4.sdk.identity import X509Source, exact, member_of


@requires("authenticated")
async def hello(request):
    return PlainTextResponse(f"hello {request.user.identity}")


@requires("admin")
async def restart(request):
    return PlainTextResponse("as you wish")


app = Starlette(routes=[Route("/", hello), Route("/restart", restart, methods=["POST"])])
peers = Peers(admin=exact("spiffe://example.org/admin"))
app.add_middleware(AuthenticationMiddleware, backend=peers)


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        config = Config(app, port=port, source=source, authorize=member_of("example.org"))
        await uvicorn.Server(config).serve()


asyncio.run(main(int(sys.argv[1])))
