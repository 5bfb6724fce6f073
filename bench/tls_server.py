#!/usr/bin/env python3
"""A server for `bench/identity_handshake.py`, as a process with an identity of its own.

    bench/tls_server.py --endpoint unix:///... --id ID --peer ID

Three ports: plain TCP; mutual TLS by the SDK; mutual TLS by the SDK on the standard library.  Each
says one byte to who connects, and then, for each line with a number that it reads, so many bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time

from x0tta6bl4.sdk.identity import X509Source, exact, ssl_context, stdlib_context
from x0tta6bl4.wire.errors import X0Error

CHUNK = b"\0" * (1 << 18)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection."""
    with contextlib.suppress(OSError, X0Error):
        writer.write(b"!")
        while line := await reader.readline():
            left = int(line)
            while left > 0:
                writer.write(CHUNK[:left])
                left -= len(CHUNK)
                await writer.drain()
    writer.close()


async def run(options: argparse.Namespace) -> None:
    """Serve until standard input ends; each line of it is answered with the CPU so far."""
    async with X509Source(options.endpoint) as source:
        await source.wait()
        peer = exact(options.peer)
        contexts = {
            "plain": None,
            "ours": ssl_context(source, authorize=peer, id=options.id),
            "stdlib": stdlib_context(source, authorize=peer, id=options.id),
        }
        ports = {}
        for name, context in contexts.items():
            server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, backlog=256)
            ports[name] = server.sockets[0].getsockname()[1]
        print(json.dumps(ports), flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(time.process_time(), flush=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--peer", required=True)
    asyncio.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
