"""The standard library's TLS under the same judge, for frameworks that insist on `ssl`.

Only where somebody asks for it: no hybrid key exchange, no exporter, and a refused peer hears no
alert.  OpenSSL's own check, against all anchors at once, comes first and lets nobody in: right
after the handshake, before a byte of the application passes in either direction, the peer goes to
the judge of its own trust domain.  Whom OpenSSL refuses already is refused in the judge's words,
as far as they mean the same.  It also refuses two kinds of valid SVIDs: those with ML-DSA keys
(before OpenSSL 3.5), and those of a CA that shares its name with another one in the bundle, if
nothing but the signature tells the two apart.  Every handshake takes the newest SVID and bundles.

Source: `SSLContext.sslobject_class` and `sslsocket_class` of the standard library; RFC 8446.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from x0tta6bl4.core.machine import Allowed, Denied, Verdict
from x0tta6bl4.edge.tls.aio import SslRefused
from x0tta6bl4.edge.tls.context import TlsContext
from x0tta6bl4.edge.tls.judge import Judging
from x0tta6bl4.edge.tls.x509 import Svid, load_any_key
from x0tta6bl4.wire.ids import SpiffeId

_DER: Final = 2
"""`_ssl.ENCODING_DER`."""


class StdlibContext(ssl.SSLContext):
    """An `ssl.SSLContext` that judges peers, for both roles, blocking sockets and event loops.

    Args:
        source: gives the TLS settings in use now, for each connection; groups are not looked at.
            Where it raises TlsRefused, having no SVID, so does the handshake.
        anchors: gives the CA certificates of all trust domains in use now, DER.
        on_refused: told the reason of each refused handshake.
    """

    def __new__(
        cls,
        source: Callable[[], TlsContext],
        anchors: Callable[[], Sequence[bytes]],
        on_refused: Callable[[str], None] | None = None,
    ) -> StdlibContext:
        """Make the shell; its own settings refuse everybody, should they ever be used."""
        shell = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        assert isinstance(shell, StdlibContext)
        return shell

    def __init__(
        self,
        source: Callable[[], TlsContext],
        anchors: Callable[[], Sequence[bytes]],
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self._source = source
        self._anchors = anchors
        self.on_refused = on_refused
        self._made: dict[bool, Settings] = {}

    def settings(self, server: bool) -> Settings:
        """What one connection is made with; made again when the SVID or the bundles change."""
        context = self._source()
        made = self._made.get(server)
        if made is None or made.tls is not context:
            made = self._made[server] = new_settings(context, server, self._anchors())
            made.shell = self
        return made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`; host names and sessions play no part."""
        return self.settings(server_side).wrap_bio(incoming, outgoing, server_side)

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As `ssl.SSLContext.wrap_socket`; a cut is an error, host names play no part."""
        return self.settings(server_side).wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs
        )


class Settings(ssl.SSLContext):
    """One snapshot for one role; what it makes judges its peer.

    Attributes:
        tls: what is presented and who is expected.
        shell: what a listening socket asks for newer ones.
    """

    tls: TlsContext
    shell: StdlibContext | None


def new_settings(context: TlsContext, server: bool, anchors: Sequence[bytes]) -> Settings:
    """Settings of one role.

    Args:
        context: SVID, judge, ALPN names, expectation; its groups are not looked at.
        server: role.
        anchors: for OpenSSL's own check, DER.
    Raises:
        SslRefused: the standard library's OpenSSL can't use such a key.
    """
    made = Settings(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.tls, made.shell = context, None
    made.sslobject_class = _JudgedObject
    made.sslsocket_class = _JudgedSocket
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED if context.demand or not server else ssl.CERT_OPTIONAL
    made.verify_flags |= ssl.VerifyFlags(0x80000)  # X509_V_FLAG_PARTIAL_CHAIN
    made.options |= ssl.OP_NO_TICKET
    if server:
        made.num_tickets = 0
    if anchors:
        made.load_verify_locations(cadata="".join(map(ssl.DER_cert_to_PEM_cert, anchors)))
    if context.alpn:
        made.set_alpn_protocols([name.decode() for name in context.alpn])
    if context.svid is not None:
        _present(made, context.svid)
    return made


def _present(made: ssl.SSLContext, svid: Svid) -> None:
    """Load chain and key, which the standard library takes from a file only: one in memory."""
    key = load_any_key(svid.key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = "".join(map(ssl.DER_cert_to_PEM_cert, svid.chain)).encode()
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(chain + key)
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    except ssl.SSLError as error:
        raise SslRefused(f"SVID not usable: {error.reason}") from None
    finally:
        os.close(fd)


class _Connection(Protocol):
    """What both kinds of connection have in common."""

    _sslobj: Any
    context: ssl.SSLContext
    server_side: bool
    session_reused: bool | None

    def selected_alpn_protocol(self) -> str | None: ...
    def getpeercert(self, binary_form: bool) -> bytes | None: ...


def _judge(connection: Any) -> Verdict:
    """Ask the judge about the peer of a handshake that OpenSSL holds for complete.

    Raises:
        SslRefused: it is not the peer that was expected, or nobody we know.
    """
    made: _Connection = connection
    tls = cast(Settings, made.context).tls
    if made.session_reused:
        raise SslRefused("session was resumed")
    alpn = (made.selected_alpn_protocol() or "").encode()
    if alpn not in tls.alpn and (alpn or tls.demand_alpn):
        raise SslRefused("no common protocol")
    if made.getpeercert(True) is None:
        if made.server_side and not tls.demand:
            return Denied("no certificate")
        raise SslRefused("no certificate")
    chain = [one.public_bytes(_DER) for one in made._sslobj.get_unverified_chain()]
    judgement = tls.judge.judge(chain, tls.expect)
    if type(judgement.verdict) is Denied:
        raise SslRefused(judgement.verdict.reason)
    connection.peer_chain = tuple(chain)
    connection.peer_not_after_unix_s = judgement.not_after_unix_s
    return judgement.verdict


class _Judged:
    """A connection of the standard library that passes nothing before its peer was judged."""

    _verdict: Verdict | None = None
    _refused: str = ""
    peer_chain: tuple[bytes, ...] = ()
    """The peer's certificates, DER, as they were judged."""
    peer_not_after_unix_s: int = 0
    """Earliest end of a certificate on the peer's path."""
    group: str = ""
    """The standard library does not tell."""

    @property
    def own(self) -> Svid | None:
        """What this end presents."""
        made: _Connection = cast(Any, self)
        return cast(Settings, made.context).tls.svid

    @property
    def judged_by(self) -> Judging:
        """Who has judged the peer."""
        made: _Connection = cast(Any, self)
        return cast(Settings, made.context).tls.judge

    @property
    def peer(self) -> Verdict:
        """Verdict on the peer; Denied("no certificate") where none was demanded."""
        return self._verdict or Denied("handshake is not complete")

    @property
    def peer_id(self) -> SpiffeId:
        """ID of a peer that was allowed.

        Raises:
            SslRefused: there is none.
        """
        verdict = self.peer
        if not isinstance(verdict, Allowed):
            raise SslRefused(verdict.reason)
        return verdict.peer

    def _shake(self, go_on: Callable[[], None]) -> None:
        """Go on with the handshake and judge at its end, once; what is refused stays refused."""
        if self._refused:
            raise SslRefused(self._refused)
        try:
            go_on()
            if self._verdict is None:
                self._verdict = _judge(self)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._refused = reason_of(error)
            shell = cast(Settings, cast(Any, self).context).shell
            if shell is not None and shell.on_refused is not None:
                shell.on_refused(self._refused)
            raise SslRefused(self._refused) from None


_WORDS: Final = {
    2: "untrusted issuer",
    7: "bad signature",
    9: "not yet valid",
    10: "expired",
    18: "untrusted issuer",
    19: "untrusted issuer",
    20: "untrusted issuer",
    21: "untrusted issuer",
    22: "chain too long",
    24: "issuer is no CA",
    25: "path length exceeded",
    26: "wrong extended key usage",
    32: "issuer may not sign",
    34: "unknown critical extension",
    47: "name constraints",
    48: "name constraints",
    51: "name constraints",
    66: "weak key",
    67: "weak key",
    68: "weak signature",
    79: "issuer is no CA",
}
"""X509_V_ERR_ of OpenSSL -> what the judge says of it."""


def reason_of(error: ssl.SSLError) -> str:
    """Stable phrase for what went wrong, in the words of the judge and the engine."""
    if isinstance(error, SslRefused):
        return error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return _WORDS.get(error.verify_code, "path not valid")
    if isinstance(error, ssl.SSLEOFError):
        return "cut off without a close"
    words = (error.reason or "unknown").lower().replace("_", " ")
    if words == "peer did not return a certificate":
        return "no certificate"
    if words in ("unsupported protocol", "no protocols available"):
        return "tls version"
    if words in ("wrong version number", "http request"):
        return "not tls"
    return "alert from peer: " + words if "alert" in words else "bad tls: " + words


class _JudgedObject(_Judged, ssl.SSLObject):
    """An `ssl.SSLObject`, for event loops."""

    def do_handshake(self) -> None:
        self._shake(super().do_handshake)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if self._verdict is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        if self._verdict is None:
            self.do_handshake()
        return super().write(data)


class _JudgedSocket(_Judged, ssl.SSLSocket):
    """An `ssl.SSLSocket`, for blocking programs."""

    def do_handshake(self, block: bool = False) -> None:
        self._shake(lambda: super(_JudgedSocket, self).do_handshake(block))

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if self._verdict is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        if self._verdict is None:
            self.do_handshake()
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        if self._verdict is None:
            self.do_handshake()
        return super().send(data, flags)

    def accept(self) -> tuple[ssl.SSLSocket, Any]:
        """Accept with the newest SVID, not with that of the time when it began to listen."""
        plain, address = socket.socket.accept(self)
        shell = cast(Settings, self.context).shell
        assert shell is not None
        at_once: bool = cast(Any, self).do_handshake_on_connect
        try:
            return shell.wrap_socket(plain, True, at_once), address
        except BaseException:
            plain.close()
            raise
