#!/usr/bin/env python3
"""A stream of small numbered requests over one TCP connection or by UDP, and their server.

    bench/stream.py serve ADDRESS PORT              echoes, TCP and UDP, until SIGTERM
    bench/stream.py send tcp|udp ADDRESS PORT FILE  a request every --interval-ms until SIGTERM
    bench/stream.py take ADDRESS PORT FILE          reads as much as there is until SIGTERM
    bench/stream.py probe ADDRESS PORT              one request by TCP; 0 if it is answered in 3 s

Requests are sent whether or not the last was answered, but with `--one`: then each waits for the
answer before.  At its end the sender writes FILE: pairs of doubles, sent and answered
(CLOCK_MONOTONIC; 0: never), in order of sending; the taker pairs of when it read and how many
bytes; and both write FILE with `.why` behind if their connection broke.  `--say` is a line that
the server hears first.
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
    """Sends numbered requests and notes when each was answered.

    Args:
        kind: `tcp` or `udp`.
        address: of the server.
        port: of the server.
        interval_s: between requests.
        say: what comes first.
        one: no request before the last is answered.
        source: address of this end; the kernel's choice if empty.
    """

    def __init__(
        self,
        kind: str,
        address: str,
        port: int,
        interval_s: float,
        say: bytes,
        one: bool,
        source: str = "",
    ) -> None:
        self.times = array.array("d")
        self.why = ""
        self._udp = kind == "udp"
        self._interval_s, self._one, self._answered = interval_s, one, 0
        if self._udp:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect((address, port))
        else:
            own = (source, 0) if source else None
            self._socket = socket.create_connection((address, port), 30, own)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(say)
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
            waits = self._one and len(self.times) > 2 * self._answered
            if selector.select(0.1 if waits else max(0.0, due - time.monotonic())):
                self._read()
            now = time.monotonic()
            if self._one:
                if now >= due and len(self.times) == 2 * self._answered:
                    self._send(now)
                    due = max(due + self._interval_s, now)
                continue
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
                self._answered += 1

    def _broke(self, error: OSError) -> None:
        if self._udp:
            self._out = b""  # No route, or nobody there: as good as lost.
        else:
            self.why = f"{type(error).__name__}: {error}"


def take(address: str, port: int, say: bytes) -> tuple[array.array[float], str]:
    """Read what a server sends, as fast as it comes, until SIGTERM.

    Returns:
        Pairs of when and how many bytes, and why the connection broke if it did.
    """
    times, buffer, stopped = array.array("d"), bytearray(1 << 18), []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    try:
        with socket.create_connection((address, port), 30) as connection:
            connection.sendall(say)
            connection.settimeout(0.2)
            while not stopped and len(times) < 2 * REQUESTS_MAX:
                try:
                    size = connection.recv_into(buffer)
                except TimeoutError:
                    continue
                if not size:
                    return times, "closed"
                times.extend((time.monotonic(), size))
    except OSError as error:
        return times, f"{type(error).__name__}: {error}"
    return times, ""


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
    for verb in ("serve", "send", "take", "probe"):
        one = verbs.add_parser(verb)
        if verb == "send":
            one.add_argument("kind", choices=("tcp", "udp"))
        one.add_argument("address")
        one.add_argument("port", type=int)
        if verb in ("send", "take"):
            one.add_argument("file", type=Path)
            one.add_argument("--say", default="")
        if verb == "send":
            one.add_argument("--interval-ms", type=float, default=2.0)
            one.add_argument("--one", action="store_true")
    options = parser.parse_args()
    if options.verb == "probe":
        sys.exit(0 if probe(options.address, options.port) else 1)
    if options.verb == "serve":
        asyncio.run(serve(options.address, options.port))
        return
    say = f"{options.say}\n".encode() if options.say else b""
    if options.verb == "take":
        times, why = take(options.address, options.port, say)
    else:
        sender = Sender(
            options.kind, options.address, options.port, options.interval_ms / 1e3, say, options.one
        )
        sender.run()
        times, why = sender.times, sender.why
    with open(options.file, "wb") as file:
        times.tofile(file)
    if why:
        options.file.with_name(f"{options.file.name}.why").write_text(why)
        sys.exit(1)


if __name__ == "__main__":
    main()
