"""A last word arrives, whatever the other end still sends; and few wait for it at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from x0tta6bl4.core.machine import MS
from x0tta6bl4.runtime.loop.parting import PARTINGS_MAX, Partings
from x0tta6bl4.runtime.loop.poll import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), 5)
        near, _ = listener.accept()
    near.setblocking(False)
    return near, far


def test_the_word_is_read_although_more_was_sent_meanwhile(loop: Loop) -> None:
    near, far = pair()
    partings = Partings(loop)
    far.sendall(bytes(100_000))
    partings.say(near, b"no")
    heard: list[bytes] = []

    def read() -> None:
        far.sendall(b"more")
        heard.extend(iter(lambda: far.recv(100), b""))
        far.close()

    reader = threading.Thread(target=read)
    reader.start()

    def look() -> None:
        if partings:
            loop.after(MS, look)
        else:
            loop.stop()

    look()
    loop.run()
    reader.join(5)
    assert b"".join(heard) == b"no"


def test_the_oldest_makes_room(loop: Loop) -> None:
    partings = Partings(loop)
    pairs = [pair() for _ in range(PARTINGS_MAX + 2)]
    for near, _ in pairs:
        partings.say(near, b"")
    assert len(partings) == PARTINGS_MAX
    assert [near.fileno() < 0 for near, _ in pairs[:4]] == [True, True, False, False]
    partings.close()
    assert not len(partings)
    assert all(near.fileno() < 0 for near, _ in pairs)
    for _, far in pairs:
        far.close()


def test_one_that_has_gone_away_already_is_just_closed(loop: Loop) -> None:
    near, far = pair()
    near.shutdown(socket.SHUT_RDWR)
    far.close()
    partings = Partings(loop)
    partings.say(near, b"no")
    partings.close()
    assert near.fileno() < 0
