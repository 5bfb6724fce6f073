"""Memory goes back to the system: whole pages between what lives on, and what refers to itself."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from pathlib import Path

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


def test_what_refers_to_itself_is_collected_however_old() -> None:
    thing = Loop()
    gc.collect()  # Old by now: the collections of young generations pass it by.
    left = weakref.ref(thing)
    del thing
    gc.collect(1)
    assert left() is not None
    memory.tidy()
    assert left() is None


def test_a_proxy_need_not_bear_asyncio_for_it() -> None:
    """It has a loop of its own, and asyncio takes more than is given back."""
    code = "import sys, x0tta6bl4.app.proxy; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
