#!/usr/bin/env python3
"""Many open FetchX509SVID streams that cost their driver next to nothing.

    bench/streams.py --socket PATH --connections N --streams M

Prints a JSON line when every stream has its first answer, and another each time that every stream
has got one more: the monotonic times at which the first and the last came, and how long a message
is.  It speaks as much HTTP/2 as that takes (RFC 9113): frames are counted, messages not parsed.
Ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import struct
import sys
import time

import hpack

FRAME = struct.Struct(">HBBBI")
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE, GOAWAY = 0, 1, 4, 6, 8, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = 2**31 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame."""
    size = len(payload)
    return FRAME.pack(size >> 8, size & 255, kind, flags, stream) + payload


def opening(streams: int) -> bytes:
    """All that a connection says: preface, settings, and its requests."""
    encoder = hpack.Encoder()
    said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    said += frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW))
    said += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65_535))
    for number in range(streams):
        headers = encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
                (":authority", "localhost"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("workload.spiffe.io", "true"),
            ]
        )
        said += frame(HEADERS, END_HEADERS, 2 * number + 1, headers)
        said += frame(DATA, END_STREAM, 2 * number + 1, bytes(5))
    return said


class Client:
    """One connection with its streams."""

    __slots__ = ("buffer", "left", "messages", "size", "sock")

    def __init__(self, path: str, said: bytes) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.sendall(said)
        self.sock.setblocking(False)
        self.buffer = b""
        self.left: dict[int, int] = {}
        self.messages = 0
        self.size = 0

    def read(self) -> int:
        """Take what has come; how many messages ended with it."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return 0
        if not data:
            raise ConnectionError("the agent hung up")
        self.buffer += data
        at, ended = 0, 0
        while len(self.buffer) - at >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(self.buffer, at)
            size = high << 8 | low
            if len(self.buffer) - at - 9 < size:
                break
            payload = self.buffer[at + 9 : at + 9 + size]
            at += 9 + size
            ended += self._frame(kind, flags, stream, payload)
        self.buffer = self.buffer[at:]
        return ended

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> int:
        if kind == DATA and payload:
            left = self.left.get(stream, 0)
            if not left:
                left = self.size = 5 + int.from_bytes(payload[1:5], "big")
            self.left[stream] = left = left - len(payload)
            return not left
        if kind == SETTINGS and not flags & ACK:
            self.sock.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.sock.sendall(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY or (kind == HEADERS and flags & END_STREAM):
            raise ConnectionError("a stream was ended")
        return 0


def main() -> int:
    """Open them, and tell of every round."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--socket", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    wanted = options.connections * options.streams
    said = opening(options.streams)
    poll = select.epoll()
    clients = {}
    count, began, first, last = 0, time.monotonic(), 0.0, 0.0
    for number in range(options.connections):
        client = Client(options.socket, said)
        clients[client.sock.fileno()] = client
        poll.register(client.sock, select.EPOLLIN)
        if number % 64 == 63:  # No more at once than a listening socket takes.
            for fd, _ in poll.poll(0.02):
                count += clients[fd].read()
    poll.register(sys.stdin, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                return 0
            ended = clients[fd].read()
            if ended:
                last = time.monotonic()
                first = first or last
                count += ended
        if count >= wanted:
            size = next(iter(clients.values())).size
            told = {"began": began, "first": first or began, "last": last, "bytes": size}
            print(json.dumps(told), flush=True)
            count, first = count - wanted, 0.0


if __name__ == "__main__":
    sys.exit(main())
