#!/usr/bin/env python3
"""An ordinary TCP server for tests and measurements; it knows nothing of the mesh.

It listens on `--count` loopback ports, prints them as one JSON line and serves until SIGTERM.  The
first line of a connection says what it does:

    GET ...         HTTP/1.1 with keep-alive; the answer is the file `--page`
    both N PACE     sends N pattern bytes at PACE bytes/s while it reads; after the end of both
                    directions the SHA-256 (hex) of what it read, then it closes
    down N          sends N bytes and closes
    tick MS         an 8-byte counter every MS ms, until somebody closes
    echo            everything back, until the end
    reset           sends one byte, waits for one, then resets the connection
    hold            sends one byte, then waits; `count` tells how it ended
    count           {"eof": n, "reset": n, "open": n} as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import json
import random
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 1 << 20
READ_BYTES = 1 << 18
DOWN_BYTES = 1 << 16


@functools.cache
def _random_block(seed: int) -> bytes:
    return random.Random(f"pattern/{seed}").randbytes(BLOCK_BYTES)


def pattern(total: int, seed: int = 1) -> Iterator[memoryview]:
    """`total` bytes in blocks, no two of them equal, the same for the same seed."""
    block = bytearray(_random_block(seed))
    number = 0
    while total:
        struct.pack_into("<Q", block, 0, number)
        size = min(total, BLOCK_BYTES)
        yield memoryview(block)[:size]
        total -= size
        number += 1


class Server:
    """What all connections share."""

    def __init__(self, page: bytes) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page
        self._seen = {"eof": 0, "reset": 0, "open": 0}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._seen["open"] += 1
        try:
            await self._one(reader, writer)
        except ConnectionResetError:
            self._seen["reset"] += 1
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._seen["open"] -= 1
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, *rest = (await reader.readuntil(b"\n")).decode("latin-1").split()
        if verb == "GET":
            await self._http(reader, writer)
        elif verb == "both":
            await self._both(reader, writer, int(rest[0]), int(rest[1]))
        elif verb == "down":
            await self._down(writer, int(rest[0]))
        elif verb == "tick":
            await self._tick(writer, int(rest[0]) / 1000)
        elif verb == "echo":
            while data := await reader.read(READ_BYTES):
                writer.write(data)
                await writer.drain()
        elif verb == "reset":
            writer.write(b"x")
            await reader.readexactly(1)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        elif verb == "hold":
            writer.write(b"x")
            await reader.read()
            self._seen["eof"] += 1
        elif verb == "count":
            writer.write(json.dumps(self._seen | {"open": self._seen["open"] - 1}).encode())

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer)
            try:
                await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return

    async def _down(self, writer: asyncio.StreamWriter, total: int) -> None:
        block = memoryview(_random_block(1))[:DOWN_BYTES]
        while total:
            writer.write(block[:total])
            await writer.drain()
            total -= min(total, DOWN_BYTES)

    async def _both(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, total: int, pace: int
    ) -> None:
        async def read() -> str:
            digest = hashlib.sha256()
            while data := await reader.read(READ_BYTES):
                digest.update(data)
            return digest.hexdigest()

        reading = asyncio.create_task(read())
        began, sent = time.monotonic(), 0
        for block in pattern(total):
            writer.write(bytes(block))
            await writer.drain()
            sent += len(block)
            await asyncio.sleep(max(0.0, began + sent / pace - time.monotonic()))
        writer.write((await reading).encode())

    async def _tick(self, writer: asyncio.StreamWriter, interval_s: float) -> None:
        number, due = 0, time.monotonic()
        while not writer.is_closing():
            writer.write(struct.pack("<Q", number))
            await writer.drain()
            number += 1
            due += interval_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def run(address: str, ports: list[int], page: bytes) -> None:
    """Serve until SIGTERM."""
    server = Server(page)
    listening = [
        await asyncio.start_server(server.serve, address, port, backlog=1024) for port in ports
    ]
    bound = [each.sockets[0].getsockname()[1] for each in listening]
    sys.stdout.write(json.dumps({"ports": bound}) + "\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="a TCP server for measurements")
    parser.add_argument("--page", type=Path, required=True, help="the answer to GET")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="first port; 0: free ones")
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ports = [options.port + i if options.port else 0 for i in range(options.count)]
    asyncio.run(run(options.address, ports, options.page.read_bytes()))


if __name__ == "__main__":
    main()
