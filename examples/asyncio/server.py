"""Greets whoever comes by the name that TLS has proven, then repeats lines."""

import asyncio
import sys

from x0tta6bl4.sdk.identity import Connection, X509Source, listen, member_of


async def greet(connection: Connection) -> None:
    connection.writer.write(f"hello {connection.peer_id}\n".encode())
    async for line in connection.reader:
        connection.writer.write(line)


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        who = member_of("example.org")
        async with await listen(f"127.0.0.1:{port}", source, greet, authorize=who):
            print("listening", flush=True)
            await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
