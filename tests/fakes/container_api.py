"""A container engine's API on a Unix socket: one question, `GET /containers/{id}/json`.

It passes the contract in `tests/edge/test_attest_containers.py` that a real engine passes too.  Its
`manner` may be anything that a broken or hostile one would do.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any


class FakeContainers:
    """Answers until closed.

    Attributes:
        containers: whole ID -> what `add` was told.
        manner: `good`, or how it fails: see `_answer`.
        asked: questions so far.
    """

    def __init__(self, path: Path, manner: str = "good") -> None:
        self.path = str(path)
        self.manner = manner
        self.asked = 0
        self.containers: dict[str, dict[str, Any]] = {}
        self._closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def add(self, id: str, pid: int, **config: Any) -> None:
        """A running container."""
        self.containers[id] = {
            "Id": id,
            "Image": "sha256:" + "ab" * 32,
            "Created": "2026-01-01T00:00:00Z",
            "State": {"Pid": pid, "Running": True, "Status": "running"},
            "Config": {"Image": "web:1.2", "Labels": None, "Env": None, **config},
        }

    def close(self) -> None:
        """End; an answer that is under way is cut off."""
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        os.unlink(self.path)

    def _serve(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            with connection:
                try:
                    self._talk(connection)
                except (BrokenPipeError, ConnectionResetError):
                    continue

    def _talk(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            chunk = connection.recv(4096)
            if not chunk:
                return
            request += chunk
        self.asked += 1
        words = request.split()
        assert words[0] == b"GET"
        assert words[2] == b"HTTP/1.0"
        known = self.containers.get(words[1].decode().split("/")[2])
        self._answer(connection, known)

    def _answer(self, connection: socket.socket, known: dict[str, Any] | None) -> None:
        status = "200 OK" if known else "404 Not Found"
        body = json.dumps(known or {"message": "No such container"}).encode()
        head = f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n"
        if self.manner == "silent":
            self._closing.wait(10)
            return
        if self.manner == "drip":
            while not self._closing.wait(0.02):
                connection.sendall(b"H")
            return
        if self.manner == "huge":
            connection.sendall(head.encode() + b"\r\n")
            for _ in range(100):
                connection.sendall(b" " * (1 << 20))
            return
        if self.manner == "garbage":
            connection.sendall(b"\x16\x03\x01\x00" * 64)
            return
        if self.manner == "deep":
            body = b'{"Id":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        if self.manner == "wrong":
            body = b'{"Id": 5, "State": []}'
        if self.manner == "chunked":
            head += "Transfer-Encoding: chunked\r\n"
        if self.manner == "refuses":
            head = "HTTP/1.1 500 Internal Server Error\r\n"
        length = len(body) + (self.manner == "cut")
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
