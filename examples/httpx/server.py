"""HTTP/1.0 by hand: httpx is a client, any server with an identity will do."""

import asyncio
import sys

from x0tta6bl4.sdk.identity import Connection, X509Source, listen, member_of


async def hello(connection: Connection) -> None:
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.writer.write(f"HTTP/1.0 200 OK\r\n\r\nhello {connection.peer_id}".encode())


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        who = member_of("example.org")
        async with await listen(f"127.0.0.1:{port}", source, hello, authorize=who):
            print("listening", flush=True)
            await asyncio.Event().wait()


asyncio.run(main(int(sys.argv[1])))
