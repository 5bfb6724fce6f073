"""The other end, likewise a protocol."""

import asyncio
import sys

import uvloop

from x0tta6bl4.sdk.frameworks.asyncio_protocols import create_connection, peer_id
from x0tta6bl4.sdk.identity import X509Source, exact


class Listener(asyncio.Protocol):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        print(data.decode(), end="")

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        transport, listener = await create_connection(
            Listener, "127.0.0.1", port, source=source, authorize=exact("spiffe://example.org/web")
        )
        await listener.ended.wait()
        print("it was", peer_id(transport))


uvloop.run(main(int(sys.argv[1])))
