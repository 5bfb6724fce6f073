"""A channel to a service that is proven; the address says where, never who."""

import asyncio
import sys

from x0tta6bl4.sdk.frameworks.grpcio import channel
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(address: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = exact("spiffe://example.org/web")
        async with channel(address, source, authorize=who) as made:
            answer = await made.unary_unary("/Greeter/Hello")(b"", timeout=5)
            print(answer.decode())


asyncio.run(main(f"127.0.0.1:{sys.argv[1]}"))
