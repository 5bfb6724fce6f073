"""Ring of plaintext chunks: what was written to a session and is not yet acknowledged.

A chunk is one batch of whole frames, so that a replay always starts at a frame.  In front of each
chunk 8 bytes are left free for a piggybacked ACK: chunk and ACK are one TLS write.  Application
bytes are received straight into the open batch; nothing is joined and nothing copied, except when
the ring grows.

    ...free | 8 | chunk | 8 | chunk | 8 | open batch: at -> limit | free...
              ^ acknowledged          ^ written

The ring starts at 64 KiB and doubles up to 8 MiB; an empty one starts again in warm memory, and
`rest` gives grown memory back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

RING_BYTES_MIN: Final = 64 * 1024
RING_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_BYTES: Final = 128 * 1024
"""A batch is closed here; larger ones cost latency and gain nothing (measured)."""
CHUNK_COST: Final = 128
"""Bytes that one chunk's book-keeping counts for in `held`: bounds the number of chunks."""
ACK_ROOM: Final = 8

Allocate = Callable[[int], memoryview]
"""A zeroed writable buffer of so many bytes; drivers give mmap: untouched pages are free."""

Chunk = tuple[int, int, int]
"""(offset in the sequence, index in the ring, length)."""


class RingFull(Exception):
    """No room although the ring has its full size; the session's bounds should have stopped it."""


class Ring:
    """Numbered bytes from `acknowledged` to `written`, and the open batch behind them.

    Attributes:
        view: the memory; valid until the next `reserve`.
        size: bytes of it.
        at: index at which the next frame of the open batch goes; 0 while no batch is open.
        limit: index of the end of the open batch's room.
        written: offset behind the last closed chunk.
        acknowledged: offset of the first byte still kept (a chunk's start).
        confirmed: largest offset that the peer has acknowledged.
        chunks: closed chunks, oldest first.
        queue: those of them that the active circuit has not taken yet.
    """

    __slots__ = (
        "_allocate", "_begin", "_head", "acknowledged", "at", "chunks", "confirmed", "limit",
        "queue", "size", "view", "written",
    )  # fmt: skip

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self.view = allocate(RING_BYTES_MIN)
        self.size = RING_BYTES_MIN
        self.chunks: deque[Chunk] = deque()
        self.queue: deque[Chunk] = deque()
        self.acknowledged = self.confirmed = self.written = 0
        self._begin = self._head = self.at = self.limit = 0

    @property
    def queued(self) -> int:
        """Bytes that wait for the circuit; from the queue, so that it falls as that empties."""
        queue = self.queue
        return self.written - queue[0][0] if queue else 0

    @property
    def held(self) -> int:
        """Unacknowledged bytes with the cost of their book-keeping; the bound is on this."""
        return self.written - self.acknowledged + CHUNK_COST * len(self.chunks)

    def reserve(self, need: int) -> None:
        """Open a batch with room for `need` bytes at `at`; no batch may be open.

        Args:
            need: bytes wanted in one piece, at most 512 KiB.
        Raises:
            RingFull: no such piece in a ring of full size.
        """
        assert not self.limit, "close the batch first"
        if self.chunks or self.size < need + 2 * ACK_ROOM:
            end = self._free(need)
        else:  # Nothing is held: start again in warm memory.
            self._head, end = 0, self.size
        while end < 0:
            if self.size >= RING_BYTES_MAX:
                raise RingFull
            self._grow()
            end = self._free(need)
        head = self._head
        self._begin = self.at = head + ACK_ROOM
        room = head + 2 * ACK_ROOM + BATCH_BYTES + need
        self.limit = end if end < room else room

    def close(self) -> Chunk | None:
        """End the open batch; returns the new chunk, None if nothing was written to it."""
        begin, end = self._begin, self.at
        chunk = None
        if end > begin:
            chunk = (self.written, begin, end - begin)
            self.chunks.append(chunk)
            self.queue.append(chunk)
            self._head = end
            self.written += end - begin
        self.at = self.limit = self._begin = 0
        return chunk

    def acknowledge(self, offset: int) -> bool:
        """Forget what lies below `offset`, as far as whole chunks go.

        Returns:
            Whether the peer has confirmed more than before.
        """
        if offset <= self.confirmed:
            return False
        self.confirmed = offset
        chunks = self.chunks
        while chunks and chunks[0][0] + chunks[0][2] <= offset:
            chunks.popleft()
        base = self.acknowledged = chunks[0][0] if chunks else self.written
        queue = self.queue
        while queue and queue[0][0] < base:  # Freed while still queued: SEEK skips it.
            queue.popleft()
        return True

    def rewind(self) -> None:
        """Queue everything that is kept again: a new circuit starts at `acknowledged`."""
        self.queue = deque(self.chunks)

    def rest(self) -> None:
        """Give grown memory back; only while nothing is held and no batch is open."""
        if not self.chunks and not self.limit and self.size > RING_BYTES_MIN:
            self.view = self._allocate(RING_BYTES_MIN)
            self.size = RING_BYTES_MIN
            self._head = 0

    def _free(self, need: int) -> int:
        """Move the head to a free piece of `need` bytes; returns the piece's end or -1."""
        need += 2 * ACK_ROOM
        size, head = self.size, self._head
        if not self.chunks:
            self._head = 0
            return size if size >= need else -1
        tail = self.chunks[0][1] - ACK_ROOM
        if head <= tail:
            return tail if tail - head >= need else -1
        if size - head >= need:
            return size
        if tail >= need:
            self._head = 0
            return tail
        return -1

    def _grow(self) -> None:
        """Copy all chunks, in order, to the start of a ring of twice the size."""
        old = self.view
        new = self._allocate(2 * len(old))
        head = 0
        moved: deque[Chunk] = deque()
        for offset, index, length in self.chunks:
            start = head + ACK_ROOM
            head = start + length
            new[start:head] = old[index : index + length]
            moved.append((offset, start, length))
        waiting = len(self.queue)
        self.view, self.size, self._head, self.chunks = new, len(new), head, moved
        self.queue = deque(list(moved)[len(moved) - waiting :])
