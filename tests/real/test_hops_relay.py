"""A relay alone, between sockets whose buffers the test chooses."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator

import pytest

from x0tta6bl4.core.machine import Instant
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.poll import Loop
from x0tta6bl4.runtime.loop.relay import PIPE_BYTES, Pipes, Relay


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def tcp_pair(buffer: int = 0) -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.socket()
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        one.connect(listener.getsockname())
        two, _ = listener.accept()
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for sock in (one, two):
        sock.setblocking(False)
    return one, two


class Bench:
    """client - (left, right) relay - server."""

    def __init__(self, loop: Loop, buffer: int = 0, bytes_max: int = 0, near: int = 0) -> None:
        self.loop, self.pipes = loop, Pipes()
        self.client, left = tcp_pair(near)
        right, self.server = tcp_pair(buffer)
        self.ended: list[str] = []
        self.relay = Relay(
            loop, self.pipes, left, right, lambda _, reason: self.ended.append(reason), bytes_max
        )

    def turns(self, seconds: float) -> int:
        """How often the loop wakes in a while."""
        deadline, count = clock() + int(seconds * 1e6), 0
        while clock() < deadline:
            self.loop.once(Instant(deadline))
            count += 1
        return count

    def drain(self, length: int) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + 10
        while len(data) < length:
            assert time.monotonic() < deadline
            self.loop.once(Instant(clock() + 1000))
            try:
                data += self.server.recv(1 << 20)
            except BlockingIOError:
                pass
        return bytes(data)

    def close(self) -> None:
        if not self.relay.ended:
            self.relay.reset("test over")
        self.client.close()
        self.server.close()
        self.pipes.close()


def test_a_pipe_out_of_slots_does_not_spin(loop: Loop) -> None:
    """256 segments of one byte fill a pipe of 1 MiB; epoll goes on saying that there are more."""
    bench = Bench(loop, buffer=4096)
    sent, got = 0, b""
    while bench.relay._forth.pipe is None:  # Many bytes come, and the server reads slowly.
        if not bench.relay._forth.rest:
            sent += bench.client.send(bytes(i % 251 for i in range(sent, sent + 100_000)))
        bench.turns(0.002)
        if bench.relay._forth.rest:
            got += bench.drain(1)
    for _ in range(20_000):
        sent += bench.client.send(bytes((sent % 251,)))
        loop.once(Instant(0))
    pipe = bench.relay._forth.pipe
    assert pipe is not None
    assert bench.relay._forth.stuck
    assert pipe.held < PIPE_BYTES // 2
    assert bench.turns(0.2) < 10
    assert got + bench.drain(sent - len(got)) == bytes(i % 251 for i in range(sent))
    bench.close()


def test_what_was_copied_and_is_not_taken_stops_the_reading(loop: Loop) -> None:
    """Few bytes at a time, to a server that does not read: none is lost, none is out of turn."""
    bench = Bench(loop, buffer=4096)
    data, at = random.Random("copied").randbytes(400_000), 0
    while at < len(data) and not bench.relay._forth.rest:
        at += bench.client.send(data[at : at + 700])
        loop.once(Instant(0))
    assert bench.relay._forth.rest
    assert bench.relay._forth.pipe is None
    for _ in range(20):
        at += bench.client.send(data[at : at + 700])
    assert bench.turns(0.1) < 5, "it waits for the server"
    assert bench.drain(at) == data[:at]
    bench.client.send(b"on")
    assert bench.drain(2) == b"on"
    bench.close()


def test_a_full_pipe_stops_reading_and_goes_on_when_drained(loop: Loop) -> None:
    bench = Bench(loop, buffer=65536, near=65536)
    data, at = random.Random("full").randbytes(12 << 20), 0
    while True:
        try:
            at += bench.client.send(memoryview(data)[at : at + (1 << 20)])
        except BlockingIOError:
            if bench.turns(0.05) < 3:
                break
    assert bench.turns(0.2) < 10
    assert at < len(data)
    assert bench.drain(at) == data[:at]
    bench.close()


def test_the_end_waits_for_the_bytes_before_it(loop: Loop) -> None:
    bench = Bench(loop, buffer=16384)
    data = random.Random("end").randbytes(300_000)
    at = 0
    while at < len(data):
        at += bench.client.send(memoryview(data)[at:])
        loop.once(Instant(0))
    bench.client.shutdown(socket.SHUT_WR)
    assert bench.turns(0.1) < 50
    assert bench.drain(len(data)) == data
    bench.turns(0.05)
    assert bench.server.recv(10) == b""
    bench.server.send(b"answer after the end")
    bench.turns(0.02)
    assert bench.client.recv(100) == b"answer after the end"
    bench.server.close()
    bench.turns(0.05)
    assert bench.ended == [""]
    bench.close()


def test_both_ends_done_while_bytes_wait_does_not_spin(loop: Loop) -> None:
    """HUP on a socket from which nothing is wanted is repeated by epoll for ever."""
    bench = Bench(loop, buffer=4096)
    bench.server.shutdown(socket.SHUT_WR)
    bench.turns(0.02)
    at = 0
    while True:
        try:
            at += bench.client.send(bytes(1 << 16))
        except BlockingIOError:
            if bench.turns(0.05) < 3:
                break
    bench.client.shutdown(socket.SHUT_WR)
    assert bench.turns(0.2) < 10
    assert len(bench.drain(at)) == at
    bench.turns(0.05)
    assert bench.server.recv(1) == b""
    assert bench.ended == [""]
    bench.close()


def test_quiet_relays_hold_no_pipes(loop: Loop) -> None:
    before = len(os.listdir("/proc/self/fd"))
    benches = [Bench(loop) for _ in range(20)]
    for bench in benches:
        bench.client.send(b"x")
        assert bench.drain(1) == b"x"
    assert len(os.listdir("/proc/self/fd")) - before == 20 * 4, "few bytes need no pipe"
    for bench in benches:
        many, at = bytes(1 << 20), 0
        while at < len(many):
            at += bench.client.send(many[at:])
            assert bench.drain(1)
        bench.turns(0.01)
        assert bench.relay._forth.pipe is None, "given back"
        used = len(bench.pipes._free)
        assert used == 1, "many bytes took one"
    assert len(os.listdir("/proc/self/fd")) - before == 20 * (4 + 2), "a pool of one pipe each here"
    for bench in benches:
        bench.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_bytes_than_allowed_reset_both(loop: Loop) -> None:
    bench = Bench(loop, bytes_max=1000)
    bench.client.send(bytes(1001))
    bench.turns(0.02)
    assert bench.ended == ["more bytes than allowed"]
    bench.server.recv(2000)
    with pytest.raises(ConnectionResetError):
        bench.server.recv(1)
    bench.close()


def test_pipes_with_bytes_in_them_are_not_used_again() -> None:
    pipes = Pipes()
    pipe = pipes.take()
    os.write(pipe.writer, b"secret")
    pipe.held = 6
    pipes.give(pipe)
    again = pipes.take()
    with pytest.raises(BlockingIOError):
        os.read(again.reader, 10)
    pipes.give(again)
    pipes.close()
