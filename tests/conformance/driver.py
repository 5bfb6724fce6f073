"""Starts a harness as a process of its own, talks to it, and plays the peers it meets.

The peers are plain pyOpenSSL and check nobody: whether a certificate is accepted is for the
harness alone to say.  A client knows it from the line that it is sent, never from a handshake that
came to an end: a TLS 1.3 client finishes before its certificate was looked at.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL, crypto

from tests.conformance import harness
from x0tta6bl4.edge.tls.binding import lib
from x0tta6bl4.sdk.testing.domain import Svid

HARNESS = harness.__file__
READY_S = 10.0
PEER_S = 5.0
UNTIL_S = 5.0


class Answer(msgspec.Struct, frozen=True):
    """What the control port answered."""

    code: int
    body: dict[str, Any]


class Meeting(msgspec.Struct, frozen=True):
    """What one end saw of a TLS connection with the harness."""

    said: str = ""
    """What the harness wrote."""
    chain: tuple[bytes, ...] = ()
    """What it presented, DER, leaf first."""
    error: str = ""

    @property
    def accepted(self) -> bool:
        return bool(self.said.strip())

    @property
    def id(self) -> str:
        """SPIFFE ID that the harness presented."""
        return uris(self.chain[0])[0] if self.chain else ""


def uris(der: bytes) -> list[str]:
    """URIs in the subject alternative name of a certificate."""
    leaf = x509.load_der_x509_certificate(der)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


class Harness:
    """One process of the harness; a context manager.

    Args:
        endpoint: for SPIFFE_ENDPOINT_SOCKET, the only variable in its environment.
        wait: whether to wait for READY.
    """

    def __init__(self, endpoint: str, *, wait: bool = True, wait_s: float = READY_S) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop().
        self._said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-I", HARNESS],
            env={"SPIFFE_ENDPOINT_SOCKET": endpoint},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._rest = b""
        try:
            if wait:
                self.ready(wait_s)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------------------ its life
    def ready(self, wait_s: float = READY_S) -> None:
        """Wait for READY.

        Raises:
            TimeoutError: it did not come.
        """
        if not self.read_until("READY", wait_s):
            raise TimeoutError(f"no READY within {wait_s} s, said {self.lines}:\n{self.log()}")

    def read_until(self, line: str, wait_s: float) -> bool:
        """Read what it prints up to this line; False: it did not come, or the process ended."""
        assert self.process.stdout is not None
        end = time.monotonic() + wait_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while line not in self.lines:
                left = end - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return False
                data = os.read(self.process.stdout.fileno(), 65_536)
                if not data:
                    return False
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.lines += [one.decode() for one in lines]
        return True

    def stop(self) -> int:
        """End it as the contract says; returns how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        if not self._log.closed:
            self._said = self.log()
            self._log.close()
        return self.process.returncode

    def log(self) -> str:
        """What it has written to stderr."""
        if self._log.closed:
            return self._said
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def port(self, name: str) -> int:
        """Port that it announced: `X509` or `CONTROL`."""
        (line,) = (one for one in self.lines if one.startswith(f"SPIFFE_{name}_PORT="))
        return int(line.partition("=")[2])

    # --------------------------------------------------------------------------- control port
    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """One request to the control port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port("CONTROL"), timeout=15)
        with contextlib.closing(connection):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else data, headers)
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read()))

    def validate(self, token: str, audience: str = "web") -> Answer:
        """POST /v1/jwt/validate."""
        return self.ask("POST", "/v1/jwt/validate", {"token": token, "audience": audience})

    def fetch(self, *audience: str, spiffe_id: str = "") -> Answer:
        """POST /v1/jwt/fetch."""
        body = {"audience": list(audience), "spiffe_id": spiffe_id}
        return self.ask("POST", "/v1/jwt/fetch", body)

    def dial(self, address: str) -> Answer:
        """POST /v1/x509/dial."""
        return self.ask("POST", "/v1/x509/dial", {"address": address})

    # ------------------------------------------------------------------------------- X.509 port
    def meet(self, presented: Svid | None, **how: Any) -> Meeting:
        """Connect to the X.509 port with this certificate."""
        connection = None
        try:
            with socket.create_connection(("127.0.0.1", self.port("X509")), PEER_S) as sock:
                connection = SSL.Connection(context(presented, **how), sock)
                connection.set_connect_state()
                sock.settimeout(None)
                _deadline(sock)
                connection.do_handshake()
                return Meeting(_read(connection).decode(), _chain(connection))
        except (SSL.Error, OSError) as error:
            return Meeting("", _chain(connection), f"{type(error).__name__} {error}")

    def dials(self, presented: Svid | None, **how: Any) -> tuple[Answer, Meeting]:
        """Let it dial a server that presents this; what it answered, and what the server saw."""
        with server(presented, **how) as (address, seen):
            answer = self.dial(address)
        return answer, seen[0] if seen else Meeting()

    def accepts(self, role: str, presented: Svid, **how: Any) -> str:
        """ID as which it accepts this peer in its role; empty: refused.

        Raises:
            AssertionError: it neither accepted nor refused.
        """
        if role == "server":
            return self.meet(presented, **how).said.strip()
        answer, _ = self.dials(presented, **how)
        assert answer.code in (200, 422), answer
        assert answer.body["status"] == ("ok" if answer.code == 200 else "rejected")
        return str(answer.body.get("spiffe_id", "")) if answer.code == 200 else ""


def context(
    presented: Svid | None,
    *,
    tls12: bool = False,
    groups: str = "",
) -> SSL.Context:
    """TLS of a peer that presents what it likes and accepts everybody."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_cipher_list(b"ALL:@SECLEVEL=0")
    made.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if tls12:
        made.set_max_proto_version(SSL.TLS1_2_VERSION)
    if presented is not None:
        leaf, *others = map(x509.load_der_x509_certificate, presented.chain)
        made.use_certificate(leaf)
        for other in others:
            made.add_extra_chain_cert(other)
        key = crypto.load_privatekey(crypto.FILETYPE_ASN1, presented.key)
        # pyOpenSSL's own call knows no ML-DSA keys.
        assert lib.SSL_CTX_use_PrivateKey(vars(made)["_context"], vars(key)["_pkey"]) == 1
    return made


@contextlib.contextmanager
def server(presented: Svid | None, **how: Any) -> Iterator[tuple[str, list[Meeting]]]:
    """A TLS server for one connection; the list holds what it saw once that is over."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(PEER_S)
    seen: list[Meeting] = []

    def serve() -> None:
        connection = None
        try:
            sock, _ = listening.accept()
            with sock:
                connection = SSL.Connection(context(presented, **how), sock)
                connection.set_accept_state()
                sock.settimeout(None)
                _deadline(sock)
                connection.do_handshake()
                seen.append(Meeting("shaken", _chain(connection)))
                _read(connection)
        except (SSL.Error, OSError) as error:
            if not seen:
                seen.append(Meeting("", _chain(connection), f"{type(error).__name__} {error}"))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}", seen
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # Nobody else is waited for.
        thread.join(2 * PEER_S)
        listening.close()
        assert not thread.is_alive()


def until(what: Callable[[], bool], wait_s: float = UNTIL_S) -> bool:
    """Ask again and again until it is so; False: it never was within the time."""
    end = time.monotonic() + wait_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _deadline(sock: socket.socket) -> None:
    """Blocking calls on it end after PEER_S; OpenSSL wants sockets that block."""
    value = int(PEER_S).to_bytes(8, sys.byteorder) + bytes(8)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _read(connection: SSL.Connection) -> bytes:
    """All that comes until the other end closes."""
    found = b""
    while True:
        try:
            found += connection.recv(65_536)
        except SSL.ZeroReturnError:
            return found
        except SSL.Error:
            if found:
                return found
            raise


def _chain(connection: SSL.Connection | None) -> tuple[bytes, ...]:
    """What the other end presented, leaf first."""
    if connection is None:
        return ()
    leaf = connection.get_peer_certificate(as_cryptography=True)
    if leaf is None:
        return ()
    others = connection.get_peer_cert_chain(as_cryptography=True) or []
    found = [leaf.public_bytes(serialization.Encoding.DER)]
    found += [one.public_bytes(serialization.Encoding.DER) for one in others]
    return tuple(dict.fromkeys(found))
