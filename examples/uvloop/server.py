"""A protocol, under uvloop; with `asyncio.run` it is the same."""

import asyncio
import sys

import uvloop

from x0tta6bl4.sdk.frameworks.asyncio_protocols import create_server, peer_id
from x0tta6bl4.sdk.identity import X509Source, member_of


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(f"hello {peer_id(transport)}\n".encode())
        transport.close()


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        server = await create_server(
            Greeter, "127.0.0.1", port, source=source, authorize=member_of("example.org")
        )
        async with server:
            print("listening", flush=True)
            await server.serve_forever()


uvloop.run(main(int(sys.argv[1])))
