"""An ordinary HTTP client under constant load, for `x0 demo` and the real-process tests.

It knows nothing of the mesh: it speaks HTTP/1.1 to a local port, on persistent and on fresh
connections, and downloads one large file the while.  Each answer is checked byte by byte.  Run
as a process of its own, it prints one JSON line per request:

    {"at": send instant s, "took": s, "kind": "kept"|"fresh", "ok": bool, "why": str}

and, at the end of the download, {"bulk": bytes, "sha256": hex, "ok": bool, "why": str}.  Instants
are CLOCK_MONOTONIC, so the parent can lay its faults beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

ANSWER_S: Final = 30.0
READ_BYTES: Final = 256 * 1024


class LoadError(Exception):
    """An answer was not what the server should have said."""


class Client:
    """One HTTP/1.1 connection to `host:port`.

    Args:
        address: where to connect: the mesh's local port, or the server itself.
        host: value of the Host header.
    """

    def __init__(self, address: tuple[str, int], host: str) -> None:
        self._address = address
        self._host = host
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str, expect: bytes) -> None:
        """Ask for `path` and compare the whole answer.

        Raises:
            LoadError: another status, length or body.
            OSError: the connection broke.
        """
        reader, size = await self._ask(path)
        body = await reader.readexactly(size)
        if body != expect:
            raise LoadError("wrong bytes")

    async def download(self, path: str, pace_bytes_s: int, stop: asyncio.Event) -> tuple[int, str]:
        """Read a large answer at a steady pace.

        Args:
            path: what to ask for.
            pace_bytes_s: at most this fast; 0: as fast as it comes.
            stop: when set, the rest is read without pacing.
        Returns:
            (bytes, sha256 in hex) of the body.
        """
        reader, size = await self._ask(path)
        digest = hashlib.sha256()
        left = size
        began = time.monotonic()
        while left:
            data = await reader.read(min(READ_BYTES, left))
            if not data:
                raise LoadError(f"closed {left} bytes early")
            digest.update(data)
            left -= len(data)
            ahead = began + (size - left) / pace_bytes_s - time.monotonic() if pace_bytes_s else 0
            if ahead > 0.01 and not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), ahead)
        return size, digest.hexdigest()

    async def _ask(self, path: str) -> tuple[asyncio.StreamReader, int]:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(
                *self._address, limit=1 << 20
            )
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        if " 200 " not in head[0]:
            raise LoadError(head[0])
        for line in head[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                return self._reader, int(value)
        raise LoadError("no content-length")

    async def close(self) -> None:
        """Close the connection; errors while closing do not count."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


class Load:
    """Steady load until told to stop: open loop, one request outstanding per connection."""

    def __init__(
        self,
        address: tuple[str, int],
        host: str,
        path: str,
        expect: bytes,
        tell: Callable[[dict[str, object]], None],
    ) -> None:
        self._address = address
        self._host = host
        self._path = path
        self._expect = expect
        self._tell = tell
        self.stop = asyncio.Event()

    async def kept(self, rate_per_s: float) -> None:
        """One persistent connection; after a failure it connects anew (and says so)."""
        client = Client(self._address, self._host)
        due = time.monotonic()
        while not self.stop.is_set():
            if not await self._one(client, "kept", due):
                await client.close()
            due = await self._pause(due + 1 / rate_per_s)
        await client.close()

    async def fresh(self, rate_per_s: float) -> None:
        """A new connection for each request."""
        due = time.monotonic()
        while not self.stop.is_set():
            client = Client(self._address, self._host)
            await self._one(client, "fresh", due)
            await client.close()
            due = await self._pause(due + 1 / rate_per_s)

    async def bulk(self, path: str, pace_bytes_s: int) -> None:
        """One download that lasts as long as the story."""
        client = Client(self._address, self._host)
        try:
            size, digest = await client.download(path, pace_bytes_s, self.stop)
            self._tell({"bulk": size, "sha256": digest, "ok": True, "why": ""})
        except (OSError, LoadError, asyncio.IncompleteReadError) as error:
            self._tell({"bulk": 0, "sha256": "", "ok": False, "why": _why(error)})
        await client.close()

    async def _one(self, client: Client, kind: str, due: float) -> bool:
        began = time.monotonic()
        why = ""
        try:
            await asyncio.wait_for(client.get(self._path, self._expect), ANSWER_S)
        except (OSError, LoadError, asyncio.IncompleteReadError, TimeoutError) as error:
            why = _why(error)
        took = time.monotonic() - began
        self._tell({"at": began, "took": took, "kind": kind, "ok": not why, "why": why})
        return not why

    async def _pause(self, due: float) -> float:
        now = time.monotonic()
        if due <= now:
            return now
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), due - now)
        return due


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


async def run(options: argparse.Namespace) -> None:
    """Load `options.address` until SIGTERM, printing one JSON line per request."""

    def tell(line: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")

    host, _, port = options.address.rpartition(":")
    with open(options.expect, "rb") as file:
        expect = file.read()
    load = Load((host, int(port)), options.host, options.path, expect, tell)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop.set)
    async with asyncio.TaskGroup() as group:
        for _ in range(options.kept):
            group.create_task(load.kept(options.rate / options.kept))
        if options.fresh:
            group.create_task(load.fresh(options.fresh))
        if options.bulk:
            group.create_task(load.bulk(options.bulk, options.pace))
        group.create_task(_flush(load.stop))


async def _flush(stop: asyncio.Event) -> None:
    while not stop.is_set():
        sys.stdout.flush()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.1)
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Command line of the load process."""
    parser = argparse.ArgumentParser(description="steady HTTP load on one local port")
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("--host", default="web.mesh")
    parser.add_argument("--path", default="/page")
    parser.add_argument("--expect", required=True, help="file with the right answer")
    parser.add_argument("--kept", type=int, default=8, help="persistent connections")
    parser.add_argument("--rate", type=float, default=120, help="requests/s on all of them")
    parser.add_argument("--fresh", type=float, default=20, help="fresh connections/s")
    parser.add_argument("--bulk", default="", help="path to download the while")
    parser.add_argument("--pace", type=int, default=0, help="bytes/s of the download")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
