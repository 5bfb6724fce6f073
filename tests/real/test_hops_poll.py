"""The proxy's loop: timers, batches, and descriptors that come and go within one batch."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from x0tta6bl4.core.machine import NEVER, Instant
from x0tta6bl4.runtime.clocks import clock
from x0tta6bl4.runtime.loop.accept import Acceptor
from x0tta6bl4.runtime.loop.poll import READ, WRITE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_fire_in_order_and_cancelled_ones_never(loop: Loop) -> None:
    fired: list[str] = []
    now = clock()
    loop.at(Instant(now + 2000), lambda: fired.append("second"))
    loop.at(Instant(now + 1000), lambda: fired.append("first"))
    loop.at(Instant(now + 1500), lambda: fired.append("never")).cancel()
    loop.after(3000, loop.stop)
    loop.run()
    assert fired == ["first", "second"]
    assert clock() - now >= 3000


def test_a_cancelled_timer_does_not_wake_anybody(loop: Loop) -> None:
    loop.after(1000, loop.stop).cancel()
    began = clock()
    loop.once(Instant(began + 20_000))
    assert clock() - began >= 19_000


def test_what_is_asked_for_after_the_batch_runs_once_even_without_events(loop: Loop) -> None:
    ran: list[int] = []

    def first() -> None:
        ran.append(1)
        loop.after_batch(lambda: ran.append(2))

    loop.after_batch(first)
    loop.once(NEVER)
    assert ran == [1, 2]


def test_a_handler_dropped_within_the_batch_is_not_called(loop: Loop) -> None:
    one, two = socket.socketpair()
    called: list[int] = []

    def drop_both(fd: int) -> None:
        called.append(fd)
        loop.drop(one.fileno())
        loop.drop(two.fileno())

    loop.add(one.fileno(), WRITE, lambda mask: drop_both(1))
    loop.add(two.fileno(), WRITE, lambda mask: drop_both(2))
    loop.once(Instant(clock() + 1000))
    assert len(called) == 1
    one.close()
    two.close()


def test_a_new_descriptor_with_an_old_number_gets_no_old_event(loop: Loop) -> None:
    """The event of a closed socket must not look like the new one's connect or reset."""
    first, peer = socket.socketpair()
    second, peer2 = socket.socketpair()
    stale: list[int] = []
    fresh: list[int] = []
    made: list[socket.socket] = []

    def replace(mask: int) -> None:
        """Whoever is called first closes both and opens others, which get the same numbers."""
        numbers = sorted((first.fileno(), second.fileno()))
        for sock in (first, second):
            loop.drop(sock.fileno())
            sock.close()
        made.extend(socket.socketpair())
        assert sorted(sock.fileno() for sock in made) == numbers
        for sock in made:
            loop.add(sock.fileno(), READ, stale.append)

    loop.add(first.fileno(), WRITE, replace)
    loop.add(second.fileno(), WRITE, replace)
    loop.once(Instant(clock() + 1000))
    assert made
    assert stale == []
    os.write(made[0].fileno(), b"x")
    loop.drop(made[1].fileno())
    loop.add(made[1].fileno(), READ, fresh.append)
    loop.once(Instant(clock() + 10_000))
    assert fresh == [READ]
    for sock in (peer, peer2, *made):
        sock.close()


def test_without_descriptors_the_loop_waits_and_then_goes_on(loop: Loop) -> None:
    accepted: list[socket.socket] = []
    exhausted: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    clients = [socket.socket() for _ in range(3)]
    acceptor = Acceptor(loop, listener, accepted.append, exhausted.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0)]  # Up to the first number behind all that are in use, so no hole is left.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while fillers[-1] < highest:
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
    try:
        for client in clients:
            client.connect(listener.getsockname())
        turns, until = 0, clock() + 250_000
        while clock() < until:
            loop.once(Instant(until))
            turns += 1
        assert not accepted
        assert 2 <= len(exhausted) <= 4
        assert turns < 12
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    until = clock() + 2_000_000
    while len(accepted) < 3 and clock() < until:
        loop.once(Instant(until))
    assert len(accepted) == 3
    acceptor.close()
    for sock in (*clients, *accepted):
        sock.close()


def test_an_alarm_rings_where_it_was_moved_to(loop: Loop) -> None:
    rang: list[int] = []
    alarm = loop.alarm(lambda: rang.append(clock()))
    began = clock()
    alarm.at = Instant(began + 5_000)
    alarm.at = Instant(began + 60_000_000)
    loop.once(Instant(began + 20_000))  # Not woken at 5 ms, where nobody wants it any more.
    assert clock() - began >= 19_000
    assert not rang
    assert not loop.rings()
    due = alarm.at = Instant(clock() + 5_000)
    loop.once(NEVER)
    assert len(rang) == 1
    assert rang[0] >= due
    alarm.at = NEVER
    loop.once(Instant(clock() + 1_000))
    assert len(rang) == 1
