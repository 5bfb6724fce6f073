"""Memory goes back to the system: whole pages between what lives on, and what refers to itself."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import weakref
from pathlib import Path

import pytest

from x0tta6bl4.runtime import memory


def resident_kb() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError


def test_free_pages_between_what_lives_on_are_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    size, count = 64 * 1024, 400  # Below the bound at which glibc maps each by itself.
    pieces = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))) for _ in range(count)]
    for piece in pieces:
        ctypes.memset(piece, 1, size)
    for piece in pieces[::2]:
        libc.free(piece)
    before = resident_kb()
    memory.trim()
    after = resident_kb()
    for piece in pieces[1::2]:
        libc.free(piece)
    assert before - after > size * count // 2 // 1024 * 0.8


class Loop:
    """Refers to itself, as closed connections of gRPC do."""

    def __init__(self) -> None:
        self.me = self


def test_an_agent_collects_what_refers_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "TIDY_S", 0.001)

    async def until_gone() -> None:
        gone = asyncio.Event()
        thing = Loop()
        gc.collect()  # Old by now: the collections of young generations pass it by.
        weakref.finalize(thing, gone.set)
        del thing
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            tidying = group.create_task(memory.tidy_for_ever())
            await gone.wait()
            tidying.cancel()

    asyncio.run(until_gone())
