"""A relay's wire in the hands of an attacker: passes TCP on, and turns bits over when told to."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from x0tta6bl4.app.mesh import free_ports

CHUNK_BYTES = 65_536
FLIPPED_BYTES_MIN = 200
"""Only chunks at least this long are touched: application data, no setup frames."""


class Flipper:
    """Listens on a loopback port and passes everything on to `target`.

    Attributes:
        target: where connections go.
        flips: how many chunks are still to be spoilt.
        flipped: how many were.
    """

    def __init__(self) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self.target = ("127.0.0.1", 0)
        self.flips = 0
        self.flipped = 0
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop, and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self.target, 5)
        except OSError:
            near.close()
            return
        pair = {near: far, far: near}
        for sock in pair:
            sock.settimeout(10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= set(pair)
        with contextlib.suppress(OSError, ValueError):
            self._copy(pair)
        with self._lock:
            self._open -= set(pair)
        for sock in pair:
            sock.close()

    def _copy(self, pair: dict[socket.socket, socket.socket]) -> None:
        reading = list(pair)
        while reading:
            for sock in select.select(reading, (), ())[0]:
                data = sock.recv(CHUNK_BYTES)
                if not data:
                    reading.remove(sock)
                    pair[sock].shutdown(socket.SHUT_WR)
                    continue
                pair[sock].sendall(self._spoilt(data))

    def _spoilt(self, data: bytes) -> bytes:
        with self._lock:
            if not self.flips or len(data) < FLIPPED_BYTES_MIN:
                return data
            self.flips -= 1
            self.flipped += 1
        middle = len(data) // 2
        return data[:middle] + bytes((data[middle] ^ 0x10,)) + data[middle + 1 :]
