"""A gRPC service that knows who calls."""

import asyncio
import sys
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Cardinality, Handler

from x0tta6bl4.sdk.frameworks.grpclib import Server, peer_id
from x0tta6bl4.sdk.identity import X509Source, member_of


class Greeter:
    async def hello(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(StringValue(value=f"hello {peer_id(stream)}"))

    def __mapping__(self) -> dict[str, Handler]:  # As generated code has it.
        kind = Cardinality.UNARY_UNARY
        return {"/Greeter/Hello": Handler(self.hello, kind, Empty, StringValue)}


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        server = Server([Greeter()], source, authorize=member_of("example.org"))
        await server.start("127.0.0.1", port)
        print("listening", flush=True)
        await server.wait_closed()


asyncio.run(main(int(sys.argv[1])))
