#!/usr/bin/env python3
"""A stream of small numbered requests over one TCP connection or by UDP, and their server.

    bench/stream.py serve ADDRESS PORT              echoes, TCP and UDP, until SIGTERM
    bench/stream.py send tcp|udp ADDRESS PORT FILE  a request every --interval-ms until SIGTERM
    bench/stream.py probe ADDRESS PORT              one request by TCP; 0 if it is answered in 3 s

Requests are sent whether or not the last was answered.  At its end the sender writes FILE: pairs of
doubles, sent and answered (CLOCK_MONOTONIC; 0: never), in order of sending; and `why.txt` beside it
if its connection broke.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path

SIZE = 64
REQUESTS_MAX = 2_000_000


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        assert isinstance(self._transport, asyncio.DatagramTransport) or hasattr(
            self._transport, "sendto"
        )
        self._transport.sendto(data, address)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
    except OSError:
        pass
    writer.close()


async def serve(address: str, port: int) -> None:
    """Echo until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_datagram_endpoint(_Echo, local_addr=(address, port))
    async with await asyncio.start_server(_echo, address, port):
        await stop.wait()


class Sender:
    """Sends numbered requests and notes when each was answered."""

    def __init__(self, kind: str, address: str, port: int, interval_s: float) -> None:
        self.times = array.array("d")
        self.why = ""
        self._udp = kind == "udp"
        self._interval_s = interval_s
        if self._udp:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect((address, port))
        else:
            self._socket = socket.create_connection((address, port), 30)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._in = self._out = b""
        self._stopped = False

    def run(self) -> None:
        """Until SIGTERM or a broken connection."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopped", True))
        selector = selectors.DefaultSelector()
        selector.register(self._socket, selectors.EVENT_READ)
        due = time.monotonic()
        while not self._stopped and not self.why and len(self.times) < 2 * REQUESTS_MAX:
            if selector.select(max(0.0, due - time.monotonic())):
                self._read()
            now = time.monotonic()
            while now >= due:
                self._send(now)
                due += self._interval_s

    def _send(self, now: float) -> None:
        number = len(self.times) // 2
        self.times.extend((now, 0.0))
        self._out += struct.pack("<Q", number).ljust(SIZE)
        try:
            sent = self._socket.send(self._out)
            self._out = b"" if self._udp else self._out[sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._broke(error)

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(error)
            return
        now = time.monotonic()
        if not data and not self._udp:
            self.why = "closed"
        self._in += data
        while len(self._in) >= SIZE:
            (number,) = struct.unpack_from("<Q", self._in)
            self._in = self._in[SIZE:]
            if 2 * number + 1 < len(self.times):
                self.times[2 * number + 1] = now

    def _broke(self, error: OSError) -> None:
        if self._udp:
            self._out = b""  # No route, or nobody there: as good as lost.
        else:
            self.why = f"{type(error).__name__}: {error}"


def probe(address: str, port: int) -> bool:
    """Whether one request is answered."""
    try:
        with socket.create_connection((address, port), 3) as connection:
            connection.sendall(bytes(SIZE))
            return connection.recv(SIZE) != b""
    except OSError:
        return False


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="numbered requests and their echo")
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve")
    serving.add_argument("address")
    serving.add_argument("port", type=int)
    sending = verbs.add_parser("send")
    sending.add_argument("kind", choices=("tcp", "udp"))
    sending.add_argument("address")
    sending.add_argument("port", type=int)
    sending.add_argument("file", type=Path)
    sending.add_argument("--interval-ms", type=float, default=2.0)
    probing = verbs.add_parser("probe")
    probing.add_argument("address")
    probing.add_argument("port", type=int)
    options = parser.parse_args()
    if options.verb == "probe":
        sys.exit(0 if probe(options.address, options.port) else 1)
    if options.verb == "serve":
        asyncio.run(serve(options.address, options.port))
        return
    sender = Sender(options.kind, options.address, options.port, options.interval_ms / 1e3)
    sender.run()
    with open(options.file, "wb") as file:
        sender.times.tofile(file)
    if sender.why:
        options.file.with_name("why.txt").write_text(sender.why)
        sys.exit(1)


if __name__ == "__main__":
    main()
