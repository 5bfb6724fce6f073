"""A twin of `edge.tls.engine.Engine` on the backend of the standard library: the same contract.

It judges after the handshake (the standard library has no callback for it), so a refused peer
gets no alert from it; nothing is delivered all the same.  No exporter, no hybrid groups.
"""

from __future__ import annotations

import ssl
from typing import Any

from x0tta6bl4.core.machine import Denied, Verdict
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.engine import TlsClosed, TlsRefused
from x0tta6bl4.edge.tls.stdlib import new_settings, reason_of
from x0tta6bl4.edge.tls.x509 import parse


class TlsTwin:
    def __init__(self, context: TlsContext, server: bool, anchors: tuple[bytes, ...]) -> None:
        self.context = context
        self.server = server
        self.peer: Verdict = Denied("no certificate")
        self.peer_not_after_unix_s = 0
        self.alpn = ""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        settings = new_settings(context, server, anchors)
        self._ssl: Any = settings.wrap_bio(self._in, self._out, server)
        self._complete = False
        self._failed = ""
        self._due = ""

    def shake(self) -> bool:
        if self._failed:
            raise TlsRefused(self._failed)
        if self._complete:
            return True
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except TlsRefused as error:
            self.peer = Denied(error.reason)
            raise self._refuse(error.reason) from None
        self.alpn = self._ssl.selected_alpn_protocol() or ""
        self.peer = self._ssl.peer
        leaf = self._ssl.getpeercert(True)
        if leaf is not None:
            self.peer_not_after_unix_s = parse(leaf).fields.not_after_unix_s
        self._complete = True
        return True

    def feed(self, view: bytes | bytearray | memoryview) -> None:
        self._in.write(view)

    def feed_eof(self) -> None:
        self._in.write_eof()

    def take(self, into: bytearray | memoryview) -> int:
        data = self._out.read(len(into))
        into[: len(data)] = data
        return len(data)

    def write(self, view: bytes | bytearray | memoryview) -> None:
        assert self._complete
        sent = 0
        while sent < len(view):
            sent += self._ssl.write(memoryview(view)[sent:])

    def read(self, into: bytearray | memoryview) -> int:
        if self._failed:
            raise TlsRefused(self._failed)
        assert self._complete
        got = 0
        view = memoryview(into)
        while got < len(view):
            try:
                n = int(self._ssl.read(len(view) - got, view[got:]))  # A number, with a buffer.
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                n = 0
            except ssl.SSLError as error:
                self._failed = reason_of(error)
                if got:
                    break
                raise TlsRefused(self._failed) from None
            if not n:
                if got:
                    break
                raise TlsClosed
            got += n
        return got

    def close(self) -> None:
        if self._complete:
            try:
                self._ssl.unwrap()
            except ssl.SSLError:
                pass

    def _refuse(self, reason: str) -> TlsRefused:
        self._failed = reason
        return TlsRefused(reason)
