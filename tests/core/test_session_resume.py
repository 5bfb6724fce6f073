"""A session whose applications are read again in the middle of what its circuit takes."""

from __future__ import annotations

from tests.core.test_session_pipe import Both, Ends, Taker
from x0tta6bl4.core.session.frames import Open
from x0tta6bl4.core.session.pipe import Pipe


def test_whoever_resumes_while_a_chunk_is_taken_comes_behind_it() -> None:
    """An application that is read again may fill the batch, and `ready` pumps from within."""
    both = Both()
    stream = Taker()
    both.client.open(stream, Open())
    both.carry()
    carried: list[bytes] = []

    class Resuming(Ends):
        def resume(self, pipe: Pipe) -> None:
            pipe.write(stream, b"last")
            pipe.flush()

        def ready(self, pipe: Pipe) -> None:
            pump()

    def pump() -> None:
        while (view := both.near.pending()) is not None:
            carried.append(bytes(view))

    sent = 0
    while not both.client.paused:
        for _ in range(8):
            stream.credit = 64 * 1024
            sent += both.client.write(stream, bytes([sent % 251]) * 40_000)
        both.client.flush()
    both.client.hooks = Resuming()
    pump()
    assert not both.client.paused
    for each in carried:
        both.far.feed(memoryview(each))
    got = both.ends.accepted[0].got
    assert bytes(got[-4:]) == b"last"
    assert len(got) == sent + 4
