"""Looks that take long: nobody waits for them, nobody takes all the places."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from x0tta6bl4.core.machine import Denied
from x0tta6bl4.edge.attest.errands import (
    KEEP_S,
    LATE,
    LIMIT_S,
    OF_ONE_MAX,
    PENDING,
    RUNNING_MAX,
    Answer,
    Errands,
)

YES = frozenset({"python:script:/a"})


class World:
    """A clock, and looks that end when they are told to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.let_go = threading.Event()
        self.looks = 0

    def slow(self) -> Answer:
        self.looks += 1
        assert self.let_go.wait(10)
        return YES

    def clock(self) -> float:
        return self.now_s


@contextmanager
def world(wait_s: float = 0.0) -> Iterator[tuple[World, Errands]]:
    made = World()
    errands = Errands(wait_s, made.clock)
    try:
        yield made, errands
    finally:
        made.let_go.set()
        until(lambda: not errands.running())


def until(what: Callable[[], bool]) -> None:
    """Bounded by what the looks wait for."""
    bell = threading.Event()
    for _ in range(10_000):
        if what():
            return
        bell.wait(0.001)
    raise AssertionError("it did not come about")


def test_a_quick_look_is_answered_at_once_and_made_anew_each_time() -> None:
    with world(wait_s=10) as (made, errands):
        made.let_go.set()
        assert errands.ask("a", 1, made.slow) == YES
        assert errands.ask("a", 1, made.slow) == YES
        assert made.looks == 2


def test_a_slow_look_is_made_once_and_fetched_later() -> None:
    with world() as (made, errands):
        assert errands.ask("a", 1, made.slow) is PENDING
        assert errands.ask("a", 1, made.slow) is PENDING
        made.let_go.set()
        until(lambda: not errands.running())
        assert errands.ask("a", 1, made.slow) == YES
        assert made.looks == 1


def test_an_answer_that_nobody_fetched_in_time_is_forgotten() -> None:
    with world() as (made, errands):
        assert errands.ask("a", 1, made.slow) is PENDING
        made.let_go.set()
        until(lambda: not errands.running())
        made.now_s += KEEP_S + 0.1
        errands.ask("a", 1, made.slow)
        assert made.looks == 2


def test_a_look_that_hangs_is_late_and_holds_its_place() -> None:
    with world() as (made, errands):
        assert errands.ask("a", 1, made.slow) is PENDING
        made.now_s += LIMIT_S + 0.1
        assert errands.ask("a", 1, made.slow) == LATE
        assert made.looks == 1


def test_one_user_can_t_take_the_places_of_others() -> None:
    with world() as (made, errands):
        for number in range(2 * OF_ONE_MAX):
            assert errands.ask(("one", number), 1, made.slow) is PENDING
        assert errands.running() == OF_ONE_MAX
        for number in range(RUNNING_MAX * 2):
            assert errands.ask(("many", number), 100 + number, made.slow) is PENDING
        assert errands.running() == RUNNING_MAX


def test_what_can_t_be_read_is_denied() -> None:
    def broken() -> Answer:
        raise PermissionError(13, "Permission denied")

    errands = Errands(10)
    assert errands.ask("a", 1, broken) == Denied("program not readable: permission denied")
