#!/usr/bin/env python3
"""A cable between two network namespaces on which packets take their time.

    bench/slow_cable.py ONE OTHER --delay-ms 10 --jitter-ms 5 --stall-ms 0

Each end is a TUN interface `slow` (kernels without netem have nothing that delays).  A packet takes
the delay and a random part of the jitter, none overtakes another; every 250 ms all wait for the
stall.  At most QUEUE_MAX packets are under way in each direction, further ones are lost.  Prints
`ready` and works until SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import time
from collections import deque
from pathlib import Path

QUEUE_MAX = 20_000
PACKET_BYTES = 65_536
STALL_EVERY_S = 0.25
_TUNSETIFF = 0x400454CA
_TUN_NO_PI = 0x1001
_CLONE_NEWNET = 0x40000000


def open_tun(space: str) -> int:
    """A TUN interface `slow` in a namespace; this process stays in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(Path("/run/netns") / space) as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"slow", _TUN_NO_PI))
    return fd


class Lane:
    """One direction.

    Args:
        source: file to read packets from.
        sink: file to write them to.
        delay_s: of each.
        jitter_s: at most so much more.
        stall_s: how long all wait, again and again.
    """

    def __init__(
        self, source: int, sink: int, delay_s: float, jitter_s: float, stall_s: float
    ) -> None:
        self.source = source
        self._sink, self._delay_s, self._jitter_s = sink, delay_s, jitter_s
        self._stall_s = stall_s
        self._random = random.Random(f"slow/{source}")
        self._queue: deque[tuple[float, bytes]] = deque()
        self._last = 0.0

    def fill(self, now: float) -> None:
        """Take in what is there."""
        while True:
            try:
                packet = os.read(self.source, PACKET_BYTES)
            except BlockingIOError:
                return
            due = now + self._delay_s + self._random.random() * self._jitter_s
            into = due % STALL_EVERY_S
            if into < self._stall_s:
                due += self._stall_s - into
            self._last = max(self._last, due)
            if len(self._queue) < QUEUE_MAX:
                self._queue.append((self._last, packet))

    def drain(self, now: float) -> float:
        """Let go what is due; seconds until the next is."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            with contextlib.suppress(OSError):  # The other end is down: lost.
                os.write(self._sink, queue.popleft()[1])
        return queue[0][0] - now if queue else 1.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="a cable that takes its time")
    parser.add_argument("ends", nargs=2)
    parser.add_argument("--delay-ms", type=float, default=10.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--stall-ms", type=float, default=0.0)
    options = parser.parse_args()
    one, other = map(open_tun, options.ends)
    times = (options.delay_ms / 1e3, options.jitter_ms / 1e3, options.stall_ms / 1e3)
    lanes = {one: Lane(one, other, *times), other: Lane(other, one, *times)}
    poll = select.epoll()
    for fd in lanes:
        poll.register(fd, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        wait = min(lane.drain(time.monotonic()) for lane in lanes.values())
        for fd, _ in poll.poll(max(0.0, wait)):
            lanes[fd].fill(time.monotonic())


if __name__ == "__main__":
    main()
