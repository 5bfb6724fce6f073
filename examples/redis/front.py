"""Identities before a Redis that listens on a Unix socket only."""

import asyncio
import sys
from pathlib import Path

from x0tta6bl4.sdk.frameworks.redis import front
from x0tta6bl4.sdk.identity import X509Source, member_of


async def main(port: str, server: str, password: str) -> None:
    async with X509Source() as source:
        await source.wait()
        who = member_of("example.org")
        async with front(
            f"127.0.0.1:{port}", source, authorize=who, server=server, password=password
        ):
            print("listening", flush=True)
            await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text()))
