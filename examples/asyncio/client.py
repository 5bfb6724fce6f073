"""Calls the server, if it is the one it should be."""

import asyncio
import sys

from x0tta6bl4.sdk.identity import X509Source, dial, exact


async def main(port: int) -> None:
    async with X509Source() as source:
        await source.wait()
        server = exact("spiffe://example.org/web")
        async with await dial(f"127.0.0.1:{port}", source, authorize=server) as connection:
            reader, writer = connection
            print((await reader.readline()).decode(), end="")
            writer.write(b"how are you?\n")
            print((await reader.readline()).decode(), end="")
            print(connection.group)


asyncio.run(main(int(sys.argv[1])))
