"""Requests over TCP while something else is measured: a child process that keeps their times.

What sends is `bench.stream`, as for any program; a connection that breaks is followed by another.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any, Final

from bench.stream import Sender

RATE: Final = 250
"""Requests a second."""
END_S: Final = 10.0

_FORK: Final = multiprocessing.get_context("fork")


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that made it is gone (prctl 1)."""
    ctypes.CDLL(None).prctl(1, number)


class _Counted(Sender):
    def __init__(self, address: str, port: int, source: str, count: Any) -> None:
        super().__init__("tcp", address, port, 1 / RATE, b"", one=False, source=source)
        self._count, self._before = count, count.value

    def _read(self) -> None:
        super()._read()
        self._count.value = self._before + self._answered


class Heard:
    """What a stream of requests was like.

    Args:
        times: pairs of sent and answered, seconds of CLOCK_MONOTONIC; 0: never.
        broken: when connections broke.
    """

    def __init__(self, times: array.array[float], broken: list[float]) -> None:
        self.times, self.broken = times, broken

    def within(self, begin: float, end: float) -> dict[str, Any]:
        """Requests sent between two moments: how many, the longest answer in ms, failures."""
        pairs = zip(self.times[::2], self.times[1::2], strict=True)
        sent = [(at, answered) for at, answered in pairs if begin <= at <= end]
        return {
            "requests": len(sent),
            "longest_ms": round(max((b - a for a, b in sent if b), default=0.0) * 1e3, 1),
            "failed": sum(not answered for _, answered in sent),
            "broken": sum(begin <= at <= end for at in self.broken),
        }


class Requests:
    """A stream of requests, in the namespace in which `start` is called.

    Args:
        address: of the server, or of the listener that leads to it.
        port: of it.
        source: address of this end; the kernel's choice if empty.

    Attributes:
        count: answered so far; shared with the child.
    """

    rate = RATE

    def __init__(self, address: str, port: int, source: str = "") -> None:
        self.count: Any = _FORK.Value("q", 0)
        self._stop: Any = _FORK.Value("b", 0)
        self._here, there = _FORK.Pipe()
        self._child = _FORK.Process(
            target=self._run, args=(address, port, source, there), daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._child.start()

    def _run(self, address: str, port: int, source: str, pipe: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: None)
        die_with_parent(signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.nice(-15)
        times: array.array[float] = array.array("d")
        broken = []
        while not self._stop.value:
            try:
                sender = _Counted(address, port, source, self.count)
            except OSError:
                time.sleep(0.05)
                continue
            sender.run()
            times += sender.times
            if sender.why:
                broken.append(time.monotonic())
        pipe.send((times.tobytes(), broken))
        pipe.close()

    def finish(self) -> Heard:
        """End it; nothing heard if it does not end in time."""
        self._stop.value = 1
        end = time.monotonic() + END_S
        while not self._here.poll(0.1) and time.monotonic() < end and self._child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGTERM)
        times: array.array[float] = array.array("d")
        broken: list[float] = []
        if self._here.poll():
            raw, broken = self._here.recv()
            times.frombytes(raw)
        else:
            self._child.kill()
        self._child.join(END_S)
        return Heard(times, broken)
