"""A gRPC service that knows who calls."""

import asyncio
import sys

import grpc
import grpc.aio

from x0tta6bl4.sdk.frameworks.grpcio import Front
from x0tta6bl4.sdk.identity import X509Source, member_of


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        front = Front(f"127.0.0.1:{port}", source, authorize=member_of("example.org"))

        async def hello(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return f"hello {front.peer_id(context)}".encode()

        server = grpc.aio.server(interceptors=[front.interceptor])
        handlers = {"Hello": grpc.unary_unary_rpc_method_handler(hello)}
        server.add_registered_method_handlers("Greeter", handlers)
        async with front.serving(server):
            print("listening", flush=True)
            await server.wait_for_termination()


asyncio.run(main(int(sys.argv[1])))
