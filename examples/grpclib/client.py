"""A channel to a service that is proven; the address says where, never who."""

import asyncio
import sys

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.client import UnaryUnaryMethod

from x0tta6bl4.sdk.frameworks.grpclib import Channel
from x0tta6bl4.sdk.identity import X509Source, exact


async def main(address: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = exact("spiffe://example.org/web")
        async with Channel(address, source, authorize=who) as channel:
            hello = UnaryUnaryMethod(channel, "/Greeter/Hello", Empty, StringValue)
            print((await hello(Empty(), timeout=5)).value)


asyncio.run(main(f"127.0.0.1:{sys.argv[1]}"))
