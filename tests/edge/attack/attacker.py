"""A peer that presents what it likes, checks nobody and keeps no rule: raw OpenSSL."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from OpenSSL import SSL, crypto

from tests.fakes.ca import ALPN
from x0tta6bl4.edge.tls.binding import lib
from x0tta6bl4.edge.tls.recipes import Presented


class Attacker:
    """Shaped like an engine, so that both can be wired together; errors end it quietly.

    As a server with `*` for ALPN it takes whatever is offered.
    """

    def __init__(
        self,
        server: bool,
        presented: Presented | None,
        alpn: Sequence[str] = (ALPN,),
        only_tls12: bool = False,
        like: Attacker | None = None,
    ) -> None:
        context = (
            _settings(server, presented, alpn, only_tls12)
            if like is None
            else like.connection.get_context()
        )
        self.connection: SSL.Connection = SSL.Connection(context)
        if like is not None and not server:  # Comes back with what it was given.
            session = like.connection.get_session()
            assert session is not None
            self.connection.set_session(session)
        if server:
            self.connection.set_accept_state()
        else:
            self.connection.set_connect_state()
        self.complete = False
        self.dead = ""

    @property
    def resumed(self) -> bool:
        return bool(lib.SSL_session_reused(vars(self.connection)["_ssl"]))

    def shake(self) -> bool:
        if not self.complete and not self.dead:
            try:
                self.connection.do_handshake()
                self.complete = True
            except SSL.WantReadError:
                pass
            except SSL.Error as error:
                self.dead = str(error)
        return self.complete

    def feed(self, view: bytes | bytearray | memoryview) -> None:
        if len(view):
            self.connection.bio_write(bytes(view))

    def take(self, into: bytearray | memoryview) -> int:
        try:
            data = self.connection.bio_read(len(into))
        except SSL.WantReadError:
            return 0
        into[: len(data)] = data
        return len(data)

    def write(self, data: bytes) -> None:
        if self.complete and not self.dead:
            try:
                self.connection.send(data)
            except SSL.Error as error:
                self.dead = str(error)

    def read(self) -> bytes:
        found = b""
        while self.complete and not self.dead:
            try:
                found += self.connection.recv(65_536)
            except SSL.WantReadError:
                break
            except SSL.Error as error:
                self.dead = str(error) or "closed"
        return found


def _settings(
    server: bool, presented: Presented | None, alpn: Sequence[str], only_tls12: bool
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_cipher_list(b"ALL:@SECLEVEL=0")
    if only_tls12:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_session_id(b"attacker")
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    if presented is not None:
        leaf, *others = (x509.load_der_x509_certificate(der) for der in presented.chain)
        context.use_certificate(leaf)
        for other in others:
            context.add_extra_chain_cert(other)
        key = crypto.load_privatekey(crypto.FILETYPE_ASN1, presented.key)
        # pyOpenSSL's own call knows no ML-DSA keys.
        if lib.SSL_CTX_use_PrivateKey(vars(context)["_context"], vars(key)["_pkey"]) != 1:
            raise ValueError("the key is another one's")
    names = [name.encode() for name in alpn]
    if names and server:
        context.set_alpn_select_callback(
            lambda connection, offered: offered[0] if names == [b"*"] else names[0]
        )
    elif names:
        context.set_alpn_protos(names)
    return context
