"""One TLS connection over memory: ciphertext in, ciphertext out, no socket, no time of its own.

    feed --> [ OpenSSL ] --> read          write --> [ OpenSSL ] --> take

The handshake (`shake`) is complete only when the peer has been judged; until then nothing can be
read or written.  A refused peer's alert is in `take`.  A close_notify is a clean end, a bare end
of the stream is not: truncation must be seen.

The calls of the byte path go straight to the binding inside cryptography, with pointers into the
caller's buffers: pyOpenSSL's public ones cost half of the bulk rate (measured).

Source: RFC 8446; RFC 5705 and RFC 8446 section 7.5 (exporter); RFC 7301 (ALPN).
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.tls.binding import ffi, lib
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.judge import Judgement
from x0tta6bl4.wire.errors import Refused, Unavailable

WRITE_BYTES_MAX: Final = 1024 * 1024
"""Longest single `write`."""
RECORD_BYTES_MAX: Final = 16 * 1024 + 256 + 5
"""Longest TLS record on the wire."""

SIGNATURES: Final = {
    "P-256": "ecdsa_secp256r1_sha256",
    "P-384": "ecdsa_secp384r1_sha384",
    "P-521": "ecdsa_secp521r1_sha512",
    "ML-DSA-44": "mldsa44",
    "ML-DSA-65": "mldsa65",
    "ML-DSA-87": "mldsa87",
}
"""Kind of key -> the one signature scheme that TLS 1.3 has for it (RFC 8446 section 4.2.3)."""

NO_CERTIFICATE: Final = Denied("no certificate")

Buffer = bytes | bytearray | memoryview

_bio_read, _bio_write, _bio_rest = lib.BIO_read, lib.BIO_write, lib.BIO_get_mem_data
_ssl_read, _ssl_write = lib.SSL_read, lib.SSL_write
_from_buffer = ffi.from_buffer
"""Calls of the byte path, one look-up each."""


class TlsRefused(Refused):
    """The connection is refused, by us or by the peer, or broken; it is of no more use.

    Attributes:
        reason: stable, lower case; a peer's alert reads `alert from peer: <name>`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("X0-TLS-020", f"TLS connection refused: {reason}")
        self.reason = reason


class TlsClosed(Unavailable):
    """The peer has closed the connection properly; all it sent has been read."""

    def __init__(self) -> None:
        super().__init__("X0-TLS-021", "TLS connection closed by the peer")


class Engine:
    """TLS connection of one peer.

    Args:
        context: what to present and whom to accept.
        server: role.

    Attributes:
        peer: verdict on the peer; Allowed once `shake` is True (or Denied("no certificate") where
            the context does not demand one).
        peer_not_after_unix_s: end of the peer's certificates; 0 without one.
        peer_issued_unix_s: notBefore of the peer's leaf.
        peer_via: node through which the peer's SVID was issued, or "".
        peer_key: kind of the peer's key, e.g. `P-256`; "" without a certificate.
        peer_chain: the peer's certificates, DER, leaf first, as they were judged.
        stapled: the OCSP response that came with them, DER; empty: none, or nobody asked.
        group: key exchange that was negotiated, e.g. `X25519MLKEM768`.
        alpn: protocol that was negotiated.
        failed: the next `read` raises: broken, or closed by the peer.
    """

    __slots__ = (
        "_bug",
        "_cipher",
        "_cipher_at",
        "_closed",
        "_complete",
        "_connection",
        "_due",
        "_eof",
        "_failed",
        "_in",
        "_issuer",
        "_key",
        "_out",
        "_plain",
        "_plain_at",
        "_rest",
        "_ssl",
        "alpn",
        "context",
        "failed",
        "group",
        "peer",
        "peer_chain",
        "peer_issued_unix_s",
        "peer_key",
        "peer_not_after_unix_s",
        "peer_via",
        "server",
        "stapled",
    )

    def __init__(self, context: TlsContext, server: bool) -> None:
        if not context.armed:
            _arm(context)
        self.context = context
        self.server = server
        connection = SSL.Connection(context.ssl)
        self._connection = connection  # Owns what the three pointers point to.
        self._ssl: Any = connection._ssl
        self._in: Any = connection._into_ssl
        self._out: Any = connection._from_ssl
        self._key = int(ffi.cast("uintptr_t", self._ssl))
        if server:
            lib.SSL_set_accept_state(self._ssl)
        else:
            lib.SSL_set_connect_state(self._ssl)
            if context.status is not None:
                lib.SSL_set_tlsext_status_type(self._ssl, lib.TLSEXT_STATUSTYPE_ocsp)
        self._complete = False
        self.failed = False
        self._failed = ""
        self._closed = False
        self._due = self._eof = False
        self._cipher: memoryview | None = None
        self._plain: memoryview | None = None
        self._cipher_at: Any = None
        self._plain_at: Any = None
        self._rest: Any = ffi.new("char **")
        self._bug: BaseException | None = None
        self.peer: Verdict = NO_CERTIFICATE
        self.peer_not_after_unix_s = 0
        self.peer_issued_unix_s = 0
        self.peer_via = ""
        self.peer_key = ""
        self.peer_chain: tuple[bytes, ...] = ()
        self.stapled = b""
        self._issuer = b""
        self.group = ""
        self.alpn = ""

    # ------------------------------------------------------------------------------ handshake
    def shake(self) -> bool:
        """Go on with the handshake as far as what was fed allows.

        Returns:
            True when it is complete and the peer has been judged.
        Raises:
            TlsRefused: refused; send what `take` still gives (the alert), then close.
        """
        if self._complete:
            return True
        if self._failed:
            raise TlsRefused(self._failed)
        _SHAKING[self._key] = self
        try:
            result = lib.SSL_do_handshake(self._ssl)
        finally:
            del _SHAKING[self._key]
        if self._bug is not None:
            raise self._bug
        if result == 1:
            self._finish()
            return True
        if lib.SSL_get_error(self._ssl, result) == lib.SSL_ERROR_WANT_READ:
            return False
        raise self._fail()

    def _finish(self) -> None:
        """Last checks of a handshake that OpenSSL holds for complete; the judge has spoken."""
        denied = type(self.peer) is not Allowed
        if denied and (self.peer is not NO_CERTIFICATE or not self.server or self.context.demand):
            raise self._refuse("peer was not judged")
        if lib.SSL_version(self._ssl) != SSL.TLS1_3_VERSION:
            raise self._refuse("tls version")
        if lib.SSL_session_reused(self._ssl):
            raise self._refuse("session was resumed")
        if not self._alpn_agreed():
            raise self._refuse("no common protocol")
        name = lib.SSL_get0_group_name(self._ssl)
        self.group = ffi.string(name).decode() if name != ffi.NULL else ""
        if self.group == "x25519":  # As in the settings and in RFC 7748.
            self.group = "X25519"
        self._complete = True

    def _alpn_agreed(self) -> bool:
        data, length = ffi.new("unsigned char **"), ffi.new("unsigned int *")
        lib.SSL_get0_alpn_selected(self._ssl, data, length)
        name = bytes(ffi.buffer(data[0], length[0])) if length[0] else b""
        self.alpn = name.decode("ascii", "replace")
        return name in self.context.alpn or not (name or self.context.demand_alpn)

    def _judge(self, chain: tuple[bytes, ...]) -> Verdict:
        """Called from within the handshake, once, with what the peer presented."""
        context = self.context
        if not self._alpn_agreed():  # Settled before certificates are sent.
            self.peer = Denied("no common protocol")
            return self.peer
        judgement: Judgement = context.judge.judge(chain, context.expect)
        self.peer = judgement.verdict
        self.peer_chain = chain
        self.peer_not_after_unix_s = judgement.not_after_unix_s
        self.peer_issued_unix_s = judgement.issued_unix_s
        self.peer_via = judgement.via
        self.peer_key = judgement.key
        self._issuer = judgement.issuer
        return self.peer

    def _judge_status(self, response: bytes) -> bool:
        """Client role, within the handshake, after `_judge`: whether it may go on."""
        status = self.context.status
        assert status is not None
        self.stapled = response
        denied = status(self.peer_chain[0], self._issuer, response)
        if denied is not None:
            self.peer = denied
        return denied is None

    # -------------------------------------------------------------------------------- byte path
    def feed(self, view: Buffer) -> None:
        """Take ciphertext in; it is copied."""
        size = len(view)
        if size and lib.BIO_write(self._in, ffi.from_buffer(view), size) != size:
            raise self._fail()

    def feed_eof(self) -> None:
        """The stream has ended.  `shake` and `read` will tell whether that was proper."""
        self._eof = True
        lib.BIO_set_mem_eof_return(self._in, 0)

    def take(self, into: bytearray | memoryview) -> int:
        """Move ciphertext out into the caller's buffer; returns its length, 0 when none waits."""
        taken: int = _bio_read(self._out, _from_buffer("char[]", into, True), len(into))
        return taken if taken > 0 else 0

    def write(self, view: Buffer) -> None:
        """Encrypt a whole buffer with one SSL_write; the ciphertext waits in `take`.

        Args:
            view: at most WRITE_BYTES_MAX.
        Raises:
            TlsRefused: the connection has failed before.
        """
        size = len(view)
        if self._failed:  # After the peer's close_notify we may still write.
            raise TlsRefused(self._failed)
        assert self._complete, "write before the peer was judged"
        assert size <= WRITE_BYTES_MAX
        if size and _ssl_write(self._ssl, _from_buffer(view), size) != size:
            raise self._fail()

    def encrypt(self, view: Buffer, into: memoryview) -> int:
        """`write` a buffer, and `take`.

        Args:
            view: at most WRITE_BYTES_MAX.
            into: for ciphertext; `take` gives what does not fit.
        Returns:
            As `take`.
        Raises:
            TlsRefused: as `write`.
        """
        if self._failed:
            raise TlsRefused(self._failed)
        assert self._complete, "write before the peer was judged"
        size = len(view)
        if size and _ssl_write(self._ssl, _from_buffer(view), size) != size:
            raise self._fail()
        taken: int = _bio_read(self._out, _from_buffer(into), len(into))
        return taken if taken > 0 else 0

    def read(self, into: bytearray | memoryview) -> int:
        """Decrypt what was fed into the caller's buffer, as much as fits.

        To be called until it gives 0 or raises: an end may stand behind the last bytes.

        Returns:
            Bytes of plaintext, 0: none yet.
        Raises:
            TlsClosed: the peer closed properly and everything has been read.
            TlsRefused: broken bytes, an alert, or an end without close_notify.
        """
        if self._failed:
            raise TlsRefused(self._failed)
        assert self._complete, "read before the peer was judged"
        at = ffi.from_buffer("char[]", into, require_writable=True)
        try:
            return self._read(at, len(into), _ssl_read(self._ssl, at, len(into)))
        finally:
            # A pointer into a buffer must not live on in a traceback: CPython crashes when
            # it collects the two as garbage (measured).
            ffi.release(at)

    def decrypt(self, cipher: memoryview, count: int, into: memoryview) -> int:
        """`feed` the first `count` bytes of a buffer, and `read`.

        Args:
            cipher: ciphertext; a view of a whole buffer, the same one each time, as `into`:
                pointers into both are kept.
            count: bytes of it, at least one.
            into: for plaintext.
        Returns:
            As `read`.
        Raises:
            TlsClosed, TlsRefused: as `read`.
        """
        if self._failed:
            raise TlsRefused(self._failed)
        assert self._complete, "read before the peer was judged"
        if cipher is not self._cipher:
            self._cipher, self._cipher_at = cipher, _pointer(cipher)
        if into is not self._plain:
            self._plain, self._plain_at = into, _pointer(into)
        if _bio_write(self._in, self._cipher_at, count) != count:
            raise self._fail()
        got: int = _ssl_read(self._ssl, self._plain_at, len(into))
        if got > 0 and not self._eof and not _bio_rest(self._in, self._rest):
            return got  # Nearly always: all that came, in one record.
        return self._read(self._plain_at, len(into), got)

    def _read(self, at: Any, size: int, n: int) -> int:
        """Go on after an SSL_read to the start of a buffer that gave `n`."""
        ssl, got = self._ssl, 0
        while True:
            if n <= 0:
                if lib.SSL_get_error(ssl, n) == lib.SSL_ERROR_WANT_READ:
                    return got
                self._due = got > 0
                if got:
                    self._fail()
                    return got  # What came before it; the next call raises.
                raise self._fail()
            got += n
            if got == size or (not _bio_rest(self._in, self._rest) and not self._eof):
                return got  # OpenSSL keeps no whole record back: it need not be asked in vain.
            n = _ssl_read(ssl, at + got, size - got)

    def close(self) -> None:
        """Say that nothing more will be written: a close_notify waits in `take`.

        Reading may go on.  Before the handshake is complete, and after a failure, it does nothing.
        """
        if self._complete and not self._failed:
            lib.SSL_shutdown(self._ssl)
            lib.ERR_clear_error()

    @property
    def closed(self) -> bool:
        """Whether the peer has closed properly and `read` has said so."""
        return self._closed

    @property
    def pending(self) -> int:
        """Bytes that `read` has not given yet: decrypted ones, or ciphertext that was fed.

        1 where there are none but the next `read` is going to raise.
        """
        waiting = int(lib.SSL_pending(self._ssl)) or int(_bio_rest(self._in, self._rest))
        return waiting or int(self._due)

    @property
    def signature(self) -> str:
        """How the peer has signed the handshake, e.g. `ecdsa_secp256r1_sha256`, `mldsa65`."""
        return SIGNATURES.get(self.peer_key, "rsa_pss_rsae" if self.peer_key else "")

    def exporter(self, label: bytes, context: bytes, length: int) -> bytes:
        """Keying material of this connection (RFC 5705), the same at both ends.

        Args:
            label: e.g. b"EXPERIMENTAL x0 hello".
            context: further input, both ends the same.
            length: bytes wanted.
        """
        assert self._complete
        out = ffi.new("unsigned char[]", length)
        done = lib.SSL_export_keying_material(
            self._ssl, out, length, label, len(label), context, len(context), 1
        )
        if done != 1:
            raise self._fail()
        return bytes(ffi.buffer(out, length))

    # -------------------------------------------------------------------------------- failures
    def _refuse(self, reason: str) -> TlsRefused:
        """Remember the reason, not the exception: that would hold its frames, and they us."""
        self.failed = True
        self._failed = reason
        lib.ERR_clear_error()
        return TlsRefused(reason)

    def _fail(self) -> TlsRefused | TlsClosed:
        """Turn OpenSSL's state into our error, remember it, and leave its queue empty.

        A queue that is not emptied condemns the next connection (measured).
        """
        code = lib.ERR_get_error()
        if not code and lib.SSL_get_shutdown(self._ssl) & lib.SSL_RECEIVED_SHUTDOWN:
            if not self._complete:
                return self._refuse("closed within the handshake")
            self.failed = self._closed = True
            return TlsClosed()
        if not self._complete and type(self.peer) is Denied and self.peer is not NO_CERTIFICATE:
            return self._refuse(self.peer.reason)
        return self._refuse(_reason(code))


def _pointer(view: memoryview) -> Any:
    """A pointer that may be kept.

    It holds what the view is of, never the view: CPython crashes when it collects a view and a
    pointer that holds it as garbage of one cycle (measured).
    """
    assert view.obj is not None
    assert len(view.obj) == len(view), "a view of a part"  # type: ignore[arg-type]
    return ffi.from_buffer("char[]", view.obj, require_writable=True)


_SHAKING: Final[dict[int, Engine]] = {}
"""Engines that are inside SSL_do_handshake at this moment: at most one per thread."""

_ALERT: Final = 1000  # SSL_AD_REASON_OFFSET
_REASONS: Final = {
    "unsupported protocol": "tls version",
    "no protocols available": "tls version",
    "wrong version number": "not tls",
    "http request": "not tls",
    "https proxy request": "not tls",
    "no application protocol": "no common protocol",
    "peer did not return a certificate": "no certificate",
    "unexpected eof while reading": "cut off without a close",
    "no shared groups": "no common group",
    "no suitable groups": "no common group",
    "no suitable key share": "no common group",
}


def _reason(code: int) -> str:
    """Stable phrase for an OpenSSL error code; 0 is an end of the stream."""
    if not code:
        return "cut off without a close"
    text = lib.ERR_reason_error_string(code)
    words = ffi.string(text).decode("ascii", "replace") if text != ffi.NULL else "unknown"
    if lib.ERR_GET_REASON(code) > _ALERT:
        return "alert from peer: " + words.partition("alert ")[2]
    return _REASONS.get(words, "bad tls: " + words)


_CODES: Final = {
    "expired": lib.X509_V_ERR_CERT_HAS_EXPIRED,
    "not yet valid": lib.X509_V_ERR_CERT_NOT_YET_VALID,
    "revoked": lib.X509_V_ERR_CERT_REVOKED,
    "node revoked": lib.X509_V_ERR_CERT_REVOKED,
    "untrusted issuer": lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    "bad signature": lib.X509_V_ERR_CERT_SIGNATURE_FAILURE,
}
"""Reasons with an alert of their own (RFC 8446 section 6.2); all others: bad_certificate."""


def _on_verify(ok: int, store: Any) -> int:
    """Ask the judge at OpenSSL's first question and give the same answer to all others."""
    ssl = lib.X509_STORE_CTX_get_ex_data(store, lib.SSL_get_ex_data_X509_STORE_CTX_idx())
    engine = _SHAKING.get(int(ffi.cast("uintptr_t", ssl)))
    if engine is None:
        return 0
    try:
        if engine.peer is NO_CERTIFICATE:
            engine._judge(_presented(ssl, store))
    except BaseException as bug:  # noqa: BLE001  # C code above us: raised again by shake().
        engine._bug = bug
        return 0
    verdict = engine.peer
    if type(verdict) is Allowed:
        lib.X509_STORE_CTX_set_error(store, lib.X509_V_OK)
        return 1
    assert type(verdict) is Denied
    lib.X509_STORE_CTX_set_error(store, _CODES.get(verdict.reason, lib.X509_V_ERR_CERT_REJECTED))
    return 0


def _on_alpn(ssl: Any, out: Any, out_length: Any, offered: Any, length: int, _: Any) -> int:
    """Choose our first name that the client offers; without one, a fatal alert."""
    engine = _SHAKING.get(int(ffi.cast("uintptr_t", ssl)))
    if engine is None:
        return int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)
    names = bytes(ffi.buffer(offered, length))
    for wanted in engine.context.alpn:
        at = 0
        while at < length:
            if names[at + 1 : at + 1 + names[at]] == wanted:
                out[0] = ffi.cast("unsigned char *", offered + at + 1)
                out_length[0] = names[at]
                return int(lib.SSL_TLSEXT_ERR_OK)
            at += 1 + names[at]
    if not engine.context.demand_alpn:
        return int(lib.SSL_TLSEXT_ERR_NOACK)
    return int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)


def _on_status(ssl: Any, _: Any) -> int:
    """Server: hand out the response about us.  Client: judge the server's."""
    engine = _SHAKING.get(int(ffi.cast("uintptr_t", ssl)))
    if engine is None:
        return -1
    try:
        if engine.server:
            return _staple(ssl, engine.context)
        at = ffi.new("unsigned char **")
        size = lib.SSL_get_tlsext_status_ocsp_resp(ssl, at)
        judged = type(engine.peer) is Allowed
        return int(judged and engine._judge_status(bytes(ffi.buffer(at[0], max(0, size)))))
    except BaseException as bug:  # noqa: BLE001  # C code above us: raised again by shake().
        engine._bug = bug
        return -1


def _staple(ssl: Any, context: TlsContext) -> int:
    response = context.staple() if context.staple is not None else b""
    if not response:
        return int(lib.SSL_TLSEXT_ERR_NOACK)
    copy = lib.OPENSSL_malloc(len(response))  # OpenSSL frees it.
    ffi.memmove(copy, response, len(response))
    lib.SSL_set_tlsext_status_ocsp_resp(ssl, copy, len(response))
    return int(lib.SSL_TLSEXT_ERR_OK)


def _presented(ssl: Any, store: Any) -> tuple[bytes, ...]:
    """The peer's certificates, leaf first.

    A client sees them all.  A server is shown, at this point, those that OpenSSL could link to
    the leaf by name; the order in which they came makes no difference in either role.
    """
    given = lib.SSL_get_peer_cert_chain(ssl)
    if given != ffi.NULL:
        return tuple(_der(lib.sk_X509_value(given, i)) for i in range(lib.sk_X509_num(given)))
    built = lib.X509_STORE_CTX_get1_chain(store)
    if built == ffi.NULL:
        return (_der(lib.X509_STORE_CTX_get0_cert(store)),)
    certificates = [lib.sk_X509_value(built, i) for i in range(lib.sk_X509_num(built))]
    try:
        return tuple(map(_der, certificates))
    finally:
        for certificate in certificates:
            lib.X509_free(certificate)
        lib.sk_X509_free(built)


def _der(certificate: Any) -> bytes:
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        if lib.i2d_X509_bio(bio, certificate) != 1:
            return b""
        data = ffi.new("char **")
        length = lib.BIO_get_mem_data(bio, data)
        return bytes(ffi.buffer(data[0], length))
    finally:
        lib.BIO_free(bio)


def _arm(context: TlsContext) -> None:
    """Let the handshakes of a context ask the engine that makes them."""
    handle = context.ssl._context
    mode = lib.SSL_VERIFY_PEER
    if context.demand:  # Of a server; means nothing to clients.
        mode |= lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    lib.SSL_CTX_set_verify(handle, mode, _VERIFY_CALLBACK)
    if context.alpn:
        lib.SSL_CTX_set_alpn_select_cb(handle, _ALPN_CALLBACK, ffi.NULL)
    if context.status is not None or context.staple is not None:
        lib.SSL_CTX_set_tlsext_status_cb(handle, _STATUS_CALLBACK)
    context.armed = True


_STATUS_CALLBACK: Final = ffi.callback("int (*)(SSL *, void *)", _on_status)
_VERIFY_CALLBACK: Final = ffi.callback("int (*)(int, X509_STORE_CTX *)", _on_verify)
_ALPN_CALLBACK: Final = ffi.callback(
    "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, "
    "void *)",
    _on_alpn,
)
